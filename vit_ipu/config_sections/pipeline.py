"""Section `pipeline` of a config."""

from __future__ import annotations

from math import isfinite
from typing import Any, Dict, Optional

from pydantic import model_validator
from typing_extensions import Literal

from vit_ipu.config_sections.types import Ints, Name, Positive, Proportions, Section, check_layers
from vit_ipu.popart_options import popart_options_problem


class PipelineConfig(Section):
    """Split of the model over IPUs, and batch sizes, from which gradient accumulation is derived.

    Only IPUs need this section: on a CPU or a GPU its defaults train.
    """

    global_batch_size: Positive = 64
    """Number of samples per weight update, the same on every device; IPUs need it."""
    micro_batch_size: Positive = 8
    """Number of samples that pass through a stage at a time, on one replica; IPUs need it. Mixing takes the samples of
    a micro-batch on every device."""
    replication_factor: Positive = 1
    """IPU: number of copies of the pipeline, in total over all hosts."""
    device_iterations: Positive = 1
    """Number of weight updates per host step, which is one call of the device."""
    layers_per_ipu: Optional[Ints] = None
    """IPU: number of transformer blocks on each IPU of a replica; null: all blocks on one IPU. The first IPU also takes
    the embedding and the last IPU the head; with 0 blocks, the first or the last IPU has only the embedding or the
    head."""
    native_micro_batch_size: Optional[Positive] = None
    """CUDA and CPU: number of samples that the device takes at a time, by merging micro-batches; null: as many as a
    measurement of the GPU's memory allows, and on a CPU as many as it computes fastest."""
    execution: Literal["pipelined", "sharded"] = "pipelined"
    """IPU: schedule of the stages: all at work on different micro-batches (pipelined), or one at a time (sharded)."""
    recompute: Literal["auto", "none", "every_block"] = "auto"
    """IPU: activations kept for the backward pass: PopTorch's choice (auto), all activations (none), or only each
    block's output (every_block)."""
    recompute_mid_layers: Ints = ()
    """IPU: blocks, counted from 0, whose activation between attention and MLP is also kept: one block on each IPU
    lowers the peak of memory, because each half of the block is computed again on its own."""
    available_memory_proportion: Optional[Proportions] = None
    """IPU: share of an IPU's memory for temporaries of matrix products: one number for all IPUs, or one for each
    IPU."""
    replicated_tensor_sharding: bool = False
    """IPU: spreads the optimizer state over the replicas."""
    optimizer_state: Literal["on_chip", "off_chip"] = "on_chip"
    """IPU: memory that holds the optimizer state: the IPU's SRAM (on_chip) or streaming memory (off_chip)."""
    io_tiles: Optional[int] = None
    """IPU: number of tiles reserved for input and output: an even number from 32 to 192; null: none."""
    overlap_io: Literal["none", "accumulation_loop", "device_iteration_loop"] = "none"
    """IPU: copies the next input while the IPU computes: within a weight update (accumulation_loop) or also across
    updates (device_iteration_loop). Needs `io_tiles` and `execution: sharded`."""
    prefetch_depth: Positive = 2
    """IPU: number of inputs that the host prepares ahead for each stream to the IPU."""
    popart_options: Dict[str, Any] = {}
    """IPU: further options of popart::SessionOptions by name, such as `outlineThreshold: 10.0`, and `patterns`: names
    of PopART's patterns with true or false. Enums are numbers. They replace what this program sets itself."""
    engine_options: Dict[str, Any] = {}
    """IPU: further options of Poplar's engine by name, such as `opt.internalExchangeOptimisationTarget: memory`."""
    ipu_version: Literal[2, 21] = 2
    """IPU: kind of IPU that `vit-ipu compile --offline` compiles for: Mk2 (2) or Bow (21)."""
    executable_cache: Optional[Name] = None
    """IPU: folder that keeps compiled programs, so that a second start loads them; null: programs are not kept."""
    synthetic_data: bool = False
    """IPU: makes random inputs on the IPU, so that a benchmark leaves out the host. The model learns nothing from
    them."""
    profile: Optional[Name] = None
    """IPU: folder for a PopVision report of the compilation and the run."""

    @model_validator(mode="after")
    def _check_options(self) -> PipelineConfig:
        problem = popart_options_problem(self.popart_options)
        if problem is not None:
            raise ValueError(f"popart_options: {problem}")
        for name, value in self.engine_options.items():
            if not isinstance(value, (str, int)) and not (isinstance(value, float) and isfinite(value)):
                raise ValueError(f"engine_options: {name} must be a text, a number, true or false, but it is {value!r}")
        if self.recompute_mid_layers and self.recompute == "none":
            raise ValueError(
                f"recompute_mid_layers {list(self.recompute_mid_layers)} has no effect with recompute: none: use "
                "every_block or auto"
            )
        return self

    def _other_micro_batch(self) -> str:
        """Returns the end of a message: a micro-batch that divides the global batch, if none was stated."""
        if "micro_batch_size" in self.model_fields_set:
            return ""
        share, rest = divmod(self.global_batch_size, self.replication_factor)
        size = max((size for size in range(1, self.micro_batch_size) if share % size == 0), default=0)
        if rest or not size:
            return ""
        return f", or set micro_batch_size, which is {self.micro_batch_size} if it is left out, to {size}"

    @model_validator(mode="after")
    def _check_arithmetic(self) -> PipelineConfig:
        at_once = self.micro_batch_size * self.replication_factor
        if self.global_batch_size % at_once:
            below = self.global_batch_size // at_once * at_once
            smaller = f"{below} or " if below else ""
            raise ValueError(
                f"global_batch_size {self.global_batch_size} is not a multiple of micro_batch_size "
                f"{self.micro_batch_size} x replication_factor {self.replication_factor} = {at_once}: use "
                f"{smaller}{below + at_once}{self._other_micro_batch()}"
            )
        native = self.native_micro_batch_size
        if native is not None and (self.global_batch_size % native or native % self.micro_batch_size):
            raise ValueError(
                f"native_micro_batch_size {native} must be a multiple of micro_batch_size {self.micro_batch_size} and "
                f"divide global_batch_size {self.global_batch_size}"
            )
        check_layers("layers_per_ipu", self.layers_per_ipu)
        return self

    @property
    def gradient_accumulation(self) -> int:
        """Micro-batches per replica and weight update."""
        return self.global_batch_size // (self.micro_batch_size * self.replication_factor)

    @property
    def samples_per_step(self) -> int:
        """Samples per host step."""
        return self.global_batch_size * self.device_iterations
