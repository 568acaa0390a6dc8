"""Plan of a config: placement, batch arithmetic, what PopTorch would refuse, and predicted memory and time."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import yaml

from vit_ipu.config import Config
from vit_ipu.config_file import dump_config
from vit_ipu.errors import ConfigError
from vit_ipu.files import place_problem, write_whole
from vit_ipu.ipu_rules import ipu_violations
from vit_ipu.pipeline import BatchPlan, num_cycles, num_ipus, num_stages, place_units, utilisation
from vit_ipu.planner.hardware import Hardware, hardware_named, hardware_names, hardware_of, pod_for
from vit_ipu.planner.prediction import predict
from vit_ipu.planner.search import Candidate, SearchResult, search
from vit_ipu.text import escaped

_SEARCHED_KEYS = (
    "micro_batch_size",
    "replication_factor",
    "layers_per_ipu",
    "recompute",
    "recompute_mid_layers",
    "available_memory_proportion",
    "replicated_tensor_sharding",
    "optimizer_state",
)
"""Keys of `pipeline` that the search sets."""


def describe_plan(config: Config, hardware: Optional[str] = None) -> Dict[str, Any]:
    """Returns the plan of a config as values for JSON, with predictions for a kind of IPU; None: the config's.

    `hardware` can be several kinds, such as "gc200,bow": their predictions are then in a list, `predictions`. Raises
    ConfigError if a kind is unknown.
    """
    if hardware is None or "," not in hardware:
        return {**_describe_batches(config), **predict(config, _hardware(config, hardware)).as_json()}
    predictions = [predict(config, hardware_named(name)).as_json() for name in hardware_names(hardware)]
    return {**_describe_batches(config), "predictions": predictions}


def _describe_batches(config: Config) -> Dict[str, Any]:
    """Returns the placement, the batch sizes, and what PopTorch would refuse."""
    training, evaluation = BatchPlan.of(config), BatchPlan.of_evaluation(config)
    ipus, in_evaluation = len(config.layers_per_ipu), config.for_evaluation()
    return {
        "placement": [list(units) for units in place_units(config.layers_per_ipu)],
        "ipus_per_replica": ipus,
        "replication_factor": training.replication_factor,
        "num_ipus": num_ipus(config),
        "stages": num_stages(ipus),
        "micro_batch_size": training.micro_batch_size,
        "gradient_accumulation": training.gradient_accumulation,
        "global_batch_size": training.global_batch_size,
        "device_iterations": training.device_iterations,
        "samples_per_step": training.samples_per_step,
        "cycles_per_update": num_cycles(ipus, training.gradient_accumulation),
        "utilisation_bound": utilisation(ipus, training.gradient_accumulation),
        "evaluation_placement": [list(units) for units in place_units(in_evaluation.layers_per_ipu)],
        "evaluation_replication_factor": in_evaluation.pipeline.replication_factor,
        "evaluation_num_ipus": num_ipus(in_evaluation),
        "evaluation_samples_per_step": evaluation.samples_per_step,
        "violations": ipu_violations(config),
    }


def _hardware(config: Config, name: Optional[str]) -> Hardware:
    if name is not None:
        return hardware_named(name)
    return hardware_of(config.pipeline.ipu_version)


def require_searchable(hardware: Optional[str], pod: Optional[int], *, search: bool) -> None:
    """Raises ConfigError if a POD is given without a search, or a search is for several kinds of IPU."""
    if pod is not None and not search:
        raise ConfigError("--pod has no effect without --search: add --search")
    if search and hardware is not None and "," in hardware:
        raise ConfigError(f"--hardware {hardware}: --search is for one kind of IPU: give one, or leave out --search")


def search_plans(config: Config, hardware: Optional[str] = None, pod: Optional[int] = None) -> SearchResult:
    """Returns the fastest configs that are predicted to fit on a POD; None: the smallest that has the config's IPUs.

    Raises ConfigError if the kind of IPU or the POD is unknown, or if the config cannot be searched.
    """
    ipus = pod_for(num_ipus(config)) if pod is None else pod
    return search(config, _hardware(config, hardware), ipus)


def describe_search(result: SearchResult) -> Dict[str, Any]:
    """Returns what the search found as values for JSON, and why it found nothing, if so."""
    found = {"search": [describe_candidate(candidate) for candidate in result.candidates]}
    return found if result.nothing_because is None else {**found, "nothing_found": result.nothing_because}


def describe_candidate(candidate: Candidate) -> Dict[str, Any]:
    """Returns a found config as values for JSON: its prediction, the keys that the search set, and the config."""
    values = candidate.config.model_dump(mode="json")
    return {
        "predicted": {"images_per_second": candidate.images_per_second},
        "pipeline": {key: values["pipeline"][key] for key in _SEARCHED_KEYS},
        "config": values,
    }


def pipeline_yaml(candidate: Candidate) -> str:
    """Returns the keys of `pipeline` that the search set, as YAML."""
    return yaml.safe_dump(describe_candidate(candidate)["pipeline"], sort_keys=False, default_flow_style=None)


def require_free_folder(folder: Path, count: int = 1) -> None:
    """Raises ConfigError unless `count` found configs can be written to `folder`, as far as the paths tell."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--output {folder} is not a folder: give a folder for the found configs")
    for number in range(1, count + 1):
        if (folder / f"plan-{number}.yaml").exists():
            raise ConfigError(f"--output {folder}: plan-{number}.yaml exists: give another folder")
    problem = place_problem(folder / "plan-1.yaml")
    if problem is not None:
        raise ConfigError(f"--output {folder}: {problem}: give another folder for the found configs")


def write_candidates(candidates: Sequence[Candidate], folder: Path) -> List[Path]:
    """Writes the found configs as plan-1.yaml, plan-2.yaml, ..., ready to run; returns their paths.

    Without configs, no folder is made. Raises ConfigError if a file exists, or if `folder` is not a folder.
    """
    require_free_folder(folder, len(candidates))
    paths = [folder / f"plan-{number}.yaml" for number in range(1, len(candidates) + 1)]
    if paths:
        folder.mkdir(parents=True, exist_ok=True)
    for path, candidate in zip(paths, candidates):
        predicted = f"# Predicted: {candidate.images_per_second:,.0f} images/s. Not yet measured.\n"
        write_whole(path, f"# vit-ipu train {escaped(str(path))}\n{predicted}{dump_config(candidate.config)}")
    return paths
