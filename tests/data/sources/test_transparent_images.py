"""A note about images whose transparency is dropped."""

from __future__ import annotations

import pytest
from helpers import write_image_folder
from opening import notes_of
from PIL import Image
from shard_files import write_tar

from vit_ipu.data.sources import transparent_images

NOTE = "note: of {} looked at, {} transparency, which is dropped: data.background: white lays them on white"


def draw(path, opacity=0):
    image = Image.new("RGBA", (30, 30), (0, 0, 0, opacity))
    image.putpixel((3, 3), (0, 0, 0, 255))
    image.save(str(path))


def test_images_with_transparency_are_counted(tmp_path):
    write_image_folder(tmp_path, count=20)
    assert notes_of(tmp_path) == []
    draw(tmp_path / "train/cat/0.png")
    assert notes_of(tmp_path) == [NOTE.format("16 images", "1 has")]
    for index in range(20):
        draw(tmp_path / "train/cat" / f"{index}.png", opacity=200)
    assert notes_of(tmp_path) == [NOTE.format("16 images", "8 have")]


def test_no_note_if_nothing_is_dropped(tmp_path):
    write_image_folder(tmp_path)
    draw(tmp_path / "train/cat/0.png", opacity=255)
    assert notes_of(tmp_path) == []  # all of its opacities are full
    draw(tmp_path / "train/cat/0.png")
    assert notes_of(tmp_path, background="white") == []
    assert notes_of(tmp_path, split="eval") == []


def test_images_that_cannot_be_read_are_left_to_the_loader(tmp_path):
    write_image_folder(tmp_path, count=1)
    draw(tmp_path / "train/cat/0.png")
    data = (tmp_path / "train/cat/0.png").read_bytes()
    (tmp_path / "train/cat/1.png").write_bytes(data[:-30])
    (tmp_path / "train/cat/2.png").write_bytes(b"")
    assert notes_of(tmp_path) == [NOTE.format("4 images", "1 has")]


def test_large_images_are_judged_by_their_headers(tmp_path, monkeypatch):
    write_image_folder(tmp_path, count=1)
    draw(tmp_path / "train/cat/0.png", opacity=255)
    monkeypatch.setattr(transparent_images, "LARGE", 899)
    assert notes_of(tmp_path) == [NOTE.format("2 images", "1 has")]


@pytest.mark.parametrize("holdout", [None, 0.5])
def test_images_in_shards_are_noted(tmp_path, holdout):
    draw(tmp_path / "0.png")
    data = (tmp_path / "0.png").read_bytes()
    write_tar(tmp_path / "train" / "a.tar", [("0.png", data), ("0.cls", b"1"), ("1.png", data), ("1.cls", b"1")])
    assert notes_of(tmp_path, source="shards", holdout=holdout) == [NOTE.format("2 images", "2 have")]
