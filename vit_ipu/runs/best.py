"""The checkpoint of a run's best evaluation, which is kept beside the newest ones, and best.json, which names it."""

from __future__ import annotations

import json
from typing import Any, Dict, Optional, Sequence

from vit_ipu.files import remove, write_whole
from vit_ipu.runs.early_stopping import KEYS
from vit_ipu.runs.folder import RunFolder
from vit_ipu.weights.native import checkpoints_in, update_of


class BestCheckpoint:
    """The best of the evaluations in metrics.jsonl that have a checkpoint; so it is the same after a resume."""

    def __init__(self, folder: RunFolder, measure: Optional[str], evaluations: Sequence[Dict[str, Any]]) -> None:
        """Finds the best one so far; `measure` is top1, top5 or loss, or None to keep none."""
        self._folder, self._measure = folder, measure
        self.kept: Optional[int] = None
        """Update of the checkpoint to keep."""
        self.find(evaluations)

    def find(self, evaluations: Sequence[Dict[str, Any]]) -> None:
        """Finds the best of the evaluations, which are lines of metrics.jsonl, or the first of equal ones.

        Writes best.json.
        """
        paths = {update_of(path): path for path in checkpoints_in(self._folder.checkpoints)}
        values = {
            line["update"]: line[KEYS[self._measure]]
            for line in evaluations
            if self._measure is not None and line["update"] in paths
        }
        if not values:
            self.kept = None
            remove(self._folder.best)
            return
        self.kept = (min if self._measure == "loss" else max)(values, key=values.__getitem__)
        path = paths[self.kept].relative_to(self._folder.path)
        best = {"checkpoint": str(path), "update": self.kept, self._measure: values[self.kept]}
        write_whole(self._folder.best, json.dumps(best, indent=1))
