"""Choice of the images that are held out for evaluation: the same share of every class."""

from __future__ import annotations

import hashlib
import os

import numpy as np

from vit_ipu.data.sources.listing import ImagePaths


def held_out(paths: ImagePaths, share: float) -> np.ndarray:
    """Returns a mask (n,) of the images that are held out: of each class `share`, rounded, but at least one of two.

    The images of a class are ranked by the SHA-256 of the names of class and file, and the first ones are held out. So
    the choice depends on nothing else, and an image that is added or removed changes it little. A class of one image
    has none held out.
    """
    mask = np.zeros(len(paths), bool)
    for number, folder in enumerate(paths.folders):
        indices = np.flatnonzero(paths.folder == number)
        ranks = [_rank(os.path.basename(folder), paths.name(int(index))) for index in indices]
        mask[indices[np.argsort(ranks, kind="stable")[: num_held_out(len(indices), share)]]] = True
    return mask


def held_out_labels(labels: np.ndarray, share: float) -> np.ndarray:
    """Returns a mask (n,) of the images that are held out of a source whose images keep their indices.

    Of each class in `labels` (n,) as many as `num_held_out` tells, chosen by a fixed shuffle.
    """
    shuffled = np.random.default_rng(0).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    mask = np.zeros(len(labels), bool)
    for indices in np.split(by_class, np.cumsum(np.bincount(labels))[:-1]):
        mask[indices[: num_held_out(len(indices), share)]] = True
    return mask


def num_held_out(num_images: int, share: float) -> int:
    """Returns the number of images of a class that are held out."""
    return min(max(round(num_images * share), 1), num_images - 1) if num_images > 1 else 0


def _rank(folder: str, name: str) -> int:
    digest = hashlib.sha256(os.fsencode(f"{folder}/{name}")).digest()
    return int.from_bytes(digest[:7], "big")
