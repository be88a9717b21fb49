"""Log a run's curves to metrics.csv and to TensorBoard, with a layout for TensorBoard's page."""

from __future__ import annotations

import csv
import json
import threading
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.utils.tensorboard.summary import hparams

from gptlab.system.files import explain_write_errors, write_atomically

FIELDS = (
    *("step", "tokens", "seconds", "train/loss", "val/loss", "val/bpb", "val/ppl", "val/gap"),
    *("lr", "grad_norm", "tokens_per_sec", "mfu"),
)
PLUGIN = Path("plugins", "org_tensorflow_tensorboard_projector")  # where TensorBoard looks for embeddings


class CSVLogger(Logger):
    """Writes one row to metrics.csv for each call, immediately.

    Args:
        path: the file; one that is there keeps its columns.
        more: the names of further columns.
    """

    def __init__(self, path: Path, more: Sequence[str] = ()) -> None:
        super().__init__()
        self.path, self.fields = path, [*FIELDS, *more]

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        with explain_write_errors(self.path.parent), self.path.open("a+", newline="") as file:
            if file.tell():
                file.seek(0)
                self.fields = next(csv.reader(file))  # of a run that an older version began, fewer
            writer = csv.DictWriter(file, self.fields, extrasaction="ignore")
            file.seek(0, 2)
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow({"step": step, **metrics})

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the run's config.yaml has the hyperparameters."""


class TensorBoard(TensorBoardLogger):
    """Writes TensorBoard events into the run directory itself."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__(run_dir, name="", version="", default_hp_metric=False, flush_secs=10)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:  # type: ignore[override]
        """Log curves by step, and losses also by tokens and seconds, for which TensorBoard has no axes."""
        axes = {axis: int(metrics[axis]) for axis in ("tokens", "seconds") if axis in metrics}
        super().log_metrics({key: value for key, value in metrics.items() if key not in axes}, step)
        for axis, x in axes.items():
            losses = {key: metrics[key] for key in ("train/loss", "val/loss") if key in metrics}
            super().log_metrics({f"{key}_by_{axis}": loss for key, loss in losses.items()}, x)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any], *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Log the values of the HParams tab and the layout of the Custom Scalars tab; called once, at a run's start.

        torch would also write a list of columns, and TensorBoard would use the first run's list for all runs; without
        one it makes its own, with the columns that differ between the runs first.
        """
        plain = {key: value if type(value) in (int, float, str) else json.dumps(value) for key, value in params.items()}
        _, start, _ = hparams(plain, {})
        self.experiment._get_file_writer().add_summary(start)
        self.experiment.add_custom_scalars(layout(params.get("model.n_layer", 0)))

    @rank_zero_only
    def embed(self, vectors: Tensor, labels: list[str]) -> None:
        """Write the rows of `vectors`, (n, C), and their labels as the files that the Projector tab reads.

        Raises:
            UserError: the folder cannot be written.
        """
        folder = Path(self.save_dir) / PLUGIN
        with explain_write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            rows = ("\t".join(f"{x:.4g}" for x in row) for row in vectors.tolist())
            about = 'embeddings { tensor_name: "wte" tensor_path: "vectors.tsv" metadata_path: "tokens.tsv" }'
            files = {"vectors.tsv": "\n".join(rows), "tokens.tsv": "\n".join(labels), "projector_config.pbtxt": about}
            for name, text in files.items():
                write_atomically(folder / name, partial(_write, text=text))

    def save(self) -> None:
        """Flush the events; does not write Lightning's hparams.yaml, since config.yaml has the values."""
        self.experiment.flush()


def _write(file: BinaryIO, text: str) -> None:
    file.write(f"{text}\n".encode())


@contextmanager
def silent_writer_thread() -> Iterator[None]:
    """Hide the write errors of TensorBoard's own thread: the main thread's next write fails too and is reported."""
    hook = threading.excepthook
    threading.excepthook = lambda failed: None if issubclass(failed.exc_type, OSError) else hook(failed)
    try:
        yield
    finally:
        threading.excepthook = hook


def layout(n_layer: int) -> dict[str, dict[str, list[Any]]]:
    """Return the layout of the Custom Scalars tab: {category: {chart: tags}} for a model of `n_layer` blocks."""

    def chart(*tags: str) -> list[Any]:
        """Return a chart of all series whose tags match one of these regular expressions."""
        return ["Multiline", [f"{tag}$" for tag in tags]]

    heads = {
        f"attention entropy by head (nats), h.{i}": chart(rf"vitals_attention_entropy/(h\.{i}\.head\..*|uniform)")
        for i in range(n_layer)
    }
    return {
        "losses (nats per token, where nothing else is said)": {
            "train/loss and val/loss by step": chart("train/loss", "val/loss"),
            "train/loss and val/loss by tokens": chart("train/loss_by_tokens", "val/loss_by_tokens"),
            "train/loss and val/loss by seconds of training": chart("train/loss_by_seconds", "val/loss_by_seconds"),
            "generalisation gap: val/loss - train/loss": chart("val/gap"),
            "validation loss by position in the context": chart("vitals_loss_by_position/.*"),
            "bits per byte": chart("val/bpb"),
        },
        "optimisation": {
            "learning rate": chart("lr"),
            "gradient norm, before clipping": chart("grad_norm"),
            "gradient norm by block": chart("vitals_gradient_norm/.*"),
            "update norm by block": chart("vitals_update_norm/.*"),
            "update norm / weight norm by block": chart("vitals_update_ratio/.*"),
        },
        "inside": {"activation RMS after each block": chart("vitals_activation_rms/.*"), **heads},
        "speed": {"tokens per second": chart("tokens_per_sec"), "share of the device's peak (mfu)": chart("mfu")},
    }
