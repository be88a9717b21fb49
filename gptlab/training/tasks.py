"""The config group `task`: what a run is to learn, and by which objective."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from gptlab.alignment.advantages import BASELINES
from gptlab.alignment.logprobs import KL_ESTIMATORS
from gptlab.alignment.losses import DPO_VARIANTS, NORMALISATIONS, RATIOS
from gptlab.alignment.rewards import open_reward
from gptlab.data.chat.encoding import TOO_LONG
from gptlab.models.freezing import PARTS
from gptlab.models.other_configs import POSITIONS
from gptlab.system.errors import UserError, did_you_mean

LOSS_ON = ("answers", "all")
MARGINS = ("none", "data")
KL = ("exact", *KL_ESTIMATORS)
AUTO, MODEL, GPTLAB = "auto", "model", "gptlab"
CHAT_TEMPLATES = (AUTO, MODEL, GPTLAB)
BASE = "base"  # of task.text_loss: the text of init_from's model


@dataclass(frozen=True)
class TaskConfig:
    """What every task has; pretrain predicts each next token of a text."""

    name: str
    loss_on: str
    """What is trained on of a conversation: "answers" (what the assistant says, and the end of it) or "all"."""
    too_long: str
    """What happens to a conversation longer than block_size: "cut" or "refuse"."""
    pack: bool
    """Whether a row holds several conversations, none of which sees another."""
    check: int
    """Held-out prompts that are answered at each validation; 0: none."""
    answer_tokens: int
    """The most tokens of an answer."""
    train: str = "all"
    """The part of a model of init_from that is trained, see `freezing.train_only`."""
    samples: int = 0
    """Answers that are sampled to each of these prompts, beside the most probable one."""
    enough: float | None = None
    """The share of right answers to held-out prompts at which a run ends; None: it makes all its steps."""
    chat_template: str = AUTO
    """How conversations are written: as the model of init_from has learned it (model), in gptlab's format (gptlab), or
    the first where it brings a chat template (auto)."""
    text_loss: str | None = None
    """A text whose loss is measured at each validation, see `text_loss.open_text`; None: there is none."""

    def __post_init__(self) -> None:
        self.choose("loss_on", LOSS_ON)
        self.choose("too_long", TOO_LONG)
        self.choose("train", PARTS)
        self.choose("chat_template", CHAT_TEMPLATES)
        self.above("check", 0, "or 0 for none")
        self.above("samples", 0, "or 0 for none")
        self.above("answer_tokens", 1)
        if self.enough is not None and not 0 < self.enough <= 1:
            raise UserError(f"task.enough={self.enough}: is a share of right answers, above 0 and at most 1, or null")
        if self.enough is not None and (self.name == "pretrain" or not self.check):
            raise UserError(f"task.enough={self.enough}: nothing is answered; leave it null")

    def choose(self, key: str, known: tuple[str, ...]) -> None:
        """Check that a key has one of these values."""
        if (value := getattr(self, key)) not in known:
            raise UserError(f"task.{key}={value}: must be one of {', '.join(known)}")

    def above(self, key: str, least: float, otherwise: str = "") -> None:
        """Check that a key has a finite number of at least `least`."""
        value = getattr(self, key)
        if not least <= value < math.inf:
            raise UserError(
                f"task.{key}={value}: must be at least {max(least, 1) if otherwise else least}"
                + " and finite" * (value == math.inf)
                + (f", {otherwise}" if otherwise else "")
            )

    def share(self, key: str) -> None:
        """Check that a key has a number from 0 to 1."""
        if not 0 <= (value := getattr(self, key)) <= 1:
            raise UserError(f"task.{key}={value}: must be from 0 to 1")

    def positive(self, key: str, otherwise: str = "") -> None:
        """Check that a key has a finite number above 0, or None where there is another way."""
        value = getattr(self, key)
        if not (otherwise and value is None) and not 0 < value < math.inf:
            finite = " and finite" * (value == math.inf)
            raise UserError(f"task.{key}={value}: must be above 0{finite}" + (f", or {otherwise}" if otherwise else ""))


@dataclass(frozen=True)
class ClassifyConfig(TaskConfig):
    """Names the class of a text."""

    position: str = "last"
    """The token whose output the head reads: the last one of the text, or the first, which has seen nothing else."""
    balance: bool = False
    """Whether each class counts the same in the loss, however many texts it has."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.choose("position", POSITIONS)


