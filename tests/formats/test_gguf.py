"""GGUF files hold the model and the tokenizer to the bit, and those of others are read or refused.

What llama.cpp makes of them is tried in test_gguf_llama_cpp.py.
"""

from __future__ import annotations

import dataclasses
import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import processors

from gptlab.data.chat.chat_format import ChatFormat, chat_tokenizer
from gptlab.data.chat.conversations import Message
from gptlab.data.chat.template import ChatTemplate
from gptlab.data.tokenizers import BPETokenizer, CharTokenizer, JsonTokenizer, WordTokenizer
from gptlab.formats import gguf, gguf_archs, gguf_file, gguf_tokenizer, open_model
from gptlab.formats.gguf_types import TYPES
from gptlab.formats.gguf_vocabulary import UNUSED, read_vocabulary
from gptlab.models import BigramConfig, build
from gptlab.models.weights import parameters
from gptlab.system.errors import UserError
from tests.data.test_tokenizers import AWKWARD, TEXTS
from tests.formats.gguf_models import (
    ENGLISH,
    LLAMA,
    OURS,
    SCALED,
    SHAPES,
    THEIRS,
    a_model,
    byte_level,
    no_info,
    sentencepiece,
    written,
)

package = pytest.importorskip("gguf")
CHARS = CharTokenizer.fit([ENGLISH])
SHORT = [text for text in (*AWKWARD, *TEXTS, ENGLISH[:3000], " License \u00e9\u20ac") if len(text) < 5000]


@pytest.mark.parametrize(
    ("shape", "tokenizer"), [(shape, "byte") for shape in SHAPES] + [("gpt2", name) for name in OURS if name != "byte"]
)
@torch.no_grad()
def test_a_model_comes_back_to_the_bit(tmp_path: Path, shape: str, tokenizer: str) -> None:
    arch, fields = SHAPES[shape]
    ours, known = a_model(OURS[tokenizer](), **fields), OURS[tokenizer]()
    model, again, info = open_model.load_model(written(ours, known, tmp_path / "out"))
    assert again.to_dict() == known.to_dict()
    assert info.origin == f"GGUF {arch}"
    expected = parameters(ours)
    found = parameters(model)
    assert found.keys() >= expected.keys()
    for name, weight in found.items():
        filled = torch.zeros_like(weight) if name.endswith("bias") else torch.ones_like(weight)
        assert torch.equal(weight, expected.get(name, filled)), name
    idx = torch.randint(known.vocab_size, (3, 64), generator=torch.Generator().manual_seed(1))
    assert ours(idx).std() > 0.5
    torch.testing.assert_close(model(idx), ours(idx), atol=1e-5, rtol=0)
    assert torch.equal(open_model.load_model(tmp_path / "out")[0](idx), model(idx))


@pytest.mark.parametrize("name", THEIRS)
def test_a_tokenizer_of_others_comes_back_with_its_ids(name: str) -> None:
    theirs = THEIRS[name]()
    again = gguf_tokenizer.tokenizer_of(gguf_tokenizer.vocabulary_of(theirs))
    assert isinstance(again, JsonTokenizer)
    assert (again.begin, again.end_of_text, again.vocab_size) == (theirs.begin, theirs.end_of_text, theirs.vocab_size)
    for text in SHORT:
        assert again.encode(text).tolist() == theirs.encode(text).tolist()
        special = theirs.encode_special(text).tolist()
        assert again.encode_special(text).tolist() == special
        assert again.decode(special) == theirs.decode(special)
        assert again.unknown(text) == theirs.unknown(text)


def test_gpt2_as_others_write_it_is_our_tokenizer(data_dir: Path) -> None:
    ours = BPETokenizer.gpt2(data_dir)
    vocabulary = gguf_tokenizer.vocabulary_of(ours)
    assert vocabulary.tokens[187] == "<|pad|>"  # the byte FF
    assert gguf_tokenizer.tokenizer_of(vocabulary).to_dict() == ours.to_dict()
    vocabulary.tokens[187], vocabulary.types[187] = "\u00ff", 1
    plain = dataclasses.replace(vocabulary, special={"bos": 50256, "eos": 50256})
    assert gguf_tokenizer.tokenizer_of(plain).to_dict() == ours.to_dict()


