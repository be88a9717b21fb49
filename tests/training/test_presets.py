"""The experiments that learn to answer run one after the other, as their files say: a text, answers, judgements."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from gptlab.runs.compose import CONF
from gptlab.training.fit import fit

FEW = (
    *("trainer.accelerator=cpu", "trainer.max_steps=4", "trainer.val_every=4", "schedule.decay_steps=4"),
    *("trainer.sample_tokens=0", "task.check=4", "data.val_batch_size=4", "data.val_fraction=0.5"),
)
TINY = (*FEW, "model.n_embd=32", "model.n_head=2")
SHORT = ("data.problems.characters=9", "task.answer_tokens=12", "data.problems.held_out=0.3", "data.batch_size=8")
PAIRS = (*SHORT, "data.problems.pairs=16", "data.problems.held_out_pairs=8", "data.problems.answer_tokens=12")


@pytest.fixture(scope="module")
def chain(compose: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """chain(experiment, *overrides) makes four steps of an experiment, once; returns its folder and its summary."""
    folder = tmp_path_factory.mktemp("presets")
    text = folder / "play.txt"
    said = [
        f"the {a} {b} of {c} went on" for a in ("fair", "old") for b in ("king", "queen") for c in ("France", "old")
    ]
    lines = [f"{line}, {end}" for line in said for end in ("sweet love.", "and so it was.", "my heart!", "who knows?")]
    text.write_text("".join(f"{who}:\n{line}\nand {who} is good.\n\n" for who in ("ROMEO", "JULIET") for line in lines))
    done: dict[str, tuple[Path, dict[str, Any]]] = {}

    def chain(experiment: str, *overrides: str) -> tuple[Path, dict[str, Any]]:
        if experiment not in done:
            places = f"data.path='{text}'", f"data.cache_dir={folder / 'cache'}"
            done[experiment] = (
                folder / experiment,
                fit(compose(f"experiment={experiment}", *places, *overrides), folder / experiment),
            )
        return done[experiment]

    return chain


@pytest.fixture(scope="module")
def base(chain: Any) -> str:
    return f"init_from={chain('first', *TINY, 'data=text', 'trainer.baseline=null')[0]}"


@pytest.fixture(scope="module")
def answering(chain: Any, base: str) -> str:
    """A run of experiment=preferences, long enough that sampled answers end."""
    longer = "trainer.max_steps=100", "trainer.val_every=100", "schedule.decay_steps=100", "optim.lr=0.02"
    few = "data.batch_size=8", "task.samples=2", "data.problems.characters=9", "task.answer_tokens=12"
    run_dir, summary = chain("preferences", *FEW, *longer, *few, base)
    assert 0 <= summary["val/reward"] <= 1
    return f"init_from={run_dir}"


def test_a_sum_learned_in_part_is_where_its_reward_is_learned(chain: Any) -> None:
    few = (each for each in TINY if "val_fraction" not in each)
    run_dir, summary = chain(
        "addition_sft", *few, "data.problems.examples=100", "data.batch_size=4", "data.problems.held_out=0.001"
    )
    assert summary["test/accuracy"] < 0.5
    _, rewarded = chain(
        "addition_grpo",
        *FEW,
        f"init_from={run_dir}",
        "data.problems.examples=100",
        "data.problems.held_out=0.001",
        "data.batch_size=32",
    )
    assert rewarded["steps"] == 4
    assert rewarded["val/loss"] == pytest.approx(0.1 * rewarded["val/kl"] - rewarded["val/reward"])


def test_instructions_have_an_accuracy_for_each_task(chain: Any, base: str) -> None:
    _, summary = chain("instructions", *FEW, base, "data.problems.held_out=0.3", "data.batch_size=4")
    assert {"val/accuracy_who", "val/accuracy_count"} <= summary.keys()


def test_lines_are_classified_from_a_trained_model_and_from_nothing(chain: Any, base: str) -> None:
    _, trained = chain("classify", *TINY, base, "tokenizer=pretrained", "data.problems.held_out=0.3")
    assert trained["steps"] == 4
    assert len(trained["confusion"]["counts"]) == len(trained["confusion"]["labels"]) == 2


def test_preferences_teach_a_judge_and_a_policy_and_the_judge_another(chain: Any, answering: str) -> None:
    judge, of_judge = chain("reward_lexicon", *FEW, *PAIRS, answering)
    assert 0.5 <= of_judge["test/bayes_accuracy"] <= 1
    _, preferred = chain("dpo_lexicon", *FEW, *PAIRS, answering, "task.samples=2")
    assert preferred["test/kl"] > 0
    assert [row[0] for row in preferred["best_of_n"]] == [1, 2]
    judged = f"reward.model={judge}"
    _, improved = chain("ppo_lexicon", *FEW, *SHORT, answering, judged, "task.samples=2")
    assert improved["val/judged_reward"] != improved["val/reward"]


def test_every_experiment_that_begins_with_a_trained_model_says_with_which() -> None:
    for path in (CONF / "experiment").glob("*.yaml"):
        text = path.read_text()
        if "/model: pretrained" in text:
            assert re.search(r"init_from=<a run\s+(# )?of\s+(# )?experiment=\w+>", text), path.name
