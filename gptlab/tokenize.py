"""`python -m gptlab.tokenize TEXT_OR_FILE`: what a tokenizer makes of a text, and how tokenizers compare on it."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gptlab.system.errors import UserError, command_line

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from gptlab.data.tokenizers import Tokenizer

COLOURS = tuple(f"#000000 on color({number})" for number in (117, 221, 114, 212, 252))  # pale ones


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m gptlab.tokenize", description=__doc__)
    p.add_argument("text", metavar="TEXT_OR_FILE", help="a text, the path of a file with one, or - for standard input")
    p.add_argument(
        "--tokenizer",
        action="append",
        metavar="NAME",
        help="show this one's pieces: char, byte, word, bpe, gpt2, cl100k_base, or a run directory for its own; can be "
        "given several times (default: gpt2 if its vocabulary lies in the data folder, else bpe)",
    )
    p.add_argument("--vocab-size", type=int, metavar="N", help="of word (default: every word) and bpe (default: 512)")
    p.add_argument("--special", action="store_true", help="<|endoftext|> in the text is the special token, not text")
    p.add_argument("--limit", type=int, default=200, metavar="N", help="show the first N tokens (default: 200)")
    p.add_argument("--data-dir", metavar="DIR", help="where vocabularies are looked for (default: GPTLAB_DATA)")
    return p


def read(argument: str) -> list[str]:
    """The pieces of the text that the command line gives or names.

    Raises:
        UserError: the file cannot be read, or there is no text.
    """
    from gptlab.data import text_files

    if argument == "-":
        chunks: Iterator[str] = iter([sys.stdin.read()])
    elif len(argument) < 4096 and Path(argument).is_file():
        chunks = text_files.characters(Path(argument))
    else:
        chunks = iter([argument])
    pieces = [piece.text for piece in text_files.pieces(chunks)]
    if not pieces:
        raise UserError("the text is empty")
    return pieces


def build(name: str, pieces: list[str], vocab_size: int | None, raw_dir: Path) -> Tokenizer:
    """The tokenizer of that name, learned from the text where it learns, or that of a run.

    Raises:
        UserError: there is none of that name, or its vocabulary cannot be had.
    """
    from gptlab.data import tokenizers

    if name not in tokenizers.NAMES and Path(name).exists():
        from gptlab.formats import checkpoint

        content = checkpoint.read_checkpoint(checkpoint.find_checkpoint(Path(name)))
        return tokenizers.from_dict(content[checkpoint.KEY]["tokenizer"])
    size = {"bpe": vocab_size or 512, "word": vocab_size}.get(name)
    return tokenizers.build(tokenizers.TokenizerConfig(name, size), pieces, False, raw_dir)


def encode(tokenizer: Tokenizer, pieces: list[str], special: bool) -> list[int]:
    encode = tokenizer.encode_special if special else tokenizer.encode
    return list(itertools.chain.from_iterable(encode(piece).tolist() for piece in pieces))


def shown(tokenizer: Tokenizer, ids: list[int], coloured: bool) -> Text:
    """The tokens' texts, each in a colour of its own; where there are no colours, with bars between them."""
    from rich.text import Text

    from gptlab.system.terminal import harmless

    text = Text()
    for i, token in enumerate(ids):
        piece = tokenizer.tokens[token].decode("utf-8", "backslashreplace")
        text.append("|" if i and not coloured else "")
        lines = harmless(piece.replace("\t", "\\t").replace("\r", "\\r")).split("\n")
        text.append("↵\n".join(lines), style=COLOURS[i % len(COLOURS)])
    return text


def numbers(ids: list[int]) -> Text:
    from rich.text import Text

    return Text(" ").join(Text(str(token), style=COLOURS[i % len(COLOURS)]) for i, token in enumerate(ids))


def comparison(tokenizers: dict[str, Tokenizer], encoded: dict[str, list[int]], pieces: list[str]) -> Table:
    """One row a tokenizer: how many tokens it needs, and how many bytes of text each stands for."""
    from rich.table import Table

    size = sum(len(piece.encode("utf-8", "replace")) for piece in pieces)
    table = Table(caption=f"{size:,} bytes, {sum(map(len, pieces)):,} characters; char, word and bpe learned from them")
    table.add_column("tokenizer")
    for column in ("vocabulary", "tokens", "distinct", "bytes per token"):
        table.add_column(column, justify="right")
    table.add_column("lost")
    for name, tokenizer in tokenizers.items():
        ids = encoded[name]
        lost = len({c for piece in pieces for c in tokenizer.unknown(piece)})
        words = f"white space, {ids.count(0):,} words" if tokenizer.name == "word" else ""
        table.add_row(
            name,
            f"{tokenizer.vocab_size:,}",
            f"{len(ids):,}",
            f"{len(set(ids)):,}",
            f"{size / max(len(ids), 1):.3f}",
            f"{lost:,} characters" if lost else words,
        )
    return table


def run(args: argparse.Namespace) -> None:
    from rich.console import Console

    from gptlab.system.files import user_folder

    raw_dir = user_folder(args.data_dir or os.environ.get("GPTLAB_DATA"))
    pieces = read(args.text)
    local = {"gpt2": raw_dir / "gpt2" / "vocab.bpe", "cl100k_base": raw_dir / "cl100k_base.tiktoken"}
    there = [name for name, file in local.items() if file.is_file()]
    asked = args.tokenizer or (there or ["bpe"])[:1]
    names = dict.fromkeys(("char", "word", "byte", "bpe", *there, *asked))
    tokenizers = {name: build(name, pieces, args.vocab_size, raw_dir) for name in names}
    encoded = {name: encode(tokenizer, pieces, args.special) for name, tokenizer in tokenizers.items()}

    console = Console(highlight=False)
    for name in asked:
        ids = encoded[name]
        console.print(f"[bold]{name}[/bold]: {len(ids):,} tokens")
        console.print(shown(tokenizers[name], ids[: args.limit], console.color_system is not None))
        console.print(numbers(ids[: args.limit]))
        if len(ids) > args.limit:
            console.print(f"... and {len(ids) - args.limit:,} more: --limit {len(ids)}")
        console.print()
    console.print(comparison(tokenizers, encoded, pieces))


def main(argv: Sequence[str] | None = None) -> None:
    """The command line: a mistake is one message and exit code 1 (2 for flags); Ctrl-C is 130."""
    args = parser().parse_args(argv)
    with command_line():
        run(args)


if __name__ == "__main__":
    main()
