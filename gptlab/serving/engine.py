"""The thread that computes for all requests to a model: they share its passes, row by row."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gptlab.formats.opened import OpenedModel
from gptlab.generation.batch import Batch
from gptlab.generation.context import Logits
from gptlab.generation.random_numbers import RandomNumbers
from gptlab.generation.sampling import Array, Sampling, as_array, log_probabilities
from gptlab.generation.scoring import text_logits
from gptlab.generation.text_stream import TextStream
from gptlab.models.other_configs import BigramConfig
from gptlab.system.errors import UserError, error_line

if TYPE_CHECKING:
    from gptlab.models import Model
    from gptlab.models.arrays import ArrayGPT

TABLE = 4096  # tokens for which a bigram, which sees but one, may be asked
PAUSE = 0.02  # seconds between two parts of an answer; more would be seen by nobody, and each costs what a token does


class Token(NamedTuple):
    """A token and what the model thought of it, before any filter."""

    id: int
    log_prob: float | None
    """None for the first token of a text, which nothing predicts."""
    likely: list[tuple[int, float]]
    """The likeliest tokens with their log-probabilities, the likeliest first."""


class Part(NamedTuple):
    """What is new of an answer."""

    text: str
    tokens: list[Token]
    """Of the prompt, too, where it is scored; none unless log-probabilities are wanted."""
    drawn: int
    """Tokens drawn so far."""
    finish: str | None = None
    """Why the answer has ended, see `TextStream`; None: it has not."""
    error: str | None = None
    """What has made an end of it instead."""


@dataclass(eq=False)
class Job:
    """An answer that is wanted."""

    ids: list[int]
    """The prompt."""
    max_tokens: int
    sampling: Sampling
    seed: int
    stream: TextStream
    """The text of what is drawn."""
    deliver: Callable[[Part], None]
    """Called with each part, by `Engine.post`."""
    in_parts: bool = False
    """Whether parts are wanted as they come, and not the answer as a whole; the first one comes at once."""
    likely: int | None = None
    """How many of the likeliest tokens are wanted with the log-probability of each; None: no log-probabilities."""
    is_scored: bool = False
    """Whether those of the prompt are wanted, too."""
    is_cancelled: bool = False
    """Set by whoever no longer wants it; its row is free from the next pass on."""
    tokens: list[Token] = field(default_factory=list)
    text: str = ""
    numbers: RandomNumbers = field(init=False)
    flushed: float = 0.0
    """When its last part went out."""

    def __post_init__(self) -> None:
        self.numbers = RandomNumbers(self.seed)

    def part(self, error: str | None = None) -> Part:
        """Return what is new since the last time."""
        new = Part(self.text, self.tokens, len(self.stream.tokens), self.stream.finish, error)
        self.text, self.tokens = "", []
        return new


class Full(Exception):
    """As many answers wait as may wait."""


class Engine:
    """Draws answers, up to `width` side by side; the tokens of each depend on its seed alone.

    Args:
        opened: the model, in evaluation mode.
        width: the most answers of a pass.
        most_waiting: how many more may wait.
        post: calls a function where the parts are wanted, e.g. `loop.call_soon_threadsafe`.
        bf16_cache: see `open_context`.
    """

    def __init__(
        self,
        opened: OpenedModel[Model | ArrayGPT],
        width: int = 32,
        most_waiting: int = 128,
        bf16_cache: bool = False,
    ) -> None:
        self.opened, self.width, self.most_waiting, self.bf16_cache = opened, width, most_waiting, bf16_cache
        self.post: Callable[[Callable[[], None]], Any] = lambda call: call()
        self.changed = threading.Condition()
        self.inbox: list[Job] = []  # with what follows, touched by several threads: under `changed`
        self.count = 0
        self.is_stopped = False
        self.waiting: deque[Job] = deque()
        self.scored: deque[tuple[Job, Iterator[Logits]]] = deque()
        self.rows: dict[int, Job] = {}
        self.outbox: list[tuple[Job, Part]] = []
        self.thread = threading.Thread(target=self._run, name=f"engine of {opened.name}", daemon=True)
        self.batch = self._new_batch()

    @property
    def context_size(self) -> int:
        """The most tokens of a prompt and its answer."""
        config = self.opened.model.config
        return TABLE if isinstance(config, BigramConfig) else config.block_size

    def _new_batch(self) -> Batch:
        size = self.context_size
        return Batch(self.opened.model, [], size, self.width, bf16_cache=self.bf16_cache, longest=size)

    def start(self, post: Callable[[Callable[[], None]], Any]) -> None:
        """Begin to compute; `post` calls a function where parts are to be delivered."""
        self.post = post
        self.thread.start()

    def stop(self) -> None:
        """Make an end of all answers, and wait for the thread."""
        with self.changed:
            self.is_stopped = True
            self.changed.notify_all()
        if self.thread.is_alive():
            self.thread.join()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Let answers be drawn.

        Raises:
            Full: there is no room for all of them to wait.
        """
        with self.changed:
            if self.is_stopped or self.count + len(jobs) > self.width + self.most_waiting:
                raise Full
            self.count += len(jobs)
            self.inbox += jobs
            self.changed.notify_all()

    def wait_until_idle(self, seconds: float) -> bool:
        """Wait until there is nothing to draw, and return whether that came about in time."""
        with self.changed:
            return self.changed.wait_for(lambda: not self.count, seconds)

    def _run(self) -> None:
        while self._wait():
            try:
                self._turn()
            except Exception as error:  # a client must hear of it, and the others be served
                self._fail([*self.rows.values(), *(job for job, _ in self.scored)], error)
                self.rows, self.scored, self.batch = {}, deque(), self._new_batch()
            self._post()
        self._fail([*self.rows.values(), *(job for job, _ in self.scored), *self.waiting], UserError("stopped"))
        self._post()

    def _wait(self) -> bool:
        """Wait for something to do, and return whether there is something."""
        with self.changed:
            self.changed.wait_for(lambda: self.is_stopped or self.inbox or self.rows or self.scored or self.waiting)
            self.waiting.extend(self.inbox)
            self.inbox = []
            return not self.is_stopped

    def _turn(self) -> None:
        """Let those begin for whom there is room, and make one pass for each kind of work."""
        self._let_go()
        begun: list[Job] = []
        kept: deque[Job] = deque()
        for job in self.waiting:
            if job.is_cancelled:
                self._end(job, deliver=False)
            elif job.is_scored and not job.stream.tokens:
                self.scored.append((job, text_logits(self.opened.model, job.ids)))
            elif not job.max_tokens:
                self._close(job)
            elif len(begun) < self.batch.free:
                begun.append(job)
            else:
                kept.append(job)
        self.waiting = kept
        if begun:
            try:
                numbers = self.batch.add([[*job.ids, *job.stream.tokens] for job in begun])
            except Exception as error:  # e.g. there is no memory
                self._fail(begun, error)
                raise
            self.rows |= zip(numbers, begun, strict=True)
        if self.scored:
            self._score()
        if self.rows:
            self._draw()

    def _let_go(self) -> None:
        """Free the rows of those who have left."""
        if gone := {number: job for number, job in self.rows.items() if job.is_cancelled}:
            for number, job in gone.items():
                del self.rows[number]
                self._end(job, deliver=False)
            self.batch.leave(gone)

    def _score(self) -> None:
        """Read a part of the first prompt of which log-probabilities are wanted."""
        job, parts = self.scored[0]
        if job.is_cancelled:
            self.scored.popleft()
            self._end(job, deliver=False)
            return
        logits = as_array(next(parts))  # (n, V)
        if not job.tokens:
            job.tokens.append(Token(job.ids[0], None, []))
        done = len(job.tokens)
        following = job.ids[done : done + len(logits)]
        job.tokens += tokens_of(logits[: len(following)], following, job.likely or 0)
        if len(following) == len(logits):  # otherwise the last logits are those of the first token to be drawn
            return
        self.scored.popleft()
        if not job.max_tokens:
            self._close(job)
            return
        [token] = job.sampling.draw(logits[-1:], [job.numbers], [job.ids]).tolist()
        if self._add(job, token, logits[-1:]):
            self._end(job)
        else:
            self._flush(job)
            self.waiting.appendleft(job)

    def _draw(self) -> None:
        """Draw the next token of each row."""
        logits, numbers, rows = self.batch.logits(), self.batch.numbers, self.batch.rows
        jobs = [self.rows[number] for number in numbers]
        tokens, ended = [0] * len(jobs), [False] * len(jobs)
        groups: dict[Sampling, list[int]] = {}
        for i, job in enumerate(jobs):
            groups.setdefault(job.sampling, []).append(i)
        for sampling, places in groups.items():
            some = logits if len(places) == len(jobs) else logits[places]
            try:
                drawn = sampling.draw(some, [jobs[i].numbers for i in places], [rows[i] for i in places]).tolist()
            except UserError as error:
                self._fail([jobs[i] for i in places], error)
                for i in places:
                    ended[i] = True
                    del self.rows[numbers[i]]
                continue
            for i, token in zip(places, drawn, strict=True):
                tokens[i], ended[i] = token, self._add(jobs[i], token, logits[i : i + 1])
                if ended[i]:
                    del self.rows[numbers[i]]
                    self._end(jobs[i])
                else:
                    self._flush(jobs[i])
        self.batch.append(tokens, ended)

    def _add(self, job: Job, token: int, logits: Logits) -> bool:
        """Add a token that was drawn to its answer, and return whether that has ended; logits: (1, V)."""
        if job.likely is not None:
            job.tokens += tokens_of(as_array(logits), [token], job.likely)
        job.text += "".join(piece.text for piece in job.stream.add(token))
        if len(job.stream.tokens) == job.max_tokens:
            job.text += "".join(piece.text for piece in job.stream.close())
        return job.stream.finish is not None

    def _flush(self, job: Job) -> None:
        now = time.monotonic()
        if job.in_parts and (job.text or job.tokens) and now - job.flushed >= PAUSE:
            job.flushed = now
            self.outbox.append((job, job.part()))

    def _close(self, job: Job) -> None:
        job.text += "".join(piece.text for piece in job.stream.close())
        self._end(job)

    def _end(self, job: Job, error: str | None = None, deliver: bool = True) -> None:
        with self.changed:
            self.count -= 1
            self.changed.notify_all()
        if deliver:
            self.outbox.append((job, job.part(error)))

    def _fail(self, jobs: Sequence[Job], error: Exception) -> None:
        said = str(error) if isinstance(error, UserError) else error_line(error)
        for job in jobs:
            self._end(job, said)

    def _post(self) -> None:
        """Deliver what has come of a turn, with one call."""
        if not self.outbox:
            return
        outbox, self.outbox = self.outbox, []

        def deliver() -> None:
            for job, part in outbox:
                if not job.is_cancelled:
                    job.deliver(part)

        self.post(deliver)


def tokens_of(logits: Array, ids: Sequence[int], likely: int) -> list[Token]:
    """Return tokens with their log-probabilities.

    Args:
        logits: of each of them, (n, V) fp64.
        ids: the n tokens.
        likely: how many of the likeliest are wanted beside each.
    """
    log_probs = log_probabilities(logits)
    most = min(likely, logits.shape[-1])
    found = []
    for row, token in zip(log_probs, ids, strict=True):
        best = np.argpartition(-row, most - 1)[:most] if most else np.empty(0, np.int64)
        best = best[np.lexsort((best, -row[best]))]
        found.append(Token(token, float(row[token]), [*zip(best.tolist(), row[best].tolist(), strict=True)]))
    return found
