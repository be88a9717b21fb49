"""Exports a GPT as an ONNX graph whose keys and values come in and go out, as transformers.js and onnxruntime-genai
hold them, and checks it with onnxruntime.

B T S: batch, new tokens, all tokens. K D V: key and value heads, head size, ids.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from gptlab.data.tokenizers import Tokenizer
from gptlab.formats.description import ModelInfo
from gptlab.formats.onnx import TOLERANCE, export, quiet_exporter
from gptlab.formats.onnx_readers import GRAPH, IDS, LOGITS, MASK, PAST, POSITIONS, PRESENT, WEIGHTS, write_readers_files
from gptlab.formats.writing import chat_format
from gptlab.models import Model
from gptlab.models.gpt import GPT
from gptlab.models.gpt_config import GPTConfig
from gptlab.models.kv_cache import KVCache
from gptlab.models.layers import PassContext, arange_on, rotation_at
from gptlab.models.positions import alibi_slopes, attention_span
from gptlab.system.errors import UserError, amount

STEPS = 64  # tokens that are read one by one, to compare
GREEDY = 50  # tokens of the text that is compared
PROMPT = 4  # tokens before it


def write_cached_onnx(model: Model, tokenizer: Tokenizer, info: ModelInfo, folder: Path) -> str:
    """Write the graph, what its readers need beside it, and compare its logits and its greedy text with ours.

    Returns:
        The name of the format, with the largest difference.

    Raises:
        UserError: the model has no such cache, torch cannot export it, or the logits or the text differ.
    """
    if reasons := why_not(model):
        raise UserError(
            f"--kv-cache: {'; '.join(reasons)}; leave --kv-cache out: then the graph reads the whole text each time"
        )
    assert isinstance(model, GPT)
    path = folder / GRAPH
    path.parent.mkdir()
    with quiet_exporter():
        export_with_cache(model, path)
    difference = float(np.max([*differences(model, path)]))  # nan if one of them is
    if not difference <= TOLERANCE:
        raise UserError(
            f"onnxruntime's logits differ from ours by {difference:.1e}, more than {TOLERANCE:.0e}: torch exports this "
            f"architecture wrongly; leave --kv-cache out, or use another version of torch or onnxruntime"
        )
    count = equal_tokens(model, path)
    wrong = write_readers_files(tokenizer, model.config, chat_format(info), folder)
    return (
        f"ONNX with keys and values, logits within {difference:.1e} of ours, {amount(count, 'greedy token')} the same"
        f"{f'; no genai_config.json: {wrong}' if wrong else ''}"
    )


class CachedGPT(nn.Module):
    """A GPT whose cache is an argument, without any branch on what is in it."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, idx: Tensor, mask: Tensor, t: Tensor, past: list[Tensor]) -> tuple[Tensor, ...]:
        """Return the logits, (B, T, V), and the keys and values of all tokens.

        Args:
            idx: the new tokens, (B, T) int64.
            mask: 1 for each token, 0 for padding, which nothing attends to, (B, S) int64.
            t: the positions of the new tokens in their texts, (B, T) int64.
            past: the keys and the values of each block, (B, K, S - T, D); S - T may be 0.

        Returns:
            logits, then the keys and the values of each block, (B, K, S, D).
        """
        model, c, P = self.model, self.model.config, past[0].shape[2]
        mask = mask.index_select(1, torch.arange(P + idx.shape[1]))
        places = mask.cumsum(1) - 1  # of all tokens in their texts: a reader may pad on either side, or between
        distance = places[:, P:, None] - places[:, None]  # (B, T, S)
        seen = (distance >= 0) & (mask[:, None] > 0)
        if c.slides or c.window:
            seen = seen & (distance < attention_span(c))
        slopes = alibi_slopes(c.n_head, arange_on(None))[:, None, None] if c.pos == "alibi" else torch.zeros(1, 1, 1)
        bias = torch.where(seen[:, None], -slopes * distance[:, None], torch.finfo(torch.float32).min)  # -inf gives nan
        rotation = rotation_at(c, t)
        context = PassContext(None if rotation is None else rotation[:, :, None], bias)
        x = model.embed(idx, t)
        present: list[Tensor] = []

        def append(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            place = len(present)
            present.extend((torch.cat((past[place], k), dim=2), torch.cat((past[place + 1], v), dim=2)))
            return present[place], present[place + 1]

        for block in model.h:
            x = block(x, context._replace(append_kv=append))  # (B, T, C)
        return model.head(x), *present


def why_not(model: Model) -> list[str]:
    """Return what keeps a model from being written with a cache of keys and values; empty if nothing does."""
    if not isinstance(model, GPT):
        return [f"a {type(model).__name__} has no attention, and nothing to keep"]
    reasons = []
    if model.config.conv:
        reasons.append(f"model.conv={model.config.conv} keeps inputs of layers, for which such files have no names")
    if not model.config.has_attention:
        reasons.append("model.attention=none leaves no keys and values")
    return reasons


def names(config: GPTConfig, form: str) -> list[str]:
    """Return the names of the keys and values of all blocks, of the form `PAST` or `PRESENT`."""
    return [form % i + each for i in range(config.n_layer) for each in ("key", "value")]


def export_with_cache(model: GPT, path: Path) -> None:
    """Export the graph of `CachedGPT`, for any B, T and S.

    Raises:
        UserError: torch cannot export the model.
    """
    c = model.config
    batch, new, past, total = map(
        torch.export.Dim, ("batch_size", "sequence_length", "past_sequence_length", "total_sequence_length")
    )
    kept = 2 * c.n_layer
    idx, mask, t = (torch.ones(2, T, dtype=torch.int64) for T in (3, 7, 3))
    # Tensors of their own: torch makes one argument of two that are the same object.
    arguments = (idx, mask, t, [torch.zeros(2, c.kv_heads, 4, c.head_size) for _ in range(kept)])
    export(
        CachedGPT(model).eval(),
        arguments,
        path,
        [IDS, MASK, POSITIONS, *names(c, PAST)],
        [LOGITS, *names(c, PRESENT)],
        ({0: batch, 1: new}, {0: batch, 1: total}, {0: batch, 1: new}, [{0: batch, 2: past}] * kept),
    )
    if (weights := path.with_name(f"{path.name}.data")).exists():
        _name_weights(path, weights)


def _name_weights(path: Path, weights: Path) -> None:
    """Give the file of weights beside a graph the name by which transformers.js looks for it."""
    onnx = importlib.import_module("onnx")
    graph = onnx.load(path, load_external_data=False)
    for tensor in graph.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = WEIGHTS
    path.write_bytes(graph.SerializeToString())
    weights.rename(path.with_name(WEIGHTS))


class Session:
    """A graph in onnxruntime, with the keys and values of what it has read.

    Args:
        path: the graph.
        batch_size: B.
    """

    def __init__(self, path: Path, config: GPTConfig, batch_size: int) -> None:
        onnxruntime = importlib.import_module("onnxruntime")
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.config = config
        self.start(batch_size)

    def start(self, batch_size: int) -> None:
        """Forget what has been read."""
        empty = np.zeros((batch_size, self.config.kv_heads, 0, self.config.head_size), np.float32)
        self.past: list[np.ndarray] = [empty] * (2 * self.config.n_layer)
        self.mask = np.zeros((batch_size, 0), np.int64)

    def read(self, idx: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        """Return the logits, (B, T, V), of the next tokens, (B, T); of those that `mask` has 0 for, anything."""
        self.mask = np.concatenate((self.mask, np.ones_like(idx) if mask is None else mask), axis=1)
        t = np.maximum(self.mask.cumsum(axis=1) - 1, 0)[:, -idx.shape[1] :]
        feed = {IDS: idx, MASK: self.mask, POSITIONS: t, **dict(zip(names(self.config, PAST), self.past, strict=True))}
        logits: np.ndarray
        logits, *self.past = self.session.run([LOGITS, *names(self.config, PRESENT)], feed)
        return logits


@torch.no_grad()
def differences(model: GPT, path: Path) -> Iterator[float]:
    """Yield the largest difference of a logit between onnxruntime and torch for a text that is read at once, in two
    parts, token by token, and with padding before and in it."""
    c, draw = model.config, np.random.default_rng(0)
    longest = c.block_size + (2 if c.slides else 0)
    idx = draw.integers(0, c.vocab_size, (2, longest))
    ours = model(torch.from_numpy(idx)).numpy()
    session = Session(path, c, 2)
    for cuts in ([0, longest], [0, longest // 2 or 1, longest], range(min(longest, STEPS) + 1)):
        session.start(2)
        for begin, end in itertools.pairwise(cuts):
            if end > begin:
                yield _difference(session.read(idx[:, begin:end]), ours[:, begin:end])
    mask, padded = np.ones_like(idx), idx.copy()
    mask[0, ::3] = 0
    real = mask[0] > 0
    padded[0, real] = idx[0, : real.sum()]
    session.start(2)
    parts = [(begin, end) for begin, end in ((0, longest // 2), (longest // 2, longest)) if end > begin]
    found = np.concatenate([session.read(padded[:, slice(*part)], mask[:, slice(*part)]) for part in parts], axis=1)
    yield _difference(found[1], ours[1])
    yield _difference(found[0, real], ours[0, : real.sum()])


def _difference(found: np.ndarray, ours: np.ndarray) -> float:
    return float(np.abs(found - ours).max(initial=0.0))  # nan if one of them is


@torch.no_grad()
def equal_tokens(model: GPT, path: Path) -> int:
    """Return how many greedy tokens of onnxruntime are ours: all of them, or those before two that are as likely.

    Raises:
        UserError: another token follows where one is clearly the likeliest.
    """
    c = model.config
    longest = c.block_size + (2 if c.slides else 0)
    prompt = np.random.default_rng(1).integers(0, c.vocab_size, (1, min(PROMPT, longest)))
    count = min(GREEDY, longest - prompt.shape[1] + 1)
    cache = KVCache(c, 1, prompt.shape[1] + count)

    def read(idx: np.ndarray) -> np.ndarray:
        logits: np.ndarray = model(torch.from_numpy(idx), cache).numpy()
        cache.advance([idx.shape[1]])
        return logits

    ours, theirs = (_greedy(each, prompt, count) for each in (read, Session(path, c, 1).read))
    for place, ((token, lead), (other, _)) in enumerate(zip(ours, theirs, strict=True)):
        if token != other and not lead <= 2 * TOLERANCE:
            raise UserError(
                f"onnxruntime's greedy text leaves ours at token {place + 1}: torch exports this architecture wrongly; "
                f"leave --kv-cache out, or use another version of torch or onnxruntime"
            )
        if token != other:
            return place
    return count


def _greedy(read: Callable[[np.ndarray], np.ndarray], prompt: np.ndarray, count: int) -> list[tuple[int, float]]:
    """Return the likeliest tokens after a prompt, (1, T), and by how much each one's logit leads."""
    idx, found = prompt, []
    for _ in range(count):
        logits = read(idx)[0, -1]
        second, first = np.sort(logits)[-2:] if logits.size > 1 else (-np.inf, logits[0])
        found.append((int(logits.argmax()), float(first - second)))
        idx = np.array([[found[-1][0]]])
    return found
