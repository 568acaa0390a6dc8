"""poptorch.AsynchronousDataAccessor: reads a dataset ahead in a separate process (python/__init__.py:526-657)."""

from __future__ import annotations

import os
import pickle
import signal
import tempfile
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any, Iterator, Optional, Tuple

import torch.multiprocessing

from vit_ipu.simulator import face
from vit_ipu.simulator.enums import SharingStrategy
from vit_ipu.simulator.errors import error
from vit_ipu.simulator.loading.ring import RingMemory, RingReader
from vit_ipu.simulator.loading.worker import Command, DatasetFile, Installation, WorkerSettings, preload, serve
from vit_ipu.simulator.logs import logger
from vit_ipu.simulator.nested import rebuild

GRACE_S = 10.0
"""Seconds that a worker has to end after the command Shutdown, after SIGINT, and after SIGTERM."""

_POLL_S = 1e-4
_START_METHODS = {SharingStrategy.Fork: "fork", SharingStrategy.ForkServer: "forkserver"}


class CombinedLoader:
    """The attributes of a poptorch.DataLoader that an accessor needs.

    The DataLoader derives from this class, because its module imports this module and cannot be imported here.
    """

    _accessor: Optional[AsynchronousDataAccessor]
    drop_last: bool
    batch_sampler_is_custom: bool

    @property
    def combinedBatchSize(self) -> Optional[int]:
        raise NotImplementedError


class AsynchronousDataAccessor:
    """Iterates over a dataset, or a DataLoader, that a worker process reads ahead into a ring of shared memory.

    A yielded batch lies in that ring and is overwritten after the next batch is requested. Tuples and lists are yielded
    as lists. A batch must be a tensor, a flat container of tensors, or of a type with a custom parser.
    """

    def __init__(
        self,
        dataset: Any,
        buffer_size: int = 3,
        miss_sleep_time_in_ms: float = 0.1,
        load_indefinitely: bool = True,
        early_preload: bool = False,
        sharing_strategy: SharingStrategy = SharingStrategy.ForkServer,
        rebatched_size: Optional[int] = None,
    ) -> None:
        """Starts the worker and waits for its first element. Raises Error if the worker fails before that."""
        self._worker: Optional[_WorkerProcess] = None
        _check_dataset(dataset, rebatched_size)
        self._dataset = dataset
        self.rebatched_size = rebatched_size
        settings = WorkerSettings(buffer_size, miss_sleep_time_in_ms, load_indefinitely, early_preload, rebatched_size)
        self._worker = _WorkerProcess(dataset, settings, sharing_strategy)

    def terminate(self) -> None:
        """Ends the worker process; the accessor cannot be iterated over any more."""
        if self._worker is not None:
            self._worker.terminate()
            self._worker = None

    def __len__(self) -> int:
        length = len(self._dataset)
        if self.rebatched_size and getattr(self._dataset, "_accessor", None) is not self:
            return int(length * self._dataset.batch_size // self.rebatched_size)
        return length  # a DataLoader that holds this accessor already counts combined batches

    def __iter__(self) -> AsynchronousDataAccessor:
        self._running().start_epoch()
        return self

    def __next__(self) -> Any:
        return self._running().next()

    def _running(self) -> _WorkerProcess:
        assert self._worker is not None, "This AsynchronousDataAccessor has been terminated."
        return self._worker


def _check_dataset(dataset: Any, rebatched_size: Optional[int]) -> None:
    if isinstance(dataset, CombinedLoader):
        if dataset._accessor is not None:
            raise error(
                "The DataLoader already uses an AsynchronousDataAccessor internally. Either use the existing one or "
                "set mode='poptorch.DataLoaderMode.Sync' in the DataLoader."
            )
        whole = dataset.drop_last or dataset.batch_sampler_is_custom or dataset.combinedBatchSize in (None, 1)
        assert whole or rebatched_size is not None, (
            "The 'drop_last=False' option from the DataLoader only works if 'rebatched_size' is specified too."
        )
    assert rebatched_size is None or rebatched_size > 1, "rebatched_size must be None or greater than 1"


class _WorkerProcess:
    """The host's handle of the worker process."""

    def __init__(self, dataset: Any, settings: WorkerSettings, strategy: SharingStrategy) -> None:
        self._restarts = 0
        self._started = self._used = self._ended = False
        with _sendable(dataset, strategy) as sendable:
            self.process, memory, self._commands = _start(sendable, settings, strategy)
            self._end = Finalize(self, _end, (self.process, self._commands), exitpriority=10)
            self._data_buffers, self._template = self._receive(memory)
        self._tell(Command.Ready)

    def terminate(self) -> None:
        self._end()

    def start_epoch(self) -> None:
        """Begins an epoch, cutting the current epoch short; does nothing if no batch of the current epoch was taken."""
        if self._started and not self._used:
            return
        self._data_buffers.release()
        if self._used and not self._ended:
            self._cut_short()
        self._tell(Command.Start)
        self._started, self._used, self._ended = True, False, False

    def next(self) -> Any:
        """Returns the next batch. Raises StopIteration at the epoch's end, AssertionError if the worker has died."""
        assert self._started, "AsynchronousDataAccessor: call iter() before next()."
        self._used = True
        self._data_buffers.release()
        while not self._ended:
            alive = self._is_alive()
            if not self._data_buffers.is_ready():
                self._check(alive)
            elif self._data_buffers.at_end():
                self._data_buffers.skip()
                self._ended = True
            else:
                return rebuild(self._template, self._data_buffers.take())
        raise StopIteration

    def _cut_short(self) -> None:
        """Makes the worker restart its iteration, or skips the end of the epoch if only the end is left."""
        if self._data_buffers.is_ready() and self._data_buffers.at_end():
            self._data_buffers.skip()
            return
        self._tell(Command.Restart)
        self._restarts += 1
        while self._data_buffers.restarts < self._restarts:
            self._check(self._is_alive())
        self._data_buffers.restart()

    def _tell(self, command: Command) -> None:
        try:
            self._commands.send(command)
        except OSError:
            self._check(alive=False)

    def _is_alive(self) -> bool:
        return self.process.exitcode is None

    def _check(self, alive: bool) -> None:
        """Waits briefly for a worker that is alive; raises AssertionError if `alive` is false."""
        assert alive, "An error occurred in the data fetcher"
        wait([self.process.sentinel], _POLL_S)

    def _receive(self, memory: Connection) -> Tuple[RingReader, Any]:
        """Returns a reader of the shared memory and the batches' structure, once the worker has loaded a batch."""
        shared: Optional[RingMemory] = None
        try:
            wait([memory, self.process.sentinel])
            if memory.poll():
                shared, template = memory.recv()
        except (EOFError, OSError):  # the worker died while sending
            pass
        finally:
            memory.close()
            if shared is None:
                self.terminate()
        if shared is None:
            raise error("AsynchronousDataAccessor worker thread failed to start (Check above for details)")
        return RingReader(shared), template


@contextmanager
def _sendable(dataset: Any, strategy: SharingStrategy) -> Iterator[Any]:
    """Yields the dataset for the new process, or a file of the dataset that exists until the `with` block ends."""
    if strategy != SharingStrategy.FileSystem:
        yield dataset
        return
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "dataset.pkl")
        logger.debug("Serialising dataset to file: %s", path)
        with open(path, "wb") as file:
            pickle.dump(dataset, file, protocol=4)
        yield DatasetFile(path)


