"""Tokenizers convert to and from transformers without changing an id or a character."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers as hf
import torch
from hypothesis import example, given
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from gptlab.data import tokenizers
from gptlab.data.tokenizers import (
    BYTES,
    CL100K_PATTERN,
    CL100K_SPECIAL,
    END_OF_TEXT,
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    JsonTokenizer,
    Tokenizer,
    WordTokenizer,
)
from gptlab.formats import huggingface, huggingface_tokenizer, writing
from gptlab.formats.description import ModelInfo
from gptlab.formats.huggingface_backend import build_backend
from gptlab.generation.text_stream import TextStream
from gptlab.models import GPT, GPTConfig
from gptlab.system.errors import UserError
from tests.data.test_tokenizers import AWKWARD, ENGLISH, TEXTS, any_text, seldom

transformers = pytest.importorskip("transformers")

KNOWN = "".join(sorted(set(ENGLISH + "\u00e9\U0001f600\u2028\0\r")))
CHAT = ["<|user|>", "<|assistant|>", "<|end|>"]
OURS: dict[str, Callable[[], Tokenizer]] = {
    "char": lambda: CharTokenizer(KNOWN),
    "char, ended": lambda: CharTokenizer(KNOWN, end_of_text=True),
    "byte": lambda: ByteTokenizer(),
    "byte, ended": lambda: ByteTokenizer(end_of_text=True),
    "word": lambda: WordTokenizer.fit([ENGLISH + "x\u0301 \u00bd _ \u2581 \u4e2d"], None),
    "word, ended": lambda: WordTokenizer.fit([ENGLISH], 101, end_of_text=True),
    "bpe": lambda: BPETokenizer.fit([ENGLISH], 601),
    "cl100k_base": lambda: BPETokenizer(
        "cl100k_base", BPETokenizer.fit([ENGLISH], 601).merges, CL100K_PATTERN, CL100K_SPECIAL
    ),
    "char, chat": lambda: CharTokenizer(KNOWN, end_of_text=True).with_special(CHAT),
    "byte, chat": lambda: ByteTokenizer().with_special(CHAT),
    "word, chat": lambda: WordTokenizer.fit([ENGLISH], 101, end_of_text=True).with_special(CHAT),
    "bpe, chat": lambda: BPETokenizer.fit([ENGLISH], 601).with_special(CHAT),
}


def written(tokenizer: Tokenizer, folder: Path, block_size: int = 17) -> Path:
    for name, content in huggingface_tokenizer.tokenizer_files(tokenizer, block_size).items():
        (folder / name).write_text(content, "utf-8")
    return folder


@pytest.fixture(scope="module", params=OURS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any, Tokenizer]:
    """One of our tokenizers, the one of transformers from its files, and ours from the same files."""
    tokenizer = OURS[request.param]()
    folder = written(tokenizer, tmp_path_factory.mktemp("tokenizer"))
    return tokenizer, transformers.AutoTokenizer.from_pretrained(folder), huggingface_tokenizer.read_folder(folder)


def assert_same(tokenizer: Tokenizer, theirs: Any, text: str) -> None:
    """A special token's name is that token where ours may read it so, and text where not; so it is there."""
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # they take no lone surrogates
    ids, special = tokenizer.encode(text).tolist(), tokenizer.encode_special(text).tolist()
    assert theirs(text, split_special_tokens=True, verbose=False)["input_ids"] == ids
    assert theirs(text, verbose=False)["input_ids"] == special
    assert theirs.decode(special) == tokenizer.decode(special)


@seldom
@given(text=any_text)
@example("'S 's '\u017f 12345\r\n\n x  \n")
@example(f"{END_OF_TEXT}. a , b{END_OF_TEXT} c")
def test_transformers_gives_our_ids_and_text(pair: tuple[Tokenizer, Any, Tokenizer], text: str) -> None:
    assert_same(*pair[:2], text)


@pytest.mark.parametrize("text", [*AWKWARD, *TEXTS], ids=lambda text: ascii(text[:13]))
def test_transformers_gives_our_ids_of_awkward_texts(pair: tuple[Tokenizer, Any, Tokenizer], text: str) -> None:
    assert_same(*pair[:2], text)


