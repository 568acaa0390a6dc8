"""What a config asks of each IPU, for memory and time alike: stages, number formats, recomputation and transfers.

F is the number of forward stages, i the stage; m, T and D as in `work.py`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Dict, FrozenSet, List, NamedTuple, Sequence, Tuple

from vit_ipu.config import Config, ModelConfig
from vit_ipu.model_cost import parameters_per_ipu
from vit_ipu.planner.products import Formats
from vit_ipu.planner.work import LayerWork, embed_work, head_work, model_block_work
from vit_ipu.units import frozen_units

DEFAULT_PROPORTION = 0.6
"""poplibs' availableMemoryProportion if none is set (https://docs.graphcore.ai/projects/available-memory)."""
_BYTES = {"float16": 2, "float32": 4}


class Stage(NamedTuple):
    """One forward stage: the IPU's number, the number of IPUs of a replica, and what the stage computes."""

    ipu: int
    num_ipus: int
    first_block: int
    num_blocks: int

    @property
    def is_first(self) -> bool:
        return self.ipu == 0

    @property
    def is_last(self) -> bool:
        return self.ipu == self.num_ipus - 1

    @property
    def units(self) -> Dict[str, int]:
        """The number of units of each kind: `embed`, `block` and `head`."""
        return {"embed": int(self.is_first), "block": self.num_blocks, "head": int(self.is_last)}


def stages_of(layers: Sequence[int]) -> List[Stage]:
    """Returns the stages of a replica with `layers` blocks on its IPUs."""
    starts = [sum(layers[:ipu]) for ipu in range(len(layers))]
    return [Stage(ipu, len(layers), start, count) for ipu, (start, count) in enumerate(zip(starts, layers))]


# ------------------------------------------------------------------------------------------ parameters


@lru_cache(maxsize=None)
def unit_parameters(model: ModelConfig) -> Dict[str, int]:
    """Returns the parameters of each kind of unit."""
    embed, head = parameters_per_ipu(model, (0, 0))
    return {"embed": embed, "block": parameters_per_ipu(model, (1, 0))[0] - embed, "head": head}


def stage_parameters(config: Config, stage: Stage) -> int:
    """Returns the parameters of a stage."""
    parameters = unit_parameters(config.model)
    return sum(count * parameters[unit] for unit, count in stage.units.items())


def trained_parameters(config: Config, stage: Stage) -> int:
    """Returns the parameters of a stage that `optim.freeze` does not exclude from training."""
    model, parameters = config.model, unit_parameters(config.model)
    sizes = {"embed": parameters["embed"], "norm": 2 * model.width}
    sizes["pre_logits"] = (model.width + 1) * (model.representation_size or 0)
    frozen = _frozen_units(config, stage)
    return stage_parameters(config, stage) - sum(sizes.get(unit, parameters["block"]) for unit in frozen)


def num_trained_tensors(config: Config, stage: Stage) -> int:
    """Returns the trained parameter tensors of a stage: 4 of the embedding, 12 a block, 4 or 6 of the head."""
    tensors = {"embed": 4, "block": 12, "head": 6 if config.model.representation_size else 4}
    sizes = {"embed": 4, "norm": 2, "pre_logits": 2}
    frozen = _frozen_units(config, stage)
    return sum(count * tensors[unit] for unit, count in stage.units.items()) - sum(
        sizes.get(unit, 12) for unit in frozen
    )


def count_trained(config: Config) -> Tuple[int, int]:
    """Returns the trained parameters of a model, and all."""
    [stage] = stages_of((config.model.depth,))
    return trained_parameters(config, stage), stage_parameters(config, stage)


def _frozen_units(config: Config, stage: Stage) -> FrozenSet[str]:
    """Returns the frozen units of a stage, by their names in `optim.freeze`."""
    here = {f"blocks.{stage.first_block + index}" for index in range(stage.num_blocks)}
    here |= {"embed"} if stage.is_first else set()
    here |= {"norm", "pre_logits"} if stage.is_last else set()
    return frozen_units(config.optim.freeze, config.model.depth) & here


def weight_bytes(config: Config) -> int:
    """Returns the bytes of a parameter and of an activation's element: 2 in float16, else 4."""
    return _BYTES.get(config.precision.resolve_compute("ipu"), 4)


def gradient_bytes(config: Config) -> int:
    """Returns the bytes of a parameter's accumulated gradient; SGD may accumulate in its velocity instead."""
    return 0 if config.optim.use_combined_accum else _BYTES[config.precision.accumulation]


def state_bytes(config: Config) -> int:
    """Returns the bytes of optimizer state for each parameter (popart sgd2decompose.cpp, adamdecompose.cpp)."""
    optim, precision = config.optim, config.precision
    if optim.optimizer == "sgd":
        if not optim.momentum:
            return 0
        return weight_bytes(config) if optim.use_combined_accum else _BYTES[precision.first_moment]
    return _BYTES[precision.first_moment] + _BYTES[precision.second_moment]


# -------------------------------------------------------------------------------------------- schedule


def stashed_micro_batches(config: Config, stage: Stage) -> int:
    """Returns 2(F-1-i)+1, and 0 for the last stage or without a pipeline (popart pipeline.cpp:1477-1482)."""
    later = stage.num_ipus - 1 - stage.ipu
    return 2 * later + 1 if later and config.pipeline.execution == "pipelined" else 0


def recomputes(config: Config, stage: Stage) -> bool:
    """Tells whether a stage computes its forward pass again before its backward pass.

    In a pipeline PopTorch recomputes by default, except on the last stage (Compiler.cpp:572-579). Otherwise only
    checkpoints make PopART recompute (RecomputationType::RecomputeAll).
    """
    pipeline = config.pipeline
    if pipeline.execution == "pipelined" and stage.num_ipus > 1:
        return pipeline.recompute != "none" and not stage.is_last
    return pipeline.recompute == "every_block"


# ------------------------------------------------------------------------------------ work and transfers


def formats_of(config: Config, stage: Stage) -> Formats:
    """Returns the formats of a stage's matrix products, and the share of the memory for their temporaries."""
    proportions = config.pipeline.available_memory_proportion or (DEFAULT_PROPORTION,)
    own = proportions[stage.ipu] if len(proportions) == stage.num_ipus else proportions[0]
    element = weight_bytes(config)
    return Formats(element, max(_BYTES[config.precision.partials], element), min(max(own, 1e-3), 1.0))


def unit_work(config: Config, unit: str) -> LayerWork:
    """Returns the work of a kind of unit on one micro-batch."""
    return _unit_work(config.model, config.data.mixes, config.pipeline.micro_batch_size, unit)


@lru_cache(maxsize=None)
def _unit_work(model: ModelConfig, mixes: bool, micro_batch: int, unit: str) -> LayerWork:
    if unit == "embed":
        return embed_work(model, micro_batch, mixes=mixes)
    return head_work(model, micro_batch) if unit == "head" else model_block_work(model, micro_batch)


def stream_bytes(config: Config) -> int:
    """Returns the bytes of a micro-batch between two blocks: m x T x D elements."""
    model = config.model
    return config.pipeline.micro_batch_size * model.num_tokens * model.width * weight_bytes(config)


def input_bytes(config: Config) -> int:
    """Returns the bytes of an image on its way from the host; float images travel in the format of the computation."""
    pixel = 1 if config.data.transfer == "uint8" else weight_bytes(config)
    return 3 * config.model.image_size**2 * pixel


def replicas_of_step(config: Config) -> int:
    """Returns the number of replicas that share the optimizer state and step: 1 without sharding."""
    return config.pipeline.replication_factor if config.pipeline.replicated_tensor_sharding else 1
