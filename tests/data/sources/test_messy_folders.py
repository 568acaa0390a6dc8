"""Folders of images as people have them: other names of splits, files of operating systems, links, empty files."""

from __future__ import annotations

import pytest
from helpers import write_image_folder
from opening import open_with_notes
from PIL import Image

from vit_ipu.data.packing.jobs import PackOptions
from vit_ipu.data.packing.pack import pack
from vit_ipu.data.sources.listing import ListingCache
from vit_ipu.errors import DataError


@pytest.fixture
def root(tmp_path):
    """Makes two classes, cat and dog, with three images in each split."""
    write_image_folder(tmp_path / "d")
    return tmp_path / "d"


# ------------------------------------------------------------------------------------------ splits


@pytest.mark.parametrize("name", ["val", "valid", "validation", "test"])
def test_the_held_out_split_has_several_names(root, name):
    (root / "val").rename(root / name)
    source, _ = open_with_notes(root, "eval")
    assert source.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert source.paths[0].startswith(str(root / name / "cat"))


def test_a_held_out_split_comes_before_a_test_split(root):
    (root / "test" / "cat").mkdir(parents=True)
    (root / "val").rename(root / "valid")
    assert open_with_notes(root, "eval")[0].paths[0].startswith(str(root / "valid"))


def test_a_missing_split_is_reported_with_the_names_that_are_looked_for(root):
    (root / "val").rename(root / "dev")
    message = f"^no folder val or valid or validation or test in {root}, which has dev, train$"
    with pytest.raises(DataError, match=message):
        open_with_notes(root, "eval")
    (root / "train").rename(root / "Train")
    for name in ("e", "f", "g"):
        (root / name).mkdir()
    with pytest.raises(DataError, match=rf"^no folder train in {root}, which has Train, dev, e, f \(and 1 more\)$"):
        open_with_notes(root)


def test_a_folder_without_folders_is_reported(tmp_path):
    with pytest.raises(DataError, match="^no folder train in .*, which has no folders$"):
        open_with_notes(tmp_path)


# ------------------------------------------------------------------------- files of operating systems

OF_SYSTEMS = ["Thumbs.db", "thumbs.db", "desktop.ini", ".DS_Store", "._0.png", ".hidden/a.png", "__MACOSX/._0.png"]
OF_SYSTEMS += ["@eaDir/0.png/SYNOPHOTO_THUMB.jpg", "lost+found/a.png", "$RECYCLE.BIN/a.png"]


@pytest.mark.parametrize("place", [".", "cat"])
@pytest.mark.parametrize("name", OF_SYSTEMS)
def test_files_of_operating_systems_are_left_out_without_a_note(root, place, name):
    for split in ("train", "val"):
        path = root / split / place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"of a system")
    for split in ("train", "eval"):
        source, notes = open_with_notes(root, split)
        assert (source.classes, len(source), notes) == (("cat", "dog"), 6, [])


@pytest.mark.parametrize("suffix", ["JPG", "Jpeg", "JFIF", "WEBP", "webp", "jfif", "AVIF", "avif", "TIF", "BMP"])
def test_suffixes_of_images(root, suffix):
    path = root / "train" / "cat" / ("z." + suffix)
    kind = {"jpg": "JPEG", "jfif": "JPEG", "tif": "TIFF"}.get(suffix.lower(), suffix.upper())
    if kind == "AVIF" and ".avif" not in Image.registered_extensions():
        kind = "PNG"  # Pillow before 11.3: a file is read by its bytes, not by its suffix
    Image.new("RGB", (9, 7), (200, 10, 10)).save(str(path), kind)
    source, notes = open_with_notes(root)
    assert (len(source), notes) == (7, [])
    assert source.paths[3] == str(path)
    assert source.image(3).size == (9, 7)
    assert abs(source.image(3).getpixel((4, 4))[0] - 200) < 6


def test_images_beside_the_class_folders_are_noted(root):
    for name in ("b.png", "A.JPG", ".hidden.png", "list.csv"):
        (root / "train" / name).write_bytes(b"")
    source, notes = open_with_notes(root)
    assert len(source) == 6
    expected = (
        "note: left out 2 images directly in {}/train, such as A.JPG: each image belongs into the folder of its class"
    )
    assert notes == [expected.format(root)]


# ------------------------------------------------------------------------------------------- links


def test_links_to_images_and_to_class_folders_are_followed(root, tmp_path):
    (root / "train" / "dog").rename(tmp_path / "elsewhere")
    (root / "train" / "dog").symlink_to(tmp_path / "elsewhere")
    (root / "train" / "cat" / "z.png").symlink_to(tmp_path / "elsewhere" / "0.png")
    source, notes = open_with_notes(root)
    assert (source.labels.tolist(), notes) == ([0, 0, 0, 0, 1, 1, 1], [])
    assert source.image(3).getpixel((0, 0)) == source.image(4).getpixel((0, 0))


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_class_folder_that_links_nowhere_is_refused(root, split):
    """Without the error the class would be missing, for example while a disk is not mounted."""
    (root / split / "emu").symlink_to("/nowhere/emu")
    message = f"^{root}/{split}/emu links to /nowhere/emu, which does not exist: correct or remove the link$"
    with pytest.raises(DataError, match=message):
        open_with_notes(root, {"train": "train", "val": "eval"}[split])


def test_an_image_that_links_nowhere_is_an_unreadable_image(root):
    (root / "train" / "cat" / "0.png").unlink()
    (root / "train" / "cat" / "0.png").symlink_to("/nowhere/0.png")
    source, _ = open_with_notes(root)
    assert len(source) == 6
    with pytest.raises(DataError, match=f"^no image at {root}/train/cat/0.png$"):
        source.image(0)


# ------------------------------------------------------------------------------- few and empty files


def test_one_image_a_class_is_enough(root):
    for number in (1, 2):
        for name in ("cat", "dog"):
            (root / "train" / name / f"{number}.png").unlink()
    source, notes = open_with_notes(root)
    assert (source.labels.tolist(), notes) == ([0, 1], [])


def test_empty_files_are_unreadable_images(root):
    for name in ("a.png", "a.jpg"):
        (root / "train" / "cat" / name).write_bytes(b"")
    source, _ = open_with_notes(root)
    for index in (3, 4):
        with pytest.raises(DataError, match=f"^cannot read the image {source.paths[index]}: it is empty$"):
            source.image(index)


def test_a_messy_folder_is_packed(root, tmp_path):
    (root / "val").rename(root / "valid")
    for split in ("train", "valid"):
        for name in ("__MACOSX/cat/._0.png", "cat/Thumbs.db", "b.png"):
            (root / split / name).parent.mkdir(parents=True, exist_ok=True)
            (root / split / name).write_bytes(b"")
    packed = pack(root, tmp_path / "shards", PackOptions(), workers=1, cache=ListingCache())
    assert {name: part.samples for name, part in packed.items()} == {"train": 6, "val": 6}
