"""Which keys of a config decide what: the table has a row for every key, and its hash keeps the names of old runs."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import OmegaConf

from gptlab.data.text_options import BEFORE
from gptlab.runs import upgrades
from gptlab.runs.compose import CONF
from gptlab.runs.identity import KEYS, READING, config_hash, does, flatten, row

TRAITS = {"computes", "changes", "moved", "tokens", "shown"}


def keys() -> list[str]:
    """Every key of conf/train.yaml and of all choices of its groups that a run has, dotted."""
    main = OmegaConf.to_container(OmegaConf.load(CONF / "train.yaml"))
    assert isinstance(main, dict)
    found = {str(key) for key in flatten({k: v for k, v in main.items() if k not in ("defaults", "hydra", "sweep")})}
    for group in ("model", "data", "tokenizer", "optim", "schedule", "trainer", "precision", "compile"):
        for path in sorted((CONF / group).glob("*.yaml")):
            content = OmegaConf.to_container(OmegaConf.load(path))
            assert isinstance(content, dict)
            inside = content.get(group, content) if path.read_text().startswith("# @package _global_") else content
            found |= {f"{group}.{key}" for key in flatten(inside) if key not in ("defaults",)}
    return sorted(found - {"recipe"})  # which every size fills


@pytest.mark.parametrize("key", keys())
def test_every_key_has_a_row(key: str) -> None:
    assert row(key) is not None


def test_a_row_says_what_it_can_say() -> None:
    for key, traits in KEYS.items():
        assert set(traits.split()) <= TRAITS, key
    assert row("trainer.lr") == "trainer."
    assert row("trainer") is row("nothing") is row("nothing.else") is None
    assert not does("nothing.else", "computes")


@pytest.mark.parametrize("key", [key for key, traits in KEYS.items() if not key.endswith(".")])
def test_what_a_run_computes_names_it_and_nothing_else_does(key: str) -> None:
    config: dict[str, Any] = {"name": "a", "seed": 1, "resume": None, "init_from": None, "deterministic": False}
    config |= {"model": {"n_layer": 2}, "data": {"path": "x"}, "trainer": {}, "optim": {}, "task": {}}
    group, _, last = key.rpartition(".")
    changed = {**config, group: {**config[group], last: 7}} if group else {**config, key: 7}
    assert (config_hash(changed, "0") != config_hash(config, "0")) == does(key, "computes")
    assert config_hash(changed, "1") != config_hash(changed, "0")


def test_how_a_text_is_read_is_said_alike_by_the_config_the_hash_and_the_upgrade() -> None:
    """Rooms that may not import each other have these values each for itself."""
    data = OmegaConf.to_container(OmegaConf.load(CONF / "train.yaml"), resolve=False)["data"]  # type: ignore[index,call-overload]
    assert {key: data[key] for key in READING} == READING
    assert {key: value for key, value in upgrades.NEW["data"].items() if key in BEFORE} == BEFORE
    assert READING.keys() == BEFORE.keys()
