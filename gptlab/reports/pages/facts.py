"""Say in words what a run has reached, what is noteworthy about it, and where it ran."""

from __future__ import annotations

from typing import Any

import numpy as np

from gptlab.reports.number_words import compact_number, is_finite
from gptlab.reports.pages.points import Points
from gptlab.reports.records import Run
from gptlab.reports.units import is_share, loss_is_trained, unit
from gptlab.runs.identity import flatten
from gptlab.system.errors import amount
from gptlab.system.terminal import duration

Fact = tuple[str, str]  # what it is, and its value
PARTS = ("val/", "test/")
LARGE = ("val/bpb", "val/accuracy", "val/reward")  # what stands large beside the losses, where it was measured
ELSEWHERE = (*LARGE, "val/loss", "val/ppl", "val/gap")  # what is above, or no news beside it
CLIPPED_OFTEN = 0.1  # share of the points with a clipped gradient, from which on it is noteworthy
STILL_FALLING = 0.01  # share of its loss that a run gained over its last quarter, from which on it is noteworthy


def measure(key: str, value: Any) -> str:
    """Return a measure as the page shows it."""
    if not is_finite(value):
        return "not finite" if isinstance(value, float) else str(value)
    return f"{value:.2%}" if is_share(key) else f"{value:.4f}"


def _duration(seconds: float) -> str:
    return duration(seconds) if is_finite(seconds) else "-"


def headline(run: Run) -> list[Fact]:
    """Return the few numbers that stand largest."""
    summary = run.summary
    found = [(f"val/loss{_in_unit('val/loss', run)}", measure("val/loss", summary["val/loss"]))]
    if is_finite(summary.get("best_val_loss")) and is_finite(summary.get("best_step")):
        found.append((f"best val/loss, at step {summary['best_step']:,}", measure("", summary["best_val_loss"])))
    for key in LARGE:
        if key in summary:
            found.append((f"{key}{_in_unit(key, run)}", measure(key, summary[key])))
    found.append(("training", _duration(summary["train_seconds"])))
    return [*found, ("parameters", compact_number(summary["parameters"]))]


def numbers(run: Run) -> list[Fact]:
    """Return the other numbers of the summary that a reader looks for."""
    summary = run.summary
    found = [("train/loss, the last", measure("", summary["train/loss"]))]
    for key in summary:
        if key.startswith(PARTS) and key not in ELSEWHERE:
            found.append((f"{key}{_in_unit(key, run)}", measure(key, summary[key])))
    trained = summary.get("trained_parameters")
    found += [
        ("steps", f"{summary['steps']:,}"),
        ("tokens", f"{summary['tokens']:,}"),
        ("parameters", f"{summary['parameters']:,}"),
        *([("parameters trained", f"{trained:,}")] if is_finite(trained) and trained != summary["parameters"] else []),
        ("FLOPs", compact_number(summary["flops"])),
    ]
    total = summary.get("total_seconds")
    if isinstance(total, float) and total >= summary["train_seconds"]:  # of a resumed run it is only the time since
        found.append(("time, with validations and samples", _duration(total)))
    for key, name, words in (
        ("tokens_per_sec", "tokens per second", "{:,.0f}"),
        ("mfu", "share of the device's peak (mfu)", "{:.1%}"),
    ):
        if is_finite(summary.get(key)):
            found.append((name, words.format(summary[key])))
    if isinstance(memory := summary.get("peak_memory_bytes"), int):
        found.append(("memory at its peak", f"{memory / 1e9:.2f} GB"))
    return [*found, ("seed", str(summary["seed"]))]


def _in_unit(key: str, run: Run) -> str:
    return f", {found}" if (found := unit(key, (run.task,))) else ""


def status(run: Run) -> str:
    """Return in words how the run ended."""
    how = {"finished": "finished", "stopped_early": "stopped early"}.get(str(run.summary.get("status")), "ended")
    return f"{how} after {amount(run.summary['steps'], 'step')}"


def notes(run: Run, points: Points) -> list[str]:
    """Return sentences on what is noteworthy, the most important first."""
    return [note for each in (_on_end, _on_losses, _on_steps, _on_surroundings) for note in each(run, points)]


