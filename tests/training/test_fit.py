"""What a run computes, and what it leaves behind."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gptlab import models
from gptlab.data.batches import EvalBatches, Share
from gptlab.evaluation.ngrams import NGrams
from gptlab.formats import checkpoint
from gptlab.runs.closing import closing_words
from gptlab.system.errors import UserError
from gptlab.system.files import read_json
from gptlab.training import trainer
from gptlab.training.datamodule import LMDataModule
from gptlab.training.fit import fit
from tests.conftest import ROOT, TINY
from tests.training.test_resume import interrupt

ANSWERS = re.compile(r"/data: (arithmetic|continuations|instructions|labels|preferences)|- addition$", re.M)
EXPERIMENTS = sorted(  # that learn from a text; the others are in test_presets.py
    path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml") if not ANSWERS.search(path.read_text())
)
FOR_A_GPU = ("best_char", "speedrun")  # whose steps take seconds here
# The tiny model of conftest.py, seed 1337, on its text.
GOLDEN = [
    *(3.1229, 3.0907, 3.0951, 3.0147, 2.9895, 2.9504, 2.9790, 2.9508, 2.9623, 2.9040),
    *(2.9062, 2.8777, 2.8938, 2.8641, 2.8741, 2.8516, 2.8798, 2.8410, 2.8210, 2.8313),
]
# What the fastest presets have.
FAST = ("arch=canon", "model.n_embd=36", "model.dropout=0.1", "optim=muon", "schedule=linear", "data.order=epochs")


def curve(run_dir: Path, key: str = "train/loss") -> list[float]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        return [float(row[key]) for row in csv.DictReader(file) if row[key]]


# Heads of a size of their own, positions of Llama 3.2.
SHAPED = ("arch=llama", "model.head_dim=14", "model.n_kv_head=1", "model.window=5", "model.rope_scaling=llama3")
SHAPED += ("model.rope_factor=8", "model.rope_original_size=64", "trainer.max_steps=2", "trainer.sample_tokens=19")


def test_a_run_of_another_shape_is_the_same_whatever_computes_attention(run: Any, tmp_path: Path) -> None:
    for attention in ("sdpa", "manual", "per_head"):
        run(tmp_path / attention, *SHAPED, "optim=muon", f"model.attention={attention}")
    curves = [curve(tmp_path / attention) for attention in ("sdpa", "manual", "per_head")]
    assert len(curves[0]) == 2
    for other in curves[1:]:
        assert other == pytest.approx(curves[0], abs=1e-5)
    model, _, _ = checkpoint.load_checkpoint(tmp_path / "sdpa")
    assert model.h[1].attn.c_proj.weight.shape == (33, 3 * 14)  # type: ignore[union-attr]


def test_the_losses_of_twenty_steps_are_golden(run: Any, tmp_path: Path) -> None:
    run(tmp_path, "trainer.max_steps=20", "trainer.val_every=20", "trainer.sample_tokens=0")
    assert curve(tmp_path) == pytest.approx(GOLDEN, abs=2e-4)


@pytest.mark.parametrize("micro", [1, 2, 3])
def test_splitting_a_batch_changes_no_loss(run: Any, tmp_path: Path, micro: int) -> None:
    run(tmp_path / "whole")
    run(tmp_path / "split", f"data.micro_batch_size={micro}")
    for key in ("train/loss", "val/loss", "grad_norm"):
        assert curve(tmp_path / "split", key) == pytest.approx(curve(tmp_path / "whole", key), abs=1e-5)


def test_two_runs_of_one_seed_are_equal_and_of_two_seeds_differ(run: Any, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(tmp_path / name, f"seed={seed}", "model.dropout=0.1")
    a, b, c = (curve(tmp_path / name) for name in "abc")
    assert a == b
    assert all(x != y for x, y in zip(a, c, strict=True))


def test_val_loss_is_the_exact_mean_over_the_split(trained: Path, compose: Any) -> None:
    """Computed here a second way: window by window, without padding, in double precision."""
    summary = json.loads((trained / "summary.json").read_text())
    model, tokenizer, info = checkpoint.load_checkpoint(trained / "checkpoints" / "last.ckpt")
    text = Path(info.config["data"]["path"]).read_text()
    part = text[int(len(text) * 0.9) :]
    ids = torch.from_numpy(tokenizer.encode(part))
    nats, block = 0.0, model.config.block_size
    for start in range(0, len(ids) - 1, block):
        x, y = ids[start : start + block], ids[start + 1 : start + block + 1]
        with torch.no_grad():
            logits = model(x[None, : len(y)])[0].double()
        nats += torch.nn.functional.cross_entropy(logits, y, reduction="sum").item()
    assert summary["val/loss"] == pytest.approx(nats / (len(ids) - 1), abs=1e-6)
    assert summary["val/bpb"] == pytest.approx(nats / math.log(2) / len(part[1:].encode()), abs=1e-6)
    assert summary["val/ppl"] == pytest.approx(math.exp(summary["val/loss"]))


def test_a_test_part_is_measured_once_at_the_end(run: Any, tmp_path: Path) -> None:
    summary = run(tmp_path, "data.test_fraction=0.2", "data.val_fraction=0.1")
    model, tokenizer, info = checkpoint.load_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    text = Path(info.config["data"]["path"]).read_text()
    ids = tokenizer.encode(text[int(len(text) * 0.8) :])
    batches = EvalBatches(ids, batch_size=16, block_size=17, share=Share(0, 1, 1), device=torch.device("cpu"))
    with torch.no_grad():
        nats = sum(
            torch.nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum")
            for x, y, *_ in batches
        )
    assert summary["test/loss"] == pytest.approx(float(nats) / (len(ids) - 1), abs=1e-5)
    assert summary["test/loss"] != summary["val/loss"]
    assert summary["test/bpb"] == pytest.approx(summary["test/loss"] / math.log(2))  # ASCII characters


def test_a_run_leaves_what_the_readme_says(trained: Path) -> None:
    assert {path.name for path in trained.iterdir() if not path.name.startswith("events.")} >= {
        "config.yaml",
        "environment.json",
        "metrics.csv",
        "samples.txt",
        "checkpoints",
        "summary.json",
    }
    assert {path.name for path in (trained / "checkpoints").iterdir()} == {"last.ckpt", "step_6.ckpt", "best.ckpt"}
    summary = read_json(trained / "summary.json")
    keys = """format status val/loss val/bpb val/ppl best_val_loss best_step train/loss steps skipped_steps tokens
        parameters trained_parameters flops train_seconds total_seconds tokens_per_sec mfu peak_memory_bytes device
        devices precision compile seed data config_hash run_dir"""
    assert set(summary) == set(keys.split())
    assert set(summary["data"]) == {"name", "sha256", "tokenizer", "vocab_size"}
    assert summary["status"] == "finished"
    assert summary["tokens"] == 7 * 6 * 17
    assert summary["val/loss"] == curve(trained, "val/loss")[-1]
    assert summary["best_val_loss"] == min(curve(trained, "val/loss")[1:])
    assert 0 < summary["mfu"] < 1
    assert summary["peak_memory_bytes"] > 1e8
    environment = json.loads((trained / "environment.json").read_text())
    assert torch.__version__.startswith(environment["versions"]["torch"])  # +cpu is not always in the package's
    assert (trained / "samples.txt").read_text().count("--- step") == 4  # at 0, 3, 6, 7


def test_tensorboard_shows_curves_samples_and_hyperparameters(trained: Path) -> None:
    events = EventAccumulator(str(trained)).Reload()
    tags = events.Tags()
    assert set(tags["scalars"]) >= {"train/loss", "val/loss", "val/bpb", "lr", "grad_norm", "tokens_per_sec", "mfu"}
    assert [e.step for e in events.Scalars("val/loss")] == [0, 3, 6, 7]
    assert [e.step for e in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6, 7]
    assert "sample/text_summary" in tags["tensors"]
    assert "_hparams_/session_start_info" in events.summary_metadata


def test_validation_before_the_first_step_can_be_left_out(run: Any, tmp_path: Path) -> None:
    run(tmp_path / "with")
    run(tmp_path / "without", "trainer.val_first=false")
    assert curve(tmp_path / "without", "val/loss") == curve(tmp_path / "with", "val/loss")[1:]
    assert curve(tmp_path / "without") == curve(tmp_path / "with")
    assert (tmp_path / "without" / "samples.txt").read_text().count("--- step") == 3


def test_logged_learning_rates_are_those_of_the_steps(trained: Path) -> None:
    peak, end, warmup, steps = 1e-3, 1e-4, 2, 7
    expected = [peak * (i + 1) / (warmup + 1) for i in range(warmup)]
    for i in range(warmup, steps):
        expected.append(end + (peak - end) * 0.5 * (1 + math.cos(math.pi * (i - warmup) / (steps - warmup))))
    assert curve(trained, "lr") == pytest.approx(expected)


def test_one_batch_is_learned_by_heart(run: Any, tmp_path: Path) -> None:
    summary = run(
        tmp_path,
        "experiment=overfit",
        "trainer.max_steps=300",
        "trainer.val_every=300",
        "trainer.log_every=100",
        "optim.lr=1e-2",
        "trainer.sample_tokens=0",
    )
    assert summary["train/loss"] < 0.05
    assert summary["val/loss"] > 0.5


@pytest.mark.parametrize(
    "experiment",
    [pytest.param(each, marks=[pytest.mark.slow] if each in FOR_A_GPU else []) for each in EXPERIMENTS],
)
def test_every_experiment_takes_two_steps(experiment: str, compose: Any, text_file: Path, tmp_path: Path) -> None:
    smaller = {
        "verdict": ("model.n_layer=1", "model.n_embd=96"),  # it is GPT-2
        "speedrun_cpu": ("schedule.warmup_steps=1000",),  # at its rates two steps learn much
    }
    settings = compose(
        f"experiment={experiment}",
        *smaller.get(experiment, ()),
        "data=text",
        "compile=eager",
        "precision=fp32",
        "data.batch_size=2",
        "data.val_fraction=0.01",
        "data.val_batch_size=1",
        "trainer.accelerator=cpu",
        "trainer.max_steps=2",
        "trainer.sample_tokens=2",
    )
    summary = fit(settings, tmp_path)
    assert summary["steps"] == 2
    assert summary["val/loss"] == pytest.approx(math.log(summary["data"]["vocab_size"]), rel=0.1)


@pytest.mark.parametrize("size", ["bigram", "gpt300k", "gpt800k", "gpt1m", "gpt3m"])
def test_an_untrained_models_loss_is_ln_v(size: str, compose: Any) -> None:
    settings = compose(f"model={size}")
    torch.manual_seed(settings.seed)
    model = models.build(settings.model_config(65)).eval()
    ids = torch.randint(65, (2000,)).numpy()
    batches = EvalBatches(
        ids, batch_size=4, block_size=model.config.block_size, share=Share(0, 1, 1), device=torch.device("cpu")
    )
    with torch.no_grad():
        losses = [torch.nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten()) for x, y, *_ in batches]
    assert torch.stack(losses).mean().item() == pytest.approx(math.log(65), rel=0.05)


@pytest.mark.parametrize("log_every", [1, 100])
def test_early_stopping_stops_and_says_so(run: Any, tmp_path: Path, log_every: int) -> None:
    summary = run(
        tmp_path,
        "trainer.patience=1",
        "optim.lr=1.0",
        "trainer.max_steps=40",
        "trainer.val_every=1",
        "optim.grad_clip=0",
        f"trainer.log_every={log_every}",
    )
    assert summary["status"] == "stopped_early"
    assert summary["steps"] < 40
    assert summary["best_step"] < summary["steps"]
    assert len(curve(tmp_path, "lr")) == (summary["steps"] if log_every == 1 else 1)


@pytest.mark.parametrize("precision", ["bf16", "bf16_true"])
def test_half_precision_trains_near_full_precision(run: Any, tmp_path: Path, precision: str) -> None:
    run(tmp_path / "fp32")
    run(tmp_path / precision, f"precision={precision}")
    full, half = curve(tmp_path / "fp32"), curve(tmp_path / precision)
    assert half != full
    assert half == pytest.approx(full, abs=0.05)


def test_compiled_and_eager_runs_agree_and_their_checkpoints_are_alike(run: Any, tmp_path: Path) -> None:
    run(tmp_path / "eager", "model.n_layer=1")
    run(tmp_path / "compiled", "model.n_layer=1", "compile=inductor", "compile.backend=aot_eager")
    assert curve(tmp_path / "compiled") == pytest.approx(curve(tmp_path / "eager"), abs=1e-5)
    keys = [
        list(torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"])
        for name in ("eager", "compiled")
    ]
    assert keys[0] == keys[1]
    assert not any("_orig_mod" in key for key in keys[1])


@pytest.mark.slow
def test_two_processes_compute_what_one_does(shell: Any, text_file: Path, tmp_path: Path) -> None:
    for devices in (1, 2):
        arguments = [
            *TINY,
            f"data.path='{text_file}'",
            f"data.cache_dir={tmp_path}",
            f"trainer.devices={devices}",
            "trainer.log_every=3",
            "trainer.diagnose_every=3",
        ]
        process = shell("-m", "gptlab.train", *arguments, f"hydra.run.dir={devices}")
        stdout, stderr = process.communicate(timeout=200)
        assert process.returncode == 0, stderr
        assert stdout.count("finished after 7 steps") == 1
    for key in ("train/loss", "val/loss", "grad_norm"):
        assert curve(tmp_path / "2", key) == pytest.approx(curve(tmp_path / "1", key), abs=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # torch's own
@pytest.mark.parametrize(
    ("words", "precision", "tolerance"),
    [((), "fp32", 1e-4), (FAST, "fp32", 2e-3), (FAST, "bf16", 0.1)],  # what is turned is sensitive to rounding
)
def test_inductor_trains_like_eager(
    run: Any, tmp_path: Path, words: tuple[str, ...], precision: str, tolerance: float
) -> None:
    run(tmp_path / "eager", *words)
    run(tmp_path / "compiled", *words, "compile=inductor", f"precision={precision}")
    assert curve(tmp_path / "compiled") == pytest.approx(curve(tmp_path / "eager"), abs=tolerance)


def test_gradient_checkpointing_changes_no_loss(run: Any, tmp_path: Path) -> None:
    run(tmp_path / "plain", "model.dropout=0.1")
    run(tmp_path / "less", "model.dropout=0.1", "model.gradient_checkpointing=true")
    assert curve(tmp_path / "plain") == curve(tmp_path / "less")


def test_a_run_that_diverges_says_so(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Diverge(L.Callback):
        def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            if trainer.global_step == 3:
                pl_module.model.ln_f.weight.data.fill_(float("nan"))

    interrupt(monkeypatch, Diverge())
    with pytest.raises(UserError, match=r"val/loss is nan at step 3: the run has diverged; lower optim.lr=0.001"):
        run(tmp_path)


def test_train_loss_is_the_mean_since_the_last_point_in_any_precision(run: Any, tmp_path: Path) -> None:
    """With a learning rate of almost zero all means are alike."""
    still = ("optim.lr=1e-12", "data.micro_batch_size=1", "trainer.max_steps=40", "trainer.val_every=40")
    run(tmp_path / "fp32", *still, "trainer.log_every=40")
    run(tmp_path / "bf16", *still, "trainer.log_every=40", "precision=bf16_true")
    assert curve(tmp_path / "bf16") == pytest.approx(curve(tmp_path / "fp32"), abs=0.01)


def test_unknown_validation_characters_are_left_out_and_said_once(
    compose: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = tmp_path / "odd.txt"
    text.write_text("abcdefgh\n" * 300 + "abc€fgh\n" * 30)
    settings = compose(
        "data=text",
        f"data.path={text}",
        "model=bigram",
        "trainer.max_steps=2",
        "trainer.val_every=1",
        "trainer.sample_prompt='€'",
        "trainer=cpu",
    )
    with caplog.at_level("WARNING"):
        summary = fit(settings, tmp_path / "run")
    told = [record.getMessage() for record in caplog.records if "€" in record.getMessage()]
    assert len([message for message in told if "validation part" in message]) == 1
    assert len([message for message in told if "trainer.sample_prompt" in message]) == 1
    assert summary["data"]["vocab_size"] == 9
    assert math.isfinite(summary["val/loss"])


def test_a_text_without_line_ends_is_not_told_of_a_prompt_that_nobody_gave(
    run: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "dna.txt").write_text("ACGT" * 500)
    run(tmp_path / "run", f"data.path={tmp_path / 'dna.txt'}", "trainer.max_steps=1", "trainer.sample_tokens=5")
    assert "sample_prompt" not in caplog.text


def test_the_loss_of_a_table_of_counts_stands_beside_the_models(run: Any, compose: Any, tmp_path: Path) -> None:
    summary = run(tmp_path, "trainer.baseline=ngram:2", "trainer.max_steps=1", "trainer.sample_tokens=0")
    data = LMDataModule(compose(*TINY).data, compose(*TINY).tokenizer, 17, 0)
    data.prepare_data()
    counts = NGrams(data.prepared.ids("train")[:], data.prepared.tokenizer.vocab_size, 2)
    expected = float(counts.nats(data.prepared.ids("val")[:]).mean())
    assert summary["baseline"] == {"name": "ngram:2", "val/loss": expected}
    words = closing_words(summary)
    assert f"ngram:2     {expected:.4f} is the loss of a table of counts on the same text" in words
    assert f"the model's is {summary['val/loss'] - expected:.4f} higher" in words
    lower = {**summary, "val/loss": expected - 0.25}
    assert "the model's is 0.2500 lower" in closing_words(lower)
    assert "table of counts" not in closing_words({key: value for key, value in summary.items() if key != "baseline"})
    assert "in all, " in words


@pytest.mark.parametrize("name", ["ngram:7", "ngram:0", "uniform", "bigram"])
def test_a_baseline_that_is_none_is_refused(compose: Any, name: str) -> None:
    with pytest.raises(UserError, match=name):
        compose(f"trainer.baseline={name}")


def test_what_sees_the_average_stands_before_it(run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    callbacks = trainer.run_callbacks

    def turned(*arguments: Any) -> list[L.Callback]:
        return callbacks(*arguments)[::-1]

    monkeypatch.setattr(trainer, "run_callbacks", turned)
    with pytest.raises(RuntimeError, match="Curves must stand before Averaging among the callbacks"):
        run(tmp_path)