def _start(
    dataset: Any, settings: WorkerSettings, strategy: SharingStrategy
) -> Tuple[BaseProcess, Connection, Connection]:
    """Starts a worker; returns its process, the connection for its memory, and the connection for commands."""
    method = _START_METHODS.get(strategy, "spawn")
    context: Any = torch.multiprocessing.get_context(method)
    preload()
    logger.debug("AsynchronousDataAccessor parent process: %d", os.getpid())
    memory, memory_of_worker = context.Pipe(duplex=False)
    commands_of_worker, commands = context.Pipe(duplex=False)
    installer = face.installer() if method != "fork" else None
    installation = None if installer is None else Installation(installer)
    process = context.Process(
        target=serve, args=(installation, dataset, settings, memory_of_worker, commands_of_worker)
    )
    try:
        process.start()
    finally:
        memory_of_worker.close()
        commands_of_worker.close()
    return process, memory, commands


def _end(process: BaseProcess, commands: Connection) -> None:
    """Ends a worker: sends Shutdown, then SIGINT if the dataset does not return, then SIGTERM, then SIGKILL."""
    with suppress(OSError):  # the worker may be dead already
        commands.send(Command.Shutdown)
    process.join(GRACE_S)
    if process.exitcode is None and process.pid is not None:
        os.kill(process.pid, signal.SIGINT)
        process.join(GRACE_S)
    if process.exitcode is None:
        process.terminate()
        process.join(GRACE_S)
    if process.exitcode is None:
        process.kill()
        process.join()
    commands.close()
