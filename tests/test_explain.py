"""`python -m gptlab.explain`, as a user types it."""

from __future__ import annotations

import base64
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gptlab.data.chat.chat_format import chat_tokenizer
from gptlab.evaluation.ngrams import NGrams
from gptlab.explaining import attention, explanation
from gptlab.explaining.files import PICTURES
from gptlab.formats.open_model import load_model
from gptlab.models import BigramConfig, GPTConfig
from gptlab.models.watching import attention_maps
from tests.formats.test_html import Reader
from tests.test_cli import assert_refused
from tests.test_export import TOKENIZERS, T, a_run, as_run

TEXT = "the old king sees"  # as many characters as the block of the tiny run has tokens


@pytest.fixture
def explain(command: Any) -> Any:
    """explain(...) runs the command, which must succeed, and returns the JSON object on standard output."""

    def explain(*arguments: Any) -> dict[str, Any]:
        result = command("explain", *map(str, arguments), "--json")
        assert (result.returncode, result.stderr) == (0, "")
        return json.loads(result.stdout)

    return explain


def written(folder: Path) -> tuple[Reader, dict[str, Any]]:
    """The page in a folder, and what it was made of."""
    reader = Reader((folder / "explanation.html").read_text("utf-8"))
    (data,) = [text for given, text in reader.content["script"] if given.get("id") == "explanation"]
    return reader, json.loads(data)


def test_the_numbers_are_those_of_evaluate(explain: Any, evaluate: Any, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "my.txt").write_text(TEXT)
    expected = evaluate(trained, "--data", "my.txt")
    found = explain(trained, TEXT)
    totals, tokens = found["totals"], found["tokens"]
    for name in ("nats_per_token", "bits_per_byte", "perplexity"):
        assert totals[name] == pytest.approx(expected[name], rel=1e-6)
    assert (totals["tokens"], totals["bytes"]) == (expected["tokens"], expected["bytes"]) == (16, 16)
    assert totals["nats"] == pytest.approx(expected["nats_per_token"] * 16)
    assert totals["bits"] == pytest.approx(totals["nats"] / math.log(2))
    assert "".join(token["text"] for token in tokens) == TEXT
    assert tokens[0]["bits"] is None
    by_position = [token["bits"] * math.log(2) for token in tokens[1:]]
    assert by_position == pytest.approx(expected["loss_by_position"][:16])
    assert found["lens"]["mean_bits"][-1] == pytest.approx(totals["bits_per_token"])  # the last row is the model


@torch.no_grad()
def test_each_token_has_its_rank_and_the_likeliest(explain: Any, trained: Path) -> None:
    model, tokenizer, _ = load_model(trained)
    tokens = explain(trained, TEXT)["tokens"]
    ids = torch.tensor([token["id"] for token in tokens])
    p = model(ids[None])[0].softmax(-1)
    for at, token in enumerate(tokens[1:], 1):
        assert 2 ** -token["bits"] == pytest.approx(p[at - 1, ids[at]].item(), rel=1e-5)
        assert token["rank"] == 1 + int((p[at - 1] > p[at - 1, ids[at]]).sum())
        values, likely = p[at - 1].topk(5)
        assert [each["id"] for each in token["likely"]] == likely.tolist()
        assert [each["probability"] for each in token["likely"]] == pytest.approx(values.tolist(), rel=1e-5)
        assert [each["text"] for each in token["likely"]] == [tokenizer.decode([i]) for i in likely.tolist()]


@pytest.mark.parametrize("order", [6, 2])
def test_counts_are_of_the_training_part(explain: Any, trained: Path, text_file: Path, order: int) -> None:
    _, tokenizer, _ = load_model(trained)
    text = text_file.read_text()
    train = tokenizer.encode(text[: int(len(text) * 0.9)])
    expected = NGrams(train, tokenizer.vocab_size, order).nats(tokenizer.encode(TEXT)) / math.log(2)
    counts = explain(trained, TEXT, "--ngram", order)["counts"]
    assert counts["bits"][0] is None
    assert counts["bits"][1:] == pytest.approx(expected.tolist())
    assert counts["words"] == f"ngram:{order}, counted on {len(train):,} tokens"
    assert counts["totals"]["bits"] == pytest.approx(float(expected.sum()))


def test_another_training_text_is_that_of_evaluates_table(explain: Any, evaluate: Any, tmp_path: Path) -> None:
    a_run(tmp_path / "run", TOKENIZERS["byte"]())
    held_out = "the night sees xy"
    (tmp_path / "my.txt").write_text("a young queen loves the cat.\n" * 5 + held_out)
    expected = evaluate("ngram:3", "--data", "my.txt", "--split", "val", "--tokenizer", "byte")
    found = explain("run", held_out, "--data", "my.txt", "--ngram", "3")
    assert found["counts"]["totals"]["nats_per_token"] == pytest.approx(expected["nats_per_token"])
    assert found["passages"]["source"] == "the training part of my.txt (145 characters)"