def test_transformers_knows_the_end_of_a_text_and_the_longest_sequence(pair: tuple[Tokenizer, Any, Tokenizer]) -> None:
    tokenizer, theirs, _ = pair
    end, pad = theirs.eos_token_id, theirs.pad_token_id
    assert theirs.bos_token_id == theirs.unk_token_id == end != pad
    assert end == tokenizer.end_of_text or tokenizer.end_of_text is None
    for unused in (end, pad):  # more rows, or ids of no text
        assert unused == tokenizer.end_of_text or tokenizer.tokens[unused:][:1] in ([], [b""], [b"\xff"], [b"\xfe"])
    assert theirs(["You", "You may"], padding=True)["input_ids"][0][-1] == pad
    assert theirs.model_max_length == 17
    assert set(theirs("a")) == {"input_ids", "attention_mask"}


def test_a_tokenizer_comes_back_as_it_went(pair: tuple[Tokenizer, Any, Tokenizer]) -> None:
    tokenizer, _, again = pair
    text = "".join(AWKWARD[:8]) + ENGLISH
    if tokenizer.name == "cl100k_base":
        assert [a for a, b in zip(again.tokens, tokenizer.tokens, strict=True) if a != b] == [b"<|pad|>"]
    else:
        assert again.to_dict() == tokenizer.to_dict()
    assert again.encode(text).tolist() == tokenizer.encode(text).tolist()
    assert again.unknown(text) == tokenizer.unknown(text)
    assert again.end_of_text == tokenizer.end_of_text


@pytest.mark.parametrize("name", ["char", "char, ended", "byte", "byte, ended", "word, ended", "bpe"])
def test_exports_of_earlier_versions_come_back(tmp_path: Path, name: str) -> None:
    tokenizer = OURS[name]()
    special = {} if tokenizer.end_of_text is None else {END_OF_TEXT: tokenizer.end_of_text}
    named = {f"{kind}_token": END_OF_TEXT for kind in ("bos", "eos", "pad") if special}
    assert read(tmp_path, build_backend(tokenizer, special), tokenizer_config=named).to_dict() == tokenizer.to_dict()


def test_a_quarter_of_tiny_shakespeare_has_our_ids(data_dir: Path, tmp_path: Path) -> None:
    text = (data_dir / "tinyshakespeare.txt").read_text()[:280_000]
    for i, tokenizer in enumerate((CharTokenizer.fit([text]), BPETokenizer.gpt2(data_dir))):
        (tmp_path / str(i)).mkdir()
        backend = hf.Tokenizer.from_file(str(written(tokenizer, tmp_path / str(i)) / "tokenizer.json"))
        encoded = backend.encode(text).ids
        assert encoded == tokenizer.encode(text).tolist()
        assert backend.decode(encoded, skip_special_tokens=False) == text
        assert huggingface_tokenizer.read_folder(tmp_path / str(i)).to_dict() == tokenizer.to_dict()


NO_INFO = ModelInfo(Path("x"), None, {}, {}, None, "a run")
ROTARY = {"norm": "rmsnorm", "pos": "rope", "mlp": "swiglu", "bias": False, "tied": False}
FAMILIES: dict[str, dict[str, Any]] = {
    "GPT2LMHeadModel": {},
    "LlamaForCausalLM": ROTARY | {"qkv_bias": True},  # as Qwen2, its tokenizer would be taken for Qwen's
    "LlamaForCausalLM, no bias": ROTARY,
    "MistralForCausalLM": ROTARY | {"window": 5},
    "Qwen3ForCausalLM": ROTARY | {"qk_norm": True},
}
LATER: dict[str, dict[str, Any]] = {
    "GPTNeoXForCausalLM": {"pos": "rope", "rope_fraction": 0.5},
    "OPTForCausalLM": {"norm_place": "post", "mlp": "relu"},
    "NanoChatForCausalLM": ROTARY | {"norm_weight": False, "embed_norm": True, "qk_norm": True, "mlp": "relu2"},
}
FAMILIES |= LATER
ALL = OURS | {
    "json, like Llama's": lambda: JsonTokenizer(llama().to_str(), 2),
    "json, byte-level": lambda: JsonTokenizer(with_tokens("na\u00efve", "<|user|>", special=True).to_str(), None),
}


