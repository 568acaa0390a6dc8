"""The step contract: the interface between a training loop and any device.

D device_iterations, B samples per host step, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterator, Optional, Tuple

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Protocol

from vit_ipu.errors import UserError
from vit_ipu.pipeline import BatchPlan
from vit_ipu.text import counted


@dataclass(frozen=True)
class HostBatch:
    """The input of one host step, ordered [D][G][R][m] along dim 0.

    images: (n, 3, S, S), uint8 or float32; labels: (n,) int64; mixing: (n / m, 6) float32, if the config mixes. With
    workers, a batch is valid until the next batch is requested: the memory of the batch is then reused.
    """

    images: Tensor
    labels: Tensor
    mixing: Optional[Tensor] = None
    indices: Optional[Tensor] = None
    """Places of the images in their source, (n,) int64, in an evaluation."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def inputs(self) -> Tuple[Tensor, ...]:
        """Tensors that a training step takes."""
        return (self.images, self.labels) if self.mixing is None else (self.images, self.labels, self.mixing)

    def require_samples(self, count: int) -> None:
        """Raises UserError unless the batch has `count` samples: another number would make other weight updates."""
        if len(self.images) == len(self.labels) == count:
            return
        images, labels = counted(len(self.images), "image"), counted(len(self.labels), "label")
        raise UserError(
            f"the batch of a host step has {images} and {labels}, but pipeline.global_batch_size x "
            f"device_iterations is {count} in this process: give {count} of each"
        )

    def split(self, size: int) -> Iterator[HostBatch]:
        """Splits the batch into parts of `size` samples; each part must be a whole number of micro-batches."""
        num_parts = len(self) // size
        return (HostBatch(*tensors) for tensors in zip(*(tensor.chunk(num_parts) for tensor in self.inputs)))


@dataclass(frozen=True)
class StepResult:
    """The result of one host step of training."""

    losses: Tuple[float, ...]
    """(D,) mean loss of each update, in nats."""
    loss: float
    """Mean loss over all samples, in nats."""
    num_samples: int
    """Number of samples that this process fed."""

    @property
    def is_known(self) -> bool:
        """Whether the losses have been read from the device, so that reading them does not wait for it."""
        return True

    @property
    def ended_at(self) -> Optional[float]:
        """When the device had made the host step, in seconds of `time.monotonic()`; it is waited for.

        None: when `train_step` returned.
        """
        return None

    def wait(self) -> None:
        """Waits until the device has made the host step."""


@dataclass(frozen=True)
class Instances:
    """The index of this process, and the number of processes of the run: above 1 only under poprun or torchrun."""

    index: int = 0
    count: int = 1
    mean: Callable[[Tensor], Tensor] = lambda tensor: tensor
    """Returns the mean of a tensor over all processes; every process must call it."""
    are_replicas: bool = True
    """Whether each process has replicas of the config, as under poprun, and all evaluate every image together.

    Otherwise, as under torchrun, each has a part of an update's micro-batches, and of the images of an evaluation.
    """

    def positions(self, plan: BatchPlan) -> np.ndarray:
        """Returns the positions in a host step of the samples that this process feeds. Raises ConfigError."""
        share = plan.share if self.are_replicas else plan.share_of_micro_batches
        return share(self.index, self.count)

    def sum(self, tensor: Tensor) -> Tensor:
        """Returns the sum of a tensor over all processes; every process must call it."""
        return self.mean(tensor) * self.count

    def any(self, flag: bool) -> bool:
        """Tells whether `flag` is set in any process; every process must call this."""
        return bool(self.mean(torch.tensor([float(flag)])).item() > 0)


class Backend(Protocol):
    """A model on a device, with its optimizer."""

    instances: Instances
    float_format: torch.dtype
    """Format in which the device takes images that the host has normalised."""
    blocks_threads: bool
    """Whether a call of the device stops all other threads of this process, as PopTorch's calls do."""

    @property
    def samples_per_call(self) -> int:
        """The number of images that one call of the device predicts; a multiple of it needs no padding."""

    @property
    def num_overflows(self) -> Optional[int]:
        """The number of float16 values that training has clipped since the run began; None if it is not counted."""

    def train_step(self, batch: HostBatch, learning_rate: float) -> StepResult:
        """Makes D weight updates at one learning rate, on the samples [D][G][R][m] of `batch`."""

    def time_parts(self, batch: HostBatch, learning_rate: float) -> Dict[str, float]:
        """Makes one host step, and returns the seconds of its parts, for each of which it waits; empty if unknown."""

    def predict(self, images: Tensor) -> Tensor:
        """Returns the logits (n, K), in float32 on the host, of n images (n, 3, S, S), for any n."""

    def compile(self) -> None:
        """Compiles for training and for evaluation, if the device compiles ahead of its first call."""

    def close(self) -> None:
        """Frees the device."""

    def state_dict(self) -> Dict[str, Any]:
        """Returns `model` (tensors by timm's names), `optimizer`, `rng` and `counts`: all that resuming needs.

        The tensors are copies on the host, which later steps do not change: they are written while training continues.
        """

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Loads a state, or only its `model`."""


@dataclass(frozen=True)
class Device:
    """The device that --device means."""

    kind: str
    """ipu, ipu-sim, cuda or cpu."""
    tensors: str
    """Where torch keeps the tensors: cpu or cuda."""
    numerics: Optional[str] = None
    """Arithmetic of simulated IPUs: exact, or ipu for an IPU's float16; None on other devices."""

    @property
    def simulated(self) -> bool:
        return self.kind == "ipu-sim"

    @property
    def name(self) -> str:
        """The value of --device."""
        return "ipu-sim:cuda" if self.simulated and self.tensors == "cuda" else self.kind

    @property
    def facts(self) -> Dict[str, Any]:
        """The device as values for JSON."""
        return {"device": self.name, "simulated": self.simulated, "numerics": self.numerics}

    def __str__(self) -> str:
        return self.name if self.numerics is None else f"{self.name}, {self.numerics} numerics"
