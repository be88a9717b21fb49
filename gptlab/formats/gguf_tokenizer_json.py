"""Converts tokenizer.json files to the vocabularies of GGUF files, and back: byte-level BPE, and Llama 2's form.

llama.cpp has names of its own for how a text is cut, and merges SentencePiece's tokens by their scores. A
tokenizer.json says that by steps, and by a list of merges.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from typing import Any

from gptlab.data.tokenizers import BYTES, JsonTokenizer
from gptlab.data.tokenizers.json import added_token
from gptlab.formats.added_tokens import token_ids
from gptlab.formats.gguf_vocabulary import (
    BYTE,
    BYTE_LEVEL,
    CONTROL,
    NO_MERGE,
    NORMAL,
    SENTENCEPIECE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Vocabulary,
)
from gptlab.formats.huggingface_backend import EOS
from gptlab.formats.huggingface_tokenizer import QWEN2_PATTERN, named_tokens
from gptlab.system.errors import UserError

log = logging.getLogger(__name__)

LLAMA3_PATTERN = QWEN2_PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
Steps = list[tuple[str, Any]]
LETTERS: tuple[str, Any] = ("ByteLevel", False)
CUTS: dict[str, Steps] = {  # llama.cpp's names, and the steps of a pre-tokenizer
    "gpt-2": [("ByteLevel", True)],
    "qwen2": [("Split", QWEN2_PATTERN), LETTERS],
    "llama-bpe": [("Split", LLAMA3_PATTERN), LETTERS],
    "smollm": [("Digits", True), ("ByteLevel", True)],
}
ALIKE = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "phi-2": "gpt-2"}
WHOLE_WORDS = ("llama-bpe",)  # where a word that is a token needs no merges
NFC = {"type": "NFC"}  # of Qwen's tokenizer; llama.cpp takes texts as they are
SPACE = "▁"
PREPEND = {"type": "Prepend", "prepend": SPACE}
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}


def vocabulary_of(tokenizer: JsonTokenizer) -> Vocabulary:
    """Return a tokenizer as a GGUF file holds it.

    Raises:
        UserError: llama.cpp cannot express it; the message lists all reasons.
    """
    spec = json.loads(tokenizer.content)
    model = spec["model"]
    wrong = [] if model.get("type") == "BPE" else [f"its model is {model.get('type')} (not BPE)"]
    wrong += [f"it has {name}" for name in ("continuing_subword_prefix", "end_of_word_suffix") if model.get(name)]
    if len(tokenizer.begin) > 1:
        wrong.append(f"it begins each text with {len(tokenizer.begin)} tokens (not one)")
    named = {kind: i for kind, (_, i) in named_tokens(tokenizer).items()}
    if tokenizer.begin and named.get("bos") != tokenizer.begin[0]:
        wrong.append(f"it begins each text with {tokenizer.begin_name}, which is not its bos token")
    by_scores = bool(model.get("byte_fallback"))
    pre, add_space = "gpt-2", False
    if by_scores:
        add_space, why_not = _spaces(spec)
        wrong += why_not
    else:
        pre = cut_of(spec)
        wrong += _why_not_byte_level(spec, pre)
    if wrong:
        raise UserError(f"llama.cpp cannot express this tokenizer: {'; '.join(wrong)}")
    scores = _scores(model) if by_scores else {}
    if not by_scores and bool(model.get("ignore_merges")) != (pre in WHOLE_WORDS):
        _refuse_unmerged(spec)
    stripped = [t["content"] for t in spec.get("added_tokens") or [] if t["lstrip"] or t["rstrip"] or t["single_word"]]
    if stripped:
        log.warning("llama.cpp keeps the spaces around %s, which tokenizer.json takes off", ", ".join(stripped[:5]))
    tokens, types = _tokens(spec, by_scores)
    if "eos" not in named:
        named["eos"] = len(tokens)
        tokens.append(EOS)
        types.append(CONTROL)
    named = {"bos": named["eos"]} | {kind: i for kind, i in named.items() if kind != "unk" or by_scores}
    return Vocabulary(
        SENTENCEPIECE if by_scores else BYTE_LEVEL,
        tokens,
        types,
        named,
        [] if by_scores else [" ".join(pair) for pair in _pairs(model)],
        [scores.get(token, 0.0) for token in tokens] if by_scores else [],
        pre,
        bool(tokenizer.begin),
        add_space,
    )


def _pairs(model: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the merges of a BPE model, which two forms of tokenizer.json write differently."""
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
    return [(first, second) for first, second in pairs]


