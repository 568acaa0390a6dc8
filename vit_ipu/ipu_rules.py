"""Rules of PopTorch, PopART and IPUs that a config can break. Pure functions; nothing here imports torch.

The rules are checked from numbers alone, before anything is built; the simulator checks them on the traced model,
independently on purpose. Sources name files of graphcore/poptorch (sdk-release-3.4) and graphcore/popart.
"""

from __future__ import annotations

from typing import List, NamedTuple, Optional

from vit_ipu.config import Config, ModelConfig, PrecisionConfig
from vit_ipu.errors import ConfigError
from vit_ipu.model_cost import parameters_per_ipu
from vit_ipu.pipeline import num_ipus, num_stages
from vit_ipu.text import all_mistakes, counted

MAX_IPUS_PER_PROCESS = 64
TILE_BYTES = 624 * 1024
"""Memory of a tile of Mk2 and Bow IPUs."""
MOST_IO_TILES = 192
SMALLEST_FLOAT16 = 2.0**-24
"""Smallest float16 above 0."""


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
        if config.batch_sizes_left_out:  # the config is not written for IPUs
            return []
        return [f"only on IPUs: {text}" for text in ipu_violations(config, "ipu", num_instances, training=training)]
    violations = ipu_violations(config, device_kind, num_instances, training=training)
    if violations:
        raise ConfigError(all_mistakes(violations))
    return []


def ipu_violations(
    config: Config, device_kind: str = "ipu", num_instances: int = 1, *, training: bool = True
) -> List[str]:
    """Returns what PopTorch, PopART or the IPU would refuse or silently change, each with its numbers and remedy."""
    found = _apply_rules(config, device_kind, num_instances, training=training)
    return list(dict.fromkeys(text for text in found if text))


def num_rules(config: Config) -> int:
    """Returns how many rules `ipu_violations` applies to a config: those of placement count for evaluation too."""
    return len(_apply_rules(config, "ipu", 1, training=True))


def _apply_rules(config: Config, device_kind: str, num_instances: int, *, training: bool) -> List[Optional[str]]:
    """Returns the result of each rule: what is violated, or None."""
    found = [_batch_sizes(config), _io_tiles(config)]
    if training:
        found += _placement(config, num_instances, _TRAINING_KEYS)
    found += _placement(config.for_evaluation(), num_instances, _evaluation_keys(config))
    found += [_evaluation_device_iterations(config), *_evaluation_under_poprun(config, num_instances)]
    if training:
        found += [_too_few_micro_batches(config), _loss_scale(config), _clipping(config), _second_moment(config)]
        found.append(_shards_on_io_tiles(config, num_instances))
    found.append(_number_format(config, device_kind))
    return [*found, _gelu(config.model), _layer_norm(config.model), _attention(config.model)]


def _batch_sizes(config: Config) -> Optional[str]:
    """Returns what is missing for a pipeline, whose batch sizes have no defaults that fit every number of stages."""
    if not config.batch_sizes_left_out:
        return None
    missing = " and ".join(f"pipeline.{name}" for name in config.batch_sizes_left_out)
    return (
        f"{missing} must be given for IPUs, and pipeline.layers_per_ipu for more than one: a pipeline has no default "
        "batch sizes; vit-ipu init FOLDER --device ipu writes them"
    )


class _Keys(NamedTuple):
    """Names of the keys that place the model on IPUs, in training or in evaluation."""

    layers_per_ipu: str
    replication_factor: str
    available_memory_proportion: str


_TRAINING_KEYS = _Keys(*(f"pipeline.{name}" for name in _Keys._fields))


def _evaluation_keys(config: Config) -> _Keys:
    """Returns the keys that the placement in evaluation comes from: its own keys, or those of training."""
    own = (getattr(config.run, f"evaluation_{name}") is not None for name in _Keys._fields)
    return _Keys(
        *(f"run.evaluation_{name}" if is_set else f"pipeline.{name}" for name, is_set in zip(_Keys._fields, own))
    )


def _placement(config: Config, num_instances: int, keys: _Keys) -> List[Optional[str]]:
    return [
        _not_a_power_of_two(config, keys),
        _too_many_ipus(config, num_instances, keys),
        _memory_proportions(config, keys),
    ]


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
        f"{config.pipeline.replication_factor})) but a pipeline of "
        f"{counted(len(config.layers_per_ipu), 'IPU')} has {stages} "
        f"stages in training: raise pipeline.global_batch_size to {stages * at_once} or lower pipeline.micro_batch_size"
    )


