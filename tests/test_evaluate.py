"""`python -m gptlab.evaluate`, as a user types it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from gptlab.formats import checkpoint, description
from tests.conftest import ROOT
from tests.data.test_corpora import fineweb_edu
from tests.test_cli import assert_refused

QUICK = ("trainer.max_steps=2", "trainer.val_every=2", "trainer.sample_tokens=0", "trainer.diagnose_every=0")


def summary(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "summary.json").read_text())


def assert_is_the_runs_own(found: dict[str, Any], run_dir: Path, split: str = "val") -> None:
    """Compared to six decimals, since the order of sums may differ."""
    own = summary(run_dir)
    assert found["nats_per_token"] == pytest.approx(own[f"{split}/loss"], abs=1e-6)
    assert found["bits_per_byte"] == pytest.approx(own[f"{split}/bpb"], abs=1e-6)
    assert found["perplexity"] == pytest.approx(own[f"{split}/ppl"], rel=1e-6)


@pytest.fixture(scope="module")
def byte_run(run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the same text in bytes, with longer windows."""
    run_dir = tmp_path_factory.mktemp("runs") / "bytes"
    run(run_dir, *QUICK, "tokenizer=byte", "model.block_size=29")
    return run_dir


def test_the_loss_is_the_runs_own_validation_loss(evaluate: Any, trained: Path, text_file: Path) -> None:
    last = trained / "checkpoints" / "last.ckpt"
    found = evaluate(last)
    assert_is_the_runs_own(found, trained)
    count = len(text_file.read_text())
    assert found["tokens"] == found["bytes"] == count - int(count * 0.9) - 1
    assert found["protocol"] == "whole split, windows of 17"
    assert found["model"] == f"{last} (gptlab run, step 7)"
    assert (found["tokenizer"], found["precision"]) == ("char", "fp32")
    assert found["data"] == {
        "name": "text",
        "split": "val",
        "sha256": summary(trained)["data"]["sha256"],
        "read": f"{text_file.name} (prose); {len(text_file.read_text()):,} characters",
        "left_out": {},
    }
    assert found["notes"] == []
    assert evaluate(trained)["nats_per_token"] == pytest.approx(summary(trained)["best_val_loss"], abs=1e-6)


def test_the_batch_size_changes_nothing(evaluate: Any, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "my.txt").write_text("the old king fears a young queen.\n" * 19)
    for windows in ([], ["--context", "11", "--stride", "4"]):
        found = [evaluate(trained, "--data", "my.txt", *windows, "--batch-size", size) for size in (1, 7, 1000)]
        for each in found[1:]:
            assert each["nats_per_token"] == pytest.approx(found[0]["nats_per_token"], rel=1e-7)
            assert each["tokens_by_position"] == found[0]["tokens_by_position"]


def test_sliding_windows_have_their_name_and_every_place_its_loss(evaluate: Any, trained: Path) -> None:
    found = evaluate(trained, "--stride", "5")
    assert found["protocol"] == "context 17, stride 5"
    means, counts = found["loss_by_position"], found["tokens_by_position"]
    assert counts[:12] == [1] * 12
    assert sum(counts) == found["tokens"] == evaluate(trained)["tokens"]
    total = sum(mean * count for mean, count in zip(means, counts, strict=True))
    assert total / found["tokens"] == pytest.approx(found["nats_per_token"], rel=1e-6)
    assert evaluate(trained, "--context", "9")["protocol"] == "whole split, windows of 9"


def test_the_terminal_shows_protocol_numbers_and_loss_by_context(command: Any, evaluate: Any, trained: Path) -> None:
    shown = command("evaluate", str(trained)).stdout
    assert shown.startswith(f"model: {trained}/checkpoints/best.ckpt (gptlab run, step 7)\ntext: text, val, sha256 ")
    rows = {line[1:16].strip(): line[16:].split() for line in shown.splitlines() if line.startswith(" ")}
    assert rows["protocol"] == ["whole", "split,", "windows", "of", "17"]
    assert rows["nats per token"] == [f"{summary(trained)['best_val_loss']:.4f}"]
    assert rows["tokens"] == rows["bytes"] == [f"{evaluate(trained)['tokens']:,}"]
    assert [line.split()[0] for line in shown.partition("had shown:")[2].splitlines() if line[1:2].isdigit()] == [
        *("1", "2", "3-4", "5-8", "9-16", "17")
    ]


