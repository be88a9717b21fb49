"""Reads Hugging Face tokenizers into ours, and writes ours so that `AutoTokenizer` gives the same ids.

Only JSON and text is read: no pickles, no code of a repository.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import sys
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptlab.data.tokenizers import (
    BYTES,
    CL100K_PATTERN,
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
from gptlab.formats import added_tokens
from gptlab.system.errors import UserError, quoted

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

LETTERS = {byte: letter for letter, byte in BYTES.items()}
GPT2_SHA256 = "04e3597d7996f292ca9b8b7285ca4d58a6ae171ac47d73fc7140ceb0c7a6bbc0"  # of GPT-2's merges, one a line
# In the dialect of Oniguruma, which `tokenizers` uses: there $ matches at any line's end, and {1,3}+ is not possessive.
CL100K_ONIGURUMA = CL100K_PATTERN.replace("$", r"\z").replace("{1,3}+", "{1,3}")
# The files of a tokenizer; the first that exist are read. The last ones are OpenAI's names.
FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
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
        about = _about(folder)
        content = file.read_text("utf-8")
        if merges:
            content = _joined(json.loads(content), merges[0].read_text("utf-8"), about)
        content = _with_decoder(content, file)
        spec = found_spec = json.loads(content)
        spec = added_tokens.with_declared(spec, folder, about)
        spec = spec if rows is None else added_tokens.with_rows(spec, rows)
        content = content if spec is found_spec else json.dumps(spec, ensure_ascii=False)
        end_of_text = _end_of_text(spec, about)
        tokenizer = _ours(spec, end_of_text) or JsonTokenizer(content, end_of_text)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic in Rust is not an Exception
        why = f"{type(error).__name__}: {str(error)[:200]}"
        raise UserError(f"{file} cannot be read as a tokenizer; is it complete? ({why})") from error
    if isinstance(tokenizer, JsonTokenizer) and tokenizer.ambiguous:
        log.warning(
            "%s: its added tokens %s have the ids of bytes that the vocabulary writes with the same letters; such an "
            "id is read as the added token",
            file,
            quoted(tokenizer.ambiguous),
        )
    return tokenizer


def _about(folder: Path) -> dict[str, Any]:
    """Return the merged contents of the files beside the tokenizer; the tokenizer's files override the model's."""
    names = ("config.json", "generation_config.json", "special_tokens_map.json", "tokenizer_config.json")
    about: dict[str, Any] = {}
    for name in names:
        if (folder / name).is_file():
            about |= json.loads((folder / name).read_text("utf-8"))
    return about


def _with_decoder(content: str, file: Path) -> str:
    """Return a tokenizer.json with the decoder that its author has left out, where its other steps say which it is.

    Without one, `tokenizers` shows the tokens as the vocabulary writes them, with spaces between them.
    """
    spec = json.loads(content)
    model, cut = spec["model"], spec.get("pre_tokenizer")
    if spec.get("decoder") or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return content
    kinds = {step["type"]: step for step in (cut or {}).get("pretokenizers", [cut] if cut else [])}
    if "ByteLevel" in kinds:
        decoder = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    elif "Metaspace" in kinds and not spec.get("normalizer"):
        decoder = kinds["Metaspace"]
    else:
        return content
    log.warning("%s has no decoder: its tokens are read by %s, as its pre-tokenizer writes them", file, decoder["type"])
    return json.dumps(spec | {"decoder": decoder}, ensure_ascii=False)


def _joined(vocab: dict[str, int], merges: str, about: dict[str, Any]) -> str:
    """Return the tokenizer.json for GPT-2's two files, vocab.json and merges.txt."""
    lines = merges.removeprefix("\ufeff").split("\n")[merges.startswith("#version") :]
    backend = _byte_level(vocab, [tuple(line.split(" ")) for line in lines if line], GPT2_PATTERN)
    backend.pre_tokenizer.add_prefix_space = bool(about.get("add_prefix_space"))
    if END_OF_TEXT in vocab:
        backend.add_special_tokens([END_OF_TEXT])
    return backend.to_str()


def _end_of_text(spec: dict[str, Any], about: dict[str, Any]) -> int | None:
    """Return the id that ends a document: eos_token's, else the model's eos_token_id, else <|endoftext|>'s, or None."""
    ids = added_tokens.token_ids(spec)
    token, of_model = about.get("eos_token"), about.get("eos_token_id")
    if isinstance(token, dict):
        token = token.get("content")
    if isinstance(of_model, list):
        of_model = of_model[0] if of_model else None
    if token in ids:
        return ids[token]
    return of_model if of_model in ids.values() else ids.get(END_OF_TEXT)


