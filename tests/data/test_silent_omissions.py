"""Images are never silently left out, exchanged or renamed: folders, packing, verifying, resuming."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest
from helpers import tiny_config, vit_ipu
from packed import packed_shades, run_pack, write_image, write_two_classes
from PIL import Image
from shard_files import LABELS, open_split, samples, shades, write_shards, write_tar

from vit_ipu.data.images.image_file import open_picture
from vit_ipu.data.packing import pack as packing
from vit_ipu.data.packing.verification import verify
from vit_ipu.data.sources.folders import open_folders
from vit_ipu.data.sources.listing import ListingCache
from vit_ipu.data.sources.registry import open_source
from vit_ipu.data.sources.shard_index import INDEX, TABLE
from vit_ipu.errors import DataError


@pytest.fixture
def root(tmp_path):
    return write_two_classes(tmp_path / "images")


def open_with_notes(root, split):
    notes = []
    return open_folders(root, split, ListingCache(notify=notes.append)), notes


# ----------------------------------------------------------------------------------------- folders


@pytest.mark.parametrize("suffix", ["gif", "GIF", "jfif", "png"])
def test_animations_and_other_names_of_jpeg_are_images(root, suffix):
    Image.new("RGB", (9, 7)).save(str(root / "train" / "ant" / ("z." + suffix)), {"jfif": "JPEG"}.get(suffix))
    source, notes = open_with_notes(root, "train")
    assert (len(source), notes) == (7, [])
    assert source.image(3).size == (9, 7)


def test_folders_in_class_folders_are_left_out_with_a_note(root):
    (root / "train" / "ant" / "more.jpg").mkdir()
    write_image(root / "train" / "ant" / "more.jpg" / "a.png", 1)
    source, notes = open_with_notes(root, "train")
    assert len(source) == 6
    assert len(notes) == 1
    assert notes[0].startswith(f"note: left out 1 entry in {root / 'train'} (such as in ant): ")


def test_a_class_without_training_images_is_refused(root):
    for path in (root / "train" / "bee").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"^no images in the class folder .*train/bee: "):
        open_with_notes(root, "train")
    (root / "train" / "cow").mkdir()
    with pytest.raises(
        DataError, match=r"^no images in 2 class folders of .*train: bee, cow; add images, or remove the"
    ):
        open_with_notes(root, "train")
    for name in ("dab", "eel", "fly"):
        (root / "train" / name).mkdir()
    with pytest.raises(DataError, match=r"^no images in 5 class folders of .*: bee, cow, dab, eel \(and 1 more\); "):
        open_with_notes(root, "train")


def test_a_class_without_held_out_images_is_noted(root, tmp_path, monkeypatch, capsys):
    for path in (root / "val" / "bee").iterdir():
        path.unlink()
    data = {"source": "imagefolder", "path": str(root)}
    config, notes = tiny_config(model={"num_classes": 2}, data=data), []
    source = open_source(config.data, config.model, "eval", cache=ListingCache(notify=notes.append))
    assert len(source) == 3
    expected = "note: 1 of 2 classes has no held-out images, so no evaluation measures it: bee; add images of it"
    assert notes == [expected]
    code, out, err = vit_ipu(monkeypatch, capsys, "pack", root, tmp_path / "shards", "--workers", "1")
    assert (code, (out + err).count(expected)) == (0, 1)


def test_an_evaluation_needs_no_training_images(root, tmp_path):
    run_pack(root, tmp_path / "shards")
    shutil.rmtree(str(root / "train"))
    shutil.rmtree(str(tmp_path / "shards" / "train"))
    assert len(open_with_notes(root, "eval")[0]) == 6
    assert len(open_split(tmp_path / "shards", "eval", num_classes=2)) == 6


@pytest.mark.timeout(10)
def test_a_pipe_is_refused_without_waiting(tmp_path):
    os.mkfifo(str(tmp_path / "a.jpg"))
    with pytest.raises(DataError, match="cannot read the image .*a.jpg: it is not a regular file$"):
        open_picture(str(tmp_path / "a.jpg"))


# ----------------------------------------------------------------------------------------- packing


def test_verify_refuses_an_incomplete_target(root, tmp_path):
    target = tmp_path / "shards"
    run_pack(root, target)
    assert verify(target, workers=1) == {"train": 6, "val": 6}
    (target / "train" / TABLE).unlink()
    with pytest.raises(DataError, match="train/index.npz is missing or damaged"):
        verify(target, workers=1)
    (target / "val" / INDEX).unlink()
    with pytest.raises(DataError, match="shards/val is not completely packed: run the same vit-ipu pack command again"):
        verify(target, workers=1)


def test_a_half_packed_folder_is_refused_as_source(root, tmp_path):
    target = tmp_path / "shards"
    run_pack(root, target)
    (target / "train" / INDEX).unlink()
    (target / "train" / ".packing.jsonl").write_text("")
    for places in ({"path": target}, {"path": target / "train", "eval_path": str(target / "val")}):
        with pytest.raises(DataError, match="shards/train is not completely packed"):
            open_split(num_classes=2, **places)


def test_rescan_packs_exchanged_images_again(root, tmp_path):
    target = tmp_path / "shards"
    run_pack(root, target)
    write_image(root / "train" / "ant" / "0.png", 99)
    assert run_pack(root, target)["train"].kept > 0
    assert packed_shades(target) == [0, 1, 2, 10, 11, 12]
    assert run_pack(root, target, rescan=True)["train"].kept == 0
    assert packed_shades(target) == [99, 1, 2, 10, 11, 12]


def test_an_interrupted_rescan_leaves_an_incomplete_target(root, tmp_path, monkeypatch):
    target = tmp_path / "shards"
    run_pack(root, target)
    write_image(root / "train" / "ant" / "0.png", 99)
    monkeypatch.setattr(packing, "make_shard", stop)
    with pytest.raises(DataError, match="^stopped$"):
        run_pack(root, target, rescan=True)
    monkeypatch.undo()
    with pytest.raises(DataError, match="shards/train is not completely packed"):
        packed_shades(target)
    run_pack(root, target)
    assert packed_shades(target) == [99, 1, 2, 10, 11, 12]


def stop(*task):
    raise DataError("stopped")


def test_rescan_adds_images_that_were_repaired(root, tmp_path):
    target, path = tmp_path / "shards", root / "train" / "ant" / "0.png"
    path.write_bytes(b"")
    assert run_pack(root, target, skip_bad=True)["train"].samples == 5
    write_image(path, 99)
    assert run_pack(root, target, skip_bad=True, rescan=True)["train"].samples == 6


def test_a_split_without_an_image_that_can_be_read_is_refused(root, tmp_path):
    for path in (root / "train").glob("*/*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="^none of the 6 images of train can be read: replace them$"):
        run_pack(root, tmp_path / "shards", skip_bad=True)


def test_a_class_whose_name_is_not_unicode_is_packed(root, tmp_path):
    for split in ("train", "val"):
        os.rename(str(root / split / "ant"), os.fsencode(str(root / split)) + b"/\xe9")
    run_pack(root, tmp_path / "shards")
    assert open_split(tmp_path / "shards", num_classes=2).classes == ("bee", "\udce9")
    assert (tmp_path / "shards" / "train" / "classes.txt").read_text() == "bee\n\\udce9\n"


# ------------------------------------------------------------------------------------------ shards


def test_shell_patterns_select_shards(tmp_path):
    write_shards(tmp_path)
    places = {"path": tmp_path / "train" / "x-*.tar", "eval_path": str(tmp_path / "val" / "x-{00..00}.tar")}
    assert len(open_split(**places)) == 7
    assert len(open_split(**dict(places, path=tmp_path / "train" / "x-{00,0[12]}.tar"))) == 7


def test_a_folder_whose_name_looks_like_a_pattern_is_opened(tmp_path):
    write_shards(tmp_path / "[old]")
    places = {"path": tmp_path / "[old]" / "train" / "x-{00..02}.tar", "eval_path": str(tmp_path / "[old]" / "val")}
    assert len(open_split(**places)) == 7


ORDERS = {
    "labels after all images": [0, 2, 4, 1, 3, 5],
    "labels before all images": [5, 3, 1, 4, 2, 0],
    "one label apart": [0, 2, 3, 4, 5, 1],
    "mixed": [2, 5, 0, 3, 4, 1],
}
"""Orders of three images (even numbers) and their labels."""


@pytest.mark.parametrize("name", list(ORDERS))
def test_members_of_a_sample_need_not_be_neighbours(tmp_path, name):
    """Covers `tar` without --sort=name, which stores files in the order in which the file system lists them."""
    members = samples([1, 2, 0])
    write_tar(tmp_path / "a.tar", [members[place] for place in ORDERS[name]])
    source = open_split(tmp_path / "a.tar", eval_path=str(tmp_path / "a.tar"))
    assert {shade: int(label) for shade, label in zip(shades(source), source.labels)} == {0: 1, 1: 2, 2: 0}
    assert shades(source) == [place // 2 for place in ORDERS[name] if place % 2 == 0]  # in the order of the images


def test_other_members_may_be_apart_from_their_sample(tmp_path):
    members = samples([1, 2])
    write_tar(tmp_path / "a.tar", [*members, ("0000.txt", b"a text"), ("0001.seg.png", b"not an image")])
    assert open_split(tmp_path / "a.tar", eval_path=str(tmp_path / "a.tar")).labels.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("0000.cls", b"2"), "a.tar: sample 0000 has the members 0000.cls: expected one image"),
        (
            ("0000.jpg", b""),
            "a.tar: sample 0000 has no label: expected a number in 0000.cls or a `label` in 0000.json$",
        ),
    ],
)
def test_a_second_image_or_label_of_a_key_is_refused(tmp_path, extra, message):
    write_tar(tmp_path / "a.tar", [*samples([1, 2]), extra])
    with pytest.raises(DataError, match=message):
        open_split(tmp_path / "a.tar", eval_path=str(tmp_path / "a.tar"))


def test_two_images_and_labels_of_one_key_apart_are_refused(tmp_path):
    """Covers two unsorted tars of the same names in one: which label belongs to which image is not stated."""
    images, labels = samples([1, 2])[::2], samples([1, 2])[1::2]
    write_tar(tmp_path / "a.tar", [*images, *labels, *images, *labels])
    with pytest.raises(DataError, match="sample 0000 has the members 0000.png, 0000.cls, 0000.png, 0000.cls: expected"):
        open_split(tmp_path / "a.tar", eval_path=str(tmp_path / "a.tar"))


def joined(path, *parts):
    path.write_bytes(b"".join(parts))
    return open_split(path, eval_path=str(path))


def test_tars_joined_by_cat_are_read_completely(tmp_path):
    """Compares with `tar --ignore-zeros`: all members of all archives."""
    for number, (first, last) in enumerate(((0, 2), (2, 3), (3, 7))):
        write_tar(tmp_path / f"{number}.tar", samples(LABELS[first:last], first))
    parts = [(tmp_path / f"{number}.tar").read_bytes() for number in range(3)]
    source = joined(tmp_path / "a.tar", *parts)
    assert source.labels.tolist() == LABELS
    assert shades(source) == list(range(7))
    assert joined(tmp_path / "a.tar", parts[0], bytes(3 << 20), parts[1]).labels.tolist() == LABELS[:3]
    listed = subprocess.run(
        ["tar", "--ignore-zeros", "-tf", str(tmp_path / "a.tar")], stdout=subprocess.PIPE, check=True
    )
    assert listed.stdout.decode().split() == [name for name, _ in samples(LABELS[:3])]


def test_tars_of_the_same_names_joined_by_cat_are_read_completely(tmp_path):
    write_tar(tmp_path / "a.tar", samples([1, 2]))
    whole = (tmp_path / "a.tar").read_bytes()
    assert joined(tmp_path / "b.tar", whole, whole).labels.tolist() == [1, 2, 1, 2]


@pytest.mark.parametrize(("rest", "place"), [(b"junk", 0), (bytes(700) + b"junk" * 500, 512)])
def test_other_bytes_after_the_end_of_a_tar_are_refused(tmp_path, rest, place):
    write_tar(tmp_path / "a.tar", samples([1, 2]))
    whole = (tmp_path / "a.tar").read_bytes()
    with pytest.raises(DataError, match=f"b.tar is cut off or damaged at byte {len(whole) + place}: copy it again"):
        joined(tmp_path / "b.tar", whole, rest)


def test_a_second_tar_that_is_cut_off_is_refused(tmp_path):
    write_tar(tmp_path / "a.tar", samples([1, 2]))
    whole = (tmp_path / "a.tar").read_bytes()
    with pytest.raises(DataError, match=f"b.tar is cut off or damaged at byte {len(whole) + 2048}: copy it again"):
        joined(tmp_path / "b.tar", whole, whole[:2048])


def test_zeros_in_the_middle_of_a_tar_are_not_its_end(tmp_path):
    """Covers a hole that a broken transfer left in place of a header."""
    write_tar(tmp_path / "a.tar", samples([1, 2]))
    whole = (tmp_path / "a.tar").read_bytes()
    with pytest.raises(DataError, match="b.tar is cut off or damaged at byte 2560: copy it again"):
        joined(tmp_path / "b.tar", whole[:2048], bytes(512), whole[2560:])


# ---------------------------------------------------------------------------------------- resuming


def test_a_resume_on_images_of_other_labels_is_refused(root, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(
        "model: {variant: vit_test, image_size: 28, num_classes: 2}\n"
        "data: {source: imagefolder, path: images}\n"
        "pipeline: {global_batch_size: 4, micro_batch_size: 4}\n"
        "optim: {optimizer: sgd, learning_rate: 0.01}\n"
        "run: {updates: 2, checkpoint_every: 1}\n"
    )
    train = ["train", "run.yaml", "--device", "cpu", "--output", "run"]
    assert vit_ipu(monkeypatch, capsys, *train)[0] == 0
    os.rename(str(root / "train" / "bee" / "0.png"), str(root / "train" / "ant" / "9.png"))
    code, _, err = vit_ipu(monkeypatch, capsys, *train, "--resume")
    assert code == 2
    assert "was trained on as many images, but in another order or with other labels: give the same images" in err
