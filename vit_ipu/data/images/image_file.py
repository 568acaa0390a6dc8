"""Image files: read whole, without waiting for a pipe, and decoded when they are needed."""

from __future__ import annotations

import os
import stat

from vit_ipu.data.images.decode import EncodedImage, unreadable
from vit_ipu.errors import DataError
from vit_ipu.text import escaped


def open_picture(path: str) -> EncodedImage:
    """The image file at `path`. Raises DataError if it cannot be read."""
    return EncodedImage(read_bytes(path), path)


def read_bytes(path: str) -> bytes:
    """The image file at `path` as it is. Raises DataError if it cannot be read."""
    try:
        with open(path, "rb", buffering=0, opener=_open_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise unreadable(path, "it is no regular file")
            return file.read()
    except FileNotFoundError:
        raise DataError(f"no image at {escaped(path)}") from None
    except OSError as error:
        raise unreadable(path, error.strerror or str(error)) from None


def _open_at_once(path: str, flags: int) -> int:
    """Of a pipe, open would wait for somebody who writes."""
    return os.open(path, flags | os.O_NONBLOCK)
