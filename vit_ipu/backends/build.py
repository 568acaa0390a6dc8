"""Resolves the name of a device, and builds the backend that drives the device."""

from __future__ import annotations

import sys
from contextlib import contextmanager, suppress
from typing import Iterator, List, Optional, Sequence

import torch

from vit_ipu.backends.contract import Backend, Device, Instances
from vit_ipu.backends.ipu.availability import ipu_problem
from vit_ipu.backends.native.distributed import instances as native_instances
from vit_ipu.backends.native.distributed import is_under_torchrun, local_device, num_processes
from vit_ipu.backends.native.processor import lacks_bfloat16
from vit_ipu.config import Config
from vit_ipu.errors import DeviceError, UserError
from vit_ipu.ipu_rules import require_runnable
from vit_ipu.pipeline import BatchPlan, num_ipus
from vit_ipu.text import counted

DEVICES = ("auto", "ipu", "ipu-sim", "ipu-sim:cuda", "cuda", "cpu")
NUMERICS = ("exact", "ipu")


def resolve_device(name: str, *, numerics: Optional[str] = None, offline: bool = False) -> Device:
    """Returns the device that `name` means on this machine; auto is an IPU, else CUDA, else the CPU.

    `numerics` is the arithmetic of simulated IPUs, "exact" or "ipu". None is the choice of the simulator's launcher, or
    else "exact". `offline`: an IPU program is only compiled, so no hardware is needed. Raises DeviceError if the device
    is unknown or missing, if numerics are given for a device that is not simulated, or if torchrun's environment
    variables are not whole.
    """
    if name not in DEVICES:
        raise DeviceError(f"--device {name}: unknown; use one of {', '.join(DEVICES)}")
    if numerics is not None and numerics not in NUMERICS:
        raise DeviceError(f"--numerics {numerics}: unknown; use one of {', '.join(NUMERICS)}")
    if name == "auto":
        name = "ipu" if ipu_problem() is None else "cuda" if torch.cuda.is_available() else "cpu"
    simulated = name.startswith("ipu-sim")
    if numerics is not None and not simulated:
        raise DeviceError(
            f"--numerics {numerics}: only ipu-sim simulates an IPU's arithmetic, but the device is {name}: add "
            "--device ipu-sim"
        )
    if name.endswith("cuda") and not torch.cuda.is_available():
        instead = "cpu" if name == "cuda" else "ipu-sim"
        raise DeviceError(f"--device {name}: torch sees no CUDA device; use --device {instead}")
    if name == "ipu":
        problem = ipu_problem(offline=offline)
        if problem is not None:
            raise DeviceError(f"--device ipu: {problem}")
    if name in ("cuda", "cpu"):
        num_processes()
    elif is_under_torchrun():
        raise DeviceError(f"--device {name}: torchrun starts several processes for GPUs or CPUs only; start without it")
    if simulated and numerics is None:
        numerics = _launched_numerics()
    return Device(name.partition(":")[0], "cuda" if name.endswith("cuda") else "cpu", numerics)


def find_instances(config: Config, device: Device) -> Instances:
    """Returns the index of this host process and the number of host processes of the run.

    Raises ConfigError if poprun's replicas are not the config's.
    """
    # of the simulator's launcher, which has installed the simulator; a real PopTorch must not be imported before it
    launched = device.simulated and getattr(sys.modules.get("poptorch"), "__simulated__", False)
    if device.kind in ("cuda", "cpu"):
        return native_instances(device.kind)
    if device.kind != "ipu" and not launched:
        return Instances()
    from vit_ipu.backends.ipu.distributed import instances

    return instances(config)


def require_runnable_on(
    config: Config, device: Device, *, training: bool = True, allow_synthetic: bool = False
) -> List[str]:
    """Raises ConfigError if the device cannot run the config; returns notes on settings that only IPUs would refuse.

    Without `training`, only what inference needs is checked. Raises UserError if the inputs would be synthetic, which
    only a benchmark and a compilation allow.
    """
    if config.pipeline.synthetic_data and not allow_synthetic:
        raise UserError("pipeline.synthetic_data makes inputs and weights meaningless: it is for benchmark only")
    found = find_instances(config, device)
    if training and not found.are_replicas:
        found.positions(BatchPlan.of(config))
    notes = require_runnable(config, device.kind, found.count if found.are_replicas else 1, training=training)
    if device.kind == "cpu" and config.precision.resolve_compute("cpu") == "bfloat16" and lacks_bfloat16():
        notes.append(
            "precision.compute bfloat16: this processor has no instructions for it, so float32 (auto) would be faster"
        )
    return notes


def require_one_process(command: str) -> None:
    """Raises DeviceError if torchrun has started several processes."""
    if num_processes() > 1:
        raise DeviceError(f"{command} runs in one process: start it without torchrun")


@contextmanager
def open_backend(
    config: Config, device: Device, *, offline: bool = False, class_weights: Optional[Sequence[float]] = None
) -> Iterator[Backend]:
    """Yields a backend and closes it at the end; an error in the body is not hidden by an error in closing."""
    backend = build_backend(config, device, offline=offline, class_weights=class_weights)
    try:
        yield backend
    except BaseException:
        with suppress(Exception):
            backend.close()
        raise
    backend.close()


def build_backend(
    config: Config, device: Device, *, offline: bool = False, class_weights: Optional[Sequence[float]] = None
) -> Backend:
    """Builds the backend for a device, with freshly initialised weights from run.seed.

    `class_weights` are those of the loss, if the config has some: training needs them, evaluation does not. Raises
    DeviceError if the simulator cannot replace a real PopTorch, and ConfigError as `find_instances` does. On a GPU,
    float32 is float32 from here on in convolutions too, which PyTorch otherwise computes in TF32.
    """
    if device.tensors == "cuda":
        torch.backends.cudnn.allow_tf32 = False
    if device.kind in ("cpu", "cuda"):
        from vit_ipu.backends.native.backend import NativeBackend

        return NativeBackend(config, local_device(device.kind), class_weights)
    if device.simulated:
        from vit_ipu import simulator

        try:
            most = max(num_ipus(config), num_ipus(config.for_evaluation()))
            simulator.install(most, device=device.tensors)
        except ImportError as error:
            raise DeviceError(f"--device {device.name}: {error}") from None
    from vit_ipu.backends.ipu.executor import IpuBackend

    return IpuBackend(config, device, offline=offline, class_weights=class_weights)


def describe_hardware(device: Device) -> str:
    """Describes the hardware of the device, for records and environment files: that of all processes of torchrun."""
    if device.kind == "ipu":
        return "IPU"
    on_cpu = f"CPU, {counted(torch.get_num_threads(), 'thread')}"
    hardware = torch.cuda.get_device_name() if device.tensors == "cuda" else on_cpu
    if not device.simulated and num_processes() > 1:
        hardware = f"{num_processes()} x {hardware}"
    return f"simulated IPUs on {hardware}" if device.simulated else hardware


def _launched_numerics() -> str:
    """Returns the numerics that `python -m vit_ipu.simulator --numerics` or a program has chosen, else exact."""
    mode = sys.modules.get("vit_ipu.simulator.arithmetic.mode")
    return "exact" if mode is None else str(mode.numerics.current())
