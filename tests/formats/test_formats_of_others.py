"""Other people's models open from their files alone: the same logits, or one clear error, and no code run."""

from __future__ import annotations

import json
import os
import pickle
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiktoken.registry
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gptlab import models
from gptlab.data.tokenizers import ByteTokenizer, CharTokenizer
from gptlab.formats import (
    huggingface,
    huggingface_config,
    huggingface_names,
    huggingface_tokenizer,
    open_model,
    openai_gpt2,
    safetensors_file,
)
from gptlab.formats import nanogpt as nanogpt_format
from gptlab.models import GPT, GPTConfig
from gptlab.models.weights import empty_model, fill, parameters
from gptlab.system.errors import UserError
from tests.formats.test_huggingface_names import shaken

transformers = pytest.importorskip("transformers")

V, T = 101, 23
CHARS = "".join(chr(0x4E00 + i) for i in range(V))
NOWHERE = Path("/nowhere")


def gpt(**changes: Any) -> GPT:
    sizes = {"vocab_size": V, "block_size": T, "n_layer": 2, "n_head": 3, "n_embd": 33}
    return shaken(GPT(GPTConfig(**(sizes | changes))))


def gpt2() -> Any:
    torch.manual_seed(7)
    sizes = {"vocab_size": V, "n_positions": T, "n_layer": 2, "n_head": 3, "n_embd": 33}
    return shaken(transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=None, eos_token_id=None)))


def llama() -> Any:
    torch.manual_seed(7)
    sizes = {"vocab_size": V, "max_position_embeddings": T, "num_hidden_layers": 2, "num_attention_heads": 6}
    sizes |= {"num_key_value_heads": 2, "hidden_size": 60, "intermediate_size": 53}
    return shaken(
        transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, bos_token_id=None, eos_token_id=None))
    )


def write(model: Any, folder: Path, **options: Any) -> Path:
    """A folder of `save_pretrained`, with a tokenizer of 101 characters."""
    model.save_pretrained(folder, **options)
    for name, content in huggingface_tokenizer.tokenizer_files(CharTokenizer(CHARS), T).items():
        (folder / name).write_text(content, "utf-8")
    return folder


