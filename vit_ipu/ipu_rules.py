"""Rules of PopTorch, PopART and IPUs that a config can break. Pure functions; nothing here imports torch.

The rules are checked from numbers alone, before anything is built; the simulator checks them on the traced model,
independently on purpose. Sources name files of graphcore/poptorch (sdk-release-3.4) and graphcore/popart.
"""

from __future__ import annotations

from typing import List, Optional

from vit_ipu.config import Config, ModelConfig, PrecisionConfig
from vit_ipu.errors import ConfigError
from vit_ipu.pipeline import num_ipus, num_stages

MAX_IPUS_PER_PROCESS = 64


def require_runnable(config: Config, device_kind: str, num_instances: int = 1, *, training: bool = True) -> List[str]:
    """Raises ConfigError if `device_kind` cannot run the config; returns notes on settings that only IPUs would refuse.

    Without `training`, only the rules for inference are checked.
    """
    compute = config.precision.resolve_compute(device_kind)
    if device_kind in ("cpu", "cuda"):
        if compute == "float16":
            raise ConfigError(
                f"precision.compute float16 is for IPUs; on {device_kind} use auto, which is "
                f"{PrecisionConfig().resolve_compute(device_kind)}"
            )
        return [f"only on IPUs: {text}" for text in ipu_violations(config, "ipu", num_instances, training=training)]
    violations = ipu_violations(config, device_kind, num_instances, training=training)
    if violations:
        more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
        raise ConfigError(violations[0] + more)
    return []


def ipu_violations(
    config: Config, device_kind: str = "ipu", num_instances: int = 1, *, training: bool = True
) -> List[str]:
    """Returns what PopTorch, PopART or the IPU would refuse or silently change, each with its numbers and remedy."""
    found = [
        _not_a_power_of_two(config),
        _too_many_ipus(config, num_instances),
        _io_tiles(config),
        _memory_proportions(config),
        _evaluation_device_iterations(config),
    ]
    if training:
        found += [_too_few_micro_batches(config), _loss_scale(config), _clipping(config)]
    if training and device_kind == "ipu-sim":
        found.append(_not_simulated(config))
    found.append(_number_format(config, device_kind))
    found += [_gelu(config.model), _layer_norm(config.model), _attention(config.model)]
    return [text for text in found if text]


def _too_few_micro_batches(config: Config) -> Optional[str]:
    # Compiler.cpp:675-700; popart/willow/src/transforms/pipeline.cpp:1383-1400
    if config.pipeline.execution != "pipelined":
        return None
    stages, accumulation = num_stages(len(config.layers_per_ipu)), config.pipeline.gradient_accumulation
    if accumulation >= stages:
        return None
    at_once = config.pipeline.micro_batch_size * config.pipeline.replication_factor
    return (
        f"gradient accumulation is {accumulation} (global_batch_size {config.pipeline.global_batch_size} / "
        f"(micro_batch_size {config.pipeline.micro_batch_size} x replication_factor "
        f"{config.pipeline.replication_factor})) but a pipeline of {len(config.layers_per_ipu)} IPUs has {stages} "
        f"stages in training: raise pipeline.global_batch_size to {stages * at_once} or lower pipeline.micro_batch_size"
    )


def _not_a_power_of_two(config: Config) -> Optional[str]:
    # CompilerImpl.cpp:693-717
    total = num_ipus(config)
    if total & (total - 1) == 0:
        return None
    return (
        f"{len(config.layers_per_ipu)} IPUs a replica x replication_factor {config.pipeline.replication_factor} = "
        f"{total} IPUs, which is not a power of two: change pipeline.layers_per_ipu or pipeline.replication_factor, to "
        f"{1 << (total.bit_length() - 1)} or {1 << total.bit_length()} IPUs"
    )