def _tokens(spec: dict[str, Any], by_scores: bool) -> tuple[list[str], list[int]]:
    """Return the tokens of a tokenizer.json in the order of their ids, and their types."""
    names = {i: name for name, i in token_ids(spec).items()}
    tokens = [names.get(i, f"[UNUSED{i}]") for i in range(max(names) + 1)]
    types = [NORMAL if i in names else UNUSED for i in range(len(tokens))]
    for token in spec.get("added_tokens") or []:
        types[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    if by_scores:
        for i, token in enumerate(tokens):
            if re.fullmatch("<0x[0-9A-F]{2}>", token):
                types[i] = BYTE
            elif token == spec["model"].get("unk_token"):
                types[i] = UNKNOWN
    return tokens, types


def cut_of(spec: dict[str, Any]) -> str:
    """Return llama.cpp's name for how a tokenizer.json cuts a text; empty if it has none."""
    return next((name for name, steps in CUTS.items() if steps == _steps(spec)), "")


def _steps(spec: dict[str, Any]) -> Steps:
    """Return the steps of a pre-tokenizer, as `CUTS` has them."""
    cut = spec.get("pre_tokenizer") or {}
    found: Steps = []
    for step in cut.get("pretokenizers", [cut]):
        kind = step.get("type")
        if kind == "ByteLevel" and not step.get("add_prefix_space"):
            found.append((kind, step.get("use_regex", True)))
        elif kind == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
            found.append((kind, step["pattern"].get("Regex")))
        else:
            found.append((kind, step.get("individual_digits")))
    return found


def _why_not_byte_level(spec: dict[str, Any], pre: str) -> list[str]:
    wrong = [] if pre else [f"it cuts a text in a way that is none of {', '.join(CUTS)}"]
    normalizer = spec.get("normalizer")
    if normalizer and not (normalizer == NFC and pre == "qwen2"):
        wrong.append(f"it changes a text before it is cut ({normalizer['type']})")
    lacking = BYTES.keys() - spec["model"]["vocab"].keys()
    if lacking and spec["model"].get("unk_token"):
        wrong.append(f"it lacks {len(lacking)} of the 256 bytes, and has a token for unknown ones")
    return wrong


def _refuse_unmerged(spec: dict[str, Any]) -> None:
    """Check that merges make each token of what it is written with, where only one side takes whole words without them.

    Raises:
        UserError: they do not.
    """
    from tokenizers import models

    model = spec["model"]
    merger = models.BPE(model["vocab"], _pairs(model))
    added = {token["content"] for token in spec.get("added_tokens") or []}
    apart = [token for token in model["vocab"] if token not in added and len(merger.tokenize(token)) != 1]
    if apart:
        raise UserError(
            f"llama.cpp cannot express this tokenizer: no merges make {len(apart):,} of its tokens, such as "
            f"{apart[0]!r:.99}, and which of the two takes a whole word for such a token differs"
        )


def _spaces(spec: dict[str, Any]) -> tuple[bool, list[str]]:
    """Return whether a tokenizer of Llama 2's form puts a space before each text, and how it is not of that form."""
    lacking = _lacking_bytes(spec["model"]["vocab"])
    wrong = [f"it lacks {lacking} of the 256 bytes for unknown characters"] if lacking else []
    normalizer, cut = spec.get("normalizer") or {}, spec.get("pre_tokenizer") or {}
    steps = normalizer.get("normalizers", [normalizer] if normalizer else [])
    if steps in ([PREPEND, REPLACE], [REPLACE]) and not cut:
        return PREPEND in steps, wrong
    scheme = cut.get("prepend_scheme")
    if cut.get("type") == "Metaspace" and cut.get("replacement") == SPACE and not cut.get("split", True) and not steps:
        if scheme != "never":
            log.warning("a text that begins with a space has one more id in llama.cpp, as in SentencePiece")
        return scheme != "never", wrong
    return False, [*wrong, "it does not treat spaces as Llama 2's does"]


def _lacking_bytes(vocab: Any) -> int:
    """Return how many of the 256 bytes a vocabulary has no token for, in Llama 2's form."""
    return sum(f"<0x{byte:02X}>" not in vocab for byte in range(256))


def _scores(model: dict[str, Any]) -> dict[str, float]:
    """Return the scores by which llama.cpp merges as the list of merges says: the first ones have the highest.

    Raises:
        UserError: there are none, since llama.cpp merges any neighbours that form a token.
    """
    ranks: dict[str, list[int]] = {}
    pairs = _pairs(model)
    for rank, pair in enumerate(pairs):
        ranks.setdefault("".join(pair), []).append(rank)
    known = set(pairs)
    unlisted = [pair for token in model["vocab"] for pair in _cuts(token, model["vocab"]) if pair not in known]
    mixed = [token for token, own in ranks.items() if own[-1] - own[0] >= len(own)]
    if unlisted or mixed:
        example = f"{unlisted[0]} is not listed" if unlisted else f"those of {mixed[0]!r:.99} are not side by side"
        raise UserError(
            f"llama.cpp cannot express this tokenizer: it merges any neighbours that form a token, by one score for "
            f"each token, and the list of merges is of another kind ({example})"
        )
    return {token: -float(i) for i, token in enumerate(ranks)}


def _cuts(token: str, vocab: Any) -> Iterator[tuple[str, str]]:
    """Yield the pairs of neighbours that form a token: tokens, or single characters."""
    if re.fullmatch("<0x[0-9A-F]{2}>", token):
        return
    for i in range(1, len(token)):
        pair = token[:i], token[i:]
        if all(len(part) == 1 or part in vocab for part in pair):
            yield pair


def tokenizer_json_of(vocabulary: Vocabulary) -> dict[str, Any]:
    """Return the content of the tokenizer.json with a vocabulary's ids.

    Raises:
        UserError: it cuts texts in a way that is not known here, or its scores tell no order.
    """
    named = {i: name for i, name in enumerate(vocabulary.tokens) if vocabulary.types[i] != UNUSED}
    flags = {CONTROL: True, UNKNOWN: True, USER_DEFINED: False}
    added = [
        added_token(name, i, {"special": flags[vocabulary.types[i]], "normalized": False})
        for i, name in named.items()
        if vocabulary.types[i] in flags
    ]
    model: dict[str, Any] = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None}
    model |= {"end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    model["vocab"] = {name: i for i, name in named.items()}
    spec: dict[str, Any] = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added}
    spec |= {"normalizer": None, "pre_tokenizer": None, "post_processor": _begins(vocabulary), "decoder": None}
    if vocabulary.kind == BYTE_LEVEL:
        pre = ALIKE.get(vocabulary.pre, vocabulary.pre)
        if pre not in CUTS:
            raise UserError(
                f"tokenizer.ggml.pre={vocabulary.pre:.99}: gptlab knows how {', '.join((*CUTS, *ALIKE))} cut a text"
            )
        letters = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
        model |= {"merges": _merges(vocabulary), "ignore_merges": pre in WHOLE_WORDS}
        steps = [_step(kind, setting, letters) for kind, setting in CUTS[pre]]
        cut = steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps}
        spec |= {"normalizer": NFC if pre == "qwen2" else None, "pre_tokenizer": cut, "decoder": letters}
    else:
        unknown = vocabulary.special.get("unk", -1)
        marked = unknown in named and vocabulary.types[unknown] in (UNKNOWN, CONTROL)
        model |= {"byte_fallback": True, "fuse_unk": True, "unk_token": named[unknown] if marked else None}
        if lacking := _lacking_bytes(model["vocab"]):
            raise UserError(f"it lacks {lacking} of the 256 bytes for unknown characters")
        model["merges"] = _merges_by_scores(vocabulary, model["vocab"])
        steps = [PREPEND, REPLACE] if vocabulary.add_space else [REPLACE]
        spec["normalizer"] = {"type": "Sequence", "normalizers": steps}
        back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
        decoders = [back, {"type": "ByteFallback"}, {"type": "Fuse"}]
        decoders += [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] * vocabulary.add_space
        spec["decoder"] = {"type": "Sequence", "decoders": decoders}
    return spec | {"model": model}


