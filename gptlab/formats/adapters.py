"""Checkpoints that hold adapters alone, beside what names the model that they belong on, their base."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from gptlab import models
from gptlab.data import tokenizers
from gptlab.data.tokenizers import Tokenizer
from gptlab.formats import checkpoint, description
from gptlab.formats.checkpoint import LoadedHeaded, LoadedModel
from gptlab.formats.description import ModelInfo
from gptlab.models import Model, weights
from gptlab.models.gpt import GPT
from gptlab.models.gpt_config import GPTConfig
from gptlab.models.grow import grow_vocabulary
from gptlab.models.lora import LoRAConfig, add_adapters, load_adapters, merged, train_new_rows
from gptlab.system.errors import UserError
from gptlab.system.files import expand_user, is_there

KEY = description.ADAPTERS
ORIGIN = description.ORIGIN
UNDERNEATH, COMPARED = "the model that its adapters belong on", "the model that its policy is compared to"
BEGUN = "the model that it began as"
LATER_FIELDS = {
    **{"rope_fraction": 1.0, "rope_beta_slow": 1.0, "rope_beta_fast": 32.0, "rope_attention_factor": None},
    "parallel_norms": False,
}
"""Fields of a model's config that came after the first checkpoints with adapters, with what was done before."""


@dataclasses.dataclass(frozen=True)
class Base:
    """What names a model that a run began with: that its adapters belong on, or that its policy is compared to."""

    name: str
    """As init_from gave it: a path, or a name on the Hugging Face hub."""
    path: str | None
    """The absolute path; None: it is a name on the hub."""
    sha256: str
    """The hash of its weights and its config, see `digest`."""

    @classmethod
    def of(cls, name: str, model: Model) -> Base:
        """Return what names `model`, which was opened by `name`."""
        place = expand_user(name)
        return cls(name, str(place.resolve()) if place.exists() else None, digest(model))

    def found(self, what: str = UNDERNEATH) -> str:
        """Return the name by which it can be opened here.

        Args:
            what: what it is, for messages.

        Raises:
            UserError: it is neither where it was, nor where the name leads from here.
        """
        if self.path is None:
            return self.name
        here = expand_user(self.name)
        if is_there(Path(self.path)):
            return self.name if is_there(here) and here.resolve() == Path(self.path) else self.path
        if is_there(here):
            return self.name
        raise UserError(f"{what} is missing: {self.name} (it was {self.path}); put it back there")

    def check_began(self, model: Model, node: dict[str, Any]) -> None:
        """Check that `model`, as it was opened by `found`, is what a run began with.

        Args:
            node: the model node of that run's config, which may have other switches and fewer positions.

        Raises:
            UserError: it is not.
        """
        try:
            began = weights.crop(model, models.from_dict({**node, "vocab_size": model.config.vocab_size}))
        except UserError as error:
            raise UserError(f"{BEGUN} has changed: {self.name}: {error}") from error
        self.check(began, BEGUN)

    def check(self, model: Model, what: str = UNDERNEATH) -> None:
        """Check that `model` is the base as it was; arguments as in `found`.

        Raises:
            UserError: it is not.
        """
        if (found := digest(model)) != self.sha256:
            raise UserError(
                f"{what} has changed: {self.name} had the sha256 {self.sha256[:16]}, and has {found[:16]}; put "
                f"the model back that it was"
            )


def origin(about: dict[str, Any]) -> Base | None:
    """Return what names the model of init_from, by the description in a checkpoint; None: it does not say.

    Raises:
        UserError: what it says is damaged.
    """
    said = about[KEY].get("base") if isinstance(about.get(KEY), dict) else about.get(ORIGIN)
    if said is None:
        return None
    try:
        base = Base(**said)
    except TypeError as error:
        raise UserError(f"what it says of its init_from is damaged ({error!s:.99})") from error
    if not (isinstance(base.name, str) and isinstance(base.path, str | None) and isinstance(base.sha256, str)):
        raise UserError("what it says of its init_from is damaged: it does not name a model")
    return base


def digest(model: Model) -> str:
    """Return the sha256 (hex) of a model's weights and of its config, as it was before there were `LATER_FIELDS`."""
    config = models.to_dict(model.config)
    known = {name: value for name, value in config.items() if (name, value) not in LATER_FIELDS.items()}
    return weights.digest(weights.parameters(model), json.dumps(known, sort_keys=True))