def test_the_package_reads_what_we_write(tmp_path: Path) -> None:
    ours = a_model(CHARS, **SHAPES["llama, slowed"][1])
    path = written(ours, CHARS, tmp_path)
    theirs, own = package.GGUFReader(path), gguf_file.read_gguf(path)
    told = {name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert told == own.metadata
    assert told["general.architecture"] == "llama"
    assert told["tokenizer.ggml.eos_token_id"] == told["tokenizer.ggml.bos_token_id"] == len(CHARS.chars) + 1
    assert told["tokenizer.ggml.suppress_tokens"] == [len(CHARS.chars), len(CHARS.chars) + 1]
    assert theirs.fields["llama.context_length"].types == [package.GGUFValueType.UINT32]
    assert {tensor.name: (tuple(tensor.shape[::-1].tolist()), tensor.data_offset) for tensor in theirs.tensors} == {
        name: (place.shape, place.begin) for name, place in own.places.items()
    }
    tensors = own.tensors()
    for tensor in theirs.tensors:
        np.testing.assert_array_equal(tensor.data, tensors[tensor.name].numpy())


@pytest.mark.parametrize("name", [each.name for each in TYPES.values()])
def test_numbers_are_those_of_the_package(tmp_path: Path, name: str) -> None:
    kind = package.GGMLQuantizationType[name]
    numbers = np.random.default_rng(1).normal(size=(7, 96)).astype(np.float32)
    numbers[0, :32] = 0.0
    content = package.quants.quantize(numbers, kind)
    writer = package.GGUFWriter(tmp_path / "a.gguf", "gpt2")
    writer.add_tensor("b", np.zeros(3, np.float32))
    writer.add_tensor("a", content, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = gguf_file.read_gguf(tmp_path / "a.gguf").tensors()["a"].float().numpy()
    np.testing.assert_array_equal(found, package.quants.dequantize(content, kind).reshape(found.shape))
    assert 0 <= np.abs(found - numbers).max() < {"F32": 1e-9, "F16": 2e-3, "BF16": 2e-2, "Q8_0": 0.03}.get(name, 0.4)


@pytest.mark.parametrize(
    ("quant", "shape", "expected"),
    [
        ("f16", "gpt2", {"token_embd": "F16", "position_embd": "F32", "blk.1.ffn_up": "F16"}),
        ("q8_0", "gpt2", {"token_embd": "Q8_0", "position_embd": "F32", "blk.1.ffn_up": "Q8_0"}),
        ("q4_0", "gpt2", {"token_embd": "Q8_0", "blk.0.attn_qkv": "Q4_0", "blk.1.ffn_up": "Q4_0"}),
        ("q4_0", "llama", {"token_embd": "Q4_0", "output": "Q8_0", "blk.0.ffn_down": "F16", "output_norm": "F32"}),
    ],
)
@torch.no_grad()
def test_matrices_are_quantised_and_what_does_not_fit_is_finer(
    tmp_path: Path, quant: str, shape: str, expected: dict[str, str]
) -> None:
    arch, fields = SHAPES[shape]
    ours = a_model(CHARS, **fields)
    said = gguf.write_gguf(ours, CHARS, no_info(tmp_path), tmp_path, quant)
    finer = 2 if shape == "llama" else 0  # ffn_down of two blocks, 88 wide
    assert said == f"GGUF, {arch} in {quant}" + (f", {finer} matrices in f16" if finer else "")
    file = gguf_file.read_gguf(tmp_path / "model.gguf")
    kinds = {name: TYPES[place.kind].name for name, place in file.places.items()}
    assert {name: kinds[f"{name}.weight"] for name in expected} == expected
    assert {kind for name, kind in kinds.items() if name.endswith("bias")} <= {"F32"}
    assert file.metadata["general.file_type"] == {"f16": 1, "q8_0": 7, "q4_0": 2}[quant]
    model, _, _ = open_model.load_model(tmp_path / "model.gguf")
    idx = torch.randint(CHARS.vocab_size, (3, 64), generator=torch.Generator().manual_seed(1))
    off = (model(idx) - ours(idx)).std() / ours(idx).std()
    assert off < {"f16": 1e-2, "q8_0": 5e-2, "q4_0": 0.5}[quant]
    assert off > 0


def test_weights_that_a_type_cannot_hold_are_refused(tmp_path: Path) -> None:
    ours = a_model(CHARS)
    with torch.no_grad():
        ours.h[1].mlp.c_fc.weight[3, 5] = -70_000.0
    for quant, refused in (("f16", True), ("q8_0", False), ("f32", False)):
        if refused:
            with pytest.raises(UserError, match=r"blk.1.ffn_up.weight has weights of up to 7e\+04, which F16 cannot"):
                written(ours, CHARS, tmp_path, quant)
        else:
            written(ours, CHARS, tmp_path, quant)
    bytes_only = OURS["byte"]()
    broken = a_model(bytes_only)
    with torch.no_grad():
        broken.h[1].mlp.c_fc.weight[3, 5] = math.nan
    with pytest.raises(UserError, match="weights of up to nan"):
        written(broken, bytes_only, tmp_path, "q4_0")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"pos": "alibi", "attn_scale": False}, ["its gpt2", "model.pos=alibi", "model.attn_scale=false"]),
        ({"mlp": "gelu_exact"}, ["model.mlp=gelu_exact (not gelu)"]),
        (LLAMA | {"mlp": "geglu", "window": 63}, ["its llama", "model.mlp=geglu (not swiglu)", "model.window=63"]),
        (
            LLAMA | SCALED | {"qk_norm": True, "parallel": True},
            ["its llama", "model.qk_norm=true", "model.parallel=true"],
        ),
        (LLAMA | SCALED | {"qk_norm": True, "qkv_bias": True, "head_dim": 6}, ["its llama", "model.qk_norm=true"]),
    ],
)
def test_an_architecture_that_llama_cpp_lacks_is_refused_with_all_reasons(
    tmp_path: Path, fields: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(UserError) as refused:
        written(a_model(CHARS, **fields), CHARS, tmp_path)
    assert all(word in str(refused.value) for word in ["llama.cpp has no model of this shape", *words])
    assert not [*tmp_path.iterdir()]


def test_what_else_llama_cpp_lacks_is_refused(tmp_path: Path) -> None:
    words = WordTokenizer.fit([ENGLISH], 101)
    with pytest.raises(UserError, match=r"model.pos=alibi \(not .*; and llama.cpp has no vocabulary of words"):
        written(a_model(words, pos="alibi"), words, tmp_path)
    with pytest.raises(UserError, match=r"llama.cpp has no Bigram; use --format safetensors"):
        written(build(BigramConfig(7)), CHARS, tmp_path)
    half = CharTokenizer("ab\udc80")
    with pytest.raises(UserError, match="lone surrogates"):
        written(a_model(half), half, tmp_path)
    whole_words = BPETokenizer.fit([ENGLISH], 301)
    whole_words.merges.append(b"xyzzy")
    with pytest.raises(UserError, match="no merges make 1 of its tokens"):
        gguf_tokenizer.vocabulary_of(whole_words)


@pytest.mark.parametrize(
    ("tokenizer", "words"),
    [
        (lambda: sentencepiece(whole=False), ["merges any neighbours that form a token", "is not listed"]),
        (lambda: sentencepiece(normalizer={"type": "NFKC"}), ["does not treat spaces as Llama 2's does"]),
        (
            lambda: sentencepiece(model={"vocab": few_bytes(), "merges": []}),
            ["it lacks 255 of the 256 bytes for unknown characters"],
        ),
        (lambda: sentencepiece(order=-1), ["those of", "are not side by side"]),
        (lambda: sentencepiece(post_processor=begins("<s>", "</s>")), ["begins each text with 2 tokens (not one)"]),
        (lambda: byte_level("smollm", model={"unk_token": "a"}, lacking="b"), ["it lacks 1 of the 256 bytes, and has"]),
        (
            lambda: byte_level("gpt-2", normalizer={"type": "Lowercase"}),
            ["changes a text before it is cut (Lowercase)"],
        ),
        (
            lambda: byte_level("gpt-2", pre_tokenizer={"type": "Whitespace"}, normalizer={"type": "NFC"}),
            ["cuts a text in a way that is none of gpt-2, qwen2, llama-bpe, smollm", "before it is cut (NFC)"],
        ),
        (
            lambda: byte_level("llama 3", model={"ignore_merges": False, "merges": []}),
            ["no merges make", "of its tokens, such as"],
        ),
    ],
)
def test_a_tokenizer_that_llama_cpp_lacks_is_refused_with_the_reasons(tokenizer: Any, words: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        gguf_tokenizer.vocabulary_of(tokenizer())
    assert all(word in str(refused.value) for word in ["llama.cpp cannot express this tokenizer", *words])


def few_bytes() -> dict[str, int]:
    return {token: i for i, token in enumerate(("<unk>", "<s>", "</s>", "<0x41>"))}


def begins(*names: str) -> dict[str, Any]:
    """The step of a tokenizer.json that puts tokens before a text."""
    ids = {"<s>": 1, "</s>": 2}
    template = " ".join([*names, "$A"])
    step = processors.TemplateProcessing(template, special_tokens=[(name, ids[name]) for name in names])
    return json.loads(step.__getstate__())


def test_what_begins_a_text_must_be_named() -> None:
    theirs = sentencepiece(post_processor=begins("</s>"))
    theirs.named = {"bos": "<s>"}
    with pytest.raises(UserError, match="begins each text with </s>, which is not its bos token"):
        gguf_tokenizer.vocabulary_of(theirs)


def test_names_of_tokens_come_back() -> None:
    theirs = byte_level("gpt-2")
    theirs.named = {"bos": "<|begin|>", "pad": "License"}
    again = gguf_tokenizer.tokenizer_of(gguf_tokenizer.vocabulary_of(theirs))
    assert isinstance(again, JsonTokenizer)
    assert again.named == theirs.named


def test_what_llama_cpp_does_otherwise_is_said(caplog: pytest.LogCaptureFixture) -> None:
    spec = json.loads(byte_level("gpt-2").content)
    spec["added_tokens"][0]["lstrip"] = True
    vocabulary = gguf_tokenizer.vocabulary_of(JsonTokenizer(json.dumps(spec), None))
    assert "keeps the spaces around <|begin|>" in caplog.text
    caplog.clear()
    metaspace = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False}
    assert gguf_tokenizer.vocabulary_of(sentencepiece(normalizer=None, pre_tokenizer=metaspace)).add_space
    assert "a text that begins with a space has one more id" in caplog.text
    caplog.clear()
    gguf_tokenizer.tokenizer_of(gguf_tokenizer.vocabulary_of(OURS["cl100k_base"]()))
    assert caplog.text.count("ends in a new line and other blanks") == 1
    vocabulary.tokens[0] = vocabulary.tokens[1]
    with pytest.raises(UserError, match="has the same token twice"):
        read_vocabulary(vocabulary.metadata())


def test_ids_that_are_written_alike_are_refused() -> None:
    theirs = json.loads(byte_level("gpt-2").content)
    theirs["model"]["vocab"]["<|eos|>"] = len(theirs["model"]["vocab"]) + 3
    with pytest.raises(UserError, match="no vocabulary in which two ids are written alike"):
        gguf_tokenizer.vocabulary_of(JsonTokenizer(json.dumps(theirs), None))


def test_merges_that_make_every_token_need_no_whole_words() -> None:
    """llama.cpp takes whole words with Llama 3's cuts, which changes nothing where merges make them anyway."""
    theirs = byte_level("llama 3", model={"ignore_merges": False})
    assert gguf_tokenizer.vocabulary_of(theirs).pre == "llama-bpe"


def test_a_tokenizer_without_an_end_gets_one(tmp_path: Path) -> None:
    theirs = byte_level("gpt-2")
    endless = JsonTokenizer(theirs.content, None)
    ours = a_model(endless)
    path = written(ours, endless, tmp_path)
    own = gguf_file.read_gguf(path)
    end = own.metadata["tokenizer.ggml.eos_token_id"]
    assert end == own.metadata["tokenizer.ggml.bos_token_id"] == theirs.vocab_size
    assert own.metadata["tokenizer.ggml.tokens"][end] == "<|eos|>"
    assert own.places["token_embd.weight"].shape[0] == end + 1
    idx = torch.arange(9)[None]
    with torch.no_grad():
        logits = open_model.load_model(path)[0](idx)
        torch.testing.assert_close(logits[..., :end], ours(idx), atol=1e-5, rtol=0)


# Chats


def test_our_chat_format_travels_without_the_tag_of_transformers(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer(OURS["bpe"]())
    chat = ChatFormat(tokenizer)
    info = dataclasses.replace(no_info(tmp_path), read_chat=lambda: chat)
    gguf.write_gguf(a_model(tokenizer), tokenizer, info, tmp_path)
    metadata = gguf_file.read_gguf(tmp_path / "model.gguf").metadata
    assert "generation %" not in metadata["tokenizer.chat_template"]
    assert metadata["tokenizer.ggml.eot_token_id"] == tokenizer.special_tokens["<|end|>"]
    _, again, opened = open_model.load_model(tmp_path)
    assert opened.chat == ChatFormat(again)


def test_a_template_that_is_no_text_is_refused_where_it_is_asked_for(tmp_path: Path) -> None:
    path = changed(written(a_model(CHARS), CHARS, tmp_path), {"tokenizer.chat_template": 7})
    _, _, opened = open_model.load_model(path)
    with pytest.raises(UserError, match=r"changed.gguf: its tokenizer.chat_template is no text"):
        opened.chat  # noqa: B018


def test_a_template_of_others_travels_with_its_ends(tmp_path: Path) -> None:
    tokenizer = OURS["bpe, chat"]()
    source = (
        "{% for message in messages %}{{ '<|user|>' }}{%- if message.role == 'assistant' %}{% generation -%} "
        "{{ message.content + '<|end|>' }}{%- endgeneration %}{% else %}{{ message.content + eos_token }}{% endif %}"
        "{% endfor %}"
    )
    ends = (tokenizer.special_tokens["<|end|>"], tokenizer.end_of_text)
    chat = ChatTemplate(tokenizer, source, {"eos_token": "<|endoftext|>"}, ends)
    info = dataclasses.replace(no_info(tmp_path), read_chat=lambda: chat)
    gguf.write_gguf(a_model(tokenizer), tokenizer, info, tmp_path)
    _, _, opened = open_model.load_model(tmp_path)
    messages = [Message("user", "a b"), Message("assistant", "c"), Message("user", "d")]
    assert isinstance(opened.chat, ChatTemplate)
    assert opened.chat.ids(messages).tolist() == chat.ids(messages).tolist()
    assert {*opened.chat.ends} == {*ends}


# Files of others

FIRST = "tokenizer.ggml."


def changed(path: Path, changes: dict[str, Any], drop: tuple[str, ...] = ()) -> Path:
    """The file with other values in its header, and without some tensors."""
    old = gguf_file.read_gguf(path)
    metadata = {key: value for key, value in (old.metadata | changes).items() if value is not None}
    tensors = {name: tensor for name, tensor in old.tensors().items() if name not in drop}
    kinds = dict.fromkeys(tensors, "F32")
    arch = metadata.pop("general.architecture", "none")
    gguf._write(path.with_name("changed.gguf"), arch, metadata, tensors, kinds)
    return path.with_name("changed.gguf")


@pytest.fixture(scope="module")
def llama_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(a_model(CHARS, **SHAPES["llama"][1]), CHARS, tmp_path_factory.mktemp("llama"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"general.architecture": "gemma"}, ["general.architecture=gemma", "it reads gpt2, qwen2, llama, qwen3"]),
        (
            {"llama.block_count": None, "llama.expert_count": 8},
            ["llama.block_count is missing", "llama.expert_count=8"],
        ),
        ({"llama.attention.head_count": [4, 4]}, ["llama.attention.head_count is a list"]),
        ({"llama.attention.sliding_window": 32}, ["sliding_window=32"]),
        ({"llama.attention.causal": False}, ["attention.causal=False (it must be absent or True)"]),
        ({"llama.rope.scaling.type": "yarn"}, ["rope.scaling.type=yarn"]),
        ({"llama.rope.dimension_count": 4}, ["rope.dimension_count=4 (it must be 8, the size of a head)"]),
        ({"llama.embedding_length": "x"}, ["model.n_embd='x': must be of type int"]),
        ({"llama.attention.head_count": 0}, ["model.n_head=0: must be at least 1"]),
        ({"llama.attention.key_length": 0, "llama.attention.head_count": 0}, ["a damaged header of a llama"]),
        ({"llama.rope.scaling.factor": "x"}, ["model.rope_factor='x': must be of type float"]),
        ({"llama.block_count": 1 << 30}, ["model.n_layer"]),
        ({"llama.block_count": 3}, ["blk.2.", "is missing"]),
        ({"llama.feed_forward_length": 96}, ["weights that do not fit the model's config", "blk.0.ffn_up.weight"]),
        ({"general.type": "adapter"}, ["general.type=adapter (it must be model)"]),
        ({"split.count": 3}, ["it is one of 3 parts", "llama-gguf-split --merge"]),
        ({f"{FIRST}model": "bert"}, ["tokenizer.ggml.model=bert", "gpt2 (byte-level BPE) and llama"]),
        ({f"{FIRST}pre": "tekken"}, ["tokenizer.ggml.pre=tekken", "gpt-2, qwen2, llama-bpe, smollm"]),
        ({f"{FIRST}pre": None}, ["tokenizer.ggml.pre=default"]),
        (
            {f"{FIRST}tokens": ["a" * 9_000], f"{FIRST}token_type": None},
            ["of up to 9,000 characters, are longer than those of any vocabulary"],
        ),
        ({f"{FIRST}tokens": None}, ["tokenizer.ggml.tokens is no list of texts"]),
        ({f"{FIRST}tokens": ["a", "a"], f"{FIRST}token_type": None}, ["the same token twice"]),
        ({f"{FIRST}token_type": [1, 1]}, ["tokenizer.ggml.token_type is no list of"]),
        ({f"{FIRST}merges": ["nospace"]}, ["its merge 'nospace' is not of two tokens"]),
        ({f"{FIRST}model": "llama"}, ["it lacks 256 of the 256 bytes"]),
    ],
)
def test_a_file_that_gptlab_lacks_is_refused_with_the_reasons(
    llama_file: Path, changes: dict[str, Any], words: list[str]
) -> None:
    path = changed(llama_file, changes)
    with pytest.raises(UserError) as refused:
        open_model.load_model(path)
    assert str(path) in str(refused.value)
    assert all(word in str(refused.value) for word in words), str(refused.value)


