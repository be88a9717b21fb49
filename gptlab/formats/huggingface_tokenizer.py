"""Reads Hugging Face tokenizers into ours, and writes ours so that `AutoTokenizer` gives the same ids.

Only JSON and text is read: no pickles, no code of a repository.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from pathlib import Path
from typing import Any

from gptlab.data.tokenizers import (
    BYTES,
    END_OF_TEXT,
    GPT2_PATTERN,
    UNKNOWN,
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    JsonTokenizer,
    Tokenizer,
    WordTokenizer,
)
from gptlab.data.tokenizers.json import check_merges
from gptlab.formats import added_tokens
from gptlab.formats.huggingface_backend import EOS, PAD, build_backend, byte_level, merges_of, special_ids, with_begin
from gptlab.system.errors import UserError, error_line, quoted

GPT2_SHA256 = "04e3597d7996f292ca9b8b7285ca4d58a6ae171ac47d73fc7140ceb0c7a6bbc0"  # of GPT-2's merges, one a line
QWEN2_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
QWEN2_PATTERN = rf"{QWEN2_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
QWEN2_PATTERN += r"|\s*[\r\n]+|\s+(?!\S)|\s+"
# The files of a tokenizer; the first that exist are read. The last ones are OpenAI's names.
FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
PADDING = [re.compile(rf"\W*({name})\W*", re.I) for name in (r"(\w+_)?pad(ding)?(_id)?", r"(reserved|unused)\w*")]
log = logging.getLogger(__name__)


def read_folder(folder: Path, rows: int | None = None) -> Tokenizer:
    """Read the tokenizer in a Hugging Face folder: tokenizer.json, else vocab.json and merges.txt.

    It becomes one of our tokenizers with the same ids where there is an equal one, and otherwise a `JsonTokenizer`.

    Args:
        folder: the folder.
        rows: the number of embeddings of its model: added tokens without a row are left out, with a warning. None: all
            tokens are kept.

    Raises:
        UserError: the folder has no tokenizer, or it cannot be read.
    """
    found = next((names for names in FILES if all((folder / name).is_file() for name in names)), None)
    if found is None:
        raise UserError(
            f"{folder} has no tokenizer.json, nor vocab.json and merges.txt; transformers writes one from other forms: "
            f"AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    file, *merges = (folder / name for name in found)
    try:
        about = about_folder(folder)
        content = file.read_text("utf-8")
        if merges:
            content = _joined(json.loads(content), merges[0].read_text("utf-8"), about)
        found_spec = json.loads(content)
        spec = _with_prefix_space(_with_decoder(found_spec, file), about)
        spec = added_tokens.with_declared(spec, folder, rows)
        spec = spec if rows is None else added_tokens.with_rows(spec, rows)
        content = content if spec is found_spec else json.dumps(spec, ensure_ascii=False)
        end_of_text = _end_of_text(spec, about)
        tokenizer = _ours(spec, end_of_text) or JsonTokenizer(content, end_of_text)
        if isinstance(tokenizer, JsonTokenizer):
            tokenizer.named = _named_beside(tokenizer, about)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic in Rust is not an Exception
        raise UserError(f"{file} cannot be read as a tokenizer; is it complete? ({error_line(error)})") from error
    if isinstance(tokenizer, JsonTokenizer) and tokenizer.ambiguous:
        log.warning(
            "%s: its added tokens %s have the ids of bytes that the vocabulary writes with the same letters; such an "
            "id is read as the added token",
            file,
            quoted(tokenizer.ambiguous),
        )
    return tokenizer


def about_folder(folder: Path) -> dict[str, Any]:
    """Return the merged contents of the files beside the tokenizer; the tokenizer's files override the model's."""
    names = ("config.json", "generation_config.json", "special_tokens_map.json", "tokenizer_config.json")
    about: dict[str, Any] = {}
    for name in names:
        if (folder / name).is_file():
            about |= json.loads((folder / name).read_text("utf-8"))
    return about


def _with_decoder(spec: dict[str, Any], file: Path) -> dict[str, Any]:
    """Return the content of a tokenizer.json with the decoder that its author has left out, where other steps tell it.

    Without one, `tokenizers` shows the tokens as the vocabulary writes them, with spaces between them.
    """
    model, cut = spec["model"], spec.get("pre_tokenizer")
    if spec.get("decoder") or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return spec
    kinds = {step["type"]: step for step in (cut or {}).get("pretokenizers", [cut] if cut else [])}
    if "ByteLevel" in kinds:
        decoder = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    elif "Metaspace" in kinds and not spec.get("normalizer"):
        decoder = kinds["Metaspace"]
    else:
        return spec
    log.warning("%s has no decoder: its tokens are read by %s, as its pre-tokenizer writes them", file, decoder["type"])
    return spec | {"decoder": decoder}


def _with_prefix_space(spec: dict[str, Any], about: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a tokenizer.json with a space before each text or without, as `transformers` reads it.

    For a GPT2Tokenizer tokenizer_config.json decides, and where that does not speak of it, no space is put there.
    """
    name = about.get("tokenizer_class") or {"gpt2": "GPT2Tokenizer"}.get(str(about.get("model_type")))
    cut, wanted = spec.get("pre_tokenizer") or {}, bool(about.get("add_prefix_space"))
    decided = name in ("GPT2Tokenizer", "GPT2TokenizerFast") and cut.get("type") == "ByteLevel"
    if not decided or cut.get("add_prefix_space") == wanted:
        return spec
    return spec | {"pre_tokenizer": cut | {"add_prefix_space": wanted}}