@pytest.mark.parametrize(
    ("family", "name"),
    [
        (family, name)
        for family in FAMILIES
        for name in ALL
        if family not in LATER or name in ("bpe", *ALL.keys() - OURS)
    ],
)
@torch.no_grad()
def test_every_tokenizer_leaves_with_every_family(tmp_path: Path, family: str, name: str) -> None:
    tokenizer = ALL[name]()
    torch.manual_seed(5)
    sizes = {"block_size": 8, "n_layer": 1, "n_head": 2, "n_embd": 8}
    model = GPT(GPTConfig(tokenizer.vocab_size, **(sizes | FAMILIES[family]))).eval()
    assert writing.write_hf(model, tokenizer, NO_INFO, tmp_path) == family.partition(",")[0]
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ("To be, or not", *AWKWARD[1:9], *TEXTS, ENGLISH[:997]):
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        ids = [*tokenizer.begin, *tokenizer.encode_special(text).tolist()]
        assert theirs(text, verbose=False)["input_ids"] == ids
        assert theirs.decode(ids) == tokenizer.decode(ids)
    idx = torch.randint(tokenizer.vocab_size, (2, 8))
    logits = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)(idx).logits[..., : tokenizer.vocab_size]
    torch.testing.assert_close(logits, model(idx), atol=1e-5, rtol=1e-5)
    again, same, _ = huggingface.open_folder(tmp_path, tmp_path)
    torch.testing.assert_close(again(idx), model(idx), atol=1e-5, rtol=1e-5)
    assert same.vocab_size == tokenizer.vocab_size


def test_an_export_without_a_padding_token_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for token in ("<|user|>", "<|pad|>"):
        tokenizer = JsonTokenizer(special("</s>", token).to_str(), None)
        model = GPT(GPTConfig(tokenizer.vocab_size, block_size=17, n_layer=1, n_head=2, n_embd=16))
        writing.write_hf(model, tokenizer, ModelInfo(tmp_path, None, {}, {}, None, ""), tmp_path)
        assert ("its tokenizer has no padding token: to train in batches" in caplog.text) is (token == "<|user|>")
        caplog.clear()


@pytest.mark.parametrize("origin", ["Hugging Face qwen2", "a run"])
def test_qwens_own_stay_qwens(tmp_path: Path, origin: str) -> None:
    backend = byte_level(MERGES)
    if origin == "a run":  # with Qwen's tokenizer, which transformers takes for it anyway
        backend.normalizer = normalizers.NFC()
        cut = pre_tokenizers.Split(hf.Regex(huggingface_tokenizer.QWEN2_PATTERN), "isolated")
        letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([cut, letters])
    tokenizer = read(tmp_path, backend)
    model = GPT(GPTConfig(tokenizer.vocab_size, block_size=8, n_layer=1, n_head=2, n_embd=8, qkv_bias=True, **ROTARY))
    (tmp_path / "out").mkdir()
    info = dataclasses.replace(NO_INFO, origin=origin)
    assert writing.write_hf(model, tokenizer, info, tmp_path / "out") == "Qwen2ForCausalLM"
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert theirs("To be, or not")["input_ids"] == tokenizer.encode("To be, or not").tolist()


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (lambda: CharTokenizer("a\udc80"), "lone surrogates"),
        (lambda: BPETokenizer("bpe", OURS["bpe"]().merges, "[a-z]+|.", {END_OF_TEXT: 600}), "its pattern is neither"),  # type: ignore[attr-defined]
    ],
)
def test_what_json_cannot_say_is_refused(tokenizer: Callable[[], Tokenizer], message: str) -> None:
    with pytest.raises(UserError, match=message):
        huggingface_tokenizer.tokenizer_files(tokenizer(), 17)


# In, from others.


@pytest.mark.parametrize("names", [("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")])
def test_gpt2_is_known_by_its_merges(data_dir: Path, tmp_path: Path, names: tuple[str, str]) -> None:
    for ours, theirs in zip(names, ("encoder.json", "vocab.bpe"), strict=True):
        (tmp_path / ours).write_bytes((data_dir / "gpt2" / theirs).read_bytes())
    assert huggingface_tokenizer.read_folder(tmp_path).to_dict() == BPETokenizer.gpt2(data_dir).to_dict()


