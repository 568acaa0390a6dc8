"""When a run ends before its last update: after evaluations that were not better than the best one."""

from __future__ import annotations

from typing import Any, Dict, Optional, Sequence

from vit_ipu.config import RunConfig

KEYS = {"top1": "top1", "top5": "top5", "loss": "evaluation_loss"}
"""Key of each measure in metrics.jsonl."""


def stops_early(evaluations: Sequence[Dict[str, Any]], config: RunConfig) -> bool:
    """Tells whether the run ends after these evaluations, which are lines of metrics.jsonl, in order.

    The rule needs nothing but the evaluations, so a resumed run decides as an uninterrupted one does.
    """
    if config.early_stopping is None:
        return False
    sign = -1 if config.keep_best == "loss" else 1
    best: Optional[float] = None
    num_worse = 0
    for line in evaluations:
        value = sign * line[KEYS[config.keep_best or "top1"]]
        if best is None or value > best + config.early_stopping_margin:
            best, num_worse = value, 0
        else:
            num_worse += 1
        if num_worse >= config.early_stopping:
            return True
    return False
