"""Classes of which no image is held out: an evaluation's figures leave them out."""

from __future__ import annotations

from typing import List, Sequence

import numpy as np

from vit_ipu.data.sources.base import Source
from vit_ipu.text import Notify, listed


def classes_without_images(source: Source) -> List[str]:
    """Returns the names of the classes of which a source has no image, by label."""
    counts = np.bincount(source.labels, minlength=len(source.classes))
    return [name for name, count in zip(source.classes, counts.tolist()) if not count]


def note_classes_without_images(source: Source, notify: Notify) -> None:
    """Notifies that some classes have no image in `source`, the held-out images, if this is so."""
    missing = classes_without_images(source)
    if missing:
        notify(text_of_note(missing, len(source.classes)))


def text_of_note(missing: Sequence[str], num_classes: int) -> str:
    """Returns the note on one or more classes without held-out images, of `num_classes` classes."""
    verb, them = ("has", "it") if len(missing) == 1 else ("have", "them")
    return (
        f"note: {len(missing):,} of {num_classes:,} classes {verb} no held-out images, so no evaluation measures "
        f"{them}: {listed(missing)}; add images of {them}"
    )
