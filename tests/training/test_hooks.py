"""What keeps Lightning's hooks cheap leaves all that are there in place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest

from gptlab.data.batches import TrainBatches
from gptlab.training import fit
from gptlab.training.lightning_setup import HOOKS_OF_A_STEP
from gptlab.training.module import LMModule
from tests.conftest import TINY

QUICK = (*TINY, "trainer.max_steps=3", "trainer.val_every=3", "trainer.sample_tokens=0")


def recorder(base: type, hook: str) -> tuple[type, list[str]]:
    """A class that has one hook, and its calls."""
    calls: list[str] = []
    return type("Recorder", (base,), {hook: lambda self, *args: calls.append(hook)}), calls


def left_out(owner: Any) -> list[str]:
    """What Lightning passes over."""
    return [hook for hook in HOOKS_OF_A_STEP if getattr(owner, hook) is None]


@pytest.mark.parametrize("hook", HOOKS_OF_A_STEP)
def test_a_hook_that_a_callback_has_is_called_each_step(hook: str, compose: Any, tmp_path: Path) -> None:
    """And its others, which do nothing, are called no more."""
    Recorder, calls = recorder(L.Callback, hook)
    callback = type("Heir", (Recorder,), {})()
    fit.fit(compose(*QUICK), tmp_path, callbacks=[callback])
    assert calls == [hook] * 3
    assert left_out(callback) == [other for other in HOOKS_OF_A_STEP if other != hook]


@pytest.mark.parametrize("hook", HOOKS_OF_A_STEP)
def test_a_hook_that_the_module_has_is_called_each_step(
    hook: str, compose: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Recorder, calls = recorder(LMModule, hook)
    made: list[LMModule] = []
    monkeypatch.setattr(
        "gptlab.training.run.LMModule", lambda *args, **how: made.append(Recorder(*args, **how)) or made[-1]
    )
    fit.fit(compose(*QUICK), tmp_path)
    assert calls == [hook] * 3
    assert left_out(made[0]) == [other for other in HOOKS_OF_A_STEP if other != hook]


def test_every_micro_batch_comes_as_the_loader_made_it_with_its_number(
    compose: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    seen: list[Any] = []
    batch, training_step = TrainBatches.batch, LMModule.training_step
    monkeypatch.setattr(TrainBatches, "batch", lambda *args: made.append(batch(*args)) or made[-1])

    def watched(self: LMModule, batch: Any, batch_idx: int) -> Any:
        seen.append((batch, batch_idx))
        return training_step(self, batch, batch_idx)

    monkeypatch.setattr(LMModule, "training_step", watched)
    fit.fit(compose(*QUICK, "data.micro_batch_size=3"), tmp_path)
    assert [number for _, number in seen] == [0, 1, 2, 3, 4, 5]
    assert all(given is there for (given, _), there in zip(seen, made, strict=False))
