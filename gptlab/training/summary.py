"""Write the summary of a finished run, the last file of its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch

from gptlab.data.prepared import Prepared
from gptlab.evaluation.ngrams import NGrams, ngram_order
from gptlab.models.heads import has_logits
from gptlab.runs.directory import SUMMARY_FORMAT
from gptlab.runs.identity import config_hash
from gptlab.system.files import write_json
from gptlab.system.machine import peak_memory_bytes
from gptlab.training.callbacks.checkpoints import Checkpoints
from gptlab.training.callbacks.curves import Curves
from gptlab.training.objectives.classes import Classes
from gptlab.training.run import Run
from gptlab.training.trainer import callback


def baseline_loss(name: str, data: Prepared) -> float:
    """Return the loss of a table of counts, e.g. ngram:4, on the validation split, in nats per token.

    The table is counted on the training split and predicts the same tokens as the model.
    """
    n = ngram_order(name)
    assert n is not None
    counts = NGrams(data.ids("train")[:], data.tokenizer.vocab_size, n)
    return float(counts.nats(data.ids("val")[:]).mean())


def summarise(trainer: L.Trainer, run: Run, run_dir: Path, total_seconds: float) -> dict[str, Any]:
    """Return the summary of the run that `trainer` has made; the first process writes it into `run_dir`.

    What is returned has, as "opening", what `RunData.opening` returns, and as "speaks" whether the model writes text;
    what is written has not.

    Args:
        total_seconds: wall time since the run began, with validations, samples and checkpoints.

    Raises:
        UserError: it cannot be written.
    """
    module, place, data = run.module, run.place, run.data.prepared
    curves: Curves = callback(trainer, Curves)
    checkpoints: Checkpoints = callback(trainer, Checkpoints)
    steps, seconds = trainer.global_step, curves.train_seconds
    tokens = steps * run.tokens_per_step
    flops = tokens * module.model.flops_per_token()
    summary: dict[str, Any] = {
        "format": SUMMARY_FORMAT,
        "status": "stopped_early" if steps < run.settings.trainer.max_steps else "finished",
        **module.val_metrics,
        **module.test_metrics,
        "best_val_loss": checkpoints.best_val_loss,
        "best_step": checkpoints.best_step,
        "train/loss": curves.last["train/loss"],
        "steps": steps,
        "skipped_steps": int(module.skipped),
        "tokens": tokens,
        "parameters": module.model.num_parameters(),
        "trained_parameters": run.trained_parameters,
        "flops": flops,
        "train_seconds": seconds,
        "total_seconds": total_seconds,
        "tokens_per_sec": tokens / seconds,
        "mfu": flops / seconds / curves.peak_flops if flops else None,
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if place.kind == "cuda" else peak_memory_bytes(),
        "device": place.device_name,
        "devices": place.world_size,
        "precision": place.precision,
        "compile": run.settings.compile.name,
        "seed": run.settings.seed,
        "data": {
            "name": data.name,
            "sha256": data.sha256,
            "tokenizer": module.tokenizer.name,
            "vocab_size": module.tokenizer.vocab_size,
        },
        "config_hash": config_hash(run.config, data.sha256),
        "run_dir": str(run_dir),
    }
    if module.origin is not None:
        summary["init_from_sha256"] = module.origin.sha256
    if module.answers and module.answers.sampled and (best := module.answers.sampled.best_of_n):
        summary["best_of_n"] = best
    if isinstance(module.objective, Classes) and (counts := module.objective.confusion.get("test")):
        summary["confusion"] = {"labels": [*module.objective.labels], "counts": counts}
    if trainer.is_global_zero:
        if (name := run.settings.trainer.baseline) is not None:
            summary["baseline"] = {"name": name, "val/loss": baseline_loss(name, data)}
        write_json(run_dir / "summary.json", summary)
    return summary | {"opening": run.data.opening(), "speaks": has_logits(module.model)}
