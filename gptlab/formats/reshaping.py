"""Models of another shape that compute the same, as the tools need them for which a model is exported."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from gptlab.models import weights
from gptlab.models.gpt import GPT
from gptlab.models.gpt_config import GPTConfig

SAMPLES, SAMPLE_TOKENS = 24, 64  # of the model's own text, to fit an unused row, and as many to judge it
UNUSED_LOGIT = -30.0  # of a token that is never drawn


def add_biases(model: GPT) -> GPT:
    """Return the same model with a bias in each of its layers; those that it lacked are zeros."""
    config = dataclasses.replace(model.config, bias=True, qkv_bias=None)
    state = weights.parameters(model)
    for name, parameter in weights.parameters(weights.empty_model(config)).items():
        state.setdefault(name, torch.zeros(parameter.shape))
    return _filled(config, state)


def add_rows(model: GPT, count: int) -> GPT:
    """Return the same model with `count` more ids, which it never draws.

    Their logits are so low that the probabilities of the others stay what they are: to 1e-5 nats for small models of
    Shakespeare, where rows of zeros cost 5e-3. As inputs they are the mean of the other tokens, unless they are tied.
    """
    if count == 0:
        return model
    config, state = model.config, weights.parameters(model)
    row = _unused_row(model)
    mean = state["wte.weight"].mean(dim=0)
    added = {"wte.weight": row} if config.tied else {"wte.weight": mean, "lm_head.weight": row}
    state |= {name: torch.cat((state[name], new.expand(count, -1))) for name, new in added.items()}
    return _filled(dataclasses.replace(config, vocab_size=config.vocab_size + count), state)


def place_rows(model: GPT, sources: list[int | None], inputs: dict[int, int], untie: bool) -> GPT:
    """Return the same model with its ids in other places, and with new ones that it never draws.

    Args:
        model: the model.
        sources: for each id of the result the one that it was; None: it is new.
        inputs: for some new ids the old ones whose input they have; that of the others is the mean.
        untie: give a tied model a head of its own, since otherwise new ids are noise as inputs.
    """
    config, state = model.config, weights.parameters(model)
    embedding, head = state["wte.weight"], state["wte.weight" if config.tied else "lm_head.weight"]
    new = [i for i, source in enumerate(sources) if source is None]
    unused, tied = (_unused_row(model) if new else head[0]), config.tied and not untie
    places = torch.tensor([len(embedding) if source is None else source for source in sources])
    head_rows = torch.cat((head, unused[None]))[places]
    input_rows = torch.cat((embedding, embedding.mean(dim=0, keepdim=True)))[places]
    for i, source in inputs.items():
        input_rows[i] = embedding[source]
    state |= {"wte.weight": head_rows} if tied else {"wte.weight": input_rows, "lm_head.weight": head_rows}
    return _filled(dataclasses.replace(config, vocab_size=len(sources), tied=tied), state)


def _filled(config: GPTConfig, state: dict[str, Tensor]) -> GPT:
    model = weights.fill(config, state)
    assert isinstance(model, GPT)
    return model


@torch.no_grad()
def _unused_row(model: GPT) -> Tensor:
    """Return a row of the head whose logit takes next to no probability after the model's own text, (C,).

    It is the ridge regression of `UNUSED_LOGIT` on what the head is given, whose vectors share a direction; times the
    number from 0 to 1 that takes least from text on which it was not fitted.
    """
    generator = torch.Generator().manual_seed(0)
    idx = torch.randint(model.config.vocab_size, (2 * SAMPLES, 1), generator=generator)
    inputs: list[Tensor] = []
    hook = model.lm_head.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    for _ in range(min(SAMPLE_TOKENS, model.config.block_size)):
        logits = model(idx)  # (2 * SAMPLES, T, V)
        idx = torch.cat((idx, torch.multinomial(logits[:, -1].softmax(-1), 1, generator=generator)), dim=1)
    hook.remove()
    fitted, others = (part.flatten(0, 1).double() for part in inputs[-1].chunk(2))  # (SAMPLES * T, C) each
    products = fitted.T @ fitted
    ridge = 0.01 * products.diagonal().mean() * torch.eye(len(products), dtype=torch.double)
    row = torch.linalg.solve(products + ridge, fitted.sum(0) * UNUSED_LOGIT)
    shares = torch.linspace(0, 1, 31, dtype=torch.double)
    total = logits[SAMPLES:].logsumexp(-1).flatten().double()  # of the others
    taken = ((others @ row)[:, None] * shares - total[:, None]).exp().log1p().mean(0)  # in nats, (31,)
    return (row * shares[taken.argmin()]).float()
