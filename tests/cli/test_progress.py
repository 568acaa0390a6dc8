"""The progress bars fit into the terminal, and keep what matters: counts, loss, speed and time left."""

from __future__ import annotations

import io
import re
from types import SimpleNamespace

import pytest
from rich.console import Console

from vit_ipu.cli import progress
from vit_ipu.cli.progress import CountBar, TrainingBar


def terminal(width):
    return Console(file=io.StringIO(), force_terminal=True, width=width, legacy_windows=False, _environ={})


def shown(console, bar):
    """Returns the lines of a bar as they are at this moment."""
    paper = terminal(console.width)  # without the bar's own display
    with paper.capture() as capture:
        paper.print(bar._bar.get_renderable())
    return [line.rstrip() for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capture.get()).splitlines()]


def training_bar(console, total=20_000):
    bar = TrainingBar(console)
    bar.start(total, done=0)
    for update in (1, 2, total // 2):
        bar.step(update, loss=2.30353, learning_rate=5e-4, images_per_second=27_868.4)
    return bar


@pytest.mark.parametrize(
    ("width", "pattern"),
    [
        (120, r"update 10000/20000 \S+ loss 2.3035 lr 5.00e-04 27,868 images/s 0:00:0\d left [-:\d]+"),
        (80, r"update 10000/20000 \S{12} loss 2.3035 27,868 images/s left [-:\d]+"),
        (60, r"10000/20000 loss 2.3035 27,868 images/s left [-:\d]+"),
        (40, r"10000/20000 loss 2.3035 27,868/s [-:\d]+"),
    ],
)
def test_the_training_bar_fits_into_one_line(width, pattern):
    console = terminal(width)
    bar = training_bar(console)
    lines = shown(console, bar)
    bar.stop()
    assert len(lines) == 1
    assert re.fullmatch(pattern, lines[0]), lines
    assert len(lines[0]) <= width


def test_a_million_updates_fit_too():
    for width, loss in ((80, "loss 2.3035"), (40, "2.3035")):
        console = terminal(width)
        bar = training_bar(console, total=1_000_000)
        (line,) = shown(console, bar)
        bar.stop()
        assert len(line) <= width
        assert "500000/1000000" in line
        assert f" {loss} " in line
        assert "27,868" in line
        assert re.search(r"[-:\d]+$", line)


def test_the_bar_follows_a_terminal_that_becomes_narrow():
    console = terminal(120)
    bar = training_bar(console)
    assert " lr " in shown(console, bar)[0]
    console.width = 40
    (line,) = shown(console, bar)
    bar.stop()
    assert len(line) <= 40
    assert " lr " not in line


@pytest.mark.parametrize(("width", "words"), [(80, " images left "), (60, " left "), (40, " -:--:--")])
def test_the_bar_of_counts_fits_into_one_line(width, words):
    console = terminal(width)
    with CountBar(console, "image") as bar:
        bar.show("verify train", 600_000, 1_281_167)
        (line,) = shown(console, bar)
    assert len(line) <= width
    assert line.startswith("verify train  600000/1281167 ")
    assert words in line


def test_lines_tell_the_time_that_is_left_by_the_pace_since_the_first_step(monkeypatch):
    clock = iter([0.0, 100.0, 130.0, 160.0])
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    console = Console(file=io.StringIO(), width=40)
    bar = TrainingBar(console)
    bar.start(10, done=0)
    for update in (1, 2, 4, 10):
        bar.step(update, loss=2.0, learning_rate=5e-4, images_per_second=2.34)
    bar.stop()
    step = "loss 2.0000, learning rate 5.00e-04, 2.3 images/s"
    assert console.file.getvalue().splitlines() == [
        f"update 2 of 10: {step}, 13.3 minutes left",  # the first step, at 0 s, compiles and comes too early for a line
        f"update 4 of 10: {step}, 4.3 minutes left",
        f"update 10 of 10: {step}",
    ]


def test_without_a_terminal_lines_say_the_same():
    console = Console(file=io.StringIO(), width=40)
    bar = training_bar(console, total=4)
    bar.step(4, loss=2.30353, learning_rate=5e-4, images_per_second=27_868.4)
    bar.stop()
    text = console.file.getvalue()
    assert "update 4 of 4: loss 2.3035, learning rate 5.00e-04, 27,868 images/s\n" in text