def _too_many_ipus(config: Config, num_instances: int) -> Optional[str]:
    # CompilerImpl.cpp:234-239
    per_process = num_ipus(config) // num_instances
    if per_process <= MAX_IPUS_PER_PROCESS:
        return None
    fewest_instances = -(-num_ipus(config) // MAX_IPUS_PER_PROCESS)
    return (
        f"{per_process} IPUs in one process, but PopTorch takes at most {MAX_IPUS_PER_PROCESS}: start "
        f"{fewest_instances} instances with poprun"
    )


def _io_tiles(config: Config) -> Optional[str]:
    # python/options.py:600-625
    tiles = config.pipeline.io_tiles
    if tiles is None or (32 <= tiles <= 192 and tiles % 2 == 0):
        return None
    return f"pipeline.io_tiles {tiles} must be an even number from 32 to 192"


def _memory_proportions(config: Config) -> Optional[str]:
    proportions = config.pipeline.available_memory_proportion
    if proportions is None:
        return None
    if len(proportions) not in (1, len(config.layers_per_ipu)):
        return (
            f"pipeline.available_memory_proportion has {len(proportions)} numbers for {len(config.layers_per_ipu)} "
            "IPUs: give one number, or one for each IPU"
        )
    for proportion in proportions:
        if not 0 < proportion <= 1:
            return f"pipeline.available_memory_proportion {proportion} is not in (0, 1]: give a share of the memory"
    return None


def _evaluation_device_iterations(config: Config) -> Optional[str]:
    # Compiler.cpp:675-700: inference needs device_iterations >= stages
    iterations, stages = config.run.evaluation_device_iterations, len(config.layers_per_ipu)
    if iterations is None or iterations >= stages or config.pipeline.execution != "pipelined":
        return None
    return (
        f"run.evaluation_device_iterations {iterations} is below the {stages} stages of the pipeline: use {stages} or "
        "null"
    )


def _number_format(config: Config, device_kind: str) -> Optional[str]:
    # LowerToPopart.cpp:141-166 (bfloat16); Utils.cpp:141-151 (float64). The simulator does compute in float64.
    compute = config.precision.resolve_compute(device_kind)
    if compute == "bfloat16" or (compute == "float64" and device_kind == "ipu"):
        return f"precision.compute {compute} does not exist on IPUs: use float16, float32 or auto"
    return None


def _loss_scale(config: Config) -> Optional[str]:
    # popart automaticlossscaling.cpp: "No tracked gradient tensors of type fp16 were found."
    precision = config.precision
    if not precision.automatic_loss_scale:
        return None
    if precision.resolve_compute("ipu") != "float16":
        return (
            f"precision.automatic_loss_scale needs float16 gradients, but precision.compute is {precision.compute}: "
            "use float16 or auto, or set automatic_loss_scale: false"
        )
    return None


def _not_simulated(config: Config) -> Optional[str]:
    for key, is_used in (
        ("pipeline.synthetic_data", config.pipeline.synthetic_data),
        ("precision.automatic_loss_scale", config.precision.automatic_loss_scale),
    ):
        if is_used:
            return f"{key} is not simulated: set it to false"
    return None


def _gelu(model: ModelConfig) -> Optional[str]:
    # ActivationOps.cpp:146-161: both forms are lowered to the tanh form
    if model.gelu == "tanh":
        return None
    return "model.gelu erf would be computed in its tanh form on IPUs: set model.gelu: tanh"


def _layer_norm(model: ModelConfig) -> Optional[str]:
    if model.layer_norm_eps >= 1e-6:
        return None
    return f"model.layer_norm_eps {model.layer_norm_eps} is below 1e-06, which underflows in float16: use 1e-6"


def _attention(model: ModelConfig) -> Optional[str]:
    if model.attention != "fused":
        return None
    return "model.attention fused has no kernel on IPUs: set model.attention: auto"


def _clipping(config: Config) -> Optional[str]:
    # popart clipweightgradientsbynorm.cpp:337-412
    optim = config.optim
    if optim.max_grad_norm is None or optim.optimizer == "adamw":
        return None
    reason = {
        "sgd": "PopTorch clips the velocity of SGD, not its gradient",
        "adam": "PopTorch clips the gradient of Adam after adding the L2 term",
        "lamb": "PopTorch's LAMB has no clipping",
    }[optim.optimizer]
    return f"optim.max_grad_norm {optim.max_grad_norm} with {optim.optimizer}: {reason}; use adamw, or null"
