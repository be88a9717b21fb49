"""`python -m gptlab.export RUN page.html --format html`: one file that is the model."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gptlab.data.chat.chat_format import chat_tokenizer
from gptlab.data.tokenizers import CharTokenizer, JsonTokenizer, WordTokenizer
from gptlab.formats.description import ModelInfo, described_chat
from gptlab.formats.html import content, page
from gptlab.models import BigramConfig, GPTConfig
from gptlab.models.packed import Packed
from gptlab.models.torch_arrays import arrays_of
from gptlab.system.errors import UserError
from tests.formats.javascript import needs_node, run_node
from tests.test_cli import assert_refused
from tests.test_export import TOKENIZERS, a_run, as_run

EXPORT = ("export", "run", "page.html", "--format", "html")
EIGHT_HUNDRED_THOUSAND = {"block_size": 64, "n_layer": 4, "n_head": 4, "n_embd": 128, "bias": False}


class Reader(html.parser.HTMLParser):
    """What a page links to, its scripts and styles, its ids, and what labels name."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.content: dict[str, list[tuple[dict[str, Any], str]]] = {"script": [], "style": []}
        self.handlers: list[str] = []
        self.ids: list[str] = []
        self.open: Any = None
        self.policy = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        given = dict(attrs)
        self.links += [given[name] for name in ("src", "href", "action") if name in given]
        self.handlers += [name for name in given if name.startswith("on") or name == "style"]
        self.ids += [given["id"]] if "id" in given else []
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"]
        self.open = (tag, given)

    def handle_data(self, data: str) -> None:
        if self.open and self.open[0] in self.content:
            self.content[self.open[0]].append((self.open[1], data))

    def handle_endtag(self, tag: str) -> None:
        self.open = None


def written(command: Any, tmp_path: Path, name: str = "char", **fields: Any) -> str:
    a_run(tmp_path / "run", TOKENIZERS[name](), **fields)
    result = command(*EXPORT)
    assert (result.returncode, result.stderr) == (0, "")
    return (tmp_path / "page.html").read_text("utf-8")


