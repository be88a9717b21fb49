"""The candidates of an evaluation (models and n-gram tables), and the text that they are measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gptlab.data import tokenizers
from gptlab.data.survey import spelled_end
from gptlab.data.text_options import of_evaluate, read_before
from gptlab.data.tokenizers import Tokenizer
from gptlab.evaluation import eval_data
from gptlab.evaluation.eval_data import Source
from gptlab.evaluation.ngrams import NGrams
from gptlab.formats import adapters, open_model
from gptlab.formats.adapters import BEGUN, Base
from gptlab.formats.opened import OpenedModel
from gptlab.models import Model
from gptlab.system.errors import UserError

Candidate = OpenedModel[Model | NGrams]
"""A model or an n-gram table, with its tokenizer."""


def open_candidate(name: str) -> OpenedModel[Model]:
    """Open the model that `name` names, on the CPU.

    Raises:
        UserError: there is no such model, or it cannot be read.
    """
    return open_model.open_model(name, raw_dir=eval_data.data_folders({})[0])


def text_base(opened: OpenedModel[Model]) -> OpenedModel[Model] | None:
    """Open the model of texts that a run's weights go back to, see `text_base_of`; None: they began as random ones."""
    origin = adapters.origin(opened.info.about) if opened.info else None
    return text_base_of(opened.config.get("init_from"), origin, opened.config["model"])


def text_base_of(init_from: str | None, origin: Base | None, model: dict[str, Any]) -> OpenedModel[Model] | None:
    """Open the model of texts that a run goes back to: that of its init_from, or of that run's, and so on.

    Args:
        init_from: what the run began as.
        origin: what its checkpoints name it by; None: they do not.
        model: the model node of the run's config.

    Returns:
        None if there was none.

    Raises:
        UserError: see `open_candidate`; or one of these models is missing, or is another than it was.
    """
    while init_from is not None:
        found = open_candidate(origin.found(BEGUN) if origin else str(init_from))
        if origin:
            origin.check_began(found.model, model)
        if learned_texts(found):
            return found
        init_from, model = found.config.get("init_from"), found.config["model"]
        origin = adapters.origin(found.info.about) if found.info else None
    return None


def learned_texts(opened: OpenedModel[Model]) -> bool:
    """Return whether a model has learned to go on with texts, and nothing else."""
    return opened.config.get("task", {}).get("name", "pretrain") == "pretrain"


def count_table(name: str, n: int, text: EvalText, tokenizer: Tokenizer | str) -> Candidate:
    """Count n-grams on the train part of a text.

    Args:
        name: the candidate's name.
        n: the order; 0 counts nothing.
        text: the text.
        tokenizer: a tokenizer, or the name of one; char learns its characters from the train part.

    Raises:
        UserError: the train part or the tokenizer cannot be had.
    """
    train = text.source.pieces("train")
    if isinstance(tokenizer, str):
        config, documents = tokenizers.TokenizerConfig(tokenizer, None), text.source.corpus.documents
        tokenizer = tokenizers.build(config, (piece.text for piece in train), documents, eval_data.data_folders({})[0])
    ids = text.source.encode(train, tokenizer, "train") if n else np.zeros(0, np.int64)
    return OpenedModel(name, NGrams(ids, tokenizer.vocab_size, n), tokenizer, None)


@dataclass(frozen=True)
class EvalText:
    """The part of a text that the candidates are measured on."""

    name: str
    source: Source
    part: str
    """Which part: train, val, test or all."""
    notes: list[str]
    """Caveats for the reader of the numbers."""

    @property
    def facts(self) -> dict[str, str]:
        """What it is, as plain data for --json."""
        return {"name": self.name, "split": self.part, "sha256": self.source.sha256, "read": self.source.described}


def choose_text(
    data: str | None,
    split: str | None,
    models: Sequence[Candidate],
    orders: dict[str, int],
    memorised: bool,
    first: str,
    flags: dict[str, Any] | None = None,
) -> EvalText:
    """Open the text that was asked for, by default the text of the first run among the models.

    Args:
        data: the name of a text, a file or a folder; None: the run's own text.
        split: train, val, test or all; None: val, or all of a file that no candidate has learned from.
        models: the opened models among the candidates.
        orders: names and orders of the n-gram tables that will be counted on its train part.
        memorised: whether the text is searched for copies instead of measured.
        first: the name of the first candidate, for messages.
        flags: how the text is read, where it is not as the run reads its own, see `eval_data.named_source`.

    Raises:
        UserError: the text cannot be had, or it has changed since the run was trained.
    """
    run = next((each for each in models if each.data), None)
    if data is None and run is None and models:
        raise UserError(f"{first} brings no text: give one with --data FILE, or e.g. --data shakespeare_char")
    if data is None and run is not None:
        source = eval_data.source_of_run(run.name, run.config, run.tokenizer)
    else:
        source = eval_data.named_source(data or "shakespeare_char", run.data if run else {}, flags or {})
    learned = [each for each in models if each.learned_from == source.sha256]
    if data is None and run is not None and run.learned_from not in (None, source.sha256):
        raise UserError(
            f"the text of {run.name} has changed since its training (its sha256 is {source.sha256[:16]} now): give the "
            f"text of then, or any other, with --data FILE{read_before(run.data, of_evaluate)}"
        )
    counted = [name for name, n in orders.items() if n]
    file = data is not None and data not in eval_data.NAMED_TEXTS
    part = split or ("all" if file and not learned and not counted and not memorised else "val")
    if part == "all" and (counted or memorised):
        raise UserError("--split all: what comes from the train part is measured on another; use --split val")
    ends = (spelled_end(source.corpus, each.tokenizer) for each in models)
    notes = [*source.caveats, *dict.fromkeys(filter(None, ends))]
    for each in learned:
        if part in ("train", "all"):
            notes.append(f"{each.name} has learned from this very text")
        elif eval_data.split_of_run(each.data) != source.split:
            notes.append(f"{each.name} holds out another part of this text, and may have learned from this one")
    if part == "train":
        notes += [f"{name} was counted on this very text" for name in counted]
    return EvalText(data if file and data else source.corpus.name, source, part, notes)
