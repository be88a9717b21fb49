"""`python -m gptlab.tokenize TEXT_OR_FILE`: what a tokenizer makes of a text, and how tokenizers compare on it."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gptlab.data.text_options import FORMATS
from gptlab.system.arguments import some_name
from gptlab.system.errors import UserError, amount, command_line

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from gptlab.data.tokenizers import Tokenizer

COLOURS = tuple(f"#000000 on color({number})" for number in (117, 221, 114, 212, 252))  # pale ones


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m gptlab.tokenize", description=__doc__)
    p.add_argument(
        "text", metavar="TEXT_OR_FILE", help="a text, the path of a file or folder/ with one, or - for standard input"
    )
    p.add_argument(
        "--tokenizer",
        action="append",
        type=some_name,
        metavar="NAME",
        help="show this one's pieces: char, byte, word, bpe, gpt2, cl100k_base, or a run directory for its own; can be "
        "given several times (default: gpt2 if its vocabulary lies in the data folder, else bpe)",
    )
    p.add_argument("--vocab-size", type=int, metavar="N", help="of word (default: every word) and bpe (default: 512)")
    p.add_argument("--special", action="store_true", help="<|endoftext|> in the text is the special token, not text")
    p.add_argument("--text-key", metavar="KEY", help="of a file of rows: which of them is the text (default: text)")
    p.add_argument("--format", choices=FORMATS, help="what the file is, whatever it looks like (default: auto)")
    p.add_argument("--limit", type=int, default=200, metavar="N", help="show the first N tokens (default: 200)")
    p.add_argument(
        "--data-dir", metavar="DIR", type=some_name, help="where vocabularies are looked for (default: GPTLAB_DATA)"
    )
    return p


def read_input() -> str:
    """Read the text on standard input.

    Raises:
        UserError: it is no text.
    """
    from gptlab.data.file_kinds import decoded

    return decoded(sys.stdin.buffer.read(), "standard input")


def read_pieces(argument: str, **flags: str | None) -> list[str]:
    """Read the text that the command line gives or names, in pieces.

    Args:
        flags: the `TextOptions` that are given.

    Raises:
        UserError: the file cannot be read, or there is no text.
    """
    from gptlab.data import corpora
    from gptlab.data.pieces import pieces as cut
    from gptlab.data.text_options import TextOptions, of_tokenize

    file = Path(os.path.expanduser(argument))  # noqa: PTH111 (or a text)
    named = len(argument) < 4096 and (file.is_file() or (os.sep in argument and file.is_dir()))
    if argument != "-" and named:
        options = TextOptions(separator=None, written=of_tokenize, **{k: v for k, v in flags.items() if v is not None})
        pieces = [piece.text for piece in corpora.load("text", [str(file)], Path(), Path(), options=options).read()]
    else:
        pieces = [piece.text for piece in cut([read_input() if argument == "-" else argument])]
    if not pieces:
        raise UserError("the text is empty")
    return pieces


def named_tokenizer(name: str, pieces: list[str], vocab_size: int | None, raw_dir: Path) -> Tokenizer:
    """Build the tokenizer of that name, or read the tokenizer of a run.

    Args:
        name: the name, or a run directory.
        pieces: the text, from which char, word and bpe learn.
        vocab_size: the size of word and bpe; None: their default.
        raw_dir: where vocabularies are looked for.

    Raises:
        UserError: there is no such tokenizer, or its vocabulary cannot be had.
    """
    from gptlab.data import tokenizers

    if name not in tokenizers.NAMES and Path(name).exists():
        from gptlab.formats import checkpoint, description

        content = checkpoint.read_checkpoint(description.find_checkpoint(Path(name)))
        return tokenizers.from_dict(content[description.KEY]["tokenizer"])
    size = {"bpe": vocab_size or 512, "word": vocab_size}.get(name)
    return tokenizers.build(tokenizers.TokenizerConfig(name, size), pieces, False, raw_dir)


def encode_pieces(tokenizer: Tokenizer, pieces: list[str], special: bool) -> list[int]:
    """Return the ids of a text; with `special`, <|endoftext|> in it is the special token."""
    encode = tokenizer.encode_special if special else tokenizer.encode
    return list(itertools.chain.from_iterable(encode(piece).tolist() for piece in pieces))


def coloured_tokens(tokenizer: Tokenizer, ids: list[int], coloured: bool) -> Text:
    """Return the texts of tokens in alternating colours; without colours, with bars between them."""
    from rich.text import Text

    from gptlab.system.terminal import harmless

    text = Text()
    for i, token in enumerate(ids):
        piece = tokenizer.tokens[token].decode("utf-8", "backslashreplace")
        text.append("|" if i and not coloured else "")
        lines = harmless(piece.replace("\t", "\\t").replace("\r", "\\r")).split("\n")
        text.append("↵\n".join(lines), style=COLOURS[i % len(COLOURS)])
    return text


def coloured_ids(ids: list[int]) -> Text:
    """Return the ids of tokens in the colours of their texts."""
    from rich.text import Text

    return Text(" ").join(Text(str(token), style=COLOURS[i % len(COLOURS)]) for i, token in enumerate(ids))


def comparison_table(tokenizers: dict[str, Tokenizer], encoded: dict[str, list[int]], pieces: list[str]) -> Table:
    """Return a table with a row for each tokenizer: its tokens, the bytes of text in each, and what is lost."""
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
            amount(lost, "character") if lost else words,
        )
    return table


def run(args: argparse.Namespace) -> None:
    """Print the tokens of a text, and a table that compares tokenizers on it.

    Raises:
        UserError: the text cannot be read, or there is no such tokenizer.
    """
    from rich.console import Console

    from gptlab.system.files import user_folder

    raw_dir = user_folder(args.data_dir or os.environ.get("GPTLAB_DATA"))
    pieces = read_pieces(args.text, text_key=args.text_key, format=args.format)
    local = {"gpt2": raw_dir / "gpt2" / "vocab.bpe", "cl100k_base": raw_dir / "cl100k_base.tiktoken"}
    present = [name for name, file in local.items() if file.is_file()]
    chosen = args.tokenizer or (present or ["bpe"])[:1]
    names = dict.fromkeys(("char", "word", "byte", "bpe", *present, *chosen))
    tokenizers = {name: named_tokenizer(name, pieces, args.vocab_size, raw_dir) for name in names}
    encoded = {name: encode_pieces(tokenizer, pieces, args.special) for name, tokenizer in tokenizers.items()}

    console = Console(highlight=False)
    for name in chosen:
        ids = encoded[name]
        console.print(f"[bold]{name}[/bold]: {amount(len(ids), 'token')}")
        console.print(coloured_tokens(tokenizers[name], ids[: args.limit], console.color_system is not None))
        console.print(coloured_ids(ids[: args.limit]))
        if len(ids) > args.limit:
            console.print(f"... and {len(ids) - args.limit:,} more: --limit {len(ids)}")
        console.print()
    console.print(comparison_table(tokenizers, encoded, pieces))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; the exit code is 1 after a `UserError`, 2 for wrong flags and 130 after Ctrl-C."""
    with command_line():
        run(parser().parse_args(argv))


if __name__ == "__main__":
    main()
