"""The report in a real browser: no sideways scrolling at any width, and readable in both colour schemes."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess

import pytest
from helpers import write_config

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="Chromium is not installed")
WIDTHS = (400, 1400)
MEASURE = """
<script>
addEventListener("load", () => {
  const found = {};
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument, style = getComputedStyle(page.body);
    const text = [...page.querySelectorAll("p, th, td, li, h1, h2, summary, pre, svg text")].map((element) => {
      let behind = element;
      const color = (e, key) => frame.contentWindow.getComputedStyle(e)[key];
      const isClear = (e) => /, 0\\)$|transparent/.test(color(e, "backgroundColor"));
      while (behind.parentElement && isClear(behind)) behind = behind.parentElement;
      const ink = element.closest("svg") ? color(element, "fill") : color(element, "color");
      return [ink, color(behind, "backgroundColor"), element.tagName];
    });
    found[frame.width] = {
      wide: page.documentElement.scrollWidth, dark: matchMedia("(prefers-color-scheme: dark)").matches,
      pictures: [...page.images].every((image) => image.naturalWidth > 0), text,
      headings: [...page.querySelectorAll("h1, h2")].map((heading) => heading.textContent),
      unnamed: page.querySelectorAll("img:not([alt]), svg:not([aria-label]), th:not([scope])").length,
    };
  }
  document.body.textContent = JSON.stringify(found);
});
</script>
"""


def measured(page, folder, *, dark):
    """Returns what the browser finds out of the page at each width."""
    frames = "".join(f'<iframe width="{width}" height="900" srcdoc="{html.escape(page)}"></iframe>' for width in WIDTHS)
    (folder / "frames.html").write_text(f"<!doctype html><body>{frames}{MEASURE}</body>")
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000"]
    command += [f"--blink-settings=preferredColorScheme={0 if dark else 1}", f"--user-data-dir={folder / 'profile'}"]
    command += ["--dump-dom", (folder / "frames.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    body = re.search(r"(?s)<body>(.*)</body>", done.stdout).group(1)
    return json.loads(html.unescape(body))


def contrast(ink, paper):
    """Returns the contrast of two CSS colours, by formula 1.4.3 of WCAG 2.1."""

    def luminance(color):
        values = [float(value) / 255 for value in re.findall(r"[\d.]+", color)[:3]]
        linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values]
        return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear))

    bright, dim = sorted((luminance(ink), luminance(paper)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_reports_are_readable_at_every_width(run, empty_folder, dark):
    config = write_config(empty_folder, run={"updates": 4, "evaluate_every": 2})
    run("train", config, "--device", "ipu-sim", "--output", "one")
    run("train", config, "--device", "cpu", "--output", "other")
    run("report", "one", "other")
    for page in (empty_folder / "one" / "report.html", empty_folder / "comparison.html"):
        found = measured(page.read_text(), empty_folder, dark=dark)
        for width in WIDTHS:
            one = found[str(width)]
            assert one["wide"] <= width, f"{page.name} scrolls sideways at {width} pixels"
            assert one["dark"] is dark
            assert one["pictures"]
            assert one["unnamed"] == 0
            assert len(one["headings"]) == len(set(one["headings"])) >= 4
            # A cell of the confusion matrix has a translucent background, which only brings paper and ink closer.
            texts = [text for text in one["text"] if not text[1].startswith("rgba")]
            assert len(texts) >= 20
            assert min(contrast(ink, paper) for ink, paper, tag in texts if tag != "text") >= 4.5
