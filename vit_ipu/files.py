"""Files on disk: atomic writes, locks, hashes, and the folder of caches."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import stat
import tempfile
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Dict, Iterator, MutableSet, Optional, Sequence, Union

import platformdirs

from vit_ipu.errors import UserError
from vit_ipu.small_files import open_regular

TEMPORARY = ".writing-"
"""Prefix of the name of an unfinished file or folder."""
REMOVING = ".removing-"
"""Prefix of the name of a folder that is being removed."""
CHECKSUMS = "checksums.json"
"""Name of the file with the size and the SHA-256 of each other file of its folder."""
_MAX_CHECKSUMS = 1 << 20
_CHUNK = 1 << 20

# ------------------------------------------------------------------------- written whole or not at all


@contextmanager
def written_whole(target: Path, *, prefix: str = TEMPORARY, unique: bool = False) -> Iterator[Path]:
    """Yields a temporary path beside `target` for the body to make a file or a folder there; renames it to `target`.

    The new content is on the disk before the rename, so that a crash at any instant leaves either the old content of
    `target` or the new one. If the body raises, even by Ctrl-C, the temporary path is removed. The temporary name ends
    with the name of the target; `unique` gives each process that writes the same target its own temporary name.
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
    """Writes a file completely or not at all; text is written as UTF-8."""
    with written_whole(target, prefix=prefix) as temporary:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def sync(path: Path) -> None:
    """Flushes a file, or a folder with all files and folders in it, to the disk."""
    if path.is_dir():
        for part in path.iterdir():
            sync(part)
    sync_entry(path)


def sync_entry(path: Path) -> None:
    """Flushes a file's bytes, or a folder's list of names, to the disk."""
    descriptor = os.open(str(path), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Removes a file, or a folder with all files and folders in it, if the path exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(str(path), ignore_errors=True)
    else:
        with suppress(FileNotFoundError):
            path.unlink()


def remove_whole(folder: Path) -> None:
    """Removes a folder under a temporary name, so that a crash at any instant leaves no folder that is half removed."""
    temporary = folder.with_name(f"{REMOVING}{folder.name}")
    remove(temporary)
    os.replace(str(folder), str(temporary))
    sync_entry(folder.parent)
    remove(temporary)


def remove_leftovers(folder: Path, names: str = "*") -> None:
    """Removes what interrupted writes and removals of files and folders of these names left in `folder`."""
    for prefix in (TEMPORARY, REMOVING):
        for path in folder.glob(f"{prefix}{names}"):
            remove(path)


# ------------------------------------------------------------------------------------------ checksums


def write_checksums(folder: Path) -> None:
    """Writes the size and the SHA-256 of each file of a folder to checksums.json, with a SHA-256 of this table."""
    paths = sorted(path for path in folder.iterdir() if path.name != CHECKSUMS)
    table = {path.name: {"size": path.stat().st_size, "sha256": sha256_of(path)} for path in paths}
    (folder / CHECKSUMS).write_text(_text_of_checksums(table), encoding="utf-8")


def find_damage(folder: Path, names: Sequence[str]) -> Optional[str]:
    """Returns what is wrong with a file of a folder, by checksums.json; None if all `names` are as they were written.

    The files are hashed at the same time. Raises FileNotFoundError if there is no checksums.json, and OSError if a
    file cannot be read.
    """
    status = (folder / CHECKSUMS).stat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_CHECKSUMS:
        return f"{CHECKSUMS} is damaged: it is not a small file"
    content = (folder / CHECKSUMS).read_bytes()
    try:
        table = json.loads(content.decode("utf-8"))["files"]
        known = {name: (table[name]["size"], table[name]["sha256"]) for name in names}
        if content != _text_of_checksums(table).encode("utf-8"):
            raise ValueError
    except (ValueError, TypeError, LookupError, RecursionError):
        return f"{CHECKSUMS} is damaged: it is not what was written"
    for name, (size, _) in known.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        found = (folder / name).stat().st_size
        if found != size:
            return f"{name} is damaged: it has {found:,} bytes, which is not its size when it was written"
    with ThreadPoolExecutor(len(names)) as threads:
        hashes = threads.map(lambda name: sha256_of(folder / name), known)
        changed = [name for name, sha256 in zip(known, hashes) if sha256 != known[name][1]]
    return f"{changed[0]} is damaged: its bytes are not those that were written" if changed else None


def _text_of_checksums(table: Dict[str, Any]) -> str:
    own = hashlib.sha256(json.dumps(table, sort_keys=True).encode("utf-8")).hexdigest()
    return json.dumps({"files": table, "sha256": own}, indent=1)


# ---------------------------------------------------------------------------------------------- locks

_locked: MutableSet[IO[Any]] = weakref.WeakSet()


def lock(file: IO[Any]) -> bool:
    """Locks an open file for this process, without waiting; returns False if another process holds the lock.

    The lock ends when the file is closed or the process ends. Forked children do not hold the lock. With the package
    filelock they would hold it, so that the workers of a killed run would keep the run's folder locked.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    _locked.add(file)
    return True


def _let_go_of_locks() -> None:
    """Points a forked child's descriptors of locked files to /dev/null; a close could write buffered bytes."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for file in _locked:
        if not file.closed:
            os.dup2(nothing, file.fileno())
    os.close(nothing)


os.register_at_fork(after_in_child=_let_go_of_locks)

# ---------------------------------------------------------------------------------- hashes and places


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal digits. Raises OSError, or ValueError for a pipe or a device."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        for part in iter(lambda: file.read(_CHUNK), b""):
            digest.update(part)
    return digest.hexdigest()


def place_problem(path: Path) -> Optional[str]:
    """Returns why neither a file nor a folder can be made at `path`, together with missing folders above it; None if
    nothing speaks against it."""
    above = next((folder for folder in path.parents if os.path.lexists(str(folder))), Path())
    if not above.is_dir():
        return f"{above} is not a folder"
    return None if os.access(str(above), os.W_OK | os.X_OK) else f"{above} cannot be written"


def cache_folder() -> Path:
    """Returns the folder of caches: $XDG_CACHE_HOME/vit_ipu, or vit_ipu in the system's own folder of caches.

    Without a home folder, the folder of caches is inside the folder of temporary files.
    """
    try:
        folder = Path(platformdirs.user_cache_dir("vit_ipu", appauthor=False))
    except RuntimeError:  # newer versions raise, older ones leave the ~
        folder = Path("~")
    return folder if folder.is_absolute() else Path(tempfile.gettempdir()) / ".cache" / "vit_ipu"


def is_within(path: Path, folder: Path) -> bool:
    """Tells whether a path, whose links are followed, is a folder or anything in it; neither needs to exist."""
    place, root = os.path.realpath(str(path)), os.path.realpath(str(folder))
    return os.path.commonpath([place, root]) == root


def expand_home(path: str) -> Path:
    """Replaces ~ by the home folder. Raises UserError if the path names a user who does not exist."""
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):  # pathlib raises RuntimeError or KeyError, depending on Python
        raise UserError(f"{path}: cannot expand ~: no such user; give an absolute path")
    return Path(expanded)
