"""A pytest plugin that writes the outcome of each phase of each case immediately, so that a crash loses nothing."""

from __future__ import annotations

import json
import os
from typing import Any


def pytest_runtest_logreport(report: Any) -> None:
    phase = {"case": report.nodeid, "phase": report.when, "outcome": report.outcome}
    with open(os.environ["POPTORCH_TESTS_REPORT"], "a") as file:
        file.write(json.dumps(phase) + "\n")
