"""The fitted constants: only published ViT figures, one constant a kind of IPU, and how well left-out rows are met."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vit_ipu.planner.calibration import (
    FITTED_ROWS,
    fitted_share,
    images_per_second,
    interval,
    leave_one_out,
    share_of,
)
from vit_ipu.planner.hardware import HARDWARE


def test_only_the_four_published_vits_are_fitted():
    assert [row.images_per_second for row in FITTED_ROWS] == [5600, 7319, 7615, 27868]
    assert all("vit" in row.config_name for row in FITTED_ROWS)


@pytest.mark.parametrize("hardware", list(HARDWARE.values()), ids=list(HARDWARE))
def test_the_constants_are_those_of_the_fit(hardware):
    assert hardware.fitted_share == pytest.approx(fitted_share(hardware), abs=5e-4)


@pytest.mark.parametrize("row", FITTED_ROWS, ids=[row.title for row in FITTED_ROWS])
def test_a_rows_own_share_predicts_it_exactly(row):
    hardware = HARDWARE[row.hardware]
    exact = replace(hardware, fitted_share=share_of(row, hardware))
    assert images_per_second(row.config, exact) == pytest.approx(row.images_per_second, rel=1e-6)


@pytest.mark.parametrize("row", FITTED_ROWS, ids=[row.title for row in FITTED_ROWS])
def test_published_vits_are_predicted_within_10_percent_when_left_out(row):
    assert leave_one_out(row) == pytest.approx(row.images_per_second, rel=0.1)


def test_a_left_out_row_does_not_influence_its_own_prediction(monkeypatch):
    row = FITTED_ROWS[1]
    changed = row._replace(images_per_second=row.images_per_second / 2)
    before = leave_one_out(row)
    monkeypatch.setattr("vit_ipu.planner.calibration.FITTED_ROWS", (FITTED_ROWS[0], changed, *FITTED_ROWS[2:]))
    assert leave_one_out(changed) == pytest.approx(before)


def test_the_interval_contains_the_prediction():
    low, high = interval(1000.0)
    assert low < 1000 < high
