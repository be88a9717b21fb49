"""Compose the config of a run from the words of a command line, by Hydra's grammar and composition."""

from __future__ import annotations

import argparse
import errno
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gptlab.system.errors import UserError, did_you_mean
from gptlab.system.terminal import pasteable

PACKAGED = Path(__file__).resolve().parents[1] / "conf"  # in a wheel
CONF = PACKAGED if PACKAGED.is_dir() else PACKAGED.parent.parent / "conf"

# Hydra 1.3 warns if it is left out, and 1.4 if it is there.
VERSION_BASE = {"version_base": "1.3"} if hydra.__version__.startswith("1.3.") else {}

INFORMATION = ("-h", "--help", "--hydra-help", "--version", "-c", "--cfg", "-i", "--info", "-sc", "--shell-completion")

PRETRAINED = "pretrained"  # the model and tokenizer choice that takes them from init_from
FREE = ("block_size", "dropout", "attention", "gradient_checkpointing")  # keys that do not change the weights
NO_FOLDER = (errno.EEXIST, errno.ENOTDIR, errno.EROFS, errno.EACCES, errno.ENOSPC)  # why Hydra could not make one


def open_conf() -> AbstractContextManager[None]:
    """Return the context in which `hydra.compose` finds conf/."""
    return hydra.initialize_config_dir(str(CONF), **VERSION_BASE)


def compose(arguments: list[str]) -> dict[str, Any]:
    """Compose the config of the run that a command line asks for; flags other than --config-dir are ignored."""
    config_dir, words = config_dir_and_words(arguments)
    overrides = [word for word in with_implied_groups(words) if not word.startswith("-")]
    with open_conf():
        return run_config(hydra.compose("train", [*search_path(config_dir), *overrides]))


def config_dir_and_words(arguments: list[str]) -> tuple[str | None, list[str]]:
    """Return the absolute folder of --config-dir, None without it, and all other words of a command line."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-cd", "--config-dir")
    found, words = parser.parse_known_args(arguments)
    return found.config_dir and os.path.abspath(found.config_dir), words  # noqa: PTH100


def search_path(config_dir: str | None) -> list[str]:
    """Return the overrides that make Hydra also look for choices in a folder."""
    return [f"hydra.searchpath=['file://{config_dir}']"] if config_dir else []


def run_config(cfg: DictConfig) -> dict[str, Any]:
    """Return the composed config of one run as plain data, without the groups sweep and hydra."""
    return resolved(OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key not in ("sweep", "hydra")]))


def presets_of(words: Sequence[str], config: dict[str, Any]) -> dict[str, Any]:
    """Return what a command line compares with: its groups without its other words, and conf/ without any word.

    Called where Hydra is initialised. A composition takes 0.1 s; what is the run's own config is not composed again.

    Args:
        words: the overrides of the command line.
        config: what they compose to.

    Returns:
        "groups", the words that choose a group; "values", the others; "presets" and "defaults", a config each. The
        latter two are missing if the groups compose to nothing by themselves.
    """
    groups = [word for word in words if (CONF / word.lstrip("+~").partition("=")[0]).is_dir()]
    found: dict[str, Any] = {"groups": groups, "values": [word for word in words if word not in groups]}
    try:
        presets = run_config(hydra.compose("train", groups)) if found["values"] else config
        defaults = run_config(hydra.compose("train")) if groups else presets
    except (HydraException, OmegaConfBaseException):  # e.g. a group that refers to a key that was typed
        return found
    return {**found, "presets": presets, "defaults": defaults}


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """Return a config as plain data with its interpolations resolved."""
    return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]


def with_implied_groups(words: list[str]) -> list[str]:
    """Return the words with the groups that `init_from` implies, unless others are typed."""
    typed = {key.lstrip("+"): value for key, _, value in (word.partition("=") for word in words)}
    if typed.get("init_from", "null") == "null" or typed.get("resume", "null") not in ("null", "auto"):
        return words
    chosen = [] if {"model", "experiment"} & typed.keys() else [f"model={PRETRAINED}"]
    if "tokenizer" not in typed:
        chosen.append(f"tokenizer={PRETRAINED}")
    place = [word.lstrip("+").partition("=")[0] for word in words].index("init_from")
    return [*words[:place], *chosen, *words[place:]]


def asks_for_information(words: list[str]) -> bool:
    """Return whether a command line asks Hydra for information in place of a run."""
    return any(word.partition("=")[0] in INFORMATION for word in words)


def asked_for_sweep(arguments: list[str]) -> tuple[str | None, list[str]] | None:
    """Return the --config-dir and the words of a sweep's command line; None if it asks for one run or for information.

    Raises:
        UserError: there is a flag that does not go with a sweep.
    """
    config_dir, words = config_dir_and_words(arguments)
    many = ("-m", "--multirun", "hydra.mode=MULTIRUN")
    flags = [word.partition("=")[0] for word in words if word.startswith("-") and word not in many]
    named = any(word.startswith("sweep=") or word in many for word in words)
    if "hydra.mode=RUN" in words or not named or asks_for_information(words):
        return None
    if flags:
        raise UserError(f"{flags[0]}: does not go with a sweep")
    return config_dir, [word for word in words if word not in many]


def refuse_key(key: str) -> UserError:
    """Return the error for a model key that model=pretrained does not have."""
    return UserError(
        f"{key}: model={PRETRAINED} has the architecture of init_from, of which "
        f"{', '.join(f'model.{field}' for field in FREE)} can be changed; leave other keys of the model out, and arch="
    )


@contextmanager
def refusals() -> Iterator[None]:
    """Turn errors of Hydra, OmegaConf or the system about a command line into one message with a way out.

    Raises:
        UserError: in place of theirs.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that errors come here and Hydra prints no traceback of its own
    try:
        yield
    except UserError:
        raise
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error)) from error
    except ValueError as error:
        if not str(error).startswith("Config group override must be"):  # Hydra's message for model=3
            raise
        typed = [word for word in sys.argv[1:] if (CONF / word.partition("=")[0]).is_dir()]
        raise UserError(
            f"{' '.join(typed)}: {error}; python -m gptlab.train --help shows the choices of each group"
        ) from error
    except OSError as error:  # hydra.run.dir leads through a file, or to where nothing can be written
        if error.filename is None or error.errno not in NO_FOLDER:
            raise
        raise UserError(f"{error.filename}: {error.strerror}; choose another folder") from error


