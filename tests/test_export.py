"""`python -m gptlab.export`: exports for transformers, safetensors, ONNX and llama.cpp equal the model."""

from __future__ import annotations

import errno
import json
import re
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from torch import Tensor, nn

from gptlab import export, models
from gptlab.data.tokenizers import BPETokenizer, ByteTokenizer, CharTokenizer, Tokenizer, WordTokenizer
from gptlab.formats import checkpoint, gguf, model_card, onnx, open_model
from gptlab.models import BigramConfig, GPTConfig
from tests.conftest import ROOT
from tests.formats import llama2c_by_hand as by_hand
from tests.test_cli import assert_refused

T = 23
ENGLISH = (ROOT / "LICENSE").read_text()
PROMPT = "You may"
TOKENIZERS = {
    "char": lambda: CharTokenizer.fit([ENGLISH]),
    "char, ended": lambda: CharTokenizer.fit([ENGLISH], end_of_text=True),
    "byte": lambda: ByteTokenizer(),
    "byte, ended": lambda: ByteTokenizer(end_of_text=True),
    "word": lambda: WordTokenizer.fit([ENGLISH], 211),
    "bpe": lambda: BPETokenizer.fit([ENGLISH], 307),
}
LLAMA = {"norm": "rmsnorm", "pos": "rope", "mlp": "swiglu", "bias": False}
SHAPES: dict[str, dict[str, Any]] = {
    "GPT2LMHeadModel": {},
    "GPT2LMHeadModel, no bias, untied": {"bias": False, "tied": False, "mlp": "relu", "n_inner": 37},
    "LlamaForCausalLM": LLAMA | {"tied": False},
    "LlamaForCausalLM, one key head, tied": LLAMA | {"n_kv_head": 1, "rope_base": 97.0, "norm_eps": 1e-3},
    "LlamaForCausalLM, yarn": LLAMA | {"rope_scaling": "yarn", "rope_factor": 4.0, "rope_original_size": 7},
    "GPTNeoXForCausalLM": {
        "pos": "rope",
        "rope_fraction": 0.4,
        "parallel": True,
        "parallel_norms": True,
        "tied": False,
    },
    "NanoChatForCausalLM": LLAMA
    | {"norm_weight": False, "embed_norm": True, "qk_norm": True, "mlp": "relu2", "tied": False, "logit_softcap": 15.0},
}


def a_run(folder: Path, tokenizer: Tokenizer, **fields: Any) -> nn.Module:
    """A run directory as training leaves it, with a model whose logits and greedy tokens vary."""
    torch.manual_seed(7)
    sizes = {"block_size": T, "n_layer": 2, "n_head": 3, "n_embd": 30}
    return as_run(folder, tokenizer, GPTConfig(tokenizer.vocab_size, **(sizes | fields)))


