"""Every switch of the GPT does what it says, alone and beside each value of every other."""

from __future__ import annotations

import dataclasses
import math
from itertools import combinations, product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from gptlab import models
from gptlab.models import GPT, GPTConfig
from gptlab.models.layers import (
    CausalConv,
    arange_on,
    attention_bias,
    first_pass,
    rotary_table,
    rotate,
    sinusoids,
)
from gptlab.models.positions import alibi_slopes, geometric_periods
from gptlab.system.errors import UserError
from tests.generation.contexts import context_for, logits_of

V, T, B, L, H, C = 37, 13, 3, 2, 6, 60
D = C // H
SIZES = {"vocab_size": V, "block_size": T, "n_layer": L, "n_head": H, "n_embd": C}
CPU = torch.device("cpu")

SWITCHES: dict[str, tuple[Any, ...]] = {
    "norm": ("layernorm", "rmsnorm", "none"),
    "norm_place": ("pre", "post"),
    "norm_weight": (True, False),
    "embed_norm": (False, True),
    "pos": ("learned", "sinusoidal", "rope", "rope llama3", "rope yarn, part", "alibi", "none"),
    "mlp": ("gelu", "gelu_exact", "relu", "relu2", "swiglu", "geglu", "none"),
    "mlp_proj": (True, False),
    "n_inner": (None, 53),
    "attention": ("sdpa", "manual", "per_head", "none"),
    "attn_proj": (True, False),
    "attn_scale": (True, False),
    "n_kv_head": (None, 1, 2),
    "head_dim": (None, 14),
    "qk_norm": (False, True),
    "window": (None, 5),
    "residual": (True, False),
    "conv": (None, 4),
    "parallel": (False, True, "with two norms"),
    "logit_softcap": (None, 3.0),
    "init": ("gpt2", "torch"),
    "zero_init": (False, True),
    "tied": (True, False),
    "head_bias": (False, True),
    "bias": (True, False),
    "qkv_bias": (None, True, False),
    "gradient_checkpointing": (False, True),
}
# Without its owner a switch shows nothing.
OWNED = {
    "attention": {"attn_proj", "attn_scale", "n_kv_head", "head_dim", "qk_norm", "window", "qkv_bias"},
    "mlp": {"mlp_proj", "n_inner"},
    "norm": {"norm_weight", "embed_norm"},
}
Row = dict[str, Any]
Pair = frozenset[tuple[str, Any]]


COMPOUND: dict[Any, Row] = {  # values that take more than one key
    "rope linear": {"pos": "rope", "rope_scaling": "linear", "rope_factor": 4.0},
    "rope llama3": {"pos": "rope", "rope_scaling": "llama3", "rope_factor": 4.0, "rope_original_size": 31}
    | {"rope_low_freq_factor": 0.5, "rope_high_freq_factor": 3.0},
    "rope yarn, part": {"pos": "rope", "rope_fraction": 0.6, "rope_scaling": "yarn", "rope_factor": 4.0}
    | {"rope_original_size": 31, "rope_beta_slow": 0.5, "rope_beta_fast": 3.0, "rope_attention_factor": 1.5},
    "with two norms": {"parallel": True, "parallel_norms": True},
}


def config(**fields: Any) -> GPTConfig:
    compound = [COMPOUND.get(fields.get(name), {}) for name in ("pos", "parallel")]
    return GPTConfig(**(SIZES | fields | compound[0] | compound[1]))


def possible(row: Row) -> bool:
    try:
        config(**row)
    except UserError:
        return False
    return True


def pairs(row: Row) -> set[Pair]:
    """Any two values of the row that show."""
    idle = {name for owner, names in OWNED.items() if row.get(owner) == "none" for name in names}
    return {frozenset(pair) for pair in combinations([item for item in row.items() if item[0] not in idle], 2)}


def all_pairs() -> list[Row]:
    return [{a: x, b: y} for a, b in combinations(SWITCHES, 2) for x, y in product(SWITCHES[a], SWITCHES[b])]


