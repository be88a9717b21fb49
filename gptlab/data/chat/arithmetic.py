"""Problems with digits and letters whose answers are known: sums, copying, sorting, counting letters."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

import numpy as np

from gptlab.data.batches import random_numbers
from gptlab.data.chat.conversations import Conversation, Message
from gptlab.data.chat.splitting import HELD_OUT, LONGER, TRAIN, number_shares
from gptlab.system.errors import UserError, amount, did_you_mean

TASKS = ("add", "add_reversed", "copy", "sort", "count")
PARTS = (TRAIN, HELD_OUT, LONGER)
LETTERS = "abcdefghij"  # the digits of a problem's number as letters
MOST_DIGITS = 8  # of a number, so that a problem of one more has a number below 10^18
ENUMERATED = 2_000_000  # problems, up to which a part is drawn from a list of all


@dataclass(frozen=True)
class Arithmetic:
    """A task with problems of one length, each of which has a number.

    | task | prompt | answer |
    |---|---|---|
    | add | 012+345= | 0357 |
    | add_reversed | 012+345= | 7530 |
    | copy | copy bad= | bad |
    | sort | sort bad= | abd |
    | count | count a in bad= | 1 |

    Numbers are padded by zeros to `digits`, and a sum to one more. Reversed, its digits come in the order in which they
    are computed, and are learnt from fewer examples (Lee et al. 2023, https://arxiv.org/abs/2307.03381).

    There are 10^(2 digits) sums, 10^digits words to copy or sort, and 10^(digits + 1) letters to count in words. A hash
    of the problem, the same for a + b and b + a, decides whether it is in the part `train` or `held_out`. Problems of
    the part `longer` have one more digit or letter, and at least one number of a sum needs it. So no problem is in two
    parts.

    Args:
        task: one of `TASKS`.
        digits: how many digits a number, or letters a word, has.
        seed: chooses the parts and the order of problems.
        held_out: the share of the problems that is held out.

    Raises:
        UserError: a value is out of range.
    """

    task: str
    digits: int
    seed: int = 0
    held_out: float = 0.1

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise UserError(f"task={self.task}: no such task; {did_you_mean(self.task, TASKS)}")
        if not 1 <= self.digits <= MOST_DIGITS:
            raise UserError(f"digits={self.digits}: must be at least 1 and at most {MOST_DIGITS}")
        if not 0.001 <= self.held_out <= 0.999:
            raise UserError(f"held_out={self.held_out}: must be at least 0.001 and at most 0.999")

    def problems(self, part: str, count: int | None = None) -> list[Conversation]:
        """Return the first `count` problems of a part in random order, none twice; None: all of them.

        Args:
            part: train, held_out or longer.

        Raises:
            UserError: there are not so many problems, or too many for a list.
        """
        return [self.problem(number, self._length(part)) for number in self.numbers(part, count)]

    def numbers(self, part: str, count: int | None = None) -> list[int]:
        """Return the numbers of `problems`."""
        if part not in PARTS:
            raise UserError(f"part={part}: no such part; {did_you_mean(part, PARTS)}")
        if count is not None and count < 1:
            raise UserError(f"count={count}: must be at least 1")
        space = self.space(self._length(part))
        if space <= ENUMERATED:
            found = self._of_part(np.arange(space, dtype=np.uint64), part)
            order = np.argsort(random_numbers(self.seed + (4 << 32), PARTS.index(part), len(found)), kind="stable")
            chosen = found[order[:count]].tolist()
        elif count is None or count > min(ENUMERATED, self._share(part) * space) // 2:
            raise UserError(
                f"count={'null' if count is None else count}: there are {space:,} problems of this length, too many to "
                f"list; take at most {int(min(ENUMERATED, self._share(part) * space) // 2):,} of the part {part}"
            )
        else:
            chosen = self._drawn(part, count, space)
        if len(chosen) < (count or 1):
            raise UserError(
                f"count={count}: the part {part} of {self.task} with {amount(self.digits, 'digit')} has only "
                f"{amount(len(chosen), 'problem')}; take fewer, more digits, or another held_out={self.held_out}"
            )
        return chosen

    def _share(self, part: str) -> float:
        """Return about which share of the problems of a length belongs to a part."""
        return {TRAIN: 1 - self.held_out, HELD_OUT: self.held_out}.get(part, 0.9)

    def some(self, part: str, most: int | None) -> list[Conversation]:
        """Return the first `most` problems of a part, or as many as there are; None: all. See `problems`."""
        space = self.space(self._length(part))
        if space <= ENUMERATED:
            there = len(self._of_part(np.arange(space, dtype=np.uint64), part))
            if not there:
                return []
            most = min(most or there, there)
        return self.problems(part, most)

    def _drawn(self, part: str, count: int, space: int) -> list[int]:
        """Return the first `count` distinct numbers of a part in a stream of random ones."""
        chosen: dict[int, None] = {}
        for step in itertools.count(1):
            raw = random_numbers(self.seed + (4 << 32), len(PARTS) * step + PARTS.index(part), 1 << 16)
            chosen |= dict.fromkeys(self._of_part(raw % np.uint64(space), part).tolist())
            if len(chosen) >= count:
                break
        return [*chosen][:count]

    def _length(self, part: str) -> int:
        return self.digits + (part == LONGER)

    def space(self, length: int) -> int:
        """Return how many problems of a length there are: their numbers are below."""
        return 10 ** {"copy": length, "sort": length, "count": length + 1}.get(self.task, 2 * length)

    def _of_part(self, numbers: np.ndarray, part: str) -> np.ndarray:
        """Return those of the numbers, (n,) uint64, that belong to a part."""
        keys = numbers
        if self.sums:
            base = np.uint64(10 ** self._length(part))
            a, b = numbers // base, numbers % base
            if part == LONGER:
                return numbers[np.maximum(a, b) >= base // np.uint64(10)]
            keys = np.minimum(a, b) * base + np.maximum(a, b)
        if part == LONGER:
            return numbers
        held_out = number_shares(self.seed, keys) < self.held_out
        return numbers[held_out == (part == HELD_OUT)]

    @property
    def sums(self) -> bool:
        return self.task.startswith("add")

    def problem(self, number: int, length: int) -> Conversation:
        """Return the problem with a number, as a prompt and its answer.

        Args:
            length: how many digits its numbers, or letters its words, have.
        """
        prompt = self._prompt(number, length)
        return Conversation((Message("user", prompt), Message("assistant", self.answer(prompt))), given=1)

    def _prompt(self, number: int, length: int) -> str:
        if self.sums:
            a, b = divmod(number, 10**length)
            return f"{a:0{length}}+{b:0{length}}="
        word = "".join(LETTERS[int(digit)] for digit in f"{number:0{length + (self.task == 'count')}}")
        return f"count {word[0]} in {word[1:]}=" if self.task == "count" else f"{self.task} {word}="

    def answer(self, prompt: str) -> str:
        """Return the right answer to a prompt.

        Raises:
            UserError: it is no prompt of this task.
        """
        if self.sums and (found := re.fullmatch(r"(\d+)\+(\d+)=", prompt)):
            total = f"{int(found[1]) + int(found[2]):0{len(found[1]) + 1}}"
            return total[::-1] if self.task == "add_reversed" else total
        if self.task == "count" and (found := re.fullmatch(r"count (\w) in (\w+)=", prompt)):
            return str(found[2].count(found[1]))
        if self.task in ("copy", "sort") and (found := re.fullmatch(rf"{self.task} (\w+)=", prompt)):
            return found[1] if self.task == "copy" else "".join(sorted(found[1]))
        raise UserError(f"{prompt!r:.99} is no prompt of the task {self.task}")

    def is_right(self, prompt: str, answer: str) -> bool:
        """Return whether an answer is right: exactly what `answer` returns, without anything around it."""
        return answer == self.answer(prompt)

    def characters(self) -> str:
        """Return all characters that prompts and answers have, sorted; a tokenizer must know them."""
        numbers = "0123456789" if self.sums or self.task == "count" else ""
        return "".join(sorted({*self._prompt(0, self.digits), *numbers, *("" if self.sums else LETTERS)}))
