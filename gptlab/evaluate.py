"""`python -m gptlab.evaluate MODEL`: the exact loss of a model on a whole text, beside another model's if you like."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptlab.system.errors import UserError, command_line, quoted

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from gptlab.data.batches import Windows
    from gptlab.data.tokenizers import Tokenizer
    from gptlab.evaluation import Measured
    from gptlab.formats.checkpoint import Info
    from gptlab.memorisation import Copies
    from gptlab.models import Model
    from gptlab.ngrams import NGrams
    from gptlab.sources import Source

FORMAT = 1  # of --json
HIGHEST = 6  # order of ngram:N
SAMPLE = 5000  # tokens
LONGEST_SAMPLE = 200_000  # characters: its automaton takes about a kilobyte for each
TOP = 10  # copies that are shown
SHOWN = 120  # characters of each, on the terminal


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m gptlab.evaluate", description=__doc__)
    p.add_argument(
        "model",
        metavar="MODEL",
        help="a run directory (its best checkpoint), a checkpoint, a Hugging Face directory or hub name (gpt2); or "
        "ngram:1 to ngram:6, counted on the train part (Kneser-Ney), or uniform",
    )
    p.add_argument(
        "--data",
        metavar="NAME_OR_FILE",
        help="shakespeare_char, pydoc_char, verdict, auto, or a text file or a folder of them (default: the run's own; "
        "of ngram:N and uniform shakespeare_char)",
    )
    p.add_argument(
        "--split",
        choices=("train", "val", "test", "all"),
        help="the part that counts (default: val; of a file all, unless the model has learned from it)",
    )
    p.add_argument("--context", type=int, metavar="N", help="tokens in a window (default: the model's block_size)")
    p.add_argument(
        "--stride",
        type=int,
        metavar="S",
        help="from one window to the next: the last S tokens of each count (default: the context)",
    )
    p.add_argument("--compare", metavar="OTHER", help="another MODEL on the same text, and whether they differ")
    p.add_argument(
        "--tokenizer",
        choices=("char", "byte", "gpt2", "cl100k_base"),
        help="of ngram:N (default: that of the model beside it, else char) and uniform (else byte)",
    )
    p.add_argument(
        "--memorised",
        action="store_true",
        help="instead of the loss: the longest strings of a sample that stand word for word in the train part",
    )
    p.add_argument(
        "--sample", metavar="FILE", type=Path, help="with --memorised: a text to take for the model's sample"
    )
    p.add_argument("--seed", type=int, default=1337, metavar="S", help="of samples and bootstrap (default: 1337)")
    p.add_argument("--batch-size", type=int, metavar="N", help="windows at a time (default: 8192 tokens' worth)")
    p.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="(default: fp32)")
    p.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="(default: auto)")
    p.add_argument("--json", action="store_true", help="JSON on standard output")
    return p


@dataclass(frozen=True)
class Candidate:
    """A MODEL of the command line."""

    name: str
    model: Model | NGrams
    tokenizer: Tokenizer
    info: Info | None
    """None: of a table of counts."""

    @property
    def words(self) -> str:
        return self.info.words if self.info else self.name

    @property
    def config(self) -> dict[str, Any]:
        """Of a run; empty for any other model."""
        return self.info.config if self.info else {}

    @property
    def data(self) -> dict[str, Any]:
        data = self.config.get("data")
        return data if isinstance(data, dict) else {}

    @property
    def learned_from(self) -> str | None:
        """The sha256 of the text that a run was trained on; None if the model does not say."""
        return self.info.data_sha256 if self.info else None


def order(name: str) -> int | None:
    """6 of ngram:6, 0 of uniform, None of a model that is to be loaded.

    Raises:
        UserError: there is no such order.
    """
    orders = {"uniform": 0} | {f"ngram:{n}": n for n in range(1, HIGHEST + 1)}
    if name.startswith("ngram:") and name not in orders:
        raise UserError(f"{name}: the order must be a number from 1 to {HIGHEST}, as in ngram:{HIGHEST}")
    return orders.get(name)


def loaded(name: str) -> Candidate:
    from gptlab import sources
    from gptlab.formats import open_model

    return Candidate(name, *open_model.load(name, raw_dir=sources.folders({})[0]))


# Which text


@dataclass(frozen=True)
class Text:
    """What the candidates are measured on."""

    name: str
    source: Source
    part: str
    notes: list[str]
    """What a reader of the numbers has to know."""


def text(args: argparse.Namespace, models: list[Candidate], orders: dict[str, int]) -> Text:
    """The text that is asked for, by default that of the first run among the models.

    Args:
        orders: of the tables that will be counted on its train part.

    Raises:
        UserError: it cannot be had, or is not the one that the run was trained on.
    """
    from gptlab import sources

    run = next((each for each in models if each.data), None)
    if args.data is None and run is None and models:
        raise UserError(f"{args.model} brings no text: give one with --data FILE, or e.g. --data shakespeare_char")
    if args.data is None and run is not None:
        source = sources.own(run.name, run.config, run.tokenizer)
    else:
        source = sources.named(args.data or "shakespeare_char", run.data if run else {})
    learned = [each for each in models if each.learned_from == source.sha256]
    if args.data is None and run is not None and run.learned_from not in (None, source.sha256):
        raise UserError(
            f"the text of {run.name} has changed since its training (its sha256 is {source.sha256[:16]} now): give the "
            f"text of then, or any other, with --data FILE"
        )
    counted = [name for name, n in orders.items() if n]
    file = args.data not in (None, *sources.NAMED)
    part = args.split or ("all" if file and not learned and not counted and not args.memorised else "val")
    if part == "all" and (counted or args.memorised):
        raise UserError("--split all: what comes from the train part is measured on another; use --split val")
    notes = []
    for each in learned:
        if part in ("train", "all"):
            notes.append(f"{each.name} has learned from this very text")
        elif sources.split(each.data) != source.split:
            notes.append(f"{each.name} holds out another part of this text, and may have learned from this one")
    if part == "train":
        notes += [f"{name} was counted on this very text" for name in counted]
    return Text(args.data if file else source.corpus.name, source, part, notes)


# The loss


def table(name: str, n: int, text: Text, tokenizer: Tokenizer | str) -> Candidate:
    """The counts of order `n` on the train part of the text.

    Args:
        tokenizer: or the name of one, which learns from that part where it learns.
    """
    import numpy as np

    from gptlab import sources
    from gptlab.data import tokenizers
    from gptlab.ngrams import NGrams

    train = text.source.pieces("train")
    if isinstance(tokenizer, str):
        config, documents = tokenizers.TokenizerConfig(tokenizer, None), text.source.corpus.documents
        tokenizer = tokenizers.build(config, (piece.text for piece in train), documents, sources.folders({})[0])
    ids = text.source.encode(train, tokenizer) if n else np.zeros(0, np.int64)
    return Candidate(name, NGrams(ids, tokenizer.vocab_size, n), tokenizer, None)


def measured(args: argparse.Namespace, candidates: list[Candidate], text: Text, where: torch.device) -> dict[str, Any]:
    """What --json prints: the first model's numbers, and with --compare those of the other and their difference."""
    from gptlab import evaluation, sources

    pieces, lost = sources.known(text.source.pieces(text.part), [each.tokenizer for each in candidates])
    notes = list(text.notes)
    if lost:
        characters = f"{lost.total():,} characters, {len(lost):,} distinct: {quoted(sorted(lost))}"
        notes.append(f"left out, since there is no token for them: {characters}")
    results = []
    for each in candidates:
        ids = text.source.encode(pieces, each.tokenizer)
        windows = windows_of(args, each)
        results.append(
            evaluation.measure(
                each.model,
                ids,
                each.tokenizer,
                text.part,
                windows,
                where,
                batch_size=args.batch_size,
                bf16=args.precision == "bf16",
            )
        )
    content = {
        "format": FORMAT,
        **record(candidates[0], results[0]),
        "device": str(where),
        "precision": args.precision,
        "data": {"name": text.name, "split": text.part, "sha256": text.source.sha256, "left_out": dict(lost)},
        "notes": notes,
    }
    if len(candidates) == 2:
        a, b = (each.tokenizer.to_dict() for each in candidates)
        difference = evaluation.compare(results[0], results[1], a == b, args.seed)
        content["compare"] = record(candidates[1], results[1])
        content["difference"] = asdict(difference) | {"words": difference.words(), "method": difference.method()}
    return content


