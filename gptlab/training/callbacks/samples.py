"""Draw samples from the model after each validation."""

from __future__ import annotations

import html
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import lightning as L

from gptlab.data.tokenizers import Tokenizer
from gptlab.distributed.sharding import gathered_model
from gptlab.generation.context import open_context
from gptlab.generation.decoding import generate, prompt_ids
from gptlab.generation.random_numbers import RandomNumbers
from gptlab.generation.sampling import Sampling
from gptlab.models import Model
from gptlab.models.heads import language_model
from gptlab.system.errors import quoted
from gptlab.system.files import explain_write_errors
from gptlab.system.terminal import harmless
from gptlab.training.answers import Answered
from gptlab.training.loggers import TensorBoard
from gptlab.training.module import LMModule

log = logging.getLogger(__name__)


SHOWN = 5  # answers after a validation
MARKS = "\\`*_[]|~#"  # what means something in Markdown


class Samples(L.Callback):
    """Lets the model continue `prompt` after each validation; writes to samples.txt, TensorBoard and the log.

    A sample is a function of (seed, step): it neither changes nor depends on the random state of training.

    Args:
        path: where samples.txt is.
        tokens: tokens to generate; 0: no samples.
    """

    def __init__(self, path: Path, prompt: str, tokens: int, temperature: float, seed: int) -> None:
        self.path = path
        self.prompt = prompt
        self.tokens = tokens
        self.sampling = Sampling(temperature=temperature)
        self.seed = seed

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, LMModule)
        unknown = pl_module.tokenizer.unknown(self.prompt)
        if unknown and self.prompt != "\n":  # the default, which nobody asked for
            log.warning(
                "trainer.sample_prompt has characters that the training text lacks, left out: %s", quoted(unknown)
            )

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.tokens == 0:
            return
        assert isinstance(pl_module, LMModule)
        with gathered_model(language_model(pl_module.model)) as model:
            if trainer.is_global_zero:
                self._draw(trainer, model, pl_module.tokenizer)

    def _draw(self, trainer: L.Trainer, model: Model, tokenizer: Tokenizer) -> None:
        ids = prompt_ids(tokenizer, self.prompt)
        context = open_context(model, [ids], self.tokens)
        numbers = RandomNumbers(self.seed + trainer.global_step)
        with trainer.precision_plugin.val_step_context():
            ids += [tokens.item() for tokens, _ in generate(context, self.tokens, self.sampling, [numbers])]
        write_sample(trainer, self.path, tokenizer.decode(ids))


class AnswerSamples(L.Callback):
    """Writes the first answers of each validation as `Samples` does: prompt, answer, what it earns, and what was wanted
    instead; where answers earn something, TensorBoard shows a table.

    Args:
        path: where samples.txt is.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, LMModule)
        if not trainer.is_global_zero or pl_module.answers is None:
            return
        shown, expected = of_each_kind(pl_module.answers.last)[:SHOWN], pl_module.answers.expected
        lines = []
        for each in shown:
            lines += [f"> {each.prompt}", each.answer if each.ended else f"{each.answer} ..."]
            lines += [] if each.reward is None else [f"(reward {each.reward:.3g})"]
            lines += [] if each.right or not expected else [f"(wanted: {each.wanted})"]
        rewarded = any(each.reward is not None for each in shown)
        write_sample(trainer, self.path, "\n".join(lines), table(shown, expected) if rewarded else None)


def of_each_kind(answers: Sequence[Answered]) -> list[Answered]:
    """Return answers to the first prompt of each kind, then to the second, and so on."""
    seen = Counter[str]()
    turns = []
    for each in answers:
        turns.append(seen[each.kind])
        seen[each.kind] += 1
    return [answers[i] for i in sorted(range(len(answers)), key=turns.__getitem__)]


def table(answers: Sequence[Answered], expected: bool) -> str:
    """Return answers and what they earn as a table in Markdown.

    Args:
        expected: whether to show what was wanted.
    """
    rows = [["prompt", "answer", "reward", *["wanted"] * expected], ["---"] * (3 + expected)]
    for each in answers:
        answer = each.answer if each.ended else f"{each.answer} ..."
        rows.append([each.prompt, answer, f"{each.reward:.3g}", *[each.wanted] * expected])
    return "\n".join(f"| {' | '.join(map(in_markdown, row))} |" for row in rows)


def in_markdown(text: str) -> str:
    """Return a text as the cell of a table: what Markdown or HTML would read otherwise stays as it is."""
    escaped = "".join(f"\\{c}" if c in MARKS else c for c in html.escape(harmless(text), quote=False))
    return escaped.replace("\n", "<br>")


def write_sample(trainer: L.Trainer, path: Path, text: str, markdown: str | None = None) -> None:
    """Append a text to samples.txt, and show it in TensorBoard and the log.

    Args:
        markdown: what TensorBoard shows in its place.
    """
    step, text = trainer.global_step, harmless(text)
    with explain_write_errors(path.parent), path.open("a", encoding="utf-8") as file:
        file.write(f"--- step {step}\n{text}\n")
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoard):
            logger.experiment.add_text("sample", markdown or "    " + text.replace("\n", "\n    "), step)
    log.info("a sample at step %d:\n%s\n", step, text.strip("\n"))
