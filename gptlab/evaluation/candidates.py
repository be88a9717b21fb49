"""What is evaluated: models, tables of counts, and the text that they are measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gptlab.data import tokenizers
from gptlab.data.tokenizers import Tokenizer
from gptlab.evaluation import eval_data
from gptlab.evaluation.eval_data import Source
from gptlab.evaluation.ngrams import NGrams
from gptlab.formats import open_model
from gptlab.formats.open_model import OpenedModel
from gptlab.models import Model
from gptlab.system.errors import UserError

HIGHEST = 6  # order of ngram:N

Candidate = OpenedModel[Model | NGrams]


def order(name: str) -> int | None:
    """6 of ngram:6, 0 of uniform, None of a model that is to be loaded.

    Raises:
        UserError: there is no such order.
    """
    orders = {"uniform": 0} | {f"ngram:{n}": n for n in range(1, HIGHEST + 1)}
    if name.startswith("ngram:") and name not in orders:
        raise UserError(f"{name}: the order must be a number from 1 to {HIGHEST}, as in ngram:{HIGHEST}")
    return orders.get(name)


def candidate(name: str) -> OpenedModel[Model]:
    """The model that `name` names; raises as `open_model.load`."""
    return open_model.open_model(name, raw_dir=eval_data.folders({})[0])


def count_table(name: str, n: int, text: Text, tokenizer: Tokenizer | str) -> Candidate:
    """The counts of order `n` on the train part of the text.

    Args:
        tokenizer: or the name of one, which learns from that part where it learns.
    """
    train = text.source.pieces("train")
    if isinstance(tokenizer, str):
        config, documents = tokenizers.TokenizerConfig(tokenizer, None), text.source.corpus.documents
        tokenizer = tokenizers.build(config, (piece.text for piece in train), documents, eval_data.folders({})[0])
    ids = text.source.encode(train, tokenizer) if n else np.zeros(0, np.int64)
    return OpenedModel(name, NGrams(ids, tokenizer.vocab_size, n), tokenizer, None)


@dataclass(frozen=True)
class Text:
    """The part of a text that the candidates are measured on."""

    name: str
    source: Source
    part: str
    notes: list[str]
    """What a reader of the numbers has to know."""


def choose_text(
    data: str | None,
    split: str | None,
    models: Sequence[Candidate],
    orders: dict[str, int],
    memorised: bool,
    first: str,
) -> Text:
    """The text that is asked for, by default that of the first run among the models.

    Args:
        data: the name of a text, a file or a folder; None: the run's own.
        split: train, val, test or all; None: val, but all of a file that no candidate has learned from.
        orders: of the tables that will be counted on its train part.
        memorised: the text is searched for copies, not measured.
        first: the name of the first candidate, for messages.

    Raises:
        UserError: it cannot be had, or is not the one that the run was trained on.
    """
    run = next((each for each in models if each.data), None)
    if data is None and run is None and models:
        raise UserError(f"{first} brings no text: give one with --data FILE, or e.g. --data shakespeare_char")
    if data is None and run is not None:
        source = eval_data.own(run.name, run.config, run.tokenizer)
    else:
        source = eval_data.named(data or "shakespeare_char", run.data if run else {})
    learned = [each for each in models if each.learned_from == source.sha256]
    if data is None and run is not None and run.learned_from not in (None, source.sha256):
        raise UserError(
            f"the text of {run.name} has changed since its training (its sha256 is {source.sha256[:16]} now): give the "
            f"text of then, or any other, with --data FILE"
        )
    counted = [name for name, n in orders.items() if n]
    file = data is not None and data not in eval_data.NAMED
    part = split or ("all" if file and not learned and not counted and not memorised else "val")
    if part == "all" and (counted or memorised):
        raise UserError("--split all: what comes from the train part is measured on another; use --split val")
    notes = []
    for each in learned:
        if part in ("train", "all"):
            notes.append(f"{each.name} has learned from this very text")
        elif eval_data.split(each.data) != source.split:
            notes.append(f"{each.name} holds out another part of this text, and may have learned from this one")
    if part == "train":
        notes += [f"{name} was counted on this very text" for name in counted]
    return Text(data if file and data else source.corpus.name, source, part, notes)
