"""Turn a command line with -m or sweep=<name> into the jobs of a sweep, by Hydra's own grammar and composition."""

from __future__ import annotations

import copy
import itertools
import math
import subprocess
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from hydra.core.override_parser.types import Sweep as AnySweep
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gptlab.runs import identity, schema
from gptlab.runs.compose import open_conf, resolved, search_path, with_implied_groups
from gptlab.runs.words import bare, spelled
from gptlab.sweeps import plans
from gptlab.sweeps.jobs import Job, Point, job_folder
from gptlab.sweeps.launchers import Local, Slurm
from gptlab.sweeps.plans import Axis, FixedPlan, Search
from gptlab.sweeps.runner import Sweep, SweepConfig, closing_words, report_command
from gptlab.system.errors import UserError, did_you_mean
from gptlab.system.files import expand_user

MAX_VALUES = 100_000  # of a key, as of a range


def parse_axis(override: Override, base: dict[str, Any]) -> Axis:
    """Return the axis of an override like optim.lr=1e-3,3e-3 or optim.lr=tag(log,interval(1e-4,1e-2)).

    Args:
        base: the values of all keys where nothing varies, by dotted key.

    Raises:
        UserError: the key does not take such values, or there are too many of them.
    """
    key, value = override.get_key_element().removeprefix("++"), override.value()
    if isinstance(value, IntervalSweep):
        return interval_axis(key, value, base)
    if isinstance(value, ChoiceSweep) and any(isinstance(each, AnySweep) for each in value.list):
        raise UserError(f"{override.input_line}: an interval, a range or a choice stands alone; give one, or values")
    if isinstance(value, RangeSweep) and value.step == 0:
        raise UserError(f"{override.input_line}: a step of 0 has no end; give another")
    swept = override.is_sweep_override()
    every = map(str, override.sweep_string_iterator()) if swept else iter([override.get_value_element_as_str()])
    values = list(itertools.islice(every, MAX_VALUES + 1))
    if len(values) > MAX_VALUES:
        raise UserError(f"{override.input_line}: has more than {MAX_VALUES:,} values; give fewer, or an interval")
    return Axis(key, tuple({"True": "true", "False": "false"}.get(value, bare(value)) for value in values))


def interval_axis(key: str, sweep: IntervalSweep, base: dict[str, Any]) -> Axis:
    """Return the axis of an interval, over integers where the key is one; see `parse_axis`."""
    assert sweep.start is not None
    assert sweep.end is not None
    low, high, log = float(sweep.start), float(sweep.end), "log" in sweep.tags
    shown, name = f"{key}=interval({low:g},{high:g})", key.lstrip("+")
    if "." in name and name not in base:
        raise UserError(f"{shown}: there is no such key here; {did_you_mean(name, base)}")
    kind = identity.number_type(name, base.get(name))
    if kind is None:
        raise UserError(f"{shown}: an interval is for a key that takes numbers; give values, {key}=a,b")
    if wrong := sweep.tags - {"log"}:
        raise UserError(f"{shown}: there is no tag {', '.join(sorted(wrong))}; the only one is log")
    if not math.isfinite(high - low):
        raise UserError(f"{shown}: both ends must be finite numbers")
    if low > high or f"{low:.6g}" == f"{high:.6g}":
        raise UserError(f"{shown}: the first end must be below the second")
    if log and low <= 0:
        raise UserError(f"{shown}: on a log scale both ends must be above 0")
    if kind is int and not (low.is_integer() and high.is_integer()):
        raise UserError(f"{shown}: {key} is an integer, and so must both ends be")
    return Axis(key, (), low, high, log, kind is int)


def typed_values(values: Any) -> str:
    """Return the values of an axis in a sweep's file as they would be typed; a list is joined by commas."""
    if isinstance(values, list):
        return ",".join(map(typed_values, values))
    if values is None or isinstance(values, bool):
        return {None: "null", True: "true", False: "false"}[values]
    return str(values)


