"""The step contract: what a training loop asks of a device, whichever it is.

D device_iterations, B samples per host step, K classes.
"""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Dict, Iterator, Tuple

import torch
from torch import Tensor
from typing_extensions import Protocol

from vit_ipu.backends.ipu.availability import ipu_problem
from vit_ipu.config import Config, ConfigError, UserError
from vit_ipu.data.loading.loader import HostBatch
from vit_ipu.pipeline import num_ipus

__all__ = [
    "Backend",
    "Device",
    "DeviceError",
    "HostBatch",
    "Instances",
    "StepResult",
    "build_backend",
    "describe_hardware",
    "find_instances",
    "open_backend",
    "resolve_device",
]


class DeviceError(UserError):
    """A device that is not there or cannot be used: one line with the remedy."""


@dataclass(frozen=True)
class StepResult:
    """What one host step of training reports."""

    losses: Tuple[float, ...]
    """(D,) the mean loss of each update, in nats."""
    loss: float
    """Their mean over all samples."""
    num_samples: int
    """Samples that this process fed."""


@dataclass(frozen=True)
class Instances:
    """Which of the host processes of one run this is; more than one only under poprun."""

    index: int = 0
    count: int = 1


class Backend(Protocol):
    """A model on a device, with its optimizer."""

    instances: Instances

    def train_step(self, batch: HostBatch, learning_rate: float) -> StepResult:
        """D weight updates at one learning rate, on the samples [D][G][R][m] of `batch`."""

    def predict(self, images: Tensor) -> Tensor:
        """Logits (n, K) in float32 on the host, of n images (n, 3, S, S), for any n."""

    def compile(self) -> None:
        """Compiles for training, where the device compiles ahead."""

    def close(self) -> None:
        """Frees the device."""

    def state_dict(self) -> Dict[str, Any]:
        """`model` (tensors by timm's names), `optimizer` and `rng`, on the host: all that training goes on from."""

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Takes over a state, or only its `model`."""


@dataclass(frozen=True)
class Device:
    """A resolved --device."""

    kind: str
    """ipu, ipu-sim, cuda or cpu."""
    tensors: str
    """Where torch keeps the tensors: cpu or cuda."""

    @property
    def simulated(self) -> bool:
        return self.kind == "ipu-sim"

    def __str__(self) -> str:
        return "ipu-sim:cuda" if self.simulated and self.tensors == "cuda" else self.kind


DEVICES = ("auto", "ipu", "ipu-sim", "ipu-sim:cuda", "cuda", "cpu")


def resolve_device(name: str, *, offline: bool = False) -> Device:
    """The device that `name` means here; auto is an IPU, else CUDA, else the CPU.

    `offline`: an IPU program will only be compiled, so no hardware is needed. Raises DeviceError if it is missing.
    """
    if name not in DEVICES:
        raise DeviceError("--device {}: unknown; use one of {}".format(name, ", ".join(DEVICES)))
    if name == "auto":
        name = "ipu" if ipu_problem() is None else "cuda" if torch.cuda.is_available() else "cpu"
    if name.endswith("cuda") and not torch.cuda.is_available():
        instead = "cpu" if name == "cuda" else "ipu-sim"
        raise DeviceError(f"--device {name}: torch sees no CUDA device; use --device {instead}")
    if name == "ipu":
        problem = ipu_problem(offline=offline)
        if problem is not None:
            raise DeviceError(f"--device ipu: {problem}")
    if name in ("cuda", "cpu"):
        _refuse_several_processes()
    return Device(name.partition(":")[0], "cuda" if name.endswith("cuda") else "cpu")


def find_instances(config: Config, device: Device) -> Instances:
    """Which of the host processes of the run this is. Raises ConfigError if poprun's replicas are not the config's."""
    if device.kind != "ipu":
        return Instances()
    from vit_ipu.backends.ipu.distributed import instances

    return instances(config)


@contextmanager
def open_backend(config: Config, device: Device, *, offline: bool = False) -> Iterator[Backend]:
    """A backend that is closed at the end; if its device has failed, that error is not hidden by another."""
    backend = build_backend(config, device, offline=offline)
    try:
        yield backend
    except BaseException:
        with suppress(Exception):
            backend.close()
        raise
    backend.close()


def build_backend(config: Config, device: Device, *, offline: bool = False) -> Backend:
    """The backend for a device, with freshly initialised weights from run.seed."""
    if device.kind in ("cpu", "cuda"):
        from vit_ipu.backends.native.backend import NativeBackend

        return NativeBackend(config, torch.device(device.tensors))
    if device.simulated:
        from vit_ipu import simulator

        try:
            simulator.install(num_ipus(config), device=device.tensors)
        except ImportError as error:
            raise DeviceError(f"--device {device}: {error}") from None
    from vit_ipu.backends.ipu.executor import IpuBackend

    return IpuBackend(config, device.kind, offline=offline)


def describe_hardware(device: Device) -> str:
    """What the device is, in words, for records and environment files."""
    if device.kind == "ipu":
        return "IPU"
    on_cpu = f"CPU, {torch.get_num_threads()} threads"
    hardware = torch.cuda.get_device_name() if device.tensors == "cuda" else on_cpu
    return f"simulated IPUs on {hardware}" if device.simulated else hardware


def _refuse_several_processes() -> None:
    world_size = os.environ.get("WORLD_SIZE", "1")
    if world_size.isdigit() and int(world_size) > 1:
        raise ConfigError(
            f"WORLD_SIZE is {world_size}, but one process drives one GPU or CPU here: start without torchrun"
        )
