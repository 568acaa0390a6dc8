"""Terminal output of the command line: safe text, and errors as one line with an exit code."""

import errno
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import typer

from vit_ipu.errors import RunFailed, UserError
from vit_ipu.text import printable, shortened, single_line

if TYPE_CHECKING:
    from rich.console import Console

_USAGE_ERROR: Any = typer.BadParameter.__base__  # the class of click, or of the copy of click in newer typers
_USERS_ERRNO = (errno.EACCES, errno.EPERM, errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG)
_LONGEST = 400


def exit_code(error: Exception) -> int:
    """Returns 2 for a mistake of the user, 1 for a run that failed."""
    users = isinstance(error, OSError) and error.errno in _USERS_ERRNO
    return 2 if users or isinstance(error, (UserError, _USAGE_ERROR)) else 1


def error_line(error: Exception) -> str:
    """Returns an error as one line, which starts with the exception's class if its message is not written for users."""
    if isinstance(error, OSError) and error.strerror and not isinstance(error, UserError):
        return printable(f"{error.filename}: {error.strerror}" if error.filename else error.strerror)
    text = error.format_message() if hasattr(error, "format_message") else str(error)
    if isinstance(error, (UserError, RunFailed, _USAGE_ERROR)):
        return printable(single_line(text))
    if "Traceback" in text:  # torch puts a worker's complete traceback into the message
        text = text.strip().splitlines()[-1]
    text = shortened(printable(single_line(text)), _LONGEST) or "no message"
    return f"{type(error).__name__}: {text} (--debug shows where)"


def print_error(text: str) -> None:
    """Prints a line on stderr, after the name of the program."""
    print(f"vit-ipu: {text}", file=sys.stderr)


def make_console(as_json: bool) -> "Console":
    """Makes the console for plain text without markup: on stderr if stdout is for JSON, else on stdout."""
    from rich.console import Console

    stream: Any = _Unbroken(sys.stderr if as_json else sys.stdout)
    return Console(file=stream, soft_wrap=True, highlight=False, markup=False)


class _Unbroken:
    """Stream that accepts any text and ignores a closed pipe, because a run matters more than its output."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        with suppress(BrokenPipeError):
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        with suppress(BrokenPipeError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
