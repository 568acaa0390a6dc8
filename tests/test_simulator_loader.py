"""The simulator's DataLoader and AsynchronousDataAccessor: which samples come in which batch, and how workers end."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional

import pytest
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, Dataset, IterableDataset, SequentialSampler, get_worker_info

import vit_ipu.simulator as poptorch
from vit_ipu.simulator import data_accessor
from vit_ipu.simulator.data_ring import RingReader
from vit_ipu.simulator.data_worker import rebatch
from vit_ipu.simulator.loader import combine
from vit_ipu.simulator.loader_partition import share

FORK = {"sharing_strategy": poptorch.SharingStrategy.Fork}
MODES = [poptorch.DataLoaderMode.Sync, poptorch.DataLoaderMode.Async, poptorch.DataLoaderMode.AsyncRebatched]
by_mode = pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)


class Numbers(Dataset):  # type: ignore[type-arg]
    """Sample i is the number i, in a container of the kind asked for."""

    def __init__(self, length: int, make: Callable[[Tensor], Any] = lambda number: number) -> None:
        self.length, self.make = length, make

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        if index >= self.length:
            raise IndexError
        return self.make(torch.as_tensor(index))


class Stream(IterableDataset):  # type: ignore[type-arg]
    """The numbers up to a length, dealt out to the workers."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __iter__(self) -> Iterator[Tensor]:
        info = get_worker_info()
        first, step = (0, 1) if info is None else (info.id, info.num_workers)
        return map(torch.tensor, range(first, self.length, step))


class Picklable(Dataset):  # type: ignore[type-arg]
    """Names the process that loads it."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Tensor:
        if index == 3:
            raise IndexError
        return torch.tensor([index, os.getpid()])


class Broken(Picklable):
    """Sample 1 does what is said."""

    def __init__(self, action: Callable[[], Any]) -> None:
        self.action = action

    def __getitem__(self, index: int) -> Tensor:
        if index == 1:
            self.action()
        return super().__getitem__(index)


class Pair:
    """A user's own type."""

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


def loader(dataset: Any, mode: poptorch.DataLoaderMode = MODES[0], **arguments: Any) -> poptorch.DataLoader:
    options = arguments.pop("options", None) or poptorch.Options()
    return poptorch.DataLoader(options, dataset, mode=mode, async_options=FORK, **arguments)


def accessor(dataset: Any, **arguments: Any) -> poptorch.AsynchronousDataAccessor:
    return poptorch.AsynchronousDataAccessor(dataset, **{**FORK, **arguments})


def numbers(batches: Any) -> List[List[int]]:
    return [batch.tolist() for batch in batches]


def of_process(process: int, num_processes: int, *, seed: Optional[int] = None) -> poptorch.Options:
    options = poptorch.Options()
    options.Distributed.configureProcessId(process, num_processes)
    return options if seed is None else options.randomSeed(seed)