@pytest.mark.parametrize("bos", ["</s>", None])
def test_opts_two_files_begin_each_text_with_a_token(tmp_path: Path, bos: str | None) -> None:
    tokens = [*BYTES, *(a + b for a, b in MERGES), "</s>", END_OF_TEXT]
    (tmp_path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    merges = "\n".join(" ".join(merge) for merge in MERGES)
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    about = {"add_bos_token": True, "eos_token": "</s>", "bos_token": bos, "tokenizer_class": "GPT2Tokenizer"}
    about = {name: value for name, value in about.items() if value is not None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(about))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "opt"}))
    ours, theirs = huggingface_tokenizer.read_folder(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert ours.begin == (tokens.index(bos or END_OF_TEXT),)
    assert ours.end_of_text == tokens.index("</s>")
    for text in ("ab abcc", "a</s>b", ""):
        assert theirs(text)["input_ids"] == [*ours.begin, *ours.encode_special(text).tolist()]


def byte_level(merges: list[tuple[str, str]], order: int = 1, **pre: Any) -> hf.Tokenizer:
    """A tokenizer like GPT-2's; with `order` -1 its ids are reversed."""
    tokens = [*BYTES, *(a + b for a, b in merges), END_OF_TEXT][::order]
    backend = hf.Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(**({"add_prefix_space": False} | pre))
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(END_OF_TEXT, normalized=True)])
    return backend


ODD = [("a", "b"), ("b", "c"), ("a", "bc")]  # of "ab" and "c" tiktoken would make "abc"
MERGES = [("a", "b"), ("\u0120", "ab"), ("c", "c"), ("ab", "cc")]


def prefixed(backend: hf.Tokenizer) -> None:
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


def lowered(backend: hf.Tokenizer) -> None:
    backend.normalizer = normalizers.Lowercase()


def begun(backend: hf.Tokenizer) -> None:
    special = [(END_OF_TEXT, backend.token_to_id(END_OF_TEXT))]
    backend.post_processor = processors.TemplateProcessing(f"{END_OF_TEXT} $A {END_OF_TEXT}", special_tokens=special)


def chatting(backend: hf.Tokenizer) -> None:
    backend.add_special_tokens(["<|user|>"])


def plain(backend: hf.Tokenizer) -> None:
    backend.post_processor = processors.ByteLevel(trim_offsets=False)


@pytest.mark.parametrize(
    ("backend", "change", "name"),
    [
        (lambda: byte_level(MERGES), plain, "bpe"),
        (lambda: byte_level([]), plain, "bpe"),
        (lambda: byte_level(MERGES, -1), plain, "json"),  # an id is no rank
        (lambda: byte_level(ODD), plain, "json"),
        (lambda: byte_level(MERGES, use_regex=False), plain, "json"),
        (lambda: byte_level(MERGES), prefixed, "json"),
        (lambda: byte_level(MERGES), lowered, "json"),
        (lambda: byte_level(MERGES), begun, "json"),
        (lambda: byte_level(MERGES), chatting, "json"),
    ],
)
def test_byte_level_ids_stay_what_they_are(
    tmp_path: Path, backend: Callable[[], hf.Tokenizer], change: Callable[[Any], None], name: str
) -> None:
    theirs = backend()
    change(theirs)
    theirs.save(str(tmp_path / "tokenizer.json"))
    tokenizer = huggingface_tokenizer.read_folder(tmp_path)
    assert tokenizer.name == name
    assert tokenizer.end_of_text == theirs.token_to_id(END_OF_TEXT)
    theirs.encode_special_tokens = True
    for text in ("abc ab abcc Cc abab bcabc", "\u00e9\U0001f600  \n", f"a{END_OF_TEXT}b<|user|>", ENGLISH):
        ids = theirs.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text).tolist() == ids
        assert tokenizer.decode(ids) == theirs.decode(ids, skip_special_tokens=False)
        assert b"".join(tokenizer.tokens[i] for i in ids).decode() == tokenizer.decode(ids)


def with_tokens(*tokens: str | AddedToken, special: bool = False) -> hf.Tokenizer:
    backend = byte_level(MERGES)
    (backend.add_special_tokens if special else backend.add_tokens)([*tokens])
    return backend


def read(folder: Path, backend: hf.Tokenizer, **beside: Any) -> Tokenizer:
    """Read a tokenizer.json with files beside it: tokenizer_config={...} is tokenizer_config.json."""
    backend.save(str(folder / "tokenizer.json"))
    for name, content in beside.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return huggingface_tokenizer.read_folder(folder)


