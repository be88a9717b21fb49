"""trainer.ema: what is measured, sampled and saved is an average of the weights; what trains are the weights."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gptlab.formats import checkpoint
from gptlab.runs import identity, resume
from gptlab.runs.directory import write_config
from gptlab.system.errors import UserError
from gptlab.training.callbacks.weight_average import Averaging
from tests.training.runs_compared import rows
from tests.training.test_faults import Spoil
from tests.training.test_fit import curve
from tests.training.test_muon import Elsewhere, optimizer, small
from tests.training.test_resume import Kill, interrupt

EACH = ("trainer.checkpoint_every=1", "trainer.keep_checkpoints=9", "model.dropout=0.1")


def content(run_dir: Path, step: int) -> dict[str, Any]:
    folder = run_dir / "checkpoints"
    last = checkpoint.read_checkpoint(folder / "last.ckpt")
    return last if last["global_step"] == step else checkpoint.read_checkpoint(checkpoint.step_file(folder, step))


def weights(run_dir: Path, step: int) -> dict[str, Tensor]:
    return content(run_dir, step)["state_dict"]


def kept(run_dir: Path, step: int) -> list[Tensor]:
    """What the optimizer keeps as averages."""
    return [state["average"] for state in content(run_dir, step)["optimizer_states"][0]["state"].values()]


@pytest.fixture(scope="module")
def plain(run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "plain"
    run(run_dir, *EACH)
    return run_dir


@pytest.fixture(scope="module")
def mean(run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "mean"
    run(run_dir, *EACH, "trainer.ema=0.3")
    return run_dir


def test_a_checkpoint_has_the_average_of_the_weights_of_a_run_without(plain: Path, mean: Path) -> None:
    expected = weights(plain, 1)
    for step in range(1, 8):
        share = 1 - min(0.3, step / (9 + step))
        expected = {name: old.lerp(weights(plain, step)[name], share) for name, old in expected.items()}
        assert any(not torch.equal(old, weights(plain, step)[name]) for name, old in expected.items()) == (step > 1)
        for name, tensor in weights(mean, step).items():
            torch.testing.assert_close(tensor, expected[name], atol=1e-6, rtol=0)
    assert curve(mean) == curve(plain)  # it changes nothing of the training
    assert "average" not in content(plain, 7)["optimizer_states"][0]["state"][0]


def test_the_weights_themselves_are_in_the_checkpoint_too(plain: Path, mean: Path) -> None:
    for step in (1, 4, 7):
        others = weights(plain, step).values()
        assert all(any(torch.equal(tensor, other) for other in others) for tensor in kept(mean, step))


def test_val_loss_and_samples_are_the_averages(mean: Path, plain: Path, command: Any) -> None:
    summary = json.loads((mean / "summary.json").read_text())
    result = command("evaluate", str(mean / "checkpoints" / "last.ckpt"), "--json", "--device", "cpu")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["nats_per_token"] == pytest.approx(summary["val/loss"], abs=1e-6)
    ours, theirs = curve(mean, "val/loss"), curve(plain, "val/loss")
    assert ours[0] == theirs[0]  # of a run that begins there is none yet
    assert all(abs(a - b) > 1e-4 for a, b in zip(ours[1:], theirs[1:], strict=True))


def test_the_test_part_is_measured_with_the_average(run: Any, tmp_path: Path, command: Any) -> None:
    summary = run(tmp_path / "run", "trainer.ema=0.9", "data.test_fraction=0.1")
    last = str(tmp_path / "run" / "checkpoints" / "last.ckpt")
    result = command("evaluate", last, "--split", "test", "--json", "--device", "cpu")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["nats_per_token"] == pytest.approx(summary["test/loss"], abs=1e-6)
    (tmp_path / "run" / "summary.json").unlink()  # killed when all but that was done
    again = run(tmp_path / "run", "trainer.ema=0.9", "data.test_fraction=0.1", resume=True)
    assert (again["val/loss"], again["test/loss"]) == (summary["val/loss"], summary["test/loss"])


@pytest.mark.parametrize(("before", "after"), [("0.9", "0"), ("0", "0.9"), ("0.5", "0.9")])
def test_another_decay_goes_on_from_the_weights(
    run: Any, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, after: str
) -> None:
    interrupt(monkeypatch, Kill(4, signal.SIGTERM))
    with pytest.raises(SystemExit):
        run(tmp_path, *EACH, f"trainer.ema={before}")
    monkeypatch.undo()
    run(tmp_path, *EACH, f"trainer.ema={after}", resume=True)
    assert curve(tmp_path) == curve(plain)
    state = content(tmp_path, 7)["optimizer_states"][0]["state"][0]
    assert ("average" in state) == (after != "0")
    if after == "0":
        assert rows(tmp_path)[-1] == rows(plain)[-1]


@pytest.mark.parametrize("optim", ["adamw", "muon"])
def test_steps_that_are_left_out_do_not_move_it(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optim: str
) -> None:
    interrupt(monkeypatch, Spoil(0, 3, 4))
    run(tmp_path, *EACH, "trainer.ema=0.9", "trainer.nonfinite=skip", "data.micro_batch_size=3", f"optim={optim}")
    for left_out in (4, 5):
        here, before = weights(tmp_path, left_out), weights(tmp_path, 3)
        assert all(torch.equal(tensor, before[name]) for name, tensor in here.items())
    assert not torch.equal(weights(tmp_path, 6)["model.wte.weight"], weights(tmp_path, 5)["model.wte.weight"])


def test_no_gpu_is_waited_for() -> None:
    """And there, too, a step that is found bad moves nothing."""
    model = small()
    mine: Any = optimizer(model)
    mine.step()
    averaging = Averaging(0.9)
    averaging._follow(mine, 0)  # begins with these weights
    weight = model.h[1].mlp.c_fc.weight
    average, before = mine.state[weight]["average"], weight.detach().clone()
    with torch.no_grad():
        weight += 1.0
    mine.found_inf = torch.ones(()).as_subclass(Elsewhere)
    averaging._follow(mine, 1)
    assert torch.equal(average, before)
    mine.found_inf = torch.zeros(()).as_subclass(Elsewhere)
    averaging._follow(mine, 2)
    torch.testing.assert_close(average, before + 1 - 3 / 12)


def test_a_run_without_one_is_as_before_there_was_a_choice(compose: Any, tmp_path: Path) -> None:
    config = compose().to_dict()
    older = {**config, "trainer": {key: value for key, value in config["trainer"].items() if key != "ema"}}
    write_config(tmp_path / "config.yaml", older)
    past = resume.stored_config(tmp_path, lambda run_dir: None)
    assert resume.differing(past, config, "nothing") == []  # resume=auto finds it
    assert identity.config_hash(older, "0") == identity.config_hash(config, "0")
    assert identity.config_hash(compose("trainer.ema=0.9").to_dict(), "0") != identity.config_hash(config, "0")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("trainer.ema=1",), r"trainer.ema=1.0: must be at least 0 \(for no average\) and below 1, e.g. 0.999"),
        (("trainer.ema=-0.1",), r"trainer.ema=-0.1: must be at least 0"),
        (("trainer.ema=0.9", "precision=bf16_true"), r"trainer.ema=0.9: an average in bf16 would be rounded away; use"),
    ],
)
def test_an_average_that_cannot_be_is_refused(compose: Any, words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        compose(*words)
