"""Files on disk: written whole or not at all, locked, hashed, and the folder for what can be made again."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import weakref
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Iterator, MutableSet, Union

import platformdirs

from vit_ipu.errors import UserError

TEMPORARY = ".writing-"
"""How the name of an unfinished file or folder begins."""
_CHUNK = 1 << 20

# ------------------------------------------------------------------------- written whole or not at all


@contextmanager
def written_whole(target: Path, *, prefix: str = TEMPORARY, unique: bool = False) -> Iterator[Path]:
    """Yields a temporary path beside `target`, where the body makes a file or a folder; renames it to `target`.

    What the body made is on the disk before it has its name, so that a crash at any instant leaves either what stood
    at `target` before or what is new. If the body raises, even by Ctrl-C, nothing of it stays. The temporary name ends
    as the target's does; `unique` tells apart several processes that write the same target.
    """
    middle = f"{os.getpid()}-" if unique else ""
    temporary = target.with_name(f"{prefix}{middle}{target.name}")
    remove(temporary)
    try:
        yield temporary
        sync(temporary)
        os.replace(str(temporary), str(target))
        sync_entry(target.parent)
    finally:
        remove(temporary)


def write_whole(target: Path, content: Union[str, bytes], *, prefix: str = TEMPORARY) -> None:
    """Writes a file whole or not at all; text is UTF-8."""
    with written_whole(target, prefix=prefix) as temporary:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def sync(path: Path) -> None:
    """Makes sure that a file, or a folder with all that it holds, is on the disk."""
    if path.is_dir():
        for part in path.iterdir():
            sync(part)
    sync_entry(path)


def sync_entry(path: Path) -> None:
    """Makes sure that a file's bytes, or a folder's list of names, are on the disk."""
    descriptor = os.open(str(path), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Removes a file, or a folder with all that it holds, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(str(path), ignore_errors=True)
    else:
        with suppress(FileNotFoundError):
            path.unlink()


# ---------------------------------------------------------------------------------------------- locks

_locked: MutableSet[IO[Any]] = weakref.WeakSet()


def lock(file: IO[Any]) -> bool:
    """Locks an open file for this process, without waiting; returns whether no other process has it.

    The lock ends when the file is closed or the process ends. Forked children do not hold it: filelock's would, so
    that the workers of a killed run would keep its folder locked.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    _locked.add(file)
    return True


def _let_go_of_locks() -> None:
    """Points a forked child's descriptors of locked files to nothing: to close them could write what is buffered."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for file in _locked:
        if not file.closed:
            os.dup2(nothing, file.fileno())
    os.close(nothing)


os.register_at_fork(after_in_child=_let_go_of_locks)

# ---------------------------------------------------------------------------------- hashes and places


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal digits. Raises OSError if it cannot be read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for part in iter(lambda: file.read(_CHUNK), b""):
            digest.update(part)
    return digest.hexdigest()


def cache_folder() -> Path:
    """Returns the folder for what can be made again: $XDG_CACHE_HOME/vit_ipu, or the system's own place for caches.

    Without a home folder it is below that of temporary files.
    """
    try:
        folder = Path(platformdirs.user_cache_dir("vit_ipu", appauthor=False))
    except RuntimeError:  # newer versions raise, older ones leave the ~
        folder = Path("~")
    return folder if folder.is_absolute() else Path(tempfile.gettempdir()) / ".cache" / "vit_ipu"


def expand_home(path: str) -> Path:
    """Replaces ~ by the home folder. Raises UserError if it names a user who does not exist."""
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):  # pathlib raises RuntimeError or KeyError here, by Python's version
        raise UserError(f"{path}: cannot expand ~: no such user; give an absolute path")
    return Path(expanded)
