"""Measure what a run has learned to do on the held-out part of its data: `evaluate --task`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch

from gptlab.alignment.metrics import confusion_counts, macro_f1
from gptlab.alignment.reference import Reference
from gptlab.alignment.rewards import expected_accuracy
from gptlab.data.batches import IGNORED, Share
from gptlab.data.chat.template import ChatTemplate
from gptlab.formats.opened import OpenedModel
from gptlab.models import Model
from gptlab.runs.upgrades import completed
from gptlab.system.errors import UserError
from gptlab.training.data_of_task import data_module
from gptlab.training.example_datamodule import ExampleDataModule
from gptlab.training.judges import Judge, reads_alike
from gptlab.training.label_datamodule import LabelDataModule
from gptlab.training.objective_of_task import scorer_of
from gptlab.training.objectives.pairs import rewards_of
from gptlab.training.pair_datamodule import PairDataModule
from gptlab.training.sampled import Earned, SampledAnswers
from gptlab.training.settings import Settings, from_config
from gptlab.training.tasks import HEADED


@dataclass(frozen=True)
class Performance:
    """How a model does on P held-out examples."""

    model: str
    """In words."""
    shares: dict[str, np.ndarray] = field(default_factory=dict)
    """Of each example, or of those of a kind, whether it is so: (P,) bool."""
    means: dict[str, np.ndarray] = field(default_factory=dict)
    """Of each example, a number: (P,) float64."""
    figures: dict[str, float] = field(default_factory=dict)
    """Of all of them."""
    gold: np.ndarray | None = None
    """What S sampled answers to each of Q prompts earn, (Q, S); None: none are sampled."""


@dataclass(frozen=True)
class HeldOut:
    """A held-out part of the data of a run's task."""

    name: str
    """Of the run."""
    settings: Settings
    data: ExampleDataModule
    part: str

    @property
    def facts(self) -> dict[str, str]:
        """What it is, as plain data."""
        return {"name": self.data.prepared.name, "split": self.part, "sha256": self.data.prepared.sha256}


def held_out(run: OpenedModel[Model] | Judge, block_size: int, part: str | None) -> HeldOut:
    """Return the held-out part of a run's task.

    Args:
        block_size: tokens in a row, T.
        part: val or test; None: test, if there is one.

    Raises:
        UserError: it is no run of gptlab, has learned to go on with text, or its data cannot be had as it was.
    """
    name, info = run.name, run.info
    if info is None or not info.config:
        raise UserError(
            f"--task: {name} does not say what it has learned to do; give a run, or without --task measure its loss"
        )
    settings = from_config(completed(info.config))
    if settings.task.name == "pretrain":
        raise UserError(f"--task: {name} has learned to go on with text; leave --task out to measure its loss")
    template = info.chat if isinstance(info.chat, ChatTemplate) else None
    data = data_module(replace(settings, tokenizer=None), run.tokenizer, block_size, template)
    assert isinstance(data, ExampleDataModule)
    data.prepare_data()
    if info.data_sha256 not in (None, data.prepared.sha256):
        raise UserError(
            f"--task: the data of {name} has changed since its training (its sha256 is {data.prepared.sha256[:16]} "
            f"now, and was {str(info.data_sha256)[:16]}); bring back what it learned from"
        )
    if settings.task.name not in HEADED and not settings.task.check:  # nothing was answered in its validations
        data.task = replace(settings.task, check=500)
    part = part or ("test" if data.has_test else "val")
    if part not in data.prepared.rows or part == "train":
        raise UserError(
            f"--split {part}: with --task it is a part that is held out: {'val or test' if data.has_test else 'val'}"
        )
    return HeldOut(name, settings, data, part)


