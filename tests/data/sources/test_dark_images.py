"""A note about numbers of 12 bits in files of 16 bits, which would train as black."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from opening import open_with_notes
from PIL import Image
from shard_files import write_tar

from vit_ipu.data.packing.jobs import PackOptions
from vit_ipu.data.packing.pack import pack
from vit_ipu.data.sources.listing import ListingCache

NOTE = (
    "note: {} is nearly black: it has 16 bits a value but none above 4,095, and 65,535 is white; if the values of such "
)
NOTE += "images have 12 bits or fewer, multiply them so that they fill the 16 bits"


def write(path, highest, suffix="png", dtype=np.uint16, channels=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    ramp = np.linspace(0, highest, 64).reshape(8, 8).astype(dtype)
    encoded = cv2.imencode("." + suffix, np.stack([ramp] * channels, -1))[1]
    path.write_bytes(encoded.tobytes())


def write_folder(root, highest, **options):
    for split in ("train", "val"):
        for name in ("ant", "bee"):
            write(root / split / name / f"0.{options.get('suffix', 'png')}", highest, **options)


def notes_on_darkness(path, source="imagefolder"):
    return [note for note in open_with_notes(path, source=source)[1] if "transparency" not in note]


@pytest.mark.parametrize(("suffix", "channels"), [("png", 1), ("png", 3), ("png", 4), ("tiff", 1), ("tiff", 3)])
def test_images_of_twelve_bits_in_sixteen_are_noted(tmp_path, suffix, channels):
    write_folder(tmp_path, 4095, suffix=suffix, channels=channels)
    assert notes_on_darkness(tmp_path) == [NOTE.format(f"{tmp_path}/train/ant/0.{suffix}")]


@pytest.mark.parametrize("highest", [255, 4095])
def test_the_note_on_integers_of_32_bits_says_so(tmp_path, highest):
    """Covers what Pillow writes for an array of int32: values of 8 bits, of which 65,535 would be white."""
    write_folder(tmp_path, 255)
    ramp = np.linspace(0, highest, 64).reshape(8, 8).astype(np.int32)
    for name in ("ant", "bee"):
        (tmp_path / "train" / name / "0.png").unlink()
        Image.fromarray(ramp).save(str(tmp_path / "train" / name / "0.tiff"))
    expected = NOTE.format(f"{tmp_path}/train/ant/0.tiff").replace("has 16 bits", "has 32 bits")
    assert notes_on_darkness(tmp_path) == [expected]


@pytest.mark.parametrize(
    ("highest", "options"),
    [
        (4096, {}),
        (65535, {"channels": 3}),
        (10, {"dtype": np.uint8}),  # dark in 8 bits, as it was saved
        (10, {"dtype": np.uint8, "suffix": "jpg", "channels": 3}),
        (10, {"dtype": np.uint8, "suffix": "bmp"}),
    ],
)
def test_other_images_are_not_noted(tmp_path, highest, options):
    write_folder(tmp_path, highest, **options)
    assert notes_on_darkness(tmp_path) == []


def test_one_dark_image_among_many_of_the_probed_is_noted(tmp_path):
    write_folder(tmp_path, 65535)
    write(tmp_path / "train" / "bee" / "9.png", 300)
    (tmp_path / "train" / "ant" / "0.png").write_bytes(b"an image that cannot be read is reported when it is loaded")
    assert notes_on_darkness(tmp_path) == [NOTE.format(f"{tmp_path}/train/bee/9.png")]


def test_dark_images_in_shards_are_noted(tmp_path):
    write(tmp_path / "0.png", 4095)
    write_tar(tmp_path / "train" / "a.tar", [("0.png", (tmp_path / "0.png").read_bytes()), ("0.cls", b"1")])
    assert notes_on_darkness(tmp_path, "shards") == [NOTE.format(f"{tmp_path}/train/a.tar/0.png")]


def test_dark_images_are_noted_before_they_are_packed(tmp_path):
    """Reduced images are saved with 8 bits, which would lose the lower bits for good."""
    write_folder(tmp_path / "d", 4095)
    notes = []
    options = PackOptions(short_side=4)
    pack(tmp_path / "d", tmp_path / "t", options, workers=1, cache=ListingCache(notify=notes.append))
    assert notes == [NOTE.format(f"{tmp_path}/d/{split}/ant/0.png") for split in ("train", "val")]
