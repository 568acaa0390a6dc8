"""Units to IPUs, batch arithmetic, and PopTorch's rules for both. Pure functions; nothing here imports torch.

A unit is a placeable piece of the model: `embed`, `blocks.0` ... `blocks.N-1`, `head`. F is the number of
forward stages (one an IPU), D device_iterations, G gradient_accumulation, R replication_factor, m the
micro-batch size. Sources name files of graphcore/poptorch (sdk-release-3.4) and graphcore/popart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Optional, Sequence, Tuple

import numpy as np

from vit_ipu.config import Config, ConfigError, ModelConfig

MAX_IPUS_PER_PROCESS = 64


# -------------------------------------------------------------------------------------- placement


def place_units(layers_per_ipu: Sequence[int]) -> Tuple[Tuple[str, ...], ...]:
    """The units of each IPU of a replica, in the order of execution.

    `embed` joins the first IPU and `head` the last; a 0 there gives it the IPU to itself.
    """
    units: List[List[str]] = []
    start = 0
    for count in layers_per_ipu:
        units.append([f"blocks.{index}" for index in range(start, start + count)])
        start += count
    units[0].insert(0, "embed")
    units[-1].append("head")
    return tuple(tuple(unit) for unit in units)


def first_module(unit: str) -> str:
    """The path of the module at which a unit begins, in `vit_ipu.model.ViT`."""
    return {"embed": "patch_embed", "head": "norm"}.get(unit, unit)


# -------------------------------------------------------------------------------- batch arithmetic


@dataclass(frozen=True)
class BatchPlan:
    """How many samples go where in one host step, ordered [D][G][R][m]."""

    micro_batch_size: int
    gradient_accumulation: int
    replication_factor: int
    device_iterations: int

    @classmethod
    def of(cls, config: Config) -> BatchPlan:
        """The plan of training."""
        pipeline = config.pipeline
        return cls(
            micro_batch_size=pipeline.micro_batch_size,
            gradient_accumulation=pipeline.gradient_accumulation,
            replication_factor=pipeline.replication_factor,
            device_iterations=pipeline.device_iterations,
        )

    @classmethod
    def of_evaluation(cls, config: Config) -> BatchPlan:
        """The plan of inference on IPUs: no accumulation, and at least as many device iterations as stages."""
        return cls(
            micro_batch_size=config.evaluation_micro_batch_size,
            gradient_accumulation=1,
            replication_factor=config.pipeline.replication_factor,
            device_iterations=config.run.evaluation_device_iterations or len(config.layers_per_ipu),
        )

    @property
    def global_batch_size(self) -> int:
        """Samples per weight update."""
        return self.micro_batch_size * self.gradient_accumulation * self.replication_factor

    @property
    def samples_per_step(self) -> int:
        """Samples per host step."""
        return self.global_batch_size * self.device_iterations

    def share(self, instance: int, num_instances: int) -> np.ndarray:
        """Positions in a host step, ordered [D][G][R][m], of the samples that one host process feeds.

        Each of `num_instances` processes owns consecutive replicas, as poprun assigns them.
        """
        if self.replication_factor % num_instances:
            raise ConfigError(
                f"pipeline.replication_factor {self.replication_factor} is not a multiple of the {num_instances} "
                "instances of poprun: change --num-instances"
            )
        local = self.replication_factor // num_instances
        shape = (-1, self.replication_factor, self.micro_batch_size)
        positions = np.arange(self.samples_per_step).reshape(shape)
        return positions[:, instance * local : (instance + 1) * local].reshape(-1)


# -------------------------------------------------------------------------------------- timetable


@dataclass(frozen=True)
class Slot:
    """One piece of work: IPU `ipu` passes micro-batch `micro_batch` forward or backward in `cycle`."""

    cycle: int
    ipu: int
    micro_batch: int
    backward: bool


def num_stages(num_ipus: int) -> int:
    """Stages of training, 2F-1: the last forward stage does its own backward (CompilerImpl.cpp:478-495)."""
    return 2 * num_ipus - 1


def num_cycles(num_ipus: int, gradient_accumulation: int) -> int:
    """Cycles of a weight update, G+2F-2: ramp-up and ramp-down included (popart pipeline.cpp:2278-2334)."""
    return gradient_accumulation + num_stages(num_ipus) - 1


def utilisation(num_ipus: int, gradient_accumulation: int) -> float:
    """Share of the cycles in which an IPU works, G/(G+2F-2): the upper bound that ramps leave."""
    return gradient_accumulation / num_cycles(num_ipus, gradient_accumulation)


def timetable(num_ipus: int, gradient_accumulation: int) -> List[Slot]:
    """Who does what in the cycles of one weight update.

    Stage s handles micro-batch c - s in cycle c; the backward pass of stage i is stage 2(F-1)-i on i's IPU
    (popart/docs/notes/transforms/pipelining.md:60-130).
    """
    slots = []
    for cycle in range(num_cycles(num_ipus, gradient_accumulation)):
        for ipu in range(num_ipus):
            for stage, backward in ((ipu, False), (2 * (num_ipus - 1) - ipu, True)):
                if 0 <= cycle - stage < gradient_accumulation:
                    slots.append(Slot(cycle, ipu, cycle - stage, backward))
    return slots


# ---------------------------------------------------------------------------------- PopTorch's rules


def resolve_compute(compute: str, device_kind: str) -> str:
    """The number format that `precision.compute` means on a kind of device (ipu, ipu-sim, cuda, cpu)."""
    if compute != "auto":
        return compute
    return {"ipu": "float16", "ipu-sim": "float16", "cuda": "bfloat16", "cpu": "float32"}[device_kind]


def num_ipus(config: Config) -> int:
    """IPUs that the run takes: those of a replica times the replicas."""
    return len(config.layers_per_ipu) * config.pipeline.replication_factor


def require_runnable(config: Config, device_kind: str, num_instances: int = 1, *, training: bool = True) -> List[str]:
    """Raises ConfigError if `device_kind` cannot run the config; returns notes on what only IPUs would refuse.

    Without `training`, only what inference needs is asked for.
    """
    compute = resolve_compute(config.precision.compute, device_kind)
    if device_kind in ("cpu", "cuda"):
        if compute == "float16":
            raise ConfigError(
                "precision.compute float16 is for IPUs; on {} use auto, which is {}".format(
                    device_kind, resolve_compute("auto", device_kind)
                )
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
    """What PopTorch, PopART or the IPU would refuse or silently change, each with its numbers and remedy."""
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
            "IPUs: give one, or one each"
        )
    for proportion in proportions:
        if not 0 < proportion <= 1:
            return f"pipeline.available_memory_proportion {proportion} is not in (0, 1]"
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
    compute = resolve_compute(config.precision.compute, device_kind)
    if compute == "bfloat16" or (compute == "float64" and device_kind == "ipu"):
        return f"precision.compute {compute} does not exist on IPUs: use float16, float32 or auto"
    return None


def _loss_scale(config: Config) -> Optional[str]:
    # popart automaticlossscaling.cpp: "No tracked gradient tensors of type fp16 were found."
    precision = config.precision
    if not precision.automatic_loss_scale:
        return None
    if resolve_compute(precision.compute, "ipu") != "float16":
        return f"precision.automatic_loss_scale needs float16 gradients, but precision.compute is {precision.compute}"
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
