"""Choose the objective of what a run is to learn, and what its answers are judged by."""

from __future__ import annotations

from typing import Any

from gptlab.alignment.rewards import open_reward
from gptlab.alignment.scoring import Scorer
from gptlab.data.chat.chat_format import Format
from gptlab.training.answers import Answers
from gptlab.training.example_datamodule import ExampleDataModule
from gptlab.training.judges import reward_model
from gptlab.training.label_datamodule import LabelDataModule
from gptlab.training.loading import Loaded
from gptlab.training.objectives.base import Objective
from gptlab.training.objectives.classes import Classes
from gptlab.training.objectives.next_token import NextToken
from gptlab.training.objectives.pairs import DPO, RewardModel
from gptlab.training.objectives.policy import Policy
from gptlab.training.pair_datamodule import PairDataModule
from gptlab.training.prompt_datamodule import PromptDataModule
from gptlab.training.sampled import SampledAnswers
from gptlab.training.settings import Settings
from gptlab.training.tasks import ClassifyConfig, DPOConfig, PolicyConfig, RewardConfig


def objective_and_answers(
    settings: Settings, loaded: Loaded, compile: dict[str, Any] | None
) -> tuple[Objective, Answers | None]:
    """Return a run's objective, and what lets its model answer held-out prompts.

    Args:
        compile: arguments of torch.compile; None: eager.

    Raises:
        UserError: see `open_reward`, `reward_model` and `ExampleDataModule.answers`.
    """
    data, tokenizer, task = loaded.data, loaded.tokenizer, settings.task
    next_token = NextToken(tokenizer, compile)
    if isinstance(data, LabelDataModule):
        assert isinstance(task, ClassifyConfig)
        counts = data.class_counts()
        weights = counts.sum() / (len(counts) * counts) if task.balance else None
        return Classes(data.labels, weights), None
    if isinstance(task, RewardConfig):
        assert isinstance(data, PairDataModule)
        return RewardModel(task, data.bayes_accuracy, data.noise), None
    if not isinstance(data, ExampleDataModule):
        return next_token, None
    sampled, chat, reference = None, data.prepared.chat, loaded.reference
    assert chat is not None
    scorer = scorer_of(settings, chat, data.block_size)
    if task.samples:
        known = data.prepared.said.known
        sampled = SampledAnswers(chat, scorer, task.samples, task.answer_tokens, settings.seed, reference, known)
    answers = data.answers(sampled)
    if reference is None:
        return next_token, answers
    if isinstance(task, DPOConfig):
        return DPO(task, reference), answers
    assert isinstance(data, PromptDataModule)
    assert isinstance(task, PolicyConfig)
    policy = Policy(
        task,
        settings.seed,
        settings.data.batch_size,
        chat,
        data.prompts.asked,
        data.prompts.ids,
        scorer,
        reference,
        next_token,
        settings.reward.shuffle,
    )
    return policy, answers


def scorer_of(settings: Settings, chat: Format, block_size: int) -> Scorer:
    """Return what gives answers in a chat format the rewards of a run.

    Raises:
        UserError: see `open_reward` and `reward_model`.
    """
    reward = settings.reward
    judge = reward_model(reward.model, chat, block_size) if reward.model else None
    return Scorer(chat.tokenizer, open_reward(reward.name, reward.argument or ""), judge, reward.unended)
