"""Preferences whose truth is known: pairs of a model's own answers, of which a gold reward prefers one, with noise."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gptlab.alignment.rewards import Answer, Reward, preference_probability
from gptlab.alignment.scoring import reply_text
from gptlab.data.batches import as_shares, random_numbers
from gptlab.data.chat.chat_format import Format
from gptlab.data.chat.conversations import GOLD, Message, Messages, Preference
from gptlab.generation.replies import draw_replies
from gptlab.generation.sampling import Sampling
from gptlab.models import Model
from gptlab.system.errors import UserError
from gptlab.system.files import write_atomically

SAMPLES, LABELS = 9 << 32, 10 << 32  # purposes of random numbers, added to a seed, which is below 1 << 32
TRIES = 4  # how often two answers are sampled before their pair is left out
UNLIKELY = "the two answers were the same, or one was empty, did not end, or held a special token"
SAMPLED_ANEW = f"sampled anew: {UNLIKELY}"  # counted
LEFT_OUT = f"left out: {TRIES} times {UNLIKELY}"  # counted


def sample_preferences(
    model: Model,
    chat: Format,
    prompts: Sequence[Messages],
    reward: Reward,
    counts: Counter[str],
    *,
    pairs: int,
    temperature: float = 1.0,
    noise: float,
    seed: int,
    max_new_tokens: int,
    batch_size: int = 256,
) -> list[Preference]:
    """Return pairs of answers that a model gives to prompts, of which a gold reward prefers one, as `Preference.gold`
    tells.

    Pair k answers prompt k, and begins with the first prompt again after the last. What is sampled is a function of the
    seed, the prompt's number and the answer's among those to it. Two answers that are the same text, of which one is
    empty, does not end by itself, or has a special token in it, which is no text, are both sampled anew, `TRIES` times
    at most: so a pair is of two independent answers, given that both are such texts and that they differ. Which is
    preferred is drawn after Bradley and Terry, see `preference_probability`, by the pair's own number. An answer is
    text: encoded again, it may have other ids.

    Args:
        model: a model in evaluation mode.
        prompts: messages before the assistant's answer, at least one prompt; each leaves room in the model's context
            for an answer.
        reward: the gold reward; an answer's prompt is the last message of its conversation.
        counts: counts the pairs that are sampled anew, each time, and those that are left out.
        pairs: how many are asked for, at least 1.
        temperature: at which answers are sampled, above 0, without filters.
        noise: the temperature of the labels; 0: the better answer is preferred, and either one of two equal ones.
        max_new_tokens: the most tokens of an answer, its end included.
        batch_size: the number of answers sampled at a time.

    Raises:
        UserError: the temperature is not above 0, noise is negative, or no pair is left.
    """
    if not temperature > 0:
        raise UserError(f"temperature={temperature}: must be above 0, or both answers would be the same")
    found: dict[int, tuple[str, str]] = {}
    special = {*chat.tokenizer.special_tokens.values()}
    for attempt in range(TRIES):
        missing = [k for k in range(pairs) if k not in found]
        if not missing:
            break
        if attempt:
            counts[SAMPLED_ANEW] += len(missing)
        asked = [(k, 2 * (k // len(prompts) * TRIES + attempt) + i) for k in missing for i in range(2)]
        replies = draw_replies(
            model,
            [chat.prompt(prompts[k % len(prompts)]).tolist() for k, _ in asked],
            max_new_tokens,
            chat.ends,
            Sampling(temperature=temperature),
            _uniform(seed, [(k % len(prompts), sample) for k, sample in asked], max_new_tokens),
            batch_size,
            bar=True,
        )
        texts = [reply.ended and special.isdisjoint(reply.ids[:-1]) for reply in replies]
        said = [reply_text(reply, chat.tokenizer) if text else "" for reply, text in zip(replies, texts, strict=True)]
        both = zip(missing, said[::2], said[1::2], strict=True)
        found |= {k: (one, other) for k, one, other in both if one and other and one != other}
    if len(found) < pairs:
        counts[LEFT_OUT] += pairs - len(found)
    if not found:
        raise UserError(
            f"none of {pairs:,} pairs of answers can be compared; they are {LEFT_OUT}. Let answers have more than "
            f"{max_new_tokens} tokens, or first teach the model to answer by task=sft"
        )
    return _preferred([(k, prompts[k % len(prompts)], found[k]) for k in sorted(found)], reward, noise, seed, pairs)


def _uniform(seed: int, samples: Sequence[tuple[int, int]], count: int) -> np.ndarray:
    """Return `count` numbers in [0, 1) for each prompt and sample, (n, count) fp64."""
    raw = [random_numbers(seed + SAMPLES, (prompt << 32) + sample, count) for prompt, sample in samples]
    return as_shares(np.array(raw).reshape(-1, count))


def _preferred(
    answered: Sequence[tuple[int, Messages, tuple[str, str]]], reward: Reward, noise: float, seed: int, pairs: int
) -> list[Preference]:
    """Return numbered prompts with two answers as preferences."""
    gold = np.array(
        [reward([Answer(prompt[-1].content, both[i]) for _, prompt, both in answered]) for i in range(2)], dtype=float
    )
    draws = as_shares(random_numbers(seed + LABELS, 0, pairs))
    first = draws[[k for k, _, _ in answered]] < preference_probability(gold[0] - gold[1], noise)
    found = []
    for (_, prompt, both), rewards, is_first in zip(answered, gold.T.tolist(), first.tolist(), strict=True):
        better = 0 if is_first else 1
        chosen, rejected = ((Message("assistant", both[i]),) for i in (better, 1 - better))
        found.append(Preference(prompt, chosen, rejected, gold=(rewards[better], rewards[1 - better])))
    return found


def gold_differences(preferences: Sequence[Preference]) -> np.ndarray | None:
    """Return the gold reward of each chosen answer minus that of the rejected one, (n,); None if not all are known.

    `bayes_accuracy` of it and of the labels' noise is the best accuracy that a reward model can expect, and the share
    above 0 is that of labels that are right.
    """
    gold = [each.gold for each in preferences]
    return None if None in gold else np.array(gold, dtype=float).reshape(-1, 2) @ np.array([1.0, -1.0])


def write_preferences(path: Path, preferences: Sequence[Preference]) -> None:
    """Write preferences as rows that `read_examples` reads, to a .jsonl that is complete or absent.

    Raises:
        UserError: it cannot be written.
    """
    lines = "".join(json.dumps(_row(each), ensure_ascii=False) + "\n" for each in preferences)
    write_atomically(path, lambda file: file.write(lines.encode()))


def _row(each: Preference) -> dict[str, Any]:
    """Return a preference as a row; a single message of the usual role is a text."""
    said = {"prompt": each.prompt, "chosen": each.chosen, "rejected": each.rejected}
    row: dict[str, Any] = {}
    for key, messages in said.items():
        alone = len(messages) == 1 and messages[0].role == ("user" if key == "prompt" else "assistant")
        row[key] = messages[0].content if alone else [message._asdict() for message in messages]
    return row | (dict(zip(GOLD, each.gold, strict=True)) if each.gold else {})
