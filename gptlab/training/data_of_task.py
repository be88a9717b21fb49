"""Choose the data module of what a run is to learn."""

from __future__ import annotations

from gptlab.data.chat.template import ChatTemplate
from gptlab.data.tokenizers import Tokenizer
from gptlab.system.errors import UserError
from gptlab.training.chat_datamodule import ChatDataModule
from gptlab.training.datamodule import LMDataModule, RunData
from gptlab.training.example_datamodule import ExampleDataModule
from gptlab.training.label_datamodule import LabelDataModule
from gptlab.training.pair_datamodule import PairDataModule
from gptlab.training.prompt_datamodule import PromptDataModule
from gptlab.training.settings import Settings

KINDS: dict[str, type[ExampleDataModule]] = {
    "sft": ChatDataModule,
    "classify": LabelDataModule,
    "reward": PairDataModule,
    "dpo": PairDataModule,
    "ppo": PromptDataModule,
    "grpo": PromptDataModule,
}


def data_module(
    settings: Settings, given: Tokenizer | None, block_size: int, template: ChatTemplate | None = None
) -> RunData:
    """Return the data of what a run is to learn.

    Args:
        given: the tokenizer of init_from.
        block_size: tokens in a row, T.
        template: the chat template of init_from, if messages are written in it.

    Raises:
        UserError: a tokenizer is chosen where init_from brings its own.
    """
    how, task = settings.tokenizer or given, settings.task
    assert how is not None  # checked by `from_config`
    if task.name == "pretrain":
        return LMDataModule(settings.data, how, block_size, settings.seed)
    if given and settings.tokenizer:
        raise UserError(
            f"tokenizer={settings.tokenizer.name}: init_from brings its own, to which task={task.name} adds the tokens "
            f"of a chat; leave it out"
        )
    kind, judged = KINDS[task.name], settings.reward.model is not None
    return kind(settings.data, task, how, block_size, settings.seed, template, settings.init_from, judged)
