"""The page of a report, and of a frontier."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from gptlab.reports.frontier import build_frontier
from gptlab.reports.pages.report_page import write_frontier_page, write_report_page
from gptlab.reports.pages.run_page import write_run_page
from gptlab.reports.report import build_report
from tests.reports.pages.reading import read_page
from tests.reports.post_training import lexicon_runs
from tests.reports.test_report import fake_run, heads_sweep

PNG = b"\x89PNG\r\n\x1a\nand so on"


def page_of(root: Path, out: Path, plots: tuple[str, ...] = ()) -> dict[str, Any]:
    return read_page(write_report_page(build_report([root]), out, plots))


def column(table: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [row[table["columns"].index(name)] for row in table["rows"]]


def test_a_page_has_the_groups_and_the_runs(tmp_path: Path) -> None:
    heads_sweep(tmp_path / "sweep", seeds=2)
    (tmp_path / "sweep" / "odd").mkdir()
    (tmp_path / "sweep" / "odd" / "job.json").write_text("{}")
    data = page_of(tmp_path / "sweep", tmp_path / "sweep" / "report")
    assert (data["name"], data["status"]) == ("sweep", "8 runs in 4 groups, by val/loss (nats per token)")
    groups, runs = data["tables"]
    assert [cell["text"] for cell in column(groups, "")] == ["n_head=8", "n_head=4", "n_head=2", "n_head=1"]
    assert [cell["sort"] for cell in column(groups, "")] == [8, 4, 2, 1]
    for cell in column(groups, "val/loss"):
        low, mean, high = cell["bar"]
        assert low < mean < high
        assert cell["text"].startswith(f"{mean:.4f} ± ")
        assert cell["sort"] == mean
    assert column(groups, "difference")[1] == {"text": "baseline", "sort": 0}
    assert column(groups, "p")[1] == {"text": "-"}
    assert len(runs["rows"]) == 8
    assert {cell["text"] for cell in column(runs, "at step")} == {"4,750"}
    assert "end" not in runs["columns"]
    assert any(line.startswith("difference: from n_head=4") for line in data["conditions"])
    assert data["leftOut"] == [[str(tmp_path / "sweep" / "odd"), "has not begun: there is no config.yaml"]]
    assert data["pictures"] == []


def test_a_single_seed_has_no_interval(tmp_path: Path) -> None:
    heads_sweep(tmp_path / "sweep", seeds=1)
    groups, _ = page_of(tmp_path / "sweep", tmp_path / "report")["tables"]
    for cell in column(groups, "val/loss"):
        assert cell["bar"] == [cell["sort"]] * 3
        assert cell["text"].endswith("± ?")


def test_how_runs_ended_is_said_where_one_did_not_finish(tmp_path: Path) -> None:
    fake_run(tmp_path / "sweep" / "1", 1.5, seed=1)
    fake_run(tmp_path / "sweep" / "2", 1.5, seed=2, summary={"status": "stopped_early"})
    _, runs = page_of(tmp_path / "sweep", tmp_path / "report")["tables"]
    assert [cell["text"] for cell in column(runs, "end")] == ["finished", "stopped early"]


@pytest.mark.parametrize("name", ["a run", "javascript:alert(1)", "#?%41&<b>", "Größe"])
def test_runs_with_a_page_are_linked(tmp_path: Path, name: str) -> None:
    write_run_page(fake_run(tmp_path / "sweep" / name, 1.5, seed=1))
    fake_run(tmp_path / "sweep" / "without", 1.5, seed=2)
    for out in (tmp_path / "sweep" / "report", tmp_path / "sweep", tmp_path / "elsewhere" / "deep"):
        _, runs = page_of(tmp_path / "sweep", out)["tables"]
        links = {cell["text"]: cell.get("href") for cell in column(runs, "run")}
        assert set(links) == {name, "without"}
        assert links["without"] is None
        assert ":" not in links[name]
        assert (out / unquote(links[name])).resolve() == (tmp_path / "sweep" / name / "index.html").resolve()


def test_pictures_are_in_the_page(tmp_path: Path) -> None:
    heads_sweep(tmp_path / "sweep", seeds=1)
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "by_n_head.png").write_bytes(PNG)
    (picture,) = page_of(tmp_path / "sweep", tmp_path / "report", ("by_n_head",))["pictures"]
    assert picture["name"] == "by n head"
    assert base64.b64decode(picture["src"].removeprefix("data:image/png;base64,")) == PNG


def test_confusion_is_a_table(tmp_path: Path) -> None:
    counts = {"confusion": {"labels": ["good", "<b>"], "counts": [[1234, 1], [0, 5]]}}
    for seed in (1, 2):
        fake_run(tmp_path / "sweep" / str(seed), 0.5, seed, task={"name": "classify"}, summary=counts)
    (table,) = page_of(tmp_path / "sweep", tmp_path / "report")["confusions"]
    assert table["columns"] == ["", "good", "<b>"]
    assert [[cell["text"] for cell in row] for row in table["rows"]] == [["good", "2,468", "2"], ["<b>", "0", "10"]]
    assert "99.9% right" in table["title"]


def test_a_frontier_and_its_report_find_each_other(tmp_path: Path) -> None:
    lexicon_runs(tmp_path / "sweep", seeds=2)
    out = tmp_path / "report"
    assert page_of(tmp_path / "sweep", out)["links"] == []
    data = read_page(write_frontier_page(build_frontier([tmp_path / "sweep"]), out, ()))
    assert data["name"] == "test/reward against KL"
    assert data["tables"][0]["columns"][:3] == ["", "task", "n"]
    for cell in column(data["tables"][0], "KL"):
        assert cell["text"].startswith(f"{cell['sort']:.4f}")
    assert all("sort" not in cell for cell in column(data["tables"][0], "task"))
    assert any("best of" in row[0]["text"] for row in data["tables"][0]["rows"])
    assert data["links"] == [["The runs' report", "index.html"]]
    assert page_of(tmp_path / "sweep", out)["links"] == [["Reward against KL", "frontier.html"]]
