"""Runs PopTorch's own public tests over the simulator: `make poptorch-tests POPTORCH=path`.

`path` is a checkout of graphcore/poptorch, branch sdk-release-3.4, outside this repository; nothing of it is copied.
Each file of its folder tests/ runs as a user would run it, `python -m vit_ipu.simulator -m pytest FILE`. All cases that
pytest collects count; a case that is skipped, missing, timed out or in error has not passed. poptorch_reasons.tsv says
why a case cannot pass without a compiled graph, the compiler's log or hardware. The exit code is 1 if a case did not
pass for which the file has no reason. The cases in poptorch_cases.txt, which an earlier count was limited to, are
counted by themselves as well.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List

import torch
from command import run_command

HERE = Path(__file__).resolve().parent
CASES = HERE / "poptorch_cases.txt"
REASONS = HERE / "poptorch_reasons.tsv"
CASE_TIMEOUT = 120
"""Seconds that one case may take."""
NO_REASON = "no reason is known"


@dataclass
class Outcomes:
    """Outcomes of the cases of a test file by ID, and the lines that say why cases did not pass."""

    by_case: Dict[str, str] = field(default_factory=dict)
    messages: Dict[str, str] = field(default_factory=dict)

    @property
    def not_passed(self) -> List[str]:
        return [case for case, outcome in self.by_case.items() if outcome != "passed"]

    @property
    def passed(self) -> int:
        return len(self.by_case) - len(self.not_passed)


def main() -> None:
    arguments = _parser().parse_args()
    tests = Path(arguments.poptorch).resolve() / "tests"
    if not (tests / "conftest.py").is_file():
        sys.exit(f"{tests.parent} is not a checkout of graphcore/poptorch: it lacks tests/conftest.py; give its path")
    reasons = read_reasons()
    found: Dict[str, Outcomes] = {}
    for name in arguments.files or test_files(tests):
        found[name] = of_file = run_file(tests, name, arguments.file_timeout)
        print(f"{name:<36} {of_file.passed:>5} of {len(of_file.by_case):>5}", flush=True)
        for case in of_file.not_passed:
            if arguments.verbose or reason_of(case, reasons) == NO_REASON:
                print(f"    {of_file.by_case[case]} {case}: {of_file.messages.get(case, '')}")
    summary = _summary(found, reasons)
    print(json.dumps(summary, indent=1))
    if arguments.record:
        Path(arguments.record).write_text(json.dumps(dict(summary, files=_by_file(found, reasons)), indent=1) + "\n")
    sys.exit(NO_REASON in summary["not_passed"])


def test_files(tests: Path) -> List[str]:
    """Returns the names of the test files, without those of PopTorch Geometric in the folder gnn."""
    return sorted(path.name for path in [*tests.glob("*_test.py"), *tests.glob("test_*.py")])


def run_file(tests: Path, name: str, timeout: float) -> Outcomes:
    """Returns the outcomes of a file's cases; those that did not report within `timeout` seconds are missing."""
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
        return _read_outcomes(report)


def _read_outcomes(report: Path) -> Outcomes:
    found = Outcomes()
    for line in report.read_text().splitlines() if report.exists() else []:
        phase = json.loads(line)
        case = "tests/" + phase["case"].split("tests/")[-1]
        ended = phase["phase"] in ("collect", "call") or phase["outcome"] != "passed"
        if ended and found.by_case.get(case, "missing") in ("missing", "passed"):
            found.by_case[case] = phase["outcome"]
        if "message" in phase:
            found.messages.setdefault(case, phase["message"])
    return found


def read_reasons() -> Dict[str, str]:
    """Returns why cases cannot pass, by the ID of a case, or of a file, class or function for all of its cases."""
    lines = [line for line in REASONS.read_text().splitlines() if line and not line.startswith("#")]
    return {line.split("\t")[0]: line.split("\t")[1] for line in lines}


def reason_of(case: str, reasons: Dict[str, str]) -> str:
    """Returns the reason of the longest prefix that names the case."""
    prefixes = [prefix for prefix in reasons if case == prefix or case.startswith((prefix + "[", prefix + "::"))]
    return reasons[max(prefixes, key=len)] if prefixes else NO_REASON


def _summary(found: Dict[str, Outcomes], reasons: Dict[str, str]) -> Dict[str, Any]:
    outcomes = {case: outcome for of_file in found.values() for case, outcome in of_file.by_case.items()}
    listed = [case for case in CASES.read_text().splitlines() if case.split("::")[0].split("/")[-1] in found]
    not_passed = Counter(reason_of(case, reasons) for of_file in found.values() for case in of_file.not_passed)
    return {
        "what": "graphcore/poptorch, branch sdk-release-3.4, folder tests/, over the simulator",
        "simulated": True,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "passed": sum(of_file.passed for of_file in found.values()),
        "cases": len(outcomes),
        "not_passed": dict(not_passed.most_common()),
        "passed_of_poptorch_cases": sum(outcomes.get(case) == "passed" for case in listed),
        "poptorch_cases": len(listed),
    }


def _by_file(found: Dict[str, Outcomes], reasons: Dict[str, str]) -> Dict[str, Any]:
    return {
        name: {
            "passed": of_file.passed,
            "cases": len(of_file.by_case),
            "not_passed": {case: [of_file.by_case[case], reason_of(case, reasons)] for case in of_file.not_passed},
        }
        for name, of_file in found.items()
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Run PopTorch's public tests over the simulator.")
    parser.add_argument("poptorch", help="a checkout of graphcore/poptorch, outside this repository")
    parser.add_argument("--files", nargs="*", default=[], help="run only these files, such as options_test.py")
    parser.add_argument("--record", help="a JSON file to write")
    parser.add_argument("--verbose", action="store_true", help="name all cases that did not pass")
    parser.add_argument("--file-timeout", type=float, default=1800, help="seconds that a file may take (1800)")
    return parser


if __name__ == "__main__":
    run_command(main)
