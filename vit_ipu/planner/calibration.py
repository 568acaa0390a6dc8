"""Published ViT throughputs, and the fit of each kind of IPU's only constant to them.

The rows are the published figures of ViTs whose config is known; other published figures are only predicted
(`benchmarks/planner_vs_published.py`), never fitted.
"""

from __future__ import annotations

from dataclasses import replace
from math import exp, log
from typing import NamedTuple, Sequence, Tuple

from vit_ipu.config import Config
from vit_ipu.config_file import load_config
from vit_ipu.planner.hardware import HARDWARE, Hardware
from vit_ipu.planner.time import update_time


class PublishedRow(NamedTuple):
    """A published throughput in training, in images per second, of a shipped config with changes."""

    title: str
    hardware: str
    config_name: str
    overrides: Tuple[str, ...]
    images_per_second: float
    source: str

    @property
    def config(self) -> Config:
        return load_config(self.config_name, self.overrides)


HALF_IMAGES = ("data.transfer=float32",)
"""The program of the published figure sent images in float16, which the host had normalised."""
FITTED_ROWS = (
    PublishedRow(
        "mmclassification ViT-B/16 fine-tune, POD16",
        "gc200",
        "mmcls_vit_base_patch16_finetune_224_ipu",
        HALF_IMAGES,
        5600,
        "mmclassification 0.x, demo/ipu_train_example.sh; ToHalf in the config's pipeline",
    ),
    PublishedRow(
        "graphcore ViT-B/16 fine-tune, Bow Pod16",
        "bow",
        "graphcore_vit_base_patch16_imagenet_pod16",
        HALF_IMAGES,
        7319,
        "graphcore.cn/performance-results, SDK 3.0; graphcore/examples configs.yml, b16_imagenet1k (byteio off)",
    ),
    PublishedRow(
        "graphcore ViT-B/16 pre-training, Bow Pod16",
        "bow",
        "graphcore_vit_base_patch16_pretrain_lamb_pod16",
        (),
        7615,
        "graphcore.cn/performance-results, SDK 3.0; benchmarks.yml, lamb_pretrain_gen_pod16 (batch 65,536)",
    ),
    PublishedRow(
        "graphcore ViT-B/16 pre-training, Bow Pod64",
        "bow",
        "graphcore_vit_base_patch16_pretrain_lamb_pod64",
        (),
        27868,
        "graphcore.cn/performance-results, SDK 3.0; benchmarks.yml, lamb_pretrain_gen_pod64 (batch 65,536)",
    ),
)
"""The only figures that constants are fitted to."""
PUBLISHED_TO_PREDICTED = (0.9, 1.55)
"""Range of published over predicted throughput in all ViT and BERT rows of benchmarks/planner_vs_published.py whose
config is known, rounded outward: the interval of a prediction."""


def images_per_second(config: Config, hardware: Hardware) -> float:
    """Returns the predicted throughput of training."""
    return config.pipeline.global_batch_size / update_time(config, hardware).total


def share_of(row: PublishedRow, hardware: Hardware) -> float:
    """Returns the share with which the model predicts a row's figure exactly.

    The time of an update is A / share + B: A is work on the chip, B the links and the host.
    """
    config = row.config
    at_1, at_half = (update_time(config, replace(hardware, fitted_share=share)).total for share in (1.0, 0.5))
    on_chip = at_half - at_1
    elsewhere = at_1 - on_chip
    return on_chip / (config.pipeline.global_batch_size / row.images_per_second - elsewhere)


def fitted_share(hardware: Hardware, rows: Sequence[PublishedRow] = FITTED_ROWS) -> float:
    """Returns the share of a kind of IPU: the geometric mean of its rows' shares, or of all rows if it has none."""
    own = [row for row in rows if row.hardware == hardware.name] or list(rows)
    logs = [log(share_of(row, HARDWARE[row.hardware])) for row in own]
    return exp(sum(logs) / len(logs))


def leave_one_out(row: PublishedRow) -> float:
    """Returns the prediction of a fitted row, in images per second, with the share fitted to the other rows."""
    hardware = HARDWARE[row.hardware]
    others = [other for other in FITTED_ROWS if other is not row]
    return images_per_second(row.config, replace(hardware, fitted_share=fitted_share(hardware, others)))


def interval(images: float) -> Tuple[float, float]:
    """Returns the lowest and the highest throughput that the comparison with published figures allows."""
    low, high = PUBLISHED_TO_PREDICTED
    return images * low, images * high
