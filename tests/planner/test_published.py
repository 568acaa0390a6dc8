"""The comparison with published figures that no constant is fitted to, and its record."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import planner_vs_published

    return planner_vs_published


def test_the_interval_covers_every_row_whose_config_is_known(benchmark):
    from vit_ipu.planner.calibration import interval

    rows = [row for row in benchmark.compare() if row["kind"] in ("fitted: left out", "not fitted: BERT")]
    assert len(rows) == 18
    for row in rows:
        low, high = interval(row["predicted"])
        assert low <= row["published"] <= high, row["title"]


def test_a_job_that_the_host_limits_is_predicted_to_be_faster(benchmark):
    (row,) = [row for row in benchmark.compare() if row["kind"] == "not fitted: bound by the host"]
    assert row["predicted"] > row["published"]


def test_the_record_is_what_the_program_computes(benchmark):
    text = sorted((BENCHMARKS / "records").glob("*_planner-vs-published.md"))[-1].read_text()
    recorded = json.loads(re.search(r"```json\n(.*?)```", text, re.S)[1])
    computed = benchmark.compare()
    assert [row["title"] for row in recorded["rows"]] == [row["title"] for row in computed]
    for before, now in zip(recorded["rows"], computed):
        assert (before["kind"], before["published"]) == (now["kind"], now["published"])
        assert before["predicted"] == pytest.approx(now["predicted"], rel=1e-3)
    assert "Predicted" in text
    assert "nothing in this table was measured by this project" in text


def test_a_record_has_all_rows(benchmark, tmp_path):
    rows = benchmark.compare()
    text = benchmark.write(rows, tmp_path).read_text()
    assert all(row["title"] in text for row in rows)
    errors = [abs(row["error"]) for row in rows if row["kind"] == "not fitted: BERT"]
    assert benchmark.summary(rows)["bert_largest"] == max(errors)