def test_passages_come_from_the_runs_own_text(explain: Any, trained: Path, text_file: Path) -> None:
    line = text_file.read_text().splitlines()[70][:17]
    found = explain(trained, line)["passages"]
    assert found["longest"] == len(line)
    assert found["passages"][0]["text"] == line
    assert found["passages"][0]["count"] == text_file.read_text()[: int(len(text_file.read_text()) * 0.9)].count(line)
    assert len(found["held_out"]) == 20


def test_the_files_are_a_page_that_needs_nothing_else_and_pictures(command: Any, trained: Path, tmp_path: Path) -> None:
    result = command("explain", str(trained), TEXT, "--out", "report")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [f"report/{name}" for name in ("explanation.html", *PICTURES)]
    for name in PICTURES:
        assert (tmp_path / "report" / name).read_bytes().startswith(b"\x89PNG")
    reader, data = written(tmp_path / "report")
    assert reader.links == ["data:,"]
    assert reader.handlers == []
    assert len(set(reader.ids)) == len(reader.ids)
    assert reader.policy.startswith("default-src 'none'; ")
    assert "unsafe" not in reader.policy
    (script,) = [text for given, text in reader.content["script"] if "type" not in given]
    for word in ("http:", "https:", "innerHTML", "outerHTML", "document.write", "eval(", "fetch(", "import("):
        assert word not in script, word
    assert set(re.findall(r'byId\("([\w-]+)"\)', script)) <= set(reader.ids)
    assert str(trained) not in (tmp_path / "report" / "explanation.html").read_text("utf-8")
    assert data["totals"]["tokens"] == 16
    assert (tmp_path / "report" / "explanation.html").stat().st_size < 200_000


def test_the_maps_are_where_the_heads_look(command: Any, trained: Path, tmp_path: Path) -> None:
    assert command("explain", str(trained), TEXT, "--out", "report").returncode == 0
    reader, data = written(tmp_path / "report")
    (encoded,) = [text for given, text in reader.content["script"] if given.get("id") == "maps"]
    model, tokenizer, _ = load_model(trained)
    expected = attention_maps(model, torch.from_numpy(tokenizer.encode(TEXT))).numpy()
    assert data["attention"] == {"layers": 2, "heads": 3, "first": 0, "tokens": 17}
    levels = np.frombuffer(base64.b64decode(encoded), np.uint8).reshape(2, 3, -1)
    rows, columns = np.tril_indices(17)
    np.testing.assert_allclose((levels / 255) ** 2, expected[:, :, rows, columns], atol=1 / 255)


def test_files_go_beside_the_checkpoints_of_a_run_and_replace_older_ones(command: Any, tmp_path: Path) -> None:
    a_run(tmp_path / "run", TOKENIZERS["char"]())
    assert "run/explain/attention.png" in command("explain", "run", "You may").stdout
    as_run(tmp_path / "run", TOKENIZERS["char"](), BigramConfig(TOKENIZERS["char"]().vocab_size))
    assert command("explain", "run", "You may").stdout.split() == [
        "run/explain/explanation.html",
        "run/explain/surprisal.png",
    ]
    assert sorted(path.name for path in (tmp_path / "run" / "explain").iterdir()) == [
        "explanation.html",
        "surprisal.png",
    ]
    assert command("explain", "run/checkpoints/best.ckpt", "You may").stdout.startswith("explain/explanation.html\n")


def test_what_cannot_be_is_left_out_with_a_sentence(explain: Any, tmp_path: Path) -> None:
    tokenizer = TOKENIZERS["char"]()
    as_run(tmp_path / "bigram", tokenizer, BigramConfig(tokenizer.vocab_size))
    (tmp_path / "train.txt").write_text("You may use this file, or not.\n" * 9)
    found = explain("bigram", "You may not use this file", "--data", "train.txt")
    for name in ("lens", "attention", "heads", "neighbours"):
        assert found[name] == {"missing": "This model is a Bigram: it has no layers to look into."}
    assert found["counts"]["order"] == 6
    assert found["totals"]["tokens"] == 24
    a_run(tmp_path / "plain", tokenizer, attention="none")
    found = explain("plain", "You may")
    assert found["attention"] == found["heads"] == {"missing": "The model has no attention (model.attention=none)."}
    assert len(found["lens"]["rows"]) == 3
    a_run(tmp_path / "short", tokenizer, block_size=5)
    assert "5 tokens" in explain("short", "You")["heads"]["missing"]
    for name in ("passages", "counts"):
        assert "is not known: " in found[name]["missing"]
        assert "--data FILE" in found[name]["missing"]


