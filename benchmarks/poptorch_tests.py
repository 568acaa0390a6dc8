"""Runs PopTorch's own public tests over the simulator: `make poptorch-tests POPTORCH=path`.

`path` is a checkout of graphcore/poptorch, branch sdk-release-3.4, outside this repository; nothing of it is copied.
Each test file runs as a user would run it, `python -m vit_ipu.simulator -m pytest FILE`. Only the cases named in
poptorch_cases.txt count: cases that read no compiled graph, log lines of the compiler or hardware. A case that is
skipped, missing, timed out or in error counts as failed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Dict, List

import torch

HERE = Path(__file__).resolve().parent
CASES = HERE / "poptorch_cases.txt"
CASE_TIMEOUT = 120
"""Seconds that one case may take."""


def main() -> None:
    arguments = _parser().parse_args()
    tests = Path(arguments.poptorch).resolve() / "tests"
    if not (tests / "conftest.py").is_file():
        sys.exit(f"{tests.parent} is not a checkout of graphcore/poptorch: it lacks tests/conftest.py; give its path")
    expected = _expected(arguments.files)
    outcomes: Dict[str, str] = {}
    for name, cases in expected.items():
        of_file = run_file(tests, name, arguments.file_timeout)
        outcomes.update({case: of_file.get(case, "missing") for case in cases})
        passed = sum(outcomes[case] == "passed" for case in cases)
        print(f"{name:<30} {passed:>4} of {len(cases):>4}", flush=True)
        for case in cases:
            if outcomes[case] != "passed" and arguments.verbose:
                print(f"    {outcomes[case]} {case}")
    total = sum(outcome == "passed" for outcome in outcomes.values())
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    print(f"{'all':<30} {total:>4} of {len(outcomes):>4}  {versions}")
    if arguments.record:
        _write(Path(arguments.record), expected, outcomes)


def run_file(tests: Path, name: str, timeout: float) -> Dict[str, str]:
    """Returns the outcomes of a file's cases by ID, without the cases that did not report within `timeout` seconds."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.jsonl"
        command = [sys.executable, "-m", "vit_ipu.simulator", "-m", "pytest", name, "-q", "-p", "no:cacheprovider"]
        command += ["-p", "poptorch_report", "--timeout", str(CASE_TIMEOUT)]
        path = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
        programs = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])  # some cases run python3
        environment = dict(os.environ, PATH=programs, PYTHONPATH=path, POPTORCH_TESTS_REPORT=str(report))
        with open(Path(folder) / "output.txt", "w") as output:
            try:
                subprocess.run(command, cwd=str(tests), env=environment, timeout=timeout, stdout=output, stderr=output)
            except subprocess.TimeoutExpired:
                print(f"{name} took longer than {timeout:.0f} s")
        return _outcomes(report)


def _outcomes(report: Path) -> Dict[str, str]:
    outcomes: Dict[str, str] = {}
    for line in report.read_text().splitlines() if report.exists() else []:
        phase = json.loads(line)
        case = "tests/" + phase["case"].split("tests/")[-1]
        if phase["phase"] == "call" or phase["outcome"] != "passed":
            worse = outcomes.get(case, "passed") == "passed"
            outcomes[case] = phase["outcome"] if worse else outcomes[case]
    return outcomes


def _expected(files: List[str]) -> Dict[str, List[str]]:
    """Returns the cases that count, by file."""
    by_file: Dict[str, List[str]] = defaultdict(list)
    for case in CASES.read_text().splitlines():
        name = case.split("::")[0].split("/")[-1]
        if not files or name in files:
            by_file[name].append(case)
    return dict(by_file)


def _write(path: Path, expected: Dict[str, List[str]], outcomes: Dict[str, str]) -> None:
    record = {
        "what": "graphcore/poptorch, branch sdk-release-3.4, folder tests/, over the simulator",
        "simulated": True,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "passed": sum(outcome == "passed" for outcome in outcomes.values()),
        "cases": len(outcomes),
        "files": {
            name: {"passed": sum(outcomes[case] == "passed" for case in cases), "cases": len(cases)}
            for name, cases in expected.items()
        },
        "not_passed": {case: outcome for case, outcome in outcomes.items() if outcome != "passed"},
    }
    path.write_text(json.dumps(record, indent=1) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Run PopTorch's public tests over the simulator.")
    parser.add_argument("poptorch", help="a checkout of graphcore/poptorch, outside this repository")
    parser.add_argument("--files", nargs="*", default=[], help="run only these files, such as options_test.py")
    parser.add_argument("--record", help="a JSON file to write")
    parser.add_argument("--verbose", action="store_true", help="name the cases that did not pass")
    parser.add_argument("--file-timeout", type=float, default=1800, help="seconds that a file may take (1800)")
    return parser


if __name__ == "__main__":
    main()
