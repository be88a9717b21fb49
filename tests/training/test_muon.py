"""Muon: matrices turned, in batches, as one by one; AdamW for the rest; nothing where a step is to change nothing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gptlab import models
from gptlab.models import GPT, GPTConfig
from gptlab.system.errors import UserError
from gptlab.training.fit import fit
from gptlab.training.muon import orthogonalized
from gptlab.training.optimizers import OptimConfig, build_optimizer
from tests.training.test_fit import curve
from tests.training.test_optimizers import MUON

# The tiny model of conftest.py, seed 1337, on its text, with optim=muon.
GOLDEN = [
    *(3.1314, 3.1165, 3.0629, 3.0370, 2.9486, 2.9108, 2.9059, 2.8638, 2.8395, 2.7640),
    *(2.7275, 2.6417, 2.6566, 2.5891, 2.6050, 2.5634, 2.4920, 2.3977, 2.3805, 2.3299),
]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(7)


def small(**switches: Any) -> GPT:
    model = GPT(GPTConfig(37, 13, 2, 3, n_embd=33, **switches))
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    return model


def optimizer(model: nn.Module, fused: bool = True, **fields: Any) -> torch.optim.Optimizer:
    return build_optimizer(model, OptimConfig(**{**MUON, **fields}), models.matrices(model), fused)


@pytest.mark.parametrize("shape", [(5, 31, 31), (3, 31, 43), (3, 31, 131), (2, 1, 7)])
def test_singular_values_become_about_one_and_their_vectors_stay(shape: tuple[int, int, int]) -> None:
    x = torch.randn(shape)
    u, before, v = torch.linalg.svd(x, full_matrices=False)
    after = u.mT @ orthogonalized(x, 5) @ v.mT  # diagonal, if the vectors are the same
    values = after.diagonal(dim1=-2, dim2=-1)
    large = values[before > 0.02 * before.norm(dim=-1, keepdim=True)]
    assert large.min() > 0.6
    assert values.max() < 1.25
    torch.testing.assert_close(after, torch.diag_embed(values), atol=2e-4, rtol=0)


@pytest.mark.parametrize("shape", [(3, 31, 43), (3, 31, 131)])
@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("spread", [0, 6])  # singular values over so many powers of ten
def test_the_short_way_of_wide_matrices_is_the_iteration(shape: tuple[int, int, int], steps: int, spread: int) -> None:
    u, _, v = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    x = u * torch.logspace(0, -spread, shape[1], dtype=torch.float64) @ v
    expected = x / x.norm(dim=(1, 2), keepdim=True)
    for _ in range(steps):
        g = expected @ expected.mT
        expected = 3.4445 * expected + (-4.7750 * g + 2.0315 * g @ g) @ expected
    torch.testing.assert_close(orthogonalized(x.float(), steps).double(), expected, atol=3e-4, rtol=0)


def test_a_batch_is_its_matrices_one_by_one_and_nothing_stays_nothing() -> None:
    x = torch.randn(5, 31, 47)
    x[3] = 0
    y = orthogonalized(x, 5)
    for one, its in zip(x, y, strict=True):
        torch.testing.assert_close(orthogonalized(one[None], 5)[0], its, atol=1e-5, rtol=0)
    assert not y[3].any()


@pytest.fixture
def fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.optim.Muon computes in bf16; here not."""
    monkeypatch.setattr(Tensor, "bfloat16", Tensor.float)  # up to torch 2.14
    monkeypatch.setattr(torch, "bfloat16", torch.float32)  # from 2.15 on


@pytest.mark.usefixtures("fp32")
@pytest.mark.parametrize("fused", [True, False])
def test_steps_are_torchs_muons_and_adamws(fused: bool) -> None:
    """Where no projections are stacked: without attention, and with an ungated mlp."""
    ours = small(attention="none", bias=True)
    theirs = copy.deepcopy(ours)
    mine = optimizer(ours, fused, nor_beta=0.0)
    matrices = [p for p in theirs.h.parameters() if p.dim() == 2]
    rest = [p for p in theirs.parameters() if all(p is not m for m in matrices)]
    groups = [{"params": [p for p in rest if p.dim() == d], "weight_decay": 0.1 * (d == 2)} for d in (1, 2)]
    two = (
        torch.optim.Muon(matrices, lr=0.02, weight_decay=0.1, momentum=0.95),
        torch.optim.AdamW(groups, lr=0.004, betas=(0.9, 0.95)),
    )
    for _ in range(3):
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        for each in (mine, *two):
            each.step()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=3e-6, rtol=0, msg=name)


