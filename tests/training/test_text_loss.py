"""The loss of another text, measured beside what a run learns."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from gptlab.system.errors import UserError
from gptlab.training.fit import fit
from tests.training.runs_compared import assert_same_run

QUICK = (
    *("trainer.accelerator=cpu", "trainer.sample_tokens=0", "trainer.diagnose_every=0", "trainer.max_steps=4"),
    *(
        "trainer.val_every=2",
        "trainer.log_every=2",
        "data.val_fraction=0.2",
        "data.batch_size=8",
        "schedule=constant",
        "optim.lr=0.01",
    ),
    *("task.answer_tokens=6", "task.check=3"),
)


@pytest.fixture(scope="module")
def base(run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("base") / "run"
    run(run_dir, "trainer.max_steps=30", "trainer.val_every=30", "model.block_size=48")
    return run_dir


@pytest.fixture
def tune(compose: Any, base: Path, tmp_path: Path) -> Any:
    """tune(name, *overrides) fine-tunes the base; returns the run's folder."""
    rows = [{"prompt": f"the {animal} sees", "completion": animal} for animal in ("cat", "dog") * 20]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def tune(name: str, *overrides: str, **options: Any) -> Path:
        words = "data=chat", f"data.path={tmp_path}/rows.jsonl", "model=pretrained", "tokenizer=pretrained"
        begin = () if any(each.startswith("init_from=") for each in overrides) else (f"init_from={base}",)
        fit(compose(*words, *QUICK, *begin, *overrides), tmp_path / name, **options)
        return tmp_path / name

    return tune


def text_losses(run_dir: Path) -> list[float]:
    with (run_dir / "metrics.csv").open() as file:
        return [float(row["val/text_loss"]) for row in csv.DictReader(file) if row["val/text_loss"]]


@pytest.mark.parametrize("option", ["lora.rank=0", "lora.rank=2", "model.block_size=24"])
def test_it_is_what_evaluate_says_before_and_after(tune: Any, command: Any, base: Path, option: str) -> None:
    run_dir = tune("run", "task.text_loss=base", option)
    found = text_losses(run_dir)
    measured = command("evaluate", str(run_dir), "--task", "--samples", "0", "--json", "--split", "val")
    lost = json.loads(measured.stdout)["forgetting"]
    assert lost["after"] == pytest.approx(found[-1], abs=1e-6)
    assert json.loads((run_dir / "summary.json").read_text())["val/text_loss"] == found[-1]
    # with the rows of new tokens, which get some probability, the first is not to the bit that of the base
    assert lost["before"] == pytest.approx(found[0], abs=0.2)
    assert len(found) == 3


def test_of_a_text_with_a_name_too_and_while_a_text_is_learned(
    tune: Any, compose: Any, base: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.txt"
    other.write_text("the old king fears a young queen.\n" * 60)
    assert len(text_losses(tune("named", f"task.text_loss={other}"))) == 3
    words = "data=text", f"data.path={other}", f"init_from={base}", "model=pretrained", "tokenizer=pretrained"
    fit(compose(*words, *QUICK, "model.block_size=24", "task.text_loss=base"), tmp_path / "text")
    assert len({*text_losses(tmp_path / "text")}) == 3


def test_measuring_changes_nothing_and_goes_on_with_a_resumed_run(tune: Any, tmp_path: Path) -> None:
    """It may be turned on and off there."""
    plain, beside = tune("plain"), tune("beside", "task.text_loss=base")
    weights = [(each / "summary.json").read_text() for each in (plain, beside)]
    losses = [json.loads(text)["val/loss"] for text in weights]
    assert losses[0] == losses[1]
    shutil.copytree(beside, tmp_path / "again")
    further = "trainer.max_steps=8", "task.text_loss=base"
    assert_same_run(tune("again", *further, resume=True), tune("whole", *further))
    assert len(text_losses(tune("beside", "trainer.max_steps=8", resume=True))) == 3


def test_of_rewarded_answers_it_stands_beside_the_rest(tune: Any) -> None:
    answering = tune("answering")
    words = "task=grpo", "task.group=4", "task.samples=2", f"init_from={answering}", "task.text_loss=base"
    assert all(math.isfinite(each) for each in text_losses(tune("grpo", *words)))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["init_from=null", "model=gpt800k", "tokenizer=char"], "is the text of init_from's model; add init_from=..."),
        (["task=classify", "data=labels"], "task.text_loss=base with task=classify: its model has no next token"),
    ],
)
def test_where_there_is_none_it_is_refused(tune: Any, overrides: list[str], words: str) -> None:
    with pytest.raises(UserError) as refused:
        tune("run", "task.text_loss=base", *overrides)
    assert words in str(refused.value)


def test_a_text_or_a_base_that_is_missing_is_named(tune: Any, base: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"task.text_loss=nowhere.txt: .*nowhere.txt.* Leave it out"):
        tune("none", "task.text_loss=nowhere.txt")
    moved = tmp_path / "moved"
    shutil.copytree(base, moved)
    begun = f"init_from={moved}"
    tune("run", begun, "task.text_loss=base")
    shutil.rmtree(moved)
    with pytest.raises(UserError, match=r"task.text_loss=base: the model that it began as is missing"):
        tune("run", begun, "task.text_loss=base", "trainer.max_steps=6", resume=True)
    tune("run", begun, "trainer.max_steps=6", resume=True)


def test_a_base_that_is_another_by_now_is_refused(tune: Any, run: Any, base: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(base, moved)
    begun = f"init_from={moved}"
    tune("run", begun, "task.text_loss=base")
    shutil.rmtree(moved)
    run(moved, "trainer.max_steps=2", "trainer.val_every=2", "model.block_size=48")
    with pytest.raises(UserError, match=r"task.text_loss=base: the model that it began as has changed: .*moved had"):
        tune("run", begun, "task.text_loss=base", "trainer.max_steps=6", resume=True)