def answer(
    held_out: HeldOut,
    opened: OpenedModel[Model],
    samples: int,
    seed: int,
    other: tuple[OpenedModel[Model], Performance] | None = None,
) -> Performance:
    """Let a model answer the prompts of a part in its own chat format, greedily and by sampling.

    Args:
        samples: answers that are sampled to each of the first task.check prompts; 0: none.
        seed: of the samples, below 2^32.
        other: a model, and how it does, to which the exact KL is measured if both read the same tokens.

    Raises:
        UserError: the model does not answer in a chat format, or no prompt leaves room for an answer.
    """
    settings, data, part = held_out.settings, held_out.data, held_out.part
    chat = opened.chat
    if chat is None:
        raise UserError(f"{opened.name} has not learned to answer; give a run of task=sft, dpo, ppo or grpo")
    said, sampled = data.prepared.said, None
    if samples:
        if not reads_alike(opened, data.prepared):  # as a reward model does
            settings = replace(settings, reward=replace(settings.reward, model=None))
        scorer = scorer_of(settings, chat, data.block_size)
        reference = Reference(other[0].model) if other is not None and reads_alike(opened, other[0]) else None
        sampled = SampledAnswers(chat, scorer, samples, settings.task.answer_tokens, seed, reference, said.known)
        if other is not None and other[1].gold is not None:
            sampled.of_reference[part] = Earned(other[1].gold, None)
    answers = data.answers(sampled, chat)
    assert answers is not None  # see `held_out`
    found = answers.measure(opened.model, part)
    shares = {"stop_rate": np.array([each.ended for each in answers.last])}
    if answers.expected:
        right = np.array([each.right for each in answers.last])
        kinds = np.array([each.kind for each in answers.last])
        shares["accuracy"] = right
        shares |= {f"accuracy_{kind}": right[kinds == kind] for kind in np.unique(kinds).tolist() if kind}
    means = {"answer_tokens": np.array([each.tokens for each in answers.last], dtype=np.float64)}
    if sampled is None:
        return Performance(opened.words, shares, means)
    earned = sampled.of_model[part]
    means["reward"] = earned.gold.mean(1)
    if earned.judged is not None:
        means["judged_reward"] = earned.judged.mean(1)
    rest = ("entropy", "kl", *(f"pass_at_{k}" for k in sampled.passes))
    figures = {name: found[f"{part}/{name}"] for name in rest if f"{part}/{name}" in found}
    return Performance(opened.words, shares, means, figures, earned.gold)


def judge(held_out: HeldOut, reader: Judge, device: torch.device) -> Performance:
    """Let a classifier or a reward model judge the examples of a part.

    Raises:
        UserError: it judges something else than the run's task, or reads otherwise.
    """
    name, model = reader.name, reader.model
    data, kind = held_out.data, held_out.settings.task.name
    if model.head_config.kind != kind:
        raise UserError(f"{name} has a head for {model.head_config.kind}, and {held_out.name} has learned to {kind}")
    if not reads_alike(reader, data.prepared):
        raise UserError(f"{name} reads other tokens, or another chat format, than {held_out.name}, and cannot judge it")
    model = model.to(device).requires_grad_(False).eval()
    batches = data.eval_batches(held_out.part, Share(0, 1, 1), device)
    if isinstance(data, LabelDataModule):
        if model.head_config.labels != data.labels:
            raise UserError(f"{name} tells other classes apart than {held_out.name}")
        pairs = [
            (batch.labels[there], model(batch.idx, batch.lengths).argmax(-1)[there])
            for batch in batches
            for there in (batch.labels != IGNORED,)
        ]
        truth, predicted = (torch.cat(each).cpu().numpy() for each in zip(*pairs, strict=True))
        counts = confusion_counts(truth, predicted, len(data.labels))
        return Performance(reader.info.words, {"accuracy": truth == predicted}, figures={"f1": macro_f1(counts)})
    assert isinstance(data, PairDataModule)
    parts = [rewards_of(model, batch) for batch in batches]
    rewards, differences = (torch.cat(each).cpu().numpy() for each in zip(*parts, strict=True))
    margins = rewards[:, 0] - rewards[:, 1]
    found = Performance(reader.info.words, {"accuracy": margins > 0})
    if (margins == 0).any():  # a tie counts half
        found = Performance(reader.info.words, means={"accuracy": (np.sign(margins) + 1) / 2})
    best = data.bayes_accuracy(held_out.part)
    if best is None or data.noise is None:
        return found
    expected = expected_accuracy(margins, differences, data.noise)
    return replace(found, means={**found.means, "expected_accuracy": expected}, figures={"bayes_accuracy": best})