@torch.no_grad()
def assert_same(ours: Any, theirs: Any, tokens: int = V) -> None:
    idx = torch.randint(tokens, (5, T), generator=torch.Generator().manual_seed(3))
    reference = theirs(idx)
    reference = reference if isinstance(reference, Tensor) else reference.logits
    torch.testing.assert_close(ours(idx), reference[..., :tokens], atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module", params=[gpt2, llama])
def theirs(request: pytest.FixtureRequest) -> Any:
    return request.param()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a GPT-2, which tests may damage."""
    return write(gpt2(), tmp_path / "gpt2")


def as_bin(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def test_a_hugging_face_folder_gives_model_and_tokenizer(theirs: Any, tmp_path: Path) -> None:
    model, tokenizer, info = huggingface.open_folder(write(theirs, tmp_path), NOWHERE)
    assert_same(model, theirs)
    assert not model.training
    assert tokenizer.to_dict() == CharTokenizer(CHARS).to_dict()
    kind = theirs.config.model_type
    assert (info.path, info.step, info.metrics, info.config) == (tmp_path, None, {}, {})
    assert info.origin == f"Hugging Face {kind}"


def test_weights_in_shards_are_put_together(theirs: Any, tmp_path: Path) -> None:
    write(theirs, tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 1
    assert_same(huggingface.open_folder(tmp_path, NOWHERE)[0], theirs)


def test_weights_as_pickles_are_read(theirs: Any, tmp_path: Path) -> None:
    as_bin(write(theirs, tmp_path))
    assert_same(huggingface.open_folder(tmp_path, NOWHERE)[0], theirs)


def test_pickles_in_shards_and_of_the_old_format_are_read(theirs: Any, tmp_path: Path) -> None:
    write(theirs, tmp_path)
    names: dict[str, str] = {}
    for i, (name, weight) in enumerate(load_file(tmp_path / "model.safetensors").items()):
        names[name] = f"pytorch_model-{i}.bin"
        torch.save({name: weight}, tmp_path / names[name], _use_new_zipfile_serialization=i % 2 == 0)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))
    (tmp_path / "model.safetensors").unlink()
    assert_same(huggingface.open_folder(tmp_path, NOWHERE)[0], theirs)


def test_half_precision_comes_as_fp32(tmp_path: Path) -> None:
    theirs = llama().to(torch.bfloat16)
    model, _, _ = huggingface.open_folder(write(theirs, tmp_path), NOWHERE)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert_same(model, transformers.LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32))


@pytest.mark.parametrize("convert", [lambda folder: None, as_bin])
def test_a_loaded_model_needs_its_files_no_longer(folder: Path, convert: Callable[[Path], None]) -> None:
    convert(folder)
    model, _, _ = huggingface.open_folder(folder, NOWHERE)
    for file in folder.iterdir():
        os.truncate(file, 0)
    assert_same(model, gpt2())


def test_loading_leaves_the_random_state_as_it_was(folder: Path) -> None:
    before = torch.get_rng_state()
    huggingface.open_folder(folder, NOWHERE)
    assert torch.equal(torch.get_rng_state(), before)


def test_rows_behind_the_last_token_are_cut_off(tmp_path: Path) -> None:
    theirs = llama()
    write(theirs, tmp_path)
    for name, content in huggingface_tokenizer.tokenizer_files(CharTokenizer(CHARS[:97]), T).items():
        (tmp_path / name).write_text(content, "utf-8")
    model, tokenizer, _ = huggingface.open_folder(tmp_path, NOWHERE)
    assert model.config.vocab_size == tokenizer.vocab_size == 97
    assert_same(model, theirs, tokens=97)


def test_gpt2_without_a_tokenizer_gets_the_one_of_openai(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})  # what other tests have loaded
    sizes = {"vocab_size": 50257, "n_positions": T, "n_layer": 1, "n_head": 1, "n_embd": 8}
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).save_pretrained(tmp_path)
    _, tokenizer, _ = huggingface.open_folder(tmp_path, data_dir)
    assert tokenizer.encode("Every effort moves you").tolist() == [6109, 3626, 6100, 345]
    with pytest.raises(UserError, match=r"tokenizer=gpt2: its vocabulary cannot be read from data.dir=/nowhere"):
        huggingface.open_folder(tmp_path, NOWHERE)


def no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def list_config(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def changed_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def other_model(folder: Path) -> None:
    changed_config(folder, model_type="bert")


def other_activation(folder: Path) -> None:
    changed_config(folder, activation_function="silu", scale_attn_by_inverse_layer_idx=True)


def other_size(folder: Path) -> None:
    changed_config(folder, n_layer=3)


def fewer_tokens(folder: Path) -> None:
    changed_config(folder, vocab_size=97)


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def truncated(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 5003)


def pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 5\n")


def truncated_bin(folder: Path) -> None:
    as_bin(folder)
    os.truncate(folder / "pytorch_model.bin", 5003)


def other_bin(folder: Path) -> None:
    no_weights(folder)
    torch.save({"state": {"wte.weight": torch.zeros(7)}}, folder / "pytorch_model.bin")


def missing_shard(folder: Path) -> None:
    no_weights(folder)
    write(gpt2(), folder, max_shard_size="50KB")
    next(folder.glob("model-00002-*")).unlink()


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def classifier(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    save_file(state | {"score.weight": torch.zeros(2, 33)}, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_json, r"config.json cannot be read \(JSONDecodeError: "),
        (list_config, r"config.json has no names and values"),
        (other_model, r"config.json: model_type=bert: gptlab has no such model; it reads gpt2"),
        (other_activation, r"config.json: this gpt2 is none of .*scale_attn_by_inverse_layer_idx.*; activation silu"),
        (other_size, r"weights that do not fit .* \(12\): transformer.h.2.attn.c_attn.bias is missing, .*, \.\.\.$"),
        (fewer_tokens, r"transformer.wte.weight is \[101, 33\] and must be \[97, 33\]"),
        (no_weights, r"there are no weights \(no model.safetensors or pytorch_model.bin, whole or in shards\)"),
        (truncated, r"model.safetensors is broken or no safetensors file \(.*\); is the download complete\?"),
        (pointer, r"model.safetensors is broken or no safetensors file"),
        (truncated_bin, r"pytorch_model.bin is broken or no checkpoint: torch.load says \w+Error"),
        (other_bin, r"pytorch_model.bin holds something else than weights by name"),
        (missing_shard, r"index.json names model-00002-of-\d+.safetensors, which is not there; is the download"),
        (no_tokenizer, r"has no tokenizer.json, nor vocab.json and merges.txt"),
        (
            classifier,
            r"weights that do not fit the model's config \(1\): transformer.score.weight|score.weight is u",
        ),
    ],
)
def test_a_damaged_folder_is_named_with_the_reason(folder: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(folder)
    with pytest.raises(UserError, match=message) as refused:
        huggingface.open_folder(folder, NOWHERE)
    assert str(refused.value).count(str(folder)) == 1


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(folder: Path) -> None:
    for name, content in huggingface_tokenizer.tokenizer_files(ByteTokenizer(), T).items():
        (folder / name).write_text(content, "utf-8")
    with pytest.raises(UserError, match=r"gpt2: the tokenizer has 256 tokens and the model 101: they do not belong"):
        huggingface.open_folder(folder, NOWHERE)


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_weights_is_not_executed(folder: Path, tmp_path: Path, zipped: bool) -> None:
    as_bin(folder)
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    bomb = state | {"bomb": Bomb(tmp_path / "struck")}
    torch.save(bomb, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        UserError,
        match=r"pytorch_model.bin is (broken or )?no checkpoint",
    ):
        huggingface.open_folder(folder, NOWHERE)
    assert not (tmp_path / "struck").exists()


def export(model: GPT, file: Path, /, **changes: Any) -> Path:
    """A file as `--format safetensors` writes it."""
    about = {"model": models.to_dict(model.config), "tokenizer": CharTokenizer(CHARS).to_dict()}
    about |= {"step": 7, "metrics": {"val/loss": 1.5}} | changes
    state = {name: weight.contiguous() for name, weight in parameters(model).items()}
    save_file(state, file, metadata={"format": "pt", "gptlab": json.dumps(about)})
    return file


@pytest.mark.parametrize("tied", [True, False])
def test_an_export_of_ours_comes_back(tmp_path: Path, tied: bool) -> None:
    ours = gpt(tied=tied, pos="alibi", head_bias=True)
    model, tokenizer, info = safetensors_file.open_export(export(ours, tmp_path / "gpt.safetensors"))
    assert model.config == ours.config
    assert_same(model, ours)
    assert tokenizer.decode(tokenizer.encode(CHARS[7:11]).tolist()) == CHARS[7:11]
    assert (info.step, info.metrics, info.origin) == (7, {"val/loss": 1.5}, "gptlab export")


def test_an_export_with_another_head_keeps_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ours = gpt(tied=False)
    about = models.to_dict(gpt().config)
    model, _, _ = safetensors_file.open_export(export(ours, tmp_path / "gpt.safetensors", model=about))
    assert_same(model, ours)
    assert "the head is not the embedding" in caplog.text


def test_a_safetensors_file_that_is_no_export_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model.safetensors has weights only: .*give the folder, with config.json"):
        safetensors_file.open_export(folder / "model.safetensors")
    save_file({"wte.weight": torch.zeros(7)}, tmp_path / "x.safetensors", metadata={"gptlab": "{"})
    with pytest.raises(UserError, match=r"x.safetensors: its header is damaged \(Expecting"):
        safetensors_file.open_export(tmp_path / "x.safetensors")
    save_file({"wte.weight": torch.zeros(7)}, tmp_path / "x.safetensors", metadata={"gptlab": "{}"})
    with pytest.raises(UserError, match=r"x.safetensors does not fit together: KeyError"):
        safetensors_file.open_export(tmp_path / "x.safetensors")
    other = export(gpt(), tmp_path / "x.safetensors", model=models.to_dict(gpt(n_embd=36).config))
    with pytest.raises(
        UserError, match=r"x.safetensors does not fit together: weights that do not fit .* \(28\).*is \[99\]"
    ):
        safetensors_file.open_export(other)


def nanogpt(model: GPT, file: Path, prefix: str = "", /, **changes: Any) -> Path:
    """Write a checkpoint as nanoGPT does: its names and buffers, and the entries beside the weights."""
    c = model.config
    weights = {f"{prefix}transformer.{name}": weight for name, weight in parameters(model).items()}
    weights[f"{prefix}lm_head.weight"] = model.wte.weight.detach()
    for i in range(c.n_layer):
        weights[f"{prefix}transformer.h.{i}.attn.bias"] = torch.ones(T, T).tril()[None, None]
    args = {"n_layer": c.n_layer, "n_head": c.n_head, "n_embd": c.n_embd, "block_size": c.block_size, "bias": c.bias}
    args |= {"vocab_size": c.vocab_size, "dropout": 0.2}
    content = {"model": weights, "optimizer": {"state": {}, "param_groups": []}, "model_args": args, "iter_num": 1250}
    content |= {"best_val_loss": torch.tensor(1.4697), "config": {"dataset": "shakespeare_char", "bias": c.bias}}
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content | changes, file)
    return file


def meta(file: Path, characters: Any = CHARS) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    itos = dict(enumerate(characters))
    content = {"vocab_size": len(itos), "itos": itos, "stoi": {c: i for i, c in itos.items()}}
    file.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize("place", ["out/meta.pkl", "data/shakespeare_char/meta.pkl"])
@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module.", "_orig_mod.module.", "module._orig_mod.", "model."])
@pytest.mark.parametrize("bias", [True, False])
def test_a_checkpoint_of_nanogpt_is_read(tmp_path: Path, place: str, prefix: str, bias: bool) -> None:
    ours = gpt(bias=bias, mlp="gelu_exact")
    meta(tmp_path / place)
    file = nanogpt(ours, tmp_path / "out" / "ckpt.pt", prefix)
    model, tokenizer, info = nanogpt_format.open_checkpoint(file, NOWHERE)
    assert_same(model, ours)
    assert isinstance(model.config, GPTConfig)
    assert (model.config.dropout, model.config.bias) == (0.2, bias)
    assert tokenizer.encode(CHARS[5:8]).tolist() == [5, 6, 7]
    assert (info.path, info.step, info.metrics, info.origin) == (file, 1250, {}, "nanoGPT")


def test_nanogpts_head_is_what_the_file_holds(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    meta(tmp_path / "meta.pkl")
    ours = gpt(mlp="gelu_exact", tied=False)
    names = {f"module.transformer.{name}": weight for name, weight in parameters(ours).items()}
    names["module.lm_head.weight"] = names.pop("module.transformer.lm_head.weight")
    model, _, _ = nanogpt_format.open_checkpoint(nanogpt(ours, tmp_path / "two.pt", model=names), NOWHERE)
    assert_same(model, ours)
    assert not model.config.tied  # type: ignore[union-attr]
    assert "the head is not the embedding, though the config says so" in caplog.text
    ours = gpt(mlp="gelu_exact")
    names = {f"transformer.{name}": weight for name, weight in parameters(ours).items()}
    names["lm_head.weight"] = names.pop("transformer.wte.weight")
    assert_same(nanogpt_format.open_checkpoint(nanogpt(ours, tmp_path / "one.pt", model=names), NOWHERE)[0], ours)


def test_nanogpts_first_checkpoints_have_biases_and_gpt2s_gelu(tmp_path: Path) -> None:
    """Before 2023-01-27 model_args had no bias and no vocab_size, and there was new_gelu alone."""
    meta(tmp_path / "meta.pkl")
    ours = gpt(mlp="gelu", dropout=0.0)
    args = {"n_layer": 2, "n_head": 3, "n_embd": 33, "block_size": T}
    model, _, _ = nanogpt_format.open_checkpoint(nanogpt(ours, tmp_path / "ckpt.pt", model_args=args), NOWHERE)
    assert_same(model, ours)
    assert model.config == ours.config


def test_two_models_in_one_file_are_not_mixed(tmp_path: Path) -> None:
    meta(tmp_path / "meta.pkl")
    names = {f"{prefix}{name}": w for prefix in ("", "module.") for name, w in parameters(gpt()).items()}
    with pytest.raises(UserError, match=r"ckpt.pt.*it has wte.weight twice, once as module.wte.weight"):
        nanogpt_format.open_checkpoint(nanogpt(gpt(), tmp_path / "ckpt.pt", model=names), NOWHERE)


def test_an_unknown_prefix_is_named(tmp_path: Path) -> None:
    meta(tmp_path / "meta.pkl")
    with pytest.raises(UserError, match=r"weights that do not fit .* is missing, net.lm_head.weight is unexpected, .*"):
        nanogpt_format.open_checkpoint(nanogpt(gpt(), tmp_path / "ckpt.pt", "net."), NOWHERE)


def test_a_checkpoint_of_nanogpt_is_unpickled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, files, load = nanogpt(gpt(), tmp_path / "ckpt.pt"), [], torch.load
    meta(tmp_path / "meta.pkl")
    monkeypatch.setattr(torch, "load", lambda path, **options: files.append(path) or load(path, **options))
    assert open_model.load_model(file)[2].origin == "nanoGPT"
    assert files == [file]


def test_the_padded_rows_of_nanogpt_are_cut_off_and_so_never_drawn(data_dir: Path, tmp_path: Path) -> None:
    ours = gpt(vocab_size=50304, n_embd=9, mlp="gelu_exact")
    model, tokenizer, _ = nanogpt_format.open_checkpoint(nanogpt(ours, tmp_path / "ckpt.pt"), data_dir)
    assert model.config.vocab_size == tokenizer.vocab_size == 50257
    assert tokenizer.decode([6109, 3626]) == "Every effort"
    assert_same(model, ours, tokens=50257)


def test_nanogpt_without_its_characters_says_where_to_put_them(tmp_path: Path) -> None:
    file = nanogpt(gpt(), tmp_path / "out" / "ckpt.pt")
    message = (
        rf"ckpt.pt has 101 tokens, and their meta.pkl is neither beside it nor at {tmp_path}/data/shakespeare_char"
    )
    with pytest.raises(UserError, match=message):
        nanogpt_format.open_checkpoint(file, NOWHERE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_args": {"n_layer": 2}}, r"is a damaged checkpoint of nanoGPT: KeyError: 'block_size'"),
        ({"model_args": None}, r"is a damaged checkpoint of nanoGPT: TypeError"),
        ({"model": {}}, r"weights that do not fit .* \(28\): h.0.attn.c_attn.bias is missing"),
        ({"model": {"transformer.wte.weight": torch.zeros(7, 5)}}, r"wte.weight is \[7, 5\]"),
    ],
)
def test_a_damaged_checkpoint_of_nanogpt_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    meta(tmp_path / "meta.pkl")
    file = nanogpt(gpt(), tmp_path / "ckpt.pt", **changes)
    with pytest.raises(UserError, match=message) as refused:
        nanogpt_format.open_checkpoint(file, NOWHERE)
    assert str(file) in str(refused.value)


@pytest.mark.parametrize("value", [np.float64(1.5), Path("data")])
def test_a_nanogpt_with_values_of_other_libraries_says_how_to_save_it(tmp_path: Path, value: Any) -> None:
    torch.save({"model_args": {}, "model": {}, "best_val_loss": value}, tmp_path / "ckpt.pt")
    with pytest.raises(
        UserError, match=r"alone: it would call (numpy|pathlib)\S* \w+. If .* save it without that: float"
    ):
        open_model.load_model(tmp_path / "ckpt.pt")


def test_code_in_a_checkpoint_of_nanogpt_is_not_executed(tmp_path: Path) -> None:
    file = nanogpt(gpt(), tmp_path / "ckpt.pt", config=Bomb(tmp_path / "struck"))
    with pytest.raises(UserError, match=r"ckpt.pt is (broken or )?no checkpoint"):
        nanogpt_format.open_checkpoint(file, NOWHERE)
    assert not (tmp_path / "struck").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda path: pickle.dumps({"itos": Bomb(path)}), r"it would do more than read: STACK_GLOBAL"),
        (lambda path: pickle.dumps({"itos": np.zeros(3)}), r"it would do more than read: STACK_GLOBAL"),
        (lambda path: pickle.dumps({"stoi": {}}), r"KeyError: 'itos'"),
        (lambda path: pickle.dumps({"itos": {0: "b", 1: "a"}}), r"UserError: .*in code point order"),
        (lambda path: b"", r"pickle exhausted"),
        (lambda path: pickle.dumps({"itos": {0: "a"}})[:-3], r"is no meta.pkl of nanoGPT's characters"),
    ],
)
def test_a_meta_pkl_that_is_more_or_less_than_characters_is_refused_and_not_executed(
    tmp_path: Path, content: Callable[[Path], bytes], message: str
) -> None:
    file, struck = nanogpt(gpt(), tmp_path / "ckpt.pt"), tmp_path / "struck"
    (tmp_path / "meta.pkl").write_bytes(content(struck))
    with pytest.raises(UserError, match=message) as refused:
        nanogpt_format.open_checkpoint(file, NOWHERE)
    assert "meta.pkl is no meta.pkl of nanoGPT's characters" in str(refused.value)
    assert not struck.exists()


def variables(model: GPT) -> dict[str, np.ndarray]:
    """A model's weights under OpenAI's names, matrices as convolutions of width 1."""
    result = {}
    for name, weight in huggingface_names.weights_to_hf(parameters(model), model.config).items():
        *module, kind = name.removeprefix("transformer.").replace("h.", "h", 1).split(".")
        if module[-1] in ("wte", "wpe"):
            result[f"model/{module[0]}"] = weight.numpy()
        elif kind == "bias" or module[-1].startswith("ln"):
            result["/".join(["model", *module, "b" if kind == "bias" else "g"])] = weight.numpy()
        else:
            result["/".join(["model", *module, "w"])] = weight[None].numpy()
    return result


def hparams(model: GPT, folder: Path, **changes: Any) -> None:
    c = model.config
    sizes = {"n_vocab": c.vocab_size, "n_ctx": c.block_size, "n_embd": c.n_embd, "n_head": c.n_head}
    (folder / "hparams.json").write_text(json.dumps(sizes | {"n_layer": c.n_layer} | changes))
    for name, content in huggingface_tokenizer.tokenizer_files(CharTokenizer(CHARS), T).items():
        (folder / name).write_text(content, "utf-8")


@pytest.fixture
def tensorflow(monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """A stand-in for TensorFlow that reads these variables."""
    values: dict[str, np.ndarray] = {}

    class Reader:
        def __init__(self, folder: str) -> None:
            if not values:
                raise ValueError(f"Couldn't find 'checkpoint' file or checkpoints in given directory {folder}")

        def get_variable_to_shape_map(self) -> dict[str, list[int]]:
            return {name: list(value.shape) for name, value in values.items()}

        def get_tensor(self, name: str) -> np.ndarray:
            return values[name]

    train = types.SimpleNamespace(load_checkpoint=Reader)
    monkeypatch.setitem(sys.modules, "tensorflow", types.SimpleNamespace(train=train))
    return values


def test_openais_checkpoint_is_read(tensorflow: dict[str, np.ndarray], tmp_path: Path) -> None:
    ours = gpt()
    tensorflow |= variables(ours)
    assert tensorflow["model/h1/mlp/c_fc/w"].shape == (1, 33, 132)
    hparams(ours, tmp_path)
    model, tokenizer, info = openai_gpt2.open_folder(tmp_path, NOWHERE)
    assert_same(model, ours)
    assert tokenizer.vocab_size == V
    assert (info.path, info.step, info.origin) == (tmp_path, None, "OpenAI TensorFlow")


def test_openais_checkpoint_that_does_not_fit_is_named(tensorflow: dict[str, np.ndarray], tmp_path: Path) -> None:
    hparams(gpt(), tmp_path)
    with pytest.raises(UserError, match=r"TensorFlow cannot read the checkpoint; are checkpoint and model.ckpt.\* all"):
        openai_gpt2.open_folder(tmp_path, NOWHERE)
    tensorflow |= variables(gpt(n_layer=1))
    with pytest.raises(
        UserError, match=r"weights that do not fit .* \(12\): transformer.h.1.attn.c_attn.bias is missing"
    ):
        openai_gpt2.open_folder(tmp_path, NOWHERE)
    hparams(gpt(), tmp_path, n_ctx=None)
    with pytest.raises(UserError, match=r"hparams.json: this gpt2 is none of gptlab's models: n_positions is missing"):
        openai_gpt2.open_folder(tmp_path, NOWHERE)


def test_openais_checkpoint_without_tensorflow_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    hparams(gpt(), tmp_path)
    with pytest.raises(
        UserError, match=r"TensorFlow is not installed: pip install 'gptlab\[tensorflow\]'; or take the"
    ):
        openai_gpt2.open_folder(tmp_path, NOWHERE)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # TensorFlow's own
def test_tensorflow_itself_reads_what_it_has_written(tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow")
    ours = gpt()
    hparams(ours, tmp_path)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        for name, value in variables(ours).items():
            tf.compat.v1.get_variable(name, initializer=value)
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.train.Saver().save(session, str(tmp_path / "model.ckpt"))
    assert_same(openai_gpt2.open_folder(tmp_path, NOWHERE)[0], ours)


@pytest.mark.slow  # the same of small models: test_huggingface_names.py
def test_gpt2_of_124_million_goes_out_and_comes_back(data_dir: Path, tmp_path: Path) -> None:
    config = GPTConfig(50257)
    generator = torch.Generator().manual_seed(7)
    shapes = parameters(empty_model(config))
    state = {name: torch.empty(p.shape).uniform_(-0.05, 0.05, generator=generator) for name, p in shapes.items()}
    ours = fill(config, state)
    assert ours.num_parameters() == 124_439_808
    (tmp_path / "config.json").write_text(json.dumps(huggingface_config.config_to_hf(config)))
    save_file(
        huggingface_names.weights_to_hf(parameters(ours), config),
        tmp_path / "model.safetensors",
        metadata={"format": "pt"},
    )
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    idx = torch.randint(50257, (1, 17), generator=generator)
    with torch.no_grad():
        torch.testing.assert_close(ours(idx), theirs(idx).logits, atol=1e-4, rtol=1e-4)
        text = idx
        for _ in range(5):
            text = torch.cat((text, ours(text)[:, -1:].argmax(-1)), dim=1)
    assert torch.equal(text, theirs.generate(idx, max_new_tokens=5, do_sample=False, pad_token_id=0))
    back, _, _ = huggingface.open_folder(tmp_path, data_dir)
    assert all(torch.equal(a, b) for a, b in zip(back.parameters(), ours.parameters(), strict=True))
