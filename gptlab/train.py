"""`python -m gptlab.train`: Hydra composes a run from conf/, and it is trained; -m or sweep=<name> makes many runs.

Only light imports stand up here: `--help`, `--cfg job` and completion answer at once.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import OmegaConfBaseException

from gptlab import init_from, lightly
from gptlab.distributed import processes
from gptlab.runs import upgrades
from gptlab.system.errors import UserError, did_you_mean

log = logging.getLogger(__name__)

PACKAGED = Path(__file__).resolve().parent / "conf"  # in a wheel
CONF = PACKAGED if PACKAGED.is_dir() else PACKAGED.parent.parent / "conf"

INFORMATION = ("-h", "--help", "--hydra-help", "--version", "-c", "--cfg", "-i", "--info", "-sc", "--shell-completion")

HELP = """python -m gptlab.train [group=choice ...] [key=value ...]

Trains one run and writes it to outputs/<name>/<time>; with -m or sweep=<name> many, to outputs/sweeps/<name>.

Groups and their choices:
{groups}

Any key of the config can be given; --cfg job shows them all, for any choice of groups.

  python -m gptlab.train                                    the default: 0.8M parameters, minutes on a CPU
  python -m gptlab.train model=gpt10m trainer=a100          10.65M parameters, on a GPU
  python -m gptlab.train data=text data.path=my.txt         your own text
  python -m gptlab.train data=text data.path=my.txt init_from=gpt2    GPT-2, or any trained model, fine-tuned on it
  python -m gptlab.train trainer.max_steps=500 optim.lr=3e-3
  python -m gptlab.train -m model.n_head=1,2,4 seed=1,2     a sweep: every combination, then a table
  python -m gptlab.train sweep=lr sweep.jobs=2              a sweep that has a name, two jobs at once
  python -m gptlab.train resume=outputs/gpt800k/<time>      go on where a run stopped
  python -m gptlab.train model=gpt1m resume=auto            go on with such a run if one was cut off, else start

--hydra-help says what Hydra can do besides."""


# What may be another from here on when a run goes on: nothing that makes its past that of another run.
PLACES = ("data.path", "data.dir", "data.cache_dir", "data.micro_batch_size", "data.val_batch_size")
CHANGEABLE = ("trainer.", "schedule.", "optim.grad_clip", "precision.", "compile.", "deterministic", *PLACES)
# What changes nothing that a run computes, but for rounding.
MOVED = (
    *("deterministic", *(key for key in PLACES if key != "data.path")),
    *(f"trainer.{key}" for key in ("name", "devices", "strategy", "accelerator", "checkpoint_", "keep_")),
)
AUTO = "auto"  # of resume


def choose_run_dir(resume: str | None, fresh: str, *, _root_: DictConfig) -> str:
    """A resumed run's own folder; a new one where there is no such run, which is then refused, or `auto` finds none."""
    if resume == AUTO:
        return unfinished(Path(fresh).parent, job(_root_)) or fresh
    return resume if resume and (Path(resume) / "config.yaml").is_file() else fresh


def unfinished(folder: Path, config: dict[str, Any]) -> str | None:
    """The latest run in `folder` of this config that has not finished, and that no process works at."""
    from gptlab.runs import directory

    for run_dir in sorted((path.parent for path in folder.glob("*/config.yaml")), reverse=True):
        if (run_dir / "summary.json").exists() or directory.in_use(run_dir):
            continue
        with suppress(UserError):
            if not differing(stored(run_dir), config, MOVED):
                return str(run_dir)
    return None


def job(cfg: DictConfig) -> dict[str, Any]:
    """The composed config of one run."""
    return plain(OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key not in ("sweep", "hydra")]))