def is_alive(pid: int) -> bool:
    try:
        with open("/proc/{}/stat".format(pid)) as status:
            return status.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def ends(pid: int, seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not is_alive(pid)


# ------------------------------------------------------------------------------------ combined batches


def grouped(options: poptorch.Options) -> poptorch.Options:
    return options.replicationFactor(8).inputReplicaGrouping(2, poptorch.CommGroupType.Consecutive)


def accumulated(options: poptorch.Options) -> poptorch.Options:
    options.Training.gradientAccumulation(4)
    return options.deviceIterations(2).replicationFactor(3)


@pytest.mark.parametrize(
    ("configure", "expected"),
    [(lambda options: options, 2), (accumulated, 2 * 2 * 4 * 3), (grouped, 2 * 4)],
    ids=["plain", "D x G x R", "replicas that share their input"],
)
def test_one_call_consumes_the_combined_batch(configure: Callable[..., Any], expected: int):
    loaded = loader(Numbers(100), options=configure(poptorch.Options()), batch_size=2)
    assert loaded.combinedBatchSize == expected
    assert len(loaded) == 100 // expected
    assert numbers(loaded)[0] == list(range(expected))


def test_a_loader_freezes_its_options():
    options = poptorch.Options()
    assert loader(Numbers(3), options=options).options is options
    with pytest.raises(AttributeError, match="Can't modify frozen Options"):
        options.deviceIterations(2)


@by_mode
@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_mode_gives_the_same_batches_every_epoch(mode: poptorch.DataLoaderMode, num_workers: int):
    loaded = loader(Numbers(11), mode, batch_size=3, num_workers=num_workers)
    for _ in range(3):
        assert numbers(loaded) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert len(loaded) == 3


@by_mode
def test_an_incomplete_last_batch_comes_if_it_is_not_dropped(mode: poptorch.DataLoaderMode):
    loaded = loader(Numbers(8), mode, batch_size=3, drop_last=False)
    for _ in range(2):
        assert numbers(loaded) == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert len(loaded) == 3


@pytest.mark.parametrize("worker_size", [1, 2, 3, 4, None])
def test_rebatching_loses_no_sample_of_a_worker(worker_size: Optional[int]):
    """Seven of each of two workers: batches of four from one worker would leave three over."""
    loaded = loader(Stream(14), MODES[2], batch_size=4, num_workers=2, rebatched_worker_size=worker_size)
    batches = numbers(loaded)
    assert [len(batch) for batch in batches] == [4, 4, 4]
    assert len(set(itertools.chain(*batches))) == 12


def test_without_rebatching_a_stream_loses_what_its_workers_have_left_over():
    assert [len(batch) for batch in loader(Stream(14), MODES[1], batch_size=4, num_workers=2)] == [4, 4]


def test_batch_size_none_gives_single_samples():
    loaded = loader(Numbers(3), MODES[1], batch_size=None, drop_last=False)
    assert loaded.combinedBatchSize is None
    assert numbers(loaded) == [0, 1, 2]


@by_mode
@pytest.mark.parametrize("drop_last", [True, False])
def test_the_batches_of_a_sampler_are_joined(mode: poptorch.DataLoaderMode, drop_last: bool):
    dataset = Numbers(10)
    sampler = BatchSampler(SequentialSampler(range(10)), batch_size=2, drop_last=False)
    options = poptorch.Options().deviceIterations(2)
    loaded = loader(dataset, mode, options=options, batch_sampler=sampler, drop_last=drop_last)
    assert loaded.combinedBatchSize == 4
    assert numbers(loaded) == [[0, 1, 2, 3], [4, 5, 6, 7]] + ([] if drop_last else [[8, 9]])


def test_joined_batches_keep_their_structure():
    batches = [{"a": torch.tensor([i]), "b": (torch.tensor([-i]),)} for i in range(3)]
    first, rest = combine(batches, 2, drop_last=False)
    assert first["a"].tolist() == [0, 1]
    assert first["b"][0].tolist() == [0, -1]
    assert rest["a"].tolist() == [2]
    assert list(combine([], 2, drop_last=False)) == []


@pytest.mark.parametrize(
    ("sizes", "drop_last", "expected"),
    [
        ([3], True, [3]),
        ([1, 1, 1, 1], True, [3]),
        ([1, 1, 1, 1], False, [3, 1]),
        ([7], False, [3, 3, 1]),
        ([2, 2, 2], True, [3, 3]),
        ([0, 2], False, [2]),
        ([], False, []),
    ],
)
def test_rebatching_keeps_the_order(sizes: List[int], drop_last: bool, expected: List[int]):
    source = torch.arange(sum(sizes))
    batches = [[part] for part in source.split(sizes)] if sizes else []
    cut = [torch.cat([part[0] for part in parts]) for parts in rebatch(batches, 3, drop_last=drop_last)]
    assert [len(batch) for batch in cut] == expected
    assert torch.cat([source[:0]] + cut).tolist() == list(range(sum(expected)))


# ------------------------------------------------------------------------------------ several processes


@pytest.mark.parametrize(
    ("num_samples", "num_processes", "multiple_of", "expected"),
    [
        (100, 3, 4, [(0, 32, 4), (32, 32, 4), (64, 32, 4)]),
        (8, 2, 4, [(0, 4, 0), (4, 4, 0)]),
        (10, 3, None, [(0, 4, 0), (4, 3, 0), (7, 3, 0)]),
        (1, 2, None, [(0, 1, 0), (1, 0, 0)]),
    ],
    ids=["whole batches", "no leftovers", "dealt out", "too few"],
)
def test_shares(num_samples: int, num_processes: int, multiple_of: Optional[int], expected: List[Any]):
    shares = [share(num_samples, process, num_processes, multiple_of=multiple_of) for process in range(num_processes)]
    assert shares == expected


@by_mode
def test_processes_read_disjoint_rows(mode: poptorch.DataLoaderMode):
    read = [loader(Numbers(10), mode, options=of_process(p, 2), batch_size=2) for p in range(2)]
    assert [numbers(each) for each in read] == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]


def test_processes_that_drop_nothing_share_evenly():
    read = [loader(Numbers(5), options=of_process(p, 2), batch_size=2, drop_last=False) for p in range(2)]
    assert [numbers(each) for each in read] == [[[0, 1], [2]], [[3, 4]]]


