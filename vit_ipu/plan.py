"""Plan of a config: placement of units, batch arithmetic, and settings that PopTorch would refuse."""

from __future__ import annotations

from typing import Any, Dict

from vit_ipu.config import Config
from vit_ipu.ipu_rules import ipu_violations
from vit_ipu.pipeline import BatchPlan, num_cycles, num_ipus, num_stages, place_units, utilisation


def describe_plan(config: Config) -> Dict[str, Any]:
    """Returns the plan of a config as values for JSON."""
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
