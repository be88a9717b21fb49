"""A run on a CPU has the threads that its steps pay for, and a resumed one those that it had."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from gptlab import models
from gptlab.system.errors import UserError
from gptlab.system.threads import FLOPS, worth
from gptlab.training import placement
from gptlab.training.fit import fit
from gptlab.training.resume import Start
from gptlab.training.threads import choose_threads, computing_with
from tests.conftest import TINY


@pytest.fixture
def four() -> Iterator[None]:
    with computing_with(4):
        yield


@pytest.mark.parametrize(
    ("flops", "threads"), [(0, 1), (0.9 * FLOPS, 1), (1.1 * FLOPS, 2), (2.1 * FLOPS, 3), (1e15, 64)]
)
def test_more_work_pays_for_more_threads(flops: float, threads: int) -> None:
    assert worth(flops, 64) == threads
    assert worth(flops, 1) == 1


def chosen(compose: Any, *words: str, start: Any = None) -> int:
    settings = compose(*words)
    model = models.build(settings.model_config(65))
    return choose_threads(settings, placement.decide(settings), model, model.config.block_size, start)


@pytest.mark.parametrize(
    ("words", "threads"),
    [
        (("experiment=ladder_2_head",), 1),
        (("experiment=ladder_7_layernorm",), 1),
        (("experiment=ladder_7_layernorm", "trainer.threads=3"), 3),
        (("model=gpt800k",), 4),
        (("model=gpt800k", "trainer.threads=2"), 2),
        (("model=gpt800k", "data.micro_batch_size=1"), 1),
    ],
)
def test_small_steps_have_one_thread(four: None, compose: Any, words: tuple[str, ...], threads: int) -> None:
    assert chosen(compose, *words, "trainer.accelerator=cpu") == threads


def test_a_resumed_run_keeps_its_threads_if_there_are_as_many(four: None, compose: Any) -> None:
    for before, threads in ((3, 3), (4, 4), (5, 1), (None, 1)):
        assert chosen(compose, "experiment=ladder_2_head", start=start(before)) == threads
    assert chosen(compose, "model=gpt800k", "trainer.threads=2", start=start(4)) == 2


def test_a_run_that_has_its_threads_already_sets_none(
    compose: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """See findings/torch-set-num-threads-turns-off-mkl-dynamic.sh."""
    calls: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", calls.append)
    fit(compose(*TINY), tmp_path)
    assert calls == []
    with computing_with(7):
        assert calls == [7]


def start(threads: int | None) -> Start:
    return Start(Path(), Path(), {"global_step": 0, "lengths": {}, "machine": {"threads": threads}})


class Count(L.Callback):
    def __init__(self) -> None:
        self.seen: set[int] = set()

    def on_train_batch_end(self, *_: Any) -> None:
        self.seen.add(torch.get_num_threads())

    def on_validation_batch_end(self, *_: Any) -> None:
        self.seen.add(torch.get_num_threads())


def test_a_run_computes_with_its_threads_records_them_and_is_resumed_with_them(
    compose: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = compose(*TINY, "trainer.threads=2")
    seen = [Count(), Count(), Count()]
    fit(settings, tmp_path / "run", callbacks=[seen[0]])
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=False)
    assert (seen[0].seen, torch.get_num_threads(), last["machine"]["threads"]) == ({2}, 1, 2)
    longer = replace(settings.trainer, max_steps=settings.trainer.max_steps + 2, threads="auto")
    with computing_with(2):
        fit(replace(settings, trainer=longer), tmp_path / "run", resume=True, callbacks=[seen[1]])
    assert seen[1].seen == {2}
    assert "to rounding" not in caplog.text
    longer = replace(longer, max_steps=longer.max_steps + 2)
    fit(replace(settings, trainer=longer), tmp_path / "run", resume=True, callbacks=[seen[2]])
    assert seen[2].seen == {1}
    assert "threads is 1 here and was 2: the same run to rounding, not to the bit" in caplog.text


@pytest.mark.parametrize("given", ["0", "-1", "1.5", "true", "many"])
def test_threads_that_are_none_are_refused(compose: Any, given: str) -> None:
    with pytest.raises(UserError, match=r"trainer.threads=\S+: must be at least 1, or auto"):
        compose(*TINY, f"trainer.threads={given}")
