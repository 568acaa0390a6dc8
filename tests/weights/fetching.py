"""A file to fetch, and the check that a source is refused."""

from __future__ import annotations

import hashlib

import pytest

from vit_ipu.errors import CheckpointError
from vit_ipu.weights.fetch import locate

CONTENT = b"weights" * 300_000
SIZE = len(CONTENT)
PIN = hashlib.sha256(CONTENT).hexdigest()
OTHER = "0" * 64
URL = "https://example.org/models/vit.safetensors"


def refused(source, message, **options):
    with pytest.raises(CheckpointError, match=message) as caught:
        locate(source, **options)
    assert "\n" not in str(caught.value)


def written(path, content=CONTENT):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def linked(folder, name, target):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).symlink_to(target)
    return folder / name
