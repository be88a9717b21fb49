"""What metrics.csv and TensorBoard's page show of a run."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.metadata import parse_session_start_info_plugin_data
from tensorboard.plugins.projector.projector_plugin import ProjectorPlugin

from gptlab.formats import checkpoint
from tests.training.runs_compared import points


@pytest.fixture(scope="module")
def watched(run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("watched")
    run(run_dir, "trainer.diagnose_every=2")
    return run_dir


def rows(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_row_says_how_many_tokens_were_seen_and_how_long_it_took(trained: Path) -> None:
    table = rows(trained)
    assert [int(row["tokens"]) for row in table] == [int(row["step"]) * 6 * 17 for row in table]
    seconds = [float(row["seconds"]) for row in table]
    assert seconds == sorted(seconds)
    assert seconds[0] == 0 < seconds[1]
    assert seconds[-1] == pytest.approx(json.loads((trained / "summary.json").read_text())["train_seconds"], abs=1e-3)


def test_the_gap_is_validation_minus_the_last_training_loss(trained: Path) -> None:
    train, gaps = None, []
    for row in rows(trained):
        train = row["train/loss"] or train
        if row["val/loss"]:
            gaps.append(row["val/gap"])
            expected = float(row["val/loss"]) - float(train) if train else None
            assert (float(gaps[-1]) if gaps[-1] else None) == expected
        else:
            assert not row["val/gap"]
    assert len(gaps) == 4
    assert gaps[0] == ""  # nothing is trained at step 0


def test_losses_are_drawn_by_tokens_and_by_seconds_too(trained: Path) -> None:
    shown, table = points(trained), rows(trained)
    for key in ("train/loss", "val/loss"):
        losses = [value for _, value in shown[key]]
        assert [(step * 6 * 17, value) for step, value in shown[key]] == shown[f"{key}_by_tokens"]
        assert shown[f"{key}_by_seconds"] == losses
        events = EventAccumulator(str(trained)).Reload().Scalars(f"{key}_by_seconds")
        assert [e.step for e in events] == [int(float(row["seconds"])) for row in table if row[key]]
    assert not {"tokens", "seconds"} & set(shown)


def test_the_layout_draws_training_against_validation_and_every_series_of_a_look_inside(watched: Path) -> None:
    events = EventAccumulator(str(watched)).Reload()
    (event,) = events.Tensors("custom_scalars__config__")
    layout = Layout.FromString(event.tensor_proto.string_val[0])
    tags = events.Tags()["scalars"]
    drawn = {
        chart.title: {tag for tag in tags for pattern in chart.multiline.tag if re.match(pattern, tag)}
        for category in layout.category
        for chart in category.chart
    }
    assert drawn["train/loss and val/loss by step"] == {"train/loss", "val/loss"}
    assert all(drawn.values())
    assert drawn["attention entropy by head (nats), h.1"] == {
        f"vitals_attention_entropy/{name}" for name in ("h.1.head.0", "h.1.head.1", "h.1.head.2", "uniform")
    }
    assert set().union(*drawn.values()) >= {tag for tag in tags if tag.startswith("vitals")}


def test_the_hparams_tab_has_final_values_and_no_places(watched: Path) -> None:
    events = EventAccumulator(str(watched)).Reload()
    metadata = events.summary_metadata["_hparams_/session_start_info"]
    shown = parse_session_start_info_plugin_data(metadata.plugin_data.content).hparams
    assert shown["model.n_head"].number_value == 3
    assert shown["model.n_kv_head"].string_value == "null"
    assert shown["model.tied"].string_value == "true"
    assert shown["parameters"].number_value > 0
    assert not [key for key in shown if key.startswith(("recipe.", "data.path", "data.cache_dir", "trainer.sample_"))]
    # With it, TensorBoard would show no key that the first of its runs lacks.
    assert "_hparams_/experiment" not in events.summary_metadata

    summary = json.loads((watched / "summary.json").read_text())
    shown_first = sorted(events.Tags()["scalars"])[:5]  # TensorBoard's own choice of columns
    final = {tag: events.Scalars(tag)[-1].value for tag in shown_first}
    assert [e.step for e in events.Scalars(shown_first[0])] == [3, 6, 7]
    assert final == pytest.approx(
        {
            "eval/best_val_loss": summary["best_val_loss"],
            "eval/train_loss": summary["train/loss"],
            "eval/val_bpb": summary["val/bpb"],
            "eval/val_gap": summary["val/loss"] - summary["train/loss"],
            "eval/val_loss": summary["val/loss"],
        }
    )


def test_the_projector_finds_the_embeddings_and_a_readable_line_for_each_token(watched: Path) -> None:
    folder = watched / "plugins" / "org_tensorflow_tensorboard_projector"
    plugin = ProjectorPlugin.__new__(ProjectorPlugin)
    configs, places = plugin._read_latest_config_files([("run", str(folder))])
    (embedding,) = configs["run"].embeddings
    assert places["run"] == str(folder / "projector_config.pbtxt")
    vectors = torch.tensor(
        [[float(x) for x in line.split("\t")] for line in (folder / embedding.tensor_path).read_text().splitlines()]
    )
    model, tokenizer, _ = checkpoint.load_checkpoint(watched / "checkpoints" / "last.ckpt")
    torch.testing.assert_close(vectors, model.wte.weight.detach(), rtol=1e-3, atol=0)
    lines = (folder / embedding.metadata_path).read_text().splitlines()
    assert lines[:3] == ["\\n", "␣", "."]
    assert len(lines) == tokenizer.vocab_size


def test_a_new_run_in_a_used_folder_begins_anew(run: Any, tmp_path: Path) -> None:
    run(tmp_path)
    first = (rows(tmp_path), points(tmp_path), (tmp_path / "samples.txt").read_text())
    run(tmp_path)
    assert points(tmp_path) == first[1]
    assert len(rows(tmp_path)) == len(first[0])
    assert (tmp_path / "samples.txt").read_text() == first[2]