def test_the_file_needs_nothing_else(command: Any, tmp_path: Path) -> None:
    text = written(command, tmp_path)
    reader = Reader(text)
    assert reader.links == ["data:,"]
    assert reader.handlers == []
    assert len(set(reader.ids)) == len(reader.ids)
    scripts = [text for given, text in reader.content["script"] if "type" not in given]
    ((_, style),) = reader.content["style"]
    assert len(scripts) == 1
    for word in ("http:", "https:", "//", "innerHTML", "outerHTML", "document.write", "eval(", "@import", "url("):
        assert word not in re.sub(r"^ *//.*| // .*", "", scripts[0] + style, flags=re.MULTILINE), word
    assert "http" not in text.replace("http-equiv", "")
    for kind, each in (("script", scripts[0]), ("style", style)):
        digest = base64.b64encode(hashlib.sha256(each.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in reader.policy
    assert reader.policy.startswith("default-src 'none'; ")
    assert "unsafe-inline" not in reader.policy
    assert text.index("Content-Security-Policy") < text.index("<style")


def test_what_the_script_looks_for_is_in_the_page() -> None:
    ids = set(Reader((page.HERE / "index.html").read_text("utf-8")).ids)
    scripts = "".join((page.HERE / name).read_text("utf-8") for name in page.PAGE_SCRIPTS)
    assert set(re.findall(r'byId\("([\w-]+)"\)', scripts)) <= ids


def test_08m_parameters_are_at_most_1_5_megabytes(command: Any, tmp_path: Path) -> None:
    tokenizer = TOKENIZERS["char"]()
    model = as_run(tmp_path / "run", tokenizer, GPTConfig(tokenizer.vocab_size, **EIGHT_HUNDRED_THOUSAND))
    assert 790_000 < sum(each.numel() for each in model.parameters()) < 830_000
    result = command(*EXPORT)
    assert result.stdout == "page.html: a page of HTML with weights of 8 bits (1.21 MB); open it in a browser\n"
    assert (tmp_path / "page.html").stat().st_size < 1_500_000


def test_it_says_what_the_model_is(command: Any, tmp_path: Path) -> None:
    reader = Reader(written(command, tmp_path))
    (data,) = [json.loads(text) for given, text in reader.content["script"] if given.get("id") == "model"]
    card, facts = data["card"], dict(data["card"]["facts"])
    assert card["name"] == "tiny"
    assert facts["parameters"].replace(",", "").isdigit()
    assert (facts["val/loss"], facts["step"], facts["data"]) == ("2.2500 nats a token", "29", "text (novel.txt)")
    assert "/home/me" not in json.dumps(data)
    assert card["chat"] is None


def test_a_name_cannot_leave_its_place(command: Any, tmp_path: Path) -> None:
    info = ModelInfo(Path("x"), None, {}, {"name": "</script><b>&"}, None, "run")
    tokenizer = CharTokenizer("/<>abcipst")
    text = page.page(as_run(tmp_path / "run", tokenizer, GPTConfig(10, 8, 1, 1, n_embd=8)), tokenizer, info, "n")
    assert "<title>&lt;/script&gt;&lt;b&gt;&amp;</title>" in text
    assert text.count("</script>") == 3
    assert "<b>" not in text


def test_a_model_that_chats_says_how(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer(TOKENIZERS["char"]())
    config = {"task": {"name": "sft"}}
    model = as_run(tmp_path / "run", tokenizer, GPTConfig(tokenizer.vocab_size, 8, 1, 1, n_embd=8))
    chat = described_chat({"config": config}, tokenizer, tmp_path)
    info = ModelInfo(tmp_path, None, {}, config, None, "run", lambda: chat)
    ids = tokenizer.special_tokens
    found = content.card_of(model.config, 1, tokenizer, info, "n")
    assert found["chat"] == {
        "begin": [ids["<|begin_of_text|>"]],
        "turns": {"user": ids["<|user|>"], "assistant": ids["<|assistant|>"]},
        "end": ids["<|end|>"],
    }
    assert found["ends"] == [ids["<|end|>"]]


def test_the_integers_are_the_matrix() -> None:
    matrix = np.random.default_rng(0).normal(size=(19, 45)).astype(np.float32)
    packed = Packed(matrix, 8)
    scales = packed.scales.reshape(-1)[:19, None]
    assert np.array_equal(packed.integers() * scales, packed.matrix())


@needs_node
def test_a_damaged_page_says_so(tmp_path: Path) -> None:
    model = a_run(tmp_path / "run", TOKENIZERS["byte"]())
    description, weights = content.described(arrays_of(model.requires_grad_(False)))
    answer = """
    function answer([description, weights]) {
      try { openModel(description, weights); } catch (error) { return error.message; }
    }
    """
    assert "another size than it says" in run_node(answer, [description, weights[:-8]])
    assert "another size than it says" in run_node(answer, [description, "AAAA" + weights])
    assert run_node(answer, [description, "*" + weights[1:]])


def test_what_it_lacks_is_refused_and_nothing_is_written(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = TOKENIZERS["char"]()
    as_run(tmp_path / "bigram", tokenizer, BigramConfig(tokenizer.vocab_size))
    a_run(tmp_path / "run", tokenizer)
    (tmp_path / "there.html").write_text("mine")
    (tmp_path / "folder.html").mkdir()
    cases = [
        (("bigram", "page.html"), "a page has GPTs, and this is a Bigram; use --format onnx"),
        (("run", "page"), "page: --format html writes one file", "name it page.html"),
        (("run", "there.html"), "there.html is there already"),
        (("run", "folder.html"), "folder.html is a folder"),
        (("run", "page.html", "--quant", "q8_0"), "--quant q8_0: --format html has none"),
        (("run", "page.html", "--kv-cache"), "--kv-cache: --format html has none"),
    ]
    for arguments, *words in cases:
        assert_refused(command("export", *arguments, "--format", "html"), *words)
    monkeypatch.setattr(content, "MOST_BYTES", 1000)
    assert_refused(command(*EXPORT), "weights, and a page holds 1,000 at most; use --format gguf")
    monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bigram", "folder.html", "run", "there.html"]
    assert (tmp_path / "there.html").read_text() == "mine"


@torch.no_grad()
def test_weights_that_are_no_numbers_are_refused(command: Any, tmp_path: Path) -> None:
    model = a_run(tmp_path / "run", TOKENIZERS["char"]())
    model.h[1].mlp.c_fc.weight[3, 4] = float("nan")
    info = ModelInfo(tmp_path, None, {}, {}, None, "run")
    with pytest.raises(UserError, match=r"h.1.mlp.c_fc.weight has numbers that are infinite or none"):
        page.write_html(model, TOKENIZERS["char"](), info, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_tokenizers_that_a_page_cannot_have_are_refused() -> None:
    for tokenizer in (CharTokenizer("a\udc80"), WordTokenizer(["a", "\udc80"])):
        with pytest.raises(UserError, match="have lone surrogates"):
            content.tokenizer_of(tokenizer)
    spec = {"model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"}, "version": "1.0"}
    spec |= {"added_tokens": [], "decoder": {"type": "Fuse"}}
    with pytest.raises(UserError, match="byte-level BPE; use --format gguf, or --format onnx --kv-cache"):
        content.tokenizer_of(JsonTokenizer(json.dumps(spec), None))
