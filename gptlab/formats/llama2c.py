"""llama2.c's models, in and out: https://github.com/karpathy/llama2.c, whose run.c runs them in plain C.

A model is a header and the weights in fp32, in a fixed order without names. Version 0 is what run.c reads; version 1
has another order; in version 2, which runq.c reads, matrices are 8-bit numbers with a scale for each group of them.
"""

from __future__ import annotations

import logging
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor

from gptlab import models
from gptlab.data.tokenizers import BPETokenizer, CharTokenizer, Tokenizer
from gptlab.formats import llama2c_tokenizer, reshaping
from gptlab.formats.checkpoint import LoadedModel
from gptlab.formats.description import ModelInfo
from gptlab.formats.huggingface_config import differences
from gptlab.formats.huggingface_llama import LLAMA
from gptlab.formats.reading import naming_path
from gptlab.formats.torch_reading import crop_to_tokenizer
from gptlab.models import Model, weights
from gptlab.models.gpt import GPT
from gptlab.models.gpt_config import GPTConfig
from gptlab.models.layers import arange_on, rotary_table
from gptlab.models.positions import rotary_frequencies
from gptlab.system.errors import UserError

log = logging.getLogger(__name__)

FILE = "model.bin"
MAGIC = 0x616B3432
SIZES = struct.Struct("<7i")
AFTER_MAGIC = struct.Struct("<i7iBi")  # version, the sizes, whether the head is the embedding, the size of a group
HEADER_BYTES = 256  # from version 1 on
MANY_LAYERS = 10_000  # that no model has
# What run.c computes: all that the header does not say.
FIXED = LLAMA.fixed | {"norm_eps": 1e-5, "rope_base": 10_000.0, "rope_scaling": None, "head_dim": None}
FIXED |= {"mlp": "swiglu", "bias": False, "qkv_bias": False}
TABLES = "rotary tables"  # of version 0, which run.c no longer reads
ORDERS = {
    0: ["embedding", "ln_1", "q", "k", "v", "o", "ln_2", "w1", "w2", "w3", "ln_f", TABLES, "head"],
    1: ["ln_1", "ln_2", "ln_f", "embedding", "q", "k", "v", "o", "w1", "w2", "w3", "head"],
}
ORDERS[2] = ORDERS[1]