@by_mode
def test_a_shuffle_is_one_over_all_processes_and_reaches_every_sample_in_two_epochs(mode: poptorch.DataLoaderMode):
    read = [loader(Numbers(10), mode, options=of_process(p, 2, seed=1), batch_size=2, shuffle=True) for p in range(2)]
    first, second = [[list(itertools.chain(*numbers(each))) for each in read] for _ in range(2)]
    for epoch in (first, second):
        assert len(set(epoch[0] + epoch[1])) == 8
    assert first != second
    assert first[0] != sorted(first[0])


def test_a_partition_of_ones_own_is_left_alone():
    options = of_process(1, 2)
    assert numbers(loader(Numbers(4), options=options, auto_distributed_partitioning=False)) == [[0], [1], [2], [3]]


def test_too_few_samples_for_the_processes_fail_as_in_poptorch():
    with pytest.raises(ZeroDivisionError):
        loader(Numbers(3), options=of_process(0, 2), batch_size=2)


# ------------------------------------------------------------------------------------ refusals and warnings

SAMPLER = BatchSampler(SequentialSampler(range(4)), batch_size=2, drop_last=False)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"options": 1}, AssertionError, "expected poptorch.Options"),
        (
            {"batch_sampler": SAMPLER, "batch_size": 2},
            poptorch.Error,
            "`batch_sampler` option is mutually exclusive with batch_size, shuffle.",
        ),
        ({"batch_sampler": SAMPLER, "shuffle": True}, poptorch.Error, "mutually exclusive with batch_size, shuffle"),
        (
            {"batch_sampler": SAMPLER, "options": of_process(0, 2)},
            poptorch.Error,
            "mutually exclusive with auto_distributed_partitioning=True",
        ),
        (
            {"dataset": Stream(4), "options": of_process(0, 2)},
            AssertionError,
            "auto_distributed_partitioning not supported for IterableDataset",
        ),
        ({"options": of_process(0, 2), "shuffle": True}, AssertionError, "you must set poptorch.Options.randomSeed"),
        ({"options": of_process(0, 2), "batch_size": None}, AssertionError, "batch_size=None not allowed"),
        ({"batch_size": None}, ValueError, "batch_size=None option disables auto-batching"),
        (
            {"mode": MODES[2], "batch_size": 2, "rebatched_worker_size": 3},
            AssertionError,
            r"rebatched_worker_size \(3\) must be <= to the combined batch size \(2\)",
        ),
        (
            {"mode": MODES[2], "batch_size": 2, "async_options": {"rebatched_size": 2}},
            AssertionError,
            "manually specify the rebatched_size in async_options",
        ),
        ({"mode": MODES[2], "batch_size": 1}, AssertionError, "rebatched_size must be None or greater than 1"),
    ],
)
def test_loaders_that_are_refused(arguments: Dict[str, Any], error: Any, message: str):
    arguments = {"options": poptorch.Options(), "dataset": Numbers(4), **arguments}
    with pytest.raises(error, match=message):
        poptorch.DataLoader(**arguments)


class NoLength(BatchSampler):
    def __len__(self) -> int:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("dataset", "arguments", "message"),
    [
        (Numbers(5), {"batch_size": 2}, "(5) is not divisible by the number of elements processed per step (4)"),
        (Numbers(4), {"batch_sampler": SAMPLER, "options": 3}, "batch sampler (2) is not divisible"),
        (Numbers(4), {"batch_sampler": NoLength(range(4), 2, False)}, "__len__ method is not implemented"),
        (Stream(4), {"num_workers": 2}, "will return 2 times each element"),
    ],
    ids=["samples", "batches", "unknown", "stream"],
)
def test_what_a_loader_warns_of(
    dataset: Any, arguments: Dict[str, Any], message: str, caplog: pytest.LogCaptureFixture, monkeypatch: Any
):
    monkeypatch.setattr(data_accessor.logger, "propagate", True)
    iterations = arguments.pop("options", 2) if "options" in arguments else 2
    loader(dataset, options=poptorch.Options().deviceIterations(iterations), drop_last=False, **arguments)
    assert message in caplog.text


def test_an_accessor_is_not_put_around_another():
    with pytest.raises(poptorch.Error, match="The DataLoader already uses an AsynchronousDataAccessor internally"):
        accessor(loader(Numbers(3), MODES[1]))


def test_an_accessor_needs_whole_batches_from_a_loader():
    with pytest.raises(AssertionError, match="'drop_last=False' option from the DataLoader only works if"):
        accessor(loader(Numbers(3), batch_size=2, drop_last=False))


# ------------------------------------------------------------------------------------ the accessor