@pytest.mark.parametrize("given", [None, True, False])
@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("name", ["GPT2Tokenizer", "GPT2TokenizerFast", "PreTrainedTokenizerFast", None])
def test_the_space_before_a_text_is_that_of_transformers(
    tmp_path: Path, name: str | None, inside: bool, given: bool | None
) -> None:
    """tokenizers.ByteLevel() puts one there, and GPT2Tokenizer takes it away."""
    config = {"tokenizer_class": name, "add_prefix_space": given}
    beside = {key: value for key, value in config.items() if value is not None}
    shape = {"model_type": "gpt2", "vocab_size": 300}
    backend = byte_level(MERGES, add_prefix_space=inside)
    tokenizer = read(tmp_path, backend, config=shape, tokenizer_config=beside)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ("ab abcc", " ab", "\nab"):
        assert tokenizer.encode(text).tolist() == theirs(text, add_special_tokens=False).input_ids


def test_a_text_has_the_same_ids_each_time(tmp_path: Path) -> None:
    backend = byte_level(MERGES)
    backend.model.dropout = 0.5
    tokenizer = read(tmp_path, backend)
    assert tokenizer.encode("abcc" * 99).tolist() == byte_level(MERGES).encode("abcc" * 99).ids


def streamed(tokenizer: Tokenizer, ids: list[int]) -> str:
    stream = TextStream(tokenizer)
    pieces = [piece for token in ids for piece in stream.add(token)] + stream.close()
    return "".join(piece.text for piece in pieces)


@pytest.mark.parametrize(
    "token", ["na\u00efve", "\u00e9", "\u0120", "\u00c3\u00a9", "\u4e2d", "\u0120\u00e9", " \u00fc", "\U0001f600", "ab"]
)
@pytest.mark.parametrize("special", [False, True])
def test_an_added_token_of_a_byte_level_file_stands_for_its_own_text(tmp_path: Path, token: str, special: bool) -> None:
    tokenizer = read(tmp_path, with_tokens("<|pad|>", token, special=special))
    text = f"ab{token}cc{token}"
    ids = tokenizer.encode_special(text).tolist()
    own = tokenizer.encode_special(token).tolist()
    assert len(own) == 1
    assert ids.count(own[0]) >= 2
    assert tokenizer.tokens[own[0]] == token.encode()
    assert tokenizer.token_bytes()[own[0]] == (0 if special else len(token.encode()))
    assert tokenizer.decode(ids) == streamed(tokenizer, ids) == text
    assert tokenizers.from_dict(tokenizer.to_dict()).tokens == tokenizer.tokens


def test_an_added_token_stands_for_its_text_where_the_decoder_has_steps(tmp_path: Path) -> None:
    backend = with_tokens("na\u00efve")
    backend.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()])
    tokenizer = read(tmp_path, backend)
    ids = tokenizer.encode("a na\u00efve \u00e9").tolist()
    assert tokenizer.decode(ids) == streamed(tokenizer, ids) == "a na\u00efve \u00e9"
    assert tokenizer.token_bytes()[ids].sum() == len("a na\u00efve \u00e9".encode())


def test_tokens_that_take_spaces_with_them_stand_for_their_own_text(tmp_path: Path) -> None:
    flags = {"lstrip": True, "rstrip": True, "normalized": False}
    tokenizer = read(tmp_path, with_tokens(AddedToken("\u00fcb", **flags), AddedToken("\u00d6", single_word=True)))
    ids = tokenizer.encode("a \u00fcb c \u00d6").tolist()
    assert tokenizer.decode(ids) == streamed(tokenizer, ids) == "a\u00fcbc \u00d6"
    assert tokenizer.token_bytes()[ids].sum() == len("a\u00fcbc \u00d6".encode())


def test_an_id_of_two_texts_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert isinstance(read(tmp_path, with_tokens("na\u00efve", "ab")), JsonTokenizer)
    assert caplog.messages == []
    tokenizer = read(tmp_path, with_tokens("na\u00efve", "\u00e9"))
    assert tokenizer.decode([*tokenizer.encode("\u00e9")]) == "\u00e9"
    assert "its added tokens '\u00e9' have the ids of bytes" in caplog.text


