"""ImageNet in its original layout, in Kaggle's, or in mmpretrain's."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import os
import re
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from vit_ipu.data.sources.base import parse_label, require_same_classes, split_folder
from vit_ipu.data.sources.folders import FolderSource, open_class_folders
from vit_ipu.data.sources.listing import ImagePaths, ListingCache, class_folders, list_images
from vit_ipu.errors import DataError
from vit_ipu.small_files import MAX_LIST_BYTES, read_bytes, read_text
from vit_ipu.text import reason_of, shortened

_ILSVRC_SHA256 = "385e0240499426c022b773be1ae4da780f057b89c9694c7f47199f62746b6edd"
"""SHA-256 of the 1,000 sorted WordNet ids of ILSVRC 2012, one per line, without the last line end."""
_KAGGLE = Path("ILSVRC") / "Data" / "CLS-LOC"
_GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_SOLUTION = "LOC_val_solution.csv"
_MAX_META_BYTES = 1 << 20
"""Bytes of the devkit's meta.mat, which has 24,000 and is compressed."""
_ANNOTATIONS = os.path.join("meta", "val.txt")
_NAME_FILES = ("LOC_synset_mapping.txt", "classes.txt", "words.txt")


def is_imagenet(root: Path) -> bool:
    """Tells whether a folder has ImageNet's layout, with WordNet ids as names of the class folders."""
    train = imagenet_root(root) / "train"
    folders = class_folders(train) if train.is_dir() else []
    return bool(folders) and all(map(_is_wnid, folders))


def open_imagenet(root: Path, split: str, cache: ListingCache) -> FolderSource:
    """Opens ImageNet in its own layout or Kaggle's: train/nXXXXXXXX/*.JPEG, and val/ with class folders or flat.

    Labels number the WordNet ids in alphabetical order. For a flat val/ the labels are in Kaggle's
    LOC_val_solution.csv, or in the devkit's ground truth, whose ids have the order of the devkit's map_clsloc.txt or
    meta.mat, or in mmpretrain's meta/val.txt.
    """
    base = imagenet_root(root)
    wnids = _wnids(split_folder(base, "train"))
    names = _class_names(_places(root, base), wnids)
    folder = split_folder(base, split)
    if split == "train":
        return open_class_folders(folder, wnids, names, split, cache)
    found = class_folders(folder)
    if found:
        require_same_classes(wnids, found, folder)
        return open_class_folders(folder, wnids, names, split, cache)
    paths = list_images(folder, [""], cache)
    if not len(paths):
        raise DataError(f"no images in {folder}: expected {folder}/nXXXXXXXX/*.JPEG or ILSVRC2012_val_*.JPEG")
    return FolderSource(paths, _flat_labels(paths, folder, _places(root, base), wnids), names)


def imagenet_root(root: Path) -> Path:
    """Returns the folder with train/ and val/, which Kaggle's layout nests deeper."""
    return root / _KAGGLE if (root / _KAGGLE).is_dir() else root


def _places(root: Path, base: Path) -> List[Path]:
    """Returns the folders that may contain files besides the images."""
    kaggle = base.parents[2] if base.parts[-3:] == _KAGGLE.parts else base
    roots = list(dict.fromkeys([root, base, kaggle]))
    folders = ["", "devkit/data", "ILSVRC/devkit/data", "ILSVRC2012_devkit_t12/data", "ILSVRC2012_devkit_t12"]
    return [place / folder for place in roots for folder in folders]


def _find(places: Sequence[Path], name: str) -> Optional[Path]:
    return next((place / name for place in places if (place / name).is_file()), None)


def _is_wnid(name: str) -> bool:
    return re.fullmatch(r"n\d{8}", name) is not None


def _wnids(train: Path) -> List[str]:
    found = class_folders(train)
    if not found:
        raise DataError(f"no class folders in {train}: expected {train}/nXXXXXXXX/*.JPEG")
    for name in found:
        if not _is_wnid(name):
            raise DataError(
                f"{train} holds the folder {name}, which is not a WordNet id such as n01440764: use data.source: "
                "imagefolder"
            )
    return found