def as_run(folder: Path, tokenizer: Tokenizer, config: models.ModelConfig) -> nn.Module:
    model = models.build(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    data = {"name": "text", "path": "/home/me/novel.txt", "cache_dir": "/home/me/.cache"}
    run = {"name": "tiny", "seed": 1337, "init_from": "/home/me/gpt2", "resume": "/home/me/run", "data": data}
    about = checkpoint.describe(model, tokenizer, run, "ab12", 29, {"val/loss": 2.25, "val/bpb": 3.5})
    weights = {f"model.{name}": value for name, value in model.state_dict().items()}
    checkpoint.save_checkpoint({"gptlab": about, "state_dict": weights}, folder / "checkpoints" / "best.ckpt")
    summary = {"train/loss": 2.125, "tokens": 4321, "device": "cpu", "data": {"name": "text", "sha256": "ab12"}}
    (folder / "summary.json").write_text(json.dumps(summary))
    return model


def continued(model: nn.Module, tokenizer: Tokenizer, prompt: str, new: int) -> str:
    """The greedy text, without a cache."""
    ids = torch.from_numpy(tokenizer.encode(prompt))[None]
    for _ in range(new):
        ids = torch.cat((ids, model(ids)[:, -1].argmax(-1, keepdim=True)), dim=1)
        if ids[0, -1] == tokenizer.end_of_text:
            break
    return tokenizer.decode(ids[0].tolist())


def some_ids(model: nn.Module) -> Tensor:
    return torch.randint(model.config.vocab_size, (5, T), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("shape", "tokenizer"),
    [(shape, "char, ended") for shape in SHAPES] + [("GPT2LMHeadModel", name) for name in TOKENIZERS],
)
@torch.no_grad()
def test_transformers_has_our_logits_ids_and_greedy_text(
    command: Any, tmp_path: Path, shape: str, tokenizer: str
) -> None:
    transformers = pytest.importorskip("transformers")
    ours_tokenizer = TOKENIZERS[tokenizer]()
    ours = a_run(tmp_path / "run", ours_tokenizer, **SHAPES[shape])
    result = command("export", "run", "there/out")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"there/out: {shape.partition(',')[0]} (README.md ")
    assert result.stdout.count("\n") == 1

    folder = tmp_path / "there" / "out"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert type(theirs).__name__ == shape.partition(",")[0]
    assert json.loads((folder / "config.json").read_text()).get("n_ctx", T) == T  # which llama.cpp's converter reads
    assert hasattr(theirs.config, "n_ctx") == shape.startswith("GPT2")
    idx = some_ids(ours)
    assert ours(idx).std() > 0.5  # or the comparison would show little
    logits = theirs(idx).logits[..., : ours_tokenizer.vocab_size]  # there may be tokens after ours, which are unused
    torch.testing.assert_close(logits, ours(idx), atol=1e-5, rtol=1e-5)

    their_tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    inputs = their_tokenizer(PROMPT, return_tensors="pt")
    assert inputs["input_ids"].tolist() == [ours_tokenizer.encode(PROMPT).tolist()]
    text = their_tokenizer.decode(theirs.generate(**inputs, max_new_tokens=13, do_sample=False)[0])
    assert text == continued(ours, ours_tokenizer, PROMPT, 13)
    assert len(text) > len(PROMPT)

    model, again, _ = open_model.load_model(folder)
    torch.testing.assert_close(model(idx), ours(idx), atol=1e-5, rtol=1e-5)
    assert again.to_dict() == ours_tokenizer.to_dict()


def test_special_tokens_are_the_tokenizers_own(command: Any, tmp_path: Path) -> None:
    """The ids must not be the defaults of the configs, which are those of GPT-2's or Llama's own vocabulary."""
    sizes = {name: TOKENIZERS[name]().vocab_size for name in ("char", "char, ended")}
    ends = {"char": (sizes["char"] + 1, sizes["char"]), "char, ended": (sizes["char"], sizes["char"] + 1)}
    ends |= {"byte": (0xFE, 0xFF), "byte, ended": (256, 0xFF), "bpe": (306, 187)}
    for name, (end, pad) in ends.items():
        a_run(tmp_path / name, TOKENIZERS[name]())
        command("export", name, f"{name} out")
        for file in ("config.json", "generation_config.json"):
            content = json.loads((tmp_path / f"{name} out" / file).read_text())
            assert [content[f"{kind}_token_id"] for kind in ("bos", "eos", "pad")] == [end, end, pad]


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("shape", ["GPT2LMHeadModel", "LlamaForCausalLM"])
@torch.no_grad()
def test_other_tools_can_pad_and_end(command: Any, tmp_path: Path, shape: str, tokenizer: str) -> None:
    transformers = pytest.importorskip("transformers")
    ours_tokenizer = TOKENIZERS[tokenizer]()
    ours = a_run(tmp_path / "run", ours_tokenizer, **SHAPES[shape])
    command("export", "run", "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out", padding_side="left")
    assert model.config.vocab_size == len(theirs)

    idx = some_ids(ours)
    shift = model(idx).logits.logsumexp(-1) - ours(idx).logsumexp(-1)  # in nats, what the unused tokens take away
    assert shift.mean() < 2 / model.config.vocab_size  # as rows of zeros take at most; these weights are random
    short, long = "You", "You may not"
    batch = theirs([short, long], padding=True, return_tensors="pt")
    assert batch["input_ids"][0, 0] == theirs.pad_token_id
    drawn = model.generate(**batch, max_new_tokens=5, do_sample=False)
    alone = model.generate(**theirs(short, return_tensors="pt"), max_new_tokens=5, do_sample=False)
    assert drawn[0].tolist()[-alone.shape[1] :] == alone[0].tolist()

    collate = transformers.DataCollatorForLanguageModeling(theirs, mlm=False)
    texts = theirs([short + theirs.eos_token, long + theirs.eos_token])["input_ids"]
    labels = collate([{"input_ids": ids} for ids in texts])["labels"]
    assert [(row == theirs.eos_token_id).sum() for row in labels] == [1, 1]
    assert (labels == -100).sum() == abs(len(texts[0]) - len(texts[1]))


