"""A pytest plugin that writes the outcome of each phase of each case immediately, so that a crash loses nothing."""

from __future__ import annotations

import json
import os
from typing import Any


def pytest_collection_finish(session: Any) -> None:
    for item in session.items:
        _append({"case": item.nodeid, "phase": "collect", "outcome": "missing"})  # until it has run


def pytest_collectreport(report: Any) -> None:
    """Reports a file that cannot be imported as one case in error."""
    if report.failed:
        _append({"case": report.nodeid, "phase": "collect", "outcome": "error", "message": _message(report)})


def pytest_runtest_logreport(report: Any) -> None:
    phase = {"case": report.nodeid, "phase": report.when, "outcome": report.outcome}
    if report.outcome != "passed":
        phase["message"] = _message(report)
    _append(phase)


def _append(phase: Any) -> None:
    with open(os.environ["POPTORCH_TESTS_REPORT"], "a") as file:
        file.write(json.dumps(phase) + "\n")


def _message(report: Any) -> str:
    """Returns the line that says why a case was skipped or failed, at most 300 characters of it."""
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    errors = [line[1:].strip() for line in text.splitlines() if line.startswith("E  ")]
    return str((errors or text.strip().splitlines() or [""])[0][:300])
