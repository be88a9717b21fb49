"""`python -m gptlab.prepare`, as a user types it, and runs on what it writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gptlab.data.tokenizers import END_OF_TEXT
from gptlab.formats import checkpoint
from gptlab.system.errors import UserError
from tests.conftest import HARD, TINY, Result
from tests.data.test_ready_ids import array, raw
from tests.test_cli import assert_refused
from tests.test_evaluate import QUICK, assert_is_the_runs_own, summary
from tests.training.runs_compared import rows
from tests.training.test_fit import curve
from tests.training.test_resume import goes_on

BPE = ("tokenizer=bpe", "tokenizer.vocab_size=300")


@pytest.fixture
def prepared(command: Any, text_file: Path, tmp_path: Path) -> Any:
    """prepared(folder, *words) writes the text, or one of documents, as ids into a folder and returns it."""

    def prepared(name: str, *words: str, path: Path = text_file) -> Path:
        where = ("data=text", f"data.path='{path}'", "data.cache_dir=cache")
        result: Result = command("prepare", *where, *words, "--to", "bin", "--out", name)
        assert result.returncode == 0, result.stderr
        assert result.stdout.splitlines()[-1].startswith(f"{name}: gptlab_tokenizer.json ")
        return tmp_path / name

    return prepared


@pytest.fixture(scope="module")
def documents(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "documents.txt"
    lines = text_file.read_text().splitlines()
    path.write_text(END_OF_TEXT.join("\n".join(lines[i : i + 9]) for i in range(0, 2000, 9)))
    return path


@pytest.mark.parametrize(
    ("of_documents", "words"),
    [
        (False, ("data.order=epochs",)),
        (True, ("data.test_fraction=0.2",)),
        (True, ("data.split=document", *BPE)),
    ],
)
def test_a_run_on_what_was_written_is_the_run_on_the_text(
    prepared: Any,
    run: Any,
    text_file: Path,
    documents: Path,
    tmp_path: Path,
    of_documents: bool,
    words: tuple[str, ...],
) -> None:
    path = documents if of_documents else text_file
    folder = prepared("ids", *words, path=path)
    how = [word for word in words if word.startswith("data.order")]
    a = run(tmp_path / "text", *words, f"data.path='{path}'")
    b = run(tmp_path / "bin", "data=bin", f"data.path={folder}", *how)
    assert rows(tmp_path / "bin") == rows(tmp_path / "text")
    assert [a.get(f"{part}/{what}") for part in ("val", "test") for what in ("loss", "bpb")] == [
        b.get(f"{part}/{what}") for part in ("val", "test") for what in ("loss", "bpb")
    ]
    models = [checkpoint.load_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("text", "bin")]
    for mine, theirs in zip(*(model.parameters() for model, _, _ in models), strict=True):
        assert torch.equal(mine, theirs)
    assert models[0][1].to_dict() == models[1][1].to_dict()


def test_a_stopped_run_on_ids_goes_on_bit_for_bit(prepared: Any, run: Any, tmp_path: Path) -> None:
    folder = prepared("ids")
    goes_on(run, tmp_path, ("data=bin", f"data.path={folder}", *HARD), 7)


def test_a_run_goes_on_with_its_own_ids_wherever_they_lie(prepared: Any, run: Any, tmp_path: Path) -> None:
    folder = prepared("ids")
    run(tmp_path / "run", "data=bin", f"data.path={folder}")
    moved = folder.rename(tmp_path / "moved")
    more = ("data=bin", f"data.path={moved}", "trainer.max_steps=9")
    run(tmp_path / "run", *more, resume=True)
    ids = np.fromfile(moved / "train.bin", "<u2")
    ids[3] = ids[3] ^ 1
    ids.tofile(moved / "train.bin")
    with pytest.raises(UserError, match="the text has changed since"):
        run(tmp_path / "run", *more, "trainer.max_steps=11", resume=True)


def test_the_loss_is_exact_where_a_word_is_cut(
    prepared: Any, run: Any, evaluate: Any, command: Any, tmp_path: Path
) -> None:
    """Tokens that no encoder would give, and half a letter: the loss of the decoded text would be another."""
    folder = prepared("ids", *BPE)
    ids = np.concatenate([np.fromfile(folder / f"{part}.bin", "<u2") for part in ("train", "val")])
    spelled = np.where(np.arange(len(ids)) % 5, ids, 0xC3)  # half a letter
    for part in ("train", "val"):
        (folder / f"{part}.bin").unlink()
    for i, stretch in enumerate(np.array_split(spelled, 3)):
        array(folder / f"{i}.npy", stretch.astype("<i8"))
    run(tmp_path / "run", *QUICK, "data=bin", f"data.path={folder}", "data.test_fraction=0.2")
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    found = evaluate(last)
    assert_is_the_runs_own(found, tmp_path / "run")
    assert_is_the_runs_own(evaluate(last, "--split", "test"), tmp_path / "run", "test")
    assert found["data"]["sha256"] == summary(tmp_path / "run")["data"]["sha256"]
    assert evaluate(last, "--compare", "ngram:2")["compare"]["tokens"] == found["tokens"]
    assert_refused(command("evaluate", str(last), "--split", "all"), "of data=bin there are only the ids of each part")
    assert command("generate", str(last), "the", "--max-new-tokens", "5").returncode == 0
    array(folder / "2.npy", spelled[:100].astype("<i8"))
    assert_refused(command("evaluate", str(last)), "has changed since its training")


def test_characters_without_an_end_of_text_are_measured_and_learned_further(
    prepared: Any, run: Any, evaluate: Any, command: Any, tmp_path: Path
) -> None:
    """nanoGPT's own form: no tokenizer of ours."""
    folder = prepared("ids")
    (folder / "gptlab_tokenizer.json").unlink()
    run(tmp_path / "run", *QUICK, "data=bin", f"data.path={folder}", "trainer.baseline=ngram:2")
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert_is_the_runs_own(evaluate(last), tmp_path / "run")
    assert summary(tmp_path / "run")["data"]["tokenizer"] == "char"
    words = ("data=bin", "data.path=ids", f"init_from={last}", "trainer=cpu", "data.batch_size=6", *QUICK)
    further = command("train", *words, "hydra.run.dir=further")
    assert further.returncode == 0, further.stderr
    assert summary(tmp_path / "further")["data"] == summary(tmp_path / "run")["data"]


