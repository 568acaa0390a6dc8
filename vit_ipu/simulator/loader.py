"""poptorch.DataLoader: batches combined to what one call of a model consumes (python/__init__.py:229-520)."""

from __future__ import annotations

from typing import Any, Dict, Optional

import torch
from torch.utils.data import IterableDataset

from vit_ipu.simulator.enums import DataLoaderMode
from vit_ipu.simulator.errors import error
from vit_ipu.simulator.options import Options


class DataLoader(torch.utils.data.DataLoader):  # type: ignore[type-arg]
    """A torch DataLoader whose batches hold batch_size x D x G x R samples; it freezes the options.

    Async mode fetches as Sync does here: the batches are the same. Rebatching and several processes are not
    simulated.
    """

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
        if not isinstance(options, Options):
            raise error("Invalid type: 'options' is of type {} (Expected poptorch.Options)".format(type(options)))
        if mode == DataLoaderMode.AsyncRebatched:
            raise NotImplementedError("poptorch.DataLoaderMode.AsyncRebatched is not simulated")
        if batch_sampler is not None:
            raise NotImplementedError("poptorch.DataLoader(batch_sampler=...) is not simulated")
        if options.Distributed.numProcesses > 1:
            raise NotImplementedError("poptorch.DataLoader over several processes is not simulated")
        options._freeze()
        self._options = options
        if not isinstance(dataset, IterableDataset):
            kwargs["shuffle"] = bool(shuffle)
        self._combined = None if batch_size is None else batch_size * _micro_batches(options)
        super().__init__(
            dataset,
            batch_size=self._combined,
            num_workers=num_workers,
            drop_last=drop_last and batch_size is not None,
            persistent_workers=(num_workers > 0) if persistent_workers is None else persistent_workers,
            **kwargs,
        )

    @property
    def combinedBatchSize(self) -> Optional[int]:
        """Samples that one call consumes; None without automatic batching."""
        return self._combined

    @property
    def options(self) -> Options:
        """The options that the loader was made for."""
        return self._options

    def terminate(self) -> None:
        """Stops workers that are kept between epochs."""
        iterator = getattr(self, "_iterator", None)
        if iterator is not None and hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()
            self._iterator = None


def _micro_batches(options: Options) -> int:
    groups = options.replication_factor // options.input_group_size
    return int(options.device_iterations * options.Training.gradient_accumulation * groups)
