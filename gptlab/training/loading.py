"""Load what a run begins with: its data, the model of `init_from` and its tokenizer."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from gptlab.alignment.reference import Reference
from gptlab.data.chat.template import ChatTemplate
from gptlab.data.tokenizers import Tokenizer
from gptlab.formats import open_model
from gptlab.formats.adapters import COMPARED, Base
from gptlab.formats.description import ModelInfo
from gptlab.models import Model
from gptlab.models.heads import language_model
from gptlab.training import data_of_task, init_from
from gptlab.training.datamodule import RunData
from gptlab.training.resume import Start
from gptlab.training.settings import Settings
from gptlab.training.tasks import ALIGNING

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaded:
    """What a run begins with, and what it decides that the settings leave open."""

    data: RunData
    tokenizer: Tokenizer
    model: Model | None
    """With the weights of `init_from`, or of the checkpoint that the run resumes from; None: it is to be built."""
    node: dict[str, Any]
    """The config's model node; with `init_from` the architecture of those weights."""
    known_tokens: int
    """Tokens that are not new to the model of `init_from`; without one, all."""
    origin: Base | None
    """What names the model of `init_from`; None: there is none, or a run of an older version goes on."""
    reference: Reference | None
    """Of a run whose policy is compared to the model of `init_from`."""

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    def config(self, settings: Settings) -> dict[str, Any]:
        """Return the run's complete config, as its folder and its checkpoints store it."""
        config = settings.to_dict()
        data = {**config["data"], "name": self.data.prepared.name}  # data=auto chooses one
        return {**config, "model": self.node, "data": data}


def load(settings: Settings, start: Start | None = None) -> Loaded:
    """Prepare a run's data, and load its weights if `init_from` names some.

    Args:
        start: the checkpoint that the run resumes from.

    Raises:
        UserError: the text or the model of `init_from` cannot be loaded, or they do not go together; or the reference
            has changed.
    """
    model: Model | None = None
    given: Tokenizer | None = None
    origin: Base | None = None
    node: dict[str, Any] = settings.resolved["model"]
    template: ChatTemplate | None = None
    known = None
    if settings.init_from:
        model, given, info = _model(settings, start)
        node = init_from.node(model)
        known = model.config.vocab_size - (start.new_tokens if start else 0)
        origin = start.origin if start else Base.of(settings.init_from, model)
        if settings.lora:
            assert origin is not None
            origin.check(model)
        if settings.task.name not in ("pretrain", "classify"):
            chosen = settings.task.chat_template
            template = (
                start.chat_template(given) if start else init_from.chat_template(info, settings.init_from, chosen)
            )
    data = data_of_task.data_module(settings, given, node["block_size"], template)
    data.prepare_data()
    tokenizer: Tokenizer = data.prepared.tokenizer
    if given and settings.task.name == "pretrain":
        init_from.check_tokenizer(tokenizer, given)
        tokenizer = given
    if model is not None:
        model = init_from.with_tokens(model, tokenizer)
    reference = _reference(settings, start, model, tokenizer) if model and settings.task.name in ALIGNING else None
    return Loaded(data, tokenizer, model, node, known or tokenizer.vocab_size, origin, reference)


def _model(settings: Settings, start: Start | None) -> tuple[Model, Tokenizer, ModelInfo]:
    """Return the model of `init_from`, or of the checkpoint, its tokenizer and its info; a policy has no dropout."""
    dropout = settings.task.name not in ALIGNING
    if start is not None and start.base is None and start.headed:
        model, tokenizer, info = open_model.load_headed(start.path)
        return init_from.changed(language_model(model), settings.model, start.path, dropout), tokenizer, info
    assert settings.init_from is not None
    name = start.source if start else settings.init_from
    return init_from.load(name, settings.model, settings.data.folder("dir"), dropout)


def _reference(settings: Settings, start: Start | None, model: Model, tokenizer: Tokenizer) -> Reference:
    """Return the reference of a policy: the model that it began as.

    Args:
        model: what the run begins with, here.

    Raises:
        UserError: the model is missing, or has changed since.
    """
    if settings.lora:
        return Reference(None)
    if start is None:
        return Reference(model)
    assert start.origin is not None
    name = start.origin.found(COMPARED)
    first, *_ = init_from.load(name, settings.model, settings.data.folder("dir"), dropout=False)
    start.origin.check(first, COMPARED)
    return Reference(init_from.with_tokens(first, tokenizer))