@torch.no_grad()
def test_safetensors_have_gpt2s_names_and_all_that_we_need(command: Any, tmp_path: Path) -> None:
    tokenizer = TOKENIZERS["bpe"]()
    ours = a_run(tmp_path / "run", tokenizer, pos="alibi", qk_norm=True)  # no one else's shape
    result = command("export", "run", "out", "--format", "safetensors")
    assert (result.returncode, result.stderr) == (0, "")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"README.md", "model.safetensors"}
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        names = set(file.keys())
        assert file.metadata()["format"] == "pt"
        torch.testing.assert_close(file.get_tensor("h.1.attn.c_attn.weight"), ours.h[1].attn.c_attn.weight)
    assert {"wte.weight", "h.0.mlp.c_fc.bias", "ln_f.weight"} <= names
    assert "lm_head.weight" not in names  # tied: the embedding, once
    for path in ("out", "out/model.safetensors"):
        model, again, info = open_model.load_model(tmp_path / path)
        assert torch.equal(model(some_ids(ours)), ours(some_ids(ours)))
        assert again.to_dict() == tokenizer.to_dict()
        assert (info.step, info.metrics["val/loss"], info.config["seed"]) == (29, 2.25, 1337)
    command("export", "out", "twice", "--format", "safetensors")
    first, second = (tmp_path / folder / "model.safetensors" for folder in ("out", "twice"))
    assert first.stat().st_mode & 0o777 == (tmp_path / "out" / "README.md").stat().st_mode & 0o777
    assert open_model.load_model(second)[2].metrics == open_model.load_model(first)[2].metrics


@pytest.mark.parametrize(
    "fields",
    [
        # test_onnx_cached.py has a llama and a window, too
        pytest.param(
            LLAMA | {"n_kv_head": 1, "window": 7, "n_layer": 1}, marks=pytest.mark.slow, id="llama in a window"
        ),
        pytest.param({"dropout": 0.1, "n_layer": 1}, id="gpt2"),
    ],
)
@torch.no_grad()
def test_onnx_has_our_logits_for_any_number_of_rows_and_tokens(
    command: Any, tmp_path: Path, fields: dict[str, Any]
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    ours = a_run(tmp_path / "run", TOKENIZERS["char"](), **fields)
    result = command("export", "run", "out", "--format", "onnx")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("out: ONNX, logits within ")
    assert result.stdout.count("\n") == 1
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    for rows, tokens in ((1, 1), (1, T), (7, 3), (2, T - 1)):
        idx = some_ids(ours).repeat(2, 1)[:rows, :tokens]
        (logits,) = session.run(["logits"], {"input_ids": idx.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), ours(idx), atol=1e-5, rtol=1e-5)
    assert (tmp_path / "out" / "tokenizer.json").is_file()


@torch.no_grad()
def test_llama2c_has_our_greedy_text(command: Any, tmp_path: Path) -> None:
    tokenizer = TOKENIZERS["byte, ended"]()
    ours = a_run(tmp_path / "run", tokenizer, **LLAMA)
    result = command("export", "run", "out", "--format", "llama2c")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("out: llama2.c, version 0, for run.c (README.md ")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"README.md", "model.bin", "tokenizer.bin"}
    assert './run out/model.bin -z out/tokenizer.bin -t 0.8 -i "To be"' in (tmp_path / "out" / "README.md").read_text()
    theirs, its_tokenizer = (
        by_hand.Model(tmp_path / "out" / "model.bin"),
        by_hand.Tokenizer(tmp_path / "out" / "tokenizer.bin"),
    )
    ids = its_tokenizer.encode(PROMPT)
    for _ in range(13):
        ids.append(int(theirs.logits(ids)[-1, [1, *range(3, 259)]].argmax()))
        ids[-1] = ids[-1] + 2 if ids[-1] else 1
    first = [tokenizer.end_of_text, *tokenizer.encode(f" {PROMPT}").tolist()]
    idx = torch.tensor([first])
    for _ in range(13):
        idx = torch.cat((idx, ours(idx)[:, -1].argmax(-1, keepdim=True)), dim=1)
    assert its_tokenizer.decode(ids[1:]).decode("utf-8", "replace") == tokenizer.decode(idx[0, 1:].tolist())[1:]
    assert command("generate", "out", PROMPT, "--max-new-tokens", "3", "--device", "cpu").returncode == 0
    a_run(tmp_path / "unlike", tokenizer)
    refused = command("export", "unlike", "other", "--format", "llama2c")
    assert_refused(refused, "no model of this shape; what parts it from Llama: model.norm=layernorm (not rmsnorm)")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("off", [0.5, float("nan")])
