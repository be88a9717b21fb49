"""Naming the class of a text: what the head reads, what is counted, and what comes back."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from gptlab.formats.open_model import load_headed
from gptlab.system.errors import UserError
from gptlab.system.files import read_json
from gptlab.training.fit import fit
from tests.conftest import Result
from tests.training.runs_compared import points
from tests.training.test_fit import curve
from tests.training.test_resume import goes_on

WORDS = ("the", "a", "cat", "dog", "king", "queen", "sees", "loves", "fears", "old", "young", "night", "day")
KINDS = {"cat": "animal", "king": "person", "night": "time"}
SHAPE = ("data=chat", "task=classify", "data.val_fraction=0.2", "data.test_fraction=0.2")
SHORT = ("trainer=cpu", "data.batch_size=8", "trainer.max_steps=5", "trainer.val_every=2", "trainer.log_every=1")
SHORT += ("optim.lr=1e-2", "schedule.warmup_steps=2")
LORA = ("lora.rank=2", "lora.targets=[q,v,c_fc]")
LAST, FIRST = "task.position=last", "task.position=first"


def said(count: int = 60) -> list[dict[str, Any]]:
    """Texts of several lengths, of which the last word decides the class; the first class is half of all."""
    draw = random.Random(0)
    names = ["cat", "cat", "king", "night"]
    lines = []
    for _ in range(count):
        name = draw.choice(names)
        lines.append({"text": " ".join([*draw.choices(WORDS[:2], k=draw.randint(0, 3)), name]), "label": KINDS[name]})
    return lines


def written(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    return path


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("labelled") / "texts.jsonl", said())


@pytest.fixture(scope="session")
def tune(compose: Any, trained: Path, labelled: Path) -> Any:
    """tune(run_dir, *overrides) begins with the model of `trained`, whose text has the same words."""

    def tune(run_dir: Path, *overrides: str, resume: bool = False) -> dict[str, Any]:
        base = ("model=pretrained", "tokenizer=pretrained", f"init_from={trained}", f"data.path={labelled}")
        return fit(compose(*SHAPE, *base, *SHORT, *overrides), run_dir, resume)

    return tune


@pytest.fixture(scope="session")
def learn(run: Any, labelled: Path) -> Any:
    """learn(run_dir, *overrides) begins with nothing."""

    def learn(run_dir: Path, *overrides: str, resume: bool = False) -> dict[str, Any]:
        words = (*SHAPE, f"data.path={labelled}", "model.block_size=29", "optim.lr=1e-2", *overrides)
        return run(run_dir, *words, resume=resume)

    return learn


def last(run_dir: Path) -> Path:
    return run_dir / "checkpoints" / "last.ckpt"


def scored(run_dir: Path, lines: list[dict[str, Any]], block_size: int) -> list[list[float]]:
    """The scores of each text, in float64 and without batches."""
    model, tokenizer, _ = load_headed(last(run_dir))
    found = []
    for each in lines:
        ids = tokenizer.encode(each["text"])[:block_size]
        with torch.no_grad():
            found.append(model.double()(torch.from_numpy(ids)[None], torch.tensor([len(ids)]))[0].tolist())
    return found


def measured(scores: list[list[float]], lines: list[dict[str, Any]], weights: dict[str, float]) -> dict[str, Any]:
    names = sorted({each["label"] for each in said()})
    truth = [names.index(each["label"]) for each in lines]
    taken = [max(range(len(names)), key=row.__getitem__) for row in scores]
    counts = [[sum(t == i and p == j for t, p in zip(truth, taken, strict=True)) for j in range(3)] for i in range(3)]
    f1 = []
    for i in range(3):
        both = sum(counts[i]) + sum(row[i] for row in counts)
        f1 += [2 * counts[i][i] / both] if both else []
    losses = [
        weights[names[t]] * (math.log(sum(map(math.exp, row))) - row[t]) for row, t in zip(scores, truth, strict=True)
    ]
    return {
        "loss": sum(losses) / len(losses),
        "accuracy": sum(t == p for t, p in zip(truth, taken, strict=True)) / len(truth),
        "f1": sum(f1) / len(f1),
        "confusion": {"labels": names, "counts": counts},
    }


@pytest.mark.parametrize(
    ("options", "balance"),
    [
        ((LAST,), False),
        ((FIRST,), True),
        (LORA, True),
        (("task.train=head",), False),
        (("task.train=last_block",), True),
    ],
)
def test_what_is_measured_is_what_the_head_says_of_each_text(
    tune: Any, tmp_path: Path, options: tuple[str, ...], balance: bool
) -> None:
    """The last token is no padding; what fills up the last batch, of 12 texts by 5, counts nothing."""
    summary = tune(tmp_path, *options, f"task.balance={balance}", "data.val_batch_size=5")
    lines = said()
    counts = {kind: sum(each["label"] == kind for each in lines[:36]) for kind in KINDS.values()}
    weights = {kind: 36 / (3 * count) if balance else 1.0 for kind, count in counts.items()}
    for part, rows in (("val", lines[36:48]), ("test", lines[48:])):
        found = measured(scored(tmp_path, rows, 17), rows, weights)
        assert summary[f"{part}/loss"] == pytest.approx(found["loss"], abs=1e-5)
        assert summary[f"{part}/accuracy"] == found["accuracy"]
        assert summary[f"{part}/f1"] == pytest.approx(found["f1"])
    assert summary["confusion"] == found["confusion"]
    assert read_json(tmp_path / "summary.json")["confusion"] == found["confusion"]
    assert len(set(counts.values())) == 3
    assert not (tmp_path / "samples.txt").exists()


def test_the_last_token_tells_the_class_and_the_first_does_not(learn: Any, tmp_path: Path) -> None:
    """From nothing, and more than two classes: what decides stands at the end of the text, and padding after it."""
    words = ("trainer.max_steps=60", "trainer.val_every=60", "schedule=constant")
    end, begin = (learn(tmp_path / each[-4:], each, *words) for each in (LAST, FIRST))
    assert end["test/accuracy"] == end["test/f1"] == 1
    assert begin["test/accuracy"] < 0.9
    assert not [name for name in end if "bpb" in name or "ppl" in name]


def test_a_step_is_the_mean_over_its_texts_weighted_by_class(learn: Any, tmp_path: Path) -> None:
    """Fault 9: micro-batches of any size are the same run, weights and dropout included."""
    curves = []
    for size in (1, 2, 6):
        learn(tmp_path / str(size), f"data.micro_batch_size={size}", "task.balance=true", "model.dropout=0.1")
        curves.append([*curve(tmp_path / str(size)), *curve(tmp_path / str(size), "grad_norm")])
    assert len(curves[0]) == 14
    assert curves[1] == pytest.approx(curves[0], abs=1e-5)
    assert curves[2] == pytest.approx(curves[0], abs=1e-5)


def test_labels_may_be_numbers(learn: Any, tmp_path: Path) -> None:
    numbers = {"animal": 10, "person": 9, "time": 2}
    path = written(tmp_path / "numbers.jsonl", [{**each, "label": numbers[each["label"]]} for each in said()])
    summary = learn(tmp_path / "run", f"data.path={path}")
    assert summary["confusion"]["labels"] == ["2", "9", "10"]
    truth = [sum(row) for row in summary["confusion"]["counts"]]
    assert truth == [sum(numbers[each["label"]] == number for each in said()[48:]) for number in (2, 9, 10)]


def test_generated_labels_are_learned_from(learn: Any, text_file: Path, tmp_path: Path) -> None:
    lines = ("data=labels", f"data.path='{text_file}'", "data.problems.task=words", "model.block_size=67")
    summary = learn(tmp_path, *lines, "data.problems.examples=50", "data.problems.held_out=0.02")
    assert len(summary["confusion"]["labels"]) == 2


RUNS = {
    "from nothing": ("model.dropout=0.1",),
    "from a model": (),
    "adapters": (*LORA, "lora.dropout=0.2"),
    "the head": ("task.train=head",),
    "balanced": ("task.balance=true", "task.train=last_block"),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_stopped_run_goes_on_bit_for_bit(tune: Any, learn: Any, tmp_path: Path, name: str) -> None:
    train = learn if name == "from nothing" else tune
    whole = goes_on(train, tmp_path, (*RUNS[name], "trainer.diagnose_every=2", "data.micro_batch_size=2"), 9)
    shown = points(whole)
    assert "vitals_gradient_norm/score" in shown
    assert not any("loss_by_position" in tag for tag in shown)  # its model predicts no tokens
    state = torch.load(last(whole), weights_only=True)["state_dict"]
    assert "model.score.weight" in state
    assert ("model.gpt.wte.weight" in state) == (name != "adapters")


def test_other_labels_are_other_data(learn: Any, tmp_path: Path) -> None:
    path = written(tmp_path / "texts.jsonl", said())
    learn(tmp_path / "run", f"data.path={path}")
    more = ("trainer.max_steps=9", "schedule.decay_steps=9")
    written(path, [{**each, "label": {"time": "hour"}.get(each["label"], each["label"])} for each in said()])
    with pytest.raises(UserError, match="the text has changed since"):
        learn(tmp_path / "run", f"data.path={path}", *more, resume=True)
    written(path, said())
    learn(tmp_path / "run", f"data.path={path}", *more, resume=True)


@pytest.mark.parametrize("options", [(), LORA])
def test_a_classifier_writes_no_text(command: Any, tune: Any, tmp_path: Path, options: tuple[str, ...]) -> None:
    tune(tmp_path / "classifier", *options)
    for verb in (("generate", "classifier", "the"), ("export", "classifier", "out"), ("evaluate", "classifier")):
        result: Result = command(*verb)
        assert result.returncode == 1
        assert (
            "is a classifier, whose outputs are no text: give a language model, such as its init_from" in result.stderr
        )


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data=labels", "task=pretrain"], "data=labels with task=pretrain: it has labelled texts; use task=classify"),
        (["task=classify"], "data=auto: a text, and task=classify learns from labelled texts; give data=chat"),
        (["data=labels", "task.position=middle"], "task.position=middle: must be one of last, first"),
        (["data=labels", "task.train=head"], "task.train=head: what is not trained would stay random; add init_from"),
        (["data=labels", "lora.rank=2"], "lora.rank=2: what is not trained would stay random; add init_from"),
        (["data=labels", "compile=inductor"], "compile=inductor with task=classify: its rows have many lengths"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_read(
    compose: Any, overrides: list[str], words: str
) -> None:
    with pytest.raises(UserError) as refused:
        compose(*overrides)
    assert words in str(refused.value)
