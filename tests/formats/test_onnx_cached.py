"""`export --format onnx --kv-cache`: the graph computes what the model does, whatever it is given to keep."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gptlab.data.tokenizers import JsonTokenizer
from gptlab.formats import onnx, onnx_cached, onnx_readers
from gptlab.formats.open_model import open_model
from gptlab.models import BigramConfig, GPTConfig
from tests.formats import gguf_models
from tests.test_cli import assert_refused
from tests.test_export import LLAMA, TOKENIZERS, a_run, as_run

BLOCK = 61
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama of characters": ("char", LLAMA | {"n_kv_head": 1, "n_layer": 1}),
    # What no one else has: positions as distances, in a window, and logits that are bent.
    "one of our own": ("bpe", {"pos": "alibi", "window": 7, "logit_softcap": 9.0, "n_layer": 2}),
    "gpt2 of bytes": ("byte, ended", {}),
}


@pytest.fixture(scope="module", params=[*[*MODELS][:2], pytest.param("gpt2 of bytes", marks=pytest.mark.slow)], ids=str)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Any]:
    """What was made, a folder with the run and its export, and the model."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from gptlab import export

    tokenizer, fields = MODELS[request.param]
    folder = tmp_path_factory.mktemp("cached")
    model = a_run(folder / "run", TOKENIZERS[tokenizer](), block_size=BLOCK, **fields)
    export.main([str(folder / "run"), str(folder / "out"), "--format", "onnx", "--kv-cache"])
    return request.param, folder, model


