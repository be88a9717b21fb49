"""MODEL may be a run, a file, a folder or a name; each is recognised, and anything else is refused."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from gptlab import models
from gptlab.formats import (
    checkpoint,
    description,
    huggingface_config,
    huggingface_names,
    huggingface_tokenizer,
    open_model,
)
from gptlab.models import GPTConfig
from gptlab.models.weights import parameters
from gptlab.system.errors import UserError

SHA = "607a30d783dfa663caf39e06633721c8d4cfcd7e"


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """The small trained run as a Hugging Face folder."""
    return hugging_face(trained, tmp_path / "exported")


def hugging_face(trained: Path, folder: Path) -> Path:
    model, tokenizer, _ = checkpoint.load_checkpoint(trained)
    assert isinstance(model.config, GPTConfig)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(huggingface_config.config_to_hf(model.config)))
    save_file(
        huggingface_names.weights_to_hf(parameters(model), model.config),
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    for name, content in huggingface_tokenizer.tokenizer_files(tokenizer, 17).items():
        (folder / name).write_text(content, "utf-8")
    return folder


def safetensors(trained: Path, file: Path) -> Path:
    model, tokenizer, info = checkpoint.load_checkpoint(trained)
    about = {"model": models.to_dict(model.config), "tokenizer": tokenizer.to_dict(), "step": info.step}
    file.parent.mkdir(exist_ok=True)
    save_file(parameters(model), file, metadata={"gptlab": json.dumps(about | {"metrics": info.metrics})})
    return file


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty Hugging Face cache, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that torch.load was called for."""
    files: list[Path] = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda file, **options: files.append(Path(file)) or load(file, **options))
    return files


def test_a_run_is_opened_without_the_libraries_of_other_formats(trained: Path, shell: Any) -> None:
    code = (
        "import sys; from gptlab.formats import open_model, writing, onnx; open_model.load_model(sys.argv[1])\n"
        "print(*sorted(sys.modules))"
    )
    out, err = shell("-c", code, str(trained)).communicate()
    imported = set(out.split())
    assert "torch" in imported, err
    assert not imported & {"tokenizers", "torch.onnx", "onnx", "transformers", "huggingface_hub"}


def test_a_checkpoint_is_unpickled_once(trained: Path, tmp_path: Path, loads: list[Path]) -> None:
    best = trained / "checkpoints" / "best.ckpt"
    for path in (trained, best):
        loads.clear()
        open_model.load_model(path)
        assert loads == [best]
    damaged = tmp_path / "damaged.ckpt"
    content = bytearray(best.read_bytes())
    content[-1] ^= 1  # within the checksum
    damaged.write_bytes(content)
    with pytest.raises(UserError, match="do not have the checksum"):
        open_model.load_model(damaged)


def assert_is(loaded: tuple[Any, Any, description.ModelInfo], trained: Path, origin: str) -> None:
    """Check that model and tokenizer are those of the trained run, ready to use."""
    model, tokenizer, info = loaded
    reference, characters, _ = checkpoint.load_checkpoint(trained)
    assert info.origin == origin
    assert not model.training
    idx = torch.tensor([tokenizer.encode("the old cat").tolist()])
    assert idx[0].tolist() == characters.encode("the old cat").tolist()
    torch.testing.assert_close(model(idx), reference(idx), atol=1e-5, rtol=1e-5)


def test_a_run_and_its_checkpoints_are_loaded(trained: Path) -> None:
    for path in (trained, trained / "checkpoints" / "last.ckpt", str(trained)):
        assert_is(open_model.load_model(path), trained, "gptlab run")
    assert open_model.load_model(trained)[2].path == trained / "checkpoints" / "best.ckpt"


def test_a_path_may_begin_at_home(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(trained.parent))
    assert_is(open_model.load_model(f"~/{trained.name}"), trained, "gptlab run")
    with pytest.raises(UserError, match=r"~nobody-here/run: no such run directory"):
        open_model.load_model("~nobody-here/run")


def test_a_hugging_face_folder_and_its_weights_are_loaded(trained: Path, folder: Path) -> None:
    for path in (folder, str(folder), folder / "model.safetensors"):
        assert_is(open_model.load_model(path), trained, "Hugging Face gpt2")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert_is(open_model.load_model(folder / "pytorch_model.bin"), trained, "Hugging Face gpt2")


@pytest.mark.parametrize("name", ["model.safetensors", "cats.safetensors"])
def test_an_export_is_loaded_and_so_is_its_folder(trained: Path, tmp_path: Path, name: str) -> None:
    file = safetensors(trained, tmp_path / "out" / name)
    assert_is(open_model.load_model(file), trained, "gptlab export")
    if name == "model.safetensors":
        assert_is(open_model.load_model(tmp_path / "out"), trained, "gptlab export")


def test_a_checkpoint_of_nanogpt_is_loaded(trained: Path, tmp_path: Path) -> None:
    model, tokenizer, _ = checkpoint.load_checkpoint(trained)
    args = {name: getattr(model.config, name) for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd")}
    weights = {f"transformer.{name}": weight for name, weight in parameters(model).items()}
    content = {"model": weights, "model_args": args | {"bias": model.config.bias, "dropout": 0.0}, "iter_num": 7}
    torch.save(content, tmp_path / "ckpt.pt")
    characters = {i: tokenizer.decode([i]) for i in range(tokenizer.vocab_size)}
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps({"itos": characters}))
    assert_is(open_model.load_model(tmp_path / "ckpt.pt"), trained, "nanoGPT")


def test_openais_folder_is_told_by_its_hparams(tmp_path: Path) -> None:
    (tmp_path / "hparams.json").write_text("{}")
    with pytest.raises(UserError, match=r"hparams.json: this gpt2 is none of gptlab's models: vocab_size is missing"):
        open_model.load_model(tmp_path)


