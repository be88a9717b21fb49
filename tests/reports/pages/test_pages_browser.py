"""The pages in headless Chromium, from the file system, without a network."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gptlab.reports.pages.report_page import write_report_page
from gptlab.reports.pages.run_page import write_run_page
from gptlab.reports.plots.figures import write_plots
from gptlab.reports.report import build_report
from gptlab.system.files import write_json
from tests.browser import NEEDS_CHROMIUM, Page, expect
from tests.reports.test_report import CONFIG, fake_run, heads_sweep

EVIL = "<script>alert(1)</script><b>bold</b>"
NAMED = "button, input, summary, [role=slider], [role=region], a"

pytestmark = NEEDS_CHROMIUM


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a hostile name, and a sweep with its report; with their pages."""
    root = tmp_path_factory.mktemp("pages")
    run = fake_run(root / "run", 1.5, name=EVIL)
    draw = random.Random(0)
    rows = ["step,tokens,seconds,train/loss,val/loss,lr,grad_norm,tokens_per_sec", "0,0,0,,4.25,,,"]
    for step in range(10, 1001, 10):
        rows.append(f"{step},{64 * step},{step / 8},{1 + 30 / step + draw.random() / 99:.4f},,{1 / step},0.5,512")
        rows += [f"{step},{64 * step},{step / 8},,{1.25 + 25 / step:.4f},,,"] * (step % 250 == 0)
    (run / "metrics.csv").write_text("\n".join(rows))
    (run / "samples.txt").write_text(f"--- step 0\nfirst\n--- step 250\nmiddle\n--- step 1000\n{EVIL}\n")
    config = {**CONFIG, "name": EVIL}
    presets = {"groups": ["model=x"], "values": ["seed=1"], "presets": {**config, "seed": 1337}, "defaults": config}
    write_json(run / "presets.json", presets)
    write_run_page(run)
    for job in heads_sweep(root / "sweep").iterdir():
        write_run_page(job)
    report = build_report([root / "sweep"])
    write_report_page(report, root / "sweep" / "report", write_plots(report, root / "sweep" / "report"))
    return root


def opened(chromium: Any, path: Path, width: int = 1200) -> Iterator[Page]:
    page = Page(chromium, path.as_uri(), width)
    yield page
    assert page.errors == []  # there is nothing that the policy has stopped, either
    page.context.close()


@pytest.fixture
def run(chromium: Any, folder: Path) -> Iterator[Page]:
    yield from opened(chromium, folder / "run" / "index.html")


@pytest.fixture
def report(chromium: Any, folder: Path) -> Iterator[Page]:
    yield from opened(chromium, folder / "sweep" / "report" / "index.html")


def test_a_chart_shows_values_under_the_pointer(run: Page) -> None:
    legend, frame = run.find("#charts .legend").first, run.find("#charts .frame").first
    expect(legend).to_contain_text("at the end, step 1000")
    expect(legend).to_contain_text("val/loss 1.275")
    box = frame.bounding_box()
    frame.hover(position={"x": 62 + (box["width"] - 88) / 2, "y": 50})  # in the middle of the lines
    expect(legend).to_contain_text("step 500")
    expect(legend).to_contain_text("val/loss 1.3")
    expect(run.find("#charts .cursor circle")).to_have_count(2)
    run.find("h1").hover()
    expect(legend).to_contain_text("at the end, step 1000")


def test_a_chart_is_a_slider_for_the_keyboard(run: Page) -> None:
    frame = run.find("#charts .frame").first
    frame.focus()
    for key, words in (
        ("Home", "step 0; train/loss -; val/loss 4.25"),
        ("ArrowRight", "step 10; train/loss 4.0"),
        ("End", "step 1000; train/loss 1.0"),
        ("ArrowLeft", "step 990; train/loss"),
    ):
        run.page.keyboard.press(key)
        assert str(frame.get_attribute("aria-valuetext")).startswith(words)
    assert "val/loss 1.2833 (at 750)" in str(frame.get_attribute("aria-valuetext"))
    assert frame.get_attribute("aria-label") == "Loss by step"
    assert (frame.get_attribute("aria-valuemax"), frame.get_attribute("aria-valuenow")) == ("100", "99")


def test_axes_are_chosen(run: Page) -> None:
    frame = run.find("#charts .frame").first
    before = run.find("#charts .line").first.get_attribute("d")
    run.page.get_by_label("tokens").check()
    expect(run.find("#charts .legend").first).to_contain_text("tokens 64k")
    run.page.get_by_label("seconds of training").check()
    expect(run.find("#charts .legend").first).to_contain_text("seconds of training 125")
    assert frame.get_attribute("aria-label") == "Loss by seconds of training"
    assert run.find("#charts .line").first.get_attribute("d") == before  # a step takes equally long
    run.find("#log-x").check()
    logarithmic = run.find("#charts .line").first.get_attribute("d")
    assert logarithmic != before
    run.find("#charts .chart").first.get_by_label("log").check()
    assert run.find("#charts .line").first.get_attribute("d") not in (before, logarithmic)
    run.find("#more-curves summary").click()
    expect(run.find("#more-charts .line")).to_have_count(1)


