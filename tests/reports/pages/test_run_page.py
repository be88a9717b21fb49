"""A run's page: what it says of a run, on run directories that look as `fit` writes them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from gptlab.reports.pages import files, run_page
from gptlab.reports.pages.run_page import write_run_page
from gptlab.system.errors import UserError
from gptlab.system.files import write_json
from tests.conftest import ROOT
from tests.reports.pages.reading import Reader, read_page
from tests.reports.test_report import CONFIG, fake_run


def page_of(path: Path) -> dict[str, Any]:
    return read_page(write_run_page(path))


def rewrite(path: Path, **values: Any) -> None:
    """Change a JSON file of a fake run."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_page_says_what_a_run_has_reached(tmp_path: Path) -> None:
    data = page_of(fake_run(tmp_path / "run", 1.5))
    assert (data["name"], data["status"]) == ("gpt3m", "finished after 5,000 steps")
    assert data["headline"][:3] == [
        ["val/loss, nats per token", "1.5000"],
        ["best val/loss, at step 4,750", "1.4900"],
        ["val/bpb, bits per byte", "2.1640"],
    ]
    facts = dict(data["numbers"])
    assert facts["tokens"] == "40,960,000"
    assert facts["memory at its peak"] == "1.00 GB"
    assert dict(data["surroundings"])["torch"] == "2.13.0"
    assert "n_head: 4" in data["config"]
    assert [chart["title"] for chart in data["charts"] if not chart["folded"]] == [
        "Loss",
        "Learning rate",
        "Norm of the gradient, before clipping",
    ]
    assert data["charts"][0]["lines"] == ["train/loss", "val/loss"]
    assert data["charts"][0]["unit"] == "nats per token"
    assert len(data["curves"]["lines"]["val/loss"]["y"]) == 21
    assert "older version" in data["presets"]["why"]
    assert data["samples"] == []


def test_a_page_says_what_is_noteworthy(tmp_path: Path) -> None:
    path = fake_run(
        tmp_path / "run",
        1.5,
        summary={"status": "stopped_early", "skipped_steps": 3, "baseline": {"name": "ngram:4", "val/loss": 1.75}},
        environment={"git_commit": "96435ae-dirty"},
        trainer={**CONFIG["trainer"], "patience": 2, "ema": 0.99},
        optim={**CONFIG["optim"], "grad_clip": 0.4},
    )
    notes = page_of(path)["notes"]
    for words in (
        "It stopped before it had made trainer.max_steps=5000, by trainer.patience=2.",
        "The lowest val/loss, 1.4900, was at step 4,750; it rose by 0.0100 after that.",
        "val/loss is 0.2500 below 1.7500, the loss of a table of counts on the same text (ngram:4).",
        "3 steps had no finite gradients and were left out.",
        "The gradient was clipped, to a norm of 0.4, at 100% of the logged steps.",
        "an average of the weights (trainer.ema=0.99)",
        "The code had changes that were not committed.",
    ):
        assert sum(words in note for note in notes) == 1, words
    assert len(notes) == 7


def test_a_loss_that_still_falls_is_noteworthy(tmp_path: Path) -> None:
    path = fake_run(tmp_path / "run", 1.5, summary={"best_val_loss": 1.5, "best_step": 5000})
    rows = [f"{step},,{2 - step / 10_000},,,,,," for step in range(0, 5001, 1000)]
    header = (path / "metrics.csv").read_text().partition("\n")[0]
    (path / "metrics.csv").write_text("\n".join([header, *rows]))
    assert page_of(path)["notes"] == ["val/loss was still falling at the end: by 0.2000 since step 3,000."]
    (path / "metrics.csv").write_text("\n".join([header, *rows[:4], "4000,,1.5001,,,,,,", "5000,,1.5,,,,,,"]))
    assert page_of(path)["notes"] == ["val/loss was still falling at the end: by 0.2000 since step 3,000."]
    (path / "metrics.csv").write_text("\n".join([header, "0,,1.6,,,,,,", "3000,,1.501,,,,,,", "5000,,1.5,,,,,,"]))
    assert page_of(path)["notes"] == []


