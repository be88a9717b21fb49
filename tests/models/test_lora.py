"""LoRA: nothing changes at step 0, the right rows are learnt, the rest stays, and merging keeps the function."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gptlab import models
from gptlab.formats import huggingface_config
from gptlab.models import GPT, Bigram, BigramConfig, GPTConfig, weights
from gptlab.models.lora import (
    LoRAConfig,
    adapter_state,
    adapters,
    adapters_off,
    add_adapters,
    largest_change,
    load_adapters,
    merged,
    train_new_rows,
    without_adapters,
)
from gptlab.system.errors import UserError
from gptlab.training.optimizers import OptimConfig, parameter_groups
from tests.generation.contexts import context_for, logits_of

V, T, B = 37, 13, 4
SIZES = {"vocab_size": V, "block_size": T, "n_layer": 2, "n_head": 6, "n_embd": 30}
# Grouped heads, wider together than n_embd, and a gated mlp: each projection has its own number of rows.
WIDE: dict[str, Any] = {"n_kv_head": 2, "head_dim": 8, "mlp": "swiglu", "tied": False, "pos": "rope", "norm": "rmsnorm"}
EVERY = ("q", "k", "v", "attn.c_proj", "gate", "up", "mlp.c_proj", "lm_head", "wte")
FUSED = ("c_attn", "attn.c_proj", "c_fc", "mlp.c_proj", "lm_head", "wte")
ADAMW = {"name": "adamw", "lr": 0.01, "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "grad_clip": 1.0}
MUON = ADAMW | {"name": "muon", "adam_lr": 0.01, "momentum": 0.9, "ns_steps": 5, "nor_beta": 0.0}


def gpt(**fields: Any) -> GPT:
    torch.manual_seed(3)
    return GPT(GPTConfig(**(SIZES | fields)))


def shaken(model: GPT) -> GPT:
    """Give the adapters values at which every one of them shows in the logits."""
    generator = torch.Generator().manual_seed(7)
    for tensor in adapter_state(model).values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
    return model


def adapted(targets: tuple[str, ...], rank: int = 3, alpha: float = 5.0, fields: Any = WIDE, **rest: Any) -> GPT:
    model = gpt(**fields)
    add_adapters(model, LoRAConfig(rank, alpha, targets, **rest))
    return model


def tokens(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(seed))


def loss_of(model: GPT, noise: Tensor | None = None) -> Tensor:
    return F.cross_entropy(model(tokens(B, T), noise=noise).flatten(0, 1), tokens(B, T, seed=2).flatten())


@pytest.mark.parametrize("targets", [EVERY, FUSED], ids=["parts", "whole"])
@pytest.mark.parametrize("fields", [WIDE, WIDE | {"dropout": 0.3, "qkv_bias": True}], ids=["plain", "dropout, bias"])
def test_step_0_is_the_base_to_the_bit(targets: tuple[str, ...], fields: Any) -> None:
    """Fault 22: with B drawn as A is, the first step would already stand elsewhere than the base."""
    base, noise = gpt(**fields), torch.arange(B, dtype=torch.int32)
    model = adapted(targets, fields=fields)
    for each in (base, model):
        each.train()
    assert torch.equal(model(tokens(B, T), noise=noise), base(tokens(B, T), noise=noise))
    loss_of(model).backward()
    changing = {name for name, each in model.named_parameters() if each.grad is not None and each.grad.any()}
    assert changing == {name for name in adapter_state(model) if name.endswith(".A") == name.startswith("wte.")}


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("targets", [EVERY, FUSED, ("k",), ("up", "v")], ids=["parts", "whole", "k", "up and v"])
def test_logits_are_those_of_the_changed_matrices(targets: tuple[str, ...], rslora: bool) -> None:
    """Fault 19: rows cut as if heads were n_embd / n_head wide, or as many keys as queries, change other projections.

    The changed matrices are written out, in float64.
    """
    model = shaken(adapted(targets, rslora=rslora)).double()
    state, scale = adapter_state(model), 5 / (math.sqrt(3) if rslora else 3)
    changed = gpt(**WIDE).double()
    q, kv, hidden = 6 * 8, 2 * 8, changed.config.hidden
    rows = {"q": (0, q), "k": (q, q + kv), "v": (q + kv, q + 2 * kv), "gate": (0, hidden), "up": (hidden, 2 * hidden)}
    with torch.no_grad():
        for name in [name.removesuffix(".A") for name in state if name.endswith(".A")]:
            layer, part = name.split(".lora.")
            weight = changed.get_submodule(layer).weight
            start, stop = rows.get(part, (0, len(weight)))
            change = scale * torch.einsum("or,ri->oi", state[f"{name}.B"], state[f"{name}.A"])
            if layer == "wte":
                weight += change.T
            else:
                weight[start:stop] += change
    torch.testing.assert_close(model(tokens(B, T)), changed(tokens(B, T)), rtol=1e-12, atol=1e-12)
    assert (model(tokens(B, T)) - gpt(**WIDE).double()(tokens(B, T))).abs().max() > 1e-3


def test_only_the_adapters_are_trained_by_adamw_and_muon_refuses() -> None:
    model = adapted(EVERY)
    trained = [name for name, each in model.named_parameters() if each.requires_grad]
    assert trained == list(adapter_state(model))
    groups = parameter_groups(model, OptimConfig(**ADAMW), models.matrices(model))
    assert sum(p.numel() for group in groups for p in group["params"]) == sum(
        tensor.numel() for tensor in adapter_state(model).values()
    )
    with pytest.raises(UserError, match=r"optim=muon .* here none of them is trained: use optim=adamw"):
        parameter_groups(model, OptimConfig(**MUON), models.matrices(model))


def test_training_changes_the_adapters_alone() -> None:
    model = adapted(EVERY)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == set(adapter_state(model))


def test_dropout_is_a_function_of_the_rows_noise() -> None:
    """The same in any micro-batch and when gradients are computed anew; torch's generator is not asked."""
    noise = torch.tensor([5, -9, 77, 2**31 - 1], dtype=torch.int32)
    model = shaken(adapted(("q", "c_fc", "mlp.c_proj"), dropout=0.4, fields=WIDE | {"mlp": "relu2"})).train()
    state = torch.get_rng_state()
    whole = model(tokens(B, T), noise=noise)
    parts = [model(tokens(B, T)[i : i + 1], noise=noise[i : i + 1]) for i in range(B)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-5, atol=1e-6)
    assert torch.equal(torch.get_rng_state(), state)
    assert (model(tokens(B, T), noise=noise + 1) - whole).abs().max() > 1e-3
    assert torch.equal(model.eval()(tokens(B, T), noise=noise), model(tokens(B, T)))


