"""Processes that load images where memory, files or threads run out, or the run is killed."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import threading

import pytest
import torch
from helpers import write_image_folder
from loading import ends
from other_process import run_python
from worker_steps import buffers, fill_by_workers, folder_config, steps, write_numbers

from vit_ipu.data.loading.buffers import Buffer
from vit_ipu.data.loading.loader import TrainingLoader
from vit_ipu.data.sources.registry import open_source
from vit_ipu.errors import RunFailed
from vit_ipu.pipeline import BatchPlan


def resident_kib(pid):
    with open(f"/proc/{pid}/statm") as status:
        return int(status.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


def test_memory_stays_flat_over_ten_epochs(tmp_path):
    """Measures the main process and each worker over a folder of images; the first two epochs fill the caches."""
    write_image_folder(tmp_path, count=24)
    config = folder_config(tmp_path, 2)
    source = open_source(config.data, config.model, "train")
    steps_per_epoch = len(source) // 8
    positions = BatchPlan.of(config).share(0, 1)
    loader = TrainingLoader(source, config, positions, start_step=0, total_steps=10 * steps_per_epoch)
    measured = []
    for step, _ in enumerate(loader):
        if step in (2 * steps_per_epoch, 10 * steps_per_epoch - 1):
            children = [process.pid for process in multiprocessing.active_children()]
            measured.append([resident_kib(pid) for pid in (os.getpid(), *children)])
    assert len(measured[0]) >= 3
    growth = [after - before for before, after in zip(*measured)]
    assert max(growth) < 8 * 1024, f"KiB: {growth}"


def test_too_little_shared_memory_is_reported(monkeypatch):
    def refuse(self):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", refuse)
    with pytest.raises(RunFailed, match="^no shared memory for a host step of 8 images: .*--shm-size.*left on device"):
        Buffer.of(8, 28, torch.uint8, shared=True)


STARVED = """
import multiprocessing, resource
from worker_steps import buffers, fill_by_workers, steps, write_numbers
from vit_ipu.errors import RunFailed
held = buffers(4)
list(fill_by_workers(steps(1), write_numbers, held, 1))  # so that everything is imported
resource.setrlimit(resource.RLIMIT_NOFILE, (len(__import__("os").listdir("/proc/self/fd")) + 20, 4096))
try:
    list(fill_by_workers(steps(4), write_numbers, held, 8))
except RunFailed as error:
    print(error, multiprocessing.active_children())
"""


def test_a_worker_that_cannot_be_started_is_an_error_and_leaves_no_process_behind():
    done = run_python(STARVED)
    assert done.stdout == (
        "cannot start 8 processes to load images: Too many open files; lower data.num_workers []\n"
    ), done.stderr
    assert done.stderr == ""


THREADLESS = """
import multiprocessing, multiprocessing.queues
from worker_steps import buffers, fill_by_workers, steps, write_numbers
from vit_ipu.errors import RunFailed
def refuse(self):
    raise RuntimeError("can't start new thread")  # as under `ulimit -u`
multiprocessing.queues.Queue._start_thread = refuse
try:
    list(fill_by_workers(steps(4), write_numbers, buffers(4), 3))
except RunFailed as error:
    print(error, multiprocessing.active_children())
"""


def test_a_thread_that_cannot_be_started_is_an_error_and_leaves_no_process_behind():
    done = run_python(THREADLESS)
    assert (done.stdout, done.stderr) == (
        "cannot start 3 processes to load images: can't start new thread; lower data.num_workers []\n",
        "",
    )


def test_workers_are_killed_if_no_thread_can_be_started_to_end_them(monkeypatch):
    filled = fill_by_workers(steps(4), write_numbers, buffers(2), 2)
    pids = set(next(filled).labels.tolist())

    def refuse(self):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as context:
        context.setattr(threading.Thread, "start", refuse)
        filled.close()
    assert all(ends(pid) for pid in pids)


def test_too_many_open_files_are_reported_as_such(monkeypatch):
    def refuse(self):
        raise RuntimeError(
            "unable to open shared memory object </torch_1> in read-write mode: Too many open files (24)"
        )

    monkeypatch.setattr(torch.Tensor, "share_memory_", refuse)
    with pytest.raises(
        RunFailed, match=r"^no shared memory for a host step of 8 images: Too many open files; .*ulimit"
    ):
        Buffer.of(8, 28, torch.uint8, shared=True)


KILLED = """
import fcntl, os, random, signal, sys, time
from worker_steps import buffers, fill_by_workers, steps, write_numbers
from vit_ipu.files import lock
random.seed(int(sys.argv[1]))
for _ in range(20):
    read, write = os.pipe()
    parent = os.fork()
    if parent == 0:
        os.close(read)
        held = open("lock", "a")
        assert lock(held)
        pids = set()
        for filled in fill_by_workers(steps(100000), write_numbers, buffers(3), 3):
            for pid in set(filled.labels.tolist()) - pids:
                pids.add(pid)
                os.write(write, b"%d " % pid)
        os._exit(1)
    os.close(write)
    pids = os.read(read, 100).split()
    time.sleep(0.1 * random.random())
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    began = time.monotonic()
    assert lock(open("lock", "a")), "the folder is still locked"
    while os.read(read, 100):  # all processes that hold the pipe must end
        pass
    os.close(read)
    print(f"{time.monotonic() - began:.2f}")
"""


def test_a_killed_run_is_unlocked_at_once_and_its_workers_end_with_it(tmp_path):
    done = run_python(KILLED, 3, timeout=120, cwd=str(tmp_path))
    assert done.returncode == 0, done.stderr
    seconds = sorted(map(float, done.stdout.split()))
    assert len(seconds) == 20
    assert seconds[10] < 1, seconds  # DataLoader alone needs up to five
    assert seconds[-1] < 4, seconds
