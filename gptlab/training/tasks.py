"""The config group `task`: what a run is to learn."""

from __future__ import annotations

from dataclasses import dataclass

from gptlab.data.chat.encoding import TOO_LONG
from gptlab.models.freezing import PARTS
from gptlab.system.errors import UserError, did_you_mean

TASKS = ("pretrain", "sft")
LOSS_ON = ("answers", "all")


@dataclass(frozen=True)
class TaskConfig:
    """pretrain predicts each next token of a text; sft (supervised fine-tuning) the answers of conversations."""

    name: str
    loss_on: str
    """What is trained on of a conversation: "answers" (what the assistant says, and the end of it) or "all"."""
    too_long: str
    """What happens to a conversation longer than block_size: "cut" or "refuse"."""
    pack: bool
    """Whether a row holds several conversations, none of which sees another."""
    check: int
    """Answers that are drawn at each validation; 0: none."""
    answer_tokens: int
    """The most tokens of such an answer."""
    train: str = "all"
    """The part of a model of init_from that is trained, see `freezing.train_only`."""

    def __post_init__(self) -> None:
        if self.name not in TASKS:
            raise UserError(f"task.name={self.name}: no such task; {did_you_mean(self.name, TASKS)}")
        for key, value, known in (
            ("loss_on", self.loss_on, LOSS_ON),
            ("too_long", self.too_long, TOO_LONG),
            ("train", self.train, PARTS),
        ):
            if value not in known:
                raise UserError(f"task.{key}={value}: must be one of {', '.join(known)}")
        if self.check < 0:
            raise UserError(f"task.check={self.check}: must be at least 1, or 0 for none")
        if self.answer_tokens < 1:
            raise UserError(f"task.answer_tokens={self.answer_tokens}: must be at least 1")
