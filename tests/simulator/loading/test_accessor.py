"""The simulator's AsynchronousDataAccessor: what it reads ahead, and how its worker processes end."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
import torch
from loading import MODES, Broken, Numbers, Picklable, accessor, ends, is_alive, loader, numbers
from torch import Tensor

import vit_ipu.simulator as poptorch
from vit_ipu.simulator.loading import accessor as data_accessor
from vit_ipu.simulator.loading.ring import RingMemory, RingReader

# ------------------------------------------------------------------------------------ the accessor


class Pair:
    """A user-defined type of batch."""

    def __init__(self, left: Tensor, right: Tensor) -> None:
        self.left, self.right = left, right


class PairParser(poptorch.ICustomArgParser):
    def yieldTensors(self, struct: Pair) -> Iterator[Tensor]:
        yield struct.left
        yield struct.right

    def reconstruct(self, original_structure: Pair, tensor_iterator: Iterator[Tensor]) -> Pair:
        return Pair(next(tensor_iterator), next(tensor_iterator))


@pytest.fixture
def pairs() -> Iterator[None]:
    poptorch.registerCustomArgParser(Pair, PairParser())
    yield
    poptorch.registerCustomArgParser(Pair, None)


@pytest.mark.parametrize("load_indefinitely", [True, False])
@pytest.mark.parametrize("early_preload", [True, False])
@pytest.mark.parametrize("buffer_size", [1, 2, 20])
def test_an_accessor_returns_every_element_in_every_epoch(
    load_indefinitely: bool, early_preload: bool, buffer_size: int
):
    read = accessor(
        Numbers(5), load_indefinitely=load_indefinitely, early_preload=early_preload, buffer_size=buffer_size
    )
    assert len(read) == 5
    for _ in range(3):
        assert numbers(read) == [0, 1, 2, 3, 4]
    assert [next(read, None) for _ in range(2)] == [None, None], "the epoch has ended"


@pytest.mark.parametrize("taken", [1, 4, 5])
def test_an_interrupted_epoch_restarts_at_its_first_element(taken: int):
    read = accessor(Numbers(5))
    for _ in range(3):
        assert numbers(itertools.islice(read, taken)) == list(range(taken))
    assert numbers(read) == [0, 1, 2, 3, 4]


def test_an_end_of_epoch_written_while_the_host_looks_is_not_a_batch(monkeypatch: pytest.MonkeyPatch):
    """A worker may write at any moment; here it writes just after the host has looked for the first time."""
    looks = itertools.count()
    is_ready = RingReader.is_ready
    monkeypatch.setattr(RingReader, "is_ready", lambda ring: next(looks) % 2 == 1 and is_ready(ring))
    read = accessor(Numbers(5))
    for _ in range(2):
        assert numbers(read) == [0, 1, 2, 3, 4]


def test_repeated_calls_of_iter_lose_no_elements():
    read = accessor(Numbers(3))
    iter(read), iter(read)
    assert numbers(read) == [0, 1, 2]


@pytest.mark.parametrize(("early_preload", "expected"), [(False, 1), (True, 4)])
def test_only_an_early_preload_fills_the_ring_before_it_is_read(early_preload: bool, expected: int):
    read = accessor(Numbers(9), early_preload=early_preload, buffer_size=4)
    assert read._worker is not None
    deadline = time.monotonic() + 5
    while read._worker._data_buffers.indices_mem.sum() < expected and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert read._worker._data_buffers.indices_mem.sum() == expected


def test_an_element_stays_valid_until_the_next_is_requested():
    read = iter(accessor(Numbers(9), buffer_size=2))
    first = next(read)
    time.sleep(0.2)
    assert first == 0
    assert next(read) == 1


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda n: n.half(), torch.float16),
        (lambda n: (n, -n), list),
        (lambda n: [n, -n], list),
        (lambda n: {"b": n, "a": -n}, {"b", "a"}),
        (lambda n: Pair(n, -n), Pair),
    ],
    ids=["tensor", "tuple", "list", "dict", "user-defined type"],
)
def test_supported_types_of_batches(make: Callable[[Tensor], Any], expected: Any, pairs: None):
    read = iter(accessor(Numbers(4, make)))
    next(read)
    batch = next(read)
    if isinstance(expected, torch.dtype):
        assert batch.dtype == expected
        assert batch == 1
        return
    assert type(batch) is expected if isinstance(expected, type) else set(batch) == expected
    values = batch.values() if isinstance(batch, dict) else poptorch.nested.flatten(batch)
    assert [int(value) for value in values] == [1, -1]


def test_an_accessor_of_a_loader_joins_batches():
    read = accessor(loader(Numbers(10), batch_size=2), rebatched_size=3)
    assert numbers(read) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert len(read) == 3


def test_a_terminated_accessor_cannot_be_used_again():
    loaded = loader(Numbers(3), MODES[1])
    pid = loaded._accessor._worker.process.pid
    assert next(iter(loaded)) == 0
    loaded.terminate()
    loaded.terminate()
    assert not is_alive(pid)
    for use in (iter, next):
        with pytest.raises(AssertionError, match="has been terminated"):
            use(loaded._accessor)
    with pytest.raises(AssertionError, match="has been terminated"):
        iter(loaded)


def test_terminating_a_synchronous_loader_has_no_effect():
    loaded = loader(Numbers(3))
    loaded.terminate()
    assert numbers(loaded) == [[0], [1], [2]]


def test_deleting_an_accessor_ends_its_worker():
    read = accessor(Numbers(3))
    pid = read._worker.process.pid
    del read
    assert ends(pid)


# ------------------------------------------------------------------------------------ processes


@pytest.mark.parametrize("strategy", list(poptorch.SharingStrategy), ids=lambda strategy: strategy.name)
def test_each_sharing_strategy_starts_a_worker(strategy: poptorch.SharingStrategy):
    read = accessor(Picklable(), sharing_strategy=strategy)
    first, second, third = [element.tolist() for element in read]
    assert [first[0], second[0], third[0]] == [0, 1, 2]
    assert first[1] == third[1] == read._worker.process.pid != os.getpid()


def test_a_dataset_that_cannot_be_pickled_needs_fork():
    dataset = Numbers(3, lambda number: number)
    with pytest.raises((AttributeError, TypeError), match="pickle"):
        poptorch.AsynchronousDataAccessor(dataset)
    assert numbers(accessor(dataset)) == [0, 1, 2]


def fail() -> None:
    raise ValueError("no such image")


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("action", [fail, kill, lambda: sys.exit(0)], ids=["raises", "killed", "exits"])
def test_a_worker_that_fails_raises_an_error(action: Callable[[], None]):
    read = iter(accessor(Broken(action)))
    assert next(read)[0] == 0
    with pytest.raises(AssertionError, match="An error occurred in the data fetcher"):
        next(read)
    with pytest.raises(AssertionError, match="An error occurred in the data fetcher"):
        next(read)


def test_a_worker_that_is_dead_cannot_begin_an_epoch():
    read = accessor(Numbers(5))
    assert next(iter(read)) == 0
    os.kill(read._worker.process.pid, signal.SIGKILL)
    with pytest.raises(AssertionError, match="An error occurred in the data fetcher"):
        iter(read)


@pytest.mark.parametrize(
    ("dataset", "reason"),
    [
        (Numbers(3, lambda _: fail()), "no such image"),
        (Numbers(3, lambda _: kill()), ""),
        (Numbers(0), "The Dataset is empty"),
        (Numbers(3, lambda number: (number, 1)), "Tensor at index 1 is not a torch tensor"),
        (Numbers(3, lambda number: 1), "expects tensors, got <class 'int'>"),
    ],
    ids=["raises", "killed", "empty", "no tensor", "no container"],
)
def test_a_worker_that_fails_before_its_first_element_prints_the_reason(
    dataset: Any, reason: str, capfd: pytest.CaptureFixture
):
    with pytest.raises(poptorch.Error, match="AsynchronousDataAccessor worker thread failed to start"):
        accessor(dataset)
    assert reason in capfd.readouterr().err


def test_a_batch_must_be_released_before_the_next_is_taken():
    reader = RingReader(RingMemory(2, [torch.zeros(3)]))
    reader.take()
    with pytest.raises(AssertionError, match="The current element must be released"):
        reader.take()


def test_next_before_iter_is_refused():
    with pytest.raises(AssertionError, match=r"call iter\(\) before next\(\)"):
        next(accessor(Numbers(3)))


def ignore_and_sleep(*ignored: int) -> Callable[[], None]:
    def action() -> None:
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)
        time.sleep(60)

    return action


@pytest.mark.parametrize(
    "ignored", [(), (signal.SIGINT,), (signal.SIGINT, signal.SIGTERM)], ids=["no signal", "SIGINT", "both"]
)
def test_a_worker_that_does_not_return_is_ended(ignored: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(data_accessor, "GRACE_S", 0.2)
    read = accessor(Broken(ignore_and_sleep(*ignored)))
    assert next(iter(read))[0] == 0
    pid = read._worker.process.pid
    time.sleep(0.1)
    read.terminate()
    assert not is_alive(pid)


# ------------------------------------------------------------------------------------ programs

DATASET = """
    import poptorch  # the worker must be able to import it too
    import torch

    class Own(torch.utils.data.Dataset):
        def __len__(self):
            return 100

        def __getitem__(self, index):
            assert poptorch.__simulated__
            return torch.tensor([index])