def read(session: Any, idx: np.ndarray, cache: list[np.ndarray], before: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Give the tokens idx (B, T) to the graph after `before` others: logits, and the keys and values of all."""
    past = [each.name for each in session.get_inputs() if each.name.startswith("past_key_values.")]
    rows, new = idx.shape
    feed = {
        "input_ids": idx,
        "attention_mask": np.ones((rows, before + new), np.int64),
        "position_ids": np.tile(np.arange(before, before + new), (rows, 1)),
    }
    logits, *cache = session.run(None, feed | dict(zip(past, cache, strict=True)))
    return logits, cache


def opened(folder: Path, config: GPTConfig, rows: int) -> tuple[Any, list[np.ndarray]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "out" / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])
    empty = np.zeros((rows, config.kv_heads, 0, config.head_size), np.float32)
    return session, [empty] * (2 * config.n_layer)


@pytest.mark.parametrize("rows", [1, 3])
@torch.no_grad()
def test_any_rows_and_parts_of_a_text_have_our_logits(made: tuple[str, Path, Any], rows: int) -> None:
    _, folder, model = made
    c = model.config
    longest = BLOCK + 4 if c.slides else BLOCK
    idx = np.random.default_rng(5).integers(0, c.vocab_size, (rows, longest))
    ours = model(torch.from_numpy(idx)).numpy()
    for cuts in ([0, longest], [0, 1, 2, 3, 20, 21, longest], range(longest + 1)):
        session, cache = opened(folder, c, rows)
        for begin, end in itertools.pairwise(cuts):
            logits, cache = read(session, idx[:, begin:end], cache, begin)
            np.testing.assert_allclose(logits, ours[:, begin:end], atol=1e-4, rtol=1e-4)
            assert {each.shape for each in cache} == {(rows, c.kv_heads, end, c.head_size)}


def test_inputs_and_outputs_have_the_names_that_readers_know(made: tuple[str, Path, Any]) -> None:
    _, folder, model = made
    session, _ = opened(folder, model.config, 1)
    names = [f"{i}.{each}" for i in range(model.config.n_layer) for each in ("key", "value")]
    given = ["input_ids", "attention_mask", "position_ids", *(f"past_key_values.{name}" for name in names)]
    assert [each.name for each in session.get_inputs()] == given
    assert [each.name for each in session.get_outputs()] == ["logits", *(f"present.{name}" for name in names)]


def test_the_graph_says_how_large_a_head_is(made: tuple[str, Path, Any]) -> None:
    """Where it does not, OpenVINO keeps other keys and values, silently."""
    import onnx

    _, folder, model = made
    graph = onnx.load(folder / "out" / "onnx" / "model.onnx")
    del graph.graph.value_info[:]  # what torch knew
    inferred = onnx.shape_inference.infer_shapes(graph, data_prop=True).graph
    shapes = {each.name: each.type.tensor_type.shape.dim for each in inferred.value_info}
    new = [node.input[1] for node in inferred.node if node.output[0].startswith("present.")]
    assert len(new) == 2 * model.config.n_layer
    assert {shapes[name][3].dim_value for name in new} == {model.config.head_size}


def test_greedy_text_over_the_cache_is_that_of_generate(made: tuple[str, Path, Any], command: Any) -> None:
    """By the code of the model card, as it stands there."""
    _, folder, _ = made
    card = (folder / "out" / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.S)
    prompt, new = re.findall(r'encode\("(.*?)"\).*range\((\d+)\)', code, re.S)[0]
    assert int(new) >= 50
    code = code.replace('"out/', f'"{folder}/out/')
    theirs: dict[str, Any] = {}
    exec(code.replace("print", "text = "), theirs)
    ours = command("generate", str(folder / "run"), prompt, "--temperature", "0", "--max-new-tokens", new)
    ended = theirs["text"].split("<|endoftext|>")[0]
    assert ours.stdout.rstrip("\n") == ended.rstrip("\n")


def test_what_readers_need_lies_beside_the_graph(made: tuple[str, Path, Any]) -> None:
    name, folder, model = made
    c, out = model.config, folder / "out"
    config = json.loads((out / "config.json").read_text())
    assert config["transformers.js_config"] == {"dtype": "fp32"}
    # What transformers.js makes the first cache of.
    if name == "gpt2 of bytes":
        assert [config[key] for key in ("model_type", "n_layer", "n_head", "n_embd")] == ["gpt2", 2, 3, 30]
    else:
        assert (config["model_type"], config["num_key_value_heads"]) == ("llama", c.kv_heads)
        assert (config["num_hidden_layers"], config["head_dim"], config["vocab_size"]) == (c.n_layer, 10, c.vocab_size)
    assert (out / "tokenizer.json").is_file()
    assert (out / "generation_config.json").is_file()
    assert (out / "genai_config.json").exists() == (name != "llama of characters")
    assert ("onnxruntime_genai.Model" in (out / "README.md").read_text()) == (name != "llama of characters")
    if name == "one of our own":
        about = json.loads((out / "genai_config.json").read_text())["model"]
        assert (about["type"], about["context_length"], about["eos_token_id"]) == ("decoder", BLOCK, 306)
        assert about["decoder"]["inputs"]["past_key_names"] % 1 == "past_key_values.1.key"
        assert about["decoder"]["outputs"]["present_value_names"] % 1 == "present.1.value"
        assert (about["decoder"]["num_key_value_heads"], about["decoder"]["head_size"]) == (c.kv_heads, c.head_size)
        assert (out / about["decoder"]["filename"]).is_file()


def test_onnxruntime_genai_has_our_ids_and_our_greedy_text(made: tuple[str, Path, Any]) -> None:
    name, folder, model = made
    if name == "llama of characters":  # which it does not read, as export says
        return
    genai = pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai has no wheel for this Python")
    theirs = genai.Model(str(folder / "out"))
    tokenizer = open_model(str(folder / "run")).tokenizer
    ids = tokenizer.encode("to be, or not")[: BLOCK - 50]
    assert genai.Tokenizer(theirs).encode("to be, or not")[: BLOCK - 50].tolist() == ids.tolist()
    params = genai.GeneratorParams(theirs)
    params.set_search_options(do_sample=False, max_length=BLOCK, batch_size=1)
    generator = genai.Generator(theirs, params)
    generator.append_tokens(ids)
    while not generator.is_done():
        generator.generate_next_token()
    found = torch.from_numpy(generator.get_sequence(0).astype(np.int64))
    assert len(found) - len(ids) >= 50 or int(found[-1]) == tokenizer.end_of_text
    with torch.no_grad():
        assert torch.equal(model(found[None, :-1])[0, len(ids) - 1 :].argmax(-1), found[len(ids) :])


@torch.no_grad()
def test_padding_on_any_side_and_between_changes_nothing(made: tuple[str, Path, Any]) -> None:
    """onnxruntime-genai pads short prompts on the right and goes on behind that; transformers.js pads on the left."""
    _, folder, model = made
    idx = np.random.default_rng(6).integers(0, model.config.vocab_size, (1, 9))
    ours = model(torch.from_numpy(idx)).numpy()
    for columns in ([0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1]):
        session = onnx_cached.Session(folder / "out" / "onnx" / "model.onnx", model.config, 1)
        mask, padded = np.array([columns]), np.zeros((1, 11), np.int64)
        padded[mask > 0] = idx[0]
        found = np.concatenate([session.read(padded[:, :5], mask[:, :5]), session.read(padded[:, 5:])], axis=1)
        np.testing.assert_allclose(found[mask > 0], ours[0], atol=1e-4, rtol=1e-4)


@pytest.fixture
def without_onnx(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The packages are there, and nothing is exported: the model itself stands for the graph."""
    monkeypatch.setattr(onnx, "require_onnx", lambda: None)

    def export_with_cache(model: Any, path: Path) -> None:
        path.write_bytes(b"")
        monkeypatch.setattr(onnx_cached, "Session", lambda _, config, rows: Stand(model))

    monkeypatch.setattr(onnx_cached, "export_with_cache", export_with_cache)
    return monkeypatch


class Stand:
    """A session that reads with the model, and adds `off` to what it says of a token behind the first."""

    off, at = 0.0, 0

    def __init__(self, model: Any) -> None:
        self.model = model
        self.start(1)

    def start(self, _: int) -> None:
        self.rows: list[list[int]] = []

    def read(self, idx: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        mask = np.ones_like(idx) if mask is None else mask
        self.rows = self.rows or [[] for _ in idx]
        logits = np.zeros((*idx.shape, self.model.config.vocab_size), np.float32)
        for row, (before, new, real) in enumerate(zip(self.rows, idx, mask > 0, strict=True)):
            before += new[real].tolist()
            with torch.no_grad():
                found = self.model(torch.tensor([before]))[0].numpy()
            logits[row, real] = found[len(found) - real.sum() :]
        logits[-1, -1, 0] += self.off if len(self.rows[-1]) > self.at else 0.0
        return logits


def test_a_graph_that_computes_what_we_do_is_written(
    command: Any, tmp_path: Path, without_onnx: pytest.MonkeyPatch
) -> None:
    a_run(tmp_path / "run", TOKENIZERS["byte"]())
    result = command("export", "run", "out", "--format", "onnx", "--kv-cache")
    assert (result.returncode, result.stderr) == (0, "")
    said = r"out: ONNX with keys and values, logits within [\d.]+e[-+]\d\d of ours, 20 greedy tokens the same \("
    assert re.match(said, result.stdout)
    assert " onnx/model.onnx 0 B," in result.stdout


@pytest.mark.parametrize(("off", "at"), [(0.5, 0), (0.002, 4), (float("nan"), 7)])
def test_a_graph_that_computes_something_else_is_not_written(
    command: Any, tmp_path: Path, without_onnx: pytest.MonkeyPatch, off: float, at: int
) -> None:
    a_run(tmp_path / "run", TOKENIZERS["char"]())
    without_onnx.setattr(Stand, "off", off)
    without_onnx.setattr(Stand, "at", at)
    words = ("logits differ from ours by", "than 1e-03", "leave --kv-cache out")
    assert_refused(command("export", "run", "out", "--format", "onnx", "--kv-cache"), *words)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_another_greedy_text_is_not_written_unless_two_tokens_are_as_likely(
    tmp_path: Path, without_onnx: pytest.MonkeyPatch
) -> None:
    ours: Any = a_run(tmp_path / "run", TOKENIZERS["char"]())
    path = tmp_path / "model.onnx"
    onnx_cached.export_with_cache(ours, path)
    assert onnx_cached.equal_tokens(ours, path) == 20
    without_onnx.setattr(Stand, "off", 99.0)
    without_onnx.setattr(Stand, "at", 9)
    with pytest.raises(onnx_cached.UserError, match="onnxruntime's greedy text leaves ours at token 7"):
        onnx_cached.equal_tokens(ours, path)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.zero_()  # so that all tokens are as likely
    without_onnx.setattr(Stand, "off", -1e-5)
    assert onnx_cached.equal_tokens(ours, path) == 6


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (BigramConfig(76), ["a Bigram has no attention, and nothing to keep"]),
        (GPTConfig(76, 23, 1, 3, n_embd=30, attention="none"), ["model.attention=none leaves no keys and values"]),
        (
            GPTConfig(76, 23, 1, 3, n_embd=30, attention="none", conv=3),
            ["model.conv=3 keeps inputs of layers", "; model.attention=none", "; leave --kv-cache out"],
        ),
    ],
    ids=["bigram", "no attention", "both"],
)
def test_what_has_no_such_cache_is_refused_with_every_reason(
    command: Any, tmp_path: Path, without_onnx: pytest.MonkeyPatch, config: Any, words: list[str]
) -> None:
    as_run(tmp_path / "run", TOKENIZERS["char"](), config)
    assert_refused(command("export", "run", "out", "--format", "onnx", "--kv-cache"), *words)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_the_flag_is_for_onnx(command: Any) -> None:
    words = ("--kv-cache: --format hf has none of its own; add --format onnx",)
    assert_refused(command("export", "none", "out", "--kv-cache"), *words)