def _joined(vocab: dict[str, int], merges: str, about: dict[str, Any]) -> str:
    """Return the tokenizer.json for GPT-2's two files, vocab.json and merges.txt."""
    lines = merges.removeprefix("\ufeff").split("\n")[merges.startswith("#version") :]
    pairs = [tuple(line.split(" ")) for line in lines if line]
    check_merges({"vocab": vocab, "merges": pairs})
    backend = byte_level(vocab, pairs, GPT2_PATTERN)
    backend.pre_tokenizer.add_prefix_space = bool(about.get("add_prefix_space"))
    if END_OF_TEXT in vocab:
        backend.add_special_tokens([END_OF_TEXT])
    bos = named_token(about, "bos") or END_OF_TEXT
    if not about.get("add_bos_token") or bos not in vocab:
        return backend.to_str()
    return with_begin(backend.to_str(), bos, vocab[bos])


def _end_of_text(spec: dict[str, Any], about: dict[str, Any]) -> int | None:
    """Return the id that ends a document: eos_token's, else the model's eos_token_id, else <|endoftext|>'s, or None."""
    ids = added_tokens.token_ids(spec)
    token, of_model = named_token(about, "eos"), about.get("eos_token_id")
    if isinstance(of_model, list):
        of_model = of_model[0] if of_model else None
    if token in ids:
        return ids[token]
    return of_model if type(of_model) is int and of_model in ids.values() else ids.get(END_OF_TEXT)


def named_token(about: dict[str, Any], kind: str) -> str | None:
    """Return the token that the files beside a tokenizer name as bos, eos, pad or unk.

    Raises:
        UserError: it is no text.
    """
    token = about.get(f"{kind}_token")
    token = token.get("content") if isinstance(token, dict) else token
    if not isinstance(token, str | None):
        raise UserError(f"beside it {kind}_token is {token!s:.99}, which is no text")
    return token


def _named_beside(tokenizer: JsonTokenizer, about: dict[str, Any]) -> dict[str, str]:
    """Return the named tokens that only the files beside a tokenizer tell; an end that pads, too, is none."""
    ids, known = added_tokens.token_ids(json.loads(tokenizer.content)), named_tokens(tokenizer)
    found = {kind: name for kind in ("bos", "pad", "unk") if (name := named_token(about, kind)) in ids}
    if found.get("pad") == known.get("eos", ("",))[0]:
        del found["pad"]
    return {kind: name for kind, name in found.items() if known.get(kind) != (name, ids[name])}


