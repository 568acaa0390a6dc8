"""make test-ipu: runs the acceptance test on IPUs, and writes the one file to send back.

The script compares twenty updates of the quickstart's model on IPUs with the CPU in float32. Then it runs the tests
marked `ipus(n)` for which the machine has enough IPUs. Without an IPU it prints why and exits with 2.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Tuple
from xml.etree import ElementTree

import torch
from record import FOLDER, write_record

from vit_ipu.backends.build import build_backend, resolve_device
from vit_ipu.backends.contract import Device
from vit_ipu.config import Config
from vit_ipu.config_file import load_config
from vit_ipu.data.loading.loader import TrainingLoader
from vit_ipu.data.sources.registry import open_source
from vit_ipu.errors import UserError
from vit_ipu.pipeline import BatchPlan

UPDATES = 20
# Only these test files, because others install the simulator.
HARDWARE_TESTS = ["tests/backends/test_hardware.py", "tests/backends/test_parity.py", "tests/test_train.py"]
OVERRIDES = [
    "optim.optimizer=sgd",
    "optim.learning_rate=0.05",
    "optim.warmup_updates=0",
    "run.epochs=null",
    f"run.updates={UPDATES}",
]


def main() -> None:
    arguments = _arguments()
    try:
        device = resolve_device(arguments.device)
    except UserError as error:
        print(f"make test-ipu: {error}", file=sys.stderr)
        sys.exit(2)
    config = load_config("quickstart", OVERRIDES)
    rows, results = compare(config, device)
    if not arguments.skip_tests:
        results.update(run_tests())
    write_record(
        "test-ipu",
        f"Twenty updates on {device} against the CPU, and the tests for hardware",
        device,
        config,
        _paragraphs(results),
        (("update", f"loss on {device}", "loss on cpu"), rows),
        results,
        folder=arguments.folder,
    )
    if not arguments.skip_tests:
        print("please send this file back: open an issue and attach the file")


def compare(config: Config, device: Device) -> Tuple[List[List[str]], Dict[str, Any]]:
    """Returns the losses of each update on both devices as rows, and the differences of losses and final weights."""
    backends = [build_backend(config, d) for d in (device, resolve_device("cpu"))]
    start = _with_random_head(backends[0].state_dict()["model"])
    losses: List[List[float]] = [[], []]
    try:
        for backend in backends:
            backend.load_state_dict({"model": start})
        for batch in _batches(config):
            for backend, found in zip(backends, losses):
                found += backend.train_step(batch, config.optim.learning_rate).losses
        weights = [backend.state_dict()["model"] for backend in backends]
    finally:
        for backend in backends:
            backend.close()
    errors = {
        name: float((weights[0][name].double() - b.double()).norm() / b.double().norm().clamp(min=1e-12))
        for name, b in weights[1].items()
    }
    worst = max(errors, key=lambda name: errors[name])
    rows = [[str(i + 1), f"{a:.6f}", f"{b:.6f}"] for i, (a, b) in enumerate(zip(*losses))]
    differences = [abs(a - b) for a, b in zip(*losses)]
    results = {"largest_loss_difference": max(differences), "largest_relative_error": errors[worst], "of_tensor": worst}
    return rows, results


def run_tests() -> Dict[str, Any]:
    """Runs the tests marked ipus(n). Returns how many passed, which failed, and which were skipped for lack of IPUs."""
    root = Path(__file__).parent.parent
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-m", "ipus", "--junitxml", str(report), *HARDWARE_TESTS]
        code = subprocess.run(command, cwd=str(root), check=False).returncode
        cases = list(ElementTree.parse(str(report)).getroot().iter("testcase")) if report.is_file() else []
    failed = [case.get("name") for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case.get("name") for case in cases if case.find("skipped") is not None]
    passed = len(cases) - len(failed) - len(skipped)
    if not passed:
        failed.append("no test ran")
    return {"exit_code": code, "passed": passed, "failed": failed, "not_enough_ipus": skipped}


def _paragraphs(results: Dict[str, Any]) -> List[str]:
    lines = [
        f"Largest difference of a loss {results['largest_loss_difference']:.2e}, largest relative error of a tensor "
        f"{results['largest_relative_error']:.2e} ({results['of_tensor']})."
    ]
    if "passed" in results:
        lines.append(
            f"Tests: {results['passed']} passed, {len(results['failed'])} failed, "
            f"{len(results['not_enough_ipus'])} needed more IPUs than the machine has."
        )
    return lines


def _batches(config: Config) -> TrainingLoader:
    source = open_source(config.data, config.model, "train")
    steps = UPDATES // config.pipeline.device_iterations
    return TrainingLoader(source, config, BatchPlan.of(config).share(0, 1), start_step=0, total_steps=steps)


def _with_random_head(weights: Dict[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
    """Replaces the head of zeros by a random head, so that every layer has a gradient from the first update on."""
    head = 0.1 * torch.randn(weights["head.weight"].shape, generator=torch.Generator().manual_seed(0))
    return dict(weights, **{"head.weight": head})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="ipu", help="ipu, or ipu-sim for a rehearsal, which the record states")
    parser.add_argument("--skip-tests", action="store_true", help="only the twenty updates")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="folder of the record")
    return parser.parse_args()


if __name__ == "__main__":
    main()
