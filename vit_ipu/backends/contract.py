"""The step contract: what a training loop asks of a device, whichever it is.

D device_iterations, B samples per host step, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, Iterator, Optional, Tuple

from torch import Tensor
from typing_extensions import Protocol


@dataclass(frozen=True)
class HostBatch:
    """What one host step consumes, ordered [D][G][R][m] along dim 0.

    images: (n, 3, S, S), uint8 or float32; labels: (n,) int64; mixing: (n / m, 6) float32, if the config mixes. With
    workers, it is valid until the next one is asked for: its memory is then used again.
    """

    images: Tensor
    labels: Tensor
    mixing: Optional[Tensor] = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def inputs(self) -> Tuple[Tensor, ...]:
        """The tensors that a training step takes."""
        return (self.images, self.labels) if self.mixing is None else (self.images, self.labels, self.mixing)

    def split(self, size: int) -> Iterator[HostBatch]:
        """Its parts of `size` samples each, which must be whole micro-batches."""
        num_parts = len(self) // size
        return (HostBatch(*tensors) for tensors in zip(*(tensor.chunk(num_parts) for tensor in self.inputs)))


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