@pytest.mark.parametrize(
    ("name", "repo"), [("gpt2", "openai-community/gpt2"), ("distilgpt2", "distilbert/distilgpt2"), ("me/cats",) * 2]
)
def test_a_name_is_found_in_the_cache_without_a_network(
    trained: Path, offline: Path, monkeypatch: pytest.MonkeyPatch, name: str, repo: str
) -> None:
    monkeypatch.chdir(offline.parent)
    place = offline / f"models--{repo.replace('/', '--')}"
    hugging_face(trained, place / "snapshots" / SHA)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(SHA)
    loaded = open_model.load_model(name)
    assert_is(loaded, trained, "Hugging Face gpt2")
    assert loaded[2].path == place / "snapshots" / SHA


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_of_a_repository_only_what_is_needed_is_downloaded(
    trained: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, weights: str
) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    for name in ("tf_model.h5", "onnx/model.safetensors", "onnx/config.json", "README.md", "merges.txt.old", "run.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    if weights == "pytorch_model.bin":
        (folder / "model.safetensors").unlink()

    def snapshot_download(repo: str, allow_patterns: list[str]) -> str:
        names = [str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()]
        for name in huggingface_hub.utils.filter_repo_objects(names, allow_patterns=allow_patterns):
            (tmp_path / "hub" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / name, tmp_path / "hub" / name)
        return str(tmp_path / "hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert_is(open_model.load_model("me/cats"), trained, "Hugging Face gpt2")
    fetched = {str(file.relative_to(tmp_path / "hub")) for file in (tmp_path / "hub").rglob("*")}
    assert fetched == {"config.json", "tokenizer.json", "tokenizer_config.json", weights}


def test_a_folder_of_that_name_comes_before_the_hub(
    trained: Path, folder: Path, offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    shutil.copytree(folder, "gpt2")
    assert_is(open_model.load_model("gpt2"), trained, "Hugging Face gpt2")


@pytest.mark.parametrize(("name", "repo"), [("gpt2", "openai-community/gpt2"), ("me/cats", "me/cats")])
def test_a_name_that_cannot_be_had_offline_says_the_ways_out(offline: Path, name: str, repo: str) -> None:
    message = (
        rf"^{name}: there is no such file or folder, and {repo} is not in Hugging Face's cache, nor can it be "
        rf"downloaded \(LocalEntryNotFoundError: .*\). Where there is a network, `hf download {repo} --local-dir "
        rf"FOLDER` fetches it: copy that folder here and give its path$"
    )
    with pytest.raises(UserError, match=message):
        open_model.load_model(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "gtp2",
            r"^gtp2: no such run directory or checkpoint file .*, and no known model .*; did you mean gpt2\?$",
        ),
        ("llama", r"no known model .*; there are distilgpt2, gpt2, gpt2-large, gpt2-medium, gpt2-xl$"),
        ("outputs/gpt10m/2026-01-01", r"no such run directory or checkpoint file; runs lie in outputs/<name>/<time>"),
        ("here/cats", r"here/cats: no such run directory or checkpoint file; runs lie in"),
        ("./cats", r"cats: no such run directory or checkpoint file; runs lie in"),
        ("", r"is not a run directory with a checkpoint"),
        ("here", r"here is not a run directory with a checkpoint"),
        ("to be or not to be " * 17, r"no such run directory or checkpoint file"),
        ("--org/-model", r"--org/-model: there is no such file or folder, and .*HFValidationError"),
    ],
)
def test_a_name_of_nothing_says_so(
    offline: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    with pytest.raises(UserError, match=message):
        open_model.load_model(name)


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(
        UserError, match=r"is an adapter, and does not name the model that it changes: .*merge_and_unload"
    ):
        open_model.load_model(tmp_path)


def test_a_file_of_another_kind_says_what_it_is_not(tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(7)}, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"x.pt is not a checkpoint of gptlab \(it has no 'gptlab' entry\)"):
        open_model.load_model(tmp_path / "x.pt")
    (tmp_path / "x.safetensors").write_text("To be, or not to be")
    with pytest.raises(UserError, match=r"x.safetensors is broken or no safetensors file"):
        open_model.load_model(tmp_path / "x.safetensors")


def test_vocabularies_are_looked_for_where_gptlab_data_says(
    trained: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given = []
    monkeypatch.setattr(
        open_model.huggingface, "open_folder", lambda path, raw_dir: (given.append(raw_dir), None, None)
    )
    monkeypatch.setenv("GPTLAB_DATA", str(tmp_path / "data"))
    open_model.load_model(folder)
    open_model.load_model(folder, raw_dir=tmp_path)
    assert given == [tmp_path / "data", tmp_path]


@pytest.mark.parametrize(
    ("name", "beside"),
    [("model.onnx", ""), ("model.onnx", "config.json"), ("onnx/model.onnx", "config.json")],
)
def test_onnx_is_refused_by_name(folder: Path, tmp_path: Path, name: str, beside: str) -> None:
    graph = tmp_path / "graph" / name
    graph.parent.mkdir(parents=True)
    graph.write_bytes(b"\x08\x0a")
    for file in folder.iterdir():
        if beside and file.name != "model.safetensors":
            shutil.copy(file, tmp_path / "graph")
    for path in (graph, tmp_path / "graph"):
        with pytest.raises(UserError, match="ONNX is written here, and not read: give the model"):
            open_model.load_model(path)
    if beside:
        shutil.copy(folder / "model.safetensors", tmp_path / "graph")
        open_model.load_model(tmp_path / "graph")