def test_onnx_that_computes_something_else_is_not_written(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, off: float
) -> None:
    ours = a_run(tmp_path / "run", TOKENIZERS["char"]())

    class Session:
        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def run(self, _: Any, inputs: dict[str, Any]) -> list[Any]:
            logits = ours(torch.from_numpy(inputs["input_ids"])).detach()
            logits[-1, -1, -1] += off if logits.shape[1] > 1 else 0.0
            return [logits.numpy()]

    monkeypatch.setattr(onnx, "require_onnx", lambda: None)
    monkeypatch.setattr(onnx, "export_graph", lambda model, path: path.write_bytes(b""))
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(InferenceSession=Session))
    assert_refused(command("export", "run", "out", "--format", "onnx"), "logits differ from ours by", "than 1e-03")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_model_that_torch_cannot_write_is_one_message(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any, **__: Any) -> None:
        try:
            raise TypeError("no such operator")
        except TypeError as error:
            raise torch.onnx.errors.OnnxExporterError("pages of advice") from error

    monkeypatch.setattr(onnx, "require_onnx", lambda: None)
    monkeypatch.setattr(torch.onnx, "export", failing)
    a_run(tmp_path / "run", TOKENIZERS["char"]())
    words = ("cannot write this model as ONNX (no such operator); use --format safetensors",)
    assert_refused(command("export", "run", "out", "--format", "onnx"), *words)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_onnx_without_its_packages_names_the_extra(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for package in ("onnx", "onnxscript"):
        monkeypatch.setitem(sys.modules, package, sys)
    words = ("--format onnx needs onnxruntime: pip install 'gptlab[onnx]'",)
    assert_refused(command("export", "none", "out", "--format", "onnx"), *words)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            {"pos": "alibi", "qk_norm": True, "logit_softcap": 2.0},
            ["model.pos=alibi", "model.qk_norm=true", "model.logit_softcap=2.0"],
        ),
        ({"mlp": "geglu", "parallel": True}, ["model.mlp=geglu", "model.parallel=true"]),
        (None, ["transformers has no Bigram; use --format safetensors or --format onnx"]),
    ],
)
def test_an_architecture_that_transformers_lacks_is_refused_with_all_reasons(
    command: Any, tmp_path: Path, config: dict[str, Any] | None, words: list[str]
) -> None:
    tokenizer = TOKENIZERS["char"]()
    if config is None:
        as_run(tmp_path / "run", tokenizer, BigramConfig(tokenizer.vocab_size))
    else:
        a_run(tmp_path / "run", tokenizer, **config)
    assert_refused(command("export", "run", "new/out"), *words)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_folder_that_is_there_is_left_alone_unless_it_is_empty(command: Any, tmp_path: Path) -> None:
    a_run(tmp_path / "run", TOKENIZERS["byte"]())
    assert_refused(command("export", "run", "run"), "run is there already; choose another name, or remove it first")
    (tmp_path / "file").write_text("mine")
    assert_refused(command("export", "run", "file"), "file is there already")
    assert_refused(command("export", "run", "file/below"), "file", "choose another")
    assert_refused(command("export", "run", "x" * 300), "choose another")
    assert_refused(command("export", "none", "out"), "none: no such run directory")
    assert (tmp_path / "file").read_text() == "mine"
    assert not (tmp_path / "out").exists()
    (tmp_path / "empty").mkdir()
    assert command("export", "run", "empty", "--format", "safetensors").returncode == 0
    assert (tmp_path / "empty" / "README.md").is_file()