def test_a_task_shows_its_own_measures(tmp_path: Path) -> None:
    path = fake_run(
        tmp_path / "run",
        -0.75,
        task={"name": "grpo"},
        summary={"val/reward": 0.75, "val/kl": 1.25, "val/pass_at_4": 0.5, "test/reward": 0.7, "best_val_loss": -0.75},
    )
    columns = "step,tokens,seconds,train/loss,train/reward,train/kl_of_answer,val/loss,val/reward,val/kl,val/pass_at_1"
    (path / "metrics.csv").write_text(f"{columns},val/pass_at_4,lr\n1,9,1,0.1,0.2,0.3,-0.1,0.1,1,0.3,0.5,0.1\n")
    data = page_of(path)
    assert ["val/reward", "0.7500"] in data["headline"]
    facts = dict(data["numbers"])
    assert facts["val/kl, nats per answer"] == "1.2500"
    assert facts["val/pass_at_4"] == "50.00%"
    assert facts["test/reward"] == "0.7000"
    charts = {chart["title"]: chart["lines"] for chart in data["charts"]}
    assert charts["train/loss"] == ["train/loss"]  # another measure than
    assert charts["val/loss"] == ["val/loss"]
    assert charts["Reward"] == ["train/reward", "val/reward"]
    assert charts["Right within k answers (pass at k)"] == ["val/pass_at_1", "val/pass_at_4"]
    assert charts["KL of an answer from the reference"] == ["train/kl_of_answer"]
    fake_run(tmp_path / "judge", 0.5, task={"name": "reward"})
    commands = [command for _, command in page_of(tmp_path / "judge")["commands"]]
    assert not any("gptlab.generate" in command for command in commands)  # it writes no text


def test_commands_can_be_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["experiment=first", "hydra.run.dir='there'", "hydra.mode=RUN", "resume=auto", "data.path='my text.txt'"]
    fake_run(Path("outputs/my run"), 1.5, environment={"command": ["/home/me/gptlab/train.py", *words]})
    commands = dict(page_of(Path("outputs/my run"))["commands"])
    assert commands["repeats it, into another folder"] == (
        "python -m gptlab.train experiment=first \"data.path='my text.txt'\""
    )
    assert commands["writes a text with it"] == 'python -m gptlab.generate "outputs/my run" --max-new-tokens 300'
    again = commands["resumes it for as many steps again"]
    assert again.startswith("python -m gptlab.train \"resume='outputs/my run'\" trainer.max_steps=10000 ")
    fake_run(
        Path("two"), 1.5, environment={"command": ["/usr/bin/pytest", "tests"]}, summary={"status": "stopped_early"}
    )
    assert [what for what, _ in page_of(Path("two"))["commands"]] == [
        "writes a text with it",
        "shows more curves, and those of other runs",
    ]


