"""Image files, read completely without blocking on pipes, and decoded only when needed."""

from __future__ import annotations

import os
import stat

from vit_ipu.data.images.decode import EncodedImage, unreadable
from vit_ipu.errors import DataError
from vit_ipu.text import escaped


def open_picture(path: str) -> EncodedImage:
    """Opens the image file at `path`. Raises DataError if the file cannot be read."""
    return EncodedImage(read_bytes(path), path)


def read_bytes(path: str) -> bytes:
    """Returns the bytes of the image file at `path`. Raises DataError if the file cannot be read."""
    try:
        with open(path, "rb", buffering=0, opener=_open_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise unreadable(path, "it is not a regular file")
            return file.read()
    except FileNotFoundError:
        raise DataError(f"no image at {escaped(path)}") from None
    except OSError as error:
        raise unreadable(path, error.strerror or str(error)) from None


def _open_at_once(path: str, flags: int) -> int:
    """Opens `path` without blocking: a plain open of a pipe would wait for a writer."""
    return os.open(path, flags | os.O_NONBLOCK)
