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
from helpers import tiny_config, write_image_folder
from loading import ends

from vit_ipu.data.loading import workers
from vit_ipu.data.loading.loader import EvaluationLoader, TrainingLoader
from vit_ipu.data.loading.workers import Buffer, fill_by_workers, fill_in_process
from vit_ipu.data.sources.registry import open_source
from vit_ipu.errors import DataError, RunFailed
from vit_ipu.pipeline import BatchPlan


def buffers(count, size=40):
    return [Buffer.of(size, 2, torch.uint8, shared=True) for _ in range(count)]


def write_numbers(buffer, start, entries):
    """Fills each image with its index and each label with the id of the process."""
    for place, (_, index) in enumerate(entries, start):
        buffer.images[place] = index % 251
        buffer.labels[place] = os.getpid()
    return [f"{index} is odd" for _, index in entries if index == 7]


def steps(count, size=40):
    return [[(0, step * size + i) for i in range(size)] for step in range(count)]


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
    monkeypatch.setattr(workers, "_clear_cuda_error", lambda: cleared.append(1))
    expected = {buffer.images.data_ptr(): buffer.images.numpy().nbytes for buffer in found[:2]}
    for _ in fill_by_workers(steps(3), write_numbers, found, 1):
        assert runtime.locked == expected
    assert runtime.locked == {}
    assert cleared == [1]
    for _ in fill_by_workers(steps(1), write_numbers, found, 1, page_lock=False):
        assert runtime.locked == {}


def test_closing_can_be_repeated_after_an_interrupt(monkeypatch):
    pool = workers._Pool(iter(steps(2)), write_numbers, buffers(2), 2)
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
from test_workers import buffers, steps, write_numbers
from vit_ipu.data.loading.workers import fill_by_workers
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


# ------------------------------------------------------------------------------------------ bad images


@pytest.fixture
def folder(tmp_path):
    write_image_folder(tmp_path)
    (tmp_path / "train" / "dog" / "1.png").write_text("no image")
    (tmp_path / "val" / "dog" / "1.png").write_bytes(b"")
    return tmp_path


def folder_config(folder, num_workers, **data):
    data = {"source": "imagefolder", "path": str(folder), "num_workers": num_workers, "num_train": None, **data}
    return tiny_config(data=dict(data, num_eval=None), model={"num_classes": 2}, pipeline={"global_batch_size": 8})


def train_batches(config, total=4):
    source = open_source(config.data, config.model, "train")
    loader = TrainingLoader(source, config, BatchPlan.of(config).share(0, 1), start_step=0, total_steps=total)
    return [(batch.images.clone(), batch.labels.clone()) for batch in loader], loader


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
from test_workers import buffers, steps, write_numbers
from vit_ipu.data.loading.workers import fill_by_workers
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
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    done = subprocess.run(
        [sys.executable, "-c", STARVED], capture_output=True, text=True, env=environment, timeout=60, check=False
    )
    assert done.stdout == (
        "cannot start 8 processes to load images: Too many open files; lower data.num_workers []\n"
    ), done.stderr
    assert done.stderr == ""


THREADLESS = """
import multiprocessing, multiprocessing.queues
from test_workers import buffers, steps, write_numbers
from vit_ipu.data.loading.workers import fill_by_workers
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
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    done = subprocess.run(
        [sys.executable, "-c", THREADLESS], capture_output=True, text=True, env=environment, timeout=60, check=False
    )
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
from test_workers import buffers, steps, write_numbers
from vit_ipu.data.loading.workers import fill_by_workers
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
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    done = subprocess.run(
        [sys.executable, "-c", KILLED, "3"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        check=False,
        cwd=str(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    seconds = sorted(map(float, done.stdout.split()))
    assert len(seconds) == 20
    assert seconds[10] < 1, seconds  # DataLoader alone needs up to five
    assert seconds[-1] < 4, seconds