def test_dropout_takes_as_much_as_it_says_and_only_from_what_adapters_read() -> None:
    model = shaken(adapted(("v",), dropout=0.25, fields=SIZES)).train()
    seen: list[Tensor] = []
    layer = adapters(model)["h.0.attn.c_attn"]
    layer.lora["v"].register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    model(tokens(B, T), noise=torch.arange(B, dtype=torch.int32))
    dropped = (seen[0] == 0).float().mean().item()
    assert abs(dropped - 0.25) < 4 * math.sqrt(0.25 * 0.75 / seen[0].numel())
    base = without_adapters(model).train()
    with adapters_off(model):
        assert torch.equal(model(tokens(B, T)), base(tokens(B, T)))


def test_gradients_are_the_same_with_gradient_checkpointing_and_another_pass_between() -> None:
    """A pass that is computed again must have its own dropout, not that of the pass before the backward."""
    noise = torch.arange(B, dtype=torch.int32)
    found = []
    for checkpointing in (False, True):
        model = shaken(adapted(FUSED[:4], dropout=0.4, fields=WIDE | {"gradient_checkpointing": checkpointing})).train()
        loss = loss_of(model, noise)
        loss_of(model, noise + 9)
        loss.backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_adapters_off_is_the_base_to_the_bit_and_on_again_after_an_error() -> None:
    """Fault 16 begins here: the reference of DPO is the base itself."""
    model, base = shaken(adapted(EVERY)), gpt(**WIDE)
    before = model(tokens(B, T))

    def fail() -> None:
        with adapters_off(model):
            assert torch.equal(model(tokens(B, T)), base(tokens(B, T)))
            with adapters_off(model):
                pass
            assert torch.equal(model(tokens(B, T)), base(tokens(B, T)))
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fail()
    assert torch.equal(model(tokens(B, T)), before)


def test_the_adapters_alone_restore_the_model_exactly() -> None:
    source, other = shaken(adapted(EVERY)), adapted(EVERY)
    state = {name: tensor.clone() for name, tensor in adapter_state(source).items()}
    assert sum(map(torch.numel, state.values())) < 0.5 * source.num_parameters()
    load_adapters(other, state)
    assert torch.equal(other(tokens(B, T)), source(tokens(B, T)))
    lost = state.pop("h.1.attn.c_attn.lora.q.B")
    with pytest.raises(UserError, match=r"h\.1\.attn\.c_attn\.lora\.q\.B is missing"):
        load_adapters(other, state)
    with pytest.raises(UserError, match=r"is \[48, 2\] and must be \[48, 3\]"):
        load_adapters(other, state | {"h.1.attn.c_attn.lora.q.B": lost[:, :2]})


