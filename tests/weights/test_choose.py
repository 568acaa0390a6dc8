"""The file of weights that is chosen from a folder; links and indices stay inside of it."""

from __future__ import annotations

import json
import os

import pytest
from fetching import linked, written

from vit_ipu.errors import CheckpointError
from vit_ipu.small_files import MAX_TEXT_BYTES
from vit_ipu.weights.choose import leads_out, weight_file, weight_map


def test_the_weights_of_a_folder_are_chosen_by_preference(tmp_path):
    names = ["odd.npz", "pytorch_model.bin", "model.safetensors.index.json", "model.safetensors"]
    for name in names:  # each name is preferred to the names before it
        path = written(tmp_path / name, b"x")
        written(tmp_path / "config.json", b"{}")
        assert weight_file(tmp_path) == path


def test_folders_without_one_file_of_weights_are_refused(tmp_path):
    written(tmp_path / "config.json", b"{}")
    with pytest.raises(CheckpointError, match="holds no weights: expected model.safetensors, .* or one file that ends"):
        weight_file(tmp_path)
    for name in ("b.pth", "a.npz"):
        written(tmp_path / name, b"x")
    with pytest.raises(CheckpointError, match=r"holds several files of weights \(a.npz, b.pth\): name one of them"):
        weight_file(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "odd.pth"])
def test_links_out_of_a_folder_are_refused(tmp_path, name):
    written(tmp_path / "secret")
    written(tmp_path / "folder" / "inside" / "file")
    assert weight_file(linked(tmp_path / "folder", name, "inside/file").parent).name == name
    link = linked(tmp_path / "other", name, "../secret")
    with pytest.raises(CheckpointError, match=f"{link} leads out of the folder: name the file that it links"):
        weight_file(tmp_path / "other")
    through = linked(tmp_path / "third", name, "../folder/" + name)  # the target is inside of another folder
    assert leads_out(through)


def test_a_folder_that_is_itself_a_link_is_accepted(tmp_path):
    written(tmp_path / "folder" / "model.safetensors")
    linked(tmp_path, "link", "folder")
    assert weight_file(tmp_path / "link") == tmp_path / "link" / "model.safetensors"


def test_a_hugging_face_cache_may_link_to_its_blobs(tmp_path):
    repository = tmp_path / "models--google--vit"
    snapshot = repository / "snapshots" / "abc"
    written(repository / "blobs" / "123")
    assert not leads_out(linked(snapshot, "own.pth", "../../blobs/123"))
    written(tmp_path / "blobs" / "12" / "123")  # shared by the repositories of a cache, since huggingface_hub 2
    linked(repository / "blobs", "shared", "../../blobs/12/123")
    assert not leads_out(linked(snapshot, "shared.pth", "../../blobs/shared"))
    written(tmp_path / "secret")
    linked(repository / "blobs", "out", "../../secret")
    assert leads_out(linked(snapshot, "out.pth", "../../blobs/out"))
    assert leads_out(linked(snapshot, "refs.pth", written(repository / "refs" / "main")))


def test_only_a_hugging_face_cache_may_link_to_blobs_elsewhere(tmp_path):
    written(tmp_path / "blobs" / "123")
    assert leads_out(linked(tmp_path / "plain", "a.pth", "../blobs/123"))
    assert leads_out(linked(tmp_path / "any" / "snapshots" / "abc", "a.pth", "../../../blobs/123"))
    assert leads_out(linked(tmp_path / "models--any" / "other" / "abc", "a.pth", "../../../blobs/123"))


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', '{"weight_map": ["ab"]}', "[" * 100_000],
)
def test_a_malformed_index_is_refused(tmp_path, content):
    path = written(tmp_path / "model.safetensors.index.json", content.encode())
    with pytest.raises(CheckpointError, match="is not an index of safetensors files|its shard 'b'"):
        weight_map(path)


def test_an_enormous_index_is_refused(tmp_path):
    path = written(tmp_path / "model.safetensors.index.json", b'{"weight_map": {}}')
    assert weight_map(path) == {}
    os.truncate(str(path), MAX_TEXT_BYTES + 1)
    with pytest.raises(CheckpointError, match="is not an index of safetensors files"):
        weight_map(path)


@pytest.mark.parametrize(
    "name",
    ["../a.safetensors", "/a.safetensors", "b/a.safetensors", "b\\a.safetensors", "a.bin", ".safetensors/..", ""],
)
def test_shards_that_are_not_beside_the_index_are_refused(tmp_path, name):
    path = written(tmp_path / "model.safetensors.index.json", json.dumps({"weight_map": {"a": name}}).encode())
    with pytest.raises(CheckpointError, match=r"its shard .* is not a .safetensors file beside it"):
        weight_map(path)
