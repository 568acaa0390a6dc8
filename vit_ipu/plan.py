"""What `vit-ipu plan` says of a config: where units go, how batches divide, and what PopTorch would refuse."""

from __future__ import annotations

from typing import Any, Dict, List

from vit_ipu.config import Config
from vit_ipu.pipeline import BatchPlan, ipu_violations, num_cycles, num_ipus, num_stages, place_units, utilisation


def describe_plan(config: Config) -> Dict[str, Any]:
    """The plan as values for JSON."""
    training, evaluation = BatchPlan.of(config), BatchPlan.of_evaluation(config)
    ipus = len(config.layers_per_ipu)
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
        "evaluation_samples_per_step": evaluation.samples_per_step,
        "violations": ipu_violations(config),
    }


def plan_lines(config: Config) -> List[str]:
    """The plan as text."""
    plan = describe_plan(config)
    lines = ["IPU {}: {}".format(ipu, ", ".join(units)) for ipu, units in enumerate(plan["placement"])]
    lines += [
        "",
        "{num_ipus} IPUs = {ipus_per_replica} a replica x {replication_factor} replicas".format(**plan),
        "global batch {global_batch_size:,} = micro-batch {micro_batch_size} x accumulation {gradient_accumulation} x "
        "replicas {replication_factor}".format(**plan),
        "host step {samples_per_step:,} = global batch {global_batch_size:,} x device iterations "
        "{device_iterations}".format(**plan),
        "{stages} stages in training, {cycles_per_update:,} cycles an update: ramp-up and ramp-down leave an IPU at "
        "most {utilisation_bound:.1%}".format(**plan),
        "evaluation {evaluation_samples_per_step:,} images a call".format(**plan),
    ]
    refused = [f"PopTorch would refuse: {text}" for text in plan["violations"]]
    return lines + refused
