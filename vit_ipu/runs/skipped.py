"""List of the images that a run could not read: the file skipped.txt, with a line for each image and its reason."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, Iterable, Iterator

from vit_ipu.errors import UserError
from vit_ipu.files import write_whole
from vit_ipu.small_files import MAX_LIST_BYTES, read_bytes
from vit_ipu.text import reason_of, single_line


class SkippedImages:
    """Images that a run could not read, each once, also if the run is resumed."""

    def __init__(self, path: Path, *, writes: bool) -> None:
        """Reads the whole lines that an interrupted run has written, and removes a last line that a crash cut off.

        Without `writes`, neither reads nor writes the file. Raises UserError if the file cannot be read.
        """
        self._path, self._writes = path, writes
        self._lines: Dict[str, None] = {}
        if writes:
            self._read()

    def _read(self) -> None:
        try:
            content = read_bytes(self._path, limit=MAX_LIST_BYTES)
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            raise UserError(f"{self._path} cannot be read: {reason_of(error)}; remove it to resume") from None
        self._lines = dict.fromkeys(content.decode("utf-8", errors="surrogateescape").split("\n")[:-1])
        whole = "".join(f"{line}\n" for line in self._lines).encode("utf-8", errors="surrogateescape")
        if whole != content:
            write_whole(self._path, whole)

    def __len__(self) -> int:
        return len(self._lines)

    def add(self, images: Iterable[str]) -> Iterator[str]:
        """Yields the images that are not in the list, when each has been added to it."""
        for image in images:
            line = single_line(image)
            if line not in self._lines:
                self._lines[line] = None
                if self._writes:
                    with self._path.open("a", encoding="utf-8", errors="surrogateescape") as file:
                        file.write(f"{line}\n")
                yield image
