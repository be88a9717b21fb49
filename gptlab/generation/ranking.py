"""Rankings by people: pairs of answers, which of them is better, and a file that keeps it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptlab.data.batches import random_numbers
from gptlab.formats.opened import OpenedModel
from gptlab.generation.answers import draw_answers, empty_answers
from gptlab.generation.sampling import Sampling
from gptlab.models import Model
from gptlab.models.arrays import ArrayGPT
from gptlab.system.errors import UserError
from gptlab.system.files import append_line, check_writable, cut_unfinished_line, explain_write_errors

CHOSEN, TIE, SKIPPED, SAME = "chosen", "tie", "skipped", "same"
"""What becomes of a pair; same: its answers are, or one of them is empty, so that nobody is asked."""

MODELS = ("chosen_model", "rejected_model")  # whose answers a row has


@dataclass(frozen=True)
class Pair:
    """Two answers to a prompt, in the order in which they are shown."""

    number: int
    """Of the prompt, from 0."""
    prompt: str
    answers: tuple[str, str]
    models: tuple[str, str]
    """Who gave them."""

    def record(self, better: int) -> dict[str, Any]:
        """Return the row for this pair, of which answer `better` (0 or 1) was preferred."""
        worse = 1 - better
        return {
            "prompt": self.prompt,
            "chosen": self.answers[better],
            "rejected": self.answers[worse],
            "number": self.number,
            "chosen_model": self.models[better],
            "rejected_model": self.models[worse],
        }


def draw_pair(
    models: Sequence[OpenedModel[Model | ArrayGPT]],
    number: int,
    prompt: str,
    max_new_tokens: int,
    sampling: Sampling,
    seed: int,
) -> Pair:
    """Return two answers to a prompt, a function of the models, the prompt, its number and the seed.

    Args:
        models: one, which gives both answers, or two.
        seed: also decides which answer is shown first.
    """
    answers = []
    for i in range(2):
        opened = models[i % len(models)]
        [answer] = empty_answers(opened, [prompt], samples=1, seed=seed + 2 * number + i, stops=())
        for _ in draw_answers(opened, [answer], max_new_tokens, sampling):
            pass
        answers.append((answer.stream.text, opened.name))
    if random_numbers(seed + (8 << 32), number, 1)[0] & 1:
        answers.reverse()
    (a, name), (b, other) = answers
    return Pair(number, prompt, (a, b), (name, other))


class Rankings:
    """The file of pairs that were ranked, and beside it one of those that were not, NAME.unranked.jsonl.

    Each row is written at once and to the disk, so that nothing typed is lost. A row that a killed process has left
    half written is removed.

    Args:
        path: rows of prompt, chosen and rejected, as task=reward and task=dpo read them.
        prompts: the prompts that are asked about.
        models: the names of the models that answer.

    Raises:
        UserError: a file has rows of other prompts or models, or none of this command, or it cannot be written.
    """

    def __init__(self, path: Path, prompts: Sequence[str], models: Sequence[str]) -> None:
        if path.is_dir():
            raise UserError(f"OUT {path}: Is a directory; give a file, which need not be there yet")
        self.path, self.unranked = path, path.with_name(f"{path.stem}.unranked.jsonl")
        self.done: set[int] = set()
        self.counts: Counter[str] = Counter()
        self.wins: Counter[str] = Counter()
        """How often each model's answer was preferred."""
        for file in (self.path, self.unranked):
            for row in _rows(file):
                if not (0 <= row["number"] < len(prompts) and prompts[row["number"]] == row["prompt"]):
                    raise UserError(
                        f"{file}: it has {row['prompt']!r:.99}, which is not prompt {row['number'] + 1} here: give the "
                        f"prompts that it was begun with, or another file"
                    )
                if (ranked := {row[key] for key in MODELS if key in row}) and ranked != {*models}:
                    raise UserError(
                        f"{file}: it ranks {' and '.join(sorted(ranked))}, not {' and '.join(models)}: give the models "
                        f"by the names that it was begun with, or another file"
                    )
                self._count(row)
            with explain_write_errors(file.parent):
                check_writable(file)

    def add(self, pair: Pair, better: int | None, what: str = CHOSEN) -> None:
        """Write what has become of a pair.

        Args:
            better: the preferred answer, 0 or 1; None: neither.
            what: of a pair without a preferred answer: tie, skipped or same.

        Raises:
            UserError: the file cannot be written.
        """
        unranked = {"prompt": pair.prompt, what: pair.answers, "number": pair.number}
        row = unranked if better is None else pair.record(better)
        file = self.unranked if better is None else self.path
        with explain_write_errors(file.parent):
            append_line(file, json.dumps(row, ensure_ascii=False))
        self._count(row)

    def _count(self, row: dict[str, Any]) -> None:
        what = next(what for what in (CHOSEN, TIE, SKIPPED, SAME) if what in row)
        self.done.add(row["number"])
        self.counts[what] += 1
        if what == CHOSEN:
            self.wins[row["chosen_model"]] += 1

    def in_words(self) -> str:
        """Return how many pairs were ranked, and how many were not."""
        others = [f"{self.counts[what]:,} {word}" for what, word in WORDS.items() if self.counts[what]]
        return ", ".join([f"{self.counts[CHOSEN]:,} ranked", *others])


WORDS = {TIE: "tied", SKIPPED: "skipped", SAME: "with nothing to choose between"}


def _rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file, and cut off what follows the last line end.

    Raises:
        UserError: they are no rankings.
    """
    if not path.exists():
        return []
    try:
        cut_unfinished_line(path)
        rows = [json.loads(line) for line in path.read_bytes().decode().split("\n") if line]
        for row in rows:
            if type(row["number"]) is not int or not isinstance(row["prompt"], str):
                raise ValueError("no number or prompt")
            if not any(what in row for what in (CHOSEN, *WORDS)):
                raise ValueError("no answer")
            if CHOSEN in row and not all(isinstance(row[key], str) for key in MODELS):
                raise ValueError("no model")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: its rows are not of this command ({error!s:.99}); give another file") from error
    except OSError as error:
        raise UserError(f"OUT {path}: {error.strerror}; give another file") from error
    return rows


def rank_pairs(
    rankings: Rankings, prompts: Sequence[str], draw: Callable[[int, str], Pair], ask: Callable[[Pair], str]
) -> None:
    """Ask about each prompt that has not been asked about yet, until `ask` returns "quit".

    Args:
        draw: returns the pair of answers to a prompt and its number.
        ask: shows a pair, and returns "1", "2", "tie", "skip" or "quit".
    """
    for number, prompt in enumerate(prompts):
        if number in rankings.done:
            continue
        pair = draw(number, prompt)
        if pair.answers[0] == pair.answers[1] or not all(pair.answers):
            rankings.add(pair, None, SAME)
            continue
        said = ask(pair)
        if said == "quit":
            return
        better = {"1": 0, "2": 1}.get(said)
        rankings.add(pair, better, TIE if said == "tie" else SKIPPED)