@pytest.mark.parametrize("name", [*TOKENIZERS, *gguf_models.THEIRS])
def test_onnxruntime_genai_is_told_of_tokenizers_that_it_reads_right(tmp_path: Path, name: str) -> None:
    tokenizer = TOKENIZERS[name]() if name in TOKENIZERS else gguf_models.THEIRS[name]()
    config = GPTConfig(tokenizer.vocab_size, 23, 1, 3, n_embd=30)
    wrong = onnx_readers.write_readers_files(tokenizer, config, None, tmp_path)
    known = name in ("byte", "byte, ended", "bpe", "gpt-2", "qwen2", "llama 3")
    assert (tmp_path / "genai_config.json").exists() == known
    assert wrong == (None if known else f"onnxruntime-genai has other ids for tokenizer={tokenizer.name}, or none")


def test_onnxruntime_genai_is_not_told_of_a_tokenizer_without_an_end(tmp_path: Path) -> None:
    """It would end each text at the padding token, or else at token 0."""
    content = gguf_models.byte_level("gpt-2").content
    tokenizer = JsonTokenizer(content, None)
    config = GPTConfig(tokenizer.vocab_size, 23, 1, 3, n_embd=30)
    wrong = onnx_readers.write_readers_files(tokenizer, config, None, tmp_path)
    assert wrong == "the tokenizer has no end of text, in place of which onnxruntime-genai would take another token"
    assert not (tmp_path / "genai_config.json").exists()


