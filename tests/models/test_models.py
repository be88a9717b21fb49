"""Every model keeps the contract, and the numbers are those of the papers."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from gptlab import models
from gptlab.models import GPT, Bigram, BigramConfig, GPTConfig
from gptlab.models.dropout import NO_DROPOUT, Drop
from gptlab.models.layers import CausalSelfAttention, PassContext
from gptlab.system.errors import UserError
from tests.conftest import ROOT

V, T, B = 101, 23, 5
TINY = {"vocab_size": V, "block_size": T, "n_layer": 2, "n_head": 3, "n_embd": 33}
VIDEO = {"qkv_bias": False, "tied": False, "head_bias": True, "mlp": "relu"}


def gpt(**fields: Any) -> GPT:
    torch.manual_seed(7)
    return GPT(GPTConfig(**{**TINY, **fields}))


def lively(model: GPT) -> GPT:
    """Weights so large that every part of the model shows in the logits, and biases that are not zero."""
    draw = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw), alpha=0.2)
    return model


def tokens(*shape: int, seed: int = 3) -> Tensor:
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(seed))


def loss_of(model: nn.Module, idx: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(model(idx).flatten(0, 1), targets.flatten())


def gradients(model: nn.Module) -> dict[str, Tensor]:
    assert all(p.grad is not None for p in model.parameters())
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("config", [GPTConfig(**TINY), GPTConfig(**TINY, **VIDEO), BigramConfig(V, T)])
@pytest.mark.parametrize("length", [1, 13, T])
def test_logits_are_batch_by_positions_by_vocabulary(config: models.ModelConfig, length: int) -> None:
    assert models.build(config)(tokens(B, length)).shape == (B, length, V)


@pytest.mark.parametrize("attention", ["sdpa", "manual"])
def test_a_changed_token_changes_no_bit_of_the_logits_before_it(attention: str) -> None:
    model = lively(gpt(attention=attention)).eval()
    idx = tokens(B, T)
    before = model(idx)
    for t in (0, 1, 7, 13, T - 1):
        changed = idx.clone()
        changed[:, t] = (changed[:, t] + 1) % V
        after = model(changed)
        assert torch.equal(after[:, :t], before[:, :t])
        assert (after[:, t:] != before[:, t:]).any(dim=-1).all()  # and all from it on see it


def test_a_bigram_sees_one_token_only() -> None:
    model = Bigram(BigramConfig(V, T))
    idx = tokens(B, T)
    assert torch.equal(model(idx)[:, 13], model(idx[:, 13:14])[:, 0])


@pytest.mark.parametrize("fields", [{}, VIDEO, {"bias": False}])
def test_manual_and_fused_attention_give_the_same_logits_and_gradients(fields: dict[str, Any]) -> None:
    results = []
    for attention in ("sdpa", "manual"):
        model = lively(gpt(attention=attention, **fields))
        loss_of(model, tokens(B, T), tokens(B, T, seed=5)).backward()
        results.append((model(tokens(B, T)), gradients(model)))
    (fused, fused_gradients), (manual, manual_gradients) = results
    torch.testing.assert_close(fused, manual, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(fused_gradients, manual_gradients, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"vocab_size": 1009, "block_size": 13, "n_layer": 3},
        {"n_layer": 5, "n_head": 1, "n_embd": 7},
        {"vocab_size": 67, "n_layer": 3, "n_head": 7, "n_embd": 301, "bias": False},
    ],
)
@pytest.mark.parametrize("tied", [True, False])
def test_an_untrained_gpt_is_as_unsure_as_a_uniform_guess(fields: dict[str, Any], tied: bool) -> None:
    model = gpt(**fields, tied=tied)
    c = model.config
    idx, targets = torch.randint(c.vocab_size, (2, 31, c.block_size), generator=torch.Generator().manual_seed(0))
    assert loss_of(model, idx, targets).item() == pytest.approx(math.log(c.vocab_size), rel=0.05)


def test_an_untrained_bigram_is_as_unsure_as_a_uniform_guess() -> None:
    torch.manual_seed(7)
    loss = loss_of(Bigram(BigramConfig(V, T)), tokens(31, T), tokens(31, T, seed=5))
    assert loss.item() == pytest.approx(math.log(V), rel=0.05)


def parameters(config: models.ModelConfig) -> int:
    with torch.device("meta"):  # shapes alone
        return models.build(config).num_parameters()


@pytest.mark.parametrize(
    ("overrides", "vocab_size", "count"),
    [
        (("model=gpt2",), 50257, 124_439_808),  # OpenAI's smallest GPT-2
        (("model=gpt10m",), 65, 10_646_784 + 256 * 384),  # nanoGPT says 10.65M: it leaves out the positions
        (("model=gpt10m", "arch=video"), 65, 10_788_929),
        (("model=gpt300k", "arch=video", "model.n_layer=4", "model.block_size=32"), 65, 209_729),
        (("model=bigram",), 65, 65 * 65),
    ],
)
def test_named_sizes_have_the_published_number_of_parameters(
    compose: Any, overrides: tuple[str, ...], vocab_size: int, count: int
) -> None:
    settings = compose(*overrides)
    assert parameters(settings.model_config(vocab_size)) == count


def table_of_sizes() -> dict[str, dict[str, int | None]]:
    """The table of docs/models.md: size -> column -> number, None where it has none."""
    lines = (ROOT / "docs" / "models.md").read_text().split("## Sizes\n")[1].split("\n#")[0].splitlines()
    header, _, *rows = ([cell.strip(" `*") for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|"))
    numbers = [[int(cell.replace(",", "")) if re.search(r"\d", cell) else None for cell in row[1:]] for row in rows]
    return {row[0]: dict(zip(header[1:], cells, strict=True)) for row, cells in zip(rows, numbers, strict=True)}


def test_all_sizes_stand_in_the_readme_with_their_shape_and_number_of_parameters(compose: Any) -> None:
    table = table_of_sizes()
    assert set(table) == {path.stem for path in (ROOT / "conf" / "model").glob("*.yaml")} - {"gpt2", "pretrained"}
    for size, row in table.items():
        settings = compose(f"model={size}")
        config = settings.model_config(65)
        found: dict[str, int | None] = {
            key: getattr(config, key, None) for key in ("n_layer", "n_head", "n_embd", "block_size")
        }
        for vocab_size in (65, 50257):
            found[f"parameters (V = {vocab_size})"] = parameters(settings.model_config(vocab_size))
        assert row == found, size


def test_the_defaults_are_gpt2_small() -> None:
    assert parameters(GPTConfig(vocab_size=50257)) == 124_439_808


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_checkpointing_changes_memory_and_nothing_else(dropout: float) -> None:
    results = []
    for recompute in (False, True):
        model = lively(gpt(gradient_checkpointing=recompute, dropout=dropout))
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.numel()) or t, lambda t: t):
            torch.manual_seed(17)
            loss = loss_of(model, tokens(B, T), tokens(B, T, seed=5))
        loss.backward()
        results.append((loss.detach(), gradients(model), sum(kept)))
    (loss, grads, numbers), (loss_again, grads_again, fewer_numbers) = results
    assert fewer_numbers < numbers / 2
    assert torch.equal(loss, loss_again)
    torch.testing.assert_close(grads, grads_again, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("n_layer", [2, 7])
def test_weights_begin_as_gpt2s(n_layer: int) -> None:
    model = gpt(n_layer=n_layer, n_embd=129, tied=False, head_bias=True)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif ".ln_" in f".{name}":
            assert (parameter == 1).all(), name
        else:
            std = 0.02 / math.sqrt(2 * n_layer) if name.endswith("c_proj.weight") else 0.02
            assert parameter.std().item() == pytest.approx(std, rel=0.05), name
            assert abs(parameter.mean().item()) < std / 10, name


@pytest.mark.parametrize("config", [GPTConfig(**TINY), GPTConfig(**TINY, **VIDEO), BigramConfig(V, T)])
def test_every_parameter_learns(config: models.ModelConfig) -> None:
    model = models.build(config)
    loss_of(model, tokens(B, T), tokens(B, T, seed=5)).backward()
    assert all(gradient.any() for gradient in gradients(model).values())


def watched(model: GPT, module: nn.Module, idx: Tensor) -> tuple[Tensor, Tensor]:
    """What goes into `module` and what comes out of it in a forward pass."""
    seen = []
    handle = module.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    model(idx)
    handle.remove()
    return seen[0]


def assert_dropped(dropped: Tensor, whole: Tensor, p: float) -> None:
    """About a share p of the numbers is zero, the others are scaled up."""
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], whole[kept] / (1 - p))
    assert 1 - kept.float().mean().item() == pytest.approx(p, abs=0.07)


P = 0.3


def test_dropout_acts_on_the_embeddings() -> None:
    model = gpt(dropout=P)
    idx = tokens(B, T)
    dropped, _ = watched(model.train(), model.h[0], idx)
    whole, _ = watched(model.eval(), model.h[0], idx)
    assert_dropped(dropped, whole, P)


@pytest.mark.parametrize("attention", ["sdpa", "manual"])
def test_dropout_acts_on_the_attention_weights(attention: str) -> None:
    attend = CausalSelfAttention(GPTConfig(**{**TINY, "n_head": 11}, dropout=P, attention=attention))
    seen: list[Tensor] = []
    attend.c_proj.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    x = torch.randn(997, 1, 33, generator=torch.Generator().manual_seed(1))
    noise = torch.randint(-(2**31), 2**31, (997,), dtype=torch.int32, generator=torch.Generator().manual_seed(7))
    attend(x, PassContext(None, None, dropouts=(Drop(P, noise), NO_DROPOUT, NO_DROPOUT)))
    attend(x, PassContext(None, None))
    # One position: its attention weight is 1, so that dropout takes a head's whole value or scales it.
    dropped, whole = (y.view(997, 11, 3) for y in seen)
    gone = (dropped == 0).all(dim=-1)
    assert gone.float().mean().item() == pytest.approx(P, abs=0.02)
    torch.testing.assert_close(dropped[~gone], whole[~gone] / (1 - P))


@pytest.mark.parametrize("branch", ["attn", "mlp"])
def test_dropout_acts_on_the_residual_branches(branch: str) -> None:
    model = gpt(dropout=P).train()
    block, module = model.h[1], getattr(model.h[1], branch)
    added: list[Tensor] = []
    module.register_forward_hook(lambda module, inputs, output: added.append(output))
    if branch == "attn":
        block.mlp.register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))
        before, after = watched(model, block, tokens(B, T))
    else:
        block.attn.register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))
        before, after = watched(model, block, tokens(B, T))
    kept = (after - before).abs() > 1e-6  # what rounding leaves of a branch that fell out
    assert_dropped((after - before) * kept, added[0], P)


@pytest.mark.parametrize("attention", ["sdpa", "manual"])
def test_evaluation_drops_nothing(attention: str) -> None:
    idx = tokens(B, T)
    model = gpt(dropout=0.5, attention=attention)
    assert not torch.equal(model.train()(idx), model(idx))
    assert torch.equal(model.eval()(idx), gpt(attention=attention)(idx))


@pytest.mark.parametrize("name", ["gelu", "relu"])
def test_the_activation_is_the_one_that_was_chosen(name: str) -> None:
    mlp = lively(gpt(mlp=name)).h[0].mlp
    x = torch.linspace(-3, 3, 33)
    hidden = mlp.c_fc(x)
    tanh = torch.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3))
    expected = {"gelu": 0.5 * hidden * (1 + tanh), "relu": hidden.clamp(min=0)}[name]
    torch.testing.assert_close(mlp(x), mlp.c_proj(expected))


def test_too_long_a_sequence_is_refused() -> None:
    with pytest.raises(ValueError, match=rf"{T + 1} tokens is longer than model.block_size={T}"):
        gpt()(tokens(B, T + 1))


LINEAR = {"pos": "rope", "head_dim": 12, "rope_scaling": "linear", "rope_factor": 2.0}
YARN = LINEAR | {"rope_scaling": "yarn", "rope_original_size": 7}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_embd": 34}, r"model.n_embd=34 is not divisible by model.n_head=3: choose n_head among \[1, 2, 17, 34\]"),
        ({"n_layer": 0}, r"model.n_layer=0: must be at least 1"),
        ({"n_head": -3}, r"model.n_head=-3: must be at least 1"),
        ({"n_embd": 0}, r"model.n_embd=0: must be at least 1"),
        ({"block_size": 0}, r"model.block_size=0: must be at least 1"),
        ({"vocab_size": 0}, r"model.vocab_size=0: must be at least 1"),
        ({"dropout": 1.0}, r"model.dropout=1.0: must be at least 0 and below 1"),
        ({"dropout": -0.1}, r"model.dropout=-0.1: must be at least 0 and below 1"),
        ({"dropout": math.nan}, r"model.dropout=nan: must be at least 0 and below 1"),
        ({"mlp": "swish"}, r"model.mlp=swish: must be one of gelu, gelu_exact, relu, relu2, swiglu, geglu, none$"),
        ({"attention": "flash"}, r"model.attention=flash: must be one of sdpa, manual, per_head, none$"),
        ({"norm": "batchnorm"}, r"model.norm=batchnorm: must be one of layernorm, rmsnorm, none$"),
        ({"norm_place": "both"}, r"model.norm_place=both: must be one of pre, post$"),
        ({"pos": "xpos"}, r"model.pos=xpos: must be one of learned, rope, alibi, sinusoidal, none$"),
        ({"init": "zero"}, r"model.init=zero: must be one of gpt2, torch$"),
        ({"n_kv_head": 0}, r"model.n_kv_head=0: must be at least 1"),
        ({"n_inner": 0}, r"model.n_inner=0: must be at least 1"),
        ({"window": 0}, r"model.window=0: must be at least 1"),
        ({"norm_eps": 0.0}, r"model.norm_eps=0.0: must be above 0"),
        ({"rope_base": -1.0}, r"model.rope_base=-1.0: must be above 0"),
        ({"head_dim": 0}, r"model.head_dim=0: must be at least 1"),
        (
            {"pos": "rope", "head_dim": 13},
            r"model.pos=rope turns pairs, and head_dim = 13 is odd: choose another n_head",
        ),
        ({"attn_proj": False, "head_dim": 12}, r"model.head_dim=12: 3 heads are 36 wide, and without model.attn_proj"),
        ({"rope_scaling": "dynamic"}, r"model.rope_scaling=dynamic: must be one of null, linear, llama3, yarn$"),
        ({"rope_scaling": "linear"}, r"model.rope_scaling=linear: .* this is model.pos=learned; add model.pos=rope"),
        ({"rope_factor": 2.0}, r"model.rope_factor=2.0: needs model.rope_scaling=linear or llama3 or yarn$"),
        (LINEAR | {"rope_low_freq_factor": 2.0}, r"model.rope_low_freq_factor=2.0: needs model.rope_scaling=llama3"),
        (LINEAR | {"rope_original_size": 7}, r"model.rope_original_size=7: needs model.rope_scaling=llama3 or yarn$"),
        (LINEAR | {"rope_factor": 0.0}, r"model.rope_factor=0.0: must be above 0"),
        (LINEAR | {"rope_scaling": "llama3"}, r"model.rope_scaling=llama3 needs model.rope_original_size"),
        (
            LINEAR | {"rope_scaling": "llama3", "rope_original_size": 7, "rope_high_freq_factor": 1.0},
            r"model.rope_high_freq_factor=1.0: must be above model.rope_low_freq_factor=1.0",
        ),
        (LINEAR | {"rope_beta_fast": 2.0}, r"model.rope_beta_fast=2.0: needs model.rope_scaling=yarn$"),
        (LINEAR | {"rope_attention_factor": 2.0}, r"model.rope_attention_factor=2.0: needs model.rope_scaling=yarn$"),
        (LINEAR | {"rope_scaling": "yarn"}, r"model.rope_scaling=yarn needs model.rope_original_size"),
        (YARN | {"rope_beta_slow": 32.0}, r"model.rope_beta_fast=32.0: must be above model.rope_beta_slow=32.0"),
        (YARN | {"rope_base": 1.0}, r"model.rope_base=1.0: must be above 1 for model.rope_scaling=yarn"),
        (YARN | {"rope_attention_factor": 0.0}, r"model.rope_attention_factor=0.0: must be above 0"),
        ({"rope_fraction": 0.5}, r"model.rope_fraction=0.5: .* this is model.pos=learned; add model.pos=rope"),
        (LINEAR | {"rope_fraction": 0.0}, r"model.rope_fraction=0.0: must be above 0 and at most 1"),
        (LINEAR | {"rope_fraction": 1.5}, r"model.rope_fraction=1.5: must be above 0 and at most 1"),
        (LINEAR | {"rope_fraction": 0.25}, r"pairs, and head_dim times rope_fraction=0.25 = 3 is odd: choose"),
        (LINEAR | {"rope_fraction": 0.05}, r"pairs, and head_dim times rope_fraction=0.05 = 0 is nothing: choose"),
        ({"parallel_norms": True}, r"model.parallel_norms=true needs model.parallel=true and model.norm_place=pre"),
        ({"parallel_norms": True, "parallel": True, "norm_place": "post"}, r"and model.norm_place=pre"),
        ({"logit_softcap": 0.0}, r"model.logit_softcap=0.0: must be above 0"),
        ({"logit_softcap": math.nan}, r"model.logit_softcap=nan: must be above 0"),
        (
            {"n_kv_head": 2},
            r"model.n_head=3 is not divisible by model.n_kv_head=2: choose n_kv_head among \[1, 3\]",
        ),
        (
            {"n_kv_head": 6},
            r"model.n_head=3 is not divisible by model.n_kv_head=6: choose n_kv_head among \[1, 3\]",
        ),
        ({"pos": "rope"}, r"model.pos=rope turns pairs, and n_embd / n_head = 11 is odd: choose another n_head"),
        (
            {"attention": "none", "mlp": "none"},
            r"model.attention=none and model.mlp=none leave nothing of the blocks: see model=bigram",
        ),
        ({"parallel": True, "attention": "none"}, r"model.parallel=true needs both attention and mlp"),
        ({"parallel": True, "mlp": "none"}, r"model.parallel=true needs both attention and mlp"),
        ({"zero_init": True, "residual": False}, r"model.zero_init=true without model.residual never learns"),
        (
            {"mlp_proj": False, "n_inner": 47},
            r"model.n_inner=47: without model.mlp_proj the hidden layer is n_embd=33 wide; leave n_inner out",
        ),
    ],
)
def test_an_impossible_gpt_names_key_value_and_way_out(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        GPTConfig(**{**TINY, **fields})


@pytest.mark.parametrize("field", ["vocab_size", "block_size"])
def test_an_impossible_bigram_names_key_value_and_way_out(field: str) -> None:
    with pytest.raises(UserError, match=rf"model.{field}=0: must be at least 1"):
        BigramConfig(**{"vocab_size": V, field: 0})


@pytest.mark.parametrize("config", [GPTConfig(**TINY, **VIDEO, dropout=0.1), BigramConfig(V, T)])
def test_a_config_comes_back_from_its_dict(config: models.ModelConfig) -> None:
    state = models.to_dict(config)
    assert state["name"] in models.CONFIGS
    assert models.from_dict(state) == config
    assert state == models.to_dict(config)  # reading it did not change it


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"name": "gtp", "vocab_size": V}, r"model.name=gtp: no such model; did you mean gpt\?"),
        ({"name": "zzz", "vocab_size": V}, r"model.name=zzz: no such model; there are bigram, gpt$"),
        ({"vocab_size": V}, r"model.name=None: no such model"),
        ({"name": "gpt", "vocab_size": V, "rotary": True}, r"this version's GPTConfig does not fit: .*'rotary'"),
        ({"name": "gpt"}, r"this version's GPTConfig does not fit: .*'vocab_size'"),
        ({"name": "gpt", "vocab_size": "many"}, r"model.vocab_size='many': must be of type int"),
    ],
)
def test_a_dict_of_no_model_is_refused(state: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        models.from_dict(state)


@pytest.mark.parametrize(("n_layer", "vocab_size"), [(2, V), (3, 1009)])
def test_counted_flops_are_those_that_torch_counts(n_layer: int, vocab_size: int) -> None:
    # Fused attention skips products of the future, and recomputes others: counted is the plain one.
    model = gpt(n_layer=n_layer, vocab_size=vocab_size, attention="manual")
    with FlopCounterMode(display=False) as counter:
        loss_of(model, tokens(B, T), tokens(B, T, seed=5)).backward()
    assert counter.get_total_flops() == B * T * model.flops_per_token()
    assert Bigram(BigramConfig(V)).flops_per_token() == 0