def covering_rows() -> list[Row]:
    """Few rows that hold every possible pair: each begins with a missing pair and takes what adds most."""
    missing = {pair: None for start in all_pairs() if possible(start) for pair in pairs(start)}
    rows = []
    while missing:
        row = dict(next(iter(missing)))
        for name in sorted(SWITCHES.keys() - row.keys(), key=lambda name: (-len(SWITCHES[name]), name)):
            choices = [row | {name: value} for value in SWITCHES[name] if possible(row | {name: value})]
            row = max(choices, key=lambda choice: len(pairs(choice) & missing.keys()))
        rows.append(row)
        for pair in pairs(row):
            missing.pop(pair, None)
    return rows


def covering_values(rows: list[Row]) -> list[Row]:
    """Few of the rows, that hold every value of every switch where it shows: each is the one that adds most."""
    shown = {number: {item for pair in pairs(row) for item in pair} for number, row in enumerate(rows)}
    missing, chosen = set().union(*shown.values()), []
    while missing:
        chosen.append(max(shown, key=lambda number: len(shown[number] & missing)))
        missing -= shown[chosen[-1]]
    return [rows[number] for number in chosen]


ROWS = covering_rows()
FEW_ROWS = covering_values(ROWS)


def each(rows: list[Row], slow: list[Row] | None = None) -> pytest.MarkDecorator:
    """A test of each row; of those in `slow` where there is time."""
    marks = [pytest.mark.slow if row in (slow or []) else () for row in rows]
    params = [pytest.param(row, marks=mark, id=str(ROWS.index(row))) for row, mark in zip(rows, marks, strict=True)]
    return pytest.mark.parametrize("row", params)


def gpt(**fields: Any) -> GPT:
    torch.manual_seed(7)
    return GPT(config(**fields))


def lively(**fields: Any) -> GPT:
    """A model with weights of a size at which every part shows in the logits and none overwhelms the others."""
    model = gpt(**fields)
    draw = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(parameter.dim() == 1).add_(torch.randn(parameter.shape, generator=draw), alpha=0.15)
    return model


def tokens(*shape: int, seed: int = 3) -> Tensor:
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(seed))


def loss_of(model: Any) -> Tensor:
    return F.cross_entropy(model(tokens(B, T)).flatten(0, 1), tokens(B, T, seed=5).flatten())


def loss_and_gradients(model: GPT, run: Any = None) -> tuple[Tensor, dict[str, Tensor | None]]:
    """In 64 bits, so that a difference is one of the formula; `run` may be the compiled model."""
    model.double()
    loss = loss_of(model if run is None else run)
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


def test_all_pairs_of_values_are_tested_but_those_refused() -> None:
    wanted = [start for start in all_pairs() if possible(start)]
    assert set().union(*(pairs(start) for start in wanted)) == set().union(*map(pairs, ROWS))
    refused = [start for start in all_pairs() if not possible(start)]
    assert refused == [
        {"norm_place": "post", "parallel": "with two norms"},
        {"mlp": "none", "attention": "none"},
        {"mlp": "none", "parallel": True},
        {"mlp": "none", "parallel": "with two norms"},
        {"mlp_proj": False, "n_inner": 53},
        {"attention": "none", "parallel": True},
        {"attention": "none", "parallel": "with two norms"},
        {"attn_proj": False, "head_dim": 14},
        {"residual": False, "zero_init": True},
    ]
    assert {name for row in ROWS for name in row} == set(SWITCHES)


def test_every_switch_is_tested() -> None:
    rates = {"dropout", "attn_dropout"}
    others = {"vocab_size", "block_size", "n_layer", "n_head", "n_embd", "norm_eps", "rope_base"}
    others |= set().union(*COMPOUND.values()) - {"pos", "parallel"}
    assert set(SWITCHES) | others | rates == {field.name for field in dataclasses.fields(GPTConfig)}


@each(ROWS)
def test_a_changed_token_changes_no_bit_of_the_logits_before_it(row: Row) -> None:
    model = lively(**row)
    idx = tokens(B, T)
    before = model(idx)
    assert before.isfinite().all()
    for t in range(T):
        changed = idx.clone()
        changed[:, t] = (changed[:, t] + 1) % V
        after = model(changed)
        assert torch.equal(after[:, :t], before[:, :t])
        assert (after[:, t] != before[:, t]).any(dim=-1).all()


