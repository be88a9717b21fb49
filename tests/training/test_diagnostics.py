"""What TensorBoard's vitals_* say of the inside of a model, and that measuring changes nothing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from gptlab import models
from gptlab.data.batches import IGNORED
from gptlab.data.tokenizers import BPETokenizer, CharTokenizer
from gptlab.models import Bigram, GPTConfig
from gptlab.models.bigram import BigramConfig
from gptlab.models.positions import alibi_slopes
from gptlab.system.errors import UserError
from gptlab.training.callbacks.diagnostics import look_inside, parameters_by_block, token_labels
from tests.training.runs_compared import points, rows

V, T, B, C = 29, 13, 5, 33
SIZE: dict[str, Any] = {"vocab_size": V, "block_size": T, "n_layer": 2, "n_head": 3, "n_embd": C}
ODD: dict[str, dict[str, Any]] = {
    "no attention": {"attention": "none"},
    "no mlp": {"mlp": "none"},
    "one key head": {"n_kv_head": 1, "pos": "rope", "n_embd": 30, "qk_norm": True},
    "alibi and a window": {"pos": "alibi", "window": 4},
    "a loop over heads": {"attention": "per_head", "pos": "sinusoidal"},
    "post-norm": {"norm_place": "post", "attn_proj": False},
    "nothing learned yet": {"tied": False, "zero_init": True, "head_bias": True},
    "parallel, recomputed": {"parallel": True, "gradient_checkpointing": True},
}


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """The last 4 targets of the last row are masked, as at the end of a short split."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(V, (B, T + 1), generator=generator)
    targets = ids[:, 1:].clone()
    targets[-1, -4:] = IGNORED
    return ids[:, :-1], targets


