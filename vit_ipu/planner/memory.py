"""Memory of each IPU in training, by kind, with the verdict whether the program fits.

Parameters, gradients, optimizer state and stash are counted exactly, and equal the simulator's accounting. Activations
follow the order of the model's operations. Temporaries, buffers and code are estimates that no published figure
calibrates, so each kind has a range, and a program whose range contains the IPU's memory is "not known" to fit.
F is the number of forward stages, i the stage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence, Tuple

from vit_ipu.config import Config
from vit_ipu.planner.hardware import Hardware
from vit_ipu.planner.liveness import Activations, TapeShape, stage_activations
from vit_ipu.planner.products import product_cost
from vit_ipu.planner.program import (
    Stage,
    formats_of,
    gradient_bytes,
    input_bytes,
    num_trained_tensors,
    recomputes,
    replicas_of_step,
    stage_parameters,
    stages_of,
    stashed_micro_batches,
    state_bytes,
    stream_bytes,
    trained_parameters,
    unit_work,
    weight_bytes,
)

KINDS: Dict[str, Tuple[float, float]] = {
    "parameters": (1.0, 1.0),
    "gradients": (1.0, 1.0),
    "optimizer_state": (1.0, 1.0),
    "stash": (1.0, 1.0),
    "activations": (0.7, 1.0),
    "temporaries": (0.25, 1.0),
    "buffers": (0.5, 1.5),
    "code": (0.5, 1.5),
}
"""Kinds of memory, each with the range of its true value as factors on the estimate.

Activations: fewer if PopART works in place, or draws dropout's masks again from the seed (popart dropout.cpp).
Temporaries: at most what `available_memory_proportion` allows, and less if the largest product does not meet the most
activations. Buffers and code: assumptions without a published figure. The upper end of code is constrained, not fitted:
the last IPU of mmclassification's fine-tune (micro-batch 17), which is known to fit, leaves 107 MB for it."""


@dataclass(frozen=True)
class IpuMemory:
    """Bytes on one IPU by kind, and the bytes that it has."""

    by_kind: Dict[str, int]
    capacity: int

    @property
    def total(self) -> int:
        """Best estimate of the bytes in use at the worst moment."""
        return sum(self.by_kind.values())

    @property
    def range(self) -> Tuple[int, int]:
        """Lowest and highest bytes that the estimate's uncertainty allows."""
        low, high = (sum(size * KINDS[kind][end] for kind, size in self.by_kind.items()) for end in (0, 1))
        return int(low), int(high)

    @property
    def fits(self) -> Optional[bool]:
        """True or False if the complete range is within or above the capacity, else None: not known."""
        low, high = self.range
        if high <= self.capacity:
            return True
        return False if low > self.capacity else None


def fits_together(ipus: Sequence[IpuMemory]) -> Optional[bool]:
    """Returns False if an IPU's program does not fit, else None if that of one is not known, else True."""
    verdicts = [ipu.fits for ipu in ipus]
    return False if False in verdicts else None if None in verdicts else True


def memory_per_ipu(config: Config, hardware: Hardware) -> List[IpuMemory]:
    """Returns the memory of each IPU of a replica."""
    return [stage_memory(config, hardware, stage) for stage in stages_of(config.layers_per_ipu)]


def stage_memory(config: Config, hardware: Hardware, stage: Stage) -> IpuMemory:
    """Returns the memory of the IPU of a stage."""
    parameters, stashed = stage_parameters(config, stage), stashed_micro_batches(config, stage)
    activations = activations_of(config, stage)
    in_stash = activations.stashed if stashed else 0
    by_kind = {
        "parameters": parameters * weight_bytes(config),
        "gradients": trained_parameters(config, stage) * gradient_bytes(config),
        "optimizer_state": _state_on_chip(config, stage),
        "stash": stashed * in_stash,
        "activations": max(activations.live - in_stash, 0),
        "temporaries": _temporaries(config, hardware, stage),
        "buffers": _buffers(config, stage),
        "code": hardware.code_bytes,
    }
    tiles = max(hardware.tiles - (config.pipeline.io_tiles or 0), 1)  # more than all are refused, and still planned
    return IpuMemory(by_kind, tiles * hardware.tile_bytes)


def activations_of(config: Config, stage: Stage) -> Activations:
    """Returns the bytes of a stage's activations for one micro-batch."""
    pipeline = config.pipeline
    blocks = range(stage.first_block, stage.first_block + stage.num_blocks)
    tape = TapeShape(
        model=config.model,
        element_bytes=weight_bytes(config),
        takes_bytes=config.data.transfer == "uint8",
        mixes=config.data.mixes,
        has_embed=stage.is_first,
        has_head=stage.is_last,
        num_blocks=stage.num_blocks,
        keeps_blocks=pipeline.recompute == "every_block",
        middles=tuple(layer - stage.first_block for layer in sorted(pipeline.recompute_mid_layers) if layer in blocks),
        recomputes=recomputes(config, stage),
    )
    return stage_activations(tape, pipeline.micro_batch_size)


def optimizer_state_bytes(config: Config, stage: Stage) -> int:
    """Returns the bytes of a stage's optimizer state, wherever it is; Adam and LAMB count updates for each tensor."""
    optim = config.optim
    counts = optim.optimizer != "sgd" and optim.bias_correction
    num_bytes = trained_parameters(config, stage) * state_bytes(config)
    return num_bytes + (4 * num_trained_tensors(config, stage) if counts else 0)


def _state_on_chip(config: Config, stage: Stage) -> int:
    """Returns the bytes of optimizer state in SRAM: 0 if it is in Streaming Memory, and a replica's share if sharded.

    Source: popart sessionoptions.hpp, TensorLocation.
    """
    if config.pipeline.optimizer_state == "off_chip":
        return 0
    return -(-optimizer_state_bytes(config, stage) // replicas_of_step(config))


def _temporaries(config: Config, hardware: Hardware, stage: Stage) -> int:
    """Returns the temporary bytes of the stage's largest matrix product, forward or backward."""
    formats = formats_of(config, stage)
    works = [unit_work(config, unit) for unit, count in stage.units.items() if count]
    products = [product for work in works for product in work.forward.products + work.backward.products]
    return int(max((product_cost(product, formats, hardware).temporary_bytes for product in products), default=0))


def _buffers(config: Config, stage: Stage) -> int:
    """Returns the bytes that an IPU receives at a time: an input or activation, and its output's gradient."""
    images = config.pipeline.micro_batch_size * input_bytes(config) if stage.is_first else 0
    return images + stream_bytes(config) * ((not stage.is_first) + (not stage.is_last))
