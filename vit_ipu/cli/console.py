"""Terminal output of the command line: safe text, and errors as one line with an exit code."""

import errno
import os
import re
import select
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Iterator, Optional, TextIO, cast

import typer

from vit_ipu.errors import RunFailed, UserError
from vit_ipu.text import escaped, message, reason_of, shortened, single_line

if TYPE_CHECKING:
    from rich.console import Console

_USAGE_ERROR: Any = typer.BadParameter.__base__  # the class of click, or of the copy of click in newer typers
_USERS_ERRNO = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOENT,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
)
_LONGEST = 400
_NO_MEMORY = re.compile("can't allocate memory|out of memory")
"""Part of the messages of torch's RuntimeErrors if memory cannot be allocated."""
_PIECE = 1000
"""Characters that are written at a time: a pipe that has room takes 4096 bytes without blocking (PIPE_BUF)."""
_PATIENCE = 1.0
"""Seconds to wait for the reader of a full pipe."""


def exit_code(error: Exception) -> int:
    """Returns 2 for a mistake of the user, 1 for a run that failed."""
    users = isinstance(error, OSError) and error.errno in _USERS_ERRNO
    return 2 if users or isinstance(error, (UserError, _USAGE_ERROR)) else 1


def error_line(error: Exception) -> str:
    """Returns an error as one line, which starts with the exception's class if its message is not written for users."""
    if isinstance(error, OSError) and error.strerror and not isinstance(error, UserError):
        return message(f"{error.filename}: {error.strerror}" if error.filename else error.strerror)
    text = error.format_message() if hasattr(error, "format_message") else str(error)
    if isinstance(error, (UserError, RunFailed, _USAGE_ERROR)):
        return message(single_line(text))
    if isinstance(error, MemoryError) or _NO_MEMORY.search(text):
        asked = re.search(r"ried to allocate ([\d.]+ \w+)", text)
        return (
            f"not enough memory{f' ({asked[1]} were asked for)' if asked else ''}: lower pipeline.micro_batch_size or "
            "data.num_workers, or stop other programs (--debug shows where)"
        )
    if "Traceback" in text:  # torch puts a worker's complete traceback into the message
        text = text.strip().splitlines()[-1]
    text = shortened(escaped(single_line(text)), _LONGEST) or "no message"
    return f"{type(error).__name__}: {text} (--debug shows where)"


def print_error(text: str) -> None:
    """Prints a line on stderr, after the name of the program; the line is lost if stderr cannot be written."""
    try:
        print(f"vit-ipu: {message(text)}", file=sys.stderr, flush=True)
    except (OSError, ValueError):
        _point_to_nowhere(sys.stderr)


# ------------------------------------------------------------------------- streams that may not work


@contextmanager
def standard_streams() -> Iterator[None]:
    """Makes errors of standard output name it, and flushes it at the end.

    A closed standard stream is replaced by /dev/null, so that no file that is opened later takes its number and gets
    what other code prints.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    before = sys.stdout, sys.stderr
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8", closefd=False)
    output = _CheckedOutput(sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False))
    sys.stdout = cast(TextIO, output)
    try:
        yield
        output.flush()
    finally:
        sys.stdout = before[0]
        sys.stderr = before[1] or sys.stderr


class _CheckedOutput:
    """Standard output, whose errors name it.

    After an error, nothing more is written, and every call raises the error again: click swallows the first one.
    """

    def __init__(self, stream: Any) -> None:
        self.unchecked = stream
        self._error: Optional[Exception] = None

    def write(self, text: str) -> int:
        with self._checked():
            self.unchecked.write(text)
        return len(text)

    def flush(self) -> None:
        with self._checked():
            self.unchecked.flush()

    @contextmanager
    def _checked(self) -> Iterator[None]:
        if self._error is not None:
            raise self._error
        try:
            yield
        except OSError as error:
            _point_to_nowhere(self.unchecked)
            is_pipe = isinstance(error, BrokenPipeError)
            self._error = error if is_pipe else RunFailed(f"cannot write to standard output: {reason_of(error)}")
            raise self._error from None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unchecked, name)


def _point_to_nowhere(stream: Any) -> None:
    """Makes a stream that cannot be written lose the text it holds, which Python would otherwise write at exit."""
    with suppress(OSError, ValueError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, stream.fileno())
        os.close(nothing)


def make_console(as_json: bool, *, keep_going: bool = False) -> "Console":
    """Makes the console for plain text without markup: on stderr if stdout is for JSON, else on stdout.

    `keep_going`: lose text that cannot be written, rather than fail, because the work matters more.
    """
    from rich.console import Console

    class SafeConsole(Console):
        """Console whose texts are messages, in which names of files, tensors and classes are escaped."""

        def print(self, *objects: Any, **options: Any) -> None:
            super().print(*(message(part) if isinstance(part, str) else part for part in objects), **options)

    stream: Any = sys.stderr if as_json else sys.stdout
    if as_json or keep_going:
        stream = _LossyOutput(stream, "standard error" if as_json else "standard output")
    options: Any = {"soft_wrap": True, "highlight": False, "markup": False}
    # A notebook gets plain lines, like a file: rich would show each line as an output of its own.
    return SafeConsole(file=_AnyText(stream), force_jupyter=False, **options)  # type: ignore[arg-type]


class _AnyText:
    """Stream that accepts characters that the terminal's encoding lacks."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _LossyOutput:
    """Stream that never fails and never blocks for long.

    If the stream cannot be written, one line on stderr says so, and later text is lost. While a pipe that nobody reads
    is full, text is lost too.
    """

    def __init__(self, stream: Any, name: str) -> None:
        self._stream, self._name = getattr(stream, "unchecked", stream), name
        self._has_warned = self._is_lost = False
        self._patience = _PATIENCE

    def write(self, text: str) -> int:
        for start in range(0, len(text), _PIECE):
            try:
                if not self._is_lost and self._has_room():
                    self._stream.write(text[start : start + _PIECE])
                    self._stream.flush()
            except (OSError, ValueError) as error:
                self._is_lost = True
                _point_to_nowhere(self._stream)
                self._warn(f"cannot write to {self._name}: {reason_of(error)}; continuing without it")
        return len(text)

    def flush(self) -> None:
        """Does nothing: every write flushes."""

    def _has_room(self) -> bool:
        """Waits a second until a write would not block; does not wait again until there is room."""
        try:
            number = self._stream.fileno()
        except (OSError, ValueError):  # a stream without a file
            return True
        poll = select.poll()
        poll.register(number, select.POLLOUT)
        has_room = bool(poll.poll(1000 * self._patience))
        self._patience = _PATIENCE if has_room else 0.0
        if not has_room:
            self._warn(f"{self._name} is a full pipe that nobody reads: lines are left out")
        return has_room

    def _warn(self, text: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            print_error(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
