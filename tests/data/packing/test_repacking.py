"""Packing again: exchanged images, plans that are kept, and targets and indexes that pack did not write."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers import vit_ipu
from packed import packed_shades, run_pack, write_image, write_two_classes
from PIL import Image
from shard_files import open_split

from vit_ipu.data.packing import pack as packing
from vit_ipu.data.packing.jobs import PackOptions
from vit_ipu.data.packing.pack import pack
from vit_ipu.data.packing.verification import verify
from vit_ipu.data.sources.listing import ListingCache
from vit_ipu.data.sources.shard_index import INDEX
from vit_ipu.errors import DataError, PackInterrupted, UserError


@pytest.fixture
def root(tmp_path):
    return write_two_classes(tmp_path / "images")


def names_of_shards(target):
    return [path.name for path in sorted((target / "train").glob("*.tar"))]


def test_rescan_packs_other_sizes_and_numbers_of_images_again(root, tmp_path):
    target = tmp_path / "shards"
    run_pack(root, target)
    assert len(names_of_shards(target)) == 3
    (root / "train" / "bee" / "2.png").unlink()
    noise = np.random.default_rng(0).integers(256, size=(120, 100, 3), dtype=np.uint8)
    noise[0, 0, 0] = 99
    Image.fromarray(noise).save(str(root / "train" / "ant" / "0.png"))
    with pytest.raises(UserError, match=r"train was packed with 6 images, not 5: .*--rescan to repack everything$"):
        run_pack(root, target)
    assert packed_shades(target) == [0, 1, 2, 10, 11, 12]
    assert run_pack(root, target, rescan=True, shard_size=4_000)["train"].kept == 0
    assert packed_shades(target) == [99, 1, 2, 10, 11]
    assert names_of_shards(target) == [s["name"] for s in json.loads((target / "train" / INDEX).read_text())["shards"]]
    assert len(names_of_shards(target)) == 5
    write_image(root / "train" / "ant" / "0.png", 7)
    (target / "train" / "train-mine.tar").write_bytes(b"not pack's")
    assert run_pack(root, target, rescan=True)["train"].shards == 2
    assert names_of_shards(target) == ["train-00000.tar", "train-00001.tar", "train-mine.tar"]
    (target / "train" / "train-mine.tar").unlink()
    assert verify(target, workers=1) == {"train": 5, "val": 6}


def test_rescan_does_not_pack_with_other_options(root, tmp_path):
    run_pack(root, tmp_path / "shards")
    with pytest.raises(UserError, match="was packed with shard_size 4000, not 5000: pack with the same options"):
        run_pack(root, tmp_path / "shards", rescan=True, shard_size=5_000)
    assert packed_shades(tmp_path / "shards") == [0, 1, 2, 10, 11, 12]


def test_sizes_are_measured_once_with_progress(root, tmp_path, monkeypatch):
    calls = []

    def packed():
        options = PackOptions(short_side=4, shard_size=4_000)
        return pack(
            root, tmp_path / "t", options, workers=1, cache=ListingCache(), progress=lambda *what: calls.append(what)
        )

    packed()
    assert ("measure train", 6, 6) in calls
    monkeypatch.setattr(packing, "size_of_sample", refuse)
    calls.clear()
    assert packed()["train"].kept > 0
    assert not [split for split, _, _ in calls if split.startswith("measure")]


def refuse(place):
    raise DataError("measured again")


def test_ctrl_c_while_measuring_is_reported(root, tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(packing._Packer, "_choose_num_shards", interrupt)
    with pytest.raises(PackInterrupted, match="^0 shards of train are done$"):
        run_pack(root, tmp_path / "shards")


def test_an_image_too_wide_for_a_jpeg_is_packed_unchanged(root, tmp_path):
    path = root / "train" / "ant" / "0.png"
    Image.new("RGB", (80_000, 8), (50, 0, 0)).save(str(path))
    run_pack(root, tmp_path / "shards", short_side=7)
    source = open_split(tmp_path / "shards", num_classes=2)
    assert source.image(0).size == (80_000, 8)
    assert source.picture(0).data == path.read_bytes()


@pytest.mark.parametrize("target", ["images/train", "images/val", "images/val/shards", "images/train/ant/x"])
def test_a_target_among_the_images_is_refused(root, tmp_path, monkeypatch, capsys, target):
    monkeypatch.chdir(tmp_path)
    before = sorted(root.rglob("*"))
    code, _, err = vit_ipu(monkeypatch, capsys, "pack", "images", target)
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith(f"vit-ipu: {target} is in images/")
    assert "among the images: give another TARGET" in err
    assert sorted(root.rglob("*")) == before


@pytest.mark.parametrize("rescan", [False, True])
@pytest.mark.parametrize("damage", ["index", "journal", "journal of bytes"])
def test_a_damaged_index_or_journal_is_refused(root, tmp_path, rescan, damage):
    target = tmp_path / "shards"
    run_pack(root, target)
    name = INDEX if damage == "index" else packing.JOURNAL
    (target / "train" / name).write_bytes({"index": b"{", "journal": b"\0\n", "journal of bytes": b"\xff\n"}[damage])
    message = f"train/{name} is damaged: (copy it again, or move it away|give another TARGET)$"
    with pytest.raises(DataError, match=message):
        run_pack(root, target, rescan=rescan)
    assert len(names_of_shards(target)) == 3


@pytest.mark.parametrize("text", ["3", "{}", '{"version": 1, "shards": 0}', '{"version": 1, "shards": "2"}'])
def test_a_journal_with_other_content_is_damaged(root, tmp_path, text):
    (tmp_path / "shards" / "train").mkdir(parents=True)
    (tmp_path / "shards" / "train" / packing.JOURNAL).write_text(text + "\n")
    with pytest.raises(DataError, match="is damaged"):
        run_pack(root, tmp_path / "shards")


def test_an_index_of_another_program_is_not_taken_for_packs(root, tmp_path):
    target = tmp_path / "shards"
    run_pack(root, target)
    for split, text in (("train", '{"wids_version": 1, "shardlist": []}'), ("val", '{"format": "wds", "shards": []}')):
        (target / split / INDEX).write_text(text)
    assert sorted(packed_shades(target)) == [0, 1, 2, 10, 11, 12]
    with pytest.raises(UserError, match="shards/train has files that vit-ipu pack did not write"):
        run_pack(root, target, rescan=True)
    with pytest.raises(DataError, match="shards/train/index.json was not written by vit-ipu pack$"):
        verify(target, workers=1)


def test_verify_refuses_a_target_that_is_being_packed(root, tmp_path):
    (tmp_path / "shards" / "train").mkdir(parents=True)
    (tmp_path / "shards" / "train" / packing.JOURNAL).write_text("")
    with pytest.raises(DataError, match="shards/train is not completely packed"):
        verify(tmp_path / "shards", workers=1)


def test_the_error_for_shards_that_do_not_match_the_index_names_the_remedy(root, tmp_path):
    run_pack(root, tmp_path / "shards")
    path = tmp_path / "shards" / "train" / "train-00000.tar"
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(DataError, match="does not match its index .*: copy it again, or run vit-ipu pack again$"):
        packed_shades(tmp_path / "shards")
    run_pack(root, tmp_path / "shards")
    assert packed_shades(tmp_path / "shards") == [0, 1, 2, 10, 11, 12]


def test_a_killed_rescan_continues_in_both_splits_and_leaves_no_old_shards(root, tmp_path, monkeypatch):
    target = tmp_path / "shards"
    run_pack(root, target, shard_size=3_000)
    assert len(names_of_shards(target)) == 4
    for split in ("train", "val"):
        (root / split / "ant" / "2.png").unlink()
        (root / split / "bee" / "2.png").unlink()
        write_image(root / split / "ant" / "0.png", 99)
    monkeypatch.setattr(packing, "make_shard", refuse_shard)
    with pytest.raises(DataError, match="^killed$"):
        run_pack(root, target, rescan=True, shard_size=3_000)
    monkeypatch.undo()
    packed = run_pack(root, target, shard_size=3_000)
    assert {name: split.kept for name, split in packed.items()} == {"train": 0, "val": 0}
    assert packed_shades(target) == [99, 1, 10, 11]
    assert len(names_of_shards(target)) == packed["train"].shards < 4
    assert verify(target, workers=1) == {"train": 4, "val": 4}


def refuse_shard(*task):
    raise DataError("killed")


@pytest.mark.parametrize("earlier", [{}, {"anew": True}, {"repack": True}], ids=str)
def test_a_rescan_that_was_killed_before_the_old_index_was_removed_continues(root, tmp_path, monkeypatch, earlier):
    """`earlier`: what earlier versions of the program also wrote into the journal."""
    target = tmp_path / "shards"
    run_pack(root, target)
    old_index = (target / "train" / INDEX).read_bytes()
    write_image(root / "train" / "ant" / "0.png", 99)
    monkeypatch.setattr(packing, "make_shard", refuse_shard)
    with pytest.raises(DataError, match="^killed$"):
        run_pack(root, target, rescan=True)
    monkeypatch.undo()
    (target / "train" / INDEX).write_bytes(old_index)
    journal = target / "train" / packing.JOURNAL
    settings = json.loads(journal.read_text().splitlines()[0])
    journal.write_text(json.dumps({**settings, **earlier}) + "\n")
    assert run_pack(root, target)["train"].kept == 0
    assert packed_shades(target) == [99, 1, 2, 10, 11, 12]


def test_verify_finds_tars_that_are_not_in_the_index(root, tmp_path):
    run_pack(root, tmp_path / "shards")
    (tmp_path / "shards" / "val" / "x.tar").write_bytes(b"")
    with pytest.raises(DataError, match="shards/val/x.tar is not in index.json: move it away"):
        verify(tmp_path / "shards", workers=1)


def test_an_index_of_fewer_shards_is_damaged(root, tmp_path):
    run_pack(root, tmp_path / "shards")
    path = tmp_path / "shards" / "train" / INDEX
    index = json.loads(path.read_text())
    index["settings"]["shards"] = 1
    path.write_text(json.dumps(index))
    with pytest.raises(DataError, match="train/index.json is damaged"):
        run_pack(root, tmp_path / "shards")


def test_a_shard_in_the_journal_with_fewer_images_is_made_again(root, tmp_path):
    target = tmp_path / "shards"
    run_pack(root, target)
    index = json.loads((target / "train" / INDEX).read_text())
    records = [index["settings"], dict(index["shards"][0], samples=1), *index["shards"][1:]]
    (target / "train" / packing.JOURNAL).write_text("".join(json.dumps(record) + "\n" for record in records))
    (target / "train" / INDEX).unlink()
    assert run_pack(root, target)["train"].kept == 2
    assert packed_shades(target) == [0, 1, 2, 10, 11, 12]


def test_files_with_names_like_packs_own_are_kept(root, tmp_path):
    run_pack(root, tmp_path / "shards")
    notes = tmp_path / "shards" / "train" / ".packing-notes.txt"
    notes.write_text("mine")
    run_pack(root, tmp_path / "shards", rescan=True)
    assert notes.read_text() == "mine"


def test_a_target_in_a_linked_class_folder_is_refused(root, tmp_path):
    (root / "train" / "ant").rename(tmp_path / "elsewhere")
    (root / "train" / "ant").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="elsewhere/shards is in .*train/ant, among the images"):
        run_pack(root, tmp_path / "elsewhere" / "shards")


def test_the_command_that_an_interrupted_rescan_prints_continues_it(root, tmp_path, monkeypatch, capsys):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    assert vit_ipu(monkeypatch, capsys, "pack", "images", "t")[0] == 0
    with monkeypatch.context() as context:
        context.setattr(packing._Packer, "_choose_num_shards", interrupt)
        code, _, err = vit_ipu(monkeypatch, capsys, "pack", "images", "t", "--rescan")
    assert code == 130
    assert err.endswith("continue with: vit-ipu pack images t\n")
    code, out, _ = vit_ipu(monkeypatch, capsys, "pack", "images", "t")
    assert code == 0
    assert out.count("(0 kept)") == 2