def _ours(spec: dict[str, Any], end_of_text: int | None) -> Tokenizer | None:
    """Our tokenizer that is equal to a tokenizer.json, or None."""
    ids = added_tokens.token_ids(spec)
    added = _chat_tokens(spec)
    there = {name: ids[name] for name in (PAD, EOS, END_OF_TEXT, *added) if name in ids}
    candidate = _candidate(sorted(ids.keys() - there.keys(), key=ids.__getitem__), END_OF_TEXT in there, added)
    known = candidate is not None and there.items() <= special_ids(candidate).items()
    if candidate is not None and known and json.loads(build_backend(candidate, there).to_str()) == spec:
        return candidate
    return our_bpe(spec, end_of_text) if spec["model"].get("type") == "BPE" else None


def _chat_tokens(spec: dict[str, Any]) -> list[str]:
    """Return the special tokens of a tokenizer.json that are neither padding nor an end of text, in order of ids."""
    tokens = sorted(spec.get("added_tokens") or [], key=lambda token: int(token["id"]))
    return [
        token["content"] for token in tokens if token["special"] and token["content"] not in (PAD, EOS, END_OF_TEXT)
    ]


def _candidate(tokens: list[str], ended: bool, added: list[str]) -> Tokenizer | None:
    """Our tokenizer that may have these tokens beside its special ones, in the order of their ids."""
    if tokens[:1] == [UNKNOWN]:
        return WordTokenizer([token[1:] for token in tokens[1:]], ended, added)
    if 254 <= len(tokens) <= 256 and set(tokens) <= BYTES.keys():
        return ByteTokenizer(ended, added)
    if tokens and tokens == sorted(filter(lambda token: len(token) == 1, tokens)):
        return CharTokenizer("".join(tokens), ended, added)
    return None


def our_bpe(spec: dict[str, Any], end_of_text: int | None) -> BPETokenizer | None:
    """Return our BPE tokenizer for a tokenizer.json whose ids are the ranks of its merges, as GPT-2's; None for others.

    tiktoken merges any neighbours that form a token, `tokenizers` only the listed pairs. Both agree if each listed pair
    is what the merges of lower rank make of its token. In our exports the padding token has the place of a byte.
    """
    model, cut, post = spec["model"], spec.get("pre_tokenizer") or {}, spec.get("post_processor")
    merges = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
    plain = not (spec.get("normalizer") or model.get("dropout") or model.get("continuing_subword_prefix"))
    plain = plain and not model.get("end_of_word_suffix") and (post is None or post["type"] == "ByteLevel")
    gpt2 = cut.get("type") == "ByteLevel" and not cut["add_prefix_space"] and cut.get("use_regex", True)
    if not plain or not gpt2 or end_of_text is None:
        return None
    ids = added_tokens.token_ids(spec)
    chat = {name: ids[name] for name in _chat_tokens(spec) if PAD in ids}  # else it is no export of ours
    special = {END_OF_TEXT: end_of_text} | ({PAD: ids[PAD]} if PAD in ids else {}) | chat
    added = [(token["content"], token["id"], token["special"]) for token in spec.get("added_tokens", [])]
    if sorted(added) != sorted((name, i, True) for name, i in special.items()):
        return None
    lacking = BYTES.keys() - ids.keys()
    ids = {name: i for name, i in ids.items() if name not in chat and name != END_OF_TEXT}
    ids = {lacking.pop() if name == PAD and lacking else name: i for name, i in ids.items()}
    tokens = sorted(ids, key=ids.__getitem__)
    if set(tokens[:256]) != BYTES.keys() or tokens[256:] != [a + b for a, b in merges]:
        return None
    if [ids[token] for token in tokens] != list(range(len(tokens))):
        return None
    ranks = [bytes(BYTES[letter] for letter in token) for token in tokens]
    openai = hashlib.sha256("\n".join(map(" ".join, merges)).encode()).hexdigest() == GPT2_SHA256
    if not openai and merges_of(ranks) != merges:
        return None
    return BPETokenizer("gpt2" if openai else "bpe", ranks, GPT2_PATTERN, {END_OF_TEXT: end_of_text} | chat)


