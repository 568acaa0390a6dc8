"""A note about images that would train as black: numbers of 12 bits in files of 16 bits."""

from __future__ import annotations

import contextlib
from typing import Optional

import numpy as np

from vit_ipu.data.images.decode import EncodedImage
from vit_ipu.data.images.sixteen_bits import stated_bits
from vit_ipu.data.sources.base import EncodedSource
from vit_ipu.errors import DataError
from vit_ipu.text import Notify, escaped

_NUM_PROBED = 8


def note_dark_images(source: EncodedSource, notify: Notify) -> None:
    """Reads a few images, spread over the source, and notifies of the first that is nearly black in 16 bits."""
    indices = np.unique(np.linspace(0, len(source) - 1, _NUM_PROBED).astype(np.int64)).tolist()
    note = next(filter(None, (_note_at(source, index) for index in indices)), None)
    source.close_files()  # so that worker processes do not inherit open files
    if note is not None:
        notify(note)


def dark_image_note(picture: EncodedImage) -> Optional[str]:
    """Returns a note about an image that is nearly black in 16 bits, and None about another image."""
    if not picture.is_nearly_black_in_sixteen_bits():
        return None
    bits = stated_bits(picture.data)
    return (
        f"note: {escaped(picture.name)} is nearly black: it has {bits} bits a value but none above 4,095, and 65,535 "
        "is white; if the values of such images have 12 bits or fewer, multiply them so that they fill the 16 bits"
    )


def _note_at(source: EncodedSource, index: int) -> Optional[str]:
    with contextlib.suppress(DataError):  # an image that cannot be read is reported when it is loaded
        return dark_image_note(source.picture(index))
    return None