def choices_with(key: str) -> list[str]:
    """Return the choices of a key's group that have it, e.g. task=dpo of task.beta."""
    group, _, rest = key.partition(".")
    files = sorted((CONF / group).glob("*.yaml")) if rest else []
    return [f"{group}={path.stem}" for path in files if rest in keys(OmegaConf.to_container(OmegaConf.load(path)))]


def explain(error: Exception) -> str:
    """Return one message for an error of Hydra or OmegaConf, with a better way out where theirs misleads."""
    message = str(error).partition("\nConfig search path")[0].strip()
    if match := re.match(r"Could not override '([^']+)'", message):  # Hydra would advise to add the key
        if match[1].startswith("model.") and f"model={PRETRAINED}" in with_implied_groups(sys.argv[1:]):
            return str(refuse_key(match[1]))
        GlobalHydra.instance().clear()
        with open_conf():
            known = keys(OmegaConf.to_container(hydra.compose("train")))
        if having := choices_with(match[1]):
            if any(word.startswith("resume=") and word != "resume=auto" for word in sys.argv[1:]):
                return f"{match[1]}: would make it another run; start a new one without resume="
            return f"{match[1]}: is a key of {' and '.join(having)}; choose {having[0]}, or leave it out"
        return f"{match[1]}: there is no such key here; {did_you_mean(match[1], known)}"
    options = re.findall(r"^\t(.+)$", message, re.MULTILINE)
    if options and (match := re.search(r"Could not find '(.+)/([^/']+)'", message)):
        advice, choices = did_you_mean(match[2], options), f"there are {', '.join(sorted(options))}"
        return f"{match[1]}={match[2]}: there is no such choice; {advice}{'' if advice == choices else f' {choices}'}"
    if match := re.search(r"Ambiguous value for argument '([^=]+)=(.+)'", message):
        quoted = pasteable(match[1], match[2].replace("'", ""))
        return (
            f"{match[1]}={match[2]}: has several values; add -m for a run of each, write a list, [{match[2]}], or, for "
            f"one text with a comma, {quoted}"
        )
    if isinstance(error, OverrideParseException) and "=" not in error.override:
        return (
            f"{error.override}: must be key=value, or group=choice, e.g. model=gpt1m; a value with spaces needs quotes "
            f"around the whole word"
        )
    if isinstance(error, OverrideParseException):
        key, _, value = error.override.partition("=")
        if not re.fullmatch(r"[+~]{0,2}[\w./@$-]+", key, re.ASCII):
            return f"{key}: there is no such key; a word is key=value, or group=choice, e.g. model=gpt1m"
        said = [line for line in message.splitlines() if not line.startswith(("Error parsing", "See https://"))]
        return (
            f"{error.override}: cannot be read as a list, a choice or a range ({' '.join(said)}); a text like "
            f"that needs quotes: {pasteable(key, value)}"
        )
    if isinstance(error.__cause__, OmegaConfBaseException):
        message += f"\n{error.__cause__}"
    return message


def keys(config: Any, prefix: str = "") -> list[str]:
    """Return every key of a nested dict, joined by dots."""
    if not isinstance(config, dict):
        return []
    return [found for key, value in config.items() for found in (prefix + key, *keys(value, f"{prefix}{key}."))]
