"""Give a trained model tokens that it has not had."""

from __future__ import annotations

import dataclasses

import torch

from gptlab.models import Model, build


def grow_vocabulary(model: Model, vocab_size: int) -> Model:
    """Return a copy of the model with tokens added at the end; what it says of the others stays as it was.

    The rows of the new tokens in embeddings and head are the mean of the others', so that a new token is no likelier
    than an average one (Hewitt 2021, https://nlp.stanford.edu/~johnhew/vocab-expansion.html).

    Args:
        vocab_size: tokens in all, at least as many as the model has.
    """
    before = model.config.vocab_size
    grown = build(dataclasses.replace(model.config, vocab_size=vocab_size)).to(next(model.parameters()))
    old, new = model.state_dict(), grown.state_dict()
    for name, tensor in old.items():
        for dim in range(tensor.dim()):
            if new[name].shape[dim] != tensor.shape[dim]:
                assert tensor.shape[dim] == before
                mean = tensor.float().mean(dim, keepdim=True).to(tensor)
                tensor = torch.cat((tensor, mean.repeat_interleave(vocab_size - before, dim)), dim)
        new[name].copy_(tensor)
    return grown.train(model.training)
