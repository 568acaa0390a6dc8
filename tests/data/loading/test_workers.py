"""Processes that load images: in order, through few buffers, and without hanging."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import subprocess
import sys
import threading
import time
from unittest import mock

import pytest
import torch
from loading import ends
from worker_steps import buffers, fill_by_workers, steps, write_numbers

from vit_ipu.data.loading import buffers as buffers_module
from vit_ipu.data.loading import workers
from vit_ipu.data.loading.workers import fill_in_process
from vit_ipu.errors import DataError, RunFailed


@pytest.mark.parametrize("num_buffers", [2, 3, 5])
@pytest.mark.parametrize("num_workers", [1, 3])
def test_steps_come_in_order_through_few_buffers(num_buffers, num_workers):
    found = []
    for filled in fill_by_workers(steps(9), write_numbers, buffers(num_buffers), num_workers):
        found.append(filled.images[:, 0, 0, 0].tolist())
        assert filled.skipped == (["7 is odd"] if len(found) == 1 else [])
    assert found == [[(step * 40 + i) % 251 for i in range(40)] for step in range(9)]


def test_the_last_step_may_be_smaller_and_there_may_be_no_steps():
    found = [len(f.labels) for f in fill_by_workers([*steps(1), steps(1)[0][:3]], write_numbers, buffers(2), 2)]
    assert found == [40, 3]
    assert list(fill_by_workers([], write_numbers, buffers(2), 2)) == []
    assert [len(f.labels) for f in fill_in_process(steps(2, 5), write_numbers, lambda n: buffers(1, n)[0])] == [5, 5]


def test_buffers_are_page_locked_while_a_process_with_a_gpu_loads(monkeypatch):
    class Runtime:
        """A fake CUDA runtime that records page-locked buffers, and refuses the last buffer."""

        def __init__(self, last):
            self.locked, self.last = {}, last

        def cudaHostRegister(self, address, size, flags):
            if address == self.last:
                return 1
            self.locked[address] = size
            return 0

        def cudaHostUnregister(self, address):
            del self.locked[address]

    found = buffers(3)
    runtime = Runtime(found[2].images.data_ptr())
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    cleared = []
    monkeypatch.setattr(buffers_module, "_clear_cuda_error", lambda: cleared.append(1))
    expected = {buffer.images.data_ptr(): buffer.images.numpy().nbytes for buffer in found[:2]}
    for _ in fill_by_workers(steps(3), write_numbers, found, 1):
        assert runtime.locked == expected
    assert runtime.locked == {}
    assert cleared == [1]
    for _ in fill_by_workers(steps(1), write_numbers, found, 1, page_lock=False):
        assert runtime.locked == {}


def test_closing_can_be_repeated_after_an_interrupt(monkeypatch):
    pool = workers.WorkerPool(write_numbers, buffers(2), 2)
    filled = pool.filled(steps(2))
    next(filled)
    processes = list(pool._processes)
    assert len(processes) == 2
    with monkeypatch.context() as context:
        context.setattr(threading.Thread, "join", mock.Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            pool.close()
    pool.close()
    # is_alive() may be late here: DataLoader's thread, which the interrupt left running, collects the exit codes too
    assert len(multiprocessing.connection.wait([process.sentinel for process in processes], timeout=0)) == 2
    pool.close()


def test_a_pool_keeps_its_processes_for_the_next_series():
    with workers.WorkerPool(write_numbers, buffers(3), 2) as pool:
        for length in (5, 1, 4):
            found = [filled.images[:, 0, 0, 0].tolist() for filled in pool.filled(steps(length))]
            assert found == [[(step * 40 + i) % 251 for i in range(40)] for step in range(length)]
            processes = list(pool._processes)
            assert processes == pool._processes
            assert [process.is_alive() for process in processes] == [True, True]
        first = processes[0].pid
        assert list(pool.filled(steps(0))) == []
        assert pool._processes[0].pid == first
    assert pool.is_closed
    assert len(multiprocessing.connection.wait([process.sentinel for process in processes], timeout=0)) == 2


def test_a_pool_whose_series_is_not_taken_to_its_end_is_closed():
    pool = workers.WorkerPool(write_numbers, buffers(2), 1)
    filled = pool.filled(steps(9))
    next(filled)
    filled.close()
    assert pool.is_closed


def test_a_series_is_refused_before_the_end_of_the_one_before():
    pool = workers.WorkerPool(write_numbers, buffers(2), 1)
    first = pool.filled(steps(9))
    next(first)
    assert not pool.can_continue
    with pytest.raises(RuntimeError, match="^another series of steps is unfinished: take it to its end first, or use"):
        next(pool.filled(steps(9)))
    assert pool.is_closed
    for filled in (first, pool.filled(steps(9))):
        with pytest.raises(RuntimeError, match="^the processes that load images were stopped, .*: ask for the images "):
            next(filled)


def test_the_death_of_a_worker_between_two_series_is_told():
    with workers.WorkerPool(write_numbers, buffers(2), 1) as pool:
        list(pool.filled(steps(2)))
        pool._processes[0].kill()
        pool._processes[0].join()
        with pytest.raises(RunFailed, match=r"^a process that loads images died \(exit code -9\): out of memory\?"):
            list(pool.filled(steps(2)))
        assert pool.is_closed


def test_every_worker_fills_images():
    def slowly(buffer, start, entries):
        time.sleep(0.05)
        return write_numbers(buffer, start, entries)

    pids = set()
    for filled in fill_by_workers(steps(3, 160), slowly, buffers(2, 160), 3):
        pids |= set(filled.labels.tolist())
    assert len(pids) == 3
    assert os.getpid() not in pids


def test_as_many_steps_as_there_are_buffers_are_filled_while_one_is_consumed():
    count = multiprocessing.Value("i", 0)

    def counted(buffer, start, entries):
        with count.get_lock():
            count.value += len(entries)
        return write_numbers(buffer, start, entries)

    filled = fill_by_workers(steps(6), counted, buffers(3), 1)
    next(filled)
    deadline = time.monotonic() + 30
    while count.value < 3 * 40 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    assert count.value == 3 * 40
    filled.close()


@pytest.mark.parametrize("num_workers", [1, 3])
def test_the_order_of_what_is_skipped_and_the_first_error_do_not_depend_on_workers(monkeypatch, num_workers):
    def skip(buffer, start, entries):
        time.sleep(0.2 if start == 0 else 0)  # the first job is done last
        return [str(entries[0][1])]

    def fail(buffer, start, entries):
        time.sleep(0.2 if start == 0 else 0)
        raise DataError(f"cannot read the image {entries[0][1]}")

    monkeypatch.setattr(workers, "JOB_SIZES", (10, 10))
    filled = fill_by_workers(steps(1), skip, buffers(2), num_workers)
    assert next(filled).skipped == ["0", "10", "20", "30"]
    filled.close()
    with pytest.raises(DataError, match="^cannot read the image 0$"):
        next(fill_by_workers(steps(1), fail, buffers(2), num_workers))


def test_an_error_is_raised_at_its_step():
    def fail_at_100(buffer, start, entries):
        if any(index == 100 for _, index in entries):
            raise DataError("cannot read the image 100")
        return write_numbers(buffer, start, entries)

    filled = fill_by_workers(steps(5), fail_at_100, buffers(4), 2)
    assert [next(filled).images[0, 0, 0, 0].item() for _ in range(2)] == [0, 40]
    with pytest.raises(DataError, match="^cannot read the image 100$"):
        next(filled)


def test_a_bug_in_a_worker_is_reported_with_its_file_and_line():
    def fail(buffer, start, entries):
        return {}["nothing"]

    with pytest.raises(
        RunFailed, match=r"a process that loads images failed: KeyError: 'nothing' \(.*test_workers.py, line"
    ):
        list(fill_by_workers(steps(1), fail, buffers(2), 2))


@pytest.mark.parametrize("idle", [False, True])
def test_a_worker_that_dies_is_an_error_within_five_seconds_without_an_answer(idle):
    last_answer = time.monotonic()

    def die(buffer, start, entries):
        if not idle and entries[0][1] == 80:
            os.kill(os.getpid(), signal.SIGKILL)
        return write_numbers(buffer, start, entries)

    def consume():
        nonlocal last_answer
        for filled in fill_by_workers(steps(50), die, buffers(2), 2):
            if idle:
                os.kill(int(filled.labels[0]), signal.SIGKILL)
                time.sleep(0.3)
            last_answer = time.monotonic()

    with pytest.raises(RunFailed, match=r"a process that loads images died \(exit code -9\): out of memory\?"):
        consume()
    assert time.monotonic() - last_answer < 5 + 3  # and time for the other worker's last answers, and for the end


@pytest.mark.parametrize("way", ["whole", "break", "error"])
def test_no_process_is_left_behind(way):
    pids = set()

    def consume():
        for filled in fill_by_workers(steps(6), write_numbers, buffers(2), 2):
            pids.update(filled.labels.tolist())
            if way == "error":
                raise KeyError
            if way == "break":
                return

    if way == "error":
        with pytest.raises(KeyError):
            consume()
    else:
        consume()
    assert pids
    assert all(ends(pid) for pid in pids)


def test_a_worker_that_hangs_does_not_hold_up_the_end(monkeypatch):
    monkeypatch.setattr(workers, "_GRACE", 0.2)

    def hang(buffer, start, entries):
        if entries[0][1] > 0:
            time.sleep(60)
        return write_numbers(buffer, start, entries)

    monkeypatch.setattr(workers, "JOB_SIZES", (40, 40))
    filled = fill_by_workers(steps(4), hang, buffers(3), 2)
    pids = set(next(filled).labels.tolist())
    started = time.monotonic()
    filled.close()
    assert time.monotonic() - started < 10
    assert all(ends(pid) for pid in pids)


ORPHANS = """
import os, signal, sys, time
from worker_steps import buffers, fill_by_workers, steps, write_numbers
filled = fill_by_workers(steps(4), write_numbers, buffers(2), 2)
print(int(next(filled).labels[0]), flush=True)
if sys.argv[1] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
for _ in range(600):  # a signal just before a sleep is noticed after it
    time.sleep(0.1)
"""


@pytest.mark.parametrize("way", ["kill", "interrupt"])
def test_workers_end_with_the_main_process(way):
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    command = [sys.executable, "-c", ORPHANS, way]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        pid = int(process.stdout.readline())
        if way == "interrupt":
            process.send_signal(signal.SIGINT)
        process.wait(20)
        assert ends(pid, 15)
        errors = process.stderr.read()
        assert errors.count("KeyboardInterrupt") == (way == "interrupt")
        assert "Exception ignored" not in errors
