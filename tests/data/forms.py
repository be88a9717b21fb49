"""`python -m tests.data.forms`: 200 sentences in every form of file, and what is read, as docs/data-formats.md says."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from shlex import quote

import datasets
import pyarrow
import pyarrow.ipc
import pyarrow.parquet

from gptlab.data import corpora
from gptlab.data.prepare import prepare
from gptlab.data.split import Split
from gptlab.data.text_options import TextOptions
from gptlab.data.tokenizers import TokenizerConfig
from gptlab.system.errors import UserError

SENTENCES = [f'The {i % 7}th of {i} boats, "{"abcdefgh"[i % 8]}", sails — été {i * i}.' for i in range(200)]
JOINED = "\n".join(SENTENCES)
ROWS = [{"url": f"http://a.b/{i}", "text": text} for i, text in enumerate(SENTENCES)]
LINES = "\n".join(map(json.dumps, ROWS))
ONE, MANY = "one text", "documents"


def in_csv(delimiter: str, ends: str) -> str:
    file = io.StringIO()
    writer = csv.writer(file, delimiter=delimiter, lineterminator=ends)
    writer.writerows([["url", "text"], *([row["url"], row["text"]] for row in ROWS)])
    return file.getvalue()


def table(path: Path, type_: pyarrow.DataType) -> None:
    texts = [text.encode() for text in SENTENCES] if "binary" in str(type_) else SENTENCES
    column = pyarrow.array(texts).cast(type_) if "dictionary" in str(type_) else pyarrow.array(texts, type_)
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), path)


def table_of_lists(path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": [[text] for text in SENTENCES]}), path)


def arrow(path: Path) -> None:
    content = pyarrow.table({"text": SENTENCES})
    with pyarrow.ipc.new_stream(path, content.schema) as file:
        file.write_table(content)


def folder(path: Path, depth: int = 0) -> None:
    for i, text in enumerate(SENTENCES):
        place = path.joinpath(*[f"{i // 10:02}"] * depth)
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i:03}.txt").write_text(text)


def linked(path: Path) -> None:
    folder(path.parent / "elsewhere", 1)
    path.mkdir()
    (path / "link").symlink_to(path.parent / "elsewhere")


def parts(path: Path) -> None:
    (path / "data").mkdir(parents=True)
    (path / "README.md").write_text("# A data set\n")
    for name, rows in {"train": ROWS[:160], "validation": ROWS[160:180], "test": ROWS[180:]}.items():
        (path / "data" / f"{name}-00000.jsonl").write_text("\n".join(map(json.dumps, rows)))


def saved(path: Path) -> None:
    datasets.disable_progress_bars()
    of_part = {"train": ROWS[:160], "validation": ROWS[160:180], "test": ROWS[180:]}
    datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in of_part.items()}).save_to_disk(path)


def written(content: str | bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content.encode() if isinstance(content, str) else content)


def packed(pack: Callable[[bytes], bytes], content: str) -> Callable[[Path], object]:
    return written(pack(content.encode()))


def zstandard(raw: bytes) -> bytes:
    return pyarrow.compress(raw, codec="zstd", asbytes=True)  # type: ignore[no-any-return]


SHUT = "<|endoftext|>"
TYPES = {
    str(each): each for each in (pyarrow.string(), pyarrow.large_string(), pyarrow.string_view(), pyarrow.binary())
}
TYPES["dictionary"] = pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
Form = tuple[str, str, Callable[[Path], object], dict[str, str]]
FORMS: list[Form] = [  # what it is called, its file, how that is made, and the options that are given
    ("prose", "my.txt", written(JOINED), {}),
    ("prose of any other name", "my.story", written(JOINED), {}),
    ("Markdown", "my.md", written(JOINED), {}),
    ("UTF-8 with its mark", "my.txt", written(codecs.BOM_UTF8 + JOINED.encode()), {}),
    ("UTF-16, as PowerShell writes", "my.txt", written(JOINED.encode("utf-16")), {}),
    ("UTF-16 without its mark", "my.txt", written(JOINED.encode("utf-16-le")), {}),
    ("Latin-1", "my.txt", written(JOINED.replace("—", "-").encode("latin-1")), {}),
    ("line ends of Windows", "my.txt", written(JOINED.replace("\n", "\r\n")), {}),
    *((f"prose in {end}", f"my.txt.{end}", packed(pack, JOINED), {}) for end, pack in
      {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstandard}.items()),
    ("gz without the ending", "my.txt", packed(gzip.compress, JOINED), {}),
    ("GPT-2's separators", "my.txt", written(f"\n{SHUT}\n".join(SENTENCES)), {}),
    ("a separator of one's own", "my.txt", written("\n---\n".join(SENTENCES)), {"separator": "---"}),
    ("a document a line", "my.txt", written(JOINED), {"separator": "\\n"}),
    ("JSON, a row a line", "my.jsonl", written(LINES), {}),
    ("the same", "my.ndjson", written(LINES), {}),
    ("the same, packed", "my.json.gz", packed(gzip.compress, LINES), {}),
    ("the same, of another name", "my.txt", written(LINES), {}),
    ("the same, line ends of Windows", "my.jsonl", written(LINES.replace("\n", "\r\n")), {}),
    ("JSON, a list", "my.json", written(json.dumps(ROWS, indent=1)), {}),
    ("JSON, a list of strings", "my.json", written(json.dumps(SENTENCES)), {}),
    ("JSON under another key", "my.jsonl", written(LINES.replace('"text"', '"body"')), {}),
    ("the same, with the key", "my.jsonl", written(LINES.replace('"text"', '"body"')), {"text_key": "body"}),
    ("CSV", "my.csv", written(in_csv(",", "\n")), {}),
    ("CSV of Windows", "my.csv", written(in_csv(";", "\r\n")), {}),
    ("tabs between columns", "my.tsv", written(in_csv("\t", "\n")), {}),
    ("CSV of another name", "my.txt", written(in_csv(",", "\n")), {}),
    ("the same, with the format", "my.txt", written(in_csv(",", "\n")), {"format": "csv"}),
    *((f"Parquet, {name}", "my.parquet", partial(table, type_=type_), {}) for name, type_ in TYPES.items()),
    ("Parquet, lists", "my.parquet", table_of_lists, {}),
    ("Arrow", "my.arrow", arrow, {}),
    ("a folder of files", "texts", folder, {}),
    ("folders in folders", "texts", lambda path: folder(path, 3), {}),
    ("a link to a folder", "texts", linked, {}),
    ("a data set, as published", "set", parts, {}),
    ("the same, saved by `save_to_disk`", "set", saved, {}),
    ("HTML", "my.html", written(f"<html><p>{JOINED}</p></html>"), {}),
    ("a zip archive", "my.zip", written(b"PK\x03\x04..."), {}),
]  # fmt: skip


def outcome(form: Form) -> tuple[list[int], str]:
    """The ids of the train and held-out parts, and how they were read; or no ids, and the message."""
    _, name, make, options = form
    with tempfile.TemporaryDirectory() as work:
        path = Path(work) / "in" / name
        path.parent.mkdir()
        make(path)
        cache, split = Path(work, "cache"), Split("position", 0.2, 0.0)
        try:
            how = TextOptions(**options)  # type: ignore[arg-type]
            corpus = corpora.load("text", [str(path)], cache, cache, options=how)
            prepared = prepare(corpus, split, TokenizerConfig("char", None), cache, cache)
        except UserError as error:
            return [], str(error).replace(f"{path.parent}/", "")
        ids = [int(i) for part in prepared.files for i in prepared.ids(part)[:]]
        read = MANY if corpus.documents else ONE
        return ids, read + (f": {', '.join(corpus.parts)}" if corpus.parts else "")


def rows() -> list[str]:
    """The lines of the table."""
    found = ["| 200 sentences as | in | given | are read as | ids |", "|---|---|---|---|---|"]
    first: dict[str, list[int]] = {}
    for form in FORMS:
        ids, how = outcome(form)
        given = " ".join(f"`{quote(f'data.{key}={value}')}`" for key, value in form[3].items())
        kind, same = how.partition(":")[0], "-"
        if ids:
            same = f"{len(ids):,}" if kind not in first else "the same" if ids == first[kind] else "different"
            first.setdefault(kind, ids)
        found.append(
            f"| {form[0]} | `{form[1]}` | {given} | {how if ids else 'refused: ' + how} | {same} |".replace("  ", " ")
        )
    return found


if __name__ == "__main__":
    print("\n".join(rows()))
    sys.exit()
