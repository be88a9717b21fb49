"""What keeps Lightning's hooks cheap leaves all that are there in place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest

from gptlab.fit import fit
from gptlab.hooks import OF_A_STEP, sparing
from tests.conftest import TINY


def recorder(hook: str) -> tuple[L.Callback, list[str]]:
    calls: list[str] = []
    return type("Recorder", (L.Callback,), {hook: lambda self, *args: calls.append(hook)})(), calls


@pytest.mark.parametrize("hook", OF_A_STEP)
def test_a_hook_that_a_callback_has_is_called_each_step(hook: str, compose: Any, tmp_path: Path) -> None:
    """And its others, which do nothing, are called no more: Lightning has to pass over what is None."""
    callback, calls = recorder(hook)
    settings, config = compose(*TINY, "trainer.max_steps=3", "trainer.val_every=3", "trainer.sample_tokens=0")
    fit(settings, config, tmp_path, callbacks=[callback])
    assert calls == [hook] * 3
    assert [getattr(callback, other) is None for other in OF_A_STEP] == [other != hook for other in OF_A_STEP]


def test_a_hook_that_is_inherited_is_kept() -> None:
    callback, calls = recorder("on_train_batch_end")
    [spared] = sparing([type("Heir", (type(callback),), {})()])
    spared.on_train_batch_end()  # type: ignore[call-arg]
    assert calls == ["on_train_batch_end"]
