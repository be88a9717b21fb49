"""The results of `evaluate` as plain data: losses and their difference, or copies of the train part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gptlab.data import text_files
from gptlab.data.batches import Windows
from gptlab.data.text_options import TextOptions, of_sample
from gptlab.evaluation import comparison, eval_data, loss, memorisation
from gptlab.evaluation.candidates import Candidate, EvalText
from gptlab.evaluation.loss import Measurement
from gptlab.evaluation.memorisation import Copies
from gptlab.evaluation.ngrams import NGrams
from gptlab.formats.opened import OpenedModel
from gptlab.models import Model
from gptlab.system.errors import UserError, amount, quoted

FORMAT = 1  # of --json
SAMPLE_TOKENS = 5000
MAX_SAMPLE_CHARACTERS = 200_000  # each takes about a kilobyte in the automaton
SHOWN_COPIES = 10

ChooseWindows = Callable[[str, int], Windows]
"""Returns the windows for a model, given its name and block_size; raises UserError where it cannot have them."""


def measure_losses(
    candidates: Sequence[Candidate],
    text: EvalText,
    device: torch.device,
    windows: ChooseWindows,
    *,
    seed: int,
    batch_size: int | None = None,
    bf16: bool = False,
) -> dict[str, Any]:
    """Measure one or two candidates; with two, also the difference between them.

    Args:
        candidates: one or two models or n-gram tables.
        text: the text.
        device: the device for the models.
        windows: chooses the windows of each model.
        seed: the seed of the bootstrap.
        batch_size: the number of windows at a time, see `loss.token_nats`.
        bf16: compute matrix products in bf16, see `loss.token_nats`.

    Returns:
        What --json prints.

    Raises:
        UserError: the text is too short, a loss is not a number, or the candidates cannot be compared.
    """
    pieces, lost = eval_data.without_unknown(text.source.pieces(text.part), [each.tokenizer for each in candidates])
    notes = list(text.notes)
    if lost:
        characters = f"{amount(lost.total(), 'character')}, {len(lost):,} distinct: {quoted(sorted(lost))}"
        notes.append(f"left out, since there is no token for them: {characters}")
    results, read = [], []
    for each in candidates:
        ids = text.source.encode(pieces, each.tokenizer, None if lost else text.part)
        chosen = None if isinstance(each.model, NGrams) else windows(each.name, each.model.config.block_size)
        options: dict[str, Any] = {"batch_size": batch_size, "bf16": bf16}
        read.append(ids)
        results.append(loss.measure(each.model, ids, each.tokenizer, text.part, chosen, device, **options))
    content = {
        "format": FORMAT,
        **loss_record(candidates[0], results[0], bf16),
        "device": str(device),
        "data": {**text.facts, "left_out": dict(lost)},
        "notes": notes,
    }
    if len(candidates) == 2:
        a, b = results
        same_ids = np.array_equal(read[0], read[1])  # of this text; one tokenizer may know more than the other
        same_tokens = same_ids and np.array_equal(a.sizes, b.sizes)
        difference = comparison.compare_losses(a, b, same_tokens, seed)
        content["compare"] = loss_record(candidates[1], results[1], bf16)
        content["difference"] = asdict(difference) | {"words": difference.words(), "method": difference.method()}
    return content


def loss_record(each: Candidate, result: Measurement, bf16: bool) -> dict[str, Any]:
    """Return the numbers of one candidate, as plain data for --json."""
    content = {
        "model": each.words,
        "protocol": result.protocol,
        "precision": f"int{each.bits}" if each.bits else "bf16" if bf16 else "fp32",
        **result.values(),
        "tokens": result.tokens,
        "bytes": result.bytes,
        "seconds": result.seconds,
        "tokenizer": each.tokenizer.name,
        "vocab_size": each.tokenizer.vocab_size,
    }
    if result.windows:
        means, counts = result.by_position()
        content |= {"loss_by_position": means.tolist(), "tokens_by_position": counts.tolist()}
    return content


def measure_copies(
    writer: OpenedModel[Model] | None,
    sample_file: Path | None,
    name: str,
    text: EvalText,
    device: torch.device,
    seed: int,
) -> dict[str, Any]:
    """Find copies of the train part in a sample and, for comparison, in held-out text of the same length.

    Args:
        writer: the model that writes the sample; None if `sample_file` has it.
        sample_file: a file with the sample; None to let the model write one.
        name: the model's name, used if `writer` is None.
        text: the text, with val or test as its part.
        device: the device for the model.
        seed: the seed of the sample.

    Returns:
        What --json prints.

    Raises:
        UserError: the part is neither val nor test, or the sample is missing or empty.
    """
    if text.part not in ("val", "test"):
        raise UserError(f"--split {text.part}: with --memorised it is the text to compare with: val or test")
    notes = list(text.notes)
    if sample_file:
        if not sample_file.is_file():
            raise UserError(f"--sample {sample_file}: no such file")
        sample, origin = "".join(text_files.characters(sample_file, TextOptions(written=of_sample))), str(sample_file)
        if len(sample) > MAX_SAMPLE_CHARACTERS:
            notes.append(f"of the sample's {len(sample):,} characters the first {MAX_SAMPLE_CHARACTERS:,} are read")
            sample = sample[:MAX_SAMPLE_CHARACTERS]
    else:
        assert writer is not None
        sample = memorisation.draw_sample(writer.model.to(device), writer.tokenizer, SAMPLE_TOKENS, seed)
        origin = f"{SAMPLE_TOKENS:,} tokens in {memorisation.SAMPLE_ROWS} texts, at temperature 1, seed {seed}"
    if not sample.strip(memorisation.SEAM):
        raise UserError("the sample is empty")
    train = [piece.text + memorisation.SOURCE_SEAM * piece.last for piece in text.source.pieces("train")]
    found = memorisation.find_copies(sample, train)
    held_out = "".join(piece.text for piece in text.source.pieces(text.part))[: found.characters]
    return {
        "format": FORMAT,
        "model": writer.words if writer else name,
        "origin": origin,
        "data": text.facts,
        "notes": notes,
        "sample": copy_record(found),
        "held_out": copy_record(memorisation.find_copies(held_out, train)),
        "longest": [{"characters": len(copy.text), **asdict(copy)} for copy in found.top(SHOWN_COPIES)],
    }


def copy_record(found: Copies) -> dict[str, Any]:
    """Return how much of a text is copied, as plain data for --json."""
    return {
        "characters": found.characters,
        "longest": found.longest,
        "share_in_copies": {str(length): found.share(length) for length in memorisation.LENGTHS},
    }