@pytest.mark.parametrize(
    ("name", "switches", "sizes"),
    [
        ("attn.c_attn", {}, (33, 33, 33)),
        ("attn.c_attn", {"n_kv_head": 1}, (33, 11, 11)),
        ("attn.c_attn", {"n_kv_head": 1, "head_dim": 14}, (42, 14, 14)),
        ("mlp.c_fc", {"mlp": "swiglu", "n_inner": 29}, (29, 29)),
        ("mlp.c_fc", {"mlp": "relu2", "n_inner": 29}, (29,)),
        ("mlp.c_fc", {"mlp": "geglu", "mlp_proj": False}, (33, 33)),
        ("attn.c_proj", {}, (33,)),
    ],
)
def test_what_is_stacked_in_a_matrix_is_turned_by_itself(name: str, switches: Any, sizes: tuple[int, ...]) -> None:
    model = small(**switches)
    weight = model.h[1].get_submodule(name).weight
    before = weight.detach().clone()
    assert models.matrices(model)[weight] == sizes
    optimizer(model, weight_decay=0.0, nor_beta=0.0).step()
    assert weight.grad is not None
    for change, gradient in zip((before - weight).split(sizes), weight.grad.split(sizes), strict=True):
        wide = gradient if gradient.shape[0] <= gradient.shape[1] else gradient.mT
        turned = orthogonalized(wide[None], 5)[0]
        turned = turned if turned.shape == gradient.shape else turned.mT
        scale = max(1, gradient.shape[0] / gradient.shape[1]) ** 0.5
        torch.testing.assert_close(change, 0.02 * scale * turned, atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", ["attn.c_attn", "mlp.c_fc", "mlp.c_proj"])
def test_normuon_evens_out_the_rows_of_a_step(name: str) -> None:
    """Li et al. 2025, algorithm 1, with the norm of plain Muon's step."""
    model = small()
    weight = model.h[0].get_submodule(name).weight
    parts = models.matrices(model)[weight]
    plain, normed = (optimizer(model, weight_decay=0.0, nor_beta=beta) for beta in (0.0, 0.9))
    squares = torch.zeros(len(weight), 1)
    for _ in range(3):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        changes = []
        for each in (plain, normed):
            before = [p.detach().clone() for p in model.parameters()]
            old = weight.detach().clone()
            each.step()
            changes.append(old - weight.detach())
            with torch.no_grad():
                for p, value in zip(model.parameters(), before, strict=True):
                    p.copy_(value)
        turned = changes[0] / max(1, parts[0] / weight.shape[1]) ** 0.5 / 0.02
        squares = 0.9 * squares + 0.1 * turned.square().mean(1, keepdim=True)
        for was, now, root in zip(*(t.split(parts) for t in (*changes, squares.sqrt())), strict=True):
            expected = was / root
            torch.testing.assert_close(now, expected * was.norm() / expected.norm(), atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("fused", [True, False])
def test_a_state_goes_through_a_checkpoint(fused: bool) -> None:
    ours = small(mlp="swiglu")
    mine = optimizer(ours, fused)
    mine.step()
    state = mine.state_dict()
    assert {frozenset(values) for values in state["state"].values()} == {
        frozenset({"momentum_buffer", "row_squares"}),
        frozenset({"step", "exp_avg", "exp_avg_sq"}),
    }
    theirs = copy.deepcopy(ours)
    other = optimizer(theirs, fused)
    other.load_state_dict(copy.deepcopy(state))
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        a.grad = torch.randn_like(a)
        b.grad = a.grad.clone()
    mine.step()
    other.step()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_weights_in_bf16_are_trained() -> None:
    model = small().bfloat16()
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    before = copy.deepcopy(model)
    optimizer(model).step()
    assert all((a - b).abs().max() > 0 for a, b in zip(model.parameters(), before.parameters(), strict=True))


class Elsewhere(Tensor):
    """What says that it is on a GPU, and is not looked at."""

    is_cpu = False

    def __bool__(self) -> bool:
        raise AssertionError("a GPU would be waited for")

    item = __float__ = __int__ = tolist = __bool__  # type: ignore[assignment]


@pytest.mark.parametrize("where", [Tensor, Elsewhere])
@pytest.mark.parametrize("first", [True, False])
def test_a_step_that_is_found_bad_changes_nothing(where: type[Tensor], first: bool) -> None:
    ours = small()
    mine: Any = optimizer(ours)
    if not first:
        mine.step()
    weights = [p.detach().clone() for p in ours.parameters()]
    state = copy.deepcopy(mine.state_dict()["state"])
    for parameter in ours.parameters():
        assert parameter.grad is not None
        parameter.grad.view(-1)[3] = float("inf")
    mine.found_inf = torch.ones(()).as_subclass(where)
    mine.step()
    assert all(torch.equal(p, before) for p, before in zip(ours.parameters(), weights, strict=True))
    for number, values in mine.state_dict()["state"].items():
        for key, value in values.items():
            assert torch.equal(value, torch.zeros_like(value) if first else state[number][key]), key

    theirs = copy.deepcopy(ours)  # and a good one is made as if there had been no bad one
    other: Any = optimizer(theirs)
    if not first:
        other.load_state_dict({**mine.state_dict(), "state": state})
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        a.grad = torch.randn_like(a)
        b.grad = a.grad.clone()
    mine.found_inf = torch.zeros(()).as_subclass(where)
    mine.step()
    other.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-6)


def test_the_scaling_of_fp16_goes_with_it() -> None:
    ours, theirs = small(), small()
    theirs.load_state_dict(ours.state_dict())
    mine, other = optimizer(ours, fused=False), optimizer(theirs, fused=False)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.zeros(()))  # it begins with the first loss
    for bad in (False, True, False):
        before = copy.deepcopy(ours)
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            gradient = torch.randn_like(a)
            a.grad, b.grad = 1024 * gradient if not bad else gradient / 0, gradient
        scaler.step(mine)
        scaler.update(1024.0)
        if bad:
            assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), before.parameters(), strict=True))
        else:
            other.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_the_losses_of_twenty_steps_are_golden(run: Any, tmp_path: Any) -> None:
    words = ("optim=muon", "optim.nor_beta=0", "schedule=wsd", "model.n_kv_head=1", "model.mlp=swiglu")
    run(tmp_path, *words, "trainer.max_steps=20", "trainer.val_every=20", "trainer.sample_tokens=0")
    assert curve(tmp_path) == pytest.approx(GOLDEN, abs=1e-3)  # what is turned is sensitive to rounding


def test_a_model_without_blocks_is_refused_before_anything_starts(compose: Any, tmp_path: Any) -> None:
    with pytest.raises(UserError, match=r"a Bigram has none: use optim=adamw"):
        fit(compose("model=bigram", "data=text", "trainer=cpu", "optim=muon"), tmp_path)
    assert not list(tmp_path.iterdir())
