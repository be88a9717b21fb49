"""Damaged files of other tools: any result or a message, see fuzzing.py; 2,000 files of each format."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import safetensors.torch
import tiktoken
import torch
import transformers

from gptlab import models
from gptlab.data import corpora, id_files, meta_pickle, ready_ids, saved, tokenizers
from gptlab.data.split import Split
from gptlab.data.tokenizers import CharTokenizer, TokenizerConfig
from gptlab.formats import (
    chat_template,
    description,
    gguf,
    huggingface,
    huggingface_tokenizer,
    llama2c,
    nanochat,
    nanogpt,
    open_model,
    writing,
)
from gptlab.formats.huggingface_backend import NANOCHAT_PATTERN
from gptlab.models.gpt_config import GPTConfig
from gptlab.models.weights import parameters
from gptlab.system import files
from tests.formats.fuzzing import CHARS, GPT2, TEXT, Kind, bpe, fuzz, gpt, seen, used
from tests.formats.test_llama2c import LLAMA, of_version

QUICK, FILES = 60, 2000  # cases of a new format


def make_hf(folder: Path) -> None:
    writing.write_hf(gpt(), CharTokenizer(CHARS), description.ModelInfo(folder, None, {}, {}, None, "x"), folder)


def read_hf(folder: Path) -> Any:
    return seen(*huggingface.open_folder(folder, folder))


def make_gguf(folder: Path) -> None:
    """A file of numbers as they are, and of characters."""
    gguf.write_gguf(gpt(), CharTokenizer(CHARS), description.ModelInfo(folder, None, {}, {}, None, "x"), folder)


def make_quantised(folder: Path) -> None:
    """A file of numbers in blocks, of merges, and with scaled positions."""
    llama = {"pos": "rope", "norm": "rmsnorm", "mlp": "swiglu", "qkv_bias": True, "bias": False, "n_kv_head": 1}
    slowed = {"rope_scaling": "llama3", "rope_factor": 8.0, "rope_original_size": 8}
    tokenizer = tokenizers.BPETokenizer.fit(["to be or not to be, that is"], 264)
    torch.manual_seed(1)
    model = models.build(GPTConfig(tokenizer.vocab_size, 7, 1, 2, n_embd=32, n_inner=32, **llama, **slowed)).eval()
    gguf.write_gguf(model, tokenizer, description.ModelInfo(folder, None, {}, {}, None, "x"), folder, "q4_0")


def read_gguf(folder: Path) -> Any:
    return seen(*gguf.open_gguf(folder / gguf.FILE))


def make_bin(folder: Path) -> None:
    make_hf(folder)
    torch.save(safetensors.torch.load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def make_nanogpt(folder: Path) -> None:
    sizes = ("vocab_size", "block_size", "n_layer", "n_head", "n_embd", "bias", "dropout")
    state = {f"_orig_mod.transformer.{k}": v for k, v in parameters(gpt()).items()}
    args = {name: getattr(GPT2, name) for name in sizes}
    torch.save({"model": state, "model_args": args, "iter_num": 3, "config": {"dataset": "a"}}, folder / "ckpt.pt")
    itos = dict(enumerate(CHARS))
    (folder / "meta.pkl").write_bytes(pickle.dumps({"itos": itos, "stoi": {c: i for i, c in itos.items()}}))


def read_nanogpt(folder: Path) -> Any:
    return seen(*nanogpt.open_checkpoint(folder / "ckpt.pt", folder))


def make_nanochat(folder: Path) -> None:
    torch.manual_seed(1)
    sizes = {"sequence_len": 7, "n_layer": 2, "n_head": 2, "n_kv_head": 1, "n_embd": 4}
    state = {"transformer.wte.weight": torch.randn(320, 4), "lm_head.weight": torch.randn(320, 4)}
    shapes = {"attn.c_q": (4, 4), "attn.c_k": (2, 4), "attn.c_v": (2, 4), "attn.c_proj": (4, 4)}
    shapes |= {"mlp.c_fc": (16, 4), "mlp.c_proj": (4, 16)}
    state |= {
        f"transformer.h.{i}.{name}.weight": torch.randn(shape) for i in range(2) for name, shape in shapes.items()
    }
    torch.save(state | {"x0_lambdas": torch.zeros(2)}, folder / "model_000003.pt")
    about = {"model_config": sizes | {"vocab_size": 271, "window_pattern": "L"}}
    (folder / "meta_000003.json").write_text(json.dumps(about))
    ranks = {token: i for i, token in enumerate(bpe().merges)}
    special = {"<|bos|>": len(ranks), "<|user_start|>": len(ranks) + 1}
    encoding = tiktoken.Encoding("a", pat_str=NANOCHAT_PATTERN, mergeable_ranks=ranks, special_tokens=special)
    (folder / "tokenizer.pkl").write_bytes(pickle.dumps(encoding))


def read_nanochat(folder: Path) -> Any:
    return seen(*nanochat.open_checkpoint(folder / "model_000003.pt", folder))


def make_llama2c(version: int) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        torch.manual_seed(1)
        config = GPTConfig(256, 7, n_layer=2, n_head=2, n_kv_head=1, n_embd=4, n_inner=8, **LLAMA)
        info = description.ModelInfo(folder, None, {}, {}, None, "x")
        llama2c.write_llama2c(models.build(config).eval(), tokenizers.ByteTokenizer(), info, folder)
        if version:
            of_version(version, folder / "model.bin", folder / "other", group=4)
            (folder / "other" / "model.bin").replace(folder / "model.bin")
            (folder / "other").rmdir()

    return make


def read_llama2c(folder: Path) -> Any:
    return seen(*open_model.load_model(folder / "model.bin"))


def make_ids(ending: str, magic: int = 0) -> Callable[[Path], None]:
    """Files of ids as others write them, with nanoGPT's characters, or with our tokenizer, beside them."""

    def make(folder: Path) -> None:
        tokenizer = CharTokenizer(CHARS)
        for part, text in (("train", TEXT[:300]), ("val", TEXT[300:340])):
            ids, path = tokenizer.encode(text), folder / f"{part}{ending}"
            if ending == ".npy":
                np.save(path, ids)
                continue
            version, kind = id_files.SHARDS[magic] if magic else (0, "<u2")
            header = np.array([magic, version, len(ids)], "<i4").tobytes().ljust(id_files.HEADER, b"\0")
            path.write_bytes((header if magic else b"") + ids.astype(kind).tobytes())
        if ending == ".bin":
            (folder / "meta.pkl").write_bytes(meta_pickle.meta_of(tokenizer))
        else:
            files.write_json(folder / ready_ids.TOKENIZER, tokenizer.to_dict())

    return make