def _step(kind: str, setting: Any, letters: dict[str, Any]) -> dict[str, Any]:
    """Return a step of `CUTS` as tokenizer.json has it."""
    if kind == "Split":
        return {"type": kind, "pattern": {"Regex": setting}, "behavior": "Isolated", "invert": False}
    return {"type": kind, "individual_digits": setting} if kind == "Digits" else letters | {"use_regex": setting}


def _begins(vocabulary: Vocabulary) -> dict[str, Any] | None:
    """Return the step that puts the bos token before each text, or None."""
    bos = vocabulary.special.get("bos")
    if not vocabulary.add_bos or bos is None:
        return None
    token = vocabulary.tokens[bos]
    own, text = {"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    special = {token: {"id": token, "ids": [bos], "tokens": [token]}}
    pair = [own, text, own, {"Sequence": {"id": "B", "type_id": 0}}]
    return {"type": "TemplateProcessing", "single": [own, text], "pair": pair, "special_tokens": special}


def _merges(vocabulary: Vocabulary) -> list[list[str]]:
    """Return the merges of a byte-level vocabulary.

    Raises:
        UserError: one makes no token.
    """
    known = set(vocabulary.tokens)
    pairs = []
    for merge in vocabulary.merges if vocabulary.merges != [NO_MERGE] else ():
        end = merge.find(" ", 1)
        pair = [merge[:end], merge[end + 1 :]]
        if end < 0 or not {*pair, "".join(pair)} <= known:
            raise UserError(f"its merge {merge!r:.99} is not of two tokens that make a third")
        pairs.append(pair)
    return pairs


def _merges_by_scores(vocabulary: Vocabulary, vocab: dict[str, int]) -> list[list[str]]:
    """Return the merges that make SentencePiece's tokens, those of the highest scores first.

    Raises:
        UserError: tokens have the same score.
    """
    scores = {vocabulary.tokens[i]: vocabulary.scores[i] for i, kind in enumerate(vocabulary.types) if kind == NORMAL}
    pairs: dict[str, list[tuple[str, str]]] = {}
    for token in scores:
        if found := [pair for pair in _cuts(token, vocab) if pair[0] in vocab and pair[1] in vocab]:
            pairs[token] = sorted(found, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
    if len({scores[token] for token in pairs}) < len(pairs):
        raise UserError(
            "tokens have the same score, so that it is not told which are merged first; llama.cpp's converter writes "
            "such files where it finds no tokenizer.model"
        )
    return [list(pair) for token in sorted(pairs, key=lambda token: -scores[token]) for pair in pairs[token]]
