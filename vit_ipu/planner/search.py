"""Search for the fastest settings of a config on a POD that fit: split, micro-batch, recomputation, replicas, state.

For each combination of the other settings, the best of all splits is found exactly: the time of a pipeline's cycle is
that of its slowest IPU, so the best way to place the last n blocks on the last k IPUs does not depend on how the blocks
before them are placed (dynamic programming). The learning recipe stays as it is: the global batch does not change.
"""

from __future__ import annotations

from itertools import product
from math import inf
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

from vit_ipu.config import Config
from vit_ipu.errors import ConfigError
from vit_ipu.ipu_rules import ipu_violations
from vit_ipu.pipeline import num_stages
from vit_ipu.planner.hardware import PODS, Hardware
from vit_ipu.planner.memory import stage_memory
from vit_ipu.planner.program import Stage
from vit_ipu.planner.time import stage_time, update_time

MOST_IPUS_PER_REPLICA = 16
MOST_SAMPLES = 256
"""Largest micro-batch that is tried."""
MOST_BLOCKS = 64
"""Deepest model whose splits are searched: each number of blocks on an IPU is costed."""
RECOMPUTE = ("every_block", "auto", "none")


class Candidate(NamedTuple):
    """A config that is predicted to fit, and its predicted images per second."""

    config: Config
    images_per_second: float


class SearchResult(NamedTuple):
    """The fastest configs that the search found, or why it found none."""

    candidates: List[Candidate]
    nothing_because: Optional[str]


def search(config: Config, hardware: Hardware, num_ipus: int, *, most: int = 3) -> SearchResult:
    """Returns the fastest configs on `num_ipus` IPUs that fit, at most one for each length of pipeline and micro-batch.

    Raises ConfigError if `num_ipus` is not a POD's, if the config's stages take turns (sharded), or if the model is
    deeper than MOST_BLOCKS.
    """
    _check(config, num_ipus)
    best: Dict[Tuple[int, int], Candidate] = {}
    refusals: List[List[str]] = []
    shapes = list(_shapes(config, num_ipus))
    for ipus, micro_batch in shapes:
        for variant in _variants(config, num_ipus, ipus, micro_batch):
            found = _with_best_split(variant, hardware, ipus)
            key = ipus, micro_batch
            if found is None or (key in best and found.images_per_second <= best[key].images_per_second):
                continue
            violations = ipu_violations(found.config)
            if violations:
                refusals.append(violations)
            else:
                best[key] = found
    ranked = sorted(best.values(), key=lambda candidate: -candidate.images_per_second)[:most]
    return SearchResult(ranked, None if ranked else _why_nothing(config, num_ipus, bool(shapes), refusals))


def _why_nothing(config: Config, num_ipus: int, has_shapes: bool, refusals: List[List[str]]) -> str:
    """Returns why nothing was found: no division of the batch, refused by PopTorch, or not enough memory."""
    if not has_shapes:
        return (
            f"pipeline.global_batch_size {config.pipeline.global_batch_size:,} cannot be divided over {num_ipus} IPUs "
            "into enough micro-batches for any pipeline: use a larger global batch, or fewer IPUs (--pod)"
        )
    if refusals:
        always = [reason for reason in refusals[0] if all(reason in others for others in refusals)]
        return f"PopTorch would refuse every config that is predicted to fit: {'; '.join(always or refusals[0])}"
    return "nothing on this POD is predicted to fit for sure: use more IPUs (--pod) or a smaller image"


def _check(config: Config, num_ipus: int) -> None:
    if num_ipus not in PODS:
        raise ConfigError(f"--pod {num_ipus}: there is no such POD: use one of {', '.join(map(str, PODS))}")
    if config.pipeline.execution != "pipelined":
        raise ConfigError(
            f"pipeline.execution {config.pipeline.execution}: --search splits pipelines: use pipelined, or no --search"
        )
    if config.model.depth > MOST_BLOCKS:
        raise ConfigError(
            f"model.depth {config.model.depth}: --search splits at most {MOST_BLOCKS} blocks: leave out --search"
        )


def best_split(config: Config, hardware: Hardware, num_ipus: int) -> Optional[Tuple[int, ...]]:
    """Returns the blocks of each IPU with the shortest cycle of all splits that fit, or None if none fits.

    IPUs between the first and the last have at least 1 block.
    """
    depth = config.model.depth
    costs = [[_cost(config, hardware, num_ipus, ipu, count) for count in range(depth + 1)] for ipu in range(num_ipus)]
    slowest = [0.0] + [inf] * depth  # of the IPUs after the current one, by number of blocks on them
    choices: List[List[int]] = []
    for ipu in reversed(range(num_ipus)):
        options = [
            min((max(costs[ipu][own], slowest[blocks - own]), own) for own in range(blocks + 1))
            for blocks in range(depth + 1)
        ]
        slowest = [seconds for seconds, _ in options]
        choices.insert(0, [own for _, own in options])
    if slowest[depth] == inf:
        return None
    layers: List[int] = []
    for chosen in choices:
        layers.append(chosen[depth - sum(layers)])
    return tuple(layers)


def _cost(config: Config, hardware: Hardware, num_ipus: int, ipu: int, count: int) -> float:
    """Returns the seconds of an IPU with `count` blocks in a cycle, or infinity if they are too many or too few."""
    stage = Stage(ipu, num_ipus, 0, count)
    if count == 0 and not (stage.is_first or stage.is_last):
        return inf
    if stage_memory(config, hardware, stage).fits is not True:
        return inf
    return stage_time(config, hardware, stage).total


def _shapes(config: Config, num_ipus: int) -> Iterator[Tuple[int, int]]:
    """Returns pairs of IPUs per replica and micro-batch that divide the POD and the global batch."""
    for ipus in (1, 2, 4, 8, MOST_IPUS_PER_REPLICA):
        if ipus > min(num_ipus, config.model.depth + 2):
            continue
        share, rest = divmod(config.pipeline.global_batch_size, num_ipus // ipus)
        for size in range(2 if config.data.mixes else 1, min(share, MOST_SAMPLES) + 1):
            if rest == 0 and share % size == 0 and share // size >= num_stages(ipus):
                yield ipus, size


def _variants(config: Config, num_ipus: int, ipus: int, micro_batch: int) -> Iterator[Config]:
    replicas = num_ipus // ipus
    layers = (config.model.depth,) + (0,) * (ipus - 1)  # replaced by the best split
    proportions = config.pipeline.available_memory_proportion
    for recompute, sharding, state in product(RECOMPUTE, (False, True), ("on_chip", "off_chip")):
        if sharding and replicas == 1:
            continue
        changes: Dict[str, Any] = {
            "layers_per_ipu": layers,
            "micro_batch_size": micro_batch,
            "replication_factor": replicas,
            "recompute": recompute,
            "recompute_mid_layers": (),
            "replicated_tensor_sharding": sharding,
            "optimizer_state": state,
            "available_memory_proportion": None if proportions is None else (min(proportions),),
        }
        yield config.model_copy(update={"pipeline": config.pipeline.model_copy(update=changes)})


def _with_best_split(config: Config, hardware: Hardware, ipus: int) -> Optional[Candidate]:
    layers = best_split(config, hardware, ipus)
    if layers is None:
        return None
    found = config.model_copy(update={"pipeline": config.pipeline.model_copy(update={"layers_per_ipu": layers})})
    return Candidate(found, found.pipeline.global_batch_size / update_time(found, hardware).total)
