"""Output of `plan`: placement, batch arithmetic, predicted memory and time, and what the search found."""

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Sequence

from vit_ipu.cli.plan_comparison import MEGABYTE, VERDICTS, print_side_by_side
from vit_ipu.text import counted, lasting

if TYPE_CHECKING:
    from vit_ipu.planner.search import Candidate, SearchResult

_BAR = 10
_COLUMNS = {
    "parameters": ("param", 5),
    "gradients": ("grad", 4),
    "optimizer_state": ("state", 5),
    "stash": ("stash", 5),
    "activations": ("activ", 5),
    "temporaries": ("temp", 4),
    "buffers": ("buf", 3),
    "code": ("code", 4),
}
"""Heading and width of the column of each kind of memory."""
_WIDTH = 80


def print_plan(plan: Dict[str, Any]) -> None:
    """Prints the settings that PopTorch would refuse, the placement, the batch sizes, and the predictions."""
    for violation in plan["violations"]:
        _print_wrapped(f"PopTorch would refuse: {violation}")
    if plan["violations"]:
        print()
    _print_batches(plan)
    _print_evaluation(plan)
    if "predictions" in plan:
        print_side_by_side(plan["predictions"])
    else:
        _print_memory(plan)
        _print_time(plan)


def _print_batches(plan: Dict[str, Any]) -> None:
    from vit_ipu.pipeline import BatchPlan

    batches = BatchPlan(**{field: plan[field] for field in BatchPlan.__dataclass_fields__})
    for ipu, units in enumerate(plan["placement"]):
        print(f"IPU {ipu}: {', '.join(units)}")
    print()
    replicas = counted(plan["replication_factor"], "replica")
    print(f"{counted(plan['num_ipus'], 'IPU')} = {plan['ipus_per_replica']} a replica x {replicas}")
    print(batches.equation)
    print(
        f"host step {plan['samples_per_step']:,} = global batch {plan['global_batch_size']:,} x device iterations "
        f"{plan['device_iterations']}"
    )
    _print_wrapped(
        f"{counted(plan['stages'], 'stage')} in training, {counted(plan['cycles_per_update'], 'cycle')} an update: "
        f"with ramp-up and ramp-down, an IPU works in at most {100 * plan['utilisation_bound']:.1f} % of them"
    )


def _print_evaluation(plan: Dict[str, Any]) -> None:
    print(f"evaluation {counted(plan['evaluation_samples_per_step'], 'image')} per inference call")
    layout = [plan["placement"], plan["replication_factor"]]
    if layout != [plan["evaluation_placement"], plan["evaluation_replication_factor"]]:
        for ipu, units in enumerate(plan["evaluation_placement"]):
            print(f"evaluation IPU {ipu}: {', '.join(units)}")
        replicas = counted(plan["evaluation_replication_factor"], "replica")
        ipus = counted(plan["evaluation_num_ipus"], "IPU")
        print(f"evaluation {ipus} = {len(plan['evaluation_placement'])} a replica x {replicas}")


def _print_memory(plan: Dict[str, Any]) -> None:
    capacity = plan["ipus"][0]["memory_capacity"] / MEGABYTE
    print()
    print(f"Predicted memory in training, MB of the {capacity:.0f} MB of each {plan['hardware']} IPU:")
    heads = " ".join(f"{head:>{width}}" for head, width in _COLUMNS.values())
    print(f"IPU {heads} total {'':{_BAR + 2}} {'range':>9} fits")
    for row in plan["ipus"]:
        sizes = (f"{row['memory_bytes'][kind] / MEGABYTE:{width}.0f}" for kind, (_, width) in _COLUMNS.items())
        total = sum(row["memory_bytes"].values())
        ends = "-".join(f"{row[end] / MEGABYTE:.0f}" for end in ("memory_low", "memory_high"))
        bar = _bar(total, row["memory_high"], row["memory_capacity"])
        verdict = VERDICTS[row["fits"]]
        print(f"{row['ipu']:3} {' '.join(sizes)} {total / MEGABYTE:5.0f} {bar} {ends:>9} {verdict:>4}")
    print("# predicted, - up to the highest of its range, ? not known: docs/planner.md")
    _print_verdict(plan)


def _bar(total: int, high: int, capacity: int) -> str:
    """Returns a bar of the predicted memory (#) and its upper range (-) on the IPU's memory."""
    filled, possible = (min(round(_BAR * size / capacity), _BAR) for size in (total, high))
    return f"[{'#' * filled}{'-' * (possible - filled)}{' ' * (_BAR - possible)}]"


def _print_verdict(plan: Dict[str, Any]) -> None:
    text = {
        True: "Predicted to fit.",
        False: "Predicted not to fit: the lowest total of an IPU is more than its memory.",
        None: "Not known whether it fits: an IPU's memory is within the range of its total.",
    }[plan["fits"]]
    _print_wrapped(text)
    if plan["advice"]:
        _print_wrapped(f"What would fit, each alone: {', '.join(plan['advice'][:4])}")


def _print_time(plan: Dict[str, Any]) -> None:
    print()
    print(f"Predicted time of a cycle, on {plan['hardware']} IPUs:")
    print("IPU       ms   busy  most of it")
    for row in plan["ipus"]:
        kind = max(row["seconds_by_kind"], key=lambda name: row["seconds_by_kind"][name])
        print(f"{row['ipu']:3} {1e3 * row['seconds']:8.2f} {100 * row['utilisation']:4.0f} %  {kind}")
    predicted = plan["predicted"]
    print(
        f"Predicted {predicted['images_per_second']:,.0f} images/s in training, between {predicted['low']:,.0f} and "
        f"{predicted['high']:,.0f}"
    )
    print(f"Predicted {predicted['seconds_per_update']:.3g} s an update, limited by {predicted['limited_by']}")
    if predicted["seconds_to_finish"] is not None:
        print(f"Predicted {lasting(predicted['seconds_to_finish'])} for the run, without evaluations")


def _print_wrapped(text: str) -> None:
    for line in textwrap.wrap(text, _WIDTH, break_long_words=False, break_on_hyphens=False):
        print(line)


def print_search(result: "SearchResult", paths: "Sequence[Path]") -> None:
    """Prints what the search found, as YAML for the section `pipeline`, and the files written, or why it found none."""
    print()
    if result.nothing_because is not None:
        _print_wrapped(f"--search: {result.nothing_because}")
    for number, candidate in enumerate(result.candidates, 1):
        print(f"# {number}: predicted {candidate.images_per_second:,.0f} images/s, predicted to fit")
        print("\n".join(_yaml_lines(candidate)))
    for path in paths:
        print(f"written {path}")
    if paths:
        print(f"{counted(len(paths), 'config')} ready to run: vit-ipu train {paths[0]}")


def _yaml_lines(candidate: "Candidate") -> List[str]:
    from vit_ipu.plan import pipeline_yaml

    return ["pipeline:", *(f"  {line}" for line in pipeline_yaml(candidate).splitlines())]
