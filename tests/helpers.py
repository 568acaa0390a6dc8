"""Small configs, random batches, and measures of parity."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any, Dict, Sequence, Tuple

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

from vit_ipu.backends.build import build_backend, resolve_device
from vit_ipu.backends.contract import Backend, HostBatch
from vit_ipu.cli import app as cli
from vit_ipu.config import Config, DataConfig
from vit_ipu.config_file import parse_config
from vit_ipu.mixing import mixing_of_step
from vit_ipu.runs import logger

TINY: Dict[str, Dict[str, Any]] = {
    "model": {"variant": "vit_test", "image_size": 28, "num_classes": 10, "gelu": "tanh"},
    "data": {"source": "sample", "crop": "center", "num_train": 96, "num_eval": 50},
    "pipeline": {"global_batch_size": 32, "micro_batch_size": 4, "layers_per_ipu": [1, 1, 1, 1]},
    "precision": {"compute": "float32"},
    "optim": {"optimizer": "sgd", "learning_rate": 0.05},
    "run": {"updates": 4},
}


def tiny_values(**sections: Dict[str, Any]) -> Dict[str, Dict[str, Any]]:
    """Returns the values of a config that trains in a second, with some values changed."""
    return {name: dict(values, **sections.get(name, {})) for name, values in TINY.items()}


def tiny_config(**sections: Dict[str, Any]) -> Config:
    return parse_config(tiny_values(**sections))


def backend_for(config: Config, device: str) -> Backend:
    return build_backend(config, resolve_device(device))


def random_images(count: int, side: int = 28, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


def random_batch(config: Config, seed: int = 0) -> HostBatch:
    """Returns a host step of random images and labels, with the draws of host step `seed` if the config mixes."""
    count = config.pipeline.global_batch_size * config.pipeline.device_iterations
    generator = torch.Generator().manual_seed(seed + 1000)
    labels = torch.randint(config.model.num_classes, (count,), generator=generator)
    mixing = mixing_of_step(config, seed, np.arange(count))
    return HostBatch(random_images(count, config.model.image_size, seed), labels, mixing)


def with_random_head(weights: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """Returns the weights with a head that is not zero, so that every layer has a gradient from the first update on."""
    generator = torch.Generator().manual_seed(0)
    head = 0.1 * torch.randn(weights["head.weight"].shape, generator=generator)
    return dict(weights, **{"head.weight": head.to(weights["head.weight"].dtype)})


def relative_errors(
    a: Dict[str, Tensor], b: Dict[str, Tensor], *, leave_out_key_bias: bool = False
) -> Dict[str, float]:
    """Returns ||a - b|| / ||b|| of each tensor, optionally without qkv.bias's key third (true gradient: zero)."""
    assert set(a) == set(b)
    errors = {}
    for name in a:
        x, y = a[name].double(), b[name].double()
        if leave_out_key_bias and name.endswith("qkv.bias"):
            third = len(x) // 3
            x, y = (torch.cat([t[:third], t[2 * third :]]) for t in (x, y))
        errors[name] = float((x - y).norm() / y.norm().clamp(min=1e-12))
    return errors


def worst(errors: Dict[str, float]) -> float:
    return max(errors.values())


def equal_states(a: Any, b: Any) -> bool:
    """Tells whether two nested states are bit for bit the same."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and set(a) == set(b) and all(equal_states(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(equal_states(x, y) for x, y in zip(a, b))
    return bool(a == b)


def write_config(folder: Path, name: str = "tiny", **sections: Dict[str, Any]) -> str:
    """Writes a tiny config with some values changed, and returns its path."""
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(tiny_values(**sections)))
    return str(path)


def vit_ipu(monkeypatch: Any, capsys: Any, *arguments: Any) -> Tuple[int, str, str]:
    """Runs a command in this process; returns its exit code, and what it wrote to stdout and stderr."""
    monkeypatch.setattr(sys, "argv", ["vit-ipu", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    captured = capsys.readouterr()
    return caught.value.code or 0, captured.out, captured.err


def data_config(**values: Any) -> DataConfig:
    """Returns the data section of a config, by default with the source `sample`."""
    return DataConfig(**{"source": "sample", **values})


def write_image_folder(
    root: Path, splits: Sequence[str] = ("train", "val"), classes: Sequence[str] = ("cat", "dog"), count: int = 3
) -> None:
    """Writes small images of one color each to root/SPLIT/CLASS."""
    for split in splits:
        for label, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                color = (label * 80, index * 40, 7)
                Image.new("RGB", (30 + index, 40), color).save(str(root / split / name / f"{index}.png"))


def interrupted_after(monkeypatch, updates):
    """Stops the run in its `updates`-th host step, as Ctrl-C does."""
    original, steps = logger.RunLogger.step, []

    def step(self, *args):
        original(self, *args)
        steps.append(1)
        if len(steps) == updates:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(logger.RunLogger, "step", step)