def describe(config: LoRAConfig, base: Base) -> dict[str, Any]:
    """Return what a checkpoint says of its adapters, as a plain dict."""
    return {
        "lora": {**dataclasses.asdict(config), "targets": list(config.targets)},
        "base": dataclasses.asdict(base),
    }


def described(about: dict[str, Any]) -> tuple[LoRAConfig, Base]:
    """Return what `describe` described.

    Raises:
        UserError: a value is out of range, or the description is damaged.
    """
    try:
        lora, base = about["lora"], origin({KEY: about})
        for key, kind in (("rank", int), ("alpha", (int, float)), ("targets", list), ("dropout", (int, float))):
            if not isinstance(lora[key], kind):
                raise UserError(f"lora.{key}={lora[key]!r:.99}: has the wrong type")
        if base is None:
            raise UserError("it does not name its base")
        return LoRAConfig(**lora), base
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"what it says of its adapters is damaged ({type(error).__name__}: {error!s:.99})") from error


def restore(
    about: dict[str, Any], state: dict[str, Tensor], file: Path, load_base: Callable[[str], LoadedModel]
) -> tuple[GPT, Tokenizer, ModelInfo]:
    """Restore a model with its adapters, in evaluation mode.

    Args:
        about: the description in the checkpoint, see `checkpoint.describe`.
        state: the adapters.
        file: the checkpoint, for messages and the info.
        load_base: opens a model by its name.

    Raises:
        UserError: the base is missing or has changed, or the adapters do not fit it, or the description is damaged;
            or it is no language model.
    """
    about, state = checkpoint.language_model_of(about, state, file)
    try:
        config, base = described(about[KEY])
        model = on_base(about, config, base, state, load_base(base.found())[0])
        tokenizer = tokenizers.from_dict(about["tokenizer"])
        info = description.model_info(about, tokenizer, file, f"gptlab run with adapters on {base.name}")
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error!s:.500}"
        raise UserError(f"{file} cannot be opened: {reason}") from error
    return model, tokenizer, info


def restore_headed(
    about: dict[str, Any], state: dict[str, Tensor], file: Path, load_base: Callable[[str], LoadedModel]
) -> LoadedHeaded:
    """Restore a model with a head and adapters, which are merged, in evaluation mode; arguments as in `restore`.

    Raises:
        UserError: see there; or it has no head.
    """
    try:
        head = models.headed_from_dict(about["model"]).head
        gpt, tokenizer, info = restore(*checkpoint.without_head(about, state), file, load_base)
        return weights.put_head(merged(gpt), head, state), tokenizer, info
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} cannot be opened: {type(error).__name__}: {error!s:.500}") from error


def on_base(about: dict[str, Any], config: LoRAConfig, base: Base, state: dict[str, Tensor], found: Model) -> GPT:
    """Return the model with its adapters; arguments as in `restore`.

    Raises:
        UserError: see `restore`.
    """
    ours = models.from_dict(about["model"])
    if not isinstance(ours, GPTConfig) or not isinstance(found, GPT):
        raise UserError("adapters are for a GPT")
    ranks = {len(tensor) for name, tensor in state.items() if name.endswith(".A")}
    new = {len(tensor) for name, tensor in state.items() if name.endswith(".new.rows")} or {0}
    grown = ours.vocab_size - found.config.vocab_size
    weights.check_sound(found.config, state)
    if ranks != {config.rank} or new != {grown} or ours.n_layer != found.config.n_layer:
        raise UserError(
            f"its adapters have ranks {sorted(ranks)} and {sorted(new)} new tokens, and must have {config.rank} and "
            f"{grown} for the base {base.name}"
        )
    there = dataclasses.replace(ours, vocab_size=found.config.vocab_size, tied=found.config.tied)
    model = weights.crop(found, there)
    base.check(model)
    model = grow_vocabulary(model, ours.vocab_size)
    assert isinstance(model, GPT)
    add_adapters(model, config)
    train_new_rows(model, there.vocab_size)
    load_adapters(model, state)
    return model.eval()
