"""`python -m gptlab.evaluate RUN --task`: how well a fine-tuned run does, beside another, and what it has forgotten."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gptlab.reports import performance
from gptlab.reports.statistics import share_interval, win_rate_interval
from gptlab.training import judges, task_evaluation
from gptlab.training.fit import fit
from tests.conftest import Result
from tests.test_cli import assert_refused
from tests.test_evaluate import summary

Run = Callable[..., Path]
QUICK = (
    *("trainer.accelerator=cpu", "trainer.val_first=false", "trainer.sample_tokens=0", "trainer.diagnose_every=0"),
    *("data.val_fraction=0.2", "data.test_fraction=0.3", "data.batch_size=8", "schedule=constant"),
)


@pytest.fixture
def measure(command: Any) -> Any:
    """measure(RUN, ...) runs `evaluate RUN --task`, which must succeed, and returns its JSON."""

    def measure(*arguments: Any) -> dict[str, Any]:
        result: Result = command("evaluate", *map(str, arguments), "--task", "--json")
        assert (result.returncode, result.stderr) == (0, "")
        return json.loads(result.stdout)

    return measure


@pytest.fixture(scope="module")
def base(run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Knows a text, whose characters those of the tasks are among."""
    run_dir = tmp_path_factory.mktemp("base") / "run"
    run(run_dir, "trainer.max_steps=40", "trainer.val_every=40", "model.block_size=48")
    return run_dir


