"""Where a run will be, in what precision, and how much of a batch at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest

from gptlab.system import machine
from gptlab.system.errors import UserError
from gptlab.system.machine import rows_that_fit_caches
from gptlab.training.fit import fit
from gptlab.training.placement import decide
from tests.conftest import TINY


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer=a100"], "trainer.accelerator=gpu .trainer=a100. needs a CUDA GPU, none is visible: use trainer.acc"),
        (["trainer=ddp", "trainer.accelerator=gpu"], "^trainer.accelerator=gpu .trainer=ddp. needs a CUDA GPU"),
        (["trainer=mps"], "trainer.accelerator=mps .trainer=mps. needs an Apple GPU"),
        (["precision=fp16", "trainer=cpu"], "precision=fp16 needs a CUDA GPU, this run is on cpu: use precision=bf16"),
    ],
)
def test_a_device_that_is_not_there_is_refused(
    compose: Any, monkeypatch: pytest.MonkeyPatch, overrides: list[str], message: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    with pytest.raises(UserError, match=message):
        decide(compose(*overrides))


def a_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], name: str) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: capability)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: name)


def a_cpu(monkeypatch: pytest.MonkeyPatch, avx512_bf16: bool = False, amx: bool = False) -> None:
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: amx)


def test_bf16_is_refused_where_the_gpu_only_emulates_it(compose: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    a_gpu(monkeypatch, (7, 5), "Tesla T4")
    with pytest.raises(UserError, match=r"Tesla T4 has 7.5: use precision=fp16 or precision=fp32"):
        decide(compose("trainer=a100"))
    assert decide(compose("trainer=t4")).kind == "cuda"
    with pytest.raises(UserError, match=r"trainer.devices=2: there are 1 GPUs here"):
        decide(compose("trainer=t4", "trainer.devices=2"))


def test_compiling_on_a_cpu_needs_a_compiler(compose: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=r"compile=inductor needs a C\+\+ compiler"):
        decide(compose("compile=inductor", "trainer=cpu"))


@pytest.mark.parametrize(("capability", "name"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_automatic_precision_is_bf16_where_a_gpu_has_it(
    compose: Any, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], name: str
) -> None:
    a_gpu(monkeypatch, capability, "some GPU")
    a_cpu(monkeypatch)
    assert decide(compose("precision=auto")).precision == name
    assert decide(compose("precision=auto", "trainer=cpu")).precision == "fp32"
    assert decide(compose("precision=fp32")).precision == "fp32"


@pytest.mark.parametrize(("here", "name"), [({}, "fp32"), ({"avx512_bf16": True}, "bf16"), ({"amx": True}, "bf16")])
def test_a_run_of_automatic_precision_says_what_it_took(
    run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, here: dict[str, bool], name: str
) -> None:
    a_cpu(monkeypatch, **here)
    summary = run(tmp_path, "precision=auto", "trainer.max_steps=1", "trainer.sample_tokens=0")
    assert summary["precision"] == name


@pytest.mark.parametrize(
    ("rows", "block_size", "at_once"),
    [(64, 256, 4), (12, 64, 12), (12, 256, 4), (7, 256, 1), (16, 2048, 1), (1, 64, 1), (2048, 1, 1024)],
)
def test_a_cpu_takes_what_divides_the_batch_and_stays_in_its_caches(rows: int, block_size: int, at_once: int) -> None:
    assert rows_that_fit_caches(rows, block_size) == at_once


def test_on_a_cpu_automatic_micro_batches_are_those_that_stay_in_its_caches(
    compose: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[tuple[int, int]] = []
    libc = SimpleNamespace(mallopt=lambda *words: taken.append(words))
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda name: libc)
    monkeypatch.setattr(machine.sys, "platform", "linux")
    seen: list[int] = []

    class Sizes(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, *args: Any) -> None:
            seen.append(len(batch[0]))

    sizes = ("model.block_size=256", "data.batch_size=8", "data.micro_batch_size=auto", "trainer.sample_tokens=0")
    fit(compose(*TINY, *sizes, "trainer.max_steps=2"), tmp_path, callbacks=[Sizes()])
    assert seen == [4, 4, 4, 4]
    assert taken == [(-4, 0), (-1, 2**31 - 1)]  # glibc's M_MMAP_MAX and M_TRIM_THRESHOLD


@pytest.mark.parametrize("choice", ["reduce_overhead", "max_autotune"])
def test_cuda_graphs_are_of_a_batch_as_a_whole(compose: Any, choice: str) -> None:
    place = replace(decide(compose("trainer=cpu")), kind="cuda", compile_mode=compose(f"compile={choice}").compile.mode)
    with pytest.raises(UserError, match=rf"compile.mode={place.compile_mode} records CUDA graphs.* in 3 parts: use"):
        place.check_graphs(3)
    place.check_graphs(1)
    replace(place, kind="cpu").check_graphs(3)
    replace(place, compile_mode="default").check_graphs(3)
