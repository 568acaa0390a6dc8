"""The evaluation that a report shows, or why it shows none and how to get the same figures."""

from __future__ import annotations

import shlex
from typing import Any, Dict, List, NamedTuple, Optional

from vit_ipu.errors import UserError
from vit_ipu.runs.folder import RunFolder
from vit_ipu.runs.last_evaluation import LastEvaluation, read_last_evaluation


class ShownEvaluation(NamedTuple):
    """What a report shows of the run's last evaluation."""

    evaluation: Optional[LastEvaluation]
    missing: Optional[str]
    """Why the run was evaluated, but mistakes cannot be shown, and what to do; None if they can, or before the first
    evaluation."""


def shown_evaluation(folder: RunFolder, metrics: List[Dict[str, Any]]) -> ShownEvaluation:
    """Returns the run's last evaluation if evaluation.json has it.

    A run that resumes from before its last evaluation has older metrics until it evaluates again.
    """
    last = [line["update"] for line in metrics if "top1" in line][-1:]
    if not last:
        return ShownEvaluation(None, None)
    try:
        evaluation = read_last_evaluation(folder)
    except UserError as error:
        return ShownEvaluation(None, f"no mistakes to show: {error}; {_remedy(folder)}")
    if evaluation.update == last[0]:
        return ShownEvaluation(evaluation, None)
    reason = (
        f"{folder.evaluation} is of update {evaluation.update:,}, but the last evaluation in {folder.metrics.name} is "
        f"of update {last[0]:,}"
    )
    return ShownEvaluation(None, f"no mistakes to show: {reason}: wait for the next evaluation, or {_remedy(folder)}")


def _remedy(folder: RunFolder) -> str:
    run, config = shlex.quote(str(folder.path)), shlex.quote(str(folder.config))
    return (
        f"get what the model predicts for each image with: vit-ipu evaluate {config} --checkpoint {run} --predictions "
        "predictions.csv"
    )
