"""Converts a checkpoint to another format; an export for the hub has a model card of its run, and can be uploaded."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, Dict, List, Optional

from vit_ipu.errors import UserError
from vit_ipu.runs.folder import RunFolder
from vit_ipu.runs.last_evaluation import read_last_evaluation
from vit_ipu.runs.metrics import read_metrics
from vit_ipu.text import Notify
from vit_ipu.weights import export
from vit_ipu.weights.hub_upload import HubUpload
from vit_ipu.weights.model_card import Results, RunFacts
from vit_ipu.weights.native import best_update, checkpoints_in, update_of
from vit_ipu.weights.read import Weights


def convert(
    source: str,
    target: Path,
    to: str,
    *,
    sha256: Optional[str] = None,
    trust_pickle: bool = False,
    num_heads: Optional[int] = None,
    features: bool = False,
    push: Optional[str] = None,
    private: bool = False,
    notify: Notify,
) -> Weights:
    """Writes the weights of `source` to `target` in the format `to`; returns the weights read.

    A folder for transformers or timm has a model card with what the run folder of the checkpoint states. `push`,
    OWNER/NAME, then uploads an export for transformers to this repository of the Hugging Face Hub, a new one or an
    empty one; `private` makes a new one private. The hub is asked before anything is written. Raises UserError as
    `weights.export.convert` does and for a hub that cannot be reached or refuses, and RunFailed if the upload fails;
    the target then stays.
    """
    upload = None
    if private and push is None:
        raise UserError("--private is for --push OWNER/NAME: give both")
    if push is not None:
        upload = HubUpload.prepare(push, to, private=private)
        export.check_target(target, to, features)
        upload.connect()
    options: Dict[str, Any] = {"sha256": sha256, "trust_pickle": trust_pickle, "num_heads": num_heads}
    weights = export.convert(
        source, target, to, features=features, facts_of=run_facts, card_name=push, notify=notify, **options
    )
    if upload is not None:
        notify(f"uploading {target} to {upload.address}")
        upload.send(target)
    return weights


def run_facts(checkpoint: Path) -> RunFacts:
    """Returns what the run folder around a checkpoint states about it; nothing for other weights.

    A file of the run that is missing or damaged is left out: the weights can be exported without it.
    """
    if checkpoint.parent.name != "checkpoints" or checkpoint not in checkpoints_in(checkpoint.parent):
        return RunFacts()
    folder, update = RunFolder(checkpoint.parent.parent), update_of(checkpoint)
    return RunFacts(update, _results(folder, update), tuple(_environments(folder)))


def _results(folder: RunFolder, update: int) -> Optional[Results]:
    """Returns the evaluation at an update; None if there was none."""
    with suppress(OSError, ValueError):
        lines = [line for line in read_metrics(folder.metrics) if "top1" in line]
        num_chosen_from = sum(line["update"] > 0 for line in lines)  # there is no checkpoint of update 0
        best_of = num_chosen_from if best_update(folder.path) == update else None
        for line in lines:
            if line["update"] == update:
                count = line.get("evaluation_images") or _num_images(folder, lines)
                return Results(line["top1"], line["top5"], line["evaluation_loss"], count, best_of)
    return None


def _num_images(folder: RunFolder, lines: List[Dict[str, Any]]) -> Optional[int]:
    """Returns the number of all held-out images; None if the last evaluation skipped some or counted no confusions."""
    try:
        last = read_last_evaluation(folder)
    except UserError:  # missing or damaged
        return None
    if not last.confusion or "evaluation_images" in lines[-1]:
        return None
    return sum(count for _, _, count in last.confusion)


def _environments(folder: RunFolder) -> List[Dict[str, Any]]:
    """Returns the environments of the first start and of each resume; none if the file is missing or damaged."""
    try:
        first = folder.read_environment()
    except (UserError, OSError):
        return []
    found = [first, *(first.get("resumed") or [])] if isinstance(first.get("resumed", []), list) else [first]
    return found if all(_is_complete(environment) for environment in found) else []


def _is_complete(environment: Any) -> bool:
    keys = {"hardware", "compute", "simulated", "versions", "vit_ipu", "python"}
    return isinstance(environment, dict) and keys <= set(environment) and isinstance(environment["versions"], dict)
