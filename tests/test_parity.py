"""Our GPT is the GPT-2 of `transformers`: the same logits and gradients from the same weights, without downloads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptlab.models import GPT, GPTConfig

transformers = pytest.importorskip("transformers")

V, T, B = 101, 23, 5
CONV1D = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # (in, out) there, (out, in) here


def theirs(attention: str) -> Any:
    torch.manual_seed(7)
    config = transformers.GPT2Config(
        vocab_size=V,
        n_positions=T,
        n_embd=33,
        n_layer=3,
        n_head=3,
        activation_function="gelu_new",
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation=attention,
    )
    model = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms, too, are to show in the result
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def in_our_names(values: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {name: name.removeprefix("transformer.") for name in values}
    return {names[name]: value.T if name.endswith(CONV1D) else value for name, value in values.items()}


def ours(model: nn.Module, attention: str) -> GPT:
    gpt = GPT(GPTConfig(vocab_size=V, block_size=T, n_layer=3, n_head=3, n_embd=33, attention=attention))
    gpt.load_state_dict(in_our_names(model.state_dict()))
    return gpt


def logits_and_gradients(model: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
    idx = torch.randint(V, (B, T + 1), generator=torch.Generator().manual_seed(3))
    out = model(idx[:, :-1])
    logits = out if isinstance(out, Tensor) else out.logits
    model.zero_grad()
    F.cross_entropy(logits.float().flatten(0, 1), idx[:, 1:].flatten()).backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("attention", "their_attention"), [("sdpa", "eager"), ("manual", "eager"), ("sdpa", "sdpa")])
def test_logits_and_gradients_are_those_of_transformers(attention: str, their_attention: str) -> None:
    reference = theirs(their_attention)
    logits, gradients = logits_and_gradients(ours(reference, attention))
    their_logits, their_gradients = logits_and_gradients(reference)
    assert their_logits.std() > 0.5  # or the comparison would show little
    torch.testing.assert_close(logits, their_logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradients, in_our_names(their_gradients), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "manual"])
@pytest.mark.parametrize("autocast", [True, False])
def test_bf16_is_about_as_exact_as_that_of_transformers(attention: str, autocast: bool) -> None:
    reference = theirs("sdpa" if attention == "sdpa" else "eager")
    model = ours(reference, attention)
    exact, _ = logits_and_gradients(model)
    errors = []
    for candidate in (model, reference):
        half = candidate if autocast else candidate.to(torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits, _ = logits_and_gradients(half)
        assert logits.dtype == torch.bfloat16
        errors.append((logits.float() - exact).abs().max().item())
    assert 0 < errors[0] < 3 * errors[1]