BEGIN = {"content": "<b>", "__type": "AddedToken", "lstrip": True}
EXTRA = {"content": "<y>", "__type": "AddedToken", "rstrip": True}
BY_ID = {
    "777": {"content": "<|a|>", "special": True, "normalized": False},
    "700": {"content": "\u00e9lan", "special": False},
    "3": {"content": END_OF_TEXT, "special": False},
}
DECLARED: dict[str, dict[str, Any]] = {
    "by id": {"tokenizer_config": {"added_tokens_decoder": BY_ID}},
    "by name": {"tokenizer_config": {"pad_token": "[PAD]", "foo_token": "<f>", "bos_token": BEGIN}},
    "special": {"special_tokens_map": {"pad_token": "[PAD]", "additional_special_tokens": ["<x>", "<y>"]}},
    "added": {"added_tokens": {"<q>": 270, "<p>": 269, "[PAD]": 268}, "special_tokens_map": {"pad_token": "[PAD]"}},
    "extra": {"tokenizer_config": {"extra_special_tokens": ["<x>", EXTRA]}},
    "in the vocabulary": {"tokenizer_config": {"pad_token": "ab", "eos_token": END_OF_TEXT}},
}


@pytest.mark.parametrize("beside", DECLARED)
def test_tokens_that_other_files_declare_have_the_ids_of_transformers(tmp_path: Path, beside: str) -> None:
    files = {name: dict(content) for name, content in DECLARED[beside].items()}
    files["tokenizer_config"] = files.get("tokenizer_config", {}) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    tokenizer = read(tmp_path, with_tokens("na\u00efve"), **files)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.vocab_size == len(theirs)
    text = f"ab <|a|>\u00e9lan [PAD] <b> <f><x> <y> <q><p>{END_OF_TEXT}na\u00efve."
    assert tokenizer.encode_special(text).tolist() == theirs(text)["input_ids"]
    assert tokenizer.encode(text).tolist() == theirs(text, split_special_tokens=True)["input_ids"]


def metaspaced() -> hf.Tokenizer:
    backend = hf.Tokenizer(models.Unigram([("<unk>", 0.0), *((c, -1.0) for c in "\u2581abc")], unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    return backend


@pytest.mark.parametrize("backend", [lambda: byte_level(ODD), lambda: byte_level(MERGES), metaspaced])
def test_a_decoder_that_the_author_forgot_is_found(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, backend: Callable[[], hf.Tokenizer]
) -> None:
    spec = json.loads(backend().to_str()) | {"decoder": None}
    tokenizer = read(tmp_path, hf.Tokenizer.from_str(json.dumps(spec)))
    ids = tokenizer.encode("abc ab a cc").tolist()
    assert ids == backend().encode("abc ab a cc").ids
    assert tokenizer.decode(ids) == "abc ab a cc"
    assert b"".join(tokenizer.tokens[i] for i in ids).decode().strip() == "abc ab a cc"
    assert caplog.text.count("tokenizer.json has no decoder: its tokens are read by") == 1


def llama(**post: Any) -> hf.Tokenizer:
    """A tokenizer like Llama 2's: SentencePiece's BPE with byte fallback, and <s> before a text."""
    merges = [("\u2581", "t"), ("h", "e"), ("\u2581t", "he"), ("\u2581", "\u2581")]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "\u2581", *"theory\u00e9"]
    tokens += [a + b for a, b in merges]
    vocab = {token: i for i, token in enumerate(tokens)}
    backend = hf.Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return backend


@pytest.fixture
def llama_folder(tmp_path: Path) -> Path:
    backend = llama()
    backend.enable_truncation(3)
    backend.enable_padding(length=7)
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "</s>"}}))
    return tmp_path