@dataclass(frozen=True)
class RewardConfig(TaskConfig):
    """A reward model: which of two answers is preferred."""

    centring: float = 0.0
    """See `losses.reward_loss`."""
    margin: str = "none"
    """By how much the chosen answer must be better: "none", or what the data says, see `Preference.difference`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.choose("margin", MARGINS)
        self.above("centring", 0)


@dataclass(frozen=True)
class DPOConfig(TaskConfig):
    """Direct preference optimisation, see `losses.dpo_loss`."""

    variant: str = "sigmoid"
    beta: float = 0.1
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.choose("variant", DPO_VARIANTS)
        self.positive("beta")
        if not 0 <= self.label_smoothing < 0.5:
            raise UserError(f"task.label_smoothing={self.label_smoothing}: must be at least 0 and below 0.5")


@dataclass(frozen=True)
class PolicyConfig(TaskConfig):
    """What ppo and grpo have in common: a model learns from the rewards of its own answers."""

    group: int = 1
    """Answers to each prompt of a step."""
    updates: int = 1
    """Optimizer steps on the same answers."""
    temperature: float = 1.0
    """Of the sampling, and of the log-probabilities in the loss."""
    clip: float | None = None
    """See `losses.policy_loss`, as of the next two."""
    clip_high: float | None = None
    normalise: str = "token"
    kl: str = "exact"
    """How the divergence from the reference is computed in the loss: as the exact sum over the vocabulary, or as an
    estimate from the token that was drawn, see `logprobs.kl_estimate`."""
    kl_coef: float = 0.0
    """Its weight in the loss; 0: it is only measured."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("group", "updates"):
            self.above(key, 1)
        self.positive("temperature")
        self.positive("clip", "null for no clipping")
        self.positive("clip_high", "null for the same as task.clip")
        self.choose("normalise", NORMALISATIONS)
        self.choose("kl", KL)
        self.above("kl_coef", 0)
        if self.clip is None and self.clip_high is not None:
            raise UserError(f"task.clip_high={self.clip_high}: has no effect with task.clip=null; set that, e.g. 0.2")
        if self.clip is None and self.updates > 1:
            raise UserError(
                f"task.updates={self.updates} with task.clip=null: only the first step on an answer is on-policy; set "
                f"task.clip, e.g. 0.2, or task.updates=1"
            )


@dataclass(frozen=True)
class GRPOConfig(PolicyConfig):
    """An answer is compared to the others to its prompt, see `advantages.group_advantages`."""

    group: int = 8
    baseline: str = "mean"
    ratio: str = "token"
    """See `losses.policy_loss`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.choose("baseline", BASELINES)
        self.choose("ratio", RATIOS)
        if self.group < 2:
            raise UserError(f"task.group={self.group}: an answer is compared to the others to its prompt; at least 2")


@dataclass(frozen=True)
class PPOConfig(PolicyConfig):
    """A value head says what was to be expected before each token, see `advantages.gae`."""

    updates: int = 4
    clip: float | None = 0.2
    kl_reward: float = 0.0
    """The weight in the reward of each token's log-ratio to the reference, k1 of `logprobs.kl_estimate`: the exact
    divergence does not depend on the token that was drawn, so that the policy gradient would leave its own out."""
    gamma: float = 1.0
    lam: float = 0.95
    value_coef: float = 0.1
    """The weight of the value head's loss."""
    value_clip: float | None = 0.2
    """See `losses.value_loss`."""
    whiten: bool = True
    """Whether a step's advantages get the mean 0 and the standard deviation 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("kl_reward", "value_coef"):
            self.above(key, 0)
        for key in ("gamma", "lam"):
            self.share(key)
        self.positive("value_clip", "null for no clipping")


TASKS: dict[str, type[TaskConfig]] = {
    "pretrain": TaskConfig,
    "sft": TaskConfig,
    "classify": ClassifyConfig,
    "reward": RewardConfig,
    "dpo": DPOConfig,
    "ppo": PPOConfig,
    "grpo": GRPOConfig,
}
ALIGNING = ("dpo", "ppo", "grpo")
"""Tasks that need a trained model, which is also the reference that the policy is compared to."""

HEADED = ("classify", "reward")
"""Tasks that use another head in the place of the one that predicts tokens."""


def config_class(name: Any) -> type[TaskConfig]:
    """Return the class of a task's config.

    Raises:
        UserError: there is no such task.
    """
    if not isinstance(name, str) or name not in TASKS:
        raise UserError(f"task.name={name!s:.99}: no such task; {did_you_mean(f'{name!s:.99}', TASKS)}")
    return TASKS[name]


@dataclass(frozen=True)
class RewardNode:
    """The config group `reward`: what an answer earns, in training by ppo and grpo, and where answers are judged."""

    name: str
    """See `rewards.open_reward`, as of the next one."""
    argument: str | None
    model: str | None
    """A run of task=reward whose judgement is trained on in its place; None: there is none."""
    shuffle: bool
    """Whether the rewards of a step are dealt out to its answers at random: a control, which learns nothing."""
    unended: float | None
    """What an answer earns that does not end within task.answer_tokens; None: what it would if it had ended there."""

    def __post_init__(self) -> None:
        if self.unended is not None and not math.isfinite(self.unended):
            raise UserError(
                f"reward.unended={self.unended}: must be a finite number, or null for what it would earn if it ended"
            )
        try:
            open_reward(self.name, self.argument or "")
        except UserError as error:
            raise UserError(f"reward.name={self.name}: {error}") from None
