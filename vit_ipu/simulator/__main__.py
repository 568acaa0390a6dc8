"""Runs a PopTorch program: `python -m vit_ipu.simulator [--ipus N] SCRIPT ARGS`, or `-m MODULE ARGS`."""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from typing import List, Optional

import torch

from vit_ipu.simulator import install


def main(arguments: Optional[List[str]] = None) -> None:
    """Installs the simulator and runs the program as Python would, with its own sys.argv."""
    options = _parser().parse_args(arguments)
    if options.ipus < 1:
        _parser().error("--ipus {}: a machine has at least one".format(options.ipus))
    if options.device == "cuda" and not torch.cuda.is_available():
        _parser().error("--device cuda: torch sees no CUDA device")
    install(options.ipus, device=options.device, hardware=not options.no_hardware)
    if options.module:
        sys.argv = options.module
        sys.path.insert(0, os.getcwd())
        runpy.run_module(options.module[0], run_name="__main__", alter_sys=True)
        return
    if not options.program:
        _parser().error("give a SCRIPT, or -m MODULE")
    if not os.path.isfile(options.program[0]):
        _parser().error("there is no script {}".format(options.program[0]))
    sys.argv = options.program
    sys.path.insert(0, os.path.dirname(os.path.abspath(options.program[0])))
    runpy.run_path(options.program[0], run_name="__main__")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m vit_ipu.simulator", description="Run a PopTorch program without an IPU."
    )
    parser.add_argument("--ipus", type=int, default=16, help="IPUs of the simulated machine (16)")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="where their tensors live (cpu)")
    parser.add_argument("--no-hardware", action="store_true", help="ipuHardwareIsAvailable() is False")
    parser.add_argument(
        "-m", dest="module", nargs=argparse.REMAINDER, help="MODULE ARGS: run a module instead of a script"
    )
    parser.add_argument("program", nargs=argparse.REMAINDER, help="SCRIPT ARGS")
    return parser


if __name__ == "__main__":
    main()
