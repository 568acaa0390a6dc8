"""poptorch.DataLoader: combines batches into the input of one call of a model (python/__init__.py:229-523)."""

from __future__ import annotations

from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from vit_ipu.simulator.enums import DataLoaderMode
from vit_ipu.simulator.errors import error
from vit_ipu.simulator.loading.accessor import AsynchronousDataAccessor, CombinedLoader
from vit_ipu.simulator.loading.partition import SubDataset
from vit_ipu.simulator.logs import logger
from vit_ipu.simulator.nested import flatten, rebuild
from vit_ipu.simulator.options.options import Options
from vit_ipu.simulator.tracing.arguments import micro_batches_of_input


class DataLoader(torch.utils.data.DataLoader, CombinedLoader):  # type: ignore[type-arg]
    """A torch DataLoader whose batches hold batch_size x D x G x R samples; it freezes the options.

    D: device_iterations, G: gradient_accumulation, R: replication_factor / input_group_size. In the Async modes an
    AsynchronousDataAccessor, whose docstring describes the yielded tensors, reads ahead. With several processes
    (options.Distributed), each process reads its own share of a dataset with a length.
    """

    rebatched_drop_last = True

    def __init__(
        self,
        options: Options,
        dataset: Any,
        batch_size: Optional[int] = 1,
        shuffle: Optional[bool] = None,
        num_workers: int = 0,
        drop_last: bool = True,
        persistent_workers: Optional[bool] = None,
        auto_distributed_partitioning: bool = True,
        mode: DataLoaderMode = DataLoaderMode.Sync,
        async_options: Optional[Dict[str, Any]] = None,
        rebatched_worker_size: Optional[int] = None,
        batch_sampler: Any = None,
        **kwargs: Any,
    ) -> None:
        """Takes torch's arguments; `rebatched_worker_size`: samples that a worker loads at a time before rebatching."""
        self._accessor: Optional[AsynchronousDataAccessor] = None
        assert isinstance(options, Options), f"'options' is of type {type(options)} (expected poptorch.Options)"
        self.batch_sampler_is_custom = batch_sampler is not None
        if batch_sampler is not None:
            _check_batch_sampler(options, batch_size, shuffle, auto_distributed_partitioning)
            batch_size = getattr(batch_sampler, "batch_size", batch_size)
        options._freeze()
        self._options = options
        self._num_batches_to_combine = micro_batches_of_input(options)
        self._combined = None if batch_size is None else batch_size * self._num_batches_to_combine
        self._shuffles_globally = False
        if isinstance(dataset, IterableDataset):
            _check_iterable(options, num_workers, auto_distributed_partitioning, kwargs)
        else:
            shuffle = bool(shuffle)
            if not drop_last:
                self._warn_of_rest(len(dataset), batch_size, batch_sampler)
            if options.Distributed.numProcesses > 1 and auto_distributed_partitioning:
                dataset = self._share(dataset, shuffle=shuffle, drop_last=drop_last)
                self._shuffles_globally, shuffle = shuffle, False
        self._drops_last_combined = drop_last
        rebatched_size = self._combined if self._is_rebatched(mode) else None
        super().__init__(
            dataset,
            batch_size=self._batch_size_of_workers(rebatched_size, rebatched_worker_size),
            shuffle=shuffle,
            batch_sampler=batch_sampler,
            num_workers=num_workers,
            drop_last=drop_last and batch_sampler is None and rebatched_size is None,
            persistent_workers=(num_workers > 0) if persistent_workers is None else persistent_workers,
            **kwargs,
        )
        if rebatched_size is not None:
            self.rebatched_drop_last = drop_last and batch_sampler is None
        if mode != DataLoaderMode.Sync:
            self._accessor = _accessor(self, async_options or {}, rebatched_size)

    @property
    def combinedBatchSize(self) -> Optional[int]:
        """The number of samples that one call consumes; None without automatic batching."""
        return self._combined

    @property
    def options(self) -> Options:
        """The options that the loader was created with."""
        return self._options

    def terminate(self) -> None:
        """Ends the accessor's process, if the loader has an accessor."""
        if self._accessor is not None:
            self._accessor.terminate()

    def __len__(self) -> int:
        rebatched_size = self._accessor.rebatched_size if self._accessor is not None else None
        if not rebatched_size:
            return super().__len__()
        dataset: Any = self.dataset
        whole, rest = divmod(len(dataset), rebatched_size)
        return whole + int(rest > 0 and not self.rebatched_drop_last)

    def __iter__(self) -> Any:
        if self._shuffles_globally and isinstance(self.dataset, SubDataset):
            self.dataset.next_epoch()
        if self._accessor is not None:
            return iter(self._accessor)
        batches = super().__iter__()
        if self.batch_sampler_is_custom and self._num_batches_to_combine != 1:
            return combine(batches, self._num_batches_to_combine, drop_last=self._drops_last_combined)
        return batches

    def _share(self, dataset: Any, *, shuffle: bool, drop_last: bool) -> SubDataset:
        assert not shuffle or self._options.exists("random_seed"), (
            "When using auto_distributed_partitioning you must set poptorch.Options.randomSeed() to ensure that "
            "tensors are in the same order in all processes."
        )
        assert self._combined is not None, "batch_size=None not allowed when using auto_distributed_partitioning."
        return SubDataset(dataset, self._options, self._combined, drop_last)

    def _is_rebatched(self, mode: DataLoaderMode) -> bool:
        """Tells whether the accessor rebatches: in AsyncRebatched mode, or if workers may return incomplete batches."""
        if mode == DataLoaderMode.AsyncRebatched:
            return True
        incomplete = not self._drops_last_combined and self._combined is not None and self._combined > 1
        return mode == DataLoaderMode.Async and incomplete

    def _batch_size_of_workers(self, rebatched_size: Optional[int], wanted: Optional[int]) -> Optional[int]:
        if rebatched_size is not None and wanted is not None:
            assert wanted <= rebatched_size, (
                f"The rebatched_worker_size ({wanted}) must be <= to the combined batch size ({rebatched_size})"
            )
            return wanted
        return 1 if self.batch_sampler_is_custom else self._combined

    def _warn_of_rest(self, num_samples: int, batch_size: Optional[int], batch_sampler: Any) -> None:
        """Logs a warning if the last batch will be smaller."""
        if batch_sampler is not None:
            self._warn_of_batches(_length(batch_sampler), batch_size)
        elif self._combined is not None:
            per_step = self._combined * self._options.Distributed.numProcesses
            if num_samples % per_step != 0:
                logger.warning(
                    "The number of elements in the dataset (%d) is not divisible by the number of elements processed "
                    "per step (%d) and drop_last=False. The last tensor will have a batch size of %d. To avoid having "
                    "to handle this special case switch to drop_last=True",
                    num_samples,
                    per_step,
                    num_samples % per_step,
                )

    def _warn_of_batches(self, num_batches: Optional[int], batch_size: Optional[int]) -> None:
        if num_batches is None:
            logger.warning(
                "The `batch_sampler` __len__ method is not implemented and drop_last=False. The last tensor may be "
                "incomplete - batch size < %d. To avoid having to handle this special case switch to drop_last=True.",
                self._num_batches_to_combine,
            )
        elif num_batches % self._num_batches_to_combine != 0:
            logger.warning(
                "The number of batches generated by the batch sampler (%d) is not divisible by the number of batches "
                "elements processed per step (%d) and drop_last=False. The last tensor will have a batch size of %s. "
                "To avoid having to handle this special case switch to drop_last=True. Batch size = %s, combined batch "
                "size = %s .",
                num_batches,
                self._num_batches_to_combine,
                num_batches % self._num_batches_to_combine * (batch_size or 1),
                batch_size,
                self._combined,
            )


