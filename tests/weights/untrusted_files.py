"""Weights and archives that tests of untrusted files write, and the check that a file is refused."""

from __future__ import annotations

import os
import zipfile

import pytest
import torch

from vit_ipu.errors import CheckpointError
from vit_ipu.weights.tensor_files import read_tensors

WEIGHTS = {
    "cls_token": torch.linspace(-1, 1, 6).reshape(1, 1, 6),
    "blocks.0.norm1.weight": torch.tensor([1.5, 2.5], dtype=torch.float16),
    "head.weight": torch.tensor([[3.0, -4.0]], dtype=torch.bfloat16),
    "head.bias": torch.tensor(5.0, dtype=torch.float64),
}


def refused(path, message, **options):
    """Asserts that the file is refused in one printable line that begins with its path; returns the line."""
    with pytest.raises(CheckpointError, match=message) as caught:
        read_tensors(path, **options)
    line = str(caught.value)
    assert line.startswith(f"cannot read {path}: ")
    assert line.isprintable()
    return line


def written(path, content):
    path.write_bytes(content)
    return path


def zipped(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(str(path), "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


class Touch:
    """An object whose pickle creates a file when an unsafe reader loads it."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def saved(path, value, **options):
    torch.save(value, str(path), **options)
    return path


def legacy(path, value):
    """Writes the format of torch before 1.6, in which mmpretrain publishes its weights."""
    return saved(path, value, _use_new_zipfile_serialization=False)
