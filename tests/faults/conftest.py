"""Fixtures of runs that are started many times, and of the uninterrupted runs that they are compared with."""

from __future__ import annotations

from typing import Iterator

import pytest

pytest.register_assert_rewrite("fault_runs", "forked_runs")

from fault_runs import WholeRuns  # noqa: E402
from forked_runs import ForkedRuns  # noqa: E402


@pytest.fixture(scope="session")
def forked_runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkedRuns]:
    runs = ForkedRuns(tmp_path_factory.mktemp("cache"))
    yield runs
    runs.close()


@pytest.fixture(scope="session")
def whole_runs(forked_runs: ForkedRuns, tmp_path_factory: pytest.TempPathFactory) -> WholeRuns:
    return WholeRuns(forked_runs, tmp_path_factory.mktemp("whole"))
