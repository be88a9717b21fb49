"""The closing words of a run: its folder, its results, and commands to try next."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from gptlab.runs.directory import PAGE
from gptlab.system.terminal import duration, pasteable, shell_quoted

MEASURES = (
    ("accuracy", "{:.2%} right"),
    ("stop_rate", "{:.2%} end"),
    ("f1", "F1 {:.3f}"),
    ("expected_accuracy", "{:.2%} expected of such labels"),
    ("bayes_accuracy", "at best {:.2%}"),
    ("reward", "reward {:.3f}"),
    ("judged_reward", "{:.3f} by the reward model"),
    ("kl", "{:.2f} nats from the reference"),
    ("win_rate", "{:.1%} wins against it"),
    ("text_loss", "{:.4f} nats per token on the text"),
)
"""What is said of a part beside its loss, where it was measured."""


def closing_words(summary: dict[str, Any], resumed: bool = False) -> str:
    """Return the closing message of a run.

    Args:
        summary: the run's summary; with "opening" the beginning of a text that the model knows, if it is there, and
            with "speaks" whether it writes text.
        resumed: whether `summary["total_seconds"]` counts only from where the run was resumed.
    """
    run_dir = os.path.relpath(summary["run_dir"])
    how = {"finished": "finished", "stopped_early": "stopped early"}[summary["status"]]
    test = f"\n  test/loss   {summary['test/loss']:.4f}" if "test/loss" in summary else ""
    for part in ("val", "test"):
        if said := [words.format(summary[f"{part}/{key}"]) for key, words in MEASURES if f"{part}/{key}" in summary]:
            test += f"\n  {part:<11} {', '.join(said)}"
    since = "this time" if resumed else "in all"
    page = f"\n  page        {Path(run_dir, PAGE)}" if (Path(run_dir) / PAGE).is_file() else ""
    commands = "".join(f"\n  {command}" for command in next_commands(summary, run_dir).values())
    return f"""
{how} after {summary["steps"]} steps: {run_dir}
  val/loss    {_loss(summary)}
  train/loss  {summary["train/loss"]:.4f}{test}
  time        {duration(summary["train_seconds"])} of training, {duration(summary["total_seconds"])} {since}, \
{summary["tokens_per_sec"]:,.0f} tokens/s{page}

next:{commands}"""


def next_commands(summary: dict[str, Any], run_dir: str) -> dict[str, str]:
    """Return commands to try after a run, by what each does.

    Args:
        summary: see `closing_words`.
        run_dir: the run's folder as it is typed.
    """
    commands = {}
    if summary.get("speaks", True):
        asked = [run_dir, summary["opening"]] if summary.get("opening") else [run_dir]
        words = " ".join(map(shell_quoted, asked))
        commands["writes a text with it"] = f"python -m gptlab.generate {words} --max-new-tokens 300"
    folder = shell_quoted(str(Path(run_dir).parent.parent))
    commands["shows more curves, and those of other runs"] = f"tensorboard --logdir {folder}"
    if summary["status"] == "finished":  # else what has stopped it would stop it again
        further = 2 * summary["steps"]
        keys = f"trainer.max_steps={further} schedule.decay_steps={further}"
        commands["resumes it for as many steps again"] = f"python -m gptlab.train {pasteable('resume', run_dir)} {keys}"
    return commands


def _loss(summary: dict[str, Any]) -> str:
    loss, best = f"{summary['val/loss']:.4f}", f"best {summary['best_val_loss']:.4f} at step {summary['best_step']}"
    if "val/bpb" not in summary:  # it is no loss of tokens
        return f"{loss} ({best})"
    words = f"{loss} nats per token ({best}), {summary['val/bpb']:.4f} bits per byte"
    if not (baseline := summary.get("baseline")):
        return words
    less = baseline["val/loss"] - summary["val/loss"]
    table = f"{baseline['val/loss']:.4f} is the loss of a table of counts on the same text"
    than = f"the model's is {abs(less):.4f} {'lower' if less >= 0 else 'higher'}"
    return f"{words}\n  {baseline['name']:<11} {table}: {than}"