def test_a_tokenizer_of_llamas_form_is_read(llama_folder: Path) -> None:
    tokenizer, theirs = huggingface_tokenizer.read_folder(llama_folder), llama()
    assert isinstance(tokenizer, JsonTokenizer)
    assert (tokenizer.end_of_text, tokenizer.begin, tokenizer.vocab_size) == (2, (1,), theirs.get_vocab_size())
    for text in ("the theory", "  the\n\U0001f600 \u00e9\u00e8", "", *AWKWARD[:8]):
        ids = tokenizer.encode(text).tolist()
        assert [1, *ids] == theirs.encode(text).ids  # neither cut nor padded
        assert tokenizer.decode(ids) == text
        assert b"".join(tokenizer.tokens[i] for i in ids).decode() == (f" {text}" if text else "")
        twice = np.array([1, *ids, 2, 1, *ids])
        assert tokenizer.text_bytes(twice).sum() == 2 * len(text.encode())
        assert tokenizer.text_bytes(twice[1:])[: len(ids)].sum() == len(text.encode())
        assert tokenizer.unknown(text) == []
    assert tokenizer.token_bytes()[:4].tolist() == [0, 0, 0, 1]
    assert tokenizer.text_bytes(np.array([1, 268, 2, 1, 259, 2, 1])).tolist() == [0, 2, 0, 0, 0, 0, 0]  # he, a space
    assert 2 not in tokenizer.encode("the</s>")
    assert tokenizer.encode_special("the</s>").tolist()[-1] == 2
    assert tokenizer.encode("\ud800").tolist() == tokenizer.encode("\ufffd").tolist()
    assert tokenizer.encode("the").dtype == np.int64


