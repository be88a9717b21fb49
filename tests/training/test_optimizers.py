"""The learning rate follows nanoGPT's curve; matrices decay and nothing else does."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from gptlab import models
from gptlab.models import GPT, Bigram, BigramConfig, GPTConfig
from gptlab.system.errors import UserError
from gptlab.training.optimizers import OptimConfig, build_optimizer, describe_groups, parameter_groups
from gptlab.training.schedules import ScheduleConfig, lr_scale

ADAMW = {
    "name": "adamw",
    "lr": 3e-4,
    "weight_decay": 0.1,
    "beta1": 0.9,
    "beta2": 0.95,
    "eps": 1e-8,
    "grad_clip": 1.0,
}
MUON = {**ADAMW, "name": "muon", "lr": 0.02, "adam_lr": 0.004, "momentum": 0.95, "ns_steps": 5, "nor_beta": 0.9}
COSINE = {"name": "cosine", "warmup_steps": 5, "decay_steps": 31, "min_ratio": 0.1}


def get_lr(it: int, learning_rate: float, min_lr: float, warmup_iters: int, lr_decay_iters: int) -> float:
    """As in nanoGPT's train.py, https://github.com/karpathy/nanoGPT/blob/master/train.py."""
    if it < warmup_iters:
        return learning_rate * (it + 1) / (warmup_iters + 1)
    if it > lr_decay_iters:
        return min_lr
    decay_ratio = (it - warmup_iters) / (lr_decay_iters - warmup_iters)
    assert 0 <= decay_ratio <= 1
    coeff = 0.5 * (1.0 + math.cos(math.pi * decay_ratio))
    return min_lr + coeff * (learning_rate - min_lr)