"""
PROGRAM = """
    import sys, time
    from vit_ipu import simulator
    simulator.install()
    import poptorch
    from own_dataset import Own

    if __name__ == "__main__":
        strategy = getattr(poptorch.SharingStrategy, sys.argv[1])
        loader = poptorch.DataLoader(
            poptorch.Options(), Own(), num_workers=1, mode=poptorch.DataLoaderMode.Async,
            async_options={"sharing_strategy": strategy},
        )
        for batch in loader:
            break
        print(loader._accessor._worker.process.pid, flush=True)
        for _ in range(600 if "wait" in sys.argv else 0):  # a signal may wait for the end of a sleep
            time.sleep(0.1)
"""


@pytest.fixture
def program(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Returns a function that starts a program, which reads one batch and prints the ID of its worker process."""
    (tmp_path / "own_dataset.py").write_text(textwrap.dedent(DATASET))
    (tmp_path / "program.py").write_text(textwrap.dedent(PROGRAM))
    path = os.pathsep.join([str(Path(__file__).resolve().parents[3]), os.environ.get("PYTHONPATH", "")])

    def start(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(tmp_path / "program.py"), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            universal_newlines=True,
            env=dict(os.environ, PYTHONPATH=path, OMP_NUM_THREADS="1"),
            start_new_session=True,
        )

    return start


def test_a_program_that_ends_leaves_no_process(program: Callable[..., subprocess.Popen[str]]):
    """The dataset's module imports poptorch in the worker process, which did not install the simulator."""
    process = program("ForkServer")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert output.strip().isdigit(), f"nothing but the worker's number: {output}"
    assert not is_alive(int(output))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_a_program_that_is_stopped_leaves_no_process(number: int, program: Callable[..., subprocess.Popen[str]]):
    process = program("Fork", "wait")
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    process.wait(timeout=30)
    assert ends(worker)
    assert "data_worker" not in process.stdout.read(), "the worker ends without a traceback"
