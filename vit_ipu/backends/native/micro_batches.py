"""Chooses how many of the config's micro-batches a CPU or GPU takes at a time."""

from __future__ import annotations

from typing import List

import torch

from vit_ipu.config import Config, ModelConfig, PipelineConfig
from vit_ipu.errors import ConfigError

CPU_BUDGET = 1 << 30
"""Bytes of activations that a CPU run may hold, when the micro-batch size is automatic."""
CUDA_SHARE = 0.8
"""Share of a GPU's free memory that activations may take, when the micro-batch size is automatic."""


def merged_sizes(pipeline: PipelineConfig, num_processes: int = 1) -> List[int]:
    """Lists the merged micro-batch sizes, ascending: multiples of micro_batch_size that divide a process's part.

    If the processes cannot share a global batch, and so can only evaluate, this is the micro-batch size alone.
    """
    micro, total = pipeline.micro_batch_size, pipeline.global_batch_size // num_processes
    return [micro * count for count in range(1, total // micro + 1) if total % (micro * count) == 0] or [micro]


def first_size(config: Config, device: torch.device, num_processes: int = 1) -> int:
    """Returns the micro-batch size to begin with: the config's, or the largest that should fit the device's memory.

    Raises ConfigError if the config's does not divide a process's part of the global batch.
    """
    chosen, part = config.pipeline.native_micro_batch_size, config.pipeline.global_batch_size // num_processes
    if chosen is not None:
        if part % chosen and part * num_processes == config.pipeline.global_batch_size:
            raise ConfigError(
                f"pipeline.native_micro_batch_size {chosen} does not divide {part}, the images of an update that each "
                f"of torchrun's {num_processes} processes takes: remove it, or choose a divisor"
            )
        return chosen
    budget = float(CPU_BUDGET)
    if device.type == "cuda":
        budget = torch.cuda.mem_get_info(device)[0] * CUDA_SHARE
    return fitting_micro_batch_size(
        merged_sizes(config.pipeline, num_processes), activation_bytes(config.model), budget
    )


def activation_bytes(model: ModelConfig) -> int:
    """Returns an upper estimate of the bytes of activations, in float32, that one sample keeps for its backward pass.

    Per block and token: two norms, q, k, v, attention output and projection, two residuals and the MLP's two
    widths twice; the attention weights twice, as if they were materialised.
    """
    per_token = 10 * model.width + 4 * model.mlp_width
    weights = 2 * model.num_heads * model.num_tokens**2
    return 4 * model.depth * (per_token * model.num_tokens + weights)


def fitting_micro_batch_size(sizes: List[int], bytes_per_sample: int, budget: float) -> int:
    """Returns the largest of the ascending `sizes` whose activations fit the budget, or the smallest of all."""
    return max((size for size in sizes if size * bytes_per_sample <= budget), default=sizes[0])