class Header(NamedTuple):
    """The sizes of a model, in the order of the file, and how it is written."""

    n_embd: int
    hidden: int
    n_layer: int
    n_head: int
    n_kv_head: int
    vocab_size: int
    block_size: int
    tied: bool
    version: int
    group: int
    """Numbers with one scale, in version 2."""

    @property
    def begin(self) -> int:
        """Where the weights begin, in bytes."""
        return HEADER_BYTES if self.version else SIZES.size

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes in the order of the file; the first axis of what each layer has is the layers."""
        L, C, H, V, D = self.n_layer, self.n_embd, self.hidden, self.vocab_size, self.n_embd // self.n_head
        found = {"embedding": (V, C), "ln_1": (L, C), "ln_2": (L, C), "ln_f": (C,), TABLES: (self.block_size, D)}
        found |= {"q": (L, C, C), "k": (L, self.n_kv_head * D, C), "v": (L, self.n_kv_head * D, C), "o": (L, C, C)}
        found |= {"w1": (L, H, C), "w2": (L, C, H), "w3": (L, H, C), "head": (V, C)}
        return {name: found[name] for name in ORDERS[self.version] if name != "head" or not self.tied}

    def is_quantised(self, name: str) -> bool:
        return self.version == 2 and not name.startswith("ln_")

    def size_of(self, name: str, shape: tuple[int, ...]) -> int:
        """Return how many bytes the numbers of this name take."""
        count = math.prod(shape)
        return count + 4 * (count // self.group) if self.is_quantised(name) else 4 * count


def read_header(file: Path) -> Header | None:
    """Return the header of a file; None: it does not begin as llama2.c's models do.

    Raises:
        UserError: it does, and has a version or numbers that no model of llama2.c has.
    """
    try:
        with file.open("rb") as stream:
            content = stream.read(4 + AFTER_MAGIC.size)
    except OSError:
        return None
    if len(content) < 4 + AFTER_MAGIC.size:
        return None
    if int.from_bytes(content[:4], "little") != MAGIC:
        C, hidden, L, H, K, V, T = SIZES.unpack_from(content)
        header = Header(C, hidden, L, H, K, abs(V), T, V > 0, 0, 0)
        return header if _is_possible(header) else None
    version, C, hidden, L, H, K, V, T, shared, group = AFTER_MAGIC.unpack_from(content, 4)
    if version not in (1, 2):
        raise UserError(f"{file} is a model of llama2.c of version {version}; gptlab reads 0, 1 and 2")
    header = Header(C, hidden, L, H, K, V, T, bool(shared), version, group)
    if not _is_possible(header):
        raise UserError(
            f"{file} is a damaged model of llama2.c: no model has the sizes {', '.join(map(str, header[:7]))}"
        )
    if version == 2 and not _has_whole_groups(header):
        raise UserError(f"{file} is a damaged model of llama2.c: its matrices have no groups of {group} numbers")
    return header


def _is_possible(header: Header) -> bool:
    sizes = header[:7]
    return (
        min(sizes) > 0
        and max(sizes) <= models.LARGEST_NUMBER
        and header.n_layer <= MANY_LAYERS
        and header.n_embd % header.n_head == 0
        and header.n_head % header.n_kv_head == 0
        and header.n_embd // header.n_head % 2 == 0
    )


def _has_whole_groups(header: Header) -> bool:
    of_a_layer = (shape[-2:] for name, shape in header.shapes().items() if header.is_quantised(name))
    return header.group > 0 and all(math.prod(shape) % header.group == 0 for shape in of_a_layer)


def open_model(file: Path, header: Header) -> LoadedModel:
    """Open a model of llama2.c, on the CPU in evaluation mode.

    Args:
        file: the file. tokenizer.bin is beside it, or tok<number of ids>.bin.
        header: its header, see `read_header`.

    Raises:
        UserError: the file has another length than its header says, or there is no tokenizer that fits.
    """
    expected = header.begin + sum(header.size_of(name, shape) for name, shape in header.shapes().items())
    if file.stat().st_size != expected:
        raise UserError(
            f"{file} has {file.stat().st_size:,} bytes, and a model of llama2.c with its header has {expected:,}; is "
            f"the download complete?"
        )
    sizes = {name: value for name, value in header._asdict().items() if name not in ("hidden", "version", "group")}
    with naming_path(file):
        config = models.from_dict({"name": "gpt", **sizes, "n_inner": header.hidden, **FIXED})
    assert isinstance(config, GPTConfig)
    tokenizer = llama2c_tokenizer.read_tokenizer(_tokenizer_file(file, header), header.vocab_size)
    with naming_path(file):
        model = crop_to_tokenizer(weights.fill(config, _our_weights(file, header, config)), tokenizer)
    return model, tokenizer, ModelInfo(file, None, {}, {}, None, f"llama2.c, version {header.version}")


def _tokenizer_file(file: Path, header: Header) -> Path:
    """Return the tokenizer's file.

    Raises:
        UserError: there is none.
    """
    names = (llama2c_tokenizer.FILE, f"tok{header.vocab_size}.bin")
    found = next((file.with_name(name) for name in names if file.with_name(name).is_file()), None)
    if found is None:
        raise UserError(f"{file}: its tokenizer, {' or '.join(names)}, is not beside it: copy it there")
    return found


def _our_weights(file: Path, header: Header, config: GPTConfig) -> dict[str, Tensor]:
    """Return the weights in a file by our names, as views of the file where nothing is put together."""
    data = torch.from_file(str(file), shared=False, size=file.stat().st_size, dtype=torch.uint8)
    theirs, place = {}, header.begin
    for name, shape in header.shapes().items():
        numbers = data[place : place + header.size_of(name, shape)]
        place += len(numbers)
        theirs[name] = _dequantised(numbers, shape, header) if header.is_quantised(name) else _floats(numbers, shape)
    order = interleaved(config)
    state = {"wte.weight": theirs["embedding"], "ln_f.weight": theirs["ln_f"]}
    state |= {} if header.tied else {"lm_head.weight": theirs["head"]}
    for i in range(header.n_layer):
        block = {f"ln_{n}.weight": theirs[f"ln_{n}"][i] for n in (1, 2)}
        block["attn.c_attn.weight"] = torch.cat([theirs[name][i] for name in "qkv"])[order]
        block["attn.c_proj.weight"] = theirs["o"][i]
        block["mlp.c_fc.weight"] = torch.cat([theirs[name][i] for name in ("w1", "w3")])
        block["mlp.c_proj.weight"] = theirs["w2"][i]
        state |= {f"h.{i}.{name}": value for name, value in block.items()}
    return state


def _floats(numbers: Tensor, shape: tuple[int, ...]) -> Tensor:
    return numbers.view(torch.float32).view(shape)


def _dequantised(numbers: Tensor, shape: tuple[int, ...], header: Header) -> Tensor:
    """Return matrices of version 2: for each of them the 8-bit numbers, and then a scale for each group."""
    rows, columns = shape[-2:]
    count = rows * columns
    blocks = numbers.view(-1, count + 4 * (count // header.group))
    whole = blocks[:, :count].view(torch.int8).float().view(len(blocks), -1, header.group)
    scales = blocks[:, count:].clone().view(torch.float32)
    return (whole * scales[:, :, None]).view(shape)


def interleaved(config: GPTConfig) -> Tensor:
    """Return for each row of our c_attn which of llama2.c's it is, (rows,): it turns neighbours, (2i, 2i + 1)."""
    rows = torch.arange(sum(config.stacked["c_attn"])).view(-1, config.head_size)
    turned = rows[: config.n_head + config.kv_heads].view(-1, config.head_size // 2, 2).transpose(1, 2)
    return torch.cat((turned.flatten(), rows[config.n_head + config.kv_heads :].flatten()))


def write_llama2c(model: Model, tokenizer: Tokenizer, info: ModelInfo, folder: Path) -> str:
    """Write model.bin and tokenizer.bin, from which run.c makes the model's logits.

    Returns:
        The name of the format.

    Raises:
        UserError: run.c computes another model, or cannot tell the ids of a text.
    """
    if not isinstance(model, GPT):
        raise UserError(f"llama2.c has no {type(model).__name__}; use --format safetensors or --format onnx")
    wrong = differences(model.config, FIXED)
    if wrong:
        raise UserError(
            f"run.c of llama2.c has no model of this shape; what parts it from Llama: {', '.join(wrong)}; use "
            f"--format safetensors or --format onnx"
        )
    layout = llama2c_tokenizer.layout_of(tokenizer)
    if isinstance(tokenizer, BPETokenizer):
        log.warning(
            "run.c cuts no text by a pattern before it merges, and merges no parts of characters: it may give a prompt "
            "other tokens than gptlab does"
        )
    placed = _placed(model, tokenizer, layout)
    with (folder / FILE).open("wb") as stream:
        for content in _contents(placed):
            _write(stream, content)
    (folder / llama2c_tokenizer.FILE).write_bytes(layout.content())
    return "llama2.c, version 0, for run.c"


def _placed(model: GPT, tokenizer: Tokenizer, layout: llama2c_tokenizer.Layout) -> GPT:
    """Return the model with its ids where run.c expects them."""
    begin = llama2c_tokenizer.BEGIN
    lacks_begin, line = layout.sources[begin] is None, tokenizer.encode("\n").tolist()
    inputs = {begin: line[-1]} if lacks_begin and line else {}  # what else begins a text
    return reshaping.place_rows(
        model, layout.sources, inputs, untie=lacks_begin or isinstance(tokenizer, CharTokenizer)
    )


def _contents(model: GPT) -> Iterator[Tensor | bytes]:
    """Return the parts of a file of version 0, in their order."""
    c, state = model.config, weights.parameters(model)
    count = c.vocab_size if c.tied else -c.vocab_size
    yield SIZES.pack(c.n_embd, c.hidden, c.n_layer, c.n_head, c.kv_heads, count, c.block_size)
    back = interleaved(c).argsort()
    kv = c.kv_heads * c.head_size
    rows = {"q": slice(0, c.n_embd), "k": slice(c.n_embd, c.n_embd + kv), "v": slice(c.n_embd + kv, None)}
    of_mlp = {"w1": slice(0, c.hidden), "w3": slice(c.hidden, None)}
    ones = torch.ones(c.n_embd)
    for name in ORDERS[0]:
        if name == TABLES:
            frequencies = rotary_frequencies(c, arange_on(None))
            table = rotary_table(torch.arange(c.block_size), frequencies)  # (2, T, D), each half twice
            yield table[..., : c.head_size // 2]
        elif name in ("embedding", "ln_f", "head"):
            ours = {"embedding": "wte.weight", "ln_f": "ln_f.weight", "head": "lm_head.weight"}[name]
            if name != "head" or not c.tied:
                yield state.get(ours, ones)
        else:
            for i in range(c.n_layer):
                if name in rows:
                    yield state[f"h.{i}.attn.c_attn.weight"][back][rows[name]]
                elif name in of_mlp:
                    yield state[f"h.{i}.mlp.c_fc.weight"][of_mlp[name]]
                else:
                    ours = {"o": "attn.c_proj", "w2": "mlp.c_proj"}.get(name, name)
                    yield state.get(f"h.{i}.{ours}.weight", ones)


def _write(stream: BinaryIO, content: Tensor | bytes) -> None:
    if isinstance(content, Tensor):
        content = content.detach().float().contiguous().numpy().astype("<f4").tobytes()
    stream.write(content)