def test_names_texts_and_paths_are_no_html(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\u2028"
    path = fake_run(
        tmp_path / "<script>alert(3)<",
        1.5,
        name=evil,
        data={**CONFIG["data"], "path": evil},
        environment={"command": ["train.py", f"name={evil}"], "device": evil},
        summary={"device": evil, "baseline": {"name": evil, "val/loss": 1.0}},
    )
    (path / "samples.txt").write_text(f"--- step 0\n{evil}\n", "utf-8")
    write_json(path / "presets.json", {"groups": [evil], "values": [], "presets": {evil: evil}, "defaults": {evil: 1}})
    data = page_of(path)  # which checks how many scripts there are
    text = (path / "index.html").read_text("utf-8")
    assert "alert" in text
    assert not re.search("<script>alert|<img", text)
    assert data["samples"] == [{"step": 0, "text": evil}]
    assert data["name"] == evil
    assert [evil, evil, "-"] in data["presets"]["changed"]
    assert Reader(text).of("title") == [f"{evil}, finished after 5,000 steps"]


def test_numbers_that_are_none_make_a_page(tmp_path: Path) -> None:
    """What a run that has gone wrong leaves, or somebody who has written a summary by hand."""
    nan, inf = float("nan"), float("inf")
    wrong = {"val/bpb": nan, "best_val_loss": inf, "best_step": "first", "mfu": None, "peak_memory_bytes": "much"}
    wrong["trained_parameters"] = "all"
    path = fake_run(tmp_path / "run", 1.5, summary={**wrong, "train/loss": nan, "train_seconds": inf, "tokens": nan})
    header, *rows = (path / "metrics.csv").read_text().splitlines()
    (path / "metrics.csv").write_text("\n".join([header, "1,inf,nan,,,,,,", *rows]))
    data = page_of(path)
    assert ["val/bpb, bits per byte", "not finite"] in data["headline"]
    assert data["curves"]["lines"]["train/loss"]["y"][0] is None
    assert any("train/loss (1 point), val/loss (1 point)" in note for note in data["notes"])


def test_a_run_that_has_not_finished_has_no_page(tmp_path: Path) -> None:
    path = fake_run(tmp_path / "run", 1.5)
    (path / "summary.json").unlink()
    with pytest.raises(UserError, match="has not finished"):
        write_run_page(path)
    assert not (path / "index.html").exists()


def test_a_page_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fake_run(tmp_path / "run", 1.5)
    before = write_run_page(path).read_bytes()
    rewrite(path / "summary.json", steps=1)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="cannot write in"):
        write_run_page(path)
    assert (path / "index.html").read_bytes() == before
    assert not [*path.glob(".*.tmp")]


def test_a_long_run_has_a_small_page_soon(tmp_path: Path) -> None:
    path = fake_run(tmp_path / "run", 1.5)
    header = "step,tokens,seconds,train/loss,val/loss,val/bpb,val/ppl,val/gap,lr,grad_norm,tokens_per_sec,mfu"
    rows = [f"{i},{64 * i},{i / 7},{3 / (i + 1)},,,,,{1 / i},{i % 7},{1e5 + i},0.1234" for i in range(1, 100_001)]
    (path / "metrics.csv").write_text("\n".join([header, *rows]))
    (path / "samples.txt").write_text("".join(f"--- step {i}\n{'x' * 300}\n" for i in range(0, 100_000, 25)))
    start = time.process_time()
    write_run_page(path)
    assert time.process_time() - start < 2  # 0.4 on a quiet machine
    assert (path / "index.html").stat().st_size < 1_000_000


def test_it_imports_nothing_heavy(tmp_path: Path) -> None:
    """It is written at the end of each run."""
    fake_run(tmp_path / "run", 1.5)
    code = (
        "import sys; from pathlib import Path; from gptlab.reports.pages.run_page import write_run_page\n"
        "write_run_page(Path('run'))\n"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    process = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert not set(process.stdout.split()) & {"pandas", "matplotlib", "scipy", "hydra", "omegaconf", "torch", "rich"}


@pytest.mark.parametrize("kind", sorted(files.SCRIPTS))
def test_what_the_script_looks_for_is_in_the_page(kind: str) -> None:
    ids = set(Reader((files.HERE / f"{kind}.html").read_text("utf-8")).ids) | {"data"}
    scripts = "".join((files.HERE / name).read_text("utf-8") for name in files.SCRIPTS[kind])
    looked_for = set(re.findall(r'byId\("([\w-]+)"\)', scripts))
    assert looked_for <= ids
    assert not re.search("innerHTML|outerHTML|insertAdjacentHTML|document.write|eval\\(", scripts)


def test_the_page_of_a_real_run(trained: Path) -> None:
    data = run_page.run_data(run_page.read_run(trained))
    assert [each["step"] for each in data["samples"]] == [0, 3, 6, 7]
    assert data["curves"]["axes"]["step"][-1] == 7
    assert set(data["curves"]["axes"]) == {"step", "tokens", "seconds"}