def compose(words: list[str]) -> dict[str, Any]:
    """The composed config of the run that the words of a command line ask for."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return job(hydra.compose("train", init_from.implied(words)))


def plain(cfg: DictConfig) -> dict[str, Any]:
    return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]


def differing(past: dict[str, Any], now: dict[str, Any], free: tuple[str, ...]) -> list[str]:
    """What is not the same in two configs, as key=value, but for `free` keys; recommendations are not looked at."""
    from gptlab.runs import identity

    if now["data"]["name"] == "auto":  # which the run has written the choice of
        now = {**now, "data": {**now["data"], "name": past["data"]["name"]}}
    if now["model"].get("name") == init_from.PRETRAINED:  # likewise
        chosen = {key: now["model"][key] for key in init_from.FREE if now["model"][key] is not None}
        now = {**now, "model": {**past["model"], **chosen}}
    flat_past, flat_now = identity.flatten(past), identity.flatten(now)
    return [
        f"{key}={flat_now.get(key)}"
        for key in flat_past | flat_now
        if flat_past.get(key) != flat_now.get(key) and not key.startswith(("name", "resume", "recipe.", *free))
    ]


OmegaConf.register_new_resolver("run_dir", choose_run_dir, replace=True)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def run(cfg: DictConfig) -> None:
    """Train one run, or go on with one."""
    hydra_config: Any = HydraConfig.get()
    run_dir = Path(hydra_config.runtime.output_dir)
    with read_write(hydra_config):
        hydra_config.run.dir = str(run_dir)  # which Lightning reads again for the processes that it starts
    from gptlab.runs import directory

    try:
        with directory.locked(run_dir) if directory.first_process() else nullcontext():
            summary = train(cfg, run_dir)
    except UserError as error:
        if not (run_dir / "config.yaml").exists():
            directory.remove_if_empty(run_dir)
        else:
            keep_in_log(error)
        processes.refuse(error)
        sys.exit(f"error: {error}")  # Hydra would add a line of its own
    log.info("%s", directory.closing_words(summary))


def keep_in_log(error: UserError) -> None:
    """Write into train.log what the terminal shows in another way."""
    record = log.makeRecord(log.name, logging.ERROR, __file__, 0, str(error), (), None)
    shown, logging.raiseExceptions = logging.raiseExceptions, False  # the disk may be full
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)
    logging.raiseExceptions = shown


def train(cfg: DictConfig, run_dir: Path) -> dict[str, Any]:
    """The summary of a run that starts, or goes on, in `run_dir`."""
    from gptlab.runs import directory

    composed = job(cfg)
    resume = bool(cfg.resume)
    if cfg.resume == AUTO:
        resume = (run_dir / "config.yaml").is_file()
        composed["resume"] = None
        if resume:
            past = stored(run_dir)
            if others := differing(past, composed, CHANGEABLE):
                raise UserError(
                    f"{run_dir} is another run, which does not have {', '.join(others)}: choose another folder"
                )
            ends = ("max_steps", "patience")
            summary = directory.read_summary(run_dir)
            if summary and all(past["trainer"][key] == composed["trainer"][key] for key in ends):
                log.info("resume=auto: nothing to do")
                return summary
            composed["data"]["name"] = past["data"]["name"]
        there = f"going on with {os.path.relpath(run_dir)}"
        log.info("resume=auto: %s", there if resume else "nothing to go on with, a new run")
    elif resume:
        changed = resumed(directory.resumable(Path(cfg.resume)), HydraConfig.get().overrides.task)
        composed = with_defaults(plain(changed), composed)
    elif directory.has_checkpoint(run_dir):
        raise UserError(f"{run_dir} holds a run: go on with it by resume={run_dir}, or choose another folder")
    lightly.import_lightning()
    from gptlab import config, fit

    return fit.fit(config.settings(OmegaConf.create(composed)), composed, run_dir, resume)


def with_defaults(config: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """An older version's config with the keys that have come since, which leave a run as it was."""
    filled = {group: {**defaults[group], **config.get(group, {})} for group in ("data", "trainer")}
    return {**config, **filled, "deterministic": config.get("deterministic", False)}


def stored(run_dir: Path) -> dict[str, Any]:
    """The config that a run was started with; that of its newest checkpoint where config.yaml is broken.

    Raises:
        UserError: it is broken, and there is no checkpoint.
    """
    from gptlab.runs import directory

    try:
        config = directory.read_config(run_dir / "config.yaml")
        if not all(isinstance(config.get(group), dict) for group in ("model", "data", "trainer")):
            raise UserError("config.yaml is not that of a run")
        return upgrades.completed(config)
    except UserError as error:
        lightly.import_lightning()
        from gptlab import resuming
        from gptlab.formats import checkpoint

        if (found := resuming.newest(run_dir)) is None:
            raise UserError(f"{run_dir}: {error}") from error
        log.warning("%s: %s. The config in %s is taken", run_dir, error, found[0])
        return upgrades.completed(found[1][checkpoint.KEY]["config"])