def test_samples_are_paged_through(run: Page) -> None:
    text = run.find("#sample-text")
    expect(text).to_have_text(EVIL)
    expect(run.find("#later")).to_be_disabled()
    run.find("#earlier").click()
    expect(text).to_have_text("middle")
    expect(run.find("#sample-step")).to_have_text("step 250")
    run.find("#sample").focus()
    run.page.keyboard.press("ArrowLeft")
    expect(text).to_have_text("first")
    expect(run.find("#earlier")).to_be_disabled()


def test_what_differs_and_what_can_be_copied(run: Page) -> None:
    expect(run.find("h1")).to_have_text(EVIL)
    expect(run.find("main b")).to_have_count(0)
    expect(run.find("#config-words")).to_have_text("1 key differs from its presets, model=x:")
    expect(run.find("#changed-rows tbody tr")).to_have_text(["seed13371"])
    expect(run.find("#filled")).to_be_hidden()
    run.context.grant_permissions(["clipboard-read", "clipboard-write"])
    run.find("#commands-list button").first.click()
    expect(run.find("#copied")).to_have_text("Copied: python -m gptlab.train")
    assert run.page.evaluate("navigator.clipboard.readText()") == "python -m gptlab.train"
    run.page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(); }")  # as browsers may
    run.find("#commands-list button").nth(1).click()
    expect(run.find("#copied")).to_contain_text("is marked")
    assert str(run.page.evaluate("getSelection().toString()")).startswith("python -m gptlab.generate")


def test_a_table_is_sorted_by_a_click_or_a_key(report: Page) -> None:
    table = report.find("#tables table").first
    names, losses = table.locator("tbody th"), table.locator("thead th").nth(2)
    labels = [f"n_head={count}" for count in (8, 4, 2, 1)]
    expect(names).to_have_text(labels)
    table.locator("thead button").first.click()  # by the number, not by the letters
    expect(names).to_have_text(labels[::-1])
    expect(table.locator("thead th").first).to_have_attribute("aria-sort", "ascending")
    losses.locator("button").focus()
    report.page.keyboard.press("Enter")
    expect(losses).to_have_attribute("aria-sort", "ascending")
    expect(table.locator("[aria-sort]")).to_have_count(1)
    expect(names).to_have_text(labels)
    report.page.keyboard.press("Enter")
    expect(losses).to_have_attribute("aria-sort", "descending")
    expect(names).to_have_text(labels[::-1])
    for _ in range(2):
        table.locator("thead button").nth(4).click()  # p
        expect(names.last).to_have_text("n_head=4")  # the baseline has none
    expect(table.locator(".bar")).to_have_count(4)


def test_a_picture_is_enlarged_until_escape(report: Page) -> None:
    pictures, zoom = report.find(".picture"), report.find("#zoom")
    expect(pictures).to_have_count(3)
    expect(zoom).to_be_hidden()
    pictures.first.focus()
    report.page.keyboard.press("Enter")
    expect(zoom).to_be_visible()
    assert report.find("#large").evaluate("each => each.naturalWidth") > 500
    assert report.find("#large").bounding_box()["width"] > 1.5 * pictures.first.bounding_box()["width"]
    report.page.keyboard.press("Escape")
    expect(zoom).to_be_hidden()
    expect(pictures.first).to_be_focused()
    pictures.nth(1).click()
    report.find("#large").click()
    expect(zoom).to_be_hidden()


def test_a_report_leads_to_a_run(report: Page) -> None:
    report.find("#tables a").first.click()
    expect(report.find("h1")).to_have_text("gpt3m")
    expect(report.find("#charts .line").first).to_be_visible()


@pytest.mark.parametrize("name", ["run/index.html", "sweep/report/index.html"])
def test_everything_has_a_name_and_fits_a_phone(chromium: Any, folder: Path, name: str) -> None:
    for page in opened(chromium, folder / name, width=390):
        for summary in page.find("summary:visible").all():
            summary.click()
        assert page.page.evaluate("document.documentElement.scrollWidth") <= 390
        for each in page.find(NAMED).all():
            name = each.evaluate("each => each.ariaLabel || each.textContent || each.labels?.[0]?.textContent")
            assert name, each.evaluate("each => each.outerHTML")
