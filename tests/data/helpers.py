"""What several tests of texts share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptlab.data import pieces, text_files
from gptlab.data.file_kinds import kind_of
from gptlab.data.shards import IdFile, Shards, id_type, shard
from gptlab.data.text_options import TextOptions


@contextmanager
def small(piece: int) -> Iterator[None]:
    """Pieces of about so many characters, and files read in chunks of so many bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "PIECE", piece)
        patch.setattr(pieces, "PIECE", piece)
        yield


def read(path: Path, counts: Counter[str] | None = None, **options: Any) -> list[str]:
    """The documents of a file."""
    how = TextOptions(**options)
    found = text_files.documents(path, kind_of(path, how), how, Counter() if counts is None else counts)
    return ["".join(chunks) for chunks in found]


def opened(folder: Path, split: str, counts: list[int], vocab_size: int) -> Shards:
    """The ids of a split as a preparation writes them."""
    dtype = np.dtype(id_type(vocab_size)).str
    return Shards([IdFile(shard(folder, split, i), dtype, count) for i, count in enumerate(counts)])
