"""The results at the top of a report, also of a run that has not been evaluated yet."""

from __future__ import annotations

import re

import pytest
from helpers import interrupted_after, tiny_config, vit_ipu, write_config

from vit_ipu.report.figures import figures
from vit_ipu.report.layout import table

STEP = {"update": 3, "host_step": 3, "samples": 96, "loss": 2.25, "learning_rate": 0.1, "images_per_second": 1234.56}
EVALUATION = {"update": 3, "samples": 96, "top1": 50.0, "top5": 75.0, "evaluation_loss": 1.5}
AT_THE_END = "not measured yet: the first evaluation comes at the end"
CASES = {
    "nothing yet": ([], {}, None, [f"{AT_THE_END}, after update 4", "none logged yet"]),
    "nothing logged": (
        [],
        {"log_every": 10, "updates": 20, "evaluate_every": 5},
        None,
        [
            "not measured yet: the first evaluation comes after update 5",
            "none logged yet; run.log_every logs every 10 host steps",
        ],
    ),
    "no total yet": ([STEP], {"updates": None, "epochs": 3}, None, [AT_THE_END, "3, 96", "2.2500", "1,235"]),
    "of epochs": (
        [STEP],
        {"updates": None, "epochs": 3},
        9,
        [f"{AT_THE_END}, after update 9", "3 of 9, 96", "2.2500", "1,235"],
    ),
    "before its evaluation": (
        [STEP],
        {"updates": 9, "evaluate_every": 3},
        9,
        ["not measured yet: the first evaluation comes after update 3", "3 of 9, 96", "2.2500", "1,235"],
    ),
    "evaluated at the start": (
        [],
        {"updates": 9, "evaluate_every": 3, "evaluate_at_start": True},
        9,
        ["not measured yet: the first evaluation comes before the first update", "none logged yet"],
    ),
    "before the last": (
        [dict(STEP, update=7)],
        {"updates": 9, "evaluate_every": 8},
        9,
        ["not measured yet: the first evaluation comes after update 8", "7 of 9, 96", "2.2500", "1,235"],
    ),
    "at the last": (
        [dict(STEP, update=9)],
        {"updates": 9, "evaluate_every": 3},
        9,
        [f"{AT_THE_END}, after update 9", "9, 96", "2.2500", "1,235"],
    ),
    "evaluated": ([STEP, EVALUATION], {"updates": 3}, 3, ["50.00 %, 75.00 %", "1.5000", "3, 96", "2.2500", "1,235"]),
}


@pytest.mark.parametrize("name", list(CASES))
def test_the_rows_say_what_is_measured_and_when_the_rest_comes(name):
    metrics, run, total, expected = CASES[name]
    rows = figures(metrics, tiny_config(run=run), total_updates=total)
    assert [value for _, value in rows] == expected


def test_the_speed_of_a_simulation_is_not_called_that_of_an_ipu():
    assert figures([STEP], tiny_config())[-1] == ("Images/s", "1,235")
    assert figures([STEP], tiny_config(), simulated=True)[-1] == ("Images/s of the simulation", "1,235")


def test_a_slow_speed_has_a_decimal():
    assert figures([dict(STEP, images_per_second=12.34)], tiny_config())[-1] == ("Images/s", "12.3")


def test_a_percentage_is_not_broken_before_its_sign():
    assert table([("Top-1, top-5", "50.00 %, 75.00 %")]).count("&nbsp;%") == 2


def test_the_speed_is_the_median_of_the_last_steps():
    speeds = [*[1.0] * 20, *[100.0] * 5, 9.0, *[300.0] * 4]
    steps = [dict(STEP, update=update, images_per_second=speed) for update, speed in enumerate(speeds)]
    assert figures(steps, tiny_config())[-1] == ("Images/s", "100")


def test_a_trial_of_a_few_updates_has_its_figures_at_the_top(run, monkeypatch, capsys, empty_folder):
    config = write_config(empty_folder, run={"updates": None, "epochs": 4})
    with monkeypatch.context() as context:
        interrupted_after(context, 2)
        assert vit_ipu(monkeypatch, capsys, "train", config, "--device", "cpu", "--output", "run")[0] == 130
    top = (empty_folder / "run" / "report.html").read_text().split("<main>")[1].split("<section>")[0]
    assert "Top-1, top-5</th><td>not measured yet: the first evaluation comes at the end, after update 12</td>" in top
    assert "Updates, samples</th><td>2 of 12, 64</td>" in top
    assert re.search(r"Training loss</th><td>[0-9.]+</td>", top)
    assert re.search(r"Images/s</th><td>[0-9.,]+</td>", top)
