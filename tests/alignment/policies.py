"""Small policies whose answers can be enumerated, and prompts to them."""

from __future__ import annotations

import math

import torch

from gptlab.data.chat.chat_format import END
from gptlab.data.chat.conversations import Conversation
from gptlab.models import Bigram, BigramConfig
from gptlab.models.gpt import GPT
from gptlab.models.gpt_config import GPTConfig
from tests.data.chat.helpers import CHAT, talk

V = CHAT.tokenizer.vocab_size
END_ID = CHAT.tokenizer.special_tokens[END]
A, B = CHAT.tokenizer.encode("ab").tolist()
PROMPTS: list[Conversation] = [talk("one", "a"), talk("and two", "ab"), talk("3", "b"), talk("this is the fourth", "b")]
IDS: list[list[int]] = [CHAT.prompt(each.messages[:-1]).tolist() for each in PROMPTS]


def of_shares(shares: dict[int, float]) -> Bigram:
    """A model whose next token is drawn from these, whatever came before."""
    model = Bigram(BigramConfig(vocab_size=V, block_size=40))
    with torch.no_grad():
        model.wte.weight.fill_(-1e9)
        for token, share in shares.items():
            model.wte.weight[:, token] = math.log(share)
    return model.eval()


def tiny_gpt(seed: int = 0, spread: float = 10.0) -> GPT:
    """A model with random weights, far from uniform."""
    torch.manual_seed(seed)
    model = GPT(GPTConfig(n_layer=2, n_head=3, n_embd=15, block_size=40, vocab_size=V))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02 * spread)
    return model.eval()