def _ours(spec: dict[str, Any], end_of_text: int | None) -> Tokenizer | None:
    """Our tokenizer that is equal to a tokenizer.json, or None."""
    ids = added_tokens.token_ids(spec)
    tokens = sorted((token for token in ids if ids[token] != end_of_text), key=ids.__getitem__)
    ended = end_of_text is not None
    candidate: Tokenizer | None = None
    if tokens[:1] == [UNKNOWN]:
        candidate = WordTokenizer([token[1:] for token in tokens[1:]], ended)
    elif len(tokens) == 256 and set(tokens) == BYTES.keys():
        candidate = ByteTokenizer(ended)
    elif tokens and tokens == sorted(filter(lambda token: len(token) == 1, tokens)):
        candidate = CharTokenizer("".join(tokens), ended)
    if candidate is not None and json.loads(_backend(candidate).to_str()) == spec:
        return candidate
    return _bpe(spec, tokens, end_of_text) if spec["model"].get("type") == "BPE" else None


def _bpe(spec: dict[str, Any], tokens: list[str], end_of_text: int | None) -> BPETokenizer | None:
    """Our BPE tokenizer for a tokenizer.json whose ids are the ranks of its merges, as in GPT-2; None for others.

    tiktoken merges any neighbours that form a token, `tokenizers` only the listed pairs. Both agree if each listed pair
    is what the merges of lower rank make of its token.
    """
    model, cut, post = spec["model"], spec.get("pre_tokenizer") or {}, spec.get("post_processor")
    merges = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
    plain = not (spec.get("normalizer") or model.get("dropout") or model.get("continuing_subword_prefix"))
    plain = plain and not model.get("end_of_word_suffix") and (post is None or post["type"] == "ByteLevel")
    gpt2 = cut.get("type") == "ByteLevel" and not cut["add_prefix_space"] and cut.get("use_regex", True)
    ended = [(token["content"], token["id"], token["special"]) for token in spec.get("added_tokens", [])]
    if not plain or not gpt2 or ended != [(END_OF_TEXT, end_of_text, True)]:
        return None
    ids = added_tokens.token_ids(spec)
    if set(tokens[:256]) != BYTES.keys() or tokens[256:] != [a + b for a, b in merges]:
        return None
    if [ids[token] for token in tokens] != list(range(len(tokens))):
        return None
    ranks = [bytes(BYTES[letter] for letter in token) for token in tokens]
    openai = hashlib.sha256("\n".join(map(" ".join, merges)).encode()).hexdigest() == GPT2_SHA256
    if not openai and _merges(ranks) != merges:
        return None
    assert end_of_text is not None
    return BPETokenizer("gpt2" if openai else "bpe", ranks, GPT2_PATTERN, {END_OF_TEXT: end_of_text})


def _merges(ranks: list[bytes]) -> list[tuple[str, str]]:
    """Return the list of merges for tokens in the order of their ranks.

    A token's pair is what remains of its bytes after all merges of lower rank. A token of which more than two parts
    remain has no pair: it is only produced where it is a whole piece of text.
    """
    rank = {token: i for i, token in enumerate(ranks)}
    merges = []
    for token in ranks:
        parts, own = [bytes([b]) for b in token], rank[token]
        while len(parts) > 2:
            lowest, i = min((rank.get(a + b, own), i) for i, (a, b) in enumerate(pairwise(parts)))
            if lowest >= own:
                break
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        if len(parts) == 2:
            merges.append((_letters(parts[0]), _letters(parts[1])))
    return merges


def _letters(token: bytes) -> str:
    """Return a token's bytes as the letters that GPT-2's vocabulary has for them."""
    return "".join(LETTERS[b] for b in token)


def tokenizer_files(tokenizer: Tokenizer, block_size: int) -> dict[str, str]:
    """Return the names and contents of the files from which `AutoTokenizer` reads the same tokenizer.

    "<|endoftext|>" in a text is the special token by default there, as in our `encode_special`; with
    split_special_tokens=True it is text, as in our `encode`.

    Args:
        tokenizer: one of our tokenizers.
        block_size: the model's longest sequence, in tokens.

    Raises:
        UserError: `tokenizers` cannot express the vocabulary or the pattern.
    """
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": block_size}
    config |= {"clean_up_tokenization_spaces": False, "model_input_names": ["input_ids", "attention_mask"]}
    if isinstance(tokenizer, JsonTokenizer):
        content = tokenizer.content
        names = {i: token for token, i in added_tokens.token_ids(json.loads(content)).items()}
        special = {"bos_token": tokenizer.begin[-1:], "eos_token": (tokenizer.end_of_text,)}
        config |= {name: names[i] for name, ids in special.items() for i in ids if i is not None}
    else:
        content = _backend(tokenizer).to_str(pretty=True)
        if tokenizer.end_of_text is not None:
            config |= dict.fromkeys(("bos_token", "eos_token", "pad_token"), END_OF_TEXT)
    return {"tokenizer.json": content, "tokenizer_config.json": json.dumps(config, indent=2) + "\n"}