def read_ids(folder: Path) -> Any:
    how = TokenizerConfig("gpt2", None)
    found = ready_ids.open_ready_ids([str(folder)], Split("position", 0.1, 0.0), how, folder / "none", folder / "cache")
    ids = {part: found.ids(part)[:].tolist() for part in found.files}
    assert all(0 <= i < found.tokenizer.vocab_size for part in ids.values() for i in part)
    return found.sha256, ids, used(found.tokenizer)


def read_tokenizer(folder: Path) -> Any:
    return used(huggingface_tokenizer.read_folder(folder))


def write_tokenizer(tokenizer: tokenizers.Tokenizer) -> Callable[[Path], None]:
    return lambda folder: writing.write_tokenizer(tokenizer, 7, folder)


def make_two_files(folder: Path) -> None:
    """A tokenizer as vocab.json and merges.txt."""
    content = json.loads(huggingface_tokenizer.tokenizer_files(bpe(), 7)["tokenizer.json"])["model"]
    (folder / "vocab.json").write_text(json.dumps(content["vocab"]))
    merges = (" ".join(merge) if isinstance(merge, list) else merge for merge in content["merges"])
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")


def foreign(folder: Path) -> None:
    """A tokenizer like Llama's, which none of ours can express."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    vocab = {"<unk>": 0, "<s>": 1, **{f"<0x{b:02X}>": 2 + b for b in range(256)}}
    vocab |= {c: len(vocab) + i for i, c in enumerate("▁tobe")}
    backend = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = pre_tokenizers.Split(",", "isolated")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    backend.add_special_tokens(["<s>"])
    (folder / "tokenizer.json").write_text(backend.to_str())
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<s>"}}))


HEADS = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
GROUPED = HEADS | {"num_key_value_heads": 1, "intermediate_size": 12}
CHAT = "{% for message in messages %}{{ message['content'] }}{{ eos_token }}{% endfor %}"
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT-NeoX": ("gpt_neox", HEADS | {"intermediate_size": 20, "rotary_pct": 0.25}),
    "OPT": ("opt", HEADS | {"ffn_dim": 20}),
    "GPT-Neo": (
        "gpt_neo",
        {"hidden_size": 16, "num_heads": 2, "num_layers": 2, "attention_types": [[["global", "local"], 1]]}
        | {"window_size": 5},
    ),
    "Gemma": ("gemma", GROUPED | {"head_dim": 4}),
    "SmolLM2": ("llama", GROUPED | {"rope_theta": 100_000.0, "tie_word_embeddings": True}),
}


def make_family(kind: str, sizes: dict[str, Any]) -> Callable[[Path], None]:
    """A folder as transformers writes it, and the tokenizer and the chat template of ours."""

    def make(folder: Path) -> None:
        torch.manual_seed(1)
        tokenizer = CharTokenizer(CHARS, True)
        ids = {"vocab_size": tokenizer.vocab_size, "pad_token_id": None, "bos_token_id": 0, "eos_token_id": 0}
        config = transformers.AutoConfig.for_model(kind, max_position_embeddings=7, **ids, **sizes)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        writing.write_tokenizer(tokenizer, 7, folder, tokenizer.vocab_size)
        (folder / chat_template.FILE).write_text(CHAT)

    return make


def read_family(folder: Path) -> Any:
    model, tokenizer, info = huggingface.open_folder(folder, folder)
    return seen(model, tokenizer, info), info.chat and info.chat.to_dict()


def make_saved(folder: Path) -> None:
    """A data set of two splits, as save_to_disk writes it."""
    lines = TEXT[:600].split("\n")
    (folder / saved.SPLITS).write_text(json.dumps({"splits": ["train", "validation"]}))
    for split, texts in (("train", lines[:20]), ("validation", lines[20:])):
        (folder / split).mkdir()
        table = pyarrow.table({"text": texts, "n": range(len(texts))})
        with pyarrow.ipc.new_stream(folder / split / "data-00000-of-00001.arrow", table.schema) as stream:
            stream.write_table(table, max_chunksize=7)
        state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_format_type": None, "_split": split}
        (folder / split / saved.STATE).write_text(json.dumps(state))
        (folder / split / saved.INFO).write_text(json.dumps({"features": {}}))


def read_saved(folder: Path) -> Any:
    return [(piece.part, piece.text) for piece in corpora.load(saved.NAME, [str(folder)], folder, folder).read()]


def make_shards(folder: Path) -> None:
    """Texts as nanochat downloads them."""
    lines = TEXT[:600].split("\n")
    for i in range(3):
        table = pyarrow.table({"text": lines[9 * i : 9 * i + 9]})
        pyarrow.parquet.write_table(table, folder / f"shard_{i:05}.parquet", row_group_size=4, compression="zstd")


def read_shards(folder: Path) -> Any:
    corpus = corpora.load("text", [str(folder)], folder, folder, last_file=True)
    return [(piece.part, piece.text) for piece in corpus.read()]


def of_format(make: Callable[[Path], Any], read: Callable[[Path], Any]) -> Kind:
    return Kind(make, read, False, QUICK, FILES - QUICK)


KINDS = {
    "hf chars": Kind(write_tokenizer(CharTokenizer(CHARS)), read_tokenizer, False, 100, 400),
    "hf bpe": Kind(write_tokenizer(bpe()), read_tokenizer, False, 60, 440),
    "hf two files": Kind(make_two_files, read_tokenizer, False, 100, 400),
    "hf foreign": Kind(foreign, read_tokenizer, False, 100, 400),
    "hf model": Kind(make_hf, read_hf, False, 100, 400),
    "hf pickle": Kind(make_bin, read_hf, False, 100, 400),
    "nanogpt": Kind(make_nanogpt, read_nanogpt, False, 100, 400),
    **{name: of_format(make_family(*family), read_family) for name, family in FAMILIES.items()},
    "gguf": of_format(make_gguf, read_gguf),
    "gguf, quantised": of_format(make_quantised, read_gguf),
    "nanochat": of_format(make_nanochat, read_nanochat),
    **{f"llama2c {version}": of_format(make_llama2c(version), read_llama2c) for version in range(3)},
    "bin": of_format(make_ids(".bin"), read_ids),
    "bin shards, uint16": of_format(make_ids("_000001.bin", 20240520), read_ids),
    "bin shards, uint32": of_format(make_ids("_000001.bin", 20240801), read_ids),
    "npy": of_format(make_ids(".npy"), read_ids),
    "saved": of_format(make_saved, read_saved),
    "parquet shards": of_format(make_shards, read_shards),
}


@pytest.mark.parametrize("name", KINDS)
def test_damage_is_harmless(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fuzz(KINDS[name], range(KINDS[name].quick), tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_more_damage_is_harmless(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = KINDS[name]
    fuzz(kind, range(kind.quick, kind.quick + kind.slow), tmp_path, monkeypatch)
