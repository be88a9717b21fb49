"""Models that judge: classifiers and reward models, and whether they read as another model does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gptlab.data.chat.chat_format import ChatFormat, Format
from gptlab.data.tokenizers import Tokenizer
from gptlab.formats import checkpoint, open_model
from gptlab.formats.description import ModelInfo
from gptlab.models.heads import HeadedGPT
from gptlab.system.errors import UserError
from gptlab.system.files import expand_user
from gptlab.training.tasks import HEADED


class Reader(Protocol):
    """What reads conversations."""

    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def chat(self) -> Format | None: ...


def reads_alike(a: Reader, b: Reader) -> bool:
    """Return whether two read the same tokens of the same conversation."""
    written = [None if each.chat is None else each.chat.as_template() for each in (a, b)]
    return a.tokenizer.tokens == b.tokenizer.tokens and written[0] == written[1]


@dataclass(frozen=True)
class Judge:
    """A classifier or a reward model."""

    name: str
    """For messages."""
    model: HeadedGPT
    tokenizer: Tokenizer
    info: ModelInfo

    @property
    def chat(self) -> Format | None:
        """The format in which it reads answers; None: it reads texts."""
        if self.model.head_config.kind == "classify":
            return None
        return self.info.chat or ChatFormat(self.tokenizer)


def has_scores(name: str) -> bool:
    """Return whether this is a classifier or a reward model, which has no answers."""
    try:
        about, *_ = checkpoint.read_model(Path(name))
    except UserError:
        return False
    head = about["model"].get("head") if isinstance(about.get("model"), dict) else None
    return isinstance(head, dict) and head.get("kind") in HEADED


def open_judge(name: str) -> Judge:
    """Open the model `name` of a run of task=classify or task=reward.

    Raises:
        UserError: there is no such run, or its model has no head for a task.
    """
    try:
        return Judge(name, *open_model.load_headed(expand_user(name)))
    except UserError as error:
        raise UserError(f"{error}; it must be a run of {' or '.join(f'task={each}' for each in HEADED)}") from error


def reward_model(name: str, chat: Format, block_size: int) -> HeadedGPT:
    """Load the reward model of a run of task=reward, in evaluation mode.

    Args:
        chat: the format in which the policy is asked and answers.

    Raises:
        UserError: there is no such run, it has learned something else, or it reads other tokens than the policy, or
            in another format, or fewer at once.
    """
    try:
        judge = open_judge(name)
    except UserError as error:
        raise UserError(f"reward.model={name}: {error}") from error
    model, theirs, ours = judge.model, judge.tokenizer, chat.tokenizer
    if (kind := model.head_config.kind) != "reward":
        raise UserError(f"reward.model={name}: has a head for {kind}, and must be a run of task=reward")
    if theirs.tokens != ours.tokens:
        raise UserError(
            f"reward.model={name}: reads other tokens ({theirs.name}, {theirs.vocab_size:,}) than the policy "
            f"({ours.name}, {ours.vocab_size:,}); train both from one model of task=sft"
        )
    if judge.chat is None or judge.chat.as_template() != chat.as_template():
        raise UserError(
            f"reward.model={name}: reads another chat format than the policy's, {chat.words}; train both from one "
            f"model of task=sft"
        )
    if (most := model.config.block_size) < block_size and not model.config.gpt.slides:
        raise UserError(
            f"model.block_size={block_size}: reward.model={name} reads {most:,} tokens; use model.block_size={most}"
        )
    return model.requires_grad_(False).eval()