@pytest.mark.parametrize("tokenizer", ["word", "bpe"])
def test_documents_a_test_part_and_any_tokenizer_are_measured_as_in_training(
    run: Any, evaluate: Any, tmp_path: Path, text_file: Path, tokenizer: str
) -> None:
    lines = text_file.read_text().splitlines()
    (tmp_path / "set.jsonl").write_text(
        "".join(json.dumps({"text": "\n".join(lines[i : i + 9])}) + "\n" for i in range(0, 2000, 9))
    )
    size = ["tokenizer.vocab_size=300"] if tokenizer == "bpe" else []
    parts = ("data.split=document", "data.test_fraction=0.2", f"data.path={tmp_path / 'set.jsonl'}")
    run(tmp_path / "run", *QUICK, f"tokenizer={tokenizer}", *size, *parts)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert_is_the_runs_own(evaluate(last), tmp_path / "run")
    assert_is_the_runs_own(evaluate(last, "--split", "test"), tmp_path / "run", "test")
    whole, parts = (
        evaluate(last, "--split", "all"),
        [evaluate(last, "--split", part) for part in ("train", "val", "test")],
    )
    assert whole["tokens"] + 1 == sum(part["tokens"] + 1 for part in parts)
    assert whole["notes"] == [f"{last} has learned from this very text"]


