"""Plan the runs of a sweep: every combination, one factor at a time, or whatever a search proposes next."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gptlab.sweeps.jobs import Job, Point
from gptlab.system.errors import UserError

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True)
class Axis:
    """A key that varies, over some values or, in a search, over an interval."""

    key: str
    values: tuple[str, ...] = ()
    """The values as typed; empty for an interval."""
    low: float = math.nan
    high: float = math.nan
    log: bool = False
    integer: bool = False

    @property
    def is_interval(self) -> bool:
        return not math.isnan(self.low)

    @property
    def samples(self) -> tuple[str, ...]:
        """The values; of an interval its ends."""
        return self.values or tuple(str(int(end)) if self.integer else f"{end:.6g}" for end in (self.low, self.high))


def grid(axes: list[Axis]) -> list[Point]:
    """Return every combination of values; the last axis varies fastest."""
    keys = [axis.key for axis in axes]
    return [dict(zip(keys, values, strict=True)) for values in itertools.product(*(axis.values for axis in axes))]


def one_at_a_time(axes: list[Axis]) -> list[Point]:
    """Return the baseline, which changes nothing, and each value of each axis alone; each of these with every seed."""
    changes: list[Point] = [{}]
    changes += [{axis.key: value} for axis in axes if axis.key != "seed" for value in axis.values]
    seeds = grid([axis for axis in axes if axis.key == "seed"])
    return [{**change, **seed} for change in changes for seed in seeds]


class FixedPlan:
    """A plan whose jobs are all known from the start."""

    def __init__(self, jobs: list[Job]) -> None:
        self.jobs = jobs
        self.total = len(jobs)
        self._next = iter(jobs)

    def ask(self) -> Job | None:
        """Return the next job to run; None if there is none."""
        return next(self._next, None)

    def hopeless(self, job: Job) -> bool:
        """Return whether a running job should be stopped because of its validation curve."""
        return False

    def tell(self, job: Job, state: str, loss: float | None) -> None:
        """Record how a job ended (finished, pruned or failed) and its last loss."""

    def closing_words(self) -> str:
        return ""


class Search:
    """A search by Optuna's tree-structured Parzen estimator (Akiba et al. 2019, https://arxiv.org/abs/1907.10902).

    The study is kept in `folder`, so that the same command continues it, interrupted trials first. With `prune` a trial
    is stopped if its `metric` is worse than the median of the other trials at the same step.

    Args:
        name: the name of the study, equal for searches of the same config over the same axes.
        trials: how many finished or pruned trials to reach, over all commands.
        make: returns the job of a point.
        metric: what is minimised, val/loss or val/bpb.

    Raises:
        UserError: optuna is not installed.
    """

    def __init__(
        self,
        axes: list[Axis],
        folder: Path,
        name: str,
        trials: int,
        prune: bool,
        seed: int,
        make: Callable[[Point], Job],
        metric: str = "val/loss",
    ) -> None:
        try:
            import optuna
        except ImportError as error:
            raise UserError("sweep.method=optuna needs optuna: pip install 'gptlab[optuna]'") from error
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        folder.mkdir(parents=True, exist_ok=True)
        self.axes = axes
        self.prune = prune
        self.make = make
        self.metric = metric
        self.study = optuna.create_study(
            study_name=name,
            storage=optuna.storages.JournalStorage(JournalFileBackend(str(folder / "optuna.log"))),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=4),
            load_if_exists=True,
        )
        states = optuna.trial.TrialState
        past = self.study.get_trials(deepcopy=False)
        # A different seed for each command, so that it does not propose the same points again.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of constant_liar, up to optuna 4
            self.study.sampler = optuna.samplers.TPESampler(seed=seed + len(past), constant_liar=True)
        self._cut_off = [trial for trial in past if trial.state == states.RUNNING]
        ended = sum(trial.state in (states.COMPLETE, states.PRUNED) for trial in past)
        self.total = max(trials - ended, len(self._cut_off))
        self._asked = 0
        self._trials: dict[Job, optuna.trial.Trial] = {}
        self._reported: dict[Job, int] = {}

    def _value(self, trial: optuna.trial.Trial, axis: Axis) -> str:
        if axis.values:
            return str(trial.suggest_categorical(axis.key, axis.values))
        if axis.integer:
            return str(trial.suggest_int(axis.key, int(axis.low), int(axis.high), log=axis.log))
        return f"{trial.suggest_float(axis.key, axis.low, axis.high, log=axis.log):.6g}"

    def ask(self) -> Job | None:
        from optuna.trial import Trial

        if self._asked == self.total:
            return None
        self._asked += 1
        if self._cut_off:
            past = self._cut_off.pop(0)
            trial, reported = Trial(self.study, past._trial_id), max(past.intermediate_values, default=0)
        else:
            trial, reported = self.study.ask(), 0
        job = self.make({axis.key: self._value(trial, axis) for axis in self.axes})
        self._trials[job], self._reported[job] = trial, reported
        return job

    def hopeless(self, job: Job) -> bool:
        trial = self._trials[job]
        for row in job.rows():
            step = int(row["step"])
            if row[self.metric] and step > self._reported[job]:
                self._reported[job] = step
                trial.report(float(row[self.metric]), step)
        return self.prune and self._reported[job] > 0 and trial.should_prune()

    def tell(self, job: Job, state: str, loss: float | None) -> None:
        from optuna.trial import TrialState

        self.hopeless(job)  # reports the last points of the curve
        ended = TrialState.COMPLETE if state == "finished" else TrialState.PRUNED
        if (
            state == "failed" and not self._reported[job]
        ):  # with a curve it may have diverged, which the search should learn
            ended = TrialState.FAIL
        value = loss if state == "finished" else None
        self.study.tell(self._trials.pop(job), value, ended, skip_if_finished=True)

    def closing_words(self) -> str:
        """Return the best trial in words; nothing if no trial has finished."""
        from optuna.trial import TrialState

        if not self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            return ""
        best = self.study.best_trial
        words = " ".join(f"{k}={v:.6g}" if isinstance(v, float) else f"{k}={v}" for k, v in best.params.items())
        return f"best of the search: {words} ({self.metric} {best.value:.4f}); confirm it with several seeds"
