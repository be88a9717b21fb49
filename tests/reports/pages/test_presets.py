"""How a run's config differs from what its presets, and conf/, compose to."""

from __future__ import annotations

from typing import Any

import hydra
import pytest

from gptlab.reports.pages.presets import WITHOUT, compared
from gptlab.runs import compose
from gptlab.runs.identity import flatten


def recorded(*words: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What train records of a command line, and the config with dotted keys."""
    with compose.open_conf():
        config = compose.run_config(hydra.compose("train", [*words]))
        return compose.presets_of(words, config), flatten(config)


def test_what_was_typed_differs_from_the_presets() -> None:
    found, config = recorded("experiment=first", "optim.lr=0.02", "seed=3", "recipe.max_steps=9")
    page = compared(config, found)
    assert page["groups"] == ["experiment=first"]
    assert sorted(page["changed"]) == [
        ("optim.lr", "0.022", "0.02"),
        ("schedule.decay_steps", "1150", "9"),
        ("seed", "1337", "3"),
        ("trainer.max_steps", "1150", "9"),
    ]
    assert page["filled"] == []
    defaults = {key: (before, now) for key, before, now in page["defaults"]}
    assert defaults["optim.name"] == ("adamw", "muon")
    assert defaults["optim.lr"] == ("0.001", "0.02")
    assert defaults["optim.adam_lr"] == ("-", "0.009")  # a key that AdamW has not
    assert not any(key.startswith(("recipe.", "name")) for key in defaults)


def test_no_presets_are_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is composed again that is the run's own config."""
    found, config = recorded()
    assert compared(config, found) == {"groups": [], "changed": [], "filled": [], "defaults": []}
    calls: list[Any] = []
    monkeypatch.setattr(hydra, "compose", lambda *words: calls.append(words))
    compose.presets_of([], {"a": 1})
    assert calls == []


def test_what_the_data_and_the_weights_decide_is_no_change() -> None:
    found, config = recorded("init_from=gpt2", "model=pretrained", "tokenizer=pretrained", "model.block_size=64")
    run = {**config, "data.name": "shakespeare_char", "model.name": "gpt", "model.n_layer": 12, "trainer.max_steps": 9}
    page = compared(run, found)
    assert sorted(page["changed"]) == [
        ("init_from", "null", "gpt2"),
        ("model.block_size", "null", "64"),
        ("trainer.max_steps", str(config["trainer.max_steps"]), "9"),  # by resume=
    ]
    assert {key for key, _, _ in page["filled"]} == {"data.name", "model.name", "model.n_layer"}
    assert page["groups"] == ["model=pretrained", "tokenizer=pretrained"]


def test_groups_that_compose_to_nothing_are_recorded_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*words: Any) -> None:
        raise hydra.errors.ConfigCompositionException("it refers to a key that was typed")

    monkeypatch.setattr(hydra, "compose", refuse)
    found = compose.presets_of(["experiment=mine", "+a=1"], {})
    assert found == {"groups": ["experiment=mine"], "values": ["+a=1"]}
    assert "compose to nothing" in compared({}, found)["why"]


def test_a_run_of_an_older_version_says_so() -> None:
    assert compared({"seed": 1}, {}) == {"why": WITHOUT}


@pytest.mark.parametrize("words", [None, True, 3.5, "experiment=first"])
def test_words_that_are_no_list_are_none(words: Any) -> None:
    recorded = {"groups": words, "values": words, "presets": {"seed": 1}, "defaults": {"seed": 1}}
    page = compared({"seed": 2}, recorded)
    assert (page["groups"], page["changed"]) == ([], [("seed", "1", "2")])