def test_a_stream_of_the_hub_is_not_read_again(
    run: Any, evaluate: Any, command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("datasets")
    fineweb_edu(tmp_path / "set")
    place = f"data.path={tmp_path / 'set'}"
    run(tmp_path / "run", *QUICK, "data=hub", place, "data.val_fraction=0.4", "tokenizer=byte", "model.block_size=5")
    monkeypatch.setattr("gptlab.data.prepare._build", None)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert_is_the_runs_own(evaluate(last), tmp_path / "run")
    assert evaluate(last, "--compare", "uniform")["compare"]["bits_per_byte"] > 8  # the mark of an end has no bytes
    assert_refused(
        command("evaluate", str(last), "--split", "all"), "there are only the ids of each part", "--data FILE"
    )


def test_bf16_measures_what_a_bf16_run_has_measured(
    run: Any, evaluate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptlab.system.accelerator.peak_flops", lambda *arguments: 1e12)  # which takes long in bf16
    run(tmp_path / "run", *QUICK, "precision=bf16")
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert_is_the_runs_own(evaluate(last, "--precision", "bf16"), tmp_path / "run")


# Other texts


def test_a_file_counts_whole_and_what_is_left_out_is_said(
    evaluate: Any, command: Any, trained: Path, tmp_path: Path
) -> None:
    (tmp_path / "my.txt").write_text("the cat Ω sees 7 dogs ΩΩ.\n" * 9)
    found = evaluate(trained, "--data", "my.txt")
    known = "the cat  sees  dogs .\n" * 9
    assert (found["tokens"], found["protocol"]) == (len(known) - 1, "whole text, windows of 17")
    assert found["data"]["left_out"] == {"7": 9, "Ω": 27}
    note = "left out, since there is no token for them: 36 characters, 2 distinct: '7' 'Ω'"
    assert found["notes"] == [note]
    assert f"note: {note}\n" in command("evaluate", str(trained), "--data", "my.txt").stdout
    (tmp_path / "known.txt").write_text(known)
    assert evaluate(trained, "--data", "known.txt")["nats_per_token"] == found["nats_per_token"]
    parts = [evaluate(trained, "--data", "known.txt", "--split", part)["tokens"] for part in ("train", "val")]
    assert parts == [int(len(known) * 0.9) - 1, len(known) - int(len(known) * 0.9) - 1]


def test_the_number_of_a_text_is_that_of_a_plain_pass_over_it(evaluate: Any, trained: Path, tmp_path: Path) -> None:
    text = "the king loves a dog"
    (tmp_path / "my.txt").write_text(text)
    model, tokenizer, _ = checkpoint.load_checkpoint(trained)
    ids = torch.from_numpy(tokenizer.encode(text))
    with torch.no_grad():
        first, rest = (F.cross_entropy(model(ids[None, a:b])[0], ids[a + 1 : b + 1]) for a, b in ((0, 17), (17, 19)))
    found = evaluate(trained, "--data", "my.txt")
    assert found["nats_per_token"] == pytest.approx((17 * first + 2 * rest).item() / 19, rel=1e-5)


def test_rows_are_read_by_their_key_and_the_verb_names_its_own_flags(
    evaluate: Any, command: Any, tmp_path: Path, text_file: Path
) -> None:
    lines = text_file.read_text().splitlines()[:50]
    rows = [{"body": line, "id": i} for i, line in enumerate(lines)] + [{"body": None, "id": -1}]
    (tmp_path / "my.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "my.txt").write_text("<|endoftext|>".join(lines))
    found = command("evaluate", "uniform", "--data", "my.jsonl", "--text-key", "body", "--json")
    assert (found.returncode, found.stderr) == (0, "")
    note = "--text-key body: rows without such a text are skipped: "
    assert json.loads(found.stdout)["notes"] == [f"{note}{1 + lines.count('')} of 51"]
    kept = [line for line in lines if line]
    assert json.loads(found.stdout)["bytes"] == sum(len(line.encode()) for line in kept) - 1
    assert json.loads(found.stdout)["data"]["read"].startswith(f"my.jsonl (json); {len(kept)} documents; ")
    plain = evaluate("uniform", "--data", "my.txt")
    assert (plain["tokens"], plain["bytes"]) == (json.loads(found.stdout)["tokens"], json.loads(found.stdout)["bytes"])
    assert '"<|endoftext|>" between documents' in plain["data"]["read"]
    assert_refused(command("evaluate", "uniform", "--data", "my.jsonl"), "--text-key text: my.jsonl has no such text")
    assert_refused(
        command("evaluate", "uniform", "--data", "my.jsonl", "--text-key", "id"), "--text-key id is a number"
    )
    assert_refused(
        command("evaluate", "uniform", "--data", "my.txt", "--separator", "##"), '--separator "##": does not'
    )
    for flag, value in {"--text-key": "a", "--separator": "a", "--format": "text", "--named-parts": "true"}.items():
        assert_refused(command("evaluate", "uniform", flag, value), f"{flag} says how --data FILE is read")
    (tmp_path / "page.html").write_text("<p>words</p>")
    assert_refused(
        command("evaluate", "uniform", "--data", "page.html"), "--data page.html looks like", "--format text"
    )
    assert evaluate("uniform", "--data", "page.html", "--format", "text")["bytes"] == 11


def test_a_published_data_set_has_parts_of_its_own(evaluate: Any, run: Any, tmp_path: Path, text_file: Path) -> None:
    lines = [f"{line}\n{line}" for line in text_file.read_text().splitlines() if line]
    ends = {"train": lines[:150], "validation": lines[150:170], "test": lines[170:185]}
    for name, texts in ends.items():
        (tmp_path / "set" / f"{name}-0.jsonl").parent.mkdir(exist_ok=True)
        (tmp_path / "set" / f"{name}-0.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    (tmp_path / "set" / "README.md").write_text("NEVER TO BE READ")
    run(tmp_path / "run", *QUICK, f"data.path={tmp_path / 'set'}")
    for split, name in (("train", "train"), ("val", "validation"), ("test", "test")):
        found = evaluate(tmp_path / "run", "--split", split)
        assert found["bytes"] == sum(len(text.encode()) for text in ends[name]) - 1
    assert_is_the_runs_own(evaluate(tmp_path / "run"), tmp_path / "run")
    read = evaluate(tmp_path / "run")["data"]["read"]
    assert read.startswith(
        "3 files (json); train is train-0.jsonl; val is validation-0.jsonl; test is test-0.jsonl; 185"
    )
    assert read.endswith("; not read: 1 README.md")


def test_what_is_no_part_of_a_data_set_is_asked_about_and_separators_can_be_left(
    evaluate: Any, command: Any, tmp_path: Path
) -> None:
    for name in ("train", "test", "notes"):
        (tmp_path / "set" / f"{name}.md").parent.mkdir(exist_ok=True)
        (tmp_path / "set" / f"{name}.md").write_text(f"{name}<|endoftext|>of text")
    asked = "--named-parts true reads those parts alone, --named-parts false all as one text"
    assert_refused(command("evaluate", "uniform", "--data", "set"), asked)
    both = evaluate("uniform", "--data", "set", "--named-parts", "true")["data"]["read"]
    assert both.startswith("2 files (prose); train is train.md; test is test.md; 4 documents")
    assert evaluate("uniform", "--data", "set", "--named-parts", "false")["data"]["read"].startswith(
        "3 files (prose); 6"
    )
    found = evaluate("uniform", "--data", "set/notes.md", "--separator", "null")
    assert found["bytes"] == len("notes<|endoftext|>of text") - 1


def test_a_runs_own_text_given_as_a_file_is_held_out_all_the_same(
    evaluate: Any, trained: Path, text_file: Path, tmp_path: Path
) -> None:
    """The text lies elsewhere, as if it had moved; without --split only the part that the run held out counts."""
    shutil.copy(text_file, tmp_path / "moved.txt")
    last = trained / "checkpoints" / "last.ckpt"
    assert_is_the_runs_own(evaluate(last, "--data", "moved.txt"), trained)
    found = evaluate(last, "--data", "moved.txt", "--split", "all")
    assert found["notes"] == [f"{last} has learned from this very text"]


def test_a_model_that_may_have_seen_the_text_is_named(run: Any, evaluate: Any, trained: Path, tmp_path: Path) -> None:
    run(tmp_path / "run", *QUICK, "data.val_fraction=0.2")
    found = evaluate(trained, "--compare", tmp_path / "run")
    assert found["notes"] == [
        f"{tmp_path / 'run'} holds out another part of this text, and may have learned from this one"
    ]


# Tables of counts


def test_uniform_bytes_have_eight_bits(evaluate: Any, text_file: Path) -> None:
    found = evaluate("uniform", "--data", text_file)
    assert found["bits_per_byte"] == pytest.approx(8, rel=1e-15)
    assert found["bytes"] == len(text_file.read_bytes()) - 1
    assert found["protocol"] == "whole text, no context"


def test_six_grams_on_tiny_shakespeare(evaluate: Any, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPTLAB_DATA", str(data_dir))
    found = evaluate("ngram:6")
    assert found["nats_per_token"] == pytest.approx(1.52, abs=0.01)
    assert (found["tokens"], found["data"]["name"], found["data"]["split"]) == (111_539, "shakespeare_char", "val")
    assert found["protocol"] == "whole split, 5 tokens of context"


def test_a_table_beside_a_run_has_its_tokens_and_its_train_part(evaluate: Any, byte_run: Path, text_file: Path) -> None:
    found = evaluate(byte_run, "--compare", "ngram:2")
    table = found["compare"]
    assert (table["tokenizer"], table["vocab_size"], table["tokens"]) == ("byte", 256, found["tokens"])
    assert "loss_by_position" not in table
    alone = evaluate("ngram:2", "--data", text_file, "--tokenizer", "byte")
    assert (alone["nats_per_token"], alone["data"]["split"]) == (table["nats_per_token"], "val")
    assert found["difference"]["words"].startswith("B is better by")  # after seven steps
    chars = evaluate("ngram:2", "--data", text_file)
    assert chars["tokenizer"] == "char"
    assert chars["nats_per_token"] == pytest.approx(alone["nats_per_token"], rel=0.01)
    learned = evaluate("ngram:6", "--data", text_file, "--split", "train")
    assert learned["notes"] == ["ngram:6 was counted on this very text"]


# Two models


def test_models_with_the_same_tokens_are_compared_by_token(evaluate: Any, command: Any, trained: Path) -> None:
    last = trained / "checkpoints" / "last.ckpt"
    first = next((trained / "checkpoints").glob("best.ckpt"))
    found = evaluate(last, "--compare", first, "--seed", "3")
    difference = found["difference"]
    assert difference["unit"] == "nats per token"
    assert difference["mean"] == pytest.approx(found["nats_per_token"] - found["compare"]["nats_per_token"], abs=1e-9)
    assert difference["low"] <= difference["mean"] <= difference["high"]
    assert difference["seed"] == 3
    assert evaluate(last, "--compare", first, "--seed", "3")["difference"] == difference
    shown = command("evaluate", str(last), "--compare", str(first), "--seed", "3").stdout
    assert shown.startswith(f"A: {last} ")
    assert f"\nB: {first} " in shown
    assert shown.endswith(f"{difference['words']}\n{difference['method']}\n")


def test_models_with_other_tokens_are_compared_by_bytes_of_the_same_text(
    evaluate: Any, trained: Path, byte_run: Path, text_file: Path, tmp_path: Path
) -> None:
    found = evaluate(byte_run, "--compare", trained)
    assert found["difference"]["unit"] == "bits per byte"
    bits = found["bits_per_byte"] - found["compare"]["bits_per_byte"]
    assert found["difference"]["mean"] == pytest.approx(bits, abs=1e-9)
    assert (found["protocol"], found["compare"]["protocol"]) == (
        "whole split, windows of 29",
        "whole split, windows of 17",
    )
    (tmp_path / "my.txt").write_text("the old cat Ω sees the dog.\n" * 99)  # Ω is known to one of them
    found = evaluate(byte_run, "--compare", trained, "--data", "my.txt")
    assert found["bytes"] == found["compare"]["bytes"] == len("the old cat  sees the dog.\n" * 99) - 1
    assert found["data"]["left_out"] == {"Ω": 99}


def test_words_compare_with_no_other_tokens(run: Any, command: Any, trained: Path, tmp_path: Path) -> None:
    run(tmp_path / "run", *QUICK, "tokenizer=word")
    assert_refused(
        command("evaluate", str(trained), "--compare", str(tmp_path / "run")), "bits per byte do not compare"
    )


# Memorisation


def test_what_stands_in_the_training_text_is_found_and_natural_text_beside_it(
    evaluate: Any, command: Any, trained: Path, text_file: Path, tmp_path: Path
) -> None:
    text = text_file.read_text()
    train, val = text[: int(len(text) * 0.9)], text[int(len(text) * 0.9) :]
    copied = train[1009:1409]
    (tmp_path / "sample.txt").write_text("X" * 199 + copied + "Y" * 401)
    found = evaluate(trained, "--memorised", "--sample", "sample.txt")
    assert found["longest"][0] == {"characters": 400, "text": copied, "begin": 199, "found": 1009}
    assert found["sample"] == {
        "characters": 1000,
        "longest": 400,
        "share_in_copies": {"10": 0.4, "20": 0.4, "30": 0.4, "50": 0.4},
    }
    beside = found["held_out"]
    assert (beside["characters"], val[: beside["longest"]]) != (0, "")
    assert 10 < beside["longest"] < 100
    shown = command("evaluate", str(trained), "--memorised", "--sample", "sample.txt").stdout
    assert f"   400  at 1,009        {copied[:120]!r} ...\n" in shown
    assert (
        evaluate("ngram:6", "--data", text_file, "--memorised", "--sample", "sample.txt")["sample"] == found["sample"]
    )


def test_a_model_writes_a_sample_of_its_own(evaluate: Any, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptlab.evaluation.measurements.SAMPLE_TOKENS", 230)
    found = evaluate(trained, "--memorised", "--seed", "5")
    assert found["sample"]["characters"] == found["held_out"]["characters"] == 230
    assert found["origin"] == "230 tokens in 10 texts, at temperature 1, seed 5"
    assert evaluate(trained, "--memorised", "--seed", "5") == found
    assert evaluate(trained, "--memorised", "--seed", "6")["longest"] != found["longest"]


# Refusals


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none"], ["none"]),
        (["{trained}", "--context", "18"], ["--context 18: must be at least 1 and at most", "block_size=17"]),
        (
            ["{trained}", "--context", "7", "--stride", "8"],
            ["--stride 8: must be at least 1 and at most the context, 7"],
        ),
        (["{trained}", "--split", "test"], ["--split test: text has no test part (data.test_fraction=0)"]),
        (["{trained}", "--data", "none.txt"], ["--data none.txt: no such file"]),
        (["{trained}", "--data", "/dev/null"], ["--data /dev/null is no file"]),
        (["{trained}", "--data", "short.txt"], ["the text is too short: it has 1 token,"]),
        (["{trained}", "--data", "unknown.txt"], ["the text is too short: it has 0 tokens"]),
        (["{trained}", "--data", "empty.txt"], ["--data empty.txt is empty"]),
        (["{trained}", "--data", "fineweb_edu"], ["--data fineweb_edu: give a file", "shakespeare_char"]),
        (["{trained}", "--data", "two.txt", "--compare", "uniform"], ["too short for a comparison"]),
        (["{trained}", "--device", "cuda"], ["--device cuda: there is none here; use --device cpu"]),
        (["{trained}", "--precision", "int8", "--device", "cuda"], ["--precision int8 is for a CPU", "or use bf16"]),
        (["{trained}", "--precision", "int8", "--memorised"], ["int8 and --memorised do not go together"]),
        (["ngram:2", "--precision", "int4"], ["--precision int4: ngram:2 is a table of counts; leave it out"]),
        (["{trained}", "--batch-size", "0"], ["--batch-size 0: must be at least 1"]),
        (["{trained}", "--seed", "-1"], ["--seed -1: must be at least 0"]),
        (["{trained}", "--tokenizer", "byte"], ["--tokenizer byte is for ngram:N and uniform"]),
        (["{trained}", "--compare", "ngram:6", "--split", "all"], ["--split all: what comes from the train part"]),
        (["{trained}", "--memorised", "--split", "train"], ["--split train: with --memorised"]),
        (["{trained}", "--memorised", "--sample", "none.txt"], ["--sample none.txt: no such file"]),
        (["{trained}", "--memorised", "--sample", "empty.txt"], ["the sample is empty"]),
        (["ngram:7"], ["ngram:7: the order must be a number from 1 to 6, as in ngram:6"]),
        (["ngram:0"], ["ngram:0: the order must be"]),
        (["ngram:two"], ["ngram:two: the order must be"]),
        (["ngram:6", "--context", "5"], ["--context and --stride are for models with windows"]),
        (["ngram:6", "--memorised"], ["--memorised: ngram:6 writes nothing here", "--sample FILE"]),
        (["ngram:6", "--data", "two.txt", "--split", "test"], ["--split test: text has no test part"]),
    ],
)
def test_what_evaluate_refuses(
    command: Any, trained: Path, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    for name, text in {"short": "t", "unknown": "ΩΩΩ", "empty": "", "two": "the old cat"}.items():
        (tmp_path / f"{name}.txt").write_text(text)
    assert_refused(command("evaluate", *(a.format(trained=trained) for a in arguments)), *words)


@pytest.mark.parametrize(("precision", "most"), [("int8", 0.01), ("int4", 0.3)])
def test_what_few_bits_cost_stands_beside_the_model_itself_or_another(
    evaluate: Any, trained: Path, byte_run: Path, precision: str, most: float
) -> None:
    found = evaluate(trained, "--precision", precision)
    assert found["model"].endswith(f", {precision[3:]} bits")
    assert (found["precision"], found["compare"]["precision"]) == (precision, "fp32")
    assert_is_the_runs_own(found["compare"], trained)
    assert 0 < abs(found["nats_per_token"] - found["compare"]["nats_per_token"]) < most
    low, high = found["difference"]["low"], found["difference"]["high"]
    assert -most < low < high < most
    itself = evaluate(trained, "--precision", precision, "--compare", str(trained))
    assert itself["difference"] == found["difference"]
    other = evaluate(trained, "--precision", precision, "--compare", str(byte_run))
    assert other["nats_per_token"] == found["nats_per_token"]
    assert (other["compare"]["tokenizer"], other["compare"]["precision"]) == ("byte", "fp32")


def test_a_run_whose_text_has_gone_or_changed_names_the_way_out(
    run: Any, command: Any, text_file: Path, tmp_path: Path
) -> None:
    shutil.copy(text_file, tmp_path / "my.txt")
    run(tmp_path / "run", *QUICK, f"data.path={tmp_path / 'my.txt'}")
    (tmp_path / "my.txt").write_text(text_file.read_text().replace("cat", "cow"))
    changed = command("evaluate", "run")
    assert_refused(changed, "the text of run has changed since its training (its sha256 is", "with --data FILE")
    (tmp_path / "my.txt").unlink()
    gone = command("evaluate", "run")
    assert_refused(gone, "my.txt: no such file", "It is the text of run: if it has moved, give it with --data FILE")
    assert command("evaluate", "run", "--data", str(text_file)).returncode == 0


def test_a_model_without_a_text_of_its_own_needs_one(
    command: Any, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gptlab.formats import open_model

    def foreign(name: str, **options: Any) -> Any:
        model, tokenizer, info = checkpoint.load_checkpoint(trained)
        return model, tokenizer, description.ModelInfo(info.path, None, {}, {}, None, "nanoGPT")

    monkeypatch.setattr(open_model, "load_model", foreign)
    assert_refused(command("evaluate", "gpt2"), "gpt2 brings no text: give one with --data FILE")


@pytest.mark.parametrize(
    "arguments", [[], ["a", "--memorised", "--compare", "b"], ["a", "--sample", "b"], ["a", "--split", "half"]]
)
def test_flags_that_do_not_go_together(command: Any, arguments: list[str]) -> None:
    assert command("evaluate", *arguments).returncode == 2


def test_a_broken_checkpoint_has_no_loss(command: Any, trained: Path, tmp_path: Path) -> None:
    content = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)
    content["state_dict"]["model.ln_f.weight"].fill_(float("nan"))
    checkpoint.save_checkpoint(content, tmp_path / "nan.ckpt")
    assert_refused(command("evaluate", "nan.ckpt"), "the loss is nan: the weights are broken")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from gptlab import evaluate\n"
        "try: evaluate.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert not set(process.stderr.split()) & {"torch", "numpy", "pandas", "rich", "tiktoken"}
