"""Turn a command line with -m or sweep=<name> into the jobs of a sweep, by Hydra's own grammar and composition."""

from __future__ import annotations

import copy
import subprocess
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gptlab.runs import identity, schema
from gptlab.runs.compose import open_conf, resolved, search_path, with_implied_groups
from gptlab.sweeps import plans
from gptlab.sweeps.jobs import Job, Point, job_folder
from gptlab.sweeps.launchers import Local, Slurm
from gptlab.sweeps.plans import Axis, FixedPlan, Search
from gptlab.sweeps.runner import Sweep, SweepConfig, closing_words, report_command
from gptlab.system.errors import UserError


def parse_axis(override: Override) -> Axis:
    """Return the axis of an override like optim.lr=1e-3,3e-3 or optim.lr=tag(log,interval(1e-4,1e-2))."""
    key, value = override.get_key_element().removeprefix("++"), override.value()
    if isinstance(value, IntervalSweep):
        assert value.start is not None
        assert value.end is not None
        integer = isinstance(value.start, int) and isinstance(value.end, int)
        return Axis(key, (), float(value.start), float(value.end), "log" in value.tags, integer)
    swept = override.is_sweep_override()
    values = map(str, override.sweep_string_iterator()) if swept else [override.get_value_element_as_str()]
    return Axis(key, tuple({"True": "true", "False": "false"}.get(value, value) for value in values))


def typed_values(values: Any) -> str:
    """Return the values of an axis in a sweep's file as they would be typed; a list is joined by commas."""
    if isinstance(values, list):
        return ",".join(map(typed_values, values))
    if values is None or isinstance(values, bool):
        return {None: "null", True: "true", False: "false"}[values]
    return str(values)


class Command:
    """The jobs that a command line asks for.

    Args:
        config_dir: the absolute folder of --config-dir; None without one.
        words: the overrides of the command line.

    Raises:
        UserError: the command line varies something that cannot vary, or nothing.
    """

    def __init__(self, config_dir: str | None, words: list[str]) -> None:
        self.flags = ["--config-dir", config_dir] if config_dir else []
        self.search_path = search_path(config_dir)
        typed = self.parse(words)
        check_overrides(typed)
        fixed = {str(o.input_line): o for o in typed if not o.is_sweep_override()}
        self._composed: dict[tuple[str, ...], DictConfig] = {}
        self.base = resolved(self.compose(tuple(fixed)))
        self.config = schema.build(SweepConfig, OmegaConf.create(self.base["sweep"]), "sweep")

        # Typed overrides take precedence over the sweep's file, and may reduce one of its axes to a single value.
        listed = self.parse([f"{key}={typed_values(values)}" for key, values in self.config.axes.items()])
        varied = {o.key_or_group: o for o in listed}
        varied |= {o.key_or_group: o for o in typed if o.is_sweep_override() or o.key_or_group in varied}
        self.axes = [parse_axis(override) for override in varied.values()]
        self.words = [
            line
            for line, override in fixed.items()
            if override.key_or_group not in varied and not override.key_or_group.startswith("sweep.")
        ]
        check_axes(self.axes, self.config.method)
        self.root = Path(self.config.dir)
        self.names = identity.short_names([each.key for each in self.axes])

    @staticmethod
    def parse(words: list[str]) -> list[Override]:
        loader = GlobalHydra.instance().config_loader()
        return OverridesParser.create(config_loader=loader).parse_overrides(words)

    def compose(self, words: tuple[str, ...]) -> DictConfig:
        if words not in self._composed:
            self._composed[words] = hydra.compose("train", [*self.search_path, *with_implied_groups([*words])])
        return self._composed[words]

    def config_of(self, point: Point) -> dict[str, Any]:
        """Return a job's resolved config."""
        words = tuple(f"{key}={value}" for key, value in point.items())
        cfg = self.compose((*self.words, *words)) if self.search_path else self.compose_quickly(words)
        return {key: value for key, value in resolved(cfg).items() if key != "sweep"}

    def compose_quickly(self, words: tuple[str, ...]) -> DictConfig:
        """Compose a job's config: Hydra, which takes 0.1 s, composes the groups once, and values are set on a copy."""
        options = GlobalHydra.instance().config_loader().get_group_options
        overrides = dict(zip(words, self.parse(list(words)), strict=True))
        keys = {word: override.key_or_group for word, override in overrides.items()}
        groups = [word for word, key in keys.items() if options(key) or key == "init_from"]  # init_from chooses groups
        cfg = copy.deepcopy(self.compose((*self.words, *groups)))
        try:
            for override in (override for word, override in overrides.items() if word not in groups):
                OmegaConf.update(cfg, override.key_or_group, override.value(), force_add=override.is_add())
        except OmegaConfBaseException:
            return self.compose((*self.words, *words))  # raises with Hydra's own message
        return cfg

    def job(self, point: Point) -> Job:
        config = self.config_of(point)
        name = identity.config_hash(config, identity.text_stand_in(config["data"]))[
            :8
        ]  # the text is not read, so its path stands for it
        words = (*self.flags, *self.words, *(f"{key}={value}" for key, value in point.items()))
        steps = config["trainer"]["max_steps"]  # for the progress only; the job checks its config
        return Job(point, words, job_folder(self.root, point, self.names, name), steps if isinstance(steps, int) else 0)

    def baseline(self) -> Point | None:
        """Return the point that the others are compared with; None for a search.

        For a grid this is the first value of each axis, for one_at_a_time no change at all.
        """
        if self.config.method == "optuna":
            return None
        first = {axis.key: axis.values[0] for axis in self.axes if axis.key != "seed"}
        return first if self.config.method == "grid" else {}

    def plan(self) -> FixedPlan | Search:
        config = self.config
        if config.method == "optuna":
            fixed = {key: value for key, value in self.base.items() if key != "sweep"} | {"axes": str(self.axes)}
            name = identity.config_hash(fixed, identity.text_stand_in(fixed["data"]))
            if not isinstance(seed := fixed["seed"], int):
                raise UserError(f"seed={seed}: must be an integer")
            return Search(self.axes, self.root, name, config.trials, config.prune, seed, self.job)
        points = plans.grid(self.axes) if config.method == "grid" else plans.one_at_a_time(self.axes)
        jobs: dict[str, Job] = {}
        for point in points:
            job = self.job(point)
            if first := jobs.get(job.config_hash):
                print(f"{job.name}: the same run as {first.name}, left out")
            jobs.setdefault(job.config_hash, job)
        return FixedPlan(list(jobs.values()))

    def launcher(self) -> Local | Slurm:
        config = self.config
        if config.launcher == "slurm":
            return Slurm(config.jobs, self.root / "slurm", config.slurm)
        trainer = self.base["trainer"]
        if not isinstance(trainer["devices"], int) or trainer["devices"] < 1:
            raise UserError(f"trainer.devices={trainer['devices']}: must be an integer of at least 1 in a sweep")
        return Local(config.jobs, trainer["devices"], trainer["accelerator"] in ("auto", "gpu"))