def resumed(config_file: Path, overrides: list[str]) -> DictConfig:
    """The config that a run was started with, and what the command line changes of it.

    Raises:
        UserError: the file is broken, or the change would make it another run.
    """
    cfg = OmegaConf.create(stored(config_file.parent))
    for override in OverridesParser.create().parse_overrides(overrides):
        key = override.key_or_group
        if key in ("resume", "name"):
            continue
        if (CONF / key).is_dir():
            raise UserError(
                f"{override.input_line}: a resumed run keeps its groups; change single values, e.g. trainer.max_steps=N"
            )
        if not key.startswith(CHANGEABLE):
            raise UserError(f"{override.input_line}: would make it another run; start a new one without resume=")
        OmegaConf.update(cfg, key, override.value(), force_add=True)
    return cfg


def asked_for_sweep(arguments: list[str]) -> argparse.Namespace | None:
    """The command line of a sweep, or None if it asks for a single run or for information.

    Raises:
        UserError: a flag that a sweep cannot have.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("-cd", "--config-dir")
    found, words = parser.parse_known_args(arguments)
    flags = [word.partition("=")[0] for word in words if word.startswith("-")]
    named = any(word.startswith("sweep=") or word == "hydra.mode=MULTIRUN" for word in words)
    if "hydra.mode=RUN" in words or not (found.multirun or named) or set(flags) & set(INFORMATION):
        return None
    if flags:
        raise UserError(f"{flags[0]}: does not go with a sweep")
    found.words = [word for word in words if word != "hydra.mode=MULTIRUN"]
    return found


def explain(error: Exception) -> str:
    """One message for what Hydra or OmegaConf refuse, with the way out where theirs would mislead."""
    message = str(error).partition("\nConfig search path")[0].strip()
    if match := re.match(r"Could not override '([^']+)'", message):  # Hydra would advise to add the key
        if match[1].startswith("model.") and f"model={init_from.PRETRAINED}" in init_from.implied(sys.argv[1:]):
            return str(init_from.refuse(match[1]))
        GlobalHydra.instance().clear()
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            known = keys(OmegaConf.to_container(hydra.compose("train")))
        return f"{match[1]}: there is no such key here; {did_you_mean(match[1], known)}"
    if isinstance(error, OverrideParseException):
        message = (
            f"{error.override}: cannot be read; quote a value that has = , or brackets in it: \"key='a=b'\"\n{message}"
        )
    if isinstance(error.__cause__, OmegaConfBaseException):
        message += f"\n{error.__cause__}"
    return message


def keys(config: Any, prefix: str = "") -> list[str]:
    """Every key of a nested dict, dotted."""
    if not isinstance(config, dict):
        return []
    return [found for key, value in config.items() for found in (prefix + key, *keys(value, f"{prefix}{key}."))]


def usage() -> str:
    """The help text; Hydra's own takes most of a second to list the groups."""
    groups: dict[str, list[str]] = {}
    for path in sorted(CONF.glob("*/*.yaml")):
        groups.setdefault(path.parent.name, []).append(path.stem)
    return HELP.format(groups="\n".join(f"  {group:<11}{', '.join(names)}" for group, names in groups.items()))


@contextmanager
def refusals() -> Iterator[None]:
    """Let what Hydra, OmegaConf or the system refuse of a command line be one message, with the way out.

    Raises:
        UserError: in their place.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that errors come here and Hydra prints no traceback of its own
    try:
        yield
    except UserError:
        raise
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error)) from error
    except ValueError as error:
        if not str(error).startswith("Config group override must be"):  # Hydra's words for model=3
            raise
        typed = [word for word in sys.argv[1:] if (CONF / word.partition("=")[0]).is_dir()]
        raise UserError(
            f"{' '.join(typed)}: {error}; python -m gptlab.train --help shows the choices of each group"
        ) from error
    except OSError as error:  # hydra.run.dir leads through a file, or to where nothing can be written
        if error.errno not in (errno.EEXIST, errno.ENOTDIR, errno.EROFS, errno.EACCES, errno.ENOSPC):
            raise
        raise UserError(f"{error.filename}: {error.strerror}; choose another folder") from error


def main() -> None:
    """The command line: a mistake is one message and exit code 1; Ctrl-C is 130."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(usage())
        return
    try:
        with refusals():
            if sweep := asked_for_sweep(sys.argv[1:]):
                from gptlab import multirun

                if (here := processes.place()) is not None and here.size > 1:
                    raise UserError(
                        f"a sweep starts its processes itself: leave out {here.starter}, or let it start one"
                    )
                sys.exit(multirun.run(CONF, sweep))
            sys.argv[1:] = processes.join(init_from.implied(sys.argv[1:]))
            run()
    except UserError as error:
        processes.refuse(error)
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        processes.leave()


if __name__ == "__main__":
    main()
