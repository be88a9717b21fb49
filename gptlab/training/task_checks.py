"""Check that what a run is to learn goes together with its data, its model and its trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gptlab.alignment.rewards import open_reward
from gptlab.data.chat import sources
from gptlab.data.chat.example_set import CONVERSATIONS, FORMS, LABELS, PREFERENCES, check_form
from gptlab.runs.compose import PRETRAINED
from gptlab.system.errors import UserError
from gptlab.training.tasks import ALIGNING, BASE, HEADED, MODEL, PolicyConfig

if TYPE_CHECKING:
    from gptlab.training.settings import Settings

OPEN = ("continuations", "preferences")  # data whose prompts have no right answer


def check(found: Settings) -> None:
    """Check the settings of a run for what no group of keys knows alone.

    Raises:
        UserError: they do not go together.
    """
    _check_data(found)
    _check_part(found)
    if (text := found.task.text_loss) is not None:
        _check_text(found, text)
    if found.task.name in ALIGNING:
        _check_reference(found)
    if isinstance(found.task, PolicyConfig):
        _check_rollouts(found, found.task)
    elif found.reward.shuffle:
        raise UserError(f"reward.shuffle=true with task={found.task.name}: no reward is learned from; leave it out")
    if found.task.name not in ("pretrain", "sft"):
        _check_machine(found)


def _check_data(found: Settings) -> None:
    """Check that task, data and what belongs to one of them go together.

    Raises:
        UserError: they do not.
    """
    if found.task.name == "pretrain":
        if found.data.name in sources.NAMES:
            form = next((form for form in FORMS.values() if found.data.name in form.names), FORMS[CONVERSATIONS])
            raise UserError(f"data={found.data.name} with task=pretrain: it has {form.noun}; use {form.either}")
        if found.data.problems is not None:
            raise UserError(f"data.problems={found.data.problems}: data={found.data.name} has none; leave it out")
        return
    check_form(found.data.name, form_of(found.task.name))
    if found.data.name in sources.NODES:
        problems = sources.check_problems(found.data.name, found.data.problems)
        if isinstance(problems, sources.PreferencesNode):
            _check_preferences(found, problems)
    elif found.data.problems is not None:
        raise UserError(f"data.problems={found.data.problems}: data={found.data.name} has none; leave it out")
    if found.data.order != "random":
        raise UserError(
            f"data.order={found.data.order}: is of task=pretrain only; of conversations all come before any comes "
            f"again in any case: leave it out"
        )
    _check_rewards(found)
    if found.task.chat_template == MODEL and found.init_from is None:
        raise UserError(
            f"task.chat_template={MODEL}: there is no model that brings one; add init_from=..., or leave it out"
        )
    if found.trainer.baseline is not None:
        raise UserError(f"trainer.baseline={found.trainer.baseline}: is of task=pretrain only; leave it null")


def _check_rewards(found: Settings) -> None:
    """Check that answers which are rewarded have right ones, which reward.name=exact compares them to.

    Raises:
        UserError: they have none, or nothing is answered.
    """
    if found.task.name in HEADED and found.task.samples:
        raise UserError(
            f"task.samples={found.task.samples} with task={found.task.name}: it does not answer; leave it 0"
        )
    rewarded = isinstance(found.task, PolicyConfig) or found.task.samples
    if rewarded and found.reward.name == "exact" and found.data.name in OPEN:
        raise UserError(
            f"reward.name=exact: the prompts of data={found.data.name} have no right answer; choose another, e.g. "
            f"reward.name=lexicon reward.argument='love heart'"
        )


def _check_preferences(found: Settings, problems: sources.PreferencesNode) -> None:
    """Check the pairs of data=preferences, which are answers of the model of init_from.

    Raises:
        UserError: there is none, or no reward that could prefer one of two answers.
    """
    if found.init_from is None:
        raise UserError("data=preferences: are answers of init_from's model; add init_from=..., a run of task=sft")
    key = f"data.problems.reward={problems.reward}"
    if problems.reward == "exact":
        raise UserError(
            f"{key}: these prompts have no right answer; choose another with reward.name, e.g. reward.name=lexicon "
            f"reward.argument='love heart'"
        )
    try:
        open_reward(problems.reward, problems.argument or "")
    except UserError as error:
        raise UserError(f"{key}: {error}") from None


def form_of(task: str) -> str:
    """Return what a task learns from, one of `example_set.FORMS`."""
    return {"classify": LABELS, "reward": PREFERENCES, "dpo": PREFERENCES}.get(task, CONVERSATIONS)


def _check_part(found: Settings) -> None:
    """Check what is said of which part of a model is trained.

    Raises:
        UserError: there is no trained model, two parts are asked for, or several processes would divide the weights.
    """
    part = found.task.train
    if found.lora is not None:
        said, instead = f"lora.rank={found.lora.rank}", "lora.rank=0"
    elif part != "all":
        said, instead = f"task.train={part}", "task.train=all"
    else:
        return
    if found.init_from is None:
        raise UserError(
            f"{said}: what is not trained would stay random; add init_from=..., a trained model, or use {instead}"
        )
    if found.lora is not None and found.task.name in HEADED and "lm_head" in found.lora.targets:
        raise UserError(
            f"lora.targets={','.join(found.lora.targets)}: task={found.task.name} has a head of its own and does not "
            f"use lm_head; leave that out"
        )
    if found.lora is not None and part != "all":
        raise UserError(f"task.train={part} with {said}: adapters are trained alone; leave one of the two out")
    if found.trainer.strategy == "fsdp":
        raise UserError(
            f"trainer.strategy=fsdp with {said}: divides weights that are all trained; use trainer.strategy=ddp"
        )


def _check_text(found: Settings, text: str) -> None:
    """Check a run that measures the loss of a text beside.

    Raises:
        UserError: its model does not go on with texts, or there is none that has learned one before.
    """
    if found.task.name in HEADED:
        raise UserError(f"task.text_loss={text} with task={found.task.name}: its model has no next token; leave it out")
    if text == BASE and found.init_from is None:
        raise UserError(f"task.text_loss={BASE}: is the text of init_from's model; add init_from=..., or name a text")


def _check_reference(found: Settings) -> None:
    """Check a run whose policy is compared to the model that it begins as.

    Raises:
        UserError: there is no such model, or a policy with dropout would not begin as it.
    """
    task = f"task={found.task.name}"
    if found.init_from is None:
        raise UserError(f"{task}: improves a model that answers already; add init_from=..., a run of task=sft")
    if found.lora is not None and found.lora.dropout:
        raise UserError(
            f"lora.dropout={found.lora.dropout} with {task}: the policy must begin as its reference; leave it at 0"
        )
    for key in ("dropout", "attn_dropout") if found.model["name"] == PRETRAINED else ():
        if rate := found.model.get(key):
            raise UserError(
                f"model.{key}={rate} with {task}: the policy must begin as its reference, and is trained without "
                f"dropout; leave it out"
            )


def _check_rollouts(found: Settings, task: PolicyConfig) -> None:
    """Check a run that learns from its own answers.

    Raises:
        UserError: nothing would be measured, or a run would stop between two steps on the same answers.
    """
    for key, value in (("check", task.check), ("samples", task.samples)):
        if not value:
            raise UserError(
                f"task.{key}=0 with task={task.name}: val/loss is minus the reward of sampled answers; at least 1"
            )
    if task.loss_on != "answers":
        raise UserError(
            f"task.loss_on={task.loss_on} with task={task.name}: it learns from the rewards of its own answers; leave "
            f"it at answers"
        )
    trainer = found.trainer
    for key in ("max_steps", "val_every", "checkpoint_every"):
        if (steps := getattr(trainer, key)) % task.updates:
            raise UserError(
                f"trainer.{key}={steps}: must be a multiple of task.updates={task.updates}, the steps on the same "
                f"answers; take {-(-steps // task.updates) * task.updates}"
            )
    if found.data.batch_size % task.group:
        raise UserError(
            f"data.batch_size={found.data.batch_size}: counts answers, task.group={task.group} to each prompt, and "
            f"must be a multiple of it"
        )


def _check_machine(found: Settings) -> None:
    """Check the ways of computing that only the prediction of next tokens has.

    Raises:
        UserError: one of them is asked for.
    """
    task = f"task={found.task.name}"
    if found.compile.backend is not None:
        raise UserError(f"compile={found.compile.name} with {task}: its rows have many lengths; use compile=eager")
    if found.trainer.strategy == "fsdp":
        raise UserError(f"trainer.strategy=fsdp with {task}: is for task=pretrain and task=sft; use ddp")
