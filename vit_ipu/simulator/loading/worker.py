"""The worker process of an AsynchronousDataAccessor: iterates over the dataset and fills the ring.

The work and the waits of the worker follow python/_dataloader.py:183-543.
"""

from __future__ import annotations

import enum
import itertools
import os
import pickle
import signal
from dataclasses import dataclass
from multiprocessing import forkserver, parent_process, set_forkserver_preload
from multiprocessing.connection import Connection, wait
from typing import Any, Iterable, Iterator, List, Optional, Tuple

from torch import Tensor

from vit_ipu.simulator import machine
from vit_ipu.simulator.errors import error
from vit_ipu.simulator.face import Installer
from vit_ipu.simulator.loading.ring import RingMemory, RingWriter
from vit_ipu.simulator.logs import logger
from vit_ipu.simulator.nested import flatten, rebuild

Parts = List[List[Tensor]]
"""A batch in parts, to be joined along dim 0."""


class Command(enum.IntEnum):
    """A command from the host to the worker."""

    Ready = 0
    Start = 1
    Restart = 2
    Shutdown = 3


@dataclass(frozen=True)
class WorkerSettings:
    """Settings for filling the ring, named as the arguments of AsynchronousDataAccessor."""

    buffer_size: int
    miss_sleep_time_in_ms: float
    load_indefinitely: bool
    early_preload: bool
    rebatched_size: Optional[int]


@dataclass(frozen=True)
class DatasetFile:
    """A dataset that is passed to the worker as a pickle file."""

    path: str


class Installation:
    """Installs the simulator in the new process that unpickles this object, as it is installed in this process.

    This object is sent before the dataset, because the dataset's module may import poptorch.
    """

    def __init__(self, installer: Installer) -> None:
        self._installer = installer

    def __reduce__(self) -> Tuple[Installer, Tuple[int, str, bool]]:
        here = machine.current
        return self._installer, (here.num_ipus, str(here.device), here.hardware)