def test_a_shape_of_qwens_is_not_taken_for_qwen_beside_another_tokenizer(tmp_path: Path) -> None:
    """For which transformers.js, too, would look into the config."""
    shape = LLAMA | {"qkv_bias": True, "tied": False}
    for name, kind in (("bpe", "llama"), ("qwen2", "qwen2")):
        tokenizer: Any = TOKENIZERS[name]() if name == "bpe" else gguf_models.byte_level(name)
        assert isinstance(tokenizer, JsonTokenizer) == (name == "qwen2")
        config = GPTConfig(tokenizer.vocab_size, 23, 1, 3, n_embd=30, **shape)
        onnx_readers.write_readers_files(tokenizer, config, None, tmp_path)
        about = json.loads((tmp_path / "config.json").read_text())
        assert (about["model_type"], about["num_key_value_heads"]) == (kind, 3)


@pytest.mark.slow
@torch.no_grad()
def test_weights_beside_the_graph_have_the_name_that_transformers_js_looks_for(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    ours: Any = a_run(tmp_path / "run", TOKENIZERS["bpe"](), n_layer=1)
    monkeypatch.setattr(onnx, "IN_ONE_FILE", 0)
    result = command("export", "run", "out", "--format", "onnx", "--kv-cache")
    assert (result.returncode, result.stderr) == (0, "")
    assert {path.name for path in (tmp_path / "out" / "onnx").iterdir()} == {"model.onnx", "model.onnx_data"}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["transformers.js_config"]["use_external_data_format"] is True
    session = onnx_cached.Session(tmp_path / "out" / "onnx" / "model.onnx", ours.config, 2)
    idx = np.ones((2, 9), np.int64)
    np.testing.assert_allclose(session.read(idx), ours(torch.from_numpy(idx)).numpy(), atol=1e-4)