def record(each: Candidate, result: Measured) -> dict[str, Any]:
    """One model's numbers, for --json."""
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


def windows_of(args: argparse.Namespace, each: Candidate) -> Windows | None:
    """The windows that the command line asks for; None: a table has none.

    Raises:
        UserError: the model cannot have them.
    """
    from gptlab.data.batches import Windows
    from gptlab.ngrams import NGrams

    if isinstance(each.model, NGrams):
        return None
    return Windows.of(args.context, args.stride, each.model.config.block_size, each.name)


def show_measured(content: dict[str, Any], console: Console) -> None:
    from gptlab.system import terminal

    models = {"A": content, "B": content["compare"]} if "compare" in content else {"": content}
    for letter, each in models.items():
        say(console, f"{letter or 'model'}: {each['model']}")
    say_text(content, console)

    rows: dict[str, Callable[[Any], str]] = {
        "protocol": str,
        "nats_per_token": "{:.4f}".format,
        "perplexity": "{:.4f}".format,
        "bits_per_byte": "{:.4f}".format,
        "tokens": "{:,}".format,
        "bytes": "{:,}".format,
        "seconds": "{:.2f}".format,
    }
    columns = {"": [name.replace("_", " ") for name in rows]}
    columns |= {letter or "value": [form(each[name]) for name, form in rows.items()] for letter, each in models.items()}
    console.print(terminal.table(columns))
    if places := by_context(models):
        say(console, "nats per token by how many tokens the window had shown:")
        console.print(terminal.table(places))
    if "difference" in content:
        say(console, content["difference"]["words"])
        say(console, content["difference"]["method"])


