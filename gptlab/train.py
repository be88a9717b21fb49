"""`python -m gptlab.train`: Hydra composes a run from conf/, and it is trained; -m or sweep=<name> makes many runs.

Only light imports stand at the top: `--help`, `--cfg job` and completion answer at once.
"""

from __future__ import annotations

import logging
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, read_write

from gptlab.distributed import processes
from gptlab.runs import closing, compose, directory, hydra_parser, resume, words
from gptlab.runs.compose import CONF, VERSION_BASE
from gptlab.system.errors import UserError, command_line, error_line
from gptlab.system.files import expand_user, write_json
from gptlab.system.terminal import escaped, pasteable

log = logging.getLogger(__name__)

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


@hydra.main(config_path=str(CONF), config_name="train", **VERSION_BASE)
def run(cfg: DictConfig) -> None:
    """Train one run, or resume it."""
    hydra_config: Any = HydraConfig.get()
    run_dir = Path(hydra_config.runtime.output_dir)
    with read_write(hydra_config):
        hydra_config.run.dir = escaped(str(run_dir), '"')  # Lightning quotes it for the processes that it starts
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
    if directory.first_process():  # one speaks for all
        log.info("%s", closing.closing_words(summary, resumed=bool(cfg.resume)))


def keep_in_log(error: UserError) -> None:
    """Write into train.log what the terminal shows in another way."""
    record = log.makeRecord(log.name, logging.ERROR, __file__, 0, str(error), (), None)
    shown, logging.raiseExceptions = logging.raiseExceptions, False  # the disk may be full
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)
    logging.raiseExceptions = shown


def train(cfg: DictConfig, run_dir: Path) -> dict[str, Any]:
    """Train, or resume, the run in `run_dir`; returns its summary.

    Raises:
        UserError: see `fit.fit`; or the folder holds another run.
    """
    if not words.is_unicode(str(run_dir)):
        raise UserError(f"{str(run_dir)!r}: has bytes that are no UTF-8; choose another folder by hydra.run.dir=...")
    config = compose.run_config(cfg)
    resuming = bool(cfg.resume)
    if cfg.resume == resume.AUTO:
        resuming = (run_dir / "config.yaml").is_file()
        config["resume"] = None
        if resuming:
            past = resume.stored_config(run_dir, read_checkpoint)
            resume.check_same_run(run_dir, past, config)
            ends = ("max_steps", "patience")
            summary = directory.read_summary(run_dir)
            if summary and all(past["trainer"][key] == config["trainer"][key] for key in ends):
                log.info("resume=auto: nothing to do")
                return summary
            config["data"]["name"] = past["data"]["name"]
        there = f"going on with {os.path.relpath(run_dir)}"
        log.info("resume=auto: %s", there if resuming else "nothing to go on with, a new run")
    elif resuming:
        past = resume.resumed_config(expand_user(str(cfg.resume)), HydraConfig.get().overrides.task, read_checkpoint)
        config = resume.with_defaults(past, config)
    elif directory.has_checkpoint(run_dir):
        again = pasteable("resume", str(run_dir))
        raise UserError(f"{run_dir} holds a run: go on with it by {again}, or choose another folder")
    if directory.first_process() and not resuming:
        write_json(run_dir / directory.PRESETS, compose.presets_of(HydraConfig.get().overrides.task, config))
    from gptlab.training import lightning_setup

    lightning_setup.import_lightning()
    from gptlab.training import fit, settings

    summary = fit.fit(settings.from_config(config), run_dir, resuming)
    if directory.first_process():
        write_page(run_dir)
    return summary


def write_page(run_dir: Path) -> None:
    """Write the page of a run that has ended; if it cannot be written, that is one line of the log."""
    try:
        from gptlab.reports.pages.run_page import write_run_page

        write_run_page(run_dir)
    except Exception as error:  # whatever it is, the run has ended well
        what = error if isinstance(error, UserError) else error_line(error)
        log.warning("the run's page is not written: %s", what)


def read_checkpoint(run_dir: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return a run's newest checkpoint and the config in it; None if it has no checkpoint."""
    from gptlab.training import lightning_setup

    lightning_setup.import_lightning()
    from gptlab.formats.description import KEY
    from gptlab.training.resume import newest_checkpoint

    found = newest_checkpoint(run_dir)
    return found and (found[0], found[1][KEY]["config"])


def usage() -> str:
    """Return the help text; Hydra's own takes most of a second to list the groups."""
    groups: dict[str, list[str]] = {}
    for path in sorted(CONF.glob("*/*.yaml")):
        groups.setdefault(path.parent.name, []).append(path.stem)
    return HELP.format(groups="\n".join(f"  {group:<11}{', '.join(names)}" for group, names in groups.items()))


def sweep(config_dir: str | None, overrides: list[str]) -> int:
    """Run the sweep that the overrides of a command line ask for; its exit code.

    Raises:
        UserError: it cannot be run so.
    """
    from gptlab.sweeps.command_line import run as run_sweep

    if (here := processes.place()) is not None and here.size > 1:
        raise UserError(f"a sweep starts its processes itself: leave out {here.starter}, or let it start one")
    return run_sweep(config_dir, overrides)


def start(arguments: list[str]) -> None:
    """Train the run, or run the sweep, that a command line asks for.

    Raises:
        UserError: it cannot be run so.
        SystemExit: a sweep has ended, or a signal has stopped a run.
    """
    try:
        with compose.refusals():
            if "--hydra-help" in arguments:  # Hydra would look for our keys in its own config
                arguments = ["--hydra-help"]
            sys.argv[1:] = arguments = words.readable(arguments)  # which Lightning reads again
            if (asked := compose.asked_for_sweep(arguments)) is not None:
                sys.exit(sweep(*asked))
            arguments = processes.join(compose.with_implied_groups(arguments))
            sys.argv[1:] = resume.with_run_dir(arguments, read_checkpoint)
            with hydra_parser.on_every_python():
                run()
    except UserError as error:
        processes.refuse(error)
        raise
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        processes.leave()


def main() -> None:
    """Run the command line; what becomes of the terminal, or of a pipe's reader, ends no run."""
    arguments = sys.argv[1:]
    with command_line(essential=compose.asks_for_information(arguments)):
        if {"--help", "-h"} & set(arguments):
            print(usage())
        else:
            start(arguments)


if __name__ == "__main__":
    main()