def _not_a_power_of_two(config: Config, keys: _Keys) -> Optional[str]:
    # CompilerImpl.cpp:693-717
    total = num_ipus(config)
    if total & (total - 1) == 0:
        return None
    return (
        f"{counted(len(config.layers_per_ipu), 'IPU')} a replica x replication_factor "
        f"{config.pipeline.replication_factor} = "
        f"{total} IPUs, which is not a power of two: change {keys.layers_per_ipu} or {keys.replication_factor}, to "
        f"{1 << (total.bit_length() - 1)} or {1 << total.bit_length()} IPUs"
    )


def _too_many_ipus(config: Config, num_instances: int, keys: _Keys) -> Optional[str]:
    # CompilerImpl.cpp:234-239
    per_process = num_ipus(config) // num_instances
    if per_process <= MAX_IPUS_PER_PROCESS:
        return None
    remedy = f"start {-(-num_ipus(config) // MAX_IPUS_PER_PROCESS)} instances with poprun"
    if keys.replication_factor != _TRAINING_KEYS.replication_factor:
        remedy = f"lower {keys.replication_factor}"
    return f"{per_process} IPUs in one process, but PopTorch takes at most {MAX_IPUS_PER_PROCESS}: {remedy}"


def _io_tiles(config: Config) -> Optional[str]:
    # python/options.py:600-625; poptorch/source/OverlappedIO.cpp and Compiler.cpp:1766-1783
    pipeline = config.pipeline
    tiles = pipeline.io_tiles
    if pipeline.overlap_io != "none" and pipeline.execution == "pipelined":
        return f"pipeline.overlap_io {pipeline.overlap_io} needs pipeline.execution: sharded, or use none"
    if tiles is None:
        if pipeline.overlap_io == "none":
            return None
        return f"pipeline.overlap_io {pipeline.overlap_io} needs tiles: set pipeline.io_tiles, to 32 or more"
    if not (32 <= tiles <= MOST_IO_TILES and tiles % 2 == 0):
        return f"pipeline.io_tiles {tiles} must be an even number from 32 to {MOST_IO_TILES}"
    uses_them = (
        pipeline.overlap_io != "none" or pipeline.replicated_tensor_sharding or pipeline.optimizer_state == "off_chip"
    )
    if uses_them:
        return None
    return (
        f"pipeline.io_tiles {tiles} only takes tiles away from the computation without overlap_io, "
        "replicated_tensor_sharding or optimizer_state: off_chip: set io_tiles: null"
    )


