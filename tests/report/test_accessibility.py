"""Accessibility of the report: axe-core in a real browser finds nothing on pages of every kind, size and colour scheme.

What axe-core leaves to a person, the contrast of letters over a picture, is measured here.
"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from helpers import vit_ipu, write_config, write_image_folder
from playwright.sync_api import sync_playwright
from test_in_browser import BROWSER, WIDTHS, contrast

pytestmark = pytest.mark.skipif(BROWSER is None, reason="Chromium is not installed")
LEAST_CONTRAST = 4.5
"""Contrast that WCAG 2.1 asks of letters, 1.4.3."""
OPTIONS = {"resultTypes": ["violations", "incomplete"]}
"""Of the rules that pass, axe-core then names one element each, which saves most of its time."""
LETTERS_OF_THE_TIMETABLE = """
() => [...document.querySelectorAll("svg[aria-label='timetable of the pipeline'] text")].map((text) => {
  const before = text.previousElementSibling, letters = text.getBoundingClientRect();
  const box = before && before.tagName === "rect" && before.getBoundingClientRect();
  const isOnBox = box && box.left <= letters.left && letters.right <= box.right;
  const behind = isOnBox ? getComputedStyle(before).fill : getComputedStyle(document.body).backgroundColor;
  return [getComputedStyle(text).fill, behind, text.textContent];
})
"""


# ------------------------------------------------------------------------------------ pages of every kind


def simulated(run, folder):
    config = write_config(folder, run={"updates": 4, "evaluate_every": 2})
    run("train", config, "--device", "ipu-sim", "--output", "simulated")
    return "simulated/report.html"


def on_a_cpu(run, folder):
    config = write_config(folder, run={"updates": 4, "evaluate_every": 2, "keep_best": "loss", "checkpoint_every": 2})
    run("train", config, "--device", "cpu", "--output", "cpu")
    return "cpu/report.html"


def compared(run, folder):
    simulated(run, folder)
    on_a_cpu(run, folder)
    run("report", "simulated", "cpu")
    return "comparison.html"


def many_classes(run, folder):
    """Has a list of confusions instead of the matrix, and images that were skipped."""
    write_image_folder(folder / "images", classes=[f"class {number}" for number in range(31)], count=8)
    next((folder / "images" / "val").glob("*/*.png")).write_text("no image")
    data = {"source": "imagefolder", "path": "images", "num_train": None, "num_eval": None, "on_error": "skip"}
    config = write_config(folder, data=data, model={"num_classes": 31}, run={"updates": 2})
    run("train", config, "--device", "ipu-sim", "--output", "many")
    return "many/report.html"


def without_mistakes(run, folder):
    """Was evaluated by a version that did not keep mistakes."""
    page = on_a_cpu(run, folder)
    (folder / "cpu" / "evaluation.json").unlink()
    run("report", "cpu")
    return page


def not_begun(run, folder):
    page = simulated(run, folder)
    for name in ("metrics.jsonl", "evaluation.json"):
        (folder / "simulated" / name).unlink()
    run("report", "simulated")
    return page


@contextmanager
def opened(path):
    """Yields a function that opens the page at a width and in a colour scheme, with everything unfolded."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])

        def show(width, scheme):
            page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            page.goto(Path(path).resolve().as_uri())
            page.evaluate("document.querySelectorAll('details').forEach((details) => (details.open = true))")
            return page

        yield show
        browser.close()


def described(results):
    """Returns a line on each element with a finding."""
    return [
        f"{rule['id']} ({rule['impact']}): {node['html'][:200]}: {node['failureSummary']}"
        for rule in results
        for node in rule["nodes"]
    ]


def check(path):
    """Asserts that axe-core has no finding, and returns the names of the rules that it has applied."""
    applied = set()
    with opened(path) as show:
        for width in WIDTHS:
            for scheme in ("light", "dark"):
                found = Axe().run(show(width, scheme), options=OPTIONS).response
                assert described(found["violations"]) == [], f"at {width} pixels, {scheme}"
                assert {rule["id"] for rule in found["incomplete"]} <= {"color-contrast"}
                applied |= {rule["id"] for rule in found["passes"]}
    return applied


# --------------------------------------------------------------------------------------------- the tests

ALWAYS = {
    "color-contrast",
    "document-title",
    "heading-order",
    "html-has-lang",
    "landmark-unique",
    "region",
    "scrollable-region-focusable",
}
"""Rules that every page gives something to check."""


@pytest.mark.parametrize(
    ("make", "rules"),
    [
        (simulated, {"empty-table-header", "image-alt", "list", "svg-img-alt"}),
        (on_a_cpu, {"image-alt", "list", "svg-img-alt"}),
        (compared, {"empty-table-header", "svg-img-alt"}),
        (many_classes, {"empty-table-header", "image-alt", "list", "svg-img-alt"}),
        (without_mistakes, {"svg-img-alt"}),
        (not_begun, {"empty-table-header", "svg-img-alt"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_no_page_has_a_finding(run, empty_folder, make, rules):
    assert check(make(run, empty_folder)) >= ALWAYS | rules


def test_the_page_of_a_run_that_failed_has_no_finding(run, monkeypatch, capsys, empty_folder):
    config = write_config(empty_folder, run={"updates": 40, "evaluate_every": 1}, optim={"learning_rate": 1e6})
    assert vit_ipu(monkeypatch, capsys, "train", config, "--device", "cpu", "--output", "run")[0] == 1
    assert check("run/report.html") >= ALWAYS


def test_letters_of_the_timetable_are_readable(run, empty_folder):
    with opened(simulated(run, empty_folder)) as show:
        for scheme in ("light", "dark"):
            letters = show(1400, scheme).evaluate(LETTERS_OF_THE_TIMETABLE)
            assert len(letters) > 60
            assert len({behind for _, behind, _ in letters}) == 3, "paper, forward and backward"
            for ink, behind, text in letters:
                assert contrast(ink, behind) >= LEAST_CONTRAST, f"{text}: {ink} on {behind}, {scheme}"


def test_parts_that_scroll_can_be_scrolled_by_keyboard(run, empty_folder):
    with opened(simulated(run, empty_folder)) as show:
        page, reached = show(400, "light"), []
        for _ in range(8):
            page.keyboard.press("Tab")
            name = page.evaluate("document.activeElement.getAttribute('aria-label')")
            if name == "Timetable of an update":
                page.keyboard.press("ArrowRight")
                page.wait_for_function("document.activeElement.scrollLeft > 0")
            reached.append(name)
    names = ["Confusion matrix", "Curves", "Timetable of an update", "Predicted memory"]
    assert reached[:5] == [*names, "Settings that differ from the defaults"]
    assert reached[5:7] == [None, "All settings"], "after the summary that folds it"