@pytest.mark.parametrize("targets", [EVERY, FUSED], ids=["parts", "whole"])
def test_merging_keeps_the_logits(targets: tuple[str, ...]) -> None:
    model = shaken(adapted(targets)).eval()
    before = copy.deepcopy(model.state_dict())
    plain = merged(model)
    assert not adapters(plain)
    assert plain.lora is None
    assert plain.config == model.config
    assert largest_change(model, plain, tokens(B, T)) < 1e-5
    assert largest_change(model, without_adapters(model), tokens(B, T)) > 1e-2
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_merging_in_bf16_casts_once() -> None:
    """Fault 21: W + B A summed in bf16 is rounded up to three times, and what it costs goes unsaid."""
    model = shaken(adapted(EVERY)).bfloat16().eval()
    plain = merged(model)
    exact = copy.deepcopy(model).double()
    for name, weight in weights.parameters(plain).items():
        assert weight.dtype == torch.bfloat16
        whole = exact.get_parameter(name).detach()
        layer = adapters(exact).get(name.removesuffix(".weight"))
        whole = whole if layer is None else whole + layer.delta()
        assert torch.equal(weight, whole.float().bfloat16()), name
    cost = largest_change(model, plain, tokens(B, T))
    assert 1e-3 < cost < 0.2
    by_hand = (model(tokens(B, T)).float() - plain(tokens(B, T)).float()).abs().max().item()
    assert cost == by_hand


def test_a_tied_head_is_refused_or_parted_by_name(tmp_path: Any) -> None:
    """Fault 20: merged into a tied head, the adapter changes the embedding too, or the config says tied and lies."""
    for targets in (("lm_head",), ("q", "wte")):
        with pytest.raises(UserError, match=r"lora.targets=.*: .*model.tied=true.*lora.untie=true"):
            adapted(targets, fields={})
        model, base = adapted(targets, fields={}, untie=True), gpt()
        assert torch.equal(model(tokens(B, T)), base(tokens(B, T)))
        assert not model.config.tied
        shaken(model)
        plain = merged(model)
        assert not plain.config.tied
        other = {"lm_head": "wte", "wte": "lm_head"}[targets[-1]]
        assert torch.equal(plain.get_parameter(f"{other}.weight"), base.wte.weight)
        again = weights.fill(plain.config, dict(weights.parameters(plain)))
        torch.testing.assert_close(again(tokens(B, T)), model(tokens(B, T)), rtol=1e-5, atol=1e-5)
        theirs = huggingface_config.config_to_hf(plain.config)
        assert theirs["tie_word_embeddings"] is False
    with pytest.raises(UserError, match=r"lora.untie=true: the head and the embedding of this model are apart already"):
        adapted(("lm_head",), untie=True)


@pytest.mark.parametrize("cache", [True, False])
def test_generation_hears_the_adapters(cache: bool) -> None:
    """The C decoder reads weights alone, so it must leave such a model to torch; merged, it takes it."""
    model = shaken(adapted(EVERY)).eval()
    prompts = [[1, 2, 3], [4, 5]]
    contexts = [context_for(each, prompts, 6, cache=cache) for each in (model, merged(model))]
    for _ in range(6):
        logits, others = (logits_of(context)[:, -1] for context in contexts)
        torch.testing.assert_close(logits, others, rtol=1e-4, atol=1e-5)
        for context in contexts:
            context.append(others.argmax(-1))
    row = torch.tensor([contexts[0].rows[0][:-1]])
    torch.testing.assert_close(logits[0], model(row)[0, -1], rtol=1e-4, atol=1e-5)


def test_a_model_with_adapters_is_not_taken_for_its_base() -> None:
    """Whoever writes its weights must say which: a folder of the base alone would be silently wrong."""
    model = adapted(("q",))
    with pytest.raises(ValueError, match="the model has adapters: take"):
        weights.parameters(model)
    with pytest.raises(ValueError, match="the model has adapters already"):
        add_adapters(model, LoRAConfig(1, 1.0))
    base = without_adapters(model)
    assert base.wte.weight.data_ptr() == model.wte.weight.data_ptr()
    assert weights.parameters(base).keys() == weights.parameters(gpt(**WIDE)).keys()


