"""The simulator's DataLoader: which samples come in which batch, in one process and in several."""

from __future__ import annotations

import itertools
from typing import Any, Callable, Dict, List, Optional

import pytest
import torch
from loading import MODES, Numbers, Stream, accessor, by_mode, loader, numbers, of_process
from torch.utils.data import BatchSampler, SequentialSampler

import vit_ipu.simulator as poptorch
from vit_ipu.simulator.loading import accessor as data_accessor
from vit_ipu.simulator.loading.data_loader import combine
from vit_ipu.simulator.loading.partition import SubDataset, share
from vit_ipu.simulator.loading.worker import rebatch

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
def test_every_mode_returns_the_same_batches_in_every_epoch(mode: poptorch.DataLoaderMode, num_workers: int):
    loaded = loader(Numbers(11), mode, batch_size=3, num_workers=num_workers)
    for _ in range(3):
        assert numbers(loaded) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert len(loaded) == 3


@by_mode
def test_an_incomplete_last_batch_is_returned_unless_it_is_dropped(mode: poptorch.DataLoaderMode):
    loaded = loader(Numbers(8), mode, batch_size=3, drop_last=False)
    for _ in range(2):
        assert numbers(loaded) == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert len(loaded) == 3


@pytest.mark.parametrize("worker_size", [1, 2, 3, 4, None])
def test_rebatching_loses_no_sample_of_a_worker(worker_size: Optional[int]):
    """Two workers load seven samples each: batches of four from one worker would lose three samples."""
    loaded = loader(Stream(14), MODES[2], batch_size=4, num_workers=2, rebatched_worker_size=worker_size)
    batches = numbers(loaded)
    assert [len(batch) for batch in batches] == [4, 4, 4]
    assert len(set(itertools.chain(*batches))) == 12


def test_without_rebatching_a_stream_loses_the_incomplete_batch_of_each_worker():
    assert [len(batch) for batch in loader(Stream(14), MODES[1], batch_size=4, num_workers=2)] == [4, 4]


def test_batch_size_none_returns_single_samples():
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
    ids=["complete batches", "no leftovers", "uneven", "too few"],
)
def test_samples_are_shared_among_processes(
    num_samples: int, num_processes: int, multiple_of: Optional[int], expected: List[Any]
):
    shares = [share(num_samples, process, num_processes, multiple_of=multiple_of) for process in range(num_processes)]
    assert shares == expected


@by_mode
def test_processes_read_disjoint_rows(mode: poptorch.DataLoaderMode):
    read = [loader(Numbers(10), mode, options=of_process(p, 2), batch_size=2) for p in range(2)]
    assert [numbers(each) for each in read] == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]


def test_processes_that_drop_no_samples_share_evenly():
    read = [loader(Numbers(5), options=of_process(p, 2), batch_size=2, drop_last=False) for p in range(2)]
    assert [numbers(each) for each in read] == [[[0, 1], [2]], [[3, 4]]]


@by_mode
def test_all_processes_share_one_shuffle_that_changes_every_epoch(mode: poptorch.DataLoaderMode):
    read = [loader(Numbers(10), mode, options=of_process(p, 2, seed=1), batch_size=2, shuffle=True) for p in range(2)]
    first, second = [[list(itertools.chain(*numbers(each))) for each in read] for _ in range(2)]
    for epoch in (first, second):
        assert len(set(epoch[0] + epoch[1])) == 8
    assert first != second
    assert first[0] != sorted(first[0])


def test_automatic_partitioning_can_be_switched_off():
    options = of_process(1, 2)
    assert numbers(loader(Numbers(4), options=options, auto_distributed_partitioning=False)) == [[0], [1], [2], [3]]


def test_too_few_samples_for_the_processes_fail_as_in_poptorch():
    with pytest.raises(ZeroDivisionError):
        loader(Numbers(3), options=of_process(0, 2), batch_size=2)


def test_shuffling_a_share_needs_a_seed():
    whole = SubDataset(list(range(4)), poptorch.Options(), 2, drop_last=True)
    with pytest.raises(AssertionError, match="Seed must be set when shuffling"):
        whole.next_epoch()


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
def test_invalid_arguments_of_a_loader_are_refused(arguments: Dict[str, Any], error: Any, message: str):
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
def test_a_loader_warns_about_uneven_and_repeated_samples(
    dataset: Any, arguments: Dict[str, Any], message: str, caplog: pytest.LogCaptureFixture, monkeypatch: Any
):
    monkeypatch.setattr(data_accessor.logger, "propagate", True)
    iterations = arguments.pop("options", 2) if "options" in arguments else 2
    loader(dataset, options=poptorch.Options().deviceIterations(iterations), drop_last=False, **arguments)
    assert message in caplog.text


def test_an_asynchronous_loader_cannot_be_given_to_an_accessor():
    with pytest.raises(poptorch.Error, match="The DataLoader already uses an AsynchronousDataAccessor internally"):
        accessor(loader(Numbers(3), MODES[1]))


def test_an_accessor_needs_whole_batches_from_a_loader():
    with pytest.raises(AssertionError, match="'drop_last=False' option from the DataLoader only works if"):
        accessor(loader(Numbers(3), batch_size=2, drop_last=False))