def test_a_foreign_tokenizer_goes_out_as_it_came(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    tokenizer = tokenizers.from_dict(json.loads(json.dumps(huggingface_tokenizer.read_folder(llama_folder).to_dict())))
    folder = written(tokenizer, tmp_path_factory.mktemp("out"))
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert huggingface_tokenizer.read_folder(folder).to_dict() == tokenizer.to_dict()
    assert (theirs.bos_token_id, theirs.eos_token_id) == (1, 2)
    for text in ("the theory", "\u00e8\n the"):
        ids = [*tokenizer.begin, *tokenizer.encode(text).tolist()]
        assert theirs(text, truncation=False)["input_ids"] == ids
        assert theirs.decode(ids, skip_special_tokens=True) == text


def special(*tokens: str) -> hf.Tokenizer:
    return with_tokens(*tokens, special=True)


# A tokenizer, the tokens that its config names, and what else they are named in an export: by default the end is all.
NAMES: dict[str, tuple[Callable[[], hf.Tokenizer], dict[str, str], dict[str, str | None]]] = {
    "as declared": (
        lambda: special("<s>", "</s>", "<fill>", "<?>"),
        {"bos": "<s>", "eos": "</s>", "pad": "<fill>", "unk": "<?>"},
        {},
    ),
    "a chat": (lambda: special(END_OF_TEXT, "<|im_end|>"), {"eos": "<|im_end|>", "pad": END_OF_TEXT}, {}),
    "padding": (lambda: special("</s>", "<|padding|>"), {"eos": "</s>"}, {"pad": "<|padding|>"}),
    "the end pads": (
        lambda: special("</s>", "<|fim_pad|>"),
        {"eos": "</s>", "pad": "</s>"},
        {"pad": "<|fim_pad|>"},
    ),
    "reserved": (lambda: special("</s>", "<|reserved_7|>"), {"eos": "</s>"}, {"pad": "<|reserved_7|>"}),
    "none": (lambda: special("</s>", "<|user|>"), {"eos": "</s>"}, {"pad": None}),
    "Llama 2": (llama, {"eos": "</s>", "pad": "</s>"}, {"bos": "<s>", "pad": "<unk>", "unk": "<unk>"}),
    "Unigram": (lambda: unigram(special=True), {"eos": "\u2581the"}, {"pad": None, "unk": "<unk>"}),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_foreign_tokenizer_keeps_its_named_tokens(tmp_path: Path, name: str) -> None:
    backend, declared, others = NAMES[name]
    (tmp_path / "out").mkdir()
    files = {"tokenizer_class": "PreTrainedTokenizerFast"} | {
        f"{kind}_token": token for kind, token in declared.items()
    }
    tokenizer = read(tmp_path, backend(), tokenizer_config=files)
    tokenizer = tokenizers.from_dict(json.loads(json.dumps(tokenizer.to_dict())))
    theirs = transformers.AutoTokenizer.from_pretrained(written(tokenizer, tmp_path / "out"))
    expected = dict.fromkeys(("bos", "unk"), declared["eos"]) | declared | others
    assert {kind: getattr(theirs, f"{kind}_token") for kind in expected} == expected
    assert huggingface_tokenizer.read_folder(tmp_path / "out").to_dict() == tokenizer.to_dict()


def unigram(special: bool = False) -> hf.Tokenizer:
    pieces = [("<unk>", 0.0), ("\u2581the", -1.0), ("\u2581", -2.0), *((c, -3.0) for c in "theory")]
    backend = hf.Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    backend.add_special_tokens(["<unk>"] if special else [])
    return backend


def test_characters_without_an_id_are_named(tmp_path: Path) -> None:
    unigram().save(str(tmp_path / "tokenizer.json"))
    tokenizer = huggingface_tokenizer.read_folder(tmp_path)
    assert tokenizer.unknown("the big theory\n") == ["\n", "b", "g", "i"]
    assert tokenizer.end_of_text is None
    assert tokenizer.tokens[tokenizer.encode("the theory")[0]] == b" the"
    assert tokenizer.encode_special("theory").tolist() == tokenizer.encode("theory").tolist()


@pytest.mark.parametrize(
    ("beside", "end"),
    [
        ({"tokenizer_config.json": {"eos_token": "</s>"}, "config.json": {"eos_token_id": 0}}, 2),
        ({"special_tokens_map.json": {"eos_token": {"content": "</s>"}}}, 2),
        ({"config.json": {"eos_token_id": 1}}, 1),
        ({"config.json": {"eos_token_id": 1}, "generation_config.json": {"eos_token_id": [2, 1]}}, 2),
        ({"config.json": {"eos_token_id": 50_256}}, None),  # the default of a class that another vocabulary has
        ({}, None),
    ],
)
def test_the_end_of_a_text_is_what_the_files_say(tmp_path: Path, beside: dict[str, Any], end: int | None) -> None:
    llama().save(str(tmp_path / "tokenizer.json"))
    for name, content in beside.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert huggingface_tokenizer.read_folder(tmp_path).end_of_text == end


def wordpiece() -> str:
    backend = hf.Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    return backend.to_str()


def without(key: str) -> str:
    return json.dumps({k: v for k, v in json.loads(llama().to_str()).items() if k != key})


def merging(merge: object, **more: object) -> str:
    spec = json.loads(llama().to_str())
    return json.dumps(spec | {"model": spec["model"] | {"merges": [merge], **more}})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "cannot be read as a tokenizer; is it complete"),
        (llama().to_str()[:-100], "cannot be read as a tokenizer; is it complete"),
        ("[1, 2]", "cannot be read"),
        ("{}", "cannot be read"),
        ("null", "cannot be read"),
        ('{"model": {"type": "BPE", "vocab": 7, "merges": []}, "added_tokens": []}', "cannot be read"),
        ("\x80\x04pickle", "cannot be read"),
        (without("model"), "cannot be read"),
        (
            without("decoder"),
            r"its decoder \(missing\) is none that gptlab reads: ByteLevel, Metaspace or ByteFallback",
        ),
        (wordpiece(), r"its decoder \(WordPiece\) is none that gptlab reads"),
        (merging(["<0x41>", "<0x42>"]), r"vocabulary lacks the token that the merge <0x41> <0x42> makes"),
        (merging("<0x41> <0x42>"), r"vocabulary lacks the token that the merge <0x41> <0x42> makes"),
        (merging(["<0x41>", ""], continuing_subword_prefix="##"), r"lacks the token that the merge <0x41>  makes"),
        (merging("<0x41>"), "cannot be read"),
    ],
)
def test_a_tokenizer_that_is_damaged_or_of_another_kind_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], content: str, message: str
) -> None:
    """In one message: where `tokenizers` panics, it writes several lines itself."""
    (tmp_path / "tokenizer.json").write_text(content, "latin1" if content.startswith("\x80") else "utf-8")
    with pytest.raises(UserError, match=message) as refused:
        huggingface_tokenizer.read_folder(tmp_path)
    assert str(tmp_path / "tokenizer.json") in str(refused.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("merge", "message"),
    [
        ("a b", r"vocab.json: its vocabulary lacks the token that the merge a b makes"),
        ("a", r"vocab.json cannot be read"),
    ],
)
def test_a_damaged_pair_of_files_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], merge: str, message: str
) -> None:
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1}')
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merge}\n")
    with pytest.raises(UserError, match=message):
        huggingface_tokenizer.read_folder(tmp_path)
    assert capfd.readouterr().err == ""


def test_a_folder_without_a_tokenizer_names_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a\x0e")
    with pytest.raises(UserError, match=r"has no tokenizer.json, nor vocab.json and merges.txt.*save_pretrained"):
        huggingface_tokenizer.read_folder(tmp_path)