def combine(batches: Iterable[Any], count: int, *, drop_last: bool) -> Iterator[Any]:
    """Joins each `count` consecutive batches along dim 0; remaining batches are dropped or form a smaller batch."""
    group: List[Sequence[Tensor]] = []
    batch: Any = None
    for batch in batches:
        group.append(flatten(batch))
        if len(group) == count:
            yield rebuild(batch, [torch.cat(tensors) for tensors in zip(*group)])
            group = []
    if group and not drop_last:
        yield rebuild(batch, [torch.cat(tensors) for tensors in zip(*group)])


def _accessor(
    loader: DataLoader, async_options: Dict[str, Any], rebatched_size: Optional[int]
) -> AsynchronousDataAccessor:
    assert "rebatched_size" not in async_options, (
        "You cannot use DataLoaderMode.AsyncRebatched and manually specify the rebatched_size in async_options"
    )
    return AsynchronousDataAccessor(loader, **async_options, rebatched_size=rebatched_size)


def _check_batch_sampler(
    options: Options, batch_size: Optional[int], shuffle: Optional[bool], auto_distributed_partitioning: bool
) -> None:
    if batch_size != 1 or shuffle:
        raise error("`batch_sampler` option is mutually exclusive with batch_size, shuffle.")
    if options.Distributed.numProcesses > 1 and auto_distributed_partitioning:
        raise error("`batch_sampler` option is mutually exclusive with auto_distributed_partitioning=True.")


def _check_iterable(
    options: Options, num_workers: int, auto_distributed_partitioning: bool, kwargs: Dict[str, Any]
) -> None:
    assert options.Distributed.numProcesses == 1 or not auto_distributed_partitioning, (
        "auto_distributed_partitioning not supported for IterableDataset"
    )
    if num_workers > 1 and "worker_init_fn" not in kwargs:
        logger.warning(
            "IterableDataset used with num_workers=%d but no worker_init_fn specified: as a result the DataLoader will "
            "return %d times each element in the dataset (See torch.utils.data.IterableDataset's documentation for "
            "more information)",
            num_workers,
            num_workers,
        )


def _length(batch_sampler: Any) -> Optional[int]:
    """Returns the number of batches, or None if the sampler does not define the number."""
    try:
        length = len(batch_sampler)
    except (TypeError, NotImplementedError):
        return None
    return None if length is NotImplemented else length