def by_context(models: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    """Columns of a table: the loss by how many tokens a window had shown, 1, 2, 3-4, 5-8, ...; none without windows."""
    windowed = {letter: each for letter, each in models.items() if "loss_by_position" in each}
    longest = max((len(each["loss_by_position"]) for each in windowed.values()), default=0)
    columns: dict[str, list[str]] = {"": []} if windowed else {}
    for first in (0, *(2**i for i in range((longest - 1).bit_length()))) if windowed else ():
        last = min(max(2 * first, 1), longest)
        columns[""].append(f"{last}" if last == first + 1 else f"{first + 1}-{last}")
        for letter, each in windowed.items():
            counts = each["tokens_by_position"][first:last]
            losses = zip(each["loss_by_position"][first:last], counts, strict=True)
            nats, tokens = sum(loss * count for loss, count in losses if count), sum(counts)
            columns.setdefault(letter or "nats per token", []).append(f"{nats / tokens:.4f}" if tokens else "-")
            if not letter:
                columns.setdefault("tokens", []).append(f"{tokens:,}")
    return columns


def say(console: Console, line: str) -> None:
    console.print(line, markup=False, soft_wrap=not console.is_terminal)


def say_text(content: dict[str, Any], console: Console) -> None:
    data = content["data"]
    say(console, f"text: {data['name']}, {data['split']}, sha256 {data['sha256'][:16]}")
    for note in content["notes"]:
        say(console, f"note: {note}")


# Memorisation


def memorised(args: argparse.Namespace, model: Candidate | None, text: Text, where: torch.device) -> dict[str, Any]:
    """What --json prints: the copies in a sample and, to judge them by, in a held-out text of the same length.

    Args:
        model: None: --sample names a text.
    """
    from gptlab import memorisation
    from gptlab.data import text_files
    from gptlab.ngrams import NGrams

    if text.part not in ("val", "test"):
        raise UserError(f"--split {text.part}: with --memorised it is the text to compare with: val or test")
    notes = list(text.notes)
    if args.sample:
        if not args.sample.is_file():
            raise UserError(f"--sample {args.sample}: no such file")
        sample, origin = "".join(text_files.characters(args.sample)), str(args.sample)
        if len(sample) > LONGEST_SAMPLE:
            notes.append(f"of the sample's {len(sample):,} characters the first {LONGEST_SAMPLE:,} are read")
            sample = sample[:LONGEST_SAMPLE]
    else:
        assert model is not None
        assert not isinstance(model.model, NGrams)
        sample = memorisation.sample(model.model.to(where), model.tokenizer, SAMPLE, args.seed)
        origin = f"{SAMPLE:,} tokens in {memorisation.ROWS} texts, at temperature 1, seed {args.seed}"
    if not sample.strip(memorisation.SEAM):
        raise UserError("the sample is empty")
    train = [piece.text + memorisation.SOURCE_SEAM * piece.last for piece in text.source.pieces("train")]
    found = memorisation.copies(sample, train)
    held_out = "".join(piece.text for piece in text.source.pieces(text.part))[: found.characters]
    longest = [{"characters": len(copy.text), **asdict(copy)} for copy in found.top(TOP)]
    return {
        "format": FORMAT,
        "model": model.words if model else args.model,
        "origin": origin,
        "data": {"name": text.name, "split": text.part, "sha256": text.source.sha256},
        "notes": notes,
        "sample": shares(found),
        "held_out": shares(memorisation.copies(held_out, train)),
        "longest": longest,
    }


def shares(found: Copies) -> dict[str, Any]:
    from gptlab.memorisation import LENGTHS

    return {
        "characters": found.characters,
        "longest": found.longest,
        "share_in_copies": {str(length): found.share(length) for length in LENGTHS},
    }


def show_memorised(content: dict[str, Any], console: Console) -> None:
    from gptlab.system import terminal
    from gptlab.system.terminal import harmless

    say(console, f"model: {content['model']}")
    say_text(content, console)
    say(console, f"sample: {content['origin']}")
    part = content["data"]["split"]
    rows = {"sample": content["sample"], part: content["held_out"]}
    columns = {
        "": list(rows),
        "characters": [f"{row['characters']:,}" for row in rows.values()],
        "longest copy": [f"{row['longest']:,}" for row in rows.values()],
    }
    for length in content["sample"]["share_in_copies"]:
        columns[f"in {length}+"] = [f"{row['share_in_copies'][length]:.1%}" for row in rows.values()]
    console.print(terminal.table(columns))
    least = ", ".join(content["sample"]["share_in_copies"])
    say(console, f"in N+: how much of the text lies in copies of {least} characters and more from the train part")
    say(console, f"{part}: held-out text of the same length, to judge the sample by")
    say(console, "the sample's longest copies, and where they stand in the train part:")
    for copy in content["longest"]:
        end = " ..." if copy["characters"] > SHOWN else ""
        say(console, f"{copy['characters']:6,}  at {copy['found']:<11,}  {harmless(copy['text'][:SHOWN])!r}{end}")


def run(args: argparse.Namespace) -> None:
    """Measure and print.

    Raises:
        UserError: a flag is out of range, a model or its text cannot be had, or they do not fit together.
    """
    from rich.console import Console

    from gptlab.system import accelerator, terminal

    for flag, least in (("batch_size", 1), ("seed", 0)):
        value = getattr(args, flag)
        if value is not None and value < least:
            raise UserError(f"--{flag.replace('_', '-')} {value}: must be at least {least}")
    where = accelerator.device(args.device)
    names = [args.model] if args.compare is None else [args.model, args.compare]
    orders = {name: n for name in names if (n := order(name)) is not None}
    if args.memorised and args.model in orders and not args.sample:
        raise UserError(
            f"--memorised: {args.model} writes nothing here; give its sample, or any text, with --sample FILE"
        )
    if len(orders) == len(set(names)) and (args.context or args.stride):
        raise UserError(f"--context and --stride are for models with windows, which {args.model} has not")
    if not orders and args.tokenizer:
        raise UserError(f"--tokenizer {args.tokenizer} is for ngram:N and uniform; {args.model} has its own")
    models = {name: loaded(name) for name in names if name not in orders}
    for each in models.values():
        windows_of(args, each)
    chosen = text(args, [*models.values()], orders)
    if args.memorised:
        content, show = memorised(args, models.get(args.model), chosen, where), show_memorised
    else:
        default = "char" if any(orders.values()) else "byte"
        tokenizer = args.tokenizer or next((each.tokenizer for each in models.values()), default)
        candidates = [models.get(name) or table(name, orders[name], chosen, tokenizer) for name in names]
        content, show = measured(args, candidates, chosen, where), show_measured
    if args.json:
        print(terminal.as_json(content), end="")
    else:
        show(content, Console(highlight=False))


def main(argv: Sequence[str] | None = None) -> None:
    """The command line: a mistake is one message and exit code 1 (2 for flags); Ctrl-C is 130."""
    p = parser()
    args = p.parse_args(argv)
    if args.memorised and args.compare:
        p.error("--memorised and --compare do not go together")
    if args.sample and not args.memorised:
        p.error("--sample FILE goes with --memorised")
    with command_line():
        run(args)


if __name__ == "__main__":
    main()
