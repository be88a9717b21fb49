"""Nats become perplexity and bits per byte; a device's peak is its own."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from gptlab.evaluation.loss import loss_metrics
from gptlab.models import Bigram, BigramConfig
from gptlab.system import accelerator
from gptlab.system.accelerator import measured_peak_flops  # before `peak_is_measured_once` of conftest.py


def test_who_knows_nothing_needs_eight_bits_for_a_byte() -> None:
    model = Bigram(BigramConfig(256))
    torch.nn.init.constant_(model.wte.weight, 0.7)
    idx = torch.randint(256, (5, 101), generator=torch.Generator().manual_seed(0))
    nats = F.cross_entropy(model(idx[:, :-1]).flatten(0, 1), idx[:, 1:].flatten(), reduction="sum").item()
    result = loss_metrics(nats, tokens=500, text_bytes=500)
    assert result == pytest.approx({"val/loss": math.log(256), "val/bpb": 8.0, "val/ppl": 256.0}, rel=1e-5)


def test_bits_are_per_byte_and_loss_is_per_token() -> None:
    """Three tokens of two bits each, which stand for seven bytes."""
    result = loss_metrics(3 * math.log(4), tokens=3, text_bytes=7)
    assert result == pytest.approx({"val/loss": math.log(4), "val/bpb": 6 / 7, "val/ppl": 4.0})


@pytest.mark.parametrize("loss", [710.0, 1e30, math.inf])
def test_a_perplexity_beyond_all_numbers_is_infinite(loss: float) -> None:
    assert loss_metrics(loss * 13, 13, 13)["val/ppl"] == math.inf


def test_a_loss_that_is_no_number_has_no_perplexity() -> None:
    assert math.isnan(loss_metrics(math.nan, 13, 13)["val/ppl"])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_cpus_peak_is_measured_without_touching_the_random_state(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accelerator, "measured_peak_flops", measured_peak_flops)
    before = torch.get_rng_state()
    peak = accelerator.peak_flops(torch.device("cpu"), precision)
    assert 1e7 < peak < 1e15
    assert torch.equal(torch.get_rng_state(), before)


def test_a_measured_peak_counts_a_multiplication_and_an_addition_for_each_term(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.accumulate(itertools.cycle([0.5, 0.25, 0.125, 0.25, 1]))  # the fastest takes 0.125 seconds
    monkeypatch.setattr("gptlab.system.accelerator.time.perf_counter", lambda: next(clock))
    assert measured_peak_flops(torch.device("cpu"), torch.float32, size=7, seconds=5) == 2 * 7**3 / 0.125


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 NVL", 835.5e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L40", 181e12),
        ("NVIDIA L4", 121e12),
        ("Tesla V100-SXM2-16GB", 125e12),
        ("Tesla T4", 65e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("NVIDIA GeForce RTX 3090", 71e12),
        ("NVIDIA GeForce RTX 2060", 7.0),  # unknown: measured
        *((name, 7.0) for name in ("NVIDIA RTX A1000", "NVIDIA T400 4GB")),
    ],
)
def test_a_gpus_peak_is_that_of_its_data_sheet(monkeypatch: pytest.MonkeyPatch, name: str, peak: float) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(accelerator, "measured_peak_flops", lambda device, dtype, size: 7.0)
    assert accelerator.peak_flops(torch.device("cuda"), "bf16") == peak
