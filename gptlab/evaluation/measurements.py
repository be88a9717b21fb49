"""What `evaluate` finds of the candidates, as plain data: losses and their difference, or copies of the train part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from gptlab.data import text_files
from gptlab.data.batches import Windows
from gptlab.evaluation import comparison, eval_data, loss, memorisation
from gptlab.evaluation.candidates import Candidate, Text
from gptlab.evaluation.loss import Measured
from gptlab.evaluation.memorisation import Copies
from gptlab.evaluation.ngrams import NGrams
from gptlab.formats.open_model import OpenedModel
from gptlab.models import Model
from gptlab.system.errors import UserError, quoted

FORMAT = 1  # of --json
SAMPLE = 5000  # tokens
LONGEST_SAMPLE = 200_000  # characters: its automaton takes about a kilobyte for each
TOP = 10  # copies that are shown

ChooseWindows = Callable[[str, int], Windows]
"""The windows of a model, from its name and its block_size; raises UserError where it cannot have them."""


def measure_all(
    candidates: Sequence[Candidate],
    text: Text,
    device: torch.device,
    windows: ChooseWindows,
    *,
    seed: int,
    batch_size: int | None = None,
    bf16: bool = False,
) -> dict[str, Any]:
    """What --json prints: the first candidate's numbers, and those of a second one with their difference.

    Args:
        seed: of the bootstrap.
        batch_size, bf16: see `loss.nats`.
    """
    pieces, lost = eval_data.known(text.source.pieces(text.part), [each.tokenizer for each in candidates])
    notes = list(text.notes)
    if lost:
        characters = f"{lost.total():,} characters, {len(lost):,} distinct: {quoted(sorted(lost))}"
        notes.append(f"left out, since there is no token for them: {characters}")
    results = []
    for each in candidates:
        ids = text.source.encode(pieces, each.tokenizer)
        its = None if isinstance(each.model, NGrams) else windows(each.name, each.model.config.block_size)
        how: dict[str, Any] = {"batch_size": batch_size, "bf16": bf16}
        results.append(loss.measure(each.model, ids, each.tokenizer, text.part, its, device, **how))
    content = {
        "format": FORMAT,
        **record(candidates[0], results[0]),
        "device": str(device),
        "precision": "bf16" if bf16 else "fp32",
        "data": {"name": text.name, "split": text.part, "sha256": text.source.sha256, "left_out": dict(lost)},
        "notes": notes,
    }
    if len(candidates) == 2:
        a, b = (each.tokenizer.to_dict() for each in candidates)
        difference = comparison.compare(results[0], results[1], a == b, seed)
        content["compare"] = record(candidates[1], results[1])
        content["difference"] = asdict(difference) | {"words": difference.words(), "method": difference.method()}
    return content


def record(each: Candidate, result: Measured) -> dict[str, Any]:
    """The numbers of one candidate, for --json."""
    content = {
        "model": each.words,
        "protocol": result.protocol,
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


def find_copies(
    opened: OpenedModel[Model] | None, sample_file: Path | None, name: str, text: Text, device: torch.device, seed: int
) -> dict[str, Any]:
    """What --json prints: the copies in a sample and, to judge them by, in a held-out text of the same length.

    Args:
        opened: the model that writes the sample; None: it stands in `sample_file`.
        name: of the model, where there is none.
        seed: of the sample.
    """
    if text.part not in ("val", "test"):
        raise UserError(f"--split {text.part}: with --memorised it is the text to compare with: val or test")
    notes = list(text.notes)
    if sample_file:
        if not sample_file.is_file():
            raise UserError(f"--sample {sample_file}: no such file")
        sample, origin = "".join(text_files.characters(sample_file)), str(sample_file)
        if len(sample) > LONGEST_SAMPLE:
            notes.append(f"of the sample's {len(sample):,} characters the first {LONGEST_SAMPLE:,} are read")
            sample = sample[:LONGEST_SAMPLE]
    else:
        assert opened is not None
        sample = memorisation.sample(opened.model.to(device), opened.tokenizer, SAMPLE, seed)
        origin = f"{SAMPLE:,} tokens in {memorisation.ROWS} texts, at temperature 1, seed {seed}"
    if not sample.strip(memorisation.SEAM):
        raise UserError("the sample is empty")
    train = [piece.text + memorisation.SOURCE_SEAM * piece.last for piece in text.source.pieces("train")]
    found = memorisation.copies(sample, train)
    held_out = "".join(piece.text for piece in text.source.pieces(text.part))[: found.characters]
    return {
        "format": FORMAT,
        "model": opened.words if opened else name,
        "origin": origin,
        "data": {"name": text.name, "split": text.part, "sha256": text.source.sha256},
        "notes": notes,
        "sample": shares(found),
        "held_out": shares(memorisation.copies(held_out, train)),
        "longest": [{"characters": len(copy.text), **asdict(copy)} for copy in found.top(TOP)],
    }


def shares(found: Copies) -> dict[str, Any]:
    """How much of a text is copied, for --json."""
    return {
        "characters": found.characters,
        "longest": found.longest,
        "share_in_copies": {str(length): found.share(length) for length in memorisation.LENGTHS},
    }