@each(ROWS)
@pytest.mark.parametrize("lengths", [(7,), (4, 1, 9), (T + 5, 2)])
def test_a_cache_changes_no_token_and_no_logit_within_a_block_and_beyond(row: Row, lengths: tuple[int, ...]) -> None:
    model = lively(**row).double()  # where rounding does not hide a mistake
    prompts = [tokens(1, n)[0].tolist() for n in lengths]
    kept, anew = context_for(model, prompts, room=T + 5), context_for(model, prompts, room=0, cache=False)
    for _ in range(T + 5):
        a, b = logits_of(kept), logits_of(anew)
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
        for context in (kept, anew):
            context.append(b[:, -1].argmax(dim=-1))


@each(ROWS)
@pytest.mark.parametrize("lengths", [(T,), (1, T - 1), (4, 1, T - 6)])
def test_a_text_in_a_row_of_several_is_as_if_it_were_alone(row: Row, lengths: tuple[int, ...]) -> None:
    model = lively(**row).double()
    idx = tokens(B, T)
    left = T - sum(lengths)  # padding, a text of its own
    places = torch.cat([torch.arange(n) for n in (*lengths, *[1] * left)]).expand(B, T)
    packed = model(idx, places=places)
    alone = [model(part) for part in idx.split([*lengths, *[1] * left], dim=1)]
    torch.testing.assert_close(packed, torch.cat(alone, dim=1), rtol=1e-9, atol=1e-9)
    changed = idx.clone()
    changed[:, 0] = (changed[:, 0] + 1) % V
    after = model(changed, places=places)
    assert torch.equal(after[:, lengths[0] :], packed[:, lengths[0] :])
    assert not torch.equal(after[:, 0], packed[:, 0])


@each(ROWS)
def test_every_parameter_learns(row: Row) -> None:
    _, gradients = loss_and_gradients(lively(**row))
    for name, gradient in gradients.items():
        assert gradient is not None, name
        assert gradient.any(), name


def parameters(
    *,
    norm: str,
    norm_place: str,
    norm_weight: bool,
    embed_norm: bool,
    pos: str,
    mlp: str,
    mlp_proj: bool,
    n_inner: int | None,
    attention: str,
    attn_proj: bool,
    n_kv_head: int | None,
    head_dim: int | None,
    qk_norm: bool,
    conv: int | None,
    parallel: bool | str,
    tied: bool,
    head_bias: bool,
    bias: bool,
    qkv_bias: bool | None,
    **others: Any,
) -> int:
    """Counted by hand: for each matrix, in * out and out biases."""
    one_norm = {"layernorm": (1 + bias) * norm_weight, "rmsnorm": norm_weight, "none": 0}[norm] * C
    size = head_dim or D
    qkv = (H + 2 * (n_kv_head or H)) * size
    attend = C * qkv + (bias if qkv_bias is None else qkv_bias) * qkv
    attend += C * (conv or 0) + attn_proj * (H * size * C + bias * C) + qk_norm * norm_weight * 2 * size
    gated = mlp in ("swiglu", "geglu")
    hidden = n_inner or (C if not mlp_proj else 160 if gated else 4 * C)
    feed = (1 + gated) * (C * hidden + bias * hidden) + mlp_proj * (hidden * C + bias * C) + C * (conv or 0)
    two = parallel in (False, "with two norms")
    block = (attention != "none") * (one_norm + attend) + (mlp != "none") * (two * one_norm + feed)
    ends = (pos == "learned") * T * C + ((norm_place == "pre") + embed_norm) * one_norm + head_bias * V
    return V * C * (1 if tied else 2) + L * block + ends


@each(ROWS)
def test_parameters_are_as_many_as_counted_by_hand(row: Row) -> None:
    assert gpt(**row).num_parameters() == parameters(**row)


@each(ROWS)
def test_counted_flops_are_those_that_torch_counts(row: Row) -> None:
    # Fused attention skips products of the future, a window's are computed whole, and recomputing is not progress.
    attention = "none" if row["attention"] == "none" else "manual"
    model = gpt(**row | {"attention": attention, "window": None, "gradient_checkpointing": False})
    with FlopCounterMode(display=False) as counter:
        loss_of(model).backward()
    assert counter.get_total_flops() == B * T * model.flops_per_token()


@pytest.mark.parametrize(("attention", "window", "fewer"), [("sdpa", 5, T - 5), ("sdpa", T + 1, 0), ("none", 5, 0)])
def test_a_window_saves_the_products_with_what_lies_outside_it(attention: str, window: int, fewer: int) -> None:
    saved = gpt(attention=attention).flops_per_token() - gpt(attention=attention, window=window).flops_per_token()
    assert saved == 12 * L * fewer * C