def _shards_on_io_tiles(config: Config, num_instances: int) -> Optional[str]:
    # TensorLocation of the optimizer state: with useIOTilesToLoad, shards that stay on the chip lie on the IO tiles.
    # Under poprun the replicas of one process share the state (Compiler.cpp:742-760, shardingDomain).
    pipeline = config.pipeline
    tiles = pipeline.io_tiles
    if tiles is None or not pipeline.replicated_tensor_sharding or pipeline.optimizer_state == "off_chip":
        return None
    largest = max(parameters_per_ipu(config.model, config.layers_per_ipu))
    replicas = max(pipeline.replication_factor // num_instances, 1)
    shard = largest * _state_bytes(config) // replicas
    if shard <= tiles * TILE_BYTES:
        return None
    needed = _even(-(-shard // TILE_BYTES))
    instead = f"use {counted(needed, 'tile')}, or io_tiles: null" if needed <= MOST_IO_TILES else "set io_tiles: null"
    return (
        f"pipeline.io_tiles {tiles} hold {tiles * TILE_BYTES / 1e6:.1f} MB but a replica's shard of the optimizer "
        f"state takes {shard / 1e6:.1f} MB on one IPU ({counted(replicas, 'replica')} in a process): {instead}"
    )


def _state_bytes(config: Config) -> int:
    """Returns the bytes of optimizer state per parameter."""
    size = {"float16": 2, "float32": 4}
    first, second = size[config.precision.first_moment], size[config.precision.second_moment]
    return first if config.optim.optimizer == "sgd" else first + second


def _even(number: int) -> int:
    return number + number % 2


def _memory_proportions(config: Config, keys: _Keys) -> Optional[str]:
    proportions = config.pipeline.available_memory_proportion
    if proportions is None:
        return None
    ipus = len(config.layers_per_ipu)
    if len(proportions) not in (1, ipus):
        where, remedy = "", "give one number, or one for each IPU"
        if keys.layers_per_ipu != _TRAINING_KEYS.layers_per_ipu and keys.available_memory_proportion.startswith("pipe"):
            where, remedy = " of evaluation", "set run.evaluation_available_memory_proportion"
        return (
            f"{keys.available_memory_proportion} has {counted(len(proportions), 'number')} "
            f"for {counted(ipus, 'IPU')}{where}: {remedy}"
        )
    for proportion in proportions:
        if not 0 < proportion <= 1:
            return f"{keys.available_memory_proportion} {proportion} is not in (0, 1]: give a share of the memory"
    return None


def _evaluation_device_iterations(config: Config) -> Optional[str]:
    # Compiler.cpp:675-700: inference needs device_iterations >= stages
    inference = config.for_evaluation()
    iterations, stages = config.run.evaluation_device_iterations, len(inference.layers_per_ipu)
    if iterations is None or iterations >= stages or inference.pipeline.execution != "pipelined":
        return None
    return (
        f"run.evaluation_device_iterations {iterations} is below the {counted(stages, 'stage')} of "
        f"the pipeline: use {stages} or "
        "null"
    )


def _evaluation_under_poprun(config: Config, num_instances: int) -> List[Optional[str]]:
    # popdist.poptorch.Options has the number of replicas, and of IPUs in each, from poprun's command line
    if num_instances == 1:
        return []
    evaluation = config.for_evaluation()
    return [
        f"run.{key} makes {there} {what}, but under poprun evaluation has the {here} {what} of training: set it to null"
        for key, what, there, here in (
            (
                "evaluation_replication_factor",
                "replicas",
                evaluation.pipeline.replication_factor,
                config.pipeline.replication_factor,
            ),
            ("evaluation_layers_per_ipu", "IPUs a replica", len(evaluation.layers_per_ipu), len(config.layers_per_ipu)),
        )
        if there != here
    ]


def _number_format(config: Config, device_kind: str) -> Optional[str]:
    # LowerToPopart.cpp:141-166 (bfloat16); Utils.cpp:141-151 (float64). The simulator does compute in float64.
    compute = config.precision.resolve_compute(device_kind)
    if compute == "bfloat16" or (compute == "float64" and device_kind == "ipu"):
        return f"precision.compute {compute} does not exist on IPUs: use float16, float32 or auto"
    return None


def _loss_scale(config: Config) -> Optional[str]:
    # popart automaticlossscaling.cpp: "No tracked gradient tensors of type fp16 were found."; Graphcore's programs
    # state that the reduction must be the mean, and the accumulation half (vision/vit/pytorch/ipu_options.py)
    precision = config.precision
    if not precision.automatic_loss_scale:
        return None
    needed = [
        ("precision.compute", precision.compute, ("float16", "auto")),
        ("optim.gradient_reduction", config.optim.gradient_reduction, ("mean",)),
    ]
    if not config.optim.use_combined_accum:  # which accumulates in the type of the gradients
        needed.insert(1, ("precision.accumulation", precision.accumulation, ("float16",)))
    for key, value, accepted in needed:
        if value not in accepted:
            return (
                f"precision.automatic_loss_scale needs {key} {' or '.join(accepted)}, but it is {value}: change it, or "
                "set automatic_loss_scale: false"
            )
    return None


def _second_moment(config: Config) -> Optional[str]:
    # popart popx/op/adamupdaterx.cpp casts eps to the second moment's type: 0 / (0 + 0) is NaN
    optim = config.optim
    if optim.optimizer == "sgd" or config.precision.second_moment == "float32" or optim.eps >= SMALLEST_FLOAT16:
        return None
    return (
        f"optim.eps {optim.eps} is below {SMALLEST_FLOAT16:.1e}, so it may become 0 in precision.second_moment "
        "float16, which makes the weights NaN: use 1e-6, or second_moment: float32"
    )


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
    # popart clipweightgradientsbynorm.cpp:337-412 and 490-495
    optim, pipeline = config.optim, config.pipeline
    if optim.max_grad_norm is None:
        return None
    schedule = pipeline.popart_options.get("accumulateOuterFragmentSettings.schedule")
    if schedule == 1 and pipeline.execution == "pipelined" and len(config.layers_per_ipu) > 1:
        return (
            f"optim.max_grad_norm {optim.max_grad_norm} in a pipeline excludes pipeline.popart_options "
            "accumulateOuterFragmentSettings.schedule 1 (Serial): remove that option"
        )
    if optim.optimizer == "adamw":
        return None
    reason = {
        "sgd": "PopTorch clips the velocity of SGD, not its gradient",
        "adam": "PopTorch clips the gradient of Adam after adding the L2 term",
        "lamb": "PopTorch's LAMB has no clipping",
    }[optim.optimizer]
    return f"optim.max_grad_norm {optim.max_grad_norm} with {optim.optimizer}: {reason}; use adamw, or null"