@pytest.mark.slow
def test_a_sweep_and_its_report_take_ids(prepared: Any, command: Any, tmp_path: Path) -> None:
    folder = prepared("ids")
    tiny = [word for word in TINY if word != "data=text"]
    result = command("train", "-m", *tiny, *QUICK, "data=bin", f"data.path={folder}", "seed=1,2", "sweep.dir=sweep")
    assert result.returncode == 0, result.stderr
    assert [line.count("finished") for line in result.stdout.splitlines() if line.startswith("2/2")] == [0, 1]
    assert "val/loss" in (tmp_path / "sweep" / "report" / "report.md").read_text()


def test_prepare_without_to_says_where_the_ids_are(command: Any, text_file: Path, tmp_path: Path) -> None:
    words = ("data=text", f"data.path='{text_file}'", "data.cache_dir=cache")
    result = command("prepare", *words)
    counts, folder = result.stdout.splitlines()[-2:]
    assert "training and" in counts
    assert (tmp_path / folder / "index.json").is_file()
    assert command("prepare", *words, "--to", "bin").stdout.splitlines()[-1].startswith("outputs/ids/text-char: ")


def test_what_cannot_be_prepared_is_refused_and_nothing_is_left(command: Any, text_file: Path, tmp_path: Path) -> None:
    words = ("data=text", f"data.path='{text_file}'", "data.cache_dir=cache")
    (tmp_path / "taken").mkdir()
    raw(tmp_path / "taken" / "train.bin", [1])
    before = sorted(tmp_path.rglob("*"))
    for arguments, message in (
        ((*words, "--out", "ids"), "--out ids: is where other programs find the ids; add --to bin"),
        ((*words, "--to", "bin", "--out", "taken"), "taken is there already; choose another name"),
        ((*words, "resume=x", "--to", "bin"), "resume: nothing is trained here: leave it out"),
        (("data=arithmetic", "task=sft", "--to", "bin"), "task=sft: only texts are prepared as ids alone"),
        (("data=bin", "data.path=taken", "tokenizer=byte", "--to", "bin"), "data=bin: the train part has 0 ids"),
        (("data=txt",), "data=txt: there is no such choice"),
    ):
        assert_refused(command("prepare", *arguments), message)
        assert sorted(tmp_path.rglob("*")) == before, arguments


@pytest.mark.slow
def test_two_processes_compute_on_ids_what_one_does(prepared: Any, shell: Any, tmp_path: Path) -> None:
    folder = prepared("ids")
    for devices in (1, 2):
        words = ("data=bin", f"data.path={folder}", f"data.cache_dir={tmp_path}", f"trainer.devices={devices}")
        process = shell("-m", "gptlab.train", *TINY, *words, "trainer.log_every=3", f"hydra.run.dir={devices}")
        _, stderr = process.communicate(timeout=200)
        assert process.returncode == 0, stderr
    for key in ("train/loss", "val/loss", "grad_norm"):
        assert curve(tmp_path / "2", key) == pytest.approx(curve(tmp_path / "1", key), abs=1e-5)