@pytest.mark.parametrize(("warmup", "decay"), [(0, 31), (5, 31), (1, 2), (100, 5000), (2000, 600_000)])
@pytest.mark.parametrize("min_ratio", [0.0, 0.1, 1.0])
def test_the_cosine_is_nanogpts(warmup: int, decay: int, min_ratio: float) -> None:
    schedule = ScheduleConfig("cosine", warmup, decay, min_ratio)
    steps = {*range(0, decay + 7, max(decay // 97, 1)), warmup - 1, warmup, warmup + 1, decay - 1, decay, decay + 1}
    for step in sorted(steps - {-1}):
        expected = get_lr(step, 6e-4, 6e-4 * min_ratio, warmup, decay)
        assert 6e-4 * lr_scale(step, schedule) == pytest.approx(expected, rel=1e-9, abs=1e-15), step


@pytest.mark.parametrize(
    ("fields", "step", "scale"),
    [
        ({}, 0, 1 / 6),  # never a step at zero
        ({}, 4, 5 / 6),
        ({}, 5, 1.0),
        ({}, 18, 0.55),  # half way
        ({}, 31, 0.1),
        ({}, 10**9, 0.1),
        ({"warmup_steps": 0}, 0, 1.0),
        ({"warmup_steps": 31}, 30, 31 / 32),
        ({"warmup_steps": 31}, 31, 0.1),
        ({"warmup_steps": 37}, 36, 37 / 38),
        ({"warmup_steps": 37}, 37, 0.1),
        ({"name": "constant"}, 0, 1 / 6),
        ({"name": "constant"}, 5, 1.0),
        ({"name": "constant"}, 31, 1.0),
        ({"name": "constant"}, 10**9, 1.0),
        ({"name": "constant", "warmup_steps": 0}, 0, 1.0),
        ({"name": "linear"}, 4, 5 / 6),
        ({"name": "linear"}, 5, 1.0),
        ({"name": "linear"}, 18, 0.55),
        ({"name": "linear", "min_ratio": 0.0}, 30, 1 / 26),  # the last step before the end is made with something
        ({"name": "linear", "min_ratio": 0.0}, 31, 0.0),
        ({"name": "linear", "min_ratio": 0.0, "warmup_steps": 37}, 36, 37 / 38),
        ({"name": "linear", "min_ratio": 0.0, "warmup_steps": 37}, 37, 0.0),
        ({"name": "wsd", "decay_steps": 50}, 4, 5 / 6),
        ({"name": "wsd", "decay_steps": 50}, 5, 1.0),
        ({"name": "wsd", "decay_steps": 50}, 40, 1.0),
        ({"name": "wsd", "decay_steps": 50}, 45, 0.55),
        ({"name": "wsd", "decay_steps": 50, "min_ratio": 0.0}, 49, 0.1),
        ({"name": "wsd", "decay_steps": 50}, 50, 0.1),
        ({"name": "wsd", "decay_steps": 50, "warmup_steps": 43}, 43, 1.0),  # it decays from the warmup's end
        ({"name": "wsd", "decay_steps": 57, "warmup_steps": 47, "min_ratio": 0.0}, 52, 0.5),
        ({"name": "wsd", "decay_fraction": 1.0}, 18, 0.55),  # is linear
        ({"name": "wsd"}, 10**9, 0.1),
    ],
)
def test_the_schedule_at_its_ends(fields: dict[str, Any], step: int, scale: float) -> None:
    assert lr_scale(step, ScheduleConfig(**{**COSINE, **fields})) == pytest.approx(scale)


@pytest.mark.parametrize("tied", [True, False])
def test_matrices_decay_and_nothing_else_does(tied: bool) -> None:
    model = GPT(GPTConfig(101, 23, 2, 3, n_embd=33, tied=tied, head_bias=True))
    groups = parameter_groups(model, OptimConfig(**{**ADAMW, "weight_decay": 0.07}), {})
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(decay) == sum(len(group["params"]) for group in groups)  # a tied head is in one group, once
    for name, parameter in model.named_parameters():
        assert decay.pop(id(parameter)) == (0.07 if parameter.dim() >= 2 else 0.0), name
    assert not decay


def test_frozen_parameters_are_not_optimized() -> None:
    model = GPT(GPTConfig(101, 23, 2, 3, n_embd=33))
    model.wpe.requires_grad_(False)
    assert all(
        p is not model.wpe.weight
        for group in parameter_groups(model, OptimConfig(**ADAMW), {})
        for p in group["params"]
    )


def test_a_model_of_matrices_has_one_group() -> None:
    assert [group["name"] for group in parameter_groups(Bigram(BigramConfig(101)), OptimConfig(**ADAMW), {})] == [
        "decay"
    ]


@pytest.mark.parametrize("fused", [True, False])
def test_a_step_is_adamws(fused: bool) -> None:
    """Loshchilov & Hutter 2019, algorithm 2, written out for the first step."""
    matrix, vector = nn.Linear(3, 5), nn.LayerNorm(7)
    model = nn.ModuleList([matrix, vector])
    for parameter in model.parameters():
        nn.init.uniform_(parameter, 0.5, 1.0)
        parameter.grad = torch.rand_like(parameter) + 0.1
    before = [p.detach().clone() for p in model.parameters()]
    config = OptimConfig(**{**ADAMW, "lr": 0.01, "eps": 0.05, "weight_decay": 0.3})
    build_optimizer(model, config, {}, fused=fused).step()
    for old, new in zip(before, model.parameters(), strict=True):
        decayed = old * (1 - 0.01 * (0.3 if old.dim() >= 2 else 0.0))
        assert new.grad is not None
        torch.testing.assert_close(new.detach(), decayed - 0.01 * new.grad / (new.grad.abs() + 0.05))


def test_muon_has_the_matrices_of_the_blocks_and_adamw_the_rest() -> None:
    model = GPT(GPTConfig(101, 23, 2, 3, n_embd=33, tied=False))
    model.h[0].mlp.c_fc.requires_grad_(False)
    groups = parameter_groups(model, OptimConfig(**MUON), models.matrices(model))
    names = {p: name for name, p in model.named_parameters()}
    first, *rest = ([names[p] for p in group["params"]] for group in groups)
    layers = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert first == [f"h.{i}.{layer}.weight" for i in (0, 1) for layer in layers if (i, layer) != (0, "mlp.c_fc")]
    assert rest[0] == ["wte.weight", "wpe.weight", "lm_head.weight"]
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(0.02, 0.1), (0.004, 0.1), (0.004, 0.0)]
    assert describe_groups(groups).startswith("7 matrices with 21,780 parameters at weight decay 0.1 and learning rate")
    assert "; 3 tensors with 7,425 parameters at weight decay 0.1 and learning rate 0.004; " in describe_groups(groups)


def test_muon_is_refused_where_there_is_nothing_for_it() -> None:
    with pytest.raises(UserError, match=r"optim=muon is for the matrices .* a Bigram has none: use optim=adamw"):
        build_optimizer(Bigram(BigramConfig(101)), OptimConfig(**MUON), {}, fused=False)


def test_betas_reach_the_optimizer() -> None:
    optimizer = build_optimizer(Bigram(BigramConfig(101)), OptimConfig(**{**ADAMW, "beta1": 0.8}), {}, fused=False)
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.95)


def test_the_groups_are_described_in_numbers() -> None:
    groups = parameter_groups(GPT(GPTConfig(101, 23, 2, 3, n_embd=33, bias=False)), OptimConfig(**ADAMW), {})
    matrices = (101 + 23) * 33 + 2 * 12 * 33**2
    assert describe_groups(groups) == (
        f"10 tensors with {matrices:,} parameters at weight decay 0.1; 5 tensors with 165 parameters at weight decay 0"
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "sgd"}, r"optim.name=sgd: no such optimizer; there are adamw, muon"),
        ({"lr": 0.0}, r"optim.lr=0.0: must be above 0"),
        ({"lr": math.nan}, r"optim.lr=nan: must be above 0"),
        ({"eps": -1e-8}, r"optim.eps=-1e-08: must be above 0"),
        ({"weight_decay": -0.1}, r"optim.weight_decay=-0.1: must be at least 0"),
        ({"grad_clip": -1.0}, r"optim.grad_clip=-1.0: must be at least 0"),
        ({"beta1": 1.0}, r"optim.beta1=1.0: must be at least 0 and below 1"),
        ({"beta2": -0.5}, r"optim.beta2=-0.5: must be at least 0 and below 1"),
        ({"momentum": 0.9}, r"optim.momentum=0.9: is optim=muon's; leave it out of optim=adamw"),
        ({**MUON, "adam_lr": None}, r"optim.adam_lr: is missing; optim=muon has it"),
        ({**MUON, "adam_lr": 0.0}, r"optim.adam_lr=0.0: must be above 0"),
        ({**MUON, "momentum": 1.0}, r"optim.momentum=1.0: must be at least 0 and below 1"),
        ({**MUON, "ns_steps": 0}, r"optim.ns_steps=0: must be at least 1"),
    ],
)
def test_an_impossible_optimizer_names_key_and_value(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        OptimConfig(**{**ADAMW, **fields})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "step"}, r"schedule.name=step: must be one of constant, cosine, linear, wsd"),
        ({"warmup_steps": -1}, r"schedule.warmup_steps=-1: must be at least 0"),
        ({"decay_fraction": 0.0}, r"schedule.decay_fraction=0.0: must be above 0 and at most 1"),
        ({"decay_fraction": 1.1}, r"schedule.decay_fraction=1.1: must be above 0 and at most 1"),
        ({"min_ratio": 1.5}, r"schedule.min_ratio=1.5: must be between 0 and 1"),
        ({"min_ratio": -0.1}, r"schedule.min_ratio=-0.1: must be between 0 and 1"),
    ],
)
def test_an_impossible_schedule_names_key_and_value(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ScheduleConfig(**{**COSINE, **fields})