def build(**switches: Any) -> models.Model:
    torch.manual_seed(7)
    model = models.build(GPTConfig(**(SIZE | switches)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # attention far from uniform
    return model


@pytest.mark.parametrize("switches", [{}, {"n_kv_head": 1}, {"pos": "alibi", "window": 4}, {"attention": "per_head"}])
def test_entropies_are_those_of_the_attention_weights(switches: dict[str, Any]) -> None:
    """Of the first block, computed here head by head and position by position."""
    model = build(**switches)
    idx, targets = batch()
    shown = look_inside(model, idx, targets)
    config, block = model.config, model.h[0]
    D, K = C // config.n_head, config.kv_heads
    with torch.no_grad():
        x = model.wte(idx) + (0 if model.wpe is None else model.wpe.weight)
        q, k, _ = block.attn.c_attn(block.ln_1(x)).double().split((C, K * D, K * D), dim=-1)
    for h in range(config.n_head):
        g, entropies = h * K // config.n_head, []
        for b in range(B):
            for t in range(T):
                if targets[b, t] == IGNORED:
                    continue
                first = max(t + 1 - (config.window or T), 0)
                scores = k[b, first : t + 1, g * D : (g + 1) * D] @ q[b, t, h * D : (h + 1) * D] / math.sqrt(D)
                if config.pos == "alibi":
                    scores = scores - alibi_slopes(config.n_head)[h] * torch.arange(t - first, -1, -1)
                p = scores.softmax(0)
                entropies.append(-(p * p.log()).sum())
        expected = torch.stack(entropies).mean().item()
        assert shown[f"vitals_attention_entropy/h.0.head.{h}"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("window", [None, 4])
def test_uniform_attention_has_the_entropy_that_is_drawn_for_comparison(window: int | None) -> None:
    model = build(window=window)
    for block in model.h:
        torch.nn.init.zeros_(block.attn.c_attn.weight)
        torch.nn.init.zeros_(block.attn.c_attn.bias)
    idx, targets = batch()
    shown = look_inside(model, idx, targets)
    sizes = [min(t + 1, window or T) for b in range(B) for t in range(T) if targets[b, t] != IGNORED]
    expected = sum(map(math.log, sizes)) / len(sizes)
    heads = [f"h.{i}.head.{h}" for i in range(2) for h in range(3)]
    for name in (*heads, "uniform"):
        assert shown[f"vitals_attention_entropy/{name}"] == pytest.approx(expected, abs=1e-5)


def test_losses_by_position_add_up_to_the_loss(text_file: Path) -> None:
    model = build()
    idx, targets = batch()
    shown = look_inside(model, idx, targets)
    buckets = {"0": (0, 1), "1": (1, 2), "2-3": (2, 4), "4-7": (4, 8), "8-12": (8, 13)}
    assert {tag.partition("/")[2] for tag in shown if "position" in tag} == set(buckets)
    with torch.no_grad():
        loss = F.cross_entropy(model(idx).flatten(0, 1), targets.flatten(), reduction="sum").item()
    counts = {name: int((targets[:, a:b] != IGNORED).sum()) for name, (a, b) in buckets.items()}
    total = sum(shown[f"vitals_loss_by_position/{name}"] * count for name, count in counts.items())
    assert total == pytest.approx(loss, rel=1e-5)
    with torch.no_grad():
        first = F.cross_entropy(model(idx[:, :1])[:, 0], targets[:, 0]).item()
    assert shown["vitals_loss_by_position/0"] == pytest.approx(first, rel=1e-5)


def test_activations_are_those_after_each_block() -> None:
    model = build(pos="none")
    idx, targets = batch()
    shown = look_inside(model, idx, targets)
    x = model.wte(idx)
    for i, block in enumerate(model.h):
        x = block(x, models.layers.PassContext(None, None))
        rms = x[targets != IGNORED].square().mean().sqrt().item()
        assert shown[f"vitals_activation_rms/h.{i}"] == pytest.approx(rms, rel=1e-5)


def state(model: models.Model) -> list[Any]:
    """What of the modules a look inside touches."""
    return [(module.training, list(module._forward_hooks), vars(module).get("attention")) for module in model.modules()]


@pytest.mark.parametrize("name", ODD)
def test_every_architecture_can_be_looked_into_and_is_left_as_it_was(name: str) -> None:
    model = build(**ODD[name]).train()
    before = state(model)
    shown = look_inside(model, *batch())
    assert state(model) == before
    assert all(map(math.isfinite, shown.values()))
    has_attention = ODD[name].get("attention") != "none"
    assert len([tag for tag in shown if "entropy" in tag]) == (7 if has_attention else 0)
    assert len([tag for tag in shown if "rms" in tag]) == 2


def test_a_failing_forward_leaves_the_model_as_it_was() -> None:
    model = build().train()
    before = state(model)
    idx, targets = batch()
    with pytest.raises(IndexError):
        look_inside(model, idx + V, targets)
    assert state(model) == before


def test_a_bigram_has_no_blocks() -> None:
    shown = look_inside(Bigram(BigramConfig(vocab_size=V, block_size=T)), *batch())
    assert {tag.partition("/")[0] for tag in shown} == {"vitals_loss_by_position"}


def test_blocks_hold_every_parameter_once() -> None:
    model = build(tied=False)
    grouped = parameters_by_block(model)
    assert list(grouped) == ["wte", "wpe", "h.0", "h.1", "ln_f", "lm_head"]
    assert sum(p.numel() for parameters in grouped.values() for p in parameters) == model.num_parameters()


@pytest.mark.parametrize("micro", ["null", "2"])
def test_norms_are_those_of_the_step(run: Any, tmp_path: Path, micro: str) -> None:
    """The update is the difference of the checkpoints before and after; the gradients' norms make up `grad_norm`."""
    fixed = ("schedule.decay_steps=7", "model.dropout=0.1", f"data.micro_batch_size={micro}", "optim.grad_clip=0.01")
    run(tmp_path / "6", *fixed, "trainer.max_steps=6", "trainer.diagnose_every=0")
    run(tmp_path / "7", *fixed, "trainer.max_steps=7", "trainer.diagnose_every=7")
    before, after = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for name in "67"
    )
    shown = {tag: series for tag, series in points(tmp_path / "7").items() if tag.startswith("vitals")}
    assert {step for series in shown.values() for step, _ in series} == {7}
    keys = [key for key in after if key.startswith("model.h.1.")]
    update = torch.cat([(after[key] - before[key]).flatten() for key in keys]).norm().item()
    weight = torch.cat([after[key].flatten() for key in keys]).norm().item()
    assert shown["vitals_update_norm/h.1"][0][1] == pytest.approx(update, rel=1e-5)
    assert shown["vitals_update_ratio/h.1"][0][1] == pytest.approx(update / weight, rel=1e-5)
    norms = [series[0][1] for tag, series in shown.items() if tag.startswith("vitals_gradient_norm/")]
    assert len(norms) == 5
    unclipped = float(rows(tmp_path / "7")[-2]["grad_norm"])
    assert unclipped > 0.1
    assert math.sqrt(sum(norm**2 for norm in norms)) == pytest.approx(unclipped, rel=1e-5)


@pytest.mark.parametrize(
    "extra",
    [
        (),
        ("compile=inductor", "compile.backend=aot_eager", "model.n_layer=1"),
        pytest.param(("precision=bf16",), marks=pytest.mark.slow),  # where the processor has none
    ],
)
def test_looking_changes_no_bit_of_the_run(run: Any, tmp_path: Path, extra: tuple[str, ...]) -> None:
    graphs = {}
    for every in (0, 2):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        run(tmp_path / str(every), "model.dropout=0.2", f"trainer.diagnose_every={every}", *extra)
        graphs[every] = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    off, on = tmp_path / "0", tmp_path / "2"
    a, b = (torch.load(d / "checkpoints" / "last.ckpt", weights_only=True) for d in (off, on))
    assert all(torch.equal(a["state_dict"][key], b["state_dict"][key]) for key in a["state_dict"])
    assert all(torch.equal(a["training"][key], b["training"][key]) for key in a["training"])
    assert rows(off) == rows(on)
    assert graphs[0] == graphs[2]
    assert (graphs[2] > 0) == ("compile=inductor" in extra)
    assert "vitals_activation_rms/h.0" in points(on)


def test_the_switch_turns_all_of_it_off(run: Any, tmp_path: Path) -> None:
    run(tmp_path, "trainer.diagnose_every=0")
    assert not [tag for tag in points(tmp_path) if tag.startswith("vitals")]
    assert not (tmp_path / "plugins").exists()


@pytest.mark.parametrize("extra", [("model=bigram",), ("precision=bf16_true", "model.pos=alibi")])
def test_other_runs_are_looked_into_as_well(run: Any, compose: Any, tmp_path: Path, extra: tuple[str, ...]) -> None:
    from gptlab.training.fit import fit

    fit(
        compose("data=text", "trainer=cpu", "trainer.max_steps=2", "trainer.diagnose_every=1", *extra),
        tmp_path,
    )
    shown = points(tmp_path)
    assert [step for step, _ in shown["vitals_update_ratio/wte"]] == [1, 2]
    assert (tmp_path / "plugins").exists()


def test_a_wrong_interval_is_refused(compose: Any) -> None:
    with pytest.raises(UserError, match=r"trainer.diagnose_every=-1: must be at least 1, or 0 for never"):
        compose("trainer.diagnose_every=-1")


def test_labels_are_one_readable_line_each() -> None:
    assert token_labels(CharTokenizer("\t\n\r #'é\u2028")) == ["\\t", "\\n", "\\r", "␣", "#", "'", "é", "\\u2028"]
    shown = token_labels(BPETokenizer.fit(["a cat sat on a mat\n" * 9], 257))
    assert len(set(shown)) == 257
    assert all(len(label.splitlines()) == 1 and "\t" not in label and label.strip() for label in shown)