def test_a_long_text_is_explained_at_its_end_and_said_so(
    command: Any, explain: Any, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = explain(trained, "a young dog " + TEXT)
    assert found["text"] == TEXT
    assert found["tokens"] == explain(trained, TEXT)["tokens"]
    assert found["notes"] == [
        "Of the text the last 17 tokens are explained, and 12 before them left out: 17 is the most that the model and "
        "this page see at once."
    ]
    assert found["notes"][0] in command("explain", str(trained), "a young dog " + TEXT, "--out", "out").stdout
    monkeypatch.setattr(explanation, "MOST_CELLS", 30)
    monkeypatch.setattr(attention, "MOST_BYTES", 6 * 15)
    found = explain(trained, TEXT)
    assert (found["lens"]["first"], np.shape(found["lens"]["ids"])) == (7, (3, 10, 3))
    assert (found["attention"]["first"], found["attention"]["tokens"]) == (13, 4)


def test_a_chat_is_explained_with_its_special_tokens(explain: Any, tmp_path: Path) -> None:
    a_run(tmp_path / "run", tokenizer := chat_tokenizer(TOKENIZERS["char"]()))
    tokens = explain("run", "<|user|>May<|end|>", "--special")["tokens"]
    ids = tokenizer.special_tokens
    assert [token["id"] for token in tokens] == [ids["<|user|>"], *tokenizer.encode("May").tolist(), ids["<|end|>"]]
    assert [token["text"] for token in tokens] == ["<|user|>", "M", "a", "y", "<|end|>"]


def test_a_text_from_a_file_or_a_pipe(explain: Any, shell: Any, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "my.txt").write_text(TEXT + "\n")
    assert explain(trained, "--text-file", "my.txt")["text"] == TEXT
    with (tmp_path / "my.txt").open() as piped:
        process = shell("-m", "gptlab.explain", str(trained), "--json", stdin=piped)
        stdout, stderr = process.communicate(timeout=60)
    assert stderr == ""
    assert json.loads(stdout)["text"] == TEXT


def test_what_is_refused_is_one_message_and_leaves_nothing(command: Any, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 noir")
    cases = [
        (("none", TEXT), "none: no such run directory or checkpoint file"),
        ((str(trained), ""), "TEXT is empty; give some text"),
        ((str(trained), "--text-file", "empty.txt"), "--text-file empty.txt is empty; give some text"),
        ((str(trained), "--text-file", "none.txt"), "--text-file none.txt: none.txt cannot be read"),
        ((str(trained), "--text-file", "latin.txt"), "error: --text-file latin.txt is not UTF-8 text"),
        ((str(trained), TEXT, "--text-file", "empty.txt"), "leave one of them out"),
        ((str(trained), "the Ω"), "characters that the model has never seen: 'Ω'; leave them out"),
        ((str(trained), "t"), "the text is too short: it has 1 token, and the first is not predicted; give more text"),
        ((str(trained), TEXT, "--data", "none.txt"), "--data none.txt: ", "no such file"),
        ((str(trained), TEXT, "--special"), "--special: ", "has no special tokens"),
        ((str(trained), TEXT, "--device", "cuda"), "--device cuda: there is none here"),
        ((str(trained), TEXT, "--out", "empty.txt/report"), "cannot write in empty.txt/report"),
    ]
    for arguments, *words in cases:
        out = () if "--out" in arguments else ("--out", "report")
        assert_refused(command("explain", *arguments, *out), *words)
    assert command("explain", str(trained), TEXT, "--ngram", "7").returncode == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.txt", "latin.txt"]


def test_what_a_text_says_is_never_html(command: Any, tmp_path: Path) -> None:
    hostile = "</script><b onclick=alert(1)>&"
    a_run(tmp_path / "run", TOKENIZERS["byte"](), block_size=64)
    assert command("explain", "run", hostile, "--out", "report").returncode == 0
    text = (tmp_path / "report" / "explanation.html").read_text("utf-8")
    assert "<b onclick" not in text
    assert text.count("</script>") == 3
    assert written(tmp_path / "report")[1]["text"] == hostile


@pytest.mark.parametrize("text", ["größer 中文 😀\t\x1b[31m", "\u202eabc\ud800 $x^2$ \\frac"])
def test_any_characters_can_be_drawn(command: Any, tmp_path: Path, text: str) -> None:
    a_run(tmp_path / "run", TOKENIZERS["byte"](), block_size=64)
    result = command("explain", "run", text, "--out", "report")
    assert (result.returncode, result.stderr) == (0, "")
    assert written(tmp_path / "report")[1]["tokens"]


def test_weights_that_are_no_numbers_are_refused(command: Any, tmp_path: Path) -> None:
    tokenizer = TOKENIZERS["char"]()
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn_like", lambda x: torch.full_like(x, math.nan))
        as_run(tmp_path / "run", tokenizer, GPTConfig(tokenizer.vocab_size, T, 1, 1, n_embd=8))
    assert_refused(command("explain", "run", "You may", "--out", "report"), "the loss is nan: the weights are broken")
    assert not (tmp_path / "report").exists()
