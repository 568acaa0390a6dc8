"""Fixtures for the tests of commands: a folder with pictures and weights."""

from __future__ import annotations

import os
import shutil

import pytest
from helpers import write_image_folder
from starting_material import CLASSES, write_weights


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    root = tmp_path_factory.mktemp("material")
    write_image_folder(root, splits=["pictures"], classes=CLASSES, count=12)
    write_image_folder(root / "divided", classes=CLASSES, count=4)
    write_weights(root / "vit.safetensors")
    return root


@pytest.fixture
def folder(material, empty_folder):
    """Changes into a folder with pictures (12 of 3 classes), divided (train and val) and vit.safetensors."""
    for entry in material.iterdir():
        if entry.is_dir():
            shutil.copytree(str(entry), entry.name)
        else:
            os.link(str(entry), entry.name)
    return empty_folder
