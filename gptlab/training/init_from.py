"""`init_from=MODEL`: start a run with the weights and the tokenizer of a trained model."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptlab.runs.compose import PRETRAINED
from gptlab.system.errors import UserError

if TYPE_CHECKING:
    from gptlab.data.chat.template import ChatTemplate
    from gptlab.data.tokenizers import Tokenizer
    from gptlab.formats.description import ModelInfo
    from gptlab.models import Model, ModelConfig

log = logging.getLogger(__name__)


def load(
    name: str | Path, model: dict[str, Any], raw_dir: Path, dropout: bool = True
) -> tuple[Model, Tokenizer, ModelInfo]:
    """Load the model `name`, in training mode and with the changes of the config, its tokenizer and its info.

    Args:
        model: the config's model node: for model=pretrained its changes (None: no change), else a whole architecture.
        raw_dir: see `open_model.load_model`.
        dropout: whether it has the dropout that it had, or that the config says; otherwise it has none.

    Raises:
        UserError: there is no such model, or it does not fit the config; the message lists the differences.
    """
    from gptlab.formats import open_model

    source, tokenizer, info = open_model.load_model(name, raw_dir=raw_dir)
    found = changed(source, model, name, dropout)
    log.info("weights: %s", info.words)
    return found, tokenizer, info


def changed(source: Model, model: dict[str, Any], name: str | Path, dropout: bool = True) -> Model:
    """Return the model `source` in training mode and with the changes that the config makes; arguments as in `load`."""
    from gptlab.models import weights
    from gptlab.models.gpt_config import GPTConfig

    config = fitted(source.config, model, name)
    if isinstance(config, GPTConfig) and not dropout:
        config = replace(config, dropout=0.0, attn_dropout=None)
    return weights.crop(source, config).train()


def fitted(theirs: ModelConfig, model: dict[str, Any], name: str | Path) -> ModelConfig:
    """Return the config of a model that can take over the weights of one with the config `theirs`.

    Raises:
        UserError: see `load`.
    """
    from gptlab import models

    there = models.to_dict(theirs)
    if model["name"] == PRETRAINED:
        changes = {key: value for key, value in model.items() if key != "name" and value is not None}
        for key in changes.keys() - there.keys():
            raise UserError(f"model.{key}={changes[key]}: init_from={name} is a {there['name']}, which has none")
        ours = models.from_dict({**there, **changes})
    else:
        ours = models.from_dict({**model, "vocab_size": theirs.vocab_size})
    here, a, b = models.to_dict(ours), _computes(ours), _computes(theirs)
    if here["name"] != there["name"]:
        keys = ["name"]
    else:  # only keys that differ themselves: n_inner, for one, follows from n_embd
        keys = [key for key in a if a[key] != b[key] and here[key] != there[key]]
    if keys:
        found = ", ".join(f"model.{key} is {a[key]} here and {b[key]} there" for key in keys)
        raise UserError(
            f"init_from={name} does not fit the model: {found}; leave these keys out, or use model={PRETRAINED}, which "
            f"takes its architecture"
        )
    if there.get("pos") == "learned" and ours.block_size > theirs.block_size:
        raise UserError(
            f"model.block_size={ours.block_size}: init_from={name} has learned positions for {theirs.block_size} "
            f"tokens; use model.block_size={theirs.block_size} or less"
        )
    return ours


def _computes(config: ModelConfig) -> dict[str, Any]:
    """Return the config values that decide which weights a model has and what it computes with them."""
    from gptlab import models
    from gptlab.models.gpt_config import GPTConfig

    plain = models.to_dict(config)
    for key in ("block_size", "dropout", "attn_dropout", "gradient_checkpointing", "init", "zero_init"):
        plain.pop(key, None)
    if isinstance(config, GPTConfig):
        plain |= {"n_kv_head": config.kv_heads, "n_inner": config.hidden, "qkv_bias": config.has_qkv_bias}
        plain["head_dim"] = config.head_size
        plain["attention"] = "some" if config.has_attention else "none"
    return plain


def node(model: Model) -> dict[str, Any]:
    """Return the config's model node for an existing model."""
    from gptlab import models

    return {key: value for key, value in models.to_dict(model.config).items() if key != "vocab_size"}


def chat_template(info: ModelInfo, name: str, chosen: str) -> ChatTemplate | None:
    """Return the chat template in which a model of init_from goes on to learn; None: gptlab's format.

    Args:
        info: of the model.
        name: the value of init_from.
        chosen: the value of task.chat_template.

    Raises:
        UserError: it is to be the model's, which has none, or a broken one.
    """
    from gptlab.data.chat.template import ChatTemplate
    from gptlab.training.tasks import GPTLAB, MODEL

    if chosen == GPTLAB:
        return None
    try:
        chat = info.chat
    except UserError as error:
        raise UserError(f"init_from={name}: {error}. task.chat_template={GPTLAB} does without it") from error
    if chat is None and chosen == MODEL:
        raise UserError(
            f"task.chat_template={MODEL}: init_from={name} brings no chat template; use task.chat_template={GPTLAB}"
        )
    return chat if isinstance(chat, ChatTemplate) else None


def with_tokens(model: Model, tokenizer: Tokenizer) -> Model:
    """Return the model with rows for the tokens that its tokenizer has been given since, see `grow_vocabulary`."""
    from gptlab.models.grow import grow_vocabulary

    before = model.config.vocab_size
    if tokenizer.vocab_size <= before:
        return model
    new = [name for name, token in tokenizer.special_tokens.items() if token >= before]
    log.info("new tokens, whose weights begin as the mean of the others': %s", " ".join(new))
    return grow_vocabulary(model, tokenizer.vocab_size)


def check_tokenizer(ours: Tokenizer, theirs: Tokenizer) -> None:
    """Check that the config's tokenizer `ours` gives the ids that the weights were trained on.

    Raises:
        UserError: it does not.
    """
    a, b = ours.tokens, theirs.tokens
    if a == b:
        return
    differs = f"it has {len(a):,} tokens, that one {len(b):,}"
    if len(a) == len(b):
        first = next(i for i in range(len(a)) if a[i] != b[i])
        differs = f"token {first} is {a[first]!r} here and {b[first]!r} there"
    raise UserError(
        f"tokenizer={ours.name} is not the one that init_from was trained with ({theirs.name}): {differs}; leave "
        f"tokenizer= out, or use tokenizer={PRETRAINED}, to take that one"
    )
