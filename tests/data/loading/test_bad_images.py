"""Images that cannot be read: they end a run, or are replaced, however many processes load."""

from __future__ import annotations

import pytest
import torch
from helpers import write_image_folder
from loaded_steps import copies, training_loader
from worker_steps import folder_config

from vit_ipu.data.loading.loader import EvaluationLoader
from vit_ipu.data.sources.registry import open_source
from vit_ipu.errors import DataError


@pytest.fixture
def folder(tmp_path):
    write_image_folder(tmp_path)
    (tmp_path / "train" / "dog" / "1.png").write_text("no image")
    (tmp_path / "val" / "dog" / "1.png").write_bytes(b"")
    return tmp_path


def train_batches(config):
    loader = training_loader(config)
    return [(batch.images, batch.labels) for batch in copies(loader)], loader


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_bad_image_ends_the_run_or_is_replaced_by_another(folder, num_workers):
    with pytest.raises(DataError, match=r"^cannot read the image .*dog/1.png: [^\n]*$"):
        train_batches(folder_config(folder, num_workers))
    batches, loader = train_batches(folder_config(folder, num_workers, on_error="skip"))
    assert [len(labels) for _, labels in batches] == [8] * 4
    assert len(loader.skipped) == 1
    assert "train/dog/1.png" in next(iter(loader.skipped))


def test_the_replacement_of_a_bad_image_does_not_depend_on_workers(folder):
    expected, _ = train_batches(folder_config(folder, 0, on_error="skip"))
    found, _ = train_batches(folder_config(folder, 3, on_error="skip"))
    assert all(torch.equal(a, b) and torch.equal(c, d) for (a, c), (b, d) in zip(expected, found))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_evaluation_leaves_a_bad_image_out(folder, num_workers):
    config = folder_config(folder, num_workers, on_error="skip")
    source = open_source(config.data, config.model, "eval")
    loader = EvaluationLoader(source, config)
    labels = torch.cat([batch.labels.clone() for batch in loader]).tolist()
    assert labels == [0, 0, 0, 1, 1]  # the second dog is missing
    assert len(loader.skipped) == 1


def test_a_folder_without_a_readable_image_fails_rather_than_trying_for_ever(folder):
    for path in (folder / "train").rglob("*.png"):
        path.write_text("no image")
    with pytest.raises(DataError, match="100 images one after the other could not be read, the last: cannot read"):
        train_batches(folder_config(folder, 0, on_error="skip"))
