"""Images are never silently left out, exchanged or renamed: folders, packing, verifying, resuming."""

from __future__ import annotations

import os
import shutil

import pytest
from helpers import vit_ipu
from packed import packed_shades, run_pack, write_image, write_two_classes
from PIL import Image
from shard_files import open_split, samples, write_shards, write_tar

from vit_ipu.data.images.image_file import open_picture
from vit_ipu.data.packing import pack as packing
from vit_ipu.data.packing.pack import verify
from vit_ipu.data.sources.folders import open_folders
from vit_ipu.data.sources.listing import ListingCache
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
    with pytest.raises(DataError, match=r"^no images in the class folder .*train/bee \(and 1 more\): "):
        open_with_notes(root, "train")


def test_a_class_without_held_out_images_is_noted(root):
    for path in (root / "val" / "bee").iterdir():
        path.unlink()
    source, notes = open_with_notes(root, "eval")
    assert len(source) == 3
    assert notes == [f"note: no images in 1 of 2 class folders of {root / 'val'}, such as bee"]


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
    with pytest.raises(DataError, match="^none of the 6 images of train can be read$"):
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


def test_members_of_a_sample_must_be_adjacent(tmp_path):
    images, labels = samples([1, 2])[::2], samples([1, 2])[1::2]
    write_tar(tmp_path / "a.tar", images + labels)
    with pytest.raises(DataError, match="sample 0000 has no label: .* 0000.cls .*, beside its image$"):
        open_split(tmp_path / "a.tar", eval_path=str(tmp_path / "a.tar"))


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