@torch.no_grad()
def test_headers_as_others_write_them_are_read(llama_file: Path) -> None:
    """Without what has a default, with old names, and with values that say that there is nothing of it."""
    ours = open_model.load_model(llama_file)[0]
    defaults = {"attention.value_length": None, "rope.dimension_count": None, "vocab_size": None, "expert_count": 0}
    defaults |= {"attention.sliding_window": 4096, "rope.scaling.type": "none", "rope.scaling.factor": 3.0}
    padding = {f"{FIRST}padding_token_id": (1 << 32) - 1, "split.count": 1}
    path = changed(llama_file, {f"llama.{key}": value for key, value in defaults.items()} | padding)
    model, tokenizer, _ = open_model.load_model(path)
    assert model.config == ours.config
    assert tokenizer.encode("You").tolist() == CHARS.encode("You").tolist()
    slowed = open_model.load_model(changed(llama_file, {"llama.rope.scale_linear": 2.0}))[0]
    assert (slowed.config.rope_scaling, slowed.config.rope_factor) == ("linear", 2.0)


def test_llama_3s_scaling_is_recognised_by_its_frequencies(tmp_path: Path) -> None:
    fields = LLAMA | {"rope_scaling": "llama3", "rope_factor": 8.0, "rope_original_size": 8192, "head_dim": 64}
    path = written(a_model(CHARS, **fields, rope_base=500_000.0), CHARS, tmp_path)
    own = {key: None for key in gguf_file.read_gguf(path).metadata if key.startswith("gptlab.")}
    assert len(own) == 4
    config = open_model.load_model(changed(path, own))[0].config
    assert {name: getattr(config, name) for name in fields} == fields
    with pytest.raises(UserError, match=r"rope_freqs.weight is not Llama 3's scaling"):
        open_model.load_model(changed(path, own | {"gptlab.rope_high_freq_factor": 5.0}))
    with pytest.raises(UserError, match=r"rope_freqs.weight and rope.scaling both slow its positions down"):
        open_model.load_model(changed(path, {"llama.rope.scaling.factor": 2.0}))
    halved = {f"llama.{key}": 32 for key in ("attention.key_length", "attention.value_length", "rope.dimension_count")}
    with pytest.raises(UserError, match=r"rope_freqs.weight is \[32\] and must be \[16\]"):
        open_model.load_model(changed(path, halved))