def named_tokens(tokenizer: Tokenizer, vocab_size: int | None = None) -> dict[str, tuple[str, int]]:
    """Return the names and ids of the bos, eos, pad and unk tokens with which a tokenizer is exported.

    A tokenizer of ours has one token for begin and end, which is also named as the unknown one: ctranslate2 opens no
    model without names for them. A tokenizer of others keeps its own. One without a padding token pads with a reserved
    one, or the unknown one where bytes are the fallback, or has none.

    Args:
        tokenizer: the tokenizer.
        vocab_size: leave out tokens for which a model of so many ids has no row; None: leave out none.
    """
    if not isinstance(tokenizer, JsonTokenizer):
        special = special_ids(tokenizer, vocab_size)
        end = EOS if tokenizer.end_of_text is None else END_OF_TEXT
        kinds = {"bos": end, "eos": end, "unk": end, "pad": PAD}
        return {kind: (name, special[name]) for kind, name in kinds.items() if name in special}
    spec = json.loads(tokenizer.content)
    ids = added_tokens.token_ids(spec)
    names = {i: name for name, i in ids.items()}
    marked = [token["content"] for token in spec.get("added_tokens", []) if token["special"]]
    begins = [names[i] for i in tokenizer.begin[-1:] if i in names]
    ends = [] if tokenizer.end_of_text is None else [names[tokenizer.end_of_text]]
    unknown = [
        name for name in marked if name in (spec["model"].get("unk_token"), names.get(spec["model"].get("unk_id")))
    ]
    pads = [name for kind in PADDING for name in marked if kind.fullmatch(name)]
    if spec["model"].get("byte_fallback"):
        pads += unknown  # which stands for no text
    pads = [name for name in pads if name not in begins + ends]
    found = {"bos": begins or ends, "eos": ends, "unk": unknown or ends or begins, "pad": pads}
    found |= {kind: [name] for kind, name in tokenizer.named.items()}
    return {kind: (some[0], ids[some[0]]) for kind, some in found.items() if some}


def is_qwen2(tokenizer: Tokenizer) -> bool:
    """Return whether a tokenizer is what `transformers` makes of any tokenizer beside a Qwen2 model."""
    if not isinstance(tokenizer, JsonTokenizer):
        return False
    spec = json.loads(tokenizer.content)
    cut = spec.get("pre_tokenizer") or {}
    patterns = [step["pattern"] for step in cut.get("pretokenizers", ()) if step["type"] == "Split"]
    return spec.get("normalizer") == {"type": "NFC"} and patterns == [{"Regex": QWEN2_PATTERN}]


def tokenizer_files(tokenizer: Tokenizer, block_size: int, vocab_size: int | None = None) -> dict[str, str]:
    """Return the names and contents of the files from which `AutoTokenizer` reads the same tokenizer.

    "<|endoftext|>" in a text is the special token by default there, as in our `encode_special`; with
    split_special_tokens=True it is text, as in our `encode`.

    Args:
        tokenizer: one of our tokenizers.
        block_size: the model's longest sequence, in tokens.
        vocab_size: see `named_tokens`.

    Raises:
        UserError: `tokenizers` cannot express the vocabulary or the pattern.
    """
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": block_size}
    config |= {"clean_up_tokenization_spaces": False, "model_input_names": ["input_ids", "attention_mask"]}
    config |= {f"{kind}_token": name for kind, (name, _) in named_tokens(tokenizer, vocab_size).items()}
    if isinstance(tokenizer, JsonTokenizer):
        content = tokenizer.content
    else:
        content = build_backend(tokenizer, special_ids(tokenizer, vocab_size)).to_str(pretty=True)
    return {"tokenizer.json": content, "tokenizer_config.json": json.dumps(config, indent=2) + "\n"}
