"""Lists of images for prediction: files, and all images below folders."""

from __future__ import annotations

import os
import tracemalloc

import pytest

from vit_ipu.data.sources import image_list
from vit_ipu.data.sources.image_list import ImageList, find_images
from vit_ipu.errors import DataError


def touch(*paths):
    for path in paths:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8"):
            pass


def test_images_of_a_folder_come_before_those_of_its_folders_in_alphabetical_order(empty_folder):
    touch("p/b.png", "p/a.JPG", "p/z/1.tiff", "p/c/deep/er/2.webp", "p/c/3.gif", "elsewhere.xyz/x")
    notes = []
    found = find_images(["photo.bin", "p", "p/z/1.tiff"], notes.append)
    expected = ["photo.bin", "p/a.JPG", "p/b.png", "p/c/3.gif", "p/c/deep/er/2.webp", "p/z/1.tiff", "p/z/1.tiff"]
    assert list(found) == expected
    assert len(found) == len(expected)
    assert notes == []


def test_other_entries_are_noted_and_hidden_ones_are_left_out(empty_folder):
    touch("p/a.png", "p/readme.txt", "p/.hidden.png", "p/.git/x.png", "p/@eaDir/x.png", "p/c/Thumbs.db", "p/c/notes")
    notes = []
    assert list(find_images(["p"], notes.append)) == ["p/a.png"]
    assert len(notes) == 1
    assert notes[0].startswith("note: left out 2 entries below p: images are files with a suffix of .jpg ")


def test_links_are_followed_but_not_in_a_circle(empty_folder):
    touch("p/c/a.png", "other/b.png")
    os.symlink("..", "p/c/up")
    os.symlink(os.path.abspath("other"), "p/other")
    os.symlink("nowhere", "p/dangling")
    notes = []
    assert list(find_images(["p"], notes.append)) == ["p/c/a.png", "p/other/b.png"]
    assert notes[0].startswith("note: left out 2 entries below p")


def test_a_folder_without_images_is_refused(empty_folder):
    touch("p/c/readme.txt")
    with pytest.raises(DataError, match="no images below p: images are files with a suffix of .jpg"):
        find_images(["p"], lambda note: None)


def test_no_paths_are_refused():
    with pytest.raises(DataError, match="there are no images to predict: give image files or folders"):
        find_images([], lambda note: None)


def test_a_folder_that_cannot_be_listed_is_named(empty_folder, monkeypatch):
    touch("p/a.png", "p/closed/b.png")
    scandir = os.scandir

    def refuse(folder):
        if str(folder).endswith("closed"):
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(image_list.os, "scandir", refuse)
    with pytest.raises(DataError, match="^cannot list p/closed: Permission denied$"):
        find_images(["p"], lambda note: None)


def test_the_paths_of_a_large_folder_take_little_memory():
    names = [f"image-{number:08d}.jpg" for number in range(200_000)]
    found = ImageList()
    tracemalloc.start()
    found.add_folder("folder", names)
    assert sum(1 for _ in found) == len(found) == 200_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200 * 200_000  # bytes while the names are joined; a list of paths would keep 100 for each, for good