def _backend(tokenizer: Tokenizer) -> Backend:
    """Return one of our own tokenizers as a tokenizer of Hugging Face's library.

    BPE without merges and without an unknown token drops unknown characters, as our `CharTokenizer` does.
    """
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models

    special = {} if tokenizer.end_of_text is None else {END_OF_TEXT: tokenizer.end_of_text}
    if isinstance(tokenizer, CharTokenizer):
        surrogates = [c for c in tokenizer.chars if 0xD800 <= ord(c) < 0xE000]
        if surrogates:
            raise UserError(f"its characters have lone surrogates, which no text file can hold: {surrogates[:7]}")
        backend = Backend(models.BPE({c: i for i, c in enumerate(tokenizer.chars)} | special, []))
        backend.decoder = decoders.Fuse()
    elif isinstance(tokenizer, WordTokenizer):
        backend = _words(tokenizer, special)
    elif isinstance(tokenizer, ByteTokenizer):
        backend = _byte_level({LETTERS[b]: b for b in range(256)} | special, [], None)
    else:
        assert isinstance(tokenizer, BPETokenizer)
        vocab = {_letters(token): i for i, token in enumerate(tokenizer.merges)} | tokenizer.special
        backend = _byte_level(vocab, _merges(tokenizer.merges), tokenizer.pattern)
    backend.add_special_tokens([*special])
    return backend


def _byte_level(vocab: dict[str, int], merges: list[Any], pattern: str | None) -> Backend:
    """Build a byte-level BPE tokenizer, which cuts text by `pattern` (None: not at all) and merges bytes."""
    from tokenizers import Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    # As in tiktoken, a piece that is a token needs no merges; an uncut text could be the name of a special token.
    backend = Backend(models.BPE(vocab, merges, ignore_merges=pattern is not None))
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern == GPT2_PATTERN)
    if pattern in (None, GPT2_PATTERN):
        backend.pre_tokenizer = letters
    elif pattern == CL100K_PATTERN:
        cut = pre_tokenizers.Split(Regex(CL100K_ONIGURUMA), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([cut, letters])
    else:
        raise UserError(f"its pattern is neither GPT-2's nor GPT-4's: {pattern}")
    backend.decoder = decoders.ByteLevel()
    return backend


def _words(tokenizer: WordTokenizer, special: dict[str, int]) -> Backend:
    r"""Build a word tokenizer: each word has a space before it, dropped at the start and before marks by decoding.

    Python and Oniguruma define \w and \s differently, so the pattern lists the characters as this Python has them.
    """
    from tokenizers import Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    every = "".join(chr(c) for c in range(sys.maxunicode + 1) if not 0xD800 <= c < 0xE000)
    inside = {name: _ranges(re.findall(name, every)) for name in (r"\w", r"\s")}
    words, spaces = inside.values()
    pattern = f"[{words}]+|[^{words}{spaces}]"
    closing = "".join(f"\\x{{{ord(mark):X}}}" for mark in sorted(tokenizer.closing))
    vocab = {f" {word}": i for i, word in enumerate(tokenizer.words, 1)}
    backend = Backend(models.WordLevel({UNKNOWN: 0} | vocab | special, unk_token=UNKNOWN))
    cut = pre_tokenizers.Split(Regex(pattern), "removed", invert=True)
    spaced = pre_tokenizers.Metaspace(replacement=" ", prepend_scheme="always", split=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([cut, spaced])
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace(Regex(rf"\A (?=[{closing}]\z)"), ""),
            decoders.Replace(UNKNOWN, f" {UNKNOWN}"),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return backend


def _ranges(characters: list[str]) -> str:
    r"""Return the inside of a character class, in code point order: \x{41}-\x{5A}..."""
    points = [ord(c) for c in characters]
    runs = [[point for _, point in run] for _, run in groupby(enumerate(points), lambda pair: pair[1] - pair[0])]
    return "".join(f"\\x{{{run[0]:X}}}-\\x{{{run[-1]:X}}}" for run in runs)
