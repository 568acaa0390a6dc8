"""Counts the operations on files below a folder, and fails or kills the process at a chosen operation.

An operation is an opening for writing, a write, an fsync, a rename, an mkdir, an unlink or an rmdir, of Python's own
functions, or the writing of a file by safetensors, whose code is not Python.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import pathlib
import signal
import threading
from contextlib import contextmanager
from typing import Any, Callable, Iterator, List, NamedTuple, Optional

import pytest
from safetensors import SafetensorError

from vit_ipu.weights import native

ERRORS = ("EIO", "ENOSPC", "short")
"""Failures: an error before anything is done; `short` writes the first half, and then the disk is full."""
KILLS = ("kill before", "kill half", "kill after")
"""Instants at which the process is killed: `half` is after the first half of a write, else before the operation."""


class Fault(NamedTuple):
    """A fault of ERRORS or KILLS at the operation with the number `at`, counted from 0."""

    kind: str
    at: int
    group: bool = False
    """Whether a kill ends the whole process group, workers included, or only the process."""


class FileOperations:
    """The names of the operations that were done, in order, and the fault that ends them."""

    def __init__(self, folder: str, fault: Optional[Fault] = None) -> None:
        self.names: List[str] = []
        self._folder, self._fault, self._counting = os.path.realpath(folder), fault, threading.Lock()

    @property
    def failed(self) -> bool:
        return self._fault is not None and len(self.names) > self._fault.at

    def contains(self, path: Any, dir_fd: Optional[int] = None) -> bool:
        """Tells whether a path, or the file of a descriptor, is below the folder."""
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        elif dir_fd is not None:
            path = os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), path)
        parent, name = os.path.split(os.path.abspath(os.fspath(path)))
        return f"{os.path.join(os.path.realpath(parent), name)}/".startswith(self._folder + "/")

    def do(self, name: str, whole: Callable[[], Any], half: Optional[Callable[[], Any]] = None) -> Any:
        """Counts an operation and does it, unless it is the one that fails."""
        with self._counting:  # checkpoints may be written by a thread
            number = len(self.names)
            self.names.append(name)
        fault = self._fault
        if fault is None or fault.at != number:
            return whole()
        if half is not None and fault.kind in ("short", "kill half"):
            half()
        if fault.kind == "kill after":
            whole()
        if fault.kind in KILLS:
            (os.killpg if fault.group else os.kill)(os.getpid(), signal.SIGKILL)
        code = errno.EIO if fault.kind == "EIO" else errno.ENOSPC
        raise OSError(code, os.strerror(code))


@contextmanager
def watched(folder: Any, fault: Optional[Fault] = None) -> Iterator[FileOperations]:
    """Watches the operations on files below a folder during the body."""
    operations = FileOperations(str(folder), fault)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("replace", "rename", "mkdir", "unlink", "remove", "rmdir", "fsync"):
            _watch(operations, name, patch)
        opener = _opener(operations, io.open)
        patch.setattr(io, "open", opener)
        patch.setattr(builtins, "open", opener)
        patch.setattr(native, "save_file", _tensor_writer(operations, native.save_file))
        yield operations


def _watch(operations: FileOperations, name: str, patch: pytest.MonkeyPatch) -> None:
    original = getattr(os, name)

    def watching(path: Any, *args: Any, **options: Any) -> Any:
        if not operations.contains(path, options.get("dir_fd")):
            return original(path, *args, **options)
        return operations.do(f"{name} {_short(path)}", lambda: original(path, *args, **options))

    patch.setattr(os, name, watching)
    bound = getattr(pathlib, "_normal_accessor", None)  # Python 3.8 binds the functions early
    if bound is not None and hasattr(bound, name):
        patch.setattr(bound, name, watching)


def _opener(operations: FileOperations, original: Callable[..., Any]) -> Callable[..., Any]:
    def watching(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        if isinstance(file, int) or not set(mode) & set("wax+") or not operations.contains(file):
            return original(file, mode, *args, **options)
        name = _short(file)
        raw = operations.do(f"open {name}", lambda: _WatchedFile(file, mode.replace("b", "").replace("t", "")))
        raw.watch(operations, name)
        return _buffered(raw, mode, *args, **options)

    return watching


def _buffered(
    raw: io.RawIOBase,
    mode: str,
    buffering: int = -1,
    encoding: Optional[str] = None,
    errors: Optional[str] = None,
    newline: Optional[str] = None,
    **options: Any,
) -> Any:
    """Returns what `open` would return over a raw file."""
    if buffering == 0:
        return raw
    binary = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
    return binary if "b" in mode else io.TextIOWrapper(binary, encoding, errors, newline, line_buffering=buffering == 1)


class _WatchedFile(io.FileIO):
    """A raw file whose writes are operations; after a write that failed, all later writes fail too, as on a full disk.

    Python's buffers write again what they could not write, when they are closed.
    """

    def watch(self, operations: FileOperations, name: str) -> None:
        self._operations, self._name = operations, name
        self._error: Optional[OSError] = None

    def write(self, content: Any) -> Any:
        if self._error is not None:  # a new one: the same one again would be its own cause, which Python 3.8 cannot end
            raise OSError(self._error.errno, self._error.strerror)
        data, write = bytes(content), super().write
        try:
            return self._operations.do(
                f"write {self._name}", lambda: write(data), lambda: write(data[: len(data) // 2])
            )
        except OSError as error:
            self._error = error
            raise


def _tensor_writer(operations: FileOperations, original: Callable[..., Any]) -> Callable[..., Any]:
    def watching(tensors: Any, path: str, *args: Any) -> Any:
        if not operations.contains(path):
            return original(tensors, path, *args)

        def half() -> None:
            original(tensors, path, *args)
            os.truncate(path, os.path.getsize(path) // 2)

        try:
            return operations.do(f"write {_short(path)}", lambda: original(tensors, path, *args), half)
        except OSError as error:  # as safetensors reports it
            message = f"Error while serializing: I/O error: {error.strerror} (os error {error.errno})"
            raise SafetensorError(message) from None

    return watching


def _short(path: Any) -> str:
    if isinstance(path, int):
        path = os.readlink(f"/proc/self/fd/{path}")
    return "/".join(pathlib.Path(os.fspath(path)).parts[-2:])
