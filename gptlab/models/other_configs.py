"""The configs of the bigram table, and of a GPT with a head for something else than the next token."""

from __future__ import annotations

from dataclasses import dataclass

from gptlab.models.gpt_config import GPTConfig
from gptlab.system.errors import UserError, did_you_mean

KINDS = {"classify": "a classifier", "reward": "a reward model", "value": "a policy with a value head"}
POSITIONS = ("last", "first")


@dataclass(frozen=True)
class BigramConfig:
    vocab_size: int
    block_size: int = 8
    """Positions per training example; the model itself looks back at one token only."""

    def __post_init__(self) -> None:
        for field in ("vocab_size", "block_size"):
            if getattr(self, field) < 1:
                raise UserError(f"model.{field}={getattr(self, field)}: must be at least 1")


@dataclass(frozen=True)
class HeadConfig:
    """What a head is for, checked.

    Raises:
        UserError: a value is out of range, or belongs to another kind.
    """

    kind: str
    """classify (a score for each label), reward (one score for a text) or value (one for each position)."""
    labels: tuple[str, ...] = ()
    """The names of the classes, in the order of their scores; only of classify."""
    position: str = "last"
    """Where a text is judged: at its last token, or, for comparison, at its first, which has seen nothing else."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", tuple(self.labels))
        if self.kind not in tuple(KINDS):  # whatever a file holds
            raise UserError(f"head.kind={self.kind!s:.99}: no such head; {did_you_mean(f'{self.kind!s:.99}', KINDS)}")
        if self.position not in POSITIONS:
            raise UserError(f"head.position={self.position!s:.99}: must be one of {', '.join(POSITIONS)}")
        if self.kind == "value" and self.position != "last":
            raise UserError(f"head.position={self.position}: a value head judges each position; leave it out")
        if self.kind != "classify" and self.labels:
            raise UserError(f"head.labels={','.join(self.labels):.99}: is of head.kind=classify; leave it out")
        if self.kind == "classify" and len(set(self.labels)) < 2:
            raise UserError(f"head.labels={','.join(self.labels):.99}: must be at least 2 different labels")
        if len(set(self.labels)) < len(self.labels):
            twice = next(label for label in self.labels if self.labels.count(label) > 1)
            raise UserError(f"head.labels: {twice:.99} is there twice; name each label once")

    @property
    def n_outputs(self) -> int:
        return len(self.labels) or 1


@dataclass(frozen=True)
class HeadedConfig:
    """The config of a GPT and of its head; what both have in common with other configs are the two sizes."""

    gpt: GPTConfig
    head: HeadConfig

    @property
    def vocab_size(self) -> int:
        return self.gpt.vocab_size

    @property
    def block_size(self) -> int:
        return self.gpt.block_size