def _class_names(places: Sequence[Path], wnids: Sequence[str]) -> List[str]:
    """Returns the names in a list beside the images, or torchvision's (ILSVRC 2012), or the devkit's, or the ids."""
    for file in _NAME_FILES:
        path = _find(places, file)
        if path is not None:
            lines = (line.split(None, 1) for line in _read_lines(path))
            known = {parts[0]: parts[1].strip() for parts in lines if len(parts) == 2}
            if all(wnid in known for wnid in wnids):
                return [known[wnid] for wnid in wnids]
    if hashlib.sha256("\n".join(wnids).encode("ascii")).hexdigest() == _ILSVRC_SHA256:
        from torchvision.models import ViT_B_16_Weights

        return list(ViT_B_16_Weights.IMAGENET1K_V1.meta["categories"])
    known = {}
    with contextlib.suppress(DataError):  # a damaged devkit matters only if labels come from it
        known = {row.wnid: row.name for row in _read_devkit(places) or ()}
    return [known.get(wnid, wnid) for wnid in wnids]


def _flat_labels(paths: ImagePaths, folder: Path, places: Sequence[Path], wnids: Sequence[str]) -> np.ndarray:
    """Returns the labels (n,) int64 of images that are not in class folders. Raises DataError if a label is missing."""
    solution, truth, annotations = (_find(places, name) for name in (_SOLUTION, _GROUND_TRUTH, _ANNOTATIONS))
    if solution is not None:
        known, where = _read_solution(solution), solution
    elif truth is not None:
        known, where = _read_ground_truth(truth, places), truth
    elif annotations is not None:
        known, where = _read_annotations(annotations, wnids), annotations
    else:
        raise DataError(
            f"{folder} has no class folders: put {_SOLUTION} or the devkit's {_GROUND_TRUTH} or mmpretrain's "
            f"{_ANNOTATIONS} beside it, or sort its images into class folders"
        )
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    labels = np.empty(len(paths), np.int64)
    for index in range(len(paths)):
        name = paths.name(index).rsplit(".", 1)[0]
        if name not in known:
            raise DataError(f"{where} does not list the image {paths[index]}: complete the list")
        if known[name] not in label_of:
            raise DataError(
                f"{where} gives {name} the class {known[name]}, which has no training images: add them, or take the "
                "list of these classes"
            )
        labels[index] = label_of[known[name]]
    return labels


def _read_solution(path: Path) -> Dict[str, str]:
    """Returns each image's WordNet id in Kaggle's list: lines `ImageId,PredictionString`; the id starts the latter."""
    try:
        rows = list(csv.reader(_read_lines(path)))
    except csv.Error:
        rows = []
    if not rows or rows[0] != ["ImageId", "PredictionString"] or not all(len(row) == 2 and row[1] for row in rows):
        raise DataError(f"{path} is not Kaggle's list: expected lines ImageId,PredictionString")
    return {name: boxes.split()[0] for name, boxes in rows[1:] if boxes.strip()}


def _read_ground_truth(path: Path, places: Sequence[Path]) -> Dict[str, str]:
    """Returns the WordNet id of each image from the devkit, whose line k has the ILSVRC id of ILSVRC2012_val_k."""
    synsets = _read_devkit([path.parent, *places])
    if synsets is None:
        raise DataError(
            f"{path} numbers classes in its own order: put the devkit's map_clsloc.txt or meta.mat beside it"
        )
    wnid_of = {synset.ilsvrc_id: synset.wnid for synset in synsets}
    known = {}
    for number, line in enumerate(_read_lines(path), start=1):
        if line.strip() not in wnid_of:
            raise DataError(f"{path} line {number}: {line.strip()!r} is not an ILSVRC id of the devkit: fetch it again")
        known[f"ILSVRC2012_val_{number:08d}"] = wnid_of[line.strip()]
    return known


