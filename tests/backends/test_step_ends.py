"""The end of a GPU's host step in the time of the host, with events of a made-up GPU."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from helpers import backend_for, tiny_config

from vit_ipu.backends.native import transfers
from vit_ipu.backends.native.transfers import Anchor, PendingResult, recorded_event


class Gpu:
    """A GPU and a host with one clock, in seconds; `busy` is when the GPU will have done what it was asked for."""

    def __init__(self):
        self.now = self.busy = 100.0

    def event(self, enable_timing=False):
        assert enable_timing
        return Event(self)


class Event:
    def __init__(self, gpu):
        self.gpu = gpu

    def record(self):
        self.at = max(self.gpu.now, self.gpu.busy)

    def query(self):
        return self.gpu.now >= self.at

    def synchronize(self):
        self.gpu.now = max(self.gpu.now, self.at)

    def elapsed_time(self, later):
        assert self.query()
        assert later.query()
        return float(torch.tensor(1000 * (later.at - self.at)))  # float32, as CUDA has it


@pytest.fixture
def gpu(monkeypatch):
    made = Gpu()
    monkeypatch.setattr(transfers.torch.cuda, "Event", made.event)
    monkeypatch.setattr(transfers, "time", SimpleNamespace(monotonic=lambda: made.now))
    return made


def step(gpu, backend, seconds, loading):
    """Returns the result of a host step, made as train_step makes it, with the time at which it ends."""
    gpu.now += loading
    anchor = backend._renewed_anchor()
    gpu.busy = max(gpu.now, gpu.busy) + seconds
    result = PendingResult.__new__(PendingResult)
    result.__dict__.update(_event=recorded_event(), _anchor=anchor)
    return backend._pending(result), gpu.busy


@pytest.mark.parametrize(("seconds", "loading"), [(1.0, 0.01), (0.01, 1.0), (0.5, 0.5)])
def test_steps_end_when_the_gpu_has_made_them(gpu, seconds, loading):
    backend = backend_for(tiny_config(), "cpu")
    steps = [step(gpu, backend, seconds, loading) for _ in range(2000)]
    assert [result.ended_at for result, _ in steps] == pytest.approx([end for _, end in steps], abs=1e-3)


def test_an_anchor_is_new_when_the_gpu_has_waited_and_after_ten_minutes(gpu):
    backend = backend_for(tiny_config(), "cpu")
    anchors = []
    for seconds, loading in [(1.0, 0.0), (1.0, 0.0), (700.0, 0.0), (1.0, 0.0), (1.0, 0.0), (1.0, 900.0)]:
        result, _ = step(gpu, backend, seconds, loading)
        anchors.append(result._anchor.time)
    assert anchors == pytest.approx([100.0, 100.0, 100.0, 100.0, 802.0, 1703.0])


def test_reading_the_end_waits_for_the_gpu(gpu):
    anchor = Anchor.now()
    gpu.busy += 3.0
    result = PendingResult.__new__(PendingResult)
    result.__dict__.update(_event=recorded_event(), _anchor=anchor)
    assert not result.is_done
    assert result.ended_at == pytest.approx(103.0)
    assert result.is_done
    assert result.as_anchor().time == pytest.approx(103.0)
