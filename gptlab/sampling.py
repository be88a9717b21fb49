"""A prompt goes on, one token at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from gptlab.tokenizers import Tokenizer


def sample_next_token(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw one token a row.

    Args:
        logits: (B, V).
        temperature: divides the logits; 0 takes the most probable token.
        top_k: keep the k most probable tokens.
        top_p: keep the fewest most probable tokens whose probabilities sum to at least p (Holtzman et al. 2020,
            https://arxiv.org/abs/1904.09751), after temperature and top_k.
        generator: of the logits' device.

    Returns:
        (B,) int64.

    Raises:
        ValueError: a value out of range.
    """
    if not temperature >= 0:
        raise ValueError(f"temperature={temperature}: must be at least 0 (0 is greedy)")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k={top_k}: must be at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p}: must be above 0 and at most 1")
    if temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits.float()
    logits = (logits - logits.max(dim=-1, keepdim=True).values) / temperature  # no overflow, however cold
    if top_k is not None and top_k < logits.shape[-1]:
        kept = logits.topk(top_k)
        logits = torch.full_like(logits, float("-inf")).scatter(-1, kept.indices, kept.values)
    probabilities = logits.softmax(dim=-1)
    if top_p is not None and top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True)
        before = ordered.cumsum(dim=-1) - ordered  # the probability of all that is more probable
        ordered = ordered.masked_fill(before >= top_p, 0.0)
        probabilities = torch.zeros_like(probabilities).scatter(-1, order, ordered)
    return torch.multinomial(probabilities, num_samples=1, generator=generator)[:, 0]


@torch.no_grad()
def generate(
    forward: Callable[[Tensor], Tensor],
    idx: Tensor,
    max_new_tokens: int,
    *,
    block_size: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Yield the next `max_new_tokens` tokens after `idx`, each (B,) int64, as soon as it is drawn.

    Args:
        forward: idx (B, T) -> logits (B, T, V), in evaluation mode.
        idx: the prompt, (B, T) with T >= 1; the model sees its last `block_size` tokens.
        generator: a CPU generator; draws are made on the CPU, the same on every device.
    """
    for _ in range(max_new_tokens):
        logits = forward(idx[:, -block_size:])[:, -1].cpu()
        token = sample_next_token(logits, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator)
        yield token
        idx = torch.cat((idx, token[:, None].to(idx.device)), dim=1)


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Ids of `prompt`; of an empty one the end of the text before, or token 0 (the newline, in most characters)."""
    return tokenizer.encode(prompt).tolist() or [tokenizer.end_of_text or 0]