def test_scores_that_tell_no_order_are_refused() -> None:
    vocabulary = gguf_tokenizer.vocabulary_of(sentencepiece())
    alike = dataclasses.replace(vocabulary, scores=[-1000.0] * len(vocabulary.tokens))
    with pytest.raises(UserError, match=r"tokens have the same score.* where it finds no tokenizer.model"):
        gguf_tokenizer.tokenizer_of(alike)


def test_defaults_of_sentencepiece_are_llama_cpps() -> None:
    told = gguf_tokenizer.vocabulary_of(sentencepiece()).metadata()
    for name in ("add_bos_token", "add_space_prefix", "bos_token_id", "eos_token_id", "unknown_token_id"):
        del told[f"{FIRST}{name}"]
    assert read_vocabulary(told).metadata() == gguf_tokenizer.vocabulary_of(sentencepiece()).metadata()


def test_unused_ids_stay_unused() -> None:
    theirs = byte_level("qwen2")
    vocabulary = gguf_tokenizer.vocabulary_of(theirs)
    vocabulary.tokens.append("[PAD502]")
    vocabulary.types.append(UNUSED)
    again = gguf_tokenizer.tokenizer_of(vocabulary)
    assert (again.vocab_size, again.encode("[PAD502]").tolist()) == (
        theirs.vocab_size,
        theirs.encode("[PAD502]").tolist(),
    )


