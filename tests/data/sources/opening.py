"""Opens the images of a source, and returns the notes that a user would read."""

from __future__ import annotations

from helpers import data_config

from vit_ipu.config import ModelConfig
from vit_ipu.data.sources.listing import ListingCache
from vit_ipu.data.sources.registry import open_source


def open_with_notes(path, split="train", source="imagefolder", **data):
    """Returns the images of two classes, and the notes on them."""
    notes = []
    model = ModelConfig(variant="vit_test", image_size=28, num_classes=2)
    config = data_config(source=source, path=str(path), **data)
    return open_source(config, model, split, cache=ListingCache(notify=notes.append)), notes


def notes_of(path, split="train", source="imagefolder", **data):
    return open_with_notes(path, split, source, **data)[1]
