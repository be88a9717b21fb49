"""Choose the objective of what a run is to learn, and what its answers are judged by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gptlab.alignment.rewards import open_reward
from gptlab.alignment.scoring import Scorer
from gptlab.data.chat.chat_format import ChatFormat
from gptlab.data.tokenizers import Tokenizer
from gptlab.formats import checkpoint
from gptlab.models.heads import HeadedGPT
from gptlab.system.errors import UserError
from gptlab.system.files import expand_user
from gptlab.training.answers import Answers
from gptlab.training.chat_datamodule import ChatDataModule
from gptlab.training.loading import Loaded
from gptlab.training.objectives.base import Objective
from gptlab.training.objectives.next_token import NextToken
from gptlab.training.objectives.policy import Policy
from gptlab.training.prompt_datamodule import PromptDataModule
from gptlab.training.sampled import SampledAnswers
from gptlab.training.settings import Settings
from gptlab.training.tasks import PolicyConfig


def objective_and_answers(
    settings: Settings, loaded: Loaded, compile: dict[str, Any] | None
) -> tuple[Objective, Answers | None]:
    """Return a run's objective, and what lets its model answer held-out prompts.

    Args:
        compile: arguments of torch.compile; None: eager.

    Raises:
        UserError: see `open_reward` and `reward_model`.
    """
    data, tokenizer, task, reward = loaded.data, loaded.tokenizer, settings.task, settings.reward
    next_token = NextToken(tokenizer, compile)
    if not isinstance(data, ChatDataModule):
        return next_token, None
    chat = ChatFormat(tokenizer)
    judge = reward_model(reward.model, tokenizer) if reward.model else None
    scorer = Scorer(tokenizer, open_reward(reward.name, reward.argument or ""), judge, reward.unended)
    sampled, known = None, data.prepared.said.known
    if task.samples:
        sampled = SampledAnswers(chat, scorer, task.samples, task.answer_tokens, settings.seed, loaded.reference, known)
    answers = data.answers(sampled)
    if not isinstance(data, PromptDataModule):
        return next_token, answers
    assert isinstance(task, PolicyConfig)
    assert loaded.reference is not None
    policy = Policy(
        task,
        settings.seed,
        settings.data.batch_size,
        chat,
        data.asked,
        data.prompts,
        scorer,
        loaded.reference,
        next_token,
        reward.shuffle,
    )
    return policy, answers


def reward_model(name: str, tokenizer: Tokenizer) -> HeadedGPT:
    """Load the reward model of a run of task=reward, in evaluation mode.

    Raises:
        UserError: there is no such run, it has learned something else, or it reads other tokens than the policy.
    """
    model, theirs, _ = checkpoint.load_headed(Path(expand_user(name)))
    if (kind := model.head_config.kind) != "reward":
        raise UserError(f"reward.model={name}: has a head for {kind}, and must be a run of task=reward")
    if theirs.tokens != tokenizer.tokens:
        raise UserError(
            f"reward.model={name}: reads other tokens ({theirs.name}, {theirs.vocab_size:,}) than the policy "
            f"({tokenizer.name}, {tokenizer.vocab_size:,}); train both from one model of task=sft"
        )
    return model.requires_grad_(False).eval()
