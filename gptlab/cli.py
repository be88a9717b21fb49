"""The console script: `gptlab train ...` is `python -m gptlab.train ...`, and so on for every verb.

Completion, in bash: eval "$(gptlab -sc install=bash)"
"""

from __future__ import annotations

import importlib
import os
import runpy
import sys

from gptlab import __version__
from gptlab.system.errors import UserError, command_line

VERBS = {
    "train": "train one run, or a sweep of runs",
    "prepare": "turn a text into ids, and write them for other programs",
    "generate": "let a trained model go on with a prompt",
    "rank": "say which of two answers is better, as data for training",
    "serve": "let other programs ask a model, as they ask OpenAI's",
    "evaluate": "the exact loss of a model on a text, beside another's if you like",
    "explain": "a page that shows what a model does with a text",
    "export": "write a model for transformers, llama.cpp, llama2.c, ONNX, or as safetensors",
    "report": "the tables and plots of a sweep, or of any runs",
    "tokenize": "show what tokenizers make of a text",
    "lesson": "run a chapter of the lessons, and check the answers to its exercises",
    "bench": "how fast a run is, and what its time goes into",
}
USES_HYDRA = ("train", "prepare", "bench")


def usage() -> str:
    verbs = "\n".join(f"  {verb:10}{what}" for verb, what in VERBS.items())
    return f"gptlab {__version__}\n\nusage: gptlab VERB ...\n\n{verbs}\n\ngptlab VERB --help says more."


def complete() -> None:
    """Answer a shell's question about the line typed so far; Hydra knows the groups and keys."""
    words = os.environ.get("COMP_LINE", "").split(" ")
    arguments = sys.argv[1:]
    if arguments[1:2] == ["query=bash"] and (len(words) < 3 or words[1] not in USES_HYDRA):
        print(" ".join(VERBS) if len(words) < 3 else "")
        return
    if len(words) >= 3:
        os.environ["COMP_LINE"] = " ".join(words[:1] + words[2:])
    importlib.import_module("gptlab.train").main()


def main() -> None:
    arguments = sys.argv[1:]
    if arguments and arguments[0] in VERBS:
        sys.argv = [sys.argv[0], *arguments[1:]]
        # As python -m would: with several devices, Lightning starts the other processes by this name.
        runpy.run_module(f"gptlab.{arguments[0]}", run_name="__main__", alter_sys=True)
        return
    with command_line():
        if not arguments or arguments[0] in ("-h", "--help"):
            print(usage())
        elif arguments[0] == "--version":
            print(__version__)
        elif arguments[0] in ("-sc", "--shell-completion"):
            complete()
        else:
            raise UserError(f"{arguments[0] or 'an empty word'}: no such verb\n\n{usage()}")
