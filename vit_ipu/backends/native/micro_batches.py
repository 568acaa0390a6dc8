"""Chooses how many of the config's micro-batches a CPU or GPU takes at a time."""

from __future__ import annotations

from typing import Callable, List

import torch

from vit_ipu.backends.native.host_memory import LARGEST_KEPT
from vit_ipu.config import Config, ModelConfig, PipelineConfig
from vit_ipu.errors import ConfigError

CPU_BUDGET = 1 << 30
"""Bytes of activations that a CPU run may hold, when the micro-batch size is automatic."""
CUDA_SHARE = 0.9
"""Share of a GPU's free memory that a pass may take, when the micro-batch size is automatic."""
MOST_PREDICTED = {"cpu": 64, "cuda": 512}
"""Images of a prediction from which on larger ones are not faster."""
_TENSORS_OF_A_BLOCK = 8
"""Tensors of the largest size that a forward pass holds at a time, at most."""
_FEWEST_MEASURED = 16
"""Samples of the smaller of two measured passes, if the global batch has as many."""
_STATE_BYTES = 12
"""Bytes a parameter that the first update allocates: a gradient and two moments in float32."""


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
    sizes = merged_sizes(config.pipeline, num_processes)
    if device.type == "cuda":
        budget = torch.cuda.mem_get_info(device)[0] * CUDA_SHARE
        return fitting_micro_batch_size(sizes, activation_bytes(config.model), budget)
    size = fitting_micro_batch_size(sizes, activation_bytes(config.model), CPU_BUDGET)
    return min(size, fitting_micro_batch_size(sizes, largest_tensor_bytes(config.model), LARGEST_KEPT))


def inference_size(config: Config, device: torch.device) -> int:
    """Returns the number of images that are predicted at a time: the config's, or else what runs fastest and fits."""
    if config.pipeline.native_micro_batch_size is not None:
        return config.pipeline.native_micro_batch_size
    per_image = largest_tensor_bytes(config.model)
    if device.type != "cuda":
        return max(1, min(MOST_PREDICTED["cpu"], LARGEST_KEPT // per_image))
    free = torch.cuda.mem_get_info(device)[0]
    return max(1, min(MOST_PREDICTED["cuda"], int(free * CUDA_SHARE) // (_TENSORS_OF_A_BLOCK * per_image)))


def activation_bytes(model: ModelConfig) -> int:
    """Returns an upper estimate of the bytes of activations, in float32, that one sample keeps for its backward pass.

    Per block and token: two norms, q, k, v, attention output and projection, two residuals and the MLP's two
    widths twice; the attention weights twice, as if they were materialised.
    """
    per_token = 10 * model.width + 4 * model.mlp_width
    weights = 2 * model.num_heads * model.num_tokens**2
    return 4 * model.depth * (per_token * model.num_tokens + weights)


def largest_tensor_bytes(model: ModelConfig) -> int:
    """Returns the bytes, in float32, of the largest tensor of one sample: query, key and value, or an MLP's hidden."""
    return 4 * model.num_tokens * max(3 * model.width, model.mlp_width)


def fitting_micro_batch_size(sizes: List[int], bytes_per_sample: int, budget: float) -> int:
    """Returns the largest of the ascending `sizes` whose activations fit the budget, or the smallest of all."""
    return max((size for size in sizes if size * bytes_per_sample <= budget), default=sizes[0])


def measured_size(sizes: List[int], run: Callable[[int], None], num_parameters: int, device: torch.device) -> int:
    """Returns the largest of the ascending `sizes` that fits a GPU's free memory, by the peaks of two small passes.

    `run` makes a pass over a number of samples; its memory is taken to grow linearly with that number.
    """
    pair = ([size for size in sizes if size >= _FEWEST_MEASURED] or sizes)[:2]
    if len(pair) < 2:
        return sizes[-1]
    try:
        peaks = [_peak_bytes(run, size, device) for size in pair]
    except torch.cuda.OutOfMemoryError:
        return pair[0]
    per_sample = (peaks[1] - peaks[0]) / (pair[1] - pair[0])
    fixed = peaks[0] - per_sample * pair[0] + _STATE_BYTES * num_parameters
    torch.cuda.empty_cache()
    budget = CUDA_SHARE * torch.cuda.mem_get_info(device)[0]
    return max((size for size in sizes if fixed + size * per_sample <= budget), default=sizes[0])


def _peak_bytes(run: Callable[[int], None], size: int, device: torch.device) -> int:
    """Returns the most bytes that `run` holds at a time."""
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run(size)
    return torch.cuda.max_memory_allocated(device) - before
