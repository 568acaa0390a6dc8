"""The planner's predictions beside published figures: rows that a constant is fitted to, and rows that are not.

Run: python benchmarks/planner_vs_published.py [--record]. It needs no IPU and takes seconds. The fitted rows are in
vit_ipu/planner/calibration.py and are predicted leave-one-out; the rows here are never fitted. A BERT has the same
encoder block, so the same formulas predict it; its shapes are those of graphcore/examples (nlp/bert, commit 09b7c672).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Sequence

from command import run_command

from vit_ipu.planner.calibration import FITTED_ROWS, HALF_IMAGES, PublishedRow, images_per_second, leave_one_out
from vit_ipu.planner.hardware import BOW, HARDWARE
from vit_ipu.planner.products import Formats, Product
from vit_ipu.planner.time import OPTIMIZER_PASSES, ring_seconds, seconds_of_work, step_seconds
from vit_ipu.planner.work import Block, Work, block_work

ROOT = Path(__file__).parents[1]
VOCABULARY = 30522
LAMB_BYTES = 8
"""Bytes of LAMB's or Adam's float32 moments of a parameter."""


class Bert(NamedTuple):
    """A published BERT training on Bow IPUs. `packing`: sequences in a sample; a dense head has few masked tokens."""

    title: str
    published: float
    block: Block
    layers: Sequence[int]
    micro_batch: int
    accumulation: int
    replicas: int
    masked: int
    packing: float = 1.0
    proportion: float = 0.25
    head_on_first: bool = True
    off_chip: bool = True
    sharded: bool = True


def base(tokens: int) -> Block:
    return Block(tokens, 768, 12, 3072, dropout=True)


def large(tokens: int, *, attention_dropout: bool = False) -> Block:
    return Block(tokens, 1024, 16, 4096, dropout=True, attention_dropout=attention_dropout)


BASE, LARGE, SQUAD = (0, 4, 4, 4), (3, 7, 7, 7), (2, 3, 3, 3, 3, 3, 3, 4)
BERTS = (
    Bert("BERT-base 128, PyTorch, Pod16", 15911, base(128), BASE, 32, 512, 4, 20),
    Bert("BERT-base 128, PopART, Pod16", 16391, base(128), BASE, 32, 512, 4, 20, proportion=0.28),
    Bert("BERT-base 128, TF2, Pod16", 15173, base(128), BASE, 32, 510, 4, 20, proportion=0.28, sharded=False),
    Bert("BERT-base 512, PopART, Pod16", 3656, base(512), BASE, 8, 512, 4, 76, proportion=0.28),
    Bert("BERT-base 384, TF2, Pod16", 4387, base(384), BASE, 8, 510, 4, 56, proportion=0.28, sharded=False),
    Bert("BERT-large 128 packed, PyTorch, Pod16", 5600, large(128), LARGE, 8, 1752, 4, 22, packing=1.17),
    Bert("BERT-large 128 packed, PyTorch, Pod64", 18442, large(128), LARGE, 8, 438, 16, 22, packing=1.17),
    Bert("BERT-large 128 packed, PopART, Pod16", 6044, large(128), LARGE, 8, 1712, 4, 22, packing=65536 / 54784),
    Bert("BERT-large 128 packed, PopART, Pod64", 22759, large(128), LARGE, 8, 428, 16, 22, packing=65536 / 54784),
    Bert("BERT-large 128, TF2, Pod16", 4527, large(128), LARGE, 8, 2040, 4, 20, sharded=False),
    Bert("BERT-large 512 packed, PyTorch, Pod16", 1973, large(512), LARGE, 2, 1024, 4, 78, packing=2, proportion=0.15),
    Bert("BERT-large 512 packed, PyTorch, Pod64", 6543, large(512), LARGE, 2, 256, 16, 78, packing=2, proportion=0.19),
    Bert(
        "BERT-large SQuAD 384, PopART, Pod16",
        1183,
        large(384, attention_dropout=True),
        SQUAD,
        4,
        32,
        2,
        0,
        proportion=0.34,
        head_on_first=False,
        off_chip=False,
    ),
    Bert(
        "BERT-large SQuAD 384, PyTorch, Pod16",
        1009,
        large(384, attention_dropout=True),
        SQUAD,
        4,
        32,
        2,
        0,
        proportion=0.36,
        head_on_first=False,
        off_chip=False,
    ),
)
UNCLEAR_BERTS = (
    # the published batch of 66,560 is not that of the stored config (4 x 1020 x 16), whose micro-batch is taken here
    Bert("BERT-large 128, TF2, Pod64", 18199, large(128), LARGE, 4, 1040, 16, 20, sharded=False, proportion=0.18),
)
OTHER_VITS = (
    PublishedRow(
        "ViT-B/16 pre-training, Bow Pod64, before SDK 2.5",
        "bow",
        "graphcore_vit_base_patch16_pretrain_lamb_pod64",
        ("pipeline.micro_batch_size=12", "pipeline.global_batch_size=65472"),
        31200,
        "graphcore.cn; the job is not stated: micro-batch 12 and accumulation 341 are those of an older README",
    ),
)
CHEST = PublishedRow(
    "ViT-B/16 ChestX-ray14, 4 IPUs, micro-batch 1",
    "gc200",
    "graphcore_vit_base_patch16_imagenet_pod4",
    (
        "pipeline.micro_batch_size=1",
        "pipeline.global_batch_size=128",
        "pipeline.device_iterations=1",
        *HALF_IMAGES,
    ),
    307.7,
    "graphcore/examples tutorials vit_model_training; includes decoding on the host, so IPUs alone are faster",
)


def sequences_per_second(bert: Bert) -> float:
    """Returns the predicted sequences per second of a BERT on Bow IPUs."""
    pipelined_ipus = len(bert.layers)
    stages = pipelined_ipus + bert.head_on_first
    cycle = max(_ipu_seconds(bert, ipu) for ipu in range(pipelined_ipus))
    parameters: float = max(bert.layers) * bert.block.num_parameters
    ring = ring_seconds(parameters * 4, bert.replicas, pipelined_ipus * bert.replicas, BOW)
    shared = parameters / bert.replicas if bert.sharded else parameters
    step = step_seconds(shared, OPTIMIZER_PASSES["lamb"], LAMB_BYTES if bert.off_chip else 0, BOW)
    seconds = (bert.accumulation + 2 * stages - 2) * cycle + ring + step
    return bert.micro_batch * bert.accumulation * bert.replicas * bert.packing / seconds


def _ipu_seconds(bert: Bert, ipu: int) -> float:
    """Returns the seconds of an IPU in a cycle: its layers, and on the first one the embedding and the masked tokens'
    classifier, which the last stage does not compute again."""
    forward, backward = block_work(bert.block, bert.micro_batch)
    is_last = ipu == len(bert.layers) - 1 and not bert.head_on_first
    layer = Work().plus(forward, backward, *([] if is_last else [forward]))
    work = Work(elements=max(bert.layers) * bert.block.num_parameters).plus(*[layer] * bert.layers[ipu])
    if ipu == 0 and bert.masked:
        head = Product(1, bert.micro_batch * bert.masked, VOCABULARY, bert.block.width)
        work = work.plus(Work((head, *head.gradients()), 12 * head.rows * VOCABULARY, 30))
    stream = bert.micro_batch * bert.block.tokens * bert.block.width * 2
    chip = seconds_of_work(work, Formats(2, 2, bert.proportion), BOW)
    return sum(chip.values()) + stream / BOW.neighbour_bytes_per_second


def dino_images_per_second(replicas: int, accumulation: int) -> float:
    """Returns DINO's predicted images per second: ViT-B/16 on 8 Bow IPUs with at most 2 blocks each, micro-batch 2.

    Student: 2 views of 224 pixels and 8 of 96; teacher: the 2 large views forward (vision/dino/pytorch/configs.yml).
    """
    size = 2
    work = Work(elements=2 * Block(197, 768, 12, 3072).num_parameters)
    for tokens, views, teaches in ((197, 2, True), (37, 8, False)):
        forward, backward = block_work(Block(tokens, 768, 12, 3072), size * views)
        work = work.plus(*[forward, forward, backward, *([forward] if teaches else [])] * 2)
    cycle = sum(seconds_of_work(work, Formats(2, 2, 0.6), BOW).values())
    samples = size * accumulation * replicas
    return samples / (cycle * (accumulation + 2 * 8 - 2))


def compare() -> List[Dict[str, Any]]:
    """Returns a row for each published figure: how the prediction was made, and its relative error."""
    rows = [_row(row.title, "fitted: left out", row.images_per_second, leave_one_out(row)) for row in FITTED_ROWS]
    rows += [_row(bert.title, "not fitted: BERT", bert.published, sequences_per_second(bert)) for bert in BERTS]
    unclear = "not fitted: config not stated"
    rows += [_row(bert.title, unclear, bert.published, sequences_per_second(bert)) for bert in UNCLEAR_BERTS]
    for row in OTHER_VITS:
        found = images_per_second(row.config, HARDWARE[row.hardware])
        rows.append(_row(row.title, unclear, row.images_per_second, found))
    for title, published, replicas, accumulation in (("Pod16", 681, 2, 800), ("Pod64", 3217, 8, 200)):
        found = dino_images_per_second(replicas, accumulation)
        rows.append(_row(f"DINO ViT-B/16, Bow {title}", "not fitted: DINO", published, found))
    found = images_per_second(CHEST.config, HARDWARE[CHEST.hardware])
    rows.append(_row(CHEST.title, "not fitted: bound by the host", CHEST.images_per_second, found))
    return rows


def _row(title: str, kind: str, published: float, predicted: float) -> Dict[str, Any]:
    return {
        "title": title,
        "kind": kind,
        "published": published,
        "predicted": round(predicted, 1),
        "error": round(predicted / published - 1, 4),
    }


def summary(rows: Sequence[Dict[str, Any]]) -> Dict[str, float]:
    """Returns the largest and the mean absolute error of the fitted rows, left out, and of the BERT rows."""
    found = {}
    for name, kind in (("vit_left_out", "fitted: left out"), ("bert", "not fitted: BERT")):
        errors = [abs(row["error"]) for row in rows if row["kind"] == kind]
        found[f"{name}_largest"] = round(max(errors), 4)
        found[f"{name}_mean"] = round(sum(errors) / len(errors), 4)
    return found


def table(rows: Sequence[Dict[str, Any]]) -> List[str]:
    """Returns the rows as a table in markdown."""
    lines = ["| job | kind of row | published /s | predicted /s | predicted over published |", "|---|---|---|---|---|"]
    for row in rows:
        error = f"{100 * row['error']:+.1f} %"
        lines.append(f"| {row['title']} | {row['kind']} | {row['published']:,} | {row['predicted']:,.0f} | {error} |")
    return lines


def write(rows: Sequence[Dict[str, Any]], folder: Path) -> Path:
    """Writes the record and returns its path."""
    commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    path = folder / f"{time.strftime('%Y-%m-%d')}_planner-vs-published.md"
    constants = ", ".join(f"{hardware.name} {hardware.fitted_share}" for hardware in HARDWARE.values())
    lines = [
        "# Predicted against published throughput",
        "",
        "**Predicted: nothing in this table was measured by this project.** The published figures are of others.",
        "",
        f"- commit: {commit.stdout.strip() or 'unknown'}",
        "- command: `python benchmarks/planner_vs_published.py --record`",
        f"- fitted constants (share of the modelled speed): {constants}",
        "",
        *table(rows),
        "",
        "Images or sequences per second in training. docs/planner.md explains the errors.",
        "",
        "```json",
        json.dumps(dict(summary(rows), rows=rows), indent=1),
        "```",
        "",
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="write benchmarks/records/DATE_planner-vs-published.md")
    arguments = parser.parse_args()
    rows = compare()
    print("\n".join(table(rows)))
    if arguments.record:
        print(f"record {write(rows, Path(__file__).parent / 'records')}")
    print(json.dumps(dict(summary(rows), predicted=True)))


if __name__ == "__main__":
    run_command(main)