def _on_end(run: Run, points: Points) -> list[str]:
    if run.summary.get("status") != "stopped_early":
        return []
    patience, enough = (run.config.get(key) for key in ("trainer.patience", "task.enough"))
    why = [f"trainer.patience={patience}"] * (patience is not None) + [f"task.enough={enough}"] * (enough is not None)
    words = f", by {' or '.join(why)}" if why else ""
    return [f"It stopped before it had made trainer.max_steps={run.config.get('trainer.max_steps')}{words}."]


def _on_losses(run: Run, points: Points) -> list[str]:
    summary = run.summary
    loss, best, at = summary["val/loss"], summary.get("best_val_loss"), summary.get("best_step")
    found = []
    if is_finite(loss) and is_finite(best) and loss > best and is_finite(at) and at < summary["steps"]:
        found.append(
            f"The lowest val/loss, {best:.4f}, was at step {at:,}; it rose by {loss - best:.4f} after that. "
            f"checkpoints/best.ckpt holds that step's weights."
        )
    elif (falling := _still_falling(points)) and loss_is_trained((run.task,)):
        found.append(f"val/loss was still falling at the end: by {falling[0]:.4f} since step {falling[1]:,}.")
    if is_finite(table := summary.get("baseline.val/loss")):
        side = "below" if loss < table else "above"
        found.append(
            f"val/loss is {abs(loss - table):.4f} {side} {table:.4f}, the loss of a table of counts on the same text "
            f"({summary.get('baseline.name')})."
        )
    return found


def _still_falling(points: Points) -> tuple[float, int] | None:
    """Return by how much val/loss fell over the last quarter of the steps, and since which; None if by little."""
    losses, steps = points.values("val/loss"), points.steps("val/loss")
    early = [place for place, step in enumerate(steps) if step <= 0.75 * steps[-1]]
    if not early or not np.isfinite(losses).all():
        return None
    gained = float(losses[early[-1]] - losses[-1])
    return (gained, int(steps[early[-1]])) if gained > STILL_FALLING * abs(losses[-1]) else None


def _on_steps(run: Run, points: Points) -> list[str]:
    found = []
    if is_finite(skipped := run.summary.get("skipped_steps")) and skipped:
        found.append(f"{amount(skipped, 'step')} had no finite gradients and were left out.")
    lost = {name: int((~np.isfinite(values)).sum()) for name, (_, values) in points.lines.items()}
    if names := [f"{name} ({amount(count, 'point')})" for name, count in lost.items() if count]:
        found.append(f"Not all points of the curves are finite numbers: {', '.join(names)}.")
    limit, norms = run.config.get("optim.grad_clip"), points.values("grad_norm")
    if is_finite(limit) and limit and len(norms) and (share := float((norms > limit).mean())) >= CLIPPED_OFTEN:
        found.append(f"The gradient was clipped, to a norm of {limit:g}, at {share:.0%} of the logged steps.")
    if batches := run.config.get("data.overfit_batches"):
        found.append(f"It trained on its first batches again and again (data.overfit_batches={batches}).")
    if ema := run.config.get("trainer.ema"):
        found.append(f"What is measured and sampled is an average of the weights (trainer.ema={ema}).")
    return found


def _on_surroundings(run: Run, points: Points) -> list[str]:
    commit = str(run.environment.get("git_commit"))
    return ["The code had changes that were not committed."] if commit.endswith("-dirty") else []


def surroundings(run: Run) -> list[Fact]:
    """Return where the run ran, and on which data."""
    summary, environment = run.summary, run.environment
    facts: dict[str, Any] = {
        "device": summary.get("device", environment.get("device")),
        "devices": summary.get("devices"),
        "precision": summary.get("precision"),
        "compile": summary.get("compile"),
        "data": summary.get("data.name"),
        "sha256 of the text": summary.get("data.sha256"),
        "tokenizer": summary.get("data.tokenizer"),
        "vocabulary": summary.get("data.vocab_size"),
        "begun from": run.config.get("init_from"),
        "sha256 of those weights": summary.get("init_from_sha256"),
        "hash of the config": summary.get("config_hash"),
        "git commit": environment.get("git_commit"),
        "python": environment.get("python"),
        **flatten({key: value for key, value in environment.items() if key == "versions"}),
        "platform": environment.get("platform"),
    }
    return [(key.removeprefix("versions."), str(value)) for key, value in facts.items() if value is not None]
