"""An opened model, as torch or as arrays."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from gptlab.data.chat.chat_format import Format, end_tokens
from gptlab.data.tokenizers import Tokenizer
from gptlab.formats.description import ModelInfo
from gptlab.system.errors import UserError

AnyModel = TypeVar("AnyModel", covariant=True)
OneKind = TypeVar("OneKind")


@dataclass(frozen=True)
class OpenedModel(Generic[AnyModel]):
    """A model, the name that the user gave it, its tokenizer and its info."""

    name: str
    model: AnyModel
    tokenizer: Tokenizer
    info: ModelInfo | None
    """None for an n-gram table."""
    bits: int | None = None
    """Of its weights, where they are quantised."""

    @property
    def words(self) -> str:
        """A one-line description."""
        words = self.info.words if self.info else self.name
        return words if self.bits is None else f"{words}, {self.bits} bits"

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config of a run; empty for any other model."""
        return self.info.config if self.info else {}

    @property
    def chat(self) -> Format | None:
        """The format in which it has learned to answer; None: it continues texts. Errors as in `ModelInfo.chat`."""
        return self.info.chat if self.info else None

    @property
    def ends(self) -> set[int]:
        """The ids that end an answer or a text; of a broken chat template none are known."""
        ends = end_tokens(self.tokenizer)
        with suppress(UserError):
            ends |= {*(self.chat.ends if self.chat else ())}
        return ends

    @property
    def data(self) -> dict[str, Any]:
        """The node `data` of the run's config; empty if there is none."""
        data = self.config.get("data")
        return data if isinstance(data, dict) else {}

    @property
    def learned_from(self) -> str | None:
        """The sha256 of the text that a run was trained on; None if the model does not say."""
        return self.info.data_sha256 if self.info else None


def with_bits(
    opened: OpenedModel[OneKind], bits: int, quantise: Callable[[OneKind, int], OneKind]
) -> OpenedModel[OneKind]:
    """Return a model with weights of `bits` bits; `quantise` makes it of one, as torch or as arrays.

    Raises:
        UserError: `quantise` refuses the model.
    """
    try:
        return replace(opened, model=quantise(opened.model, bits), bits=bits)
    except UserError as error:
        raise UserError(f"--precision int{bits}: {opened.name}: {error}") from error