def _read_annotations(path: Path, wnids: Sequence[str]) -> Dict[str, str]:
    """Returns the WordNet id of each image in mmpretrain's meta/val.txt, with lines `PATH LABEL`.

    meta/train.txt beside it tells which WordNet ids the labels number; without it they number the sorted ids, as in
    the lists that mmpretrain publishes.
    """
    training = path.with_name("train.txt")
    wnid_of = _numbered_wnids(training) if training.is_file() else dict(enumerate(wnids))
    known: Dict[str, str] = {}
    for number, image, label in _annotated(path):
        if label not in wnid_of:
            raise DataError(
                f"{path} line {number}: {label} is not a label of the {len(wnid_of):,} training classes: take the list "
                "of these classes"
            )
        name = image.rsplit("/", 1)[-1].rsplit(".", 1)[0]
        if known.setdefault(name, wnid_of[label]) != wnid_of[label]:
            raise DataError(f"{path} line {number}: {image} has another label than before: remove the wrong line")
    return known


def _numbered_wnids(path: Path) -> Dict[int, str]:
    """Returns the WordNet id of each label in mmpretrain's meta/train.txt, with lines `nXXXXXXXX/NAME.JPEG LABEL`."""
    wnid_of: Dict[int, str] = {}
    for number, image, label in _annotated(path):
        wnid = image.rpartition("/")[0].rpartition("/")[2]
        if wnid_of.setdefault(label, wnid) != wnid:
            raise DataError(
                f"{path} line {number}: the label {label} is of {wnid}, but before of {wnid_of[label]}: correct it"
            )
    return wnid_of


def _annotated(path: Path) -> Iterator[Tuple[int, str, int]]:
    """Yields the line number, the image's path and the label of each line `PATH LABEL`."""
    for number, line in enumerate(_read_lines(path), start=1):
        parts = line.rsplit(None, 1)
        label = parse_label(parts[1]) if len(parts) == 2 else None
        if label is None:
            raise DataError(f"{path} line {number}: {shortened(line, 80)!r} is not mmpretrain's: expected `PATH LABEL`")
        yield number, parts[0], label


class _Synset(NamedTuple):
    """A class in the devkit; ILSVRC ids are not in the alphabetical order of the WordNet ids."""

    ilsvrc_id: str
    wnid: str
    name: str


def _read_devkit(places: Sequence[Path]) -> Optional[List[_Synset]]:
    """Returns the classes in the devkit's map_clsloc.txt or meta.mat, or None if both files are missing."""
    mapping, meta = _find(places, "map_clsloc.txt"), _find(places, "meta.mat")
    if mapping is not None:
        rows = [line.split() for line in _read_lines(mapping)]
        if not all(len(row) >= 2 and _is_wnid(row[0]) for row in rows):
            raise DataError(f"{mapping} is not the devkit's: expected lines such as `n02119789 1 kit_fox`")
        return [_Synset(row[1], row[0], " ".join(row[2:]).replace("_", " ") or row[0]) for row in rows]
    return None if meta is None else _read_meta(meta)


def _read_meta(path: Path) -> List[_Synset]:
    """Returns the classes in the devkit's meta.mat: the entries of its struct array `synsets` without children."""
    try:
        from scipy.io import loadmat
    except ImportError:
        raise DataError(f"{path} needs a package: pip install scipy") from None
    try:
        synsets = loadmat(io.BytesIO(read_bytes(path, limit=_MAX_META_BYTES)), squeeze_me=True)["synsets"]
        leaves = [row for row in synsets if int(row["num_children"]) == 0]
        return [_Synset(str(int(row["ILSVRC2012_ID"])), str(row["WNID"]), str(row["words"])) for row in leaves]
    except Exception as error:  # scipy raises many kinds
        raise DataError(f"cannot read {path}: {reason_of(error)}") from None


def _read_lines(path: Path) -> List[str]:
    try:
        return [
            line for line in read_text(path, limit=MAX_LIST_BYTES, encoding="utf-8-sig").splitlines() if line.strip()
        ]
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {reason_of(error)}") from None