def test_the_compiled_model_is_the_eager_one() -> None:
    one = WIDE | {"n_layer": 1}  # compiling takes seconds
    model = shaken(adapted(EVERY[:7], fields=one, dropout=0.3)).train()
    noise = torch.arange(B, dtype=torch.int32)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(tokens(B, T), noise=noise), model(tokens(B, T), noise=noise))
    with adapters_off(model):
        torch.testing.assert_close(compiled(tokens(B, T), noise=noise), gpt(**one)(tokens(B, T)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": 0}, r"lora.rank=0: must be at least 1"),
        ({"alpha": 0.0}, r"lora.alpha=0.0: must be above 0"),
        ({"alpha": math.nan}, r"lora.alpha=nan: must be above 0"),
        ({"dropout": 1.0}, r"lora.dropout=1.0: must be at least 0 and below 1"),
        ({"targets": []}, r"lora.targets=\[\]: must be at least one of c_attn"),
        ({"targets": ["c_atn"]}, r"lora.targets=c_atn: no such layer; did you mean c_attn\?"),
        ({"targets": ["q", "c_attn"]}, r"lora.targets=q,c_attn: q and c_attn are the same matrix"),
        ({"targets": ["v", "v"]}, r"lora.targets=v,v: v and v are the same matrix"),
        ({"targets": ["lm_head"], "dropout": 0.1}, r"lora.dropout=0.1: the head knows no dropout"),
        ({"untie": True}, r"lora.untie=true: changes nothing without lm_head or wte"),
    ],
)
def test_a_wrong_value_is_refused_by_its_key(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LoRAConfig(**({"rank": 4, "alpha": 8.0} | fields))


@pytest.mark.parametrize(
    ("fields", "target", "message"),
    [
        ({}, "gate", r"lora.targets=gate: the mlp.c_fc of model.mlp=gelu has no parts; use c_fc"),
        ({"attention": "none"}, "q", r"lora.targets=q: this model has no attn.c_attn; leave it out"),
        ({"mlp_proj": False}, "mlp.c_proj", r"lora.targets=mlp.c_proj: this model has no mlp.c_proj"),
    ],
)
def test_a_target_that_the_model_lacks_is_refused(fields: dict[str, Any], target: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        adapted((target,), fields=fields)


def test_a_bigram_has_no_adapters() -> None:
    with pytest.raises(UserError, match=r"lora.rank=4: adapters are for a GPT, and this model is a Bigram"):
        add_adapters(Bigram(BigramConfig(V)), LoRAConfig(4, 8.0))  # type: ignore[arg-type]


# The rows of tokens that are new to a model.


def with_new_rows(tied: bool, targets: tuple[str, ...] = ("q", "c_fc")) -> GPT:
    """A model with adapters, whose last 3 tokens are new."""
    model = gpt(**WIDE | {"tied": tied, "mlp": "gelu", "head_bias": not tied})
    add_adapters(model, LoRAConfig(3, 5.0, targets, untie=tied and "wte" in targets))
    train_new_rows(model, V - 3)
    return model


@pytest.mark.parametrize("targets", [("q", "c_fc"), ("q", "wte", "lm_head")], ids=["blocks", "tables"])
@pytest.mark.parametrize("tied", [True, False])
def test_new_rows_change_nothing_at_first_and_are_then_those_of_the_table(tied: bool, targets: tuple[str, ...]) -> None:
    """Logits and gradients are those of a model whose table has the rows, in float64; merging puts them there."""
    model = with_new_rows(tied, targets)
    base = gpt(**WIDE | {"tied": tied, "mlp": "gelu", "head_bias": not tied})
    assert torch.equal(model(tokens(B, T)), base(tokens(B, T)))
    shaken(model.double())
    plain = merged(model)
    assert plain.config == model.config
    for name in ("wte", "lm_head"):
        layer, rows = model.get_submodule(name), plain.get_submodule(name).weight
        assert torch.equal(rows[: V - 3], (layer.weight + layer.delta())[: V - 3])
        assert torch.equal(rows[V - 3 :], layer.new.rows + layer.delta()[V - 3 :])
    torch.testing.assert_close(model(tokens(B, T)), plain(tokens(B, T)), rtol=1e-12, atol=1e-12)
    assert (model(tokens(B, T)) - base.double()(tokens(B, T))).abs().max() > 1e-3
    for each in (model, plain):
        loss_of(each).backward()
    for name in ("wte", "lm_head"):
        theirs = plain.get_submodule(name).weight.grad[V - 3 :]
        torch.testing.assert_close(model.get_submodule(name).new.rows.grad, theirs, rtol=1e-10, atol=1e-12)
        assert model.get_submodule(name).weight.grad is None
    with adapters_off(model):
        torch.testing.assert_close(model(tokens(B, T)), base(tokens(B, T)), rtol=1e-12, atol=1e-12)


def test_new_rows_are_one_parameter_of_a_tied_model_and_two_of_another() -> None:
    for tied, count in ((True, 1), (False, 2)):
        model = with_new_rows(tied)
        names = [name for name, p in model.named_parameters() if p.requires_grad and "new" in name]
        assert len(names) == count
        state = {name: tensor.clone() for name, tensor in adapter_state(shaken(model)).items()}
        other = with_new_rows(tied)
        load_adapters(other, state)
        assert torch.equal(other(tokens(B, T)), model(tokens(B, T)))
        with pytest.raises(ValueError, match="the model has adapters"):
            weights.parameters(model)
    model = gpt()
    train_new_rows(model, V)
    assert not adapters(model)