def check_overrides(typed: list[Override]) -> None:
    """Check that a sweep may have these overrides.

    Raises:
        UserError: one sets a key that a sweep decides itself, or varies a key of the sweep.
    """
    for override in typed:
        key = override.key_or_group
        if key.startswith("hydra"):
            raise UserError(
                f"{override.input_line}: a sweep has keys of its own: sweep.jobs (at once), sweep.launcher "
                f"(local, slurm), sweep.method (grid, one_at_a_time, optuna), sweep.dir"
            )
        if key == "resume":
            raise UserError(f"{override.input_line}: a sweep goes on by itself; give the same command again")
        if override.is_sweep_override() and key.partition(".")[0] == "sweep":
            raise UserError(f"{override.input_line}: takes one value, it is not itself swept")


def check_axes(axes: list[Axis], method: str) -> None:
    """Check that there are axes, and that `method` can vary each of them.

    Raises:
        UserError: there are none, or one has no values or an interval that only a search can vary.
    """
    if not axes:
        raise UserError("-m: nothing varies; give some key several values, e.g. model.n_head=1,2,4 seed=1,2,3")
    for axis in axes:
        if axis.values or (axis.is_interval and method == "optuna"):
            continue
        if axis.is_interval:
            raise UserError(f"{axis.key}: an interval is for sweep.method=optuna; give values, e.g. {axis.key}=1,2,3")
        raise UserError(f"{axis.key}: there are no values, nothing matches")


def run(config_dir: str | None, words: list[str]) -> int:
    """Run a sweep and report on it; returns the exit code.

    Args:
        config_dir, words: see `compose.asked_for_sweep`.

    Returns:
        0; 1 if a job has failed; 128 + the signal's number if a signal stopped the sweep.
    """
    with open_conf():
        command = Command(config_dir, words)
        launcher, plan = command.launcher(), command.plan()
        about = {"sweep": command.root.name, "baseline": command.baseline()}
        sweep = Sweep(plan, launcher, about, command.root)
        at_once = min(launcher.jobs, plan.total)
        print(
            f"{plan.total} jobs, {at_once} at once, in {command.root}; Ctrl-C stops, the same command goes on",
            flush=True,
        )
        sweep.run()
    finished = len(sweep.having("finished"))
    if closing := closing_words(sweep):
        print(closing, flush=True)
    if sweep.signal is not None:
        print(f"stopped: {finished} of {plan.total} jobs have finished; the same command goes on")
        return 128 + sweep.signal
    reported = subprocess.run(report_command(sweep)).returncode if finished else 0
    if failed := len(sweep.having("failed")):
        print(f"{failed} of {plan.total} jobs have failed, see above; the same command tries them again")
    return 1 if failed or reported else 0
