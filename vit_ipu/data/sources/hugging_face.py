"""Data sets saved by Hugging Face's `datasets`, whose images are read without being decoded."""

from __future__ import annotations

from pathlib import Path
from typing import Any, List, Tuple

import numpy as np

from vit_ipu.data.images.decode import EncodedImage
from vit_ipu.data.images.image_file import open_picture
from vit_ipu.data.sources.base import EncodedSource, require_same_classes
from vit_ipu.errors import DataError
from vit_ipu.text import and_more

SPLITS = {"train": ("train",), "eval": ("validation", "val", "valid", "test")}
IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")


class SavedSource(EncodedSource):
    """Rows of a table on the disk, which is mapped into memory instead of read."""

    def __init__(self, images: Any, column: str, labels: np.ndarray, classes: List[str], name: str) -> None:
        super().__init__(classes, labels)
        self._images, self._column, self._name = images, column, name

    def encoded(self, index: int) -> EncodedImage:
        value = self._images[int(index)][self._column] or {}
        if value.get("bytes") is not None:
            return EncodedImage(value["bytes"], f"{self._name}[{index}]")
        if value.get("path"):
            return open_picture(value["path"])
        raise DataError(f"{self._name}[{index}] has no image")


def open_saved(root: Path, split: str) -> SavedSource:
    """Opens the images of a split that `DatasetDict.save_to_disk(root)` wrote. Raises DataError if it cannot."""
    splits = _load(root)
    name, data = _pick(splits, split, root)
    image, label = _columns(data, f"{root}/{name}")
    classes = list(data.features[label].names)
    if split == "eval" and any(name in splits for name in SPLITS["train"]):
        trained = _pick(splits, "train", root)[1]
        trained_names = getattr(trained.features.get(label), "names", [])
        require_same_classes(trained_names, classes, root / name)
    labels = _labels(np.asarray(data.with_format("numpy")[label][:]), f"{root}/{name}")
    if len(labels) == 0 or labels.min() < 0:
        raise DataError(f"{root}/{name} has no labels: the labels of a test split may be hidden (-1)")
    import datasets

    images = data.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    return SavedSource(images, image, labels, classes, f"{root}/{name}")


def _labels(values: np.ndarray, where: str) -> np.ndarray:
    """Returns labels (n,) int64. Raises DataError if a label is missing, which makes all labels floats or objects."""
    if values.dtype.kind not in "iu":
        missing = [row for row, value in enumerate(values.tolist()) if value is None or value != value]
        if missing:
            raise DataError(f"{where} has no label in row {missing[0]}{and_more(len(missing) - 1)}")
    return values.astype(np.int64)


def _load(root: Path) -> Any:
    """Returns the splits by name."""
    try:
        import datasets
    except ImportError:
        raise DataError("data.source huggingface needs the extra datasets: pip install 'vit-ipu[datasets]'") from None
    try:
        loaded = datasets.load_from_disk(str(root))
    except Exception as error:  # datasets, pyarrow and json raise many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{root} is not a folder of DatasetDict.save_to_disk: {reason}") from None
    if not isinstance(loaded, dict):
        raise DataError(f"{root} holds one set without splits: save a DatasetDict with train and validation")
    return loaded


def _pick(splits: Any, split: str, root: Path) -> Tuple[str, Any]:
    for name in SPLITS[split]:
        if name in splits:
            return name, splits[name]
    expected, present = " or ".join(SPLITS[split]), ", ".join(splits)
    raise DataError(f"no split {expected} in {root}, which has {present}")


def _columns(data: Any, where: str) -> Tuple[str, str]:
    """Returns the names of the image column and of the label column, which needs class names."""
    found = []
    for what, known, kind in (("images", IMAGE_COLUMNS, "Image"), ("labels", LABEL_COLUMNS, "ClassLabel")):
        names = [name for name in known if type(data.features.get(name)).__name__ == kind]
        if not names:
            expected, present = " or ".join(known), ", ".join(sorted(data.features))
            raise DataError(f"{where} has no column of {what}: expected {expected} as {kind}; it has {present}")
        found.append(names[0])
    return found[0], found[1]
