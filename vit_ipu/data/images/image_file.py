"""Image files, read completely without blocking on pipes, and decoded only when needed."""

from __future__ import annotations

import os

from vit_ipu.data.images.decode import EncodedImage, unreadable
from vit_ipu.data.images.pillow_formats import MAX_FILE_BYTES
from vit_ipu.errors import DataError
from vit_ipu.small_files import open_regular
from vit_ipu.text import escaped, reason_of


def open_picture(path: str) -> EncodedImage:
    """Opens the image file at `path`. Raises DataError if the file cannot be read."""
    return EncodedImage(read_bytes(path), path)


def read_bytes(path: str) -> bytes:
    """Returns the bytes of the image file at `path`. Raises DataError if the file cannot be read."""
    try:
        with open_regular(path, buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_FILE_BYTES:
                raise unreadable(path, f"it has {size:,} bytes, and at most {MAX_FILE_BYTES:,} are read")
            return file.read()
    except FileNotFoundError:
        raise DataError(f"no image at {escaped(path)}") from None
    except DataError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a pipe, or a name that no file can have
        raise unreadable(path, reason_of(error)) from None