def test_types_that_are_not_read_are_named(tmp_path: Path) -> None:
    writer = package.GGUFWriter(tmp_path / "a.gguf", "llama")
    kind = package.GGMLQuantizationType.Q4_K
    writer.add_tensor("token_embd.weight", np.zeros((3, 144), np.uint8), raw_dtype=kind)
    writer.add_tensor("output_norm.weight", np.zeros(9, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    expected = r"token_embd.weight is Q4_K, and 1 of 2 tensors .*; gptlab reads F32, F16, BF16, Q8_0, Q4_0"
    with pytest.raises(UserError, match=expected):
        gguf_file.read_gguf(tmp_path / "a.gguf").tensors()


# Damaged files


def text(content: str) -> bytes:
    return struct.pack("<Q", len(content)) + content.encode()


def a_file(values: bytes = b"", tensors: bytes = b"", counts: tuple[int, int] = (0, 0), version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, *counts) + values + tensors


def a_tensor(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


HUGE = 1 << 60


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "broken or no GGUF file"),
        (b"PK\3\4" + bytes(99), "does not begin with GGUF"),
        (a_file()[:9], "ends within a value of 8 bytes"),
        (a_file(version=1), "it is of version 1; gptlab reads 2 and 3"),
        (a_file(version=3 << 24), "big-endian"),
        (a_file(counts=(0, HUGE)), "values or tensors follow, and only 0 bytes do"),
        (a_file(counts=(HUGE, 0)), "values or tensors follow"),
        (a_file(struct.pack("<Q", HUGE) + bytes(9), counts=(0, 1)), "ends within a value of 1,152,921,504,606,846,976"),
        (a_file(text("a") + struct.pack("<I", 99), counts=(0, 1)), "a value of type 99, which there is not"),
        (a_file(text("a") + struct.pack("<IIQ", 9, 0, HUGE) + bytes(9), counts=(0, 1)), "only 9 bytes do"),
        (a_file(text("a") + struct.pack("<IIQ", 9, 8, 1 << 40) + bytes(99), counts=(0, 1)), "only 99 bytes do"),
        (a_file(text("a") + struct.pack("<IIQ", 9, 9, 1) + bytes(99), counts=(0, 1)), "a list of type 9"),
        (a_file((text("a") + b"\0\0\0\0\7") * 2, counts=(0, 2)), "it has a twice"),
        (a_file(struct.pack("<Q", 1) + b"\xff" + b"\0\0\0\0\7", counts=(0, 1)), "a text that is not UTF-8"),
        (a_file(tensors=text("a") + struct.pack("<IQQQ", 5, 1, 1, 1) + bytes(99), counts=(1, 0)), "5 axes"),
        (a_file(tensors=a_tensor("a", (4,), 0, 128) + bytes(99), counts=(1, 0)), "a would end at byte"),
        (a_file(tensors=a_tensor("a", (HUGE, HUGE, HUGE), 0, 0) + bytes(99), counts=(1, 0)), "a would end at byte"),
        (a_file(tensors=a_tensor("a", (4,), 0, 7) + bytes(99), counts=(1, 0)), "a would end at byte"),
        (a_file(tensors=a_tensor("a", (33,), 8, 0) + bytes(99), counts=(1, 0)), "rows of 33 numbers, and Q8_0 has"),
        (
            a_file(tensors=a_tensor("a", (4,), 0, 0) + a_tensor("b", (9,), 0, 0) + bytes(99), counts=(2, 0)),
            "b begins within another tensor",
        ),
        (
            a_file(text("general.alignment") + struct.pack("<II", 4, 0), counts=(0, 1)),
            "general.alignment=0: must be a multiple of 8",
        ),
    ],
)
def test_a_damaged_file_is_one_message(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "a.gguf").write_bytes(content)
    with pytest.raises(UserError) as refused:
        open_model.load_model(tmp_path / "a.gguf")
    assert str(refused.value).startswith(f"{tmp_path / 'a.gguf'} is broken or no GGUF file")
    assert words in str(refused.value)


def test_a_header_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(a_model(CHARS), CHARS, tmp_path)
    monkeypatch.setattr(gguf_file, "LONGEST_HEADER", 1000)
    with pytest.raises(UserError, match="its header has more than 1,000 bytes"):
        gguf_file.read_gguf(path)


def test_reading_needs_no_package(shell: Any, tmp_path: Path) -> None:
    path = written(a_model(CHARS), CHARS, tmp_path)
    code = "import sys; sys.modules['gguf'] = None; from gptlab.formats import gguf; from pathlib import Path; "
    out, err = shell("-c", code + f"print(len(gguf.open_gguf(Path({str(path)!r}))))").communicate(timeout=60)
    assert (out, err) == ("3\n", "")


def test_every_arch_has_the_same_form_of_tables() -> None:
    for name, family in gguf_archs.ARCHS.items():
        assert family.architecture == name
        assert json.dumps(family.fixed)
        assert len(set(family.names.values())) == len(family.names)
