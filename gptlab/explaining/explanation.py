"""All that is found out about a model and a text, as plain data: what --json prints, and the page shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gptlab.explaining import heads, surprisal
from gptlab.explaining.attention import AttentionMaps, map_attention
from gptlab.explaining.beside_counts import measure_counts
from gptlab.explaining.lens import logit_lens
from gptlab.explaining.neighbours import embedding_neighbours
from gptlab.explaining.passages import find_passages
from gptlab.explaining.read_text import ReadText, token_text
from gptlab.explaining.training_text import TrainingText, open_training_text
from gptlab.formats.html.content import facts_of, shape_words
from gptlab.formats.opened import OpenedModel
from gptlab.models import Model
from gptlab.models.gpt import GPT
from gptlab.models.positions import attention_span
from gptlab.system.errors import UserError

FORMAT = 1  # of --json
LENS_TOKENS = 3  # the likeliest ones in a place
MOST_CELLS = 16_384  # of the lens, rows times tokens


@dataclass(frozen=True)
class Explanation:
    """What a model does with a text."""

    content: dict[str, Any]
    """Plain data; a section that cannot be is {"missing": why}."""
    maps: AttentionMaps | None
    """None: the model has no attention."""


def explain(
    opened: OpenedModel[Model], read: ReadText, data: str | None, order: int, device: torch.device
) -> Explanation:
    """Find out what a model on `device`, in evaluation mode, does with a text.

    Args:
        opened: the model.
        read: the text.
        data: the training text, as evaluate's --data; None: the run's own.
        order: of the table of counts beside the model.
        device: the device of the model.

    Raises:
        UserError: the loss or the attention is not a number, or the text that `data` names cannot be had.
    """
    model, tokenizer, ids = opened.model, opened.tokenizer, read.ids
    training = open_or_say_why(opened, data)
    measured = surprisal.measure_text(opened, ids, device)
    totals = surprisal.totals(measured)
    tokens: list[dict[str, Any]] = [
        {"id": token, "text": token_text(tokenizer, token), "bits": bits, **more}
        for token, bits, more in zip(
            ids.tolist(),
            surprisal.bits_by_token(measured, len(ids)),
            surprisal.alternatives(opened, ids, device),
            strict=True,
        )
    ]
    maps = None
    if isinstance(model, GPT) and model.config.has_attention:
        maps = map_attention(model, torch.from_numpy(ids).to(device))
    assert opened.info is not None
    shape = {"shape": shape_words(model.config)} if isinstance(model, GPT) else {}
    content = {
        "format": FORMAT,
        "model": opened.words,
        "name": model_name(opened),
        "facts": facts_of(model.num_parameters(), tokenizer, opened.info, **shape),
        "text": read.text,
        "notes": read.notes,
        "device": str(device),
        "totals": totals,
        "tokens": tokens,
        "lens": lens_section(opened, ids, device),
        "attention": attention_section(model, maps),
        "heads": heads_section(opened, device),
        **training_sections(opened, read, training, order),
        "neighbours": embedding_neighbours(model, tokenizer, ids) if isinstance(model, GPT) else no_gpt(model),
    }
    return Explanation(content, maps)


def model_name(opened: OpenedModel[Model]) -> str:
    """Return the name of a model's run, or else of what was opened."""
    name = opened.config.get("name")
    return name if isinstance(name, str) and name else opened.name.rstrip("/").rpartition("/")[2] or opened.name


def no_gpt(model: Model) -> dict[str, str]:
    return {"missing": f"This model is a {type(model).__name__}: it has no layers to look into."}


def lens_section(opened: OpenedModel[Model], ids: np.ndarray, device: torch.device) -> dict[str, Any]:
    """Return the logit lens over as many of the last tokens as `MOST_CELLS` allow."""
    model = opened.model
    if not isinstance(model, GPT):
        return no_gpt(model)
    lens = logit_lens(model, torch.from_numpy(ids).to(device), min(LENS_TOKENS, model.config.vocab_size))
    rows = len(lens.ids)
    first = max(len(ids) - MOST_CELLS // rows, 0)
    shown = lens.ids[:, first:]
    return {
        "rows": ["embedding", *(f"layer {i}" for i in range(1, rows))],
        "first": first,
        "ids": shown.tolist(),
        "probabilities": lens.probabilities[:, first:].tolist(),
        "kl_bits": (lens.kl[:, first:] / np.log(2)).tolist(),
        "mean_kl_bits": (lens.kl.mean(axis=1) / np.log(2)).tolist(),
        "mean_bits": (lens.nats.mean(axis=1) / np.log(2)).tolist(),
        "next_bits": (lens.nats[:, first:] / np.log(2)).tolist(),
        "texts": {str(token): token_text(opened.tokenizer, token) for token in np.unique(shown).tolist()},
    }


def attention_section(model: Model, maps: AttentionMaps | None) -> dict[str, Any]:
    """Return what the maps are of."""
    if not isinstance(model, GPT):
        return no_gpt(model)
    if maps is None:
        return {"missing": "The model has no attention (model.attention=none)."}
    layers, count, size, _ = maps.levels.shape
    return {"layers": layers, "heads": count, "first": maps.first, "tokens": size}


def heads_section(opened: OpenedModel[Model], device: torch.device) -> dict[str, Any]:
    """Return each head's scores on repeated sequences of random tokens."""
    model = opened.model
    if not isinstance(model, GPT):
        return no_gpt(model)
    if not model.config.has_attention:
        return {"missing": "The model has no attention (model.attention=none)."}
    repeated = heads.repeated_sequences(opened.tokenizer, model)
    if repeated is None:
        return {
            "missing": f"A block of {model.config.block_size} tokens, its window or its {model.config.vocab_size} "
            f"tokens do not suffice for {heads.SHORTEST} different tokens and the same again."
        }
    scores = heads.score_heads(model, repeated, device)
    return {
        "sequences": len(repeated.idx),
        "length": repeated.length,
        "seed": heads.SEED,
        "even": heads.even_attention(repeated, attention_span(model.config)),
        **{name: getattr(scores, name).tolist() for name in ("induction", "previous", "first")},
    }


def open_or_say_why(opened: OpenedModel[Model], data: str | None) -> TrainingText | str:
    """Open the training text, or return in words why a model's own is not known.

    Raises:
        UserError: the text that `data` names cannot be had.
    """
    try:
        return open_training_text(opened, data)
    except UserError as error:
        if data is not None:
            raise UserError(f"--data {data}: {error}") from error
        return f"The training text is needed for this, and is not known: {error}."


def training_sections(
    opened: OpenedModel[Model], read: ReadText, training: TrainingText | str, order: int
) -> dict[str, dict[str, Any]]:
    """Return the passages of the training text, and a table of its counts beside the model."""
    if isinstance(training, str):
        return {"passages": {"missing": training}, "counts": {"missing": training}}
    measured, words = measure_counts(opened, read.ids, training, order)
    counts = {
        "order": order,
        "words": words,
        "totals": surprisal.totals(measured),
        "bits": surprisal.bits_by_token(measured, len(read.ids)),
    }
    return {"passages": {"source": training.words, **find_passages(read.text, training)}, "counts": counts}