@each([row for row in ROWS if row["attention"] != "none"])
def test_fused_written_out_and_looped_attention_are_the_same(row: Row) -> None:
    expected = loss_and_gradients(lively(**row))
    for attention in {"sdpa", "manual", "per_head"} - {row["attention"]}:
        actual = loss_and_gradients(lively(**row | {"attention": attention}))
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@each(ROWS, slow=[row for row in ROWS if row not in FEW_ROWS])  # compiling takes seconds
def test_compiled_and_eager_are_the_same(row: Row) -> None:
    torch._dynamo.reset()
    row = row | {"n_layer": 1}
    expected = loss_and_gradients(lively(**row))
    model = lively(**row)
    actual = loss_and_gradients(model, torch.compile(model, backend="aot_eager", fullgraph=True))
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@each(ROWS)
@pytest.mark.parametrize("autocast", [True, False])
def test_half_precision_is_about_right(row: Row, autocast: bool) -> None:
    model = lively(**row)
    exact = model(tokens(B, T))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        half = (model if autocast else model.bfloat16())(tokens(B, T))
    assert half.dtype == torch.bfloat16
    assert (half - exact).norm() < 0.08 * exact.norm()


@each(ROWS)
def test_a_config_comes_back_from_its_dict(row: Row) -> None:
    assert models.from_dict(models.to_dict(config(**row))) == config(**row)


@each([row for row in ROWS if row["init"] == "gpt2"])
def test_an_untrained_gpt_is_as_unsure_as_a_uniform_guess(row: Row) -> None:
    assert loss_of(gpt(**row)).item() == pytest.approx(math.log(V), rel=0.05)


def papers_slopes(n: int) -> list[float]:
    """`get_slopes` of https://github.com/ofirpress/attention_with_linear_biases."""
    if math.log2(n).is_integer():
        start = 2 ** (-(2 ** -(math.log2(n) - 3)))
        return [start * start**i for i in range(n)]
    closest = 2 ** math.floor(math.log2(n))
    return papers_slopes(closest) + papers_slopes(2 * closest)[0::2][: n - closest]


@pytest.mark.parametrize("heads", [*range(1, 20), 32, 33, 47, 64, 71])
def test_alibis_slopes_are_the_papers(heads: int) -> None:
    assert alibi_slopes(heads).tolist() == pytest.approx(papers_slopes(heads))


def test_alibis_slopes_for_eight_heads_are_one_half_to_one_256th() -> None:
    assert alibi_slopes(8).tolist() == [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]


@pytest.mark.parametrize("window", [1, 5, T, T + 1])
@pytest.mark.parametrize("heads", [0, 3])
def test_attentions_bias_is_the_distance_times_the_slope_and_hides_the_rest(heads: int, window: int) -> None:
    slopes = torch.tensor([0.5, 0.3, 0.2]) if heads else None
    bias = attention_bias(torch.arange(T), torch.arange(T), window, slopes)
    assert bias.shape == (max(heads, 1), T, T)
    for h, i, j in product(range(max(heads, 1)), range(T), range(T)):
        seen = i - window < j <= i
        slope = 0.0 if slopes is None else slopes[h].item()
        assert bias[h, i, j].item() == pytest.approx(-slope * (i - j) if seen else -math.inf)


