"""A note about images whose transparency is dropped, such as drawings: hidden colours show, often black on black."""

from __future__ import annotations

import contextlib

import numpy as np

from vit_ipu.data.images.decode import EncodedImage
from vit_ipu.data.sources.base import EncodedSource
from vit_ipu.errors import DataError
from vit_ipu.text import Notify, counted

LARGE = 20 * 10**6
"""Pixels above which an image is judged by its header, because decoding it takes long."""
_NUM_PROBED = 16


def note_transparency(source: EncodedSource, notify: Notify, *, remedy: str) -> None:
    """Looks at a few images, spread over the source, and notifies of the number of those with transparency, if any."""
    indices = np.unique(np.linspace(0, len(source) - 1, _NUM_PROBED).astype(np.int64)).tolist()
    num_transparent = sum(_is_transparent_at(source, index) for index in indices)
    source.close_files()  # so that worker processes do not inherit open files
    if num_transparent:
        verb = "has" if num_transparent == 1 else "have"
        notify(
            f"note: of {counted(len(indices), 'image')} looked at, {num_transparent} {verb} transparency, which is "
            f"dropped: {remedy}"
        )


def has_transparency(picture: EncodedImage) -> bool:
    """Tells whether an image has transparent pixels; decodes it only if its header allows this and it is not large.

    Raises DataError if the file is damaged.
    """
    header = picture.header()
    if not header.may_be_transparent or header.size[0] * header.size[1] > LARGE:
        return header.may_be_transparent
    return picture.is_transparent()


def _is_transparent_at(source: EncodedSource, index: int) -> bool:
    with contextlib.suppress(DataError):  # an image that cannot be read is reported when it is loaded
        return has_transparency(source.encoded(index))
    return False
