"""Which run a command line resumes, and with which config: what it may change and what it may not."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from gptlab.runs import compose, directory, upgrades
from gptlab.runs.identity import does, flatten
from gptlab.system.errors import UserError
from gptlab.system.terminal import single_quoted

log = logging.getLogger(__name__)

AUTO = "auto"  # of resume
OUTPUTS = Path("outputs")  # where runs lie by themselves, see hydra.run.dir in conf/train.yaml

ReadCheckpoint = Callable[[Path], tuple[Path, dict[str, Any]] | None]
"""From a run directory to its newest checkpoint and the config in it; None where there is none."""


def with_run_dir(words: list[str], read_checkpoint: ReadCheckpoint) -> list[str]:
    """The words of a command line with the folder of the run that they resume, where they name none.

    Of `resume=auto` without a run to resume, and where there is no such run, the words themselves: a new folder.
    """
    typed = {word.lstrip("+").partition("=")[0]: word for word in words}
    if "resume" not in typed or "hydra.run.dir" in typed:
        return words
    try:
        resume = OverridesParser.create().parse_overrides([typed["resume"]])[0].value()
    except HydraException:
        return words  # Hydra will say what is wrong with it
    if resume == AUTO:
        config = compose.compose(words)
        found = unfinished(OUTPUTS / str(config["name"]), config, read_checkpoint)
    else:
        found = Path(str(resume)) if resume and (Path(str(resume)) / "config.yaml").is_file() else None
    return words if found is None else [*words, f"hydra.run.dir={single_quoted(str(found))}"]


def unfinished(folder: Path, config: dict[str, Any], read_checkpoint: ReadCheckpoint) -> Path | None:
    """The latest run in `folder` of this config that has not finished, and that no process works at."""
    for run_dir in sorted((path.parent for path in folder.glob("*/config.yaml")), reverse=True):
        if (run_dir / "summary.json").exists() or directory.in_use(run_dir):
            continue
        with suppress(UserError):
            if not differing(stored_config(run_dir, read_checkpoint), config, "moved"):
                return run_dir
    return None


def differing(past: dict[str, Any], now: dict[str, Any], free: str) -> list[str]:
    """What is not the same in two configs, as key=value; recommendations are not looked at.

    Args:
        free: what a key does that need not be the same, see `identity.KEYS`.
    """
    if now["data"]["name"] == "auto":  # which the run has written the choice of
        now = {**now, "data": {**now["data"], "name": past["data"]["name"]}}
    if now["model"].get("name") == compose.PRETRAINED:  # likewise
        chosen = {key: now["model"][key] for key in compose.FREE if now["model"][key] is not None}
        now = {**now, "model": {**past["model"], **chosen}}
    flat_past, flat_now = flatten(past), flatten(now)
    return [
        f"{key}={flat_now.get(key)}"
        for key in flat_past | flat_now
        if flat_past.get(key) != flat_now.get(key)
        and not (key in ("name", "resume") or key.startswith("recipe.") or does(key, free))
    ]


def check_same_run(run_dir: Path, past: dict[str, Any], now: dict[str, Any]) -> None:
    """That the run in `run_dir` may go on with the config `now`.

    Raises:
        UserError: it would be another run.
    """
    if others := differing(past, now, "changes"):
        raise UserError(f"{run_dir} is another run, which does not have {', '.join(others)}: choose another folder")


def with_defaults(config: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """An older version's config with the keys that have come since, which leave a run as it was."""
    filled = {group: {**defaults[group], **config.get(group, {})} for group in ("data", "trainer")}
    return {**config, **filled, "deterministic": config.get("deterministic", False)}


def stored_config(run_dir: Path, read_checkpoint: ReadCheckpoint) -> dict[str, Any]:
    """The config that a run was started with; that of its newest checkpoint where config.yaml is broken.

    Raises:
        UserError: it is broken, and there is no checkpoint.
    """
    try:
        config = directory.read_config(run_dir / "config.yaml")
        if not all(isinstance(config.get(group), dict) for group in ("model", "data", "trainer")):
            raise UserError("config.yaml is not that of a run")
        return upgrades.completed(config)
    except UserError as error:
        if (found := read_checkpoint(run_dir)) is None:
            raise UserError(f"{run_dir}: {error}") from error
        path, config = found
        log.warning("%s: %s. The config in %s is taken", run_dir, error, path)
        return upgrades.completed(config)


def resumed_config(run_dir: Path, overrides: list[str], read_checkpoint: ReadCheckpoint) -> dict[str, Any]:
    """The config that a run was started with, and what the command line changes of it.

    Raises:
        UserError: `run_dir` is no run, its config is broken, or the change would make it another run.
    """
    cfg: DictConfig = OmegaConf.create(stored_config(directory.resumable(run_dir).parent, read_checkpoint))
    for override in OverridesParser.create().parse_overrides(overrides):
        key = override.key_or_group
        if key in ("resume", "name"):
            continue
        if (compose.CONF / key).is_dir():
            raise UserError(
                f"{override.input_line}: a resumed run keeps its groups; change single values, e.g. trainer.max_steps=N"
            )
        if not does(key, "changes"):
            raise UserError(f"{override.input_line}: would make it another run; start a new one without resume=")
        OmegaConf.update(cfg, key, override.value(), force_add=True)
    return compose.resolved(cfg)
