"""Write prepared ids as nanoGPT, llm.c and `data=bin` read them."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np

from gptlab.data import meta_pickle, ready_ids
from gptlab.data.batches import Ids
from gptlab.data.id_files import CHUNK, HEADER, SHARDS
from gptlab.data.prepared import Prepared
from gptlab.data.shards import SHARD, id_type
from gptlab.data.tokenizers import CharTokenizer
from gptlab.system.files import write_json

WIDE = 20240801  # the magic number of shards of uint32


def write_bin(prepared: Prepared, folder: Path) -> None:
    """Write the ids of each part into a folder, and their tokenizer beside them.

    They are nanoGPT's train.bin and val.bin; where the vocabulary is too large for uint16, shards of llm.c.
    Characters are told in nanoGPT's meta.pkl, too.

    Raises:
        OSError: the folder cannot be written.
    """
    tokenizer = prepared.tokenizer
    for part in prepared.files:
        ids = prepared.ids(part)
        if id_type(tokenizer.vocab_size) is np.uint16:
            with (folder / f"{part}.bin").open("wb") as file:
                _write(ids, 0, len(ids), "<u2", file)
            continue
        version, dtype = SHARDS[WIDE]
        for number, begin in enumerate(range(0, len(ids), SHARD)):
            end = min(begin + SHARD, len(ids))
            header = np.array([WIDE, version, end - begin], "<i4").tobytes()
            with (folder / f"{prepared.name}_{part}_{number:06d}.bin").open("wb") as file:
                file.write(header.ljust(HEADER, b"\0"))
                _write(ids, begin, end, dtype, file)
    write_json(folder / ready_ids.TOKENIZER, tokenizer.to_dict(), indent=None)
    if isinstance(tokenizer, CharTokenizer):
        (folder / meta_pickle.FILE).write_bytes(meta_pickle.meta_of(tokenizer))


def _write(ids: Ids, begin: int, end: int, dtype: str, file: BinaryIO) -> None:
    for start in range(begin, end, CHUNK):
        file.write(ids[start : min(start + CHUNK, end)].astype(dtype).tobytes())
