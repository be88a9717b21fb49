"""Every yaml composes, and every mistake gets one message that names key, value and way out."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from gptlab.runs.compose import CONF
from gptlab.runs.resume import resumed_config
from gptlab.system.errors import UserError

CHOICES = sorted(
    (path.parent.name, path.stem) for path in CONF.glob("*/*.yaml") if (path.parent.name, path.stem) != ("arch", "none")
)


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_composes_and_passes_the_checks(compose: Any, group: str, choice: str) -> None:
    begun, of_pairs = "init_from=gpt2", ["data=preferences", "reward.name=rhyme"]
    beside = {
        "pretrained": [begun],
        "sft": ["data=chat"],
        "classify": ["data=labels"] * (group == "task"),
        "reward": [*of_pairs, begun],
        "dpo": [*of_pairs, begun],
        "preferences": [begun] + ["reward.name=rhyme"] * (group == "data"),
        "ppo": ["data=arithmetic", begun, "trainer.max_steps=20", "trainer.val_every=20"],
        "grpo": ["data=arithmetic", begun, "data.batch_size=16"],
    }.get(choice, [])
    if group == "experiment" and "/model: pretrained" in (CONF / group / f"{choice}.yaml").read_text():
        beside = [begun]
    settings = compose(f"{group}={choice}", *beside)
    if group in ("precision", "compile", "trainer", "schedule", "optim"):
        assert getattr(settings, group).name == choice
    if group in ("model", "experiment"):
        assert settings.name == choice
    assert "???" not in str(settings.to_dict())


@pytest.mark.parametrize(
    ("size", "arch"), list(itertools.product(["gpt300k", "gpt800k", "gpt10m", "gpt124m"], ["gpt2", "video"]))
)
def test_sizes_and_block_recipes_are_independent(compose: Any, size: str, arch: str) -> None:
    model = compose(f"model={size}", f"arch={arch}").model
    assert model["mlp"] == {"gpt2": "gelu", "video": "relu"}[arch]
    assert model["n_layer"] == {"gpt300k": 6, "gpt800k": 4, "gpt10m": 6, "gpt124m": 12}[size]


def test_a_size_carries_its_recipe_and_the_command_line_wins(compose: Any) -> None:
    settings = compose("model=gpt10m")
    assert (settings.data.batch_size, settings.model["block_size"], settings.trainer.max_steps) == (64, 256, 5000)
    assert (settings.optim.lr, settings.model["dropout"]) == (3e-4, 0.2)
    settings = compose("optim.lr=2e-3", "model=gpt10m", "data.batch_size=8", "model.dropout=0")
    assert (settings.optim.lr, settings.data.batch_size, settings.model["dropout"]) == (2e-3, 8, 0)
    settings = compose("experiment=nanogpt_char", "model.n_layer=3")
    assert (settings.optim.lr, settings.model["n_layer"]) == (1e-3, 3)


def test_a_gpu_preset_chooses_precision_and_compile_and_the_command_line_wins(compose: Any) -> None:
    for trainer, precision in (("t4", "fp16"), ("a100", "bf16"), ("h100", "bf16")):
        settings = compose(f"trainer={trainer}")
        assert (settings.precision.name, settings.compile.name) == (precision, "inductor")
    settings = compose("precision=fp32", "compile=eager", "trainer=a100")
    assert (settings.precision.name, settings.compile.name) == ("fp32", "eager")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+model.n_layr=4"], "model.n_layr=4: there is no such key; did you mean n_layer?"),
        (["+data.batchsize=4"], "data.batchsize=4: there is no such key; did you mean batch_size?"),
        (["+trainr.max_steps=4"], "there is no such key; did you mean trainer?"),
        (["model=bigram", "+model.n_layer=2"], "model.n_layer=2: there is no such key"),
        (["model.n_head=abc"], "model.n_head: Value 'abc' of type 'str' could not be converted to Integer"),
        (["model.n_head=1.5"], "model.n_head: Value '1.5' of type 'float' could not be converted to Integer"),
        (["trainer.max_steps=x"], "trainer.max_steps: Value 'x'"),
        (["optim.lr=fast"], "optim.lr: Value 'fast' of type 'str' could not be converted to Float"),
        (["model.bias=7"], "model.bias=7: must be true or false"),
        (["model.n_embd=100", "model.n_head=3"], r"model.n_embd=100 is not divisible by model.n_head=3: choose n_head"),
        (["model.dropout=1"], "model.dropout=1.0: must be at least 0 and below 1"),
        (["model.mlp=tanh"], "model.mlp=tanh: must be one of gelu, gelu_exact, relu, relu2"),
        (["model.attention=flash"], "model.attention=flash: must be one of sdpa, manual"),
        (["model.name=gtp"], "model.name=gtp: no such model; did you mean gpt?"),
        (["data.val_fraction=1"], "data.val_fraction=1.0: must be above 0 and below 1"),
        (["data.micro_batch_size=0"], "data.micro_batch_size=0: must be at least 1"),
        (["optim.lr=0"], "optim.lr=0.0: must be above 0"),
        (["optim.beta2=1"], "optim.beta2=1.0: must be at least 0 and below 1"),
        (["optim.name=sgd"], "optim.name=sgd: no such optimizer; there are adamw, muon"),
        (["schedule.name=step"], "schedule.name=step: must be one of constant, cosine, linear, wsd"),
        (["schedule.min_ratio=2"], "schedule.min_ratio=2.0: must be between 0 and 1"),
        (["trainer.val_every=0"], "trainer.val_every=0: must be at least 1"),
        (["trainer.patience=0"], "trainer.patience=0: must be at least 1, or null"),
        (["trainer.accelerator=tpu"], "trainer.accelerator=tpu: must be one of auto, cpu, gpu, mps"),
        (["precision.name=fp8"], "precision.name=fp8: must be one of fp32, bf16, fp16, bf16_true"),
        (["data.order=shuffled"], "data.order=shuffled: must be one of random, epochs"),
        (["compile.mode=fast"], "compile.mode=fast: must be one of default, reduce-overhead, max-autotune"),
        (["schedule.decay_steps=-1"], "schedule.decay_steps=-1: must be at least 0"),
        (["schedule=linear", "schedule.decay_steps=6"], "trainer.max_steps=2000: with schedule.min_ratio=0 nothing"),
        (["+model.vocab_size=777"], "model.vocab_size=777: the tokenizer decides it"),
        (["compile.backend=nope"], "compile.backend=nope: must be one of .*inductor"),
        (["seed=-1"], "seed=-1: must be an integer from 0 to 4294967295"),
        (["seed=abc"], "seed=abc: must be an integer"),
        (["name=a/b"], "name=a/b: must be a word that can name a folder"),
        (["recipe=5"], "the config cannot be resolved"),
        (["model=pretrained"], "model=pretrained is the one that init_from names: add init_from="),
        (["tokenizer=pretrained"], "tokenizer=pretrained is that of init_from: add init_from="),
        (["init_from=true"], "init_from=True: must name a run directory, a checkpoint or a model"),
        (["init_from=''"], "init_from=: must name a run directory"),
        (["~optim"], "optim.name: is missing"),
        (["~optim.lr"], "optim.lr: is missing; see python -m gptlab.train --cfg job"),
    ],
)
def test_mistakes_name_key_value_and_way_out(compose: Any, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        compose(*overrides)


def test_no_choice_is_a_word_that_yaml_reads_as_a_boolean() -> None:
    assert not {choice for _, choice in CHOICES} & {"on", "off", "yes", "no", "true", "false", "null"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer=cpu", "trainer=cpu: a resumed run keeps its groups; change single values, e.g. trainer.max_steps=N"),
        ("experiment=overfit", "experiment=overfit: a resumed run keeps its groups"),
        ("optim.lr=0.5", "optim.lr=0.5: would make it another run"),
        ("data.batch_size=2", "data.batch_size=2: would make it another run"),
        ("model.n_layer=3", "model.n_layer=3: would make it another run"),
        ("seed=3", "seed=3: would make it another run"),
    ],
)
def test_resume_refuses_what_would_make_another_run(trained: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        resumed_config(trained, [f"resume={trained}", override], lambda run_dir: None)


def test_resume_takes_the_runs_own_config_and_single_changes(trained: Path) -> None:
    config = resumed_config(trained, [f"resume={trained}", "trainer.max_steps=9"], lambda run_dir: None)
    values = (config["trainer"]["max_steps"], config["model"]["n_embd"], config["schedule"]["decay_steps"])
    assert values == (9, 33, 7)
