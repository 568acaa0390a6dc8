"""Steps, buffers and configs for tests of the processes that load images."""

from __future__ import annotations

import os

import torch
from helpers import tiny_config

from vit_ipu.data.loading.buffers import Buffer
from vit_ipu.data.loading.workers import WorkerPool


def buffers(count, size=40):
    return [Buffer.of(size, 2, torch.uint8, shared=True) for _ in range(count)]


def write_numbers(buffer, start, entries):
    """Fills each image with its index and each label with the id of the process."""
    for place, (_, index) in enumerate(entries, start):
        buffer.images[place] = index % 251
        buffer.labels[place] = os.getpid()
    return [f"{index} is odd" for _, index in entries if index == 7]


def fill_by_workers(steps, fill, buffers, num_workers, *, page_lock=True):
    """Yields the steps, loaded by processes that end with the last step."""
    with WorkerPool(fill, buffers, num_workers, page_lock=page_lock) as pool:
        yield from pool.filled(steps)


def steps(count, size=40):
    return [[(0, step * size + i) for i in range(size)] for step in range(count)]


def folder_config(folder, num_workers, **data):
    data = {"source": "imagefolder", "path": str(folder), "num_workers": num_workers, "num_train": None, **data}
    return tiny_config(data=dict(data, num_eval=None), model={"num_classes": 2}, pipeline={"global_batch_size": 8})