def serve(
    installation: Any,
    dataset: Any,
    settings: WorkerSettings,
    memory: Connection,
    commands: Connection,
) -> None:
    """Runs the worker until the host sends Shutdown or dies; an exception of the dataset ends the process."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a forked process has the host's handlers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    preload()  # a DataLoader starts its own workers in the way that this process was started
    try:
        logger.debug("AsynchronousDataAccessor worker process: %d", os.getpid())
        if isinstance(dataset, DatasetFile):
            with open(dataset.path, "rb") as file:
                dataset = pickle.load(file)
        _Worker(dataset, settings, commands).run(memory)
    except KeyboardInterrupt:
        pass  # Ctrl-C reaches every process of the terminal: the host reports it


def preload() -> None:
    """Makes a fork server import torch and the simulator once, rather than in each process that it forks."""
    modules = getattr(forkserver._forkserver, "_preload_modules", ["__main__"])  # the program may set these
    set_forkserver_preload(modules + [name for name in ("torch", "vit_ipu.simulator.module") if name not in modules])


class _Restart(Exception):
    """Raised if the host requests an epoch from its beginning."""


class _Shutdown(Exception):
    """Raised if the host requests no more batches."""


class _Worker:
    def __init__(self, dataset: Any, settings: WorkerSettings, commands: Connection) -> None:
        self._dataset, self._settings = dataset, settings
        self._host = _Host(commands)
        self._template: Any = None
        self._batches: Optional[Iterator[Parts]] = None  # the rest of the epoch

    def run(self, memory: Connection) -> None:
        """Describes the batches to the host, then fills the ring, epoch after epoch."""
        self._first_epoch(memory)
        prefetch = self._settings.early_preload
        while not self._host.shutdown:
            try:
                self._epoch(prefetch=prefetch)
                prefetch = self._settings.load_indefinitely
            except _Restart:
                logger.debug("AsynchronousDataAccessor worker: a new iterator was asked for")
                self._batches = None  # the old iterator's workers end before new workers start
                self._batches = self._new_epoch()
                self._ring.restart()
                prefetch = False
            except _Shutdown:
                break
        logger.debug("AsynchronousDataAccessor worker: clean exit")

    def _first_epoch(self, memory: Connection) -> None:
        source = iter(self._dataset)
        first = next(source, None)
        if first is None:
            raise error("The Dataset is empty")
        self._template = template_of(first)
        tensors = self._tensors(first)
        size = self._settings.rebatched_size
        examples = tensors if size is None else [tensor[:1].expand(size, *tensor.shape[1:]) for tensor in tensors]
        shared = RingMemory(self._settings.buffer_size, examples)
        self._ring = RingWriter(shared)
        memory.send((shared, self._template))
        self._host.wait_until_ready()
        batches = self._batched(itertools.chain([tensors], map(self._tensors, source)))
        if size is None:  # without rebatching, the first batch is ready before the host asks for it
            self._write(next(batches))
        self._batches = batches

    def _epoch(self, *, prefetch: bool) -> None:
        """Fills the ring with the rest of an epoch and its end; without `prefetch`, waits until the host starts."""
        if not prefetch:
            self._host.wait_until_started()
        if self._batches is None:
            self._batches = self._new_epoch()
        for batch in self._batches:
            self._wait_for_slot()
            self._write(batch)
        self._host.wait_until_started()  # the next epoch does not begin while this epoch is only prefetched
        self._wait_for_slot()
        logger.debug("AsynchronousDataAccessor worker: end of dataset reached")
        self._ring.write_end()
        self._host.started = False
        self._batches = self._new_epoch() if self._settings.load_indefinitely else None

    def _new_epoch(self) -> Iterator[Parts]:
        return self._batched(map(self._tensors, iter(self._dataset)))

    def _batched(self, batches: Iterable[List[Tensor]]) -> Iterator[Parts]:
        size = self._settings.rebatched_size
        if size is None:
            return ([batch] for batch in batches)
        return rebatch(batches, size, drop_last=bool(getattr(self._dataset, "rebatched_drop_last", True)))

    def _write(self, batch: Parts) -> None:
        if self._settings.rebatched_size is None:
            self._ring.write(batch[0])
        else:
            self._ring.write_parts(batch)

    def _wait_for_slot(self) -> None:
        self._host.listen()
        while not self._ring.is_free():
            self._host.listen(timeout=self._settings.miss_sleep_time_in_ms / 1000)

    def _tensors(self, data: Any) -> List[Tensor]:
        return tensors_of(data, self._template)


class _Host:
    """The worker's view of the host, which sends commands through a pipe."""

    def __init__(self, commands: Connection) -> None:
        self._commands = commands
        parent = parent_process()
        self._sources: List[Any] = [commands] + ([] if parent is None else [parent.sentinel])
        self.started = False
        self.shutdown = False
        self._ready = False

    def wait_until_ready(self) -> None:
        """Waits until the host has mapped the shared memory, which must exist until then."""
        while not self._ready and not self.shutdown:
            self._receive(None)

    def wait_until_started(self) -> None:
        """Waits until the host iterates. Raises _Restart or _Shutdown if the host sends that command instead."""
        while not self.started:
            self.listen(timeout=None)

    def listen(self, timeout: Optional[float] = 0) -> None:
        """Receives a command if the host sends it within `timeout` seconds. Raises _Restart or _Shutdown."""
        if self._receive(timeout) == Command.Restart:
            raise _Restart
        if self.shutdown:
            raise _Shutdown

    def _receive(self, timeout: Optional[float]) -> Optional[Command]:
        sources = wait(self._sources, timeout)
        if not sources:
            return None
        try:
            command = self._commands.recv() if self._commands in sources else Command.Shutdown
        except EOFError:  # the host is gone
            command = Command.Shutdown
        self._ready = self._ready or command == Command.Ready
        self.started = command == Command.Start or (self.started and command != Command.Restart)
        self.shutdown = self.shutdown or command == Command.Shutdown
        return command


def rebatch(batches: Iterable[List[Tensor]], size: int, *, drop_last: bool) -> Iterator[Parts]:
    """Cuts batches of any sizes into batches of `size` samples; the last batch may be smaller unless it is dropped."""
    parts: Parts = []
    missing = size
    for batch in batches:
        while len(batch[0]) > 0:
            parts.append([tensor[:missing] for tensor in batch])
            batch = [tensor[missing:] for tensor in batch]
            missing -= len(parts[-1][0])
            if missing == 0:
                yield parts
                parts, missing = [], size
    if parts and not drop_last:
        yield parts


def template_of(data: Any) -> Any:
    """Returns the structure of a batch with empty tensors: a tensor, a list, a dict, or a type with a custom parser."""
    if isinstance(data, Tensor):
        return Tensor()
    if isinstance(data, dict):
        return {key: Tensor() for key in data}
    if isinstance(data, (list, tuple)):
        return [Tensor() for _ in data]
    return rebuild(data, [Tensor() for _ in flatten(data)])


def tensors_of(data: Any, template: Any) -> List[Tensor]:
    """Returns a batch's tensors in the template's order. Raises AssertionError for any but a flat container."""
    if isinstance(data, Tensor):
        return [data]
    if isinstance(data, dict):
        assert len(data) == len(template)
        tensors = [data[key] for key in template]
    else:
        tensors = list(data) if isinstance(data, (list, tuple)) else flatten(data)
    for index, tensor in enumerate(tensors):
        assert isinstance(tensor, Tensor), (
            f"Tensor at index {index} is not a torch tensor ({type(tensor)}). AsynchronousDataAccessor expects data to "
            "be organised as a flat 1D container of tensors."
        )
    assert tensors, f"AsynchronousDataAccessor expects tensors, got {type(data)}"
    return tensors