def overrides(point: Point) -> tuple[str, ...]:
    """Return the words of a command line that set the values of a point."""
    return tuple(spelled(f"{key}={value}") for key, value in point.items())


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
        listed = self.parse([spelled(f"{key}={typed_values(values)}") for key, values in self.config.axes.items()])
        varied = {o.key_or_group: o for o in listed}
        varied |= {o.key_or_group: o for o in typed if o.is_sweep_override() or o.key_or_group in varied}
        flat = identity.flatten(self.base)
        self.axes = [parse_axis(override, flat) for override in varied.values()]
        self.words = [
            line
            for line, override in fixed.items()
            if override.key_or_group not in varied and not override.key_or_group.startswith("sweep.")
        ]
        check_axes(self.axes, self.config.method, flat)
        self.root = expand_user(self.config.dir)
        self.names = identity.short_names([each.key for each in self.axes])
        self.metric = self.deciding_metric()

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
        words = overrides(point)
        cfg = self.compose((*self.words, *words)) if self.search_path else self.compose_quickly(words)
        return {key: value for key, value in resolved(cfg).items() if key != "sweep"}

    def compose_quickly(self, words: tuple[str, ...]) -> DictConfig:
        """Compose a job's config: Hydra, which takes 0.1 s, composes the groups once, and values are set on a copy."""
        options = GlobalHydra.instance().config_loader().get_group_options
        parsed = dict(zip(words, self.parse(list(words)), strict=True))
        keys = {word: override.key_or_group for word, override in parsed.items()}
        groups = [word for word, key in keys.items() if options(key) or key == "init_from"]  # init_from chooses groups
        cfg = copy.deepcopy(self.compose((*self.words, *groups)))
        try:
            for override in (override for word, override in parsed.items() if word not in groups):
                OmegaConf.update(cfg, override.key_or_group, override.value(), force_add=override.is_add())
        except OmegaConfBaseException:
            return self.compose((*self.words, *words))  # raises with Hydra's own message
        return cfg

    def job(self, point: Point) -> Job:
        config = self.config_of(point)
        name = identity.config_hash(config, identity.text_stand_in(config["data"]))[
            :8
        ]  # the text is not read, so its path stands for it
        words = (*self.flags, *self.words, *overrides(point))
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

    def deciding_metric(self) -> str:
        """Return the loss that compares the jobs: val/bpb if they differ in what decides their tokens, else val/loss.

        Only losses of tokens are known by the byte: where a task has another one, it is val/loss in any case.

        Composes every choice of a group and every value that may decide the tokens, so a wrong one is refused here.
        """
        first = {} if self.config.method == "one_at_a_time" else {axis.key: axis.samples[0] for axis in self.axes}
        points = [first]
        for axis in self.axes:
            key = axis.key.lstrip("+")
            if not identity.row(key) or identity.does(key, "tokens"):
                points += [{**first, axis.key: value} for value in axis.samples]
        configs = [identity.flatten(self.config_of(point)) for point in points]
        tokens = [{key: config[key] for key in config if identity.does(key, "tokens")} for config in configs]
        of_tokens = all(config.get("task.name") in ("pretrain", "sft") for config in configs)
        return "val/bpb" if of_tokens and any(each != tokens[0] for each in tokens) else "val/loss"

    def plan(self) -> FixedPlan | Search:
        config = self.config
        if config.method == "optuna":
            check_comparable(self.axes)
            fixed = {key: value for key, value in self.base.items() if key != "sweep"} | {"axes": str(self.axes)}
            name = identity.config_hash(fixed, identity.text_stand_in(fixed["data"]))
            if self.metric != "val/loss":
                name += f" {self.metric}"  # older searches over vocabularies minimised val/loss
            if not isinstance(seed := fixed["seed"], int):
                raise UserError(f"seed={seed}: must be an integer")
            return Search(self.axes, self.root, name, config.trials, config.prune, seed, self.job, self.metric)
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


def check_comparable(axes: list[Axis]) -> None:
    """Check that the losses of a search are of one kind; raises UserError if one of the axes changes what they are."""
    for key in (axis.key.lstrip("+") for axis in axes):
        if key in ("task", *itertools.chain(*identity.LOSS_KEYS.values())):
            raise UserError(
                f"sweep.method=optuna with {key}=...: a search minimises val/loss, which is another measure for each "
                f"value of it; use sweep.method=grid, whose report compares rewards or accuracies"
            )


def check_axes(axes: list[Axis], method: str, base: dict[str, Any]) -> None:
    """Check that there are axes, and that `method` can vary each of them.

    Args:
        base: see `parse_axis`.

    Raises:
        UserError: there are none, or one has no values, an interval that only a search can vary, or in a search values
            that are no numbers of its key's type.
    """
    if not axes:
        raise UserError("-m: nothing varies; give some key several values, e.g. model.n_head=1,2,4 seed=1,2,3")
    for axis in axes:
        kind = identity.number_type(axis.key.lstrip("+"), base.get(axis.key.lstrip("+")))
        if kind and method == "optuna":
            check_numbers(axis, kind)
        if axis.values or (axis.is_interval and method == "optuna"):
            continue
        if axis.is_interval:
            raise UserError(f"{axis.key}: an interval is for sweep.method=optuna; give values, e.g. {axis.key}=1,2,3")
        raise UserError(f"{axis.key}: there are no values, nothing matches")


def check_numbers(axis: Axis, kind: type) -> None:
    """Check that the values of an axis are what a key of numbers of this type takes.

    Raises:
        UserError: one of them is something else.
    """
    for value in axis.values:
        if value not in ("null", "auto") and not is_number(value.strip("'\""), kind):
            what = "an integer" if kind is int else "a number"
            raise UserError(f"{axis.key}={value}: must be {what}; leave it out of the search")


def is_number(text: str, kind: type) -> bool:
    """Return whether `text` is a finite number of a type, int or float."""
    try:
        return math.isfinite(kind(text))
    except ValueError:
        return False


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
        sweep = Sweep(plan, launcher, about, command.root, command.metric)
        at_once = min(launcher.jobs, plan.total)
        print(
            f"{plan.total} jobs, {at_once} at once, in {command.root}; Ctrl-C stops, the same command goes on",
            flush=True,
        )
        if command.metric == "val/bpb":
            print("the vocabulary or the text varies: bits per byte (val/bpb) decide, nats per token do not compare")
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