@pytest.mark.parametrize("width", [8, 11])
def test_sinusoids_are_the_papers(width: int) -> None:
    """Vaswani et al. 2017, 3.5."""
    table = sinusoids(torch.arange(T), width)
    assert table.shape == (T, width)
    for t, i in product(range(T), range(width)):
        angle = t / 10_000 ** (i // 2 * 2 / width)
        assert table[t, i].item() == pytest.approx(math.cos(angle) if i % 2 else math.sin(angle), abs=1e-6)


def into_the_blocks(model: GPT, idx: Tensor) -> Tensor:
    seen: list[Tensor] = []
    handle = model.h[0].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    model(idx)
    handle.remove()
    return seen[0]


def test_sinusoids_are_added_to_scaled_embeddings() -> None:
    model, idx = lively(pos="sinusoidal"), tokens(B, 7)
    expected = model.wte.weight[idx] * math.sqrt(C) + sinusoids(torch.arange(T), C)[:7]
    torch.testing.assert_close(into_the_blocks(model, idx), expected)


def test_learned_positions_are_added_to_embeddings() -> None:
    model, idx = lively(), tokens(B, 7)
    assert model.wpe is not None
    torch.testing.assert_close(into_the_blocks(model, idx), model.wte.weight[idx] + model.wpe.weight[:7])


@pytest.mark.parametrize("pos", ["rope", "alibi", "none"])
def test_other_positions_leave_the_embeddings_alone(pos: str) -> None:
    model, idx = lively(pos=pos), tokens(B, 7)
    assert torch.equal(into_the_blocks(model, idx), model.wte.weight[idx])


@pytest.mark.parametrize("base", [100.0, 10_000.0])
def test_rotation_is_that_of_complex_numbers(base: float) -> None:
    """RoFormer, Su et al. 2021, equation 14."""
    x = torch.randn(B, H, T, D, generator=torch.Generator().manual_seed(1))
    turned = rotate(x, rotary_table(torch.arange(T), 1 / geometric_periods(D, base, arange_on(CPU))))
    for t, i in product(range(T), range(D // 2)):
        angle = t / base ** (2 * i / D)
        expected = torch.complex(x[:, :, t, i], x[:, :, t, i + D // 2]) * complex(math.cos(angle), math.sin(angle))
        torch.testing.assert_close(turned[:, :, t, i], expected.real)
        torch.testing.assert_close(turned[:, :, t, i + D // 2], expected.imag)


def test_rotation_keeps_lengths_and_leaves_the_first_position() -> None:
    x = torch.randn(B, H, T, D, generator=torch.Generator().manual_seed(1))
    turned = rotate(x, rotary_table(torch.arange(T), 1 / geometric_periods(D, 10_000.0, arange_on(CPU))))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(turned[:, :, 0], x[:, :, 0])
    assert not torch.isclose(turned[:, :, 1], x[:, :, 1]).all(dim=-1).any()


def test_what_does_not_turn_stays_as_it_is() -> None:
    x = torch.randn(B, H, T, D, generator=torch.Generator().manual_seed(1))
    table = rotary_table(torch.arange(T), 1 / geometric_periods(4, 100.0, arange_on(CPU)))
    assert torch.equal(rotate(x, table)[..., 4:], x[..., 4:])
    torch.testing.assert_close(rotate(x, table)[..., :4], rotate(x[..., :4], table))


def test_rotated_products_depend_on_the_distance_only() -> None:
    q, k = torch.randn(2, D, generator=torch.Generator().manual_seed(1))
    table = rotary_table(torch.arange(T), 1 / geometric_periods(D, 10_000.0, arange_on(CPU)))
    products = rotate(q.expand(1, 1, T, D), table)[0, 0] @ rotate(k.expand(1, 1, T, D), table)[0, 0].T  # (T, T)
    for distance in range(-T + 1, T):
        same = products.diagonal(distance)
        torch.testing.assert_close(same, same[:1].expand_as(same), atol=1e-5, rtol=1e-5)
    assert products[0].std() > 0.1


@pytest.mark.parametrize("attention", ["sdpa", "manual", "per_head"])
@pytest.mark.parametrize("pos", ["learned", "rope", "alibi"])
@pytest.mark.parametrize("n_layer", [1, 2, 3])
def test_a_window_reaches_back_its_width_less_one_in_each_block(attention: str, pos: str, n_layer: int) -> None:
    model = lively(attention=attention, pos=pos, n_layer=n_layer, window=4)
    idx = tokens(1, T)
    for t in range(T):
        changed = idx.clone()
        changed[:, t] = (changed[:, t] + 1) % V
        touched = (model(changed) != model(idx)).any(dim=-1)[0].nonzero().flatten().tolist()
        assert touched == list(range(t, min(t + n_layer * (4 - 1) + 1, T)))


@pytest.mark.parametrize("window", [T, T + 7])
@pytest.mark.parametrize("pos", ["learned", "alibi"])
def test_a_window_as_wide_as_the_text_hides_nothing(pos: str, window: int) -> None:
    assert torch.equal(lively(pos=pos, window=window)(tokens(B, T)), lively(pos=pos)(tokens(B, T)))


def scale_queries(model: GPT, factor: float) -> GPT:
    with torch.no_grad():
        for block in model.h:
            for parameter in block.attn.c_attn.parameters():
                parameter[:C] *= factor
    return model


@pytest.mark.parametrize("pos", ["learned", "rope"])
def test_normed_queries_and_keys_forget_their_size(pos: str) -> None:
    idx = tokens(B, T)
    normed, plain = ({"pos": pos, "qk_norm": qk_norm, "norm_eps": 1e-12} for qk_norm in (True, False))
    torch.testing.assert_close(scale_queries(lively(**normed), 7)(idx), lively(**normed)(idx))
    assert (scale_queries(lively(**plain), 7)(idx) - lively(**plain)(idx)).abs().max() > 0.1


def test_scores_are_divided_by_the_root_of_the_head_size() -> None:
    unscaled = scale_queries(lively(attn_scale=False), D**-0.5)
    torch.testing.assert_close(lively()(tokens(B, T)), unscaled(tokens(B, T)))
    assert (lively()(tokens(B, T)) - lively(attn_scale=False)(tokens(B, T))).abs().max() > 0.1


@pytest.mark.parametrize("kv_heads", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_grouped_heads_are_full_ones_whose_keys_and_values_are_copies(kv_heads: int, bias: bool) -> None:
    """GQA, Ainslie et al. 2023: neighbours share."""
    grouped, full = lively(n_kv_head=kv_heads, bias=bias), lively(bias=bias)
    state = grouped.state_dict()
    for name in [name for name in state if "c_attn" in name]:
        q, k, v = state[name].split([C, kv_heads * D, kv_heads * D])
        k, v = (x.unflatten(0, (kv_heads, D)).repeat_interleave(H // kv_heads, 0).flatten(0, 1) for x in (k, v))
        state[name] = torch.cat((q, k, v))
    full.load_state_dict(state)
    torch.testing.assert_close(grouped(tokens(B, T)), full(tokens(B, T)))


def by_hand(model: GPT, idx: Tensor) -> Tensor:
    """The logits, from the parts of the model."""
    c, x = model.config, into_the_blocks(model, idx)
    for block in model.h:
        ln_1, ln_2, attn, mlp = (getattr(block, name, None) for name in ("ln_1", "ln_2", "attn", "mlp"))

        def attend(x: Tensor, attn: Any = attn) -> Tensor:
            return attn(x, first_pass(c, x.shape[1], CPU))

        if c.parallel:
            x = x + attend(ln_1(x)) + mlp((ln_2 if c.parallel_norms else ln_1)(x))
        elif c.norm_place == "post":
            x = ln_1(x + attend(x))
            x = ln_2(x + mlp(x))
        elif not c.residual:
            x = mlp(ln_2(attend(ln_1(x))))
        elif c.attention == "none":
            x = x + mlp(ln_2(x))
        elif c.mlp == "none":
            x = x + attend(ln_1(x))
        else:
            x = x + attend(ln_1(x))
            x = x + mlp(ln_2(x))
    return (x if c.norm_place == "post" else model.ln_f(x)) @ model.wte.weight.T


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"norm_place": "post"},
        {"parallel": True},
        {"parallel": "with two norms"},
        {"residual": False},
        {"attention": "none"},
        {"mlp": "none"},
    ],
)
def test_a_block_is_wired_as_its_switches_say(fields: Row) -> None:
    model, idx = lively(**fields), tokens(B, T)
    torch.testing.assert_close(model(idx), by_hand(model, idx), atol=1e-5, rtol=1e-5)
    modules = dict(model.named_modules())
    assert ("h.0.ln_1" in modules) == ("h.0.attn" in modules) == (fields != {"attention": "none"})
    assert ("h.0.mlp" in modules) == (fields != {"mlp": "none"})
    assert ("h.0.ln_2" in modules) == (fields not in ({"parallel": True}, {"mlp": "none"}))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("weight", [True, False])
@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm", "none"])
def test_norms_are_the_papers(norm: str, weight: bool, bias: bool) -> None:
    layer = lively(norm=norm, norm_weight=weight, bias=bias, norm_eps=0.3).ln_f
    x = torch.randn(B, T, C, generator=torch.Generator().manual_seed(1)) * 3 + 2
    if norm == "layernorm":  # Ba et al. 2016
        expected = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 0.3).sqrt()
    elif norm == "rmsnorm":  # Zhang & Sennrich 2019
        expected = x / (x.square().mean(-1, keepdim=True) + 0.3).sqrt()
    else:
        expected = x
    learned = dict(layer.named_parameters())
    assert set(learned) == ({"weight"} if weight and norm != "none" else set()) | (
        {"bias"} if weight and bias and norm == "layernorm" else set()
    )
    torch.testing.assert_close(layer(x), expected * learned.get("weight", 1) + learned.get("bias", 0))


FORMULAS = {
    "gelu": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "gelu_exact": lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
    "relu": lambda x: x.clamp(min=0),
    "relu2": lambda x: x.clamp(min=0) ** 2,
    "swiglu": lambda x: x / (1 + torch.exp(-x)),
}
FORMULAS["geglu"] = FORMULAS["gelu"]


@pytest.mark.parametrize("name", FORMULAS)
def test_feed_forwards_are_the_papers(name: str) -> None:
    """GPT-2's tanh GELU; Primer's squared ReLU; Shazeer 2020's gated units."""
    mlp = lively(mlp=name, n_inner=53).h[0].mlp
    x = torch.randn(B, T, C, generator=torch.Generator().manual_seed(1))
    hidden = x @ mlp.c_fc.weight.T + mlp.c_fc.bias
    gate, up = (hidden[..., :53], hidden[..., 53:]) if name.endswith("glu") else (hidden, 1)
    torch.testing.assert_close(mlp(x), (FORMULAS[name](gate) * up) @ mlp.c_proj.weight.T + mlp.c_proj.bias)


@pytest.mark.parametrize("width", [1, 2, 3, 33, 60, 128, 384, 768, 1601])
def test_gated_and_plain_feed_forwards_have_the_same_number_of_parameters_within_8_columns(width: int) -> None:
    def matrices(mlp: str) -> int:
        with torch.device("meta"):
            model = gpt(mlp=mlp, n_head=1, n_embd=width, n_layer=1)
        return sum(parameter.numel() for parameter in model.h[0].mlp.parameters() if parameter.dim() == 2)

    assert matrices("gelu") == matrices("relu") == 8 * width**2
    assert matrices("swiglu") == matrices("geglu")
    assert abs(matrices("swiglu") - matrices("gelu")) < 8 * 3 * width
    assert gpt(mlp="swiglu", n_head=1, n_embd=width, n_layer=1).config.hidden % 8 == 0


@pytest.mark.parametrize(("switch", "module"), [("attn_proj", "attn"), ("mlp_proj", "mlp")])
def test_without_a_projection_the_branch_ends_as_if_it_were_the_identity(switch: str, module: str) -> None:
    with_it, without = lively(n_inner=C), lively(n_inner=C, **{switch: False})
    with torch.no_grad():
        for block in with_it.h:
            projection = getattr(block, module).c_proj
            projection.weight.copy_(torch.eye(C))
            projection.bias.zero_()
    without.load_state_dict(with_it.state_dict(), strict=False)
    torch.testing.assert_close(without(tokens(B, T)), with_it(tokens(B, T)))


def test_capped_logits_stay_within_the_cap() -> None:
    idx = tokens(B, T)
    raw, capped = lively()(idx), lively(logit_softcap=1.3)(idx)
    assert raw.abs().max() > 1.3
    assert capped.abs().max() <= 1.3
    torch.testing.assert_close(capped, 1.3 * torch.tanh(raw / 1.3))
    torch.testing.assert_close(lively(logit_softcap=1e6)(idx), raw, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("init", ["gpt2", "torch"])
@pytest.mark.parametrize("fields", [{}, {"mlp": "swiglu", "pos": "rope", "norm": "rmsnorm"}, {"parallel": True}])
def test_blocks_that_begin_at_zero_let_everything_through(fields: Row, init: str) -> None:
    model = gpt(**fields, zero_init=True, init=init)
    x = torch.randn(B, T, C, generator=torch.Generator().manual_seed(1))
    for block in model.h:
        assert torch.equal(block(x, first_pass(model.config, T, CPU)), x)


@pytest.mark.parametrize("init", ["gpt2", "torch"])
@pytest.mark.parametrize("head_bias", [True, False])
def test_a_head_that_begins_at_zero_is_exactly_as_unsure_as_a_uniform_guess(head_bias: bool, init: str) -> None:
    model = gpt(zero_init=True, tied=False, head_bias=head_bias, init=init)
    assert not model(tokens(B, T)).any()
    assert loss_of(model).item() == pytest.approx(math.log(V), abs=1e-6)


def test_a_tied_head_does_not_begin_at_zero() -> None:
    assert gpt(zero_init=True, tied=True)(tokens(B, T)).std() > 0.05


@pytest.mark.parametrize("tied", [True, False])
def test_what_begins_at_zero_learns_all_the_same(tied: bool) -> None:
    model = gpt(zero_init=True, tied=tied)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[name]), name


def test_without_attention_and_positions_a_token_alone_decides() -> None:
    model, idx = lively(attention="none", pos="none"), tokens(B, T)
    torch.testing.assert_close(model(idx), model(idx.reshape(-1, 1)).view(B, T, V))
    for t in range(T):
        changed = idx.clone()
        changed[:, t] = (changed[:, t] + 1) % V
        touched = (model(changed) != model(idx)).any(dim=-1)
        assert touched[:, t].all()
        assert touched.sum() == B


def test_without_positions_the_order_of_what_came_before_does_not_matter() -> None:
    idx = tokens(B, T)
    swapped = torch.cat((idx[:, :-1].flip(1), idx[:, -1:]), dim=1)
    one_block = {"n_layer": 1}  # a second one sees how far each position had seen
    for pos in SWITCHES["pos"]:
        model = lively(pos=pos, **one_block)
        same = torch.isclose(model(idx)[:, -1], model(swapped)[:, -1], atol=1e-4).all()
        assert same == (pos == "none"), pos


def test_torchs_own_initialisation_is_the_lessons() -> None:
    model = gpt(init="torch", n_embd=302, n_head=2, tied=False, head_bias=True)
    assert model.wpe is not None
    for embedding in (model.wte, model.wpe):
        assert embedding.weight.std().item() == pytest.approx(1, rel=0.05)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):  # uniform up to 1 / sqrt(inputs), biases too
            limit = module.in_features**-0.5
            for parameter in module.parameters():
                assert parameter.abs().max() <= limit, name
                assert parameter.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.2), name


@pytest.mark.parametrize(("qkv_bias", "bias", "there"), [(None, True, True), (None, False, False), (True, False, True)])
def test_queries_keys_and_values_have_a_bias_of_their_own(qkv_bias: bool | None, bias: bool, there: bool) -> None:
    model = gpt(qkv_bias=qkv_bias, bias=bias)
    assert {name for name, _ in model.named_parameters() if name.endswith("c_attn.bias")} == (
        {"h.0.attn.c_attn.bias", "h.1.attn.c_attn.bias"} if there else set()
    )
    assert ("h.0.mlp.c_fc.bias" in dict(model.named_parameters())) == bias


@pytest.mark.parametrize("pos", ["rope", "alibi", "sinusoidal"])
def test_positions_are_exact_whatever_the_default_type(pos: str) -> None:
    """precision=bf16_true makes bf16 the default, which cannot tell position 257 from 256."""
    model, idx = gpt(pos=pos, block_size=300, n_embd=C), tokens(1, 300)
    expected = model(idx)
    try:
        torch.set_default_dtype(torch.bfloat16)
        found = model(idx)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(found, expected)


def test_a_convolution_adds_the_weighted_inputs_of_the_positions_before() -> None:
    conv = CausalConv(GPTConfig(**SIZES, conv=3), "attn")
    x = torch.randn(B, T, C)
    assert torch.equal(conv(x, first_pass(GPTConfig(**SIZES), T, CPU)), x)
    with torch.no_grad():
        conv.weight.copy_(torch.randn(conv.weight.shape))
    expected = x + F.conv1d(F.pad(x.mT, (2, 0)), conv.weight.permute(2, 1, 0), groups=C).mT
    torch.testing.assert_close(conv(x, first_pass(GPTConfig(**SIZES), T, CPU)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("width", [1, T + 1])
def test_a_convolution_is_as_wide_as_there_are_positions(width: int) -> None:
    with pytest.raises(UserError, match=rf"model.conv={width}: must be at least 2 and at most block_size={T}, or null"):
        GPTConfig(**SIZES, conv=width)