@pytest.mark.parametrize(
    ("stop", "code", "words"),
    [
        (KeyboardInterrupt(), 130, ""),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            1,
            "free some space there, or choose another folder .*DIR for exports",
        ),
    ],
)
def test_what_is_cut_off_leaves_nothing(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: BaseException, code: int, words: str
) -> None:
    def stopped(*_: Any) -> str:
        (folder,) = (tmp_path / "new").iterdir()
        assert (folder / "model.safetensors").is_file()
        raise stop

    a_run(tmp_path / "run", TOKENIZERS["byte"]())
    monkeypatch.setattr(model_card, "model_card", stopped)
    result = command("export", "run", "new/out")
    assert result.returncode == code
    assert re.search(words, result.stderr)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_full_disk_while_weights_are_written_is_one_message(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import safetensors.torch

    def full(*_: Any, **__: Any) -> None:
        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    a_run(tmp_path / "run", TOKENIZERS["byte"]())
    monkeypatch.setattr(safetensors.torch, "save_file", full)
    assert_refused(command("export", "run", "out"), "cannot write in", "No space left on device")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_an_unknown_format_is_refused_by_name(command: Any) -> None:
    result = command("export", "run", "out", "--format", "ggml")
    assert result.returncode == 2
    assert "invalid choice: 'ggml'" in result.stderr


@torch.no_grad()
def test_gguf_is_one_file_and_says_how_exact_it_is(
    command: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("gguf")
    ours = a_run(tmp_path / "run", TOKENIZERS["char"](), **LLAMA | {"n_embd": 96})
    for quant, kind, off in ((None, "f32", 1e-5), ("f16", "f16", 0.01), ("q8_0", "q8_0", 0.2)):
        folder = tmp_path / f"out {quant}"
        result = command("export", "run", folder.name, "--format", "gguf", *(["--quant", quant] if quant else []))
        assert result.returncode == 0, result.stderr
        assert result.stdout.startswith(f"{folder.name}: GGUF, llama in {kind} (README.md ")
        assert {path.name for path in folder.iterdir()} == {"README.md", "model.gguf"}
        model, tokenizer, _ = open_model.load_model(folder)
        assert tokenizer.to_dict() == TOKENIZERS["char"]().to_dict()
        assert (model(some_ids(ours)) - ours(some_ids(ours))).std() < off * ours(some_ids(ours)).std()
    assert not caplog.text
    a_run(tmp_path / "table", TOKENIZERS["char"]())
    command("export", "table", "out", "--format", "gguf")
    assert f"longer than the model's {T} positions" in caplog.text


def test_quant_belongs_to_gguf(command: Any) -> None:
    assert (*gguf.QUANTS,) == export.QUANTS
    words = ("--quant f16: --format onnx has none; add --format gguf, or leave it out",)
    assert_refused(command("export", "none", "out", "--format", "onnx", "--quant", "f16"), *words)


def test_gguf_without_its_package_names_the_extra(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    words = ("--format gguf needs gguf: pip install 'gptlab[gguf]'",)
    assert_refused(command("export", "none", "out", "--format", "gguf"), *words)


@pytest.mark.parametrize(("form", "library"), [("hf", "transformers"), ("safetensors", "gptlab"), ("gguf", "gguf")])
def test_a_card_says_what_the_model_is_and_how_it_came_about(
    command: Any, tmp_path: Path, form: str, library: str
) -> None:
    ours = a_run(tmp_path / "run", TOKENIZERS["char"]())
    command("export", "run", "my model", "--format", form)
    text = (tmp_path / "my model" / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    front = yaml.safe_load(front)
    assert (front["library_name"], front["pipeline_tag"]) == (library, "text-generation")
    assert body.startswith("\n# my model\n")
    assert f"{ours.num_parameters():,} parameters" in body
    for row in (
        "| data | text (novel.txt) |",
        "| sha256 of the text | ab12 |",
        f"| tokenizer | char, {len(set(ENGLISH))} ids |",
        "| step | 29 |",
        "| begun from | gpt2 |",
        "| seed | 1337 |",
        "| val/loss | 2.25 |",
        "| train/loss, the run's last | 2.125 |",
        "| n_embd | 30 |",
        "| bias | yes |",
        f"| torch | {metadata.version('torch')} |",
    ):
        assert f"\n{row}\n" in body
    assert f"whole split, windows of {T}" in body
    assert "/home/me" not in text  # a machine's places are no one's business
    assert "gptlab.generate 'my model" in body
    config = yaml.safe_load(body.split("```yaml\n")[1].split("```")[0])
    assert (config["name"], config["data"]) == ("tiny", {"name": "text"})


def test_the_cards_python_runs(command: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    a_run(tmp_path / "run", CharTokenizer.fit([ENGLISH, "To be"]))
    command("export", "run", "out")
    code = (tmp_path / "out" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert "'" not in code  # ruff formats Python in Markdown, too
    exec(code, {})
    assert capsys.readouterr().out.startswith("To be")


def test_a_foreign_models_card_says_what_is_known(command: Any, tmp_path: Path) -> None:
    a_run(tmp_path / "run", TOKENIZERS["bpe"]())
    command("export", "run", "out")
    result = command("export", "out", "again", "--format", "safetensors")
    assert result.returncode == 0, result.stderr
    text = (tmp_path / "again" / "README.md").read_text()
    assert "from a Hugging Face gpt2" in text
    assert "| tokenizer | bpe, 307 ids |" in text
    for unknown in ("val/loss", "Measured", "| step", "| data |", "<details>"):
        assert unknown not in text
    assert open_model.load_model(tmp_path / "again")[0].config == open_model.load_model(tmp_path / "out")[0].config


@torch.no_grad()
def test_a_trained_run_goes_on_the_same_when_it_has_been_out(command: Any, trained: Path, tmp_path: Path) -> None:
    text = continued(*open_model.load_model(trained)[:2], "the old cat", 6)
    for form in ("hf", "safetensors", "gguf"):
        assert command("export", str(trained), form, "--format", form).returncode == 0
        assert continued(*open_model.load_model(tmp_path / form)[:2], "the old cat", 6) == text
    sha256 = json.loads((trained / "summary.json").read_text())["data"]["sha256"]
    assert [open_model.load_model(path)[2].data_sha256 for path in (trained, tmp_path / "safetensors")] == [sha256] * 2
    assert open_model.load_model(tmp_path / "hf")[2].data_sha256 is None
    assert f"| sha256 of the text | {sha256} |" in (tmp_path / "hf" / "README.md").read_text()


def test_help_imports_nothing_heavy(shell: Any) -> None:
    code = (
        "import sys; import gptlab.export as e; e.parser(); print([m for m in ('torch', 'yaml') if m in sys.modules])"
    )
    out, err = shell("-c", code).communicate(timeout=60)
    assert (out, err) == ("[]\n", "")


def test_sizes_read_well() -> None:
    words = [export.size_in_words(size) for size in (0, 999, 999_900, 54_321, 498_000_000, 6_500_000_000)]
    assert words == ["0 B", "999 B", "1 MB", "54.3 kB", "498 MB", "6.5 GB"]
