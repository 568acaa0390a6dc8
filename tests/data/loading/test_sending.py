"""Jobs of worker processes beside a consumer that keeps Python's global lock, as PopTorch does during a host step."""

from __future__ import annotations

import ctypes
import time
import types

import pytest
import torch
from helpers import backend_for, tiny_config, write_image_folder
from worker_steps import buffers, folder_config, steps

from vit_ipu import simulator
from vit_ipu.backends.contract import Device, Instances
from vit_ipu.data.loading import sending, workers
from vit_ipu.data.loading.workers import WorkerPool
from vit_ipu.data.sources.registry import open_source
from vit_ipu.evaluate import evaluation_loader
from vit_ipu.runs.checkpoint import Progress
from vit_ipu.train import training_loader

SECONDS = 0.4


def note_time(buffer, start, entries):
    """Writes the time at which the job was begun as the labels of its images."""
    buffer.labels[start : start + len(entries)] = time.monotonic_ns()
    return []


def test_the_next_step_is_loaded_while_the_consumer_keeps_the_global_lock():
    step = ctypes.PyDLL(None).usleep  # unlike CDLL, PyDLL does not release the lock
    ended = None
    with WorkerPool(note_time, buffers(2), 5, sends_first=True) as pool:
        for filled in pool.filled(steps(5)):
            assert ended is None or filled.labels.max() < ended
            step(int(1e6 * SECONDS))
            ended = time.monotonic_ns()


def test_a_thread_that_does_not_send_is_not_waited_for_without_end(monkeypatch):
    monkeypatch.setattr(sending, "_LONGEST", 0.05)
    stuck = types.SimpleNamespace(_index_queues=[types.SimpleNamespace(_buffer=["a job"])])
    start = time.monotonic()
    sending.wait_until_sent(stuck)
    assert 0.05 <= time.monotonic() - start < 5


@pytest.mark.parametrize("blocks_threads", [False, True])
def test_jobs_are_sent_first_only_for_a_device_that_stops_threads(monkeypatch, tmp_path, blocks_threads):
    waited = []
    monkeypatch.setattr(workers, "wait_until_sent", waited.append)
    write_image_folder(tmp_path / "images", count=8)
    config = folder_config(tmp_path / "images", 1)
    backend = types.SimpleNamespace(
        blocks_threads=blocks_threads, instances=Instances(), float_format=torch.float32, samples_per_call=8
    )
    train, held_out = (open_source(config.data, config.model, split) for split in ("train", "eval"))
    training = training_loader(train, config, backend, Progress(), 2)
    for loader in (training, evaluation_loader(held_out, config, backend)):
        count = sum(1 for _ in loader)
        assert len(waited) == (count if blocks_threads else 0)
        waited.clear()


def test_only_poptorch_stops_threads():
    simulator.install()
    from vit_ipu.backends.ipu.executor import IpuBackend

    assert IpuBackend(tiny_config(), Device("ipu", "cpu")).blocks_threads
    assert not backend_for(tiny_config(), "ipu-sim").blocks_threads
    assert not backend_for(tiny_config(), "cpu").blocks_threads
