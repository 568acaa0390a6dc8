"""Error classes of the program, and suggestions for misspelt names.

Each message is one line: what was wrong, where, the value, and then what to do.
"""

from __future__ import annotations

import difflib
from typing import Iterable


class UserError(ValueError):
    """A mistake of the user. The program exits with 2."""


class ConfigError(UserError):
    """A mistake in a configuration: the message has the key, the numbers and the remedy."""


class DeviceError(UserError):
    """A device that is missing or cannot be used."""


class DataError(UserError):
    """Images that are missing or cannot be read: the message has the path and the remedy."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged or of another kind: the message has the path and the remedy."""


class DamagedCheckpoint(CheckpointError):
    """A checkpoint with a file that is missing or is not what was written: an older checkpoint may be whole."""


class NotSupported(ValueError):
    """A value in a sound file that this program cannot follow: the message has the key and the value, not the path."""


class RunFailed(RuntimeError):
    """Work that cannot continue. The program exits with 1."""


class WorkersFailed(RunFailed):
    """Processes that load images and cannot be started, or have died: a run can be resumed with fewer of them."""


class Interrupted(Exception):
    """Raised if a stop is requested in the middle of work whose partial result is useless."""


class PackInterrupted(Exception):
    """Raised when packing is interrupted by Ctrl-C: the message states how much is done."""


def suggest(word: str, known: Iterable[str]) -> str:
    """Returns the end of a message about an unknown name: the known name that resembles it, or all known names."""
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f": use one of {', '.join(names)}"
