"""Find the run that a command line resumes, and its config with the changes that are allowed."""

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
from gptlab.system.files import expand_user
from gptlab.system.terminal import single_quoted

log = logging.getLogger(__name__)

AUTO = "auto"  # value of resume that looks for an unfinished run
OUTPUTS = Path("outputs")  # the default place of runs, see hydra.run.dir in conf/train.yaml

ReadCheckpoint = Callable[[Path], tuple[Path, dict[str, Any]] | None]
"""Returns the path of a run directory's newest checkpoint and the config in it; None if there is none."""


def with_run_dir(words: list[str], read_checkpoint: ReadCheckpoint) -> list[str]:
    """Put the folder of the run that is resumed before the words of a command line, unless they name a folder.

    The words are returned unchanged if there is no run to resume, as may be with resume=auto, so that the run gets a
    new folder; and if they ask for information, such as --cfg job.
    """
    typed = {word.lstrip("+").partition("=")[0]: word for word in words}
    if "resume" not in typed or "hydra.run.dir" in typed or compose.asks_for_information(words):
        return words
    try:
        resume = OverridesParser.create().parse_overrides([typed["resume"]])[0].value()
    except HydraException:
        return words  # Hydra will say what is wrong with it
    if resume == AUTO:
        config = compose.compose(words)
        found = unfinished(OUTPUTS / str(config["name"]), config, read_checkpoint)
    else:
        folder = expand_user(str(resume))
        found = folder if resume and (folder / "config.yaml").is_file() else None
    return words if found is None else [f"hydra.run.dir={single_quoted(str(found))}", *words]


def unfinished(folder: Path, config: dict[str, Any], read_checkpoint: ReadCheckpoint) -> Path | None:
    """Return the latest run in `folder` with this config that has not finished and is not in use; None if none is."""
    for run_dir in sorted((path.parent for path in folder.glob("*/config.yaml")), reverse=True):
        if (run_dir / "summary.json").exists() or directory.in_use(run_dir):
            continue
        with suppress(UserError):
            if not differing(stored_config(run_dir, read_checkpoint), config, "moved"):
                return run_dir
    return None


def differing(past: dict[str, Any], now: dict[str, Any], free: str) -> list[str]:
    """List the differences between two configs as key=value with the value of `now`; recipe keys are ignored.

    Args:
        free: the effect whose keys may differ, see `identity.KEYS`.
    """
    if now["data"]["name"] == "auto":  # the stored config has the data set that was chosen
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
    """Check that the run in `run_dir` may be resumed with the config `now`.

    Raises:
        UserError: a key differs that a resumed run must not change.
    """
    if others := differing(past, now, "changes"):
        raise UserError(f"{run_dir} is another run, which does not have {', '.join(others)}: choose another folder")


def with_defaults(config: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Add to an older version's config the keys added since, with defaults that do not change the run."""
    filled = {group: {**defaults[group], **config.get(group, {})} for group in ("data", "trainer")}
    return {**config, **filled, "deterministic": config.get("deterministic", False)}


def stored_config(run_dir: Path, read_checkpoint: ReadCheckpoint) -> dict[str, Any]:
    """Return the config that a run was started with, from its newest checkpoint if config.yaml is broken.

    Raises:
        UserError: config.yaml is broken and there is no checkpoint.
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
    """Return the config that a run was started with, with the changes of the command line.

    Raises:
        UserError: `run_dir` is not a run, its config is broken, or a resumed run must not change one of the keys.
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