@pytest.fixture(scope="module")
def tuned(compose: Any, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """tuned(name, rows, *overrides) fine-tunes the base, or what init_from says, on rows, once; returns its folder."""
    folder = tmp_path_factory.mktemp("tuned")

    def tuned(name: str, rows: list[dict[str, Any]], *overrides: str) -> Path:
        run_dir, file = folder / name, folder / f"{name}.jsonl"
        if not run_dir.exists():
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
            words = "data=chat", f"data.path={file}", "model=pretrained", "tokenizer=pretrained", f"init_from={base}"
            fit(compose(*words, *QUICK, *overrides), run_dir)
        return run_dir

    return tuned


def answers(seed: int = 1) -> list[dict[str, Any]]:
    """Two prompts with one answer each, and one with either of them, which nobody can know."""
    draw = random.Random(seed)
    known = [{"prompt": f"the {a} sees", "completion": a} for a in ("cat", "dog")]
    return [
        draw.choice([*known, {"prompt": "the queen sees", "completion": draw.choice(["cat", "dog"])}])
        for _ in range(90)
    ]


@pytest.fixture(scope="module")
def sft(tuned: Run) -> Path:
    return tuned(
        "sft",
        answers(),
        "trainer.max_steps=30",
        "trainer.val_every=30",
        "optim.lr=0.01",
        "task.samples=3",
        "task.answer_tokens=6",
    )


@pytest.fixture(scope="module")
def grpo(tuned: Run, sft: Path) -> Path:
    words = "task=grpo", f"init_from={sft}", "task.answer_tokens=6", "task.group=4", "task.samples=2"
    return tuned("grpo", answers(), *words, "trainer.max_steps=2", "trainer.val_every=2", "optim.lr=0.01")


def test_the_numbers_are_the_runs_own(measure: Any, sft: Path) -> None:
    """With the run's seed and its number of samples all of them are; the intervals are those of their kind."""
    found, own = measure(sft, "--seed", 1337), summary(sft)
    assert found["task"] == "sft"
    assert found["data"] | {"read": None} == {
        "name": "chat",
        "split": "test",
        "sha256": own["data"]["sha256"],
        "read": None,
    }
    for name, value in found["values"].items():
        assert value["value"] == pytest.approx(own[f"test/{name}"], abs=1e-6), name
    assert {"accuracy", "stop_rate", "answer_tokens", "reward", "entropy"} <= found["values"].keys()
    accuracy = found["values"]["accuracy"]
    right = round(accuracy["value"] * accuracy["examples"])
    assert 0 < right < accuracy["examples"]
    assert (accuracy["low"], accuracy["high"]) == pytest.approx(share_interval(right, accuracy["examples"]))
    assert measure(sft, "--split", "val")["values"]["accuracy"]["value"] == pytest.approx(own["val/accuracy"])
    assert measure(sft, "--samples", 5)["values"]["reward"] != found["values"]["reward"]


def test_two_models_are_compared_on_the_same_prompts(measure: Any, sft: Path, grpo: Path) -> None:
    found, back = measure(grpo, "--compare", sft), measure(sft, "--compare", grpo)
    for name in ("accuracy", "stop_rate"):
        difference = found["values"][name]["value"] - found["compare"]["values"][name]["value"]
        assert found["difference"][name]["value"] == pytest.approx(difference)
        assert found["difference"][name]["low"] <= difference <= found["difference"][name]["high"]
        assert back["difference"][name]["value"] == pytest.approx(-difference)
    assert found["values"]["kl"]["value"] > 0
    assert found["win_rate"]["low"] < found["win_rate"]["value"] < found["win_rate"]["high"]
    same = measure(sft, "--compare", sft)
    assert same["difference"]["accuracy"]["value"] == 0
    assert same["difference"]["accuracy"]["low"] < 0 < same["difference"]["accuracy"]["high"]
    assert same["values"]["kl"]["value"] == 0
    assert same["win_rate"]["low"] <= 0.5 <= same["win_rate"]["high"]


def test_what_was_forgotten_of_the_bases_text_is_the_difference_of_its_losses(
    measure: Any, command: Any, grpo: Path, base: Path, tmp_path: Path
) -> None:
    """Also two trainings later, and of any text."""
    (tmp_path / "my.txt").write_text("the old king fears a young queen.\n" * 60)
    for flags in ([], ["--data", "my.txt"]):
        lost = measure(grpo, *flags)["forgetting"]
        alone = [
            json.loads(command("evaluate", str(each), *(flags or ["--compare", str(base)]), "--json").stdout)
            for each in ([base] if not flags else [base, grpo])
        ]
        assert lost["before"] == pytest.approx(alone[0]["nats_per_token"], abs=1e-6)
        if flags:
            assert lost["after"] == pytest.approx(alone[1]["nats_per_token"], abs=1e-6)
        assert lost["unit"] == "nats per token"
        assert lost["difference"]["value"] == pytest.approx(lost["after"] - lost["before"], abs=1e-5)
        assert lost["difference"]["low"] <= lost["difference"]["value"] <= lost["difference"]["high"]


def pairs(chosen: str = "sees", rejected: str = "fears") -> list[dict[str, Any]]:
    draw = random.Random(2)
    return [
        {"prompt": f"the {draw.choice(['old', 'young'])} {a}", "chosen": chosen, "rejected": rejected}
        for a in ("cat", "dog", "king", "queen") * 12
    ]


JUDGING = "trainer.max_steps=12", "trainer.val_every=12", "optim.lr=0.003"


@pytest.fixture(scope="module")
def judge(tuned: Run) -> Path:
    return tuned("judge", pairs(), "task=reward", *JUDGING)


def test_a_judge_and_a_classifier_are_measured_by_their_heads(measure: Any, tuned: Run, judge: Path) -> None:
    draw, steps = random.Random(3), JUDGING
    found = measure(judge)
    assert found["values"]["accuracy"]["value"] == pytest.approx(summary(judge)["test/accuracy"])
    texts = [{"text": f"the {a} sees", "label": a} for a in draw.choices(["cat", "dog"], k=90)]
    classifier = tuned("classifier", texts, "task=classify", *steps)
    other = tuned("other", texts, "task=classify", *steps, "seed=2", "trainer.max_steps=2")
    found = measure(classifier, "--compare", other)
    for letter, each in ((found, classifier), (found["compare"], other)):
        for name in ("accuracy", "f1"):
            assert letter["values"][name]["value"] == pytest.approx(summary(each)[f"test/{name}"]), name
    assert "win_rate" not in found


def test_a_base_that_is_another_now_is_not_what_was_forgotten(
    measure: Any, command: Any, tuned: Run, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint knows where the model was that it began as, and its hash, whatever lies under its name here."""
    moved = tmp_path / "before"
    shutil.copytree(base, moved)
    steps = "trainer.max_steps=2", "trainer.val_every=2", "task.answer_tokens=6", "optim.lr=0.01"
    monkeypatch.chdir(tmp_path)
    run_dir = tuned("named", answers(), f"init_from={moved.name}", *steps)
    lost = measure(run_dir, "--samples", 0)["forgetting"]
    (elsewhere := tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(elsewhere)
    assert measure(run_dir, "--samples", 0)["forgetting"]["before"] == lost["before"]
    shutil.copytree(tuned("other_base", answers(2), *steps), elsewhere / "before")
    assert measure(run_dir, "--samples", 0)["forgetting"]["difference"] == lost["difference"]
    shutil.rmtree(moved)
    found = measure(run_dir, "--samples", 0)
    assert "forgetting" not in found
    assert "what has been forgotten is not known: the model that it began as has changed" in found["notes"][0]
    shutil.rmtree(elsewhere / "before")
    assert "the model that it began as is missing: before" in measure(run_dir, "--samples", 0)["notes"][0]
    (elsewhere / "my.txt").write_text("the old king fears a young queen.\n" * 60)
    refused = command("evaluate", str(run_dir), "--task", "--data", "my.txt")
    assert_refused(refused, "--data my.txt: the model that it began as is missing: before")


def test_no_answers_are_sampled_if_none_are_asked_for(measure: Any, sft: Path, grpo: Path) -> None:
    found = measure(grpo, "--compare", sft, "--samples", 0)
    assert "win_rate" not in found
    assert found["values"].keys() == {"accuracy", "stop_rate", "answer_tokens"}


def test_a_model_that_reads_less_is_asked_what_it_can_read(measure: Any, tuned: Run, sft: Path) -> None:
    """Both are, so that they are compared on the same prompts."""
    steps = "trainer.max_steps=2", "trainer.val_every=2", "task.answer_tokens=6"
    short = tuned("short", answers(), "model.block_size=20", *steps)
    found = measure(sft, "--compare", short, "--samples", 2)
    assert f"prompts are cut to the 20 tokens that {short} reads at once" in found["notes"]
    assert found["values"]["accuracy"]["examples"] == found["compare"]["values"]["accuracy"]["examples"]


def test_a_tie_of_a_reward_model_counts_half_as_in_its_run(judge: Path) -> None:
    """A head of zeros gives every answer the same reward."""
    reader = judges.open_judge(str(judge))
    torch.nn.init.zeros_(reader.model.score.weight)
    held_out = task_evaluation.held_out(reader, reader.model.config.block_size, "test")
    found = performance.record(task_evaluation.judge(held_out, reader, torch.device("cpu")))
    assert found["values"]["accuracy"]["value"] == 0.5


def test_the_terminal_shows_it_as_a_table(command: Any, sft: Path, grpo: Path) -> None:
    shown = command("evaluate", str(grpo), "--task", "--compare", str(sft)).stdout
    assert "task=grpo on chat, test" in shown
    for words in ("accuracy", "stop rate", "A - B", "win rate of A's sampled answers over B's", "forgotten, nats"):
        assert words in shown, words


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{base}"], "has learned to go on with text; leave --task out"),
        (["{sft}", "--compare", "{base}"], "has not learned to answer; give a run of task=sft"),
        (["{sft}", "--split", "train"], "it is a part that is held out: val or test"),
        (["{sft}", "--samples", "-1"], "--samples -1: must be at least 0"),
        (["{sft}", "--compare", "ngram:3"], "--task: ngram:3 is a table of counts, which answers nothing"),
        (["uniform"], "--task: uniform is a table of counts, which answers nothing"),
        (["{judge}", "--samples", "2"], "--samples: {judge} judges and does not answer; leave it out"),
        (["{judge}", "--data", "x.txt"], "--data: {judge} judges and does not answer; leave it out"),
        (["{judge}", "--compare", "{sft}"], "it must be a run of task=classify or task=reward"),
        (["{sft}", "--text-key", "x"], "--text-key says how --data FILE is read"),
        (["nowhere"], "nowhere"),
    ],
)
def test_what_it_refuses(command: Any, base: Path, sft: Path, judge: Path, arguments: list[str], words: str) -> None:
    *filled, wanted = (each.format(base=base, sft=sft, judge=judge) for each in (*arguments, words))
    assert_refused(command("evaluate", *filled, "--task"), wanted)


def test_data_that_has_changed_is_refused(command: Any, sft: Path, tmp_path: Path) -> None:
    path = sft.parent / "sft.jsonl"
    before = path.read_text()
    try:
        path.write_text(before.replace("queen", "king"))
        assert_refused(command("evaluate", str(sft), "--task"), "has changed since its training")
    finally:
        path.write_text(before)


@pytest.mark.parametrize("flags", [["--context", "9"], ["--memorised"], ["--precision", "bf16"]])
def test_flags_of_the_loss_do_not_go_with_it(command: Any, sft: Path, flags: list[str]) -> None:
    result = command("evaluate", str(sft), "--task", *flags)
    assert result.returncode == 2
    assert "do not go together" in result.stderr


def test_a_win_rate_by_hand() -> None:
    """Each answer against each of the other model to the same prompt, a tie counting half."""
    ours, theirs = np.array([[1.0, 0.0], [2.0, 2.0], [0.0, 0.0]]), np.array([[0.0, 0.0], [1.0, 3.0], [0.0, 1.0]])
    found = performance.win_rate(ours, theirs)
    assert found["value"] == pytest.approx(np.mean([0.75, 0.5, 0.25]))
    assert found["low"] < found["value"] < found["high"]
    all_won = performance.win_rate(np.ones((20, 1)), np.zeros((20, 1)))
    assert (all_won["value"], all_won["high"]) == (1, 1)
    assert all_won["low"] == pytest.approx(win_rate_interval(20, 0, 0)[0])
    a, b = np.array([True, True, False, True]), np.array([False, True, False, False])
    assert performance.difference_of_shares(a, b)["value"] == 0.5