@pytest.mark.parametrize("load_indefinitely", [True, False])
@pytest.mark.parametrize("early_preload", [True, False])
@pytest.mark.parametrize("buffer_size", [1, 2, 20])
def test_an_accessor_gives_every_element_every_epoch(load_indefinitely: bool, early_preload: bool, buffer_size: int):
    read = accessor(
        Numbers(5), load_indefinitely=load_indefinitely, early_preload=early_preload, buffer_size=buffer_size
    )
    assert len(read) == 5
    for _ in range(3):
        assert numbers(read) == [0, 1, 2, 3, 4]
    assert [next(read, None) for _ in range(2)] == [None, None], "the epoch has ended"


@pytest.mark.parametrize("taken", [1, 4, 5])
def test_an_epoch_that_is_cut_short_begins_anew(taken: int):
    read = accessor(Numbers(5))
    for _ in range(3):
        assert numbers(itertools.islice(read, taken)) == list(range(taken))
    assert numbers(read) == [0, 1, 2, 3, 4]


def test_an_end_that_comes_while_the_host_looks_is_no_batch(monkeypatch: pytest.MonkeyPatch):
    """The worker may write at any moment: here, just after the host has looked for the first time."""
    looks = itertools.count()
    is_ready = RingReader.is_ready
    monkeypatch.setattr(RingReader, "is_ready", lambda ring: next(looks) % 2 == 1 and is_ready(ring))
    read = accessor(Numbers(5))
    for _ in range(2):
        assert numbers(read) == [0, 1, 2, 3, 4]


def test_an_iterator_that_was_not_used_is_used_by_the_next():
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


def test_an_element_stays_until_the_next_is_asked_for():
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
    ids=["tensor", "tuple", "list", "dict", "own type"],
)
def test_what_a_batch_may_be(make: Callable[[Tensor], Any], expected: Any, pairs: None):
    read = iter(accessor(Numbers(4, make)))
    next(read)
    batch = next(read)
    if isinstance(expected, torch.dtype):
        assert batch.dtype == expected
        assert batch == 1
        return
    assert type(batch) is expected if isinstance(expected, type) else set(batch) == expected
    values = batch.values() if isinstance(batch, dict) else poptorch.structures.flatten(batch)
    assert [int(value) for value in values] == [1, -1]


def test_an_accessor_of_a_loader_puts_batches_together():
    read = accessor(loader(Numbers(10), batch_size=2), rebatched_size=3)
    assert numbers(read) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert len(read) == 3


def test_a_terminated_accessor_is_not_used_again():
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


def test_an_accessor_that_is_dropped_ends_its_worker():
    read = accessor(Numbers(3))
    pid = read._worker.process.pid
    del read
    assert ends(pid)


# ------------------------------------------------------------------------------------ processes


@pytest.mark.parametrize("strategy", list(poptorch.SharingStrategy), ids=lambda strategy: strategy.name)
def test_each_way_to_start_the_worker(strategy: poptorch.SharingStrategy):
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
def test_a_worker_that_fails_is_an_error(action: Callable[[], None]):
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
def test_a_worker_that_fails_before_its_first_element(dataset: Any, reason: str, capfd: pytest.CaptureFixture):
    with pytest.raises(poptorch.Error, match="AsynchronousDataAccessor worker thread failed to start"):
        accessor(dataset)
    assert reason in capfd.readouterr().err


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
    import poptorch  # the worker must find it too
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
        if "wait" in sys.argv:
            time.sleep(60)
"""


@pytest.fixture
def program(tmp_path: Path) -> Callable[..., "subprocess.Popen[str]"]:
    """Starts a program that reads a little of a loader; its first line is the worker's process."""
    (tmp_path / "own_dataset.py").write_text(textwrap.dedent(DATASET))
    (tmp_path / "program.py").write_text(textwrap.dedent(PROGRAM))
    path = os.pathsep.join([str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")])

    def start(*arguments: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, str(tmp_path / "program.py"), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            universal_newlines=True,
            env=dict(os.environ, PYTHONPATH=path, OMP_NUM_THREADS="1"),
            start_new_session=True,
        )

    return start


def test_a_program_that_ends_leaves_no_process(program: Callable[..., "subprocess.Popen[str]"]):
    """Its dataset's module imports poptorch, in a process that did not install the simulator."""
    process = program("ForkServer")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert output.strip().isdigit(), "nothing but the worker's number: {}".format(output)
    assert not is_alive(int(output))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_a_program_that_is_stopped_leaves_no_process(number: int, program: Callable[..., "subprocess.Popen[str]"]):
    process = program("Fork", "wait")
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    process.wait(timeout=30)
    assert ends(worker)
    assert "data_worker" not in process.stdout.read(), "the worker ends without a traceback"
