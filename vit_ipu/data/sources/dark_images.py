"""A note about images that would train as black: numbers of 12 bits in files of 16 bits."""

from __future__ import annotations

import contextlib

import numpy as np

from vit_ipu.data.sources.base import EncodedSource
from vit_ipu.errors import DataError
from vit_ipu.text import Notify, escaped

_NUM_PROBED = 8


def note_dark_images(source: EncodedSource, notify: Notify) -> None:
    """Reads a few images, spread over the source, and notifies of the first that is nearly black in 16 bits."""
    indices = np.unique(np.linspace(0, len(source) - 1, _NUM_PROBED).astype(np.int64)).tolist()
    name = next(filter(None, (_name_if_dark(source, index) for index in indices)), None)
    source.close_files()  # so that worker processes do not inherit open files
    if name is not None:
        notify(
            f"note: {escaped(name)} is nearly black: it has 16 bits a value but none above 4,095, and 65,535 is white; "
            "if the values of such images have 12 bits or fewer, multiply them so that they fill the 16 bits"
        )


def _name_if_dark(source: EncodedSource, index: int) -> str:
    """Returns the image's name if the image is nearly black in 16 bits, or else nothing."""
    with contextlib.suppress(DataError):  # an image that cannot be read is reported when it is loaded
        picture = source.picture(index)
        return picture.name if picture.is_nearly_black_in_sixteen_bits() else ""
    return ""
