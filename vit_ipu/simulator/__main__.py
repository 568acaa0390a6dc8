"""Runs a PopTorch program: `python -m vit_ipu.simulator [--ipus N] SCRIPT ARGS`, or `-m MODULE ARGS`.

With `--num-instances`, `--num-replicas` or `--ipus-per-replica`, runs the program's instances as poprun would.
"""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from typing import Dict, List, Optional

import torch

from vit_ipu.simulator.arithmetic.mode import MODES
from vit_ipu.simulator.installation.install import install, install_in_children
from vit_ipu.simulator.installation.poprun import environment_of, run_instances
from vit_ipu.simulator.installation.torch_compat import restore_removed


def main(arguments: Optional[List[str]] = None) -> None:
    """Installs the simulator, for child processes too, and runs the program as Python would."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(arguments)
    _check(options)
    counts = _poprun_counts(options)
    if counts is not None and "POPDIST_NUM_TOTAL_REPLICAS" not in os.environ:
        sys.exit(run_instances([sys.executable, "-m", "vit_ipu.simulator"] + arguments, **counts))
    machine = {"device": options.device, "hardware": not options.no_hardware, "numerics": options.numerics}
    install(options.ipus, **machine)
    restore_removed()
    install_in_children(options.ipus, **machine)
    if options.module:
        _run_module(options.module)
    else:
        _run_script(options.program)


def _poprun_counts(options: argparse.Namespace) -> Optional[Dict[str, int]]:
    """Returns the counts for poprun, with poprun's defaults, or None if the command line gives none of them."""
    instances, replicas, ipus = options.num_instances, options.num_replicas, options.ipus_per_replica
    if instances is None and replicas is None and ipus is None:
        return None
    instances = 1 if instances is None else instances
    return {
        "instances": instances,
        "replicas": instances if replicas is None else replicas,
        "ipus_per_replica": 1 if ipus is None else ipus,
    }


def _run_module(arguments: List[str]) -> None:
    sys.argv = arguments
    sys.path[0] = os.getcwd()
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)


def _run_script(arguments: List[str]) -> None:
    sys.argv = arguments
    sys.path[0] = os.path.dirname(os.path.realpath(arguments[0]))
    runpy.run_path(arguments[0], run_name="__main__")


def _check(options: argparse.Namespace) -> None:
    """Exits with one line on stderr if the program cannot be started."""
    parser = _parser()
    if options.ipus < 1:
        parser.error(f"--ipus {options.ipus}: give at least 1")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device; use --device cpu")
    counts = _poprun_counts(options)
    if counts is not None:
        try:
            environment_of(0, port=0, **counts)
        except ValueError as error:
            parser.error(str(error))
    if options.module is not None and not options.module:
        parser.error("-m needs a MODULE")
    if options.module is None and not options.program:
        parser.error("give a SCRIPT, or -m MODULE")
    if options.module is None and not os.path.isfile(options.program[0]):
        parser.error(f"{options.program[0]} is not a file; give a SCRIPT, or -m MODULE")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m vit_ipu.simulator", description="Run a PopTorch program without an IPU."
    )
    parser.add_argument("--ipus", type=int, default=16, help="number of IPUs in the simulated machine (default 16)")
    parser.add_argument(
        "--device", default="cpu", choices=["cpu", "cuda"], help="torch device that holds the tensors (default cpu)"
    )
    parser.add_argument(
        "--numerics",
        default="exact",
        choices=MODES,
        help="exact: half precision is computed in float32 (default); ipu: rounded as on an IPU",
    )
    parser.add_argument("--no-hardware", action="store_true", help="make ipuHardwareIsAvailable() return False")
    parser.add_argument(
        "--num-instances", type=int, help="number of instances of the program, as in poprun (default 1)"
    )
    parser.add_argument(
        "--num-replicas", type=int, help="number of replicas over all instances (default: one per instance)"
    )
    parser.add_argument("--ipus-per-replica", type=int, help="number of IPUs per replica (default 1)")
    parser.add_argument(
        "-m", dest="module", nargs=argparse.REMAINDER, help="MODULE ARGS: run a module instead of a script"
    )
    parser.add_argument("program", nargs=argparse.REMAINDER, help="SCRIPT ARGS")
    return parser


if __name__ == "__main__":
    main()
