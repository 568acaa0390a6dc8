"""Tensors in untrusted files: valid safetensors are read exactly; hostile ones, and other files, are refused."""

from __future__ import annotations

import errno
import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import equal_states
from safetensors.torch import save_file
from untrusted_files import WEIGHTS, refused, saved, written

from vit_ipu.errors import CheckpointError
from vit_ipu.weights import tensor_files
from vit_ipu.weights.choose import INDEX_SUFFIXES, WEIGHT_SUFFIXES
from vit_ipu.weights.tensor_files import read_tensors


@pytest.mark.parametrize("suffix", [*WEIGHT_SUFFIXES, *INDEX_SUFFIXES])
def test_empty_files_pointers_and_other_bytes_are_refused(tmp_path, suffix):
    path = tmp_path / ("weights" + suffix)
    with pytest.raises(CheckpointError, match="no checkpoint at .*: there is no such file or folder"):
        read_tensors(path)
    refused(written(path, b""), "it is empty: fetch it again")
    refused(written(path, b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n"), "git lfs pull")
    refused(written(path, b"<!DOCTYPE html>" + b" " * 600), "it is (damaged|not a file of torch.save|not an index)")
    refused(written(path, b"PK\x03\x04" + b"\0" * 600), "it is (damaged|not an index)")


def test_a_path_that_is_not_a_weights_file_is_refused(tmp_path):
    refused(tmp_path, "it is a folder: name a file")
    refused(written(tmp_path / "weights.h5", b"x"), "expected a file that ends in .safetensors, .npz, .pth")
    os.mkfifo(str(tmp_path / "pipe.npz"))
    refused(tmp_path / "pipe.npz", "it is not a regular file")


def test_a_file_that_may_not_be_read_is_refused(tmp_path, monkeypatch):
    def forbidden(*args, **kwargs):  # root, who runs the tests in a container, may read everything
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    path = written(tmp_path / "weights.npz", b"x")
    monkeypatch.setattr(Path, "open", forbidden)
    refused(path, "Permission denied")


# ---------------------------------------------------------------------------------------- safetensors


def raw_safetensors(path, header, data=b""):
    text = json.dumps(header).encode()
    return written(path, struct.pack("<Q", len(text)) + text + data)


def entry(shape=(2,), dtype="F32", begin=0, end=8):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def test_safetensors_come_back_as_stored(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(WEIGHTS, str(path), metadata={"format": "pt"})
    found = read_tensors(path)
    assert equal_states(found.tensors, WEIGHTS)
    assert {name: tensor.dtype for name, tensor in found.tensors.items()} == {n: t.dtype for n, t in WEIGHTS.items()}
    assert found.metadata == {"format": "pt"}


def test_tensors_at_unaligned_addresses_are_copied_to_aligned_ones(tmp_path):
    path = tmp_path / "odd.safetensors"
    for padding in range(4):
        raw_safetensors(path, {"a" * (1 + padding): entry()}, struct.pack("<ff", 1, 2))
        (tensor,) = read_tensors(path).tensors.values()
        assert tensor.tolist() == [1, 2]
        assert tensor.data_ptr() % 4 == 0


DAMAGED_SAFETENSORS = [
    lambda path: raw_safetensors(path, {"a": entry()}, b"\0" * 7),  # cut short
    lambda path: raw_safetensors(path, {"a": entry()}, b"\0" * 9),
    lambda path: raw_safetensors(path, {"a": entry(shape=(1 << 30, 10))}, b"\0" * 8),
    lambda path: raw_safetensors(path, {"a": entry(shape=(1 << 30, 10), end=40 << 30)}, b"\0" * 8),
    lambda path: raw_safetensors(path, {"a": entry(shape=(1 << 40, 1 << 40))}, b"\0" * 8),
    lambda path: raw_safetensors(path, {"a": entry(), "b": entry()}, b"\0" * 8),  # overlapping
    lambda path: raw_safetensors(path, {"a": entry(begin=8, end=0)}, b"\0" * 8),
    lambda path: raw_safetensors(path, {"a": entry(shape=(-2,))}, b"\0" * 8),
    lambda path: raw_safetensors(path, {"a": entry(dtype="F33")}, b"\0" * 8),
    lambda path: raw_safetensors(path, ["a"]),
    lambda path: written(path, struct.pack("<Q", 1 << 40) + b"{}"),  # a header longer than the file
    lambda path: written(path, struct.pack("<Q", 1000) + b"{}"),
    lambda path: written(path, b"\0" * 7),
]


@pytest.mark.parametrize("damage", DAMAGED_SAFETENSORS)
def test_damaged_safetensors_are_refused(tmp_path, damage):
    refused(damage(tmp_path / "a.safetensors"), "it is damaged or not what its name says .*: fetch it again")


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        (entry(dtype="I64", shape=(1,)), "a is I64: weights are float16, bfloat16, float32 or float64"),
        (entry(dtype="U8", shape=(8,)), "a is U8"),
        (entry(dtype="F8_E4M3", shape=(8,)), "a is F8_E4M3"),
        (entry(dtype="BOOL", shape=(8,)), "a is BOOL"),
    ],
)
def test_safetensors_of_other_types_are_refused(tmp_path, claim, message):
    refused(raw_safetensors(tmp_path / "a.safetensors", {"a": claim}, b"\0" * 8), message)


def test_safetensors_without_tensors_are_refused(tmp_path):
    refused(raw_safetensors(tmp_path / "a.safetensors", {}), "it holds no tensors")


def write_shards(folder, **changes):
    save_file({"a": torch.ones(2)}, str(folder / "one.safetensors"), metadata={"format": "pt"})
    save_file({"b": torch.zeros(3), "unnamed": torch.zeros(1)}, str(folder / "two.safetensors"))
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict({"a": "one.safetensors", "b": "two.safetensors"}, **changes)}))
    return index


def test_shards_are_put_together(tmp_path):
    found = read_tensors(write_shards(tmp_path))
    assert equal_states(found.tensors, {"a": torch.ones(2), "b": torch.zeros(3)})
    assert found.metadata == {"format": "pt"}


def test_shards_that_do_not_match_the_index_are_refused(tmp_path):
    refused(write_shards(tmp_path, c="three.safetensors"), "its shard three.safetensors is missing: fetch it too")
    refused(write_shards(tmp_path, c="two.safetensors"), "its shard two.safetensors lacks c: fetch it again")
    index = write_shards(tmp_path)
    written(tmp_path / "two.safetensors", b"\xff" * 20)
    with pytest.raises(CheckpointError, match="cannot read .*two.safetensors: it is damaged"):
        read_tensors(index)


def test_a_shard_that_leads_out_of_the_folder_is_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    index = write_shards(tmp_path / "folder")
    (tmp_path / "folder" / "two.safetensors").rename(tmp_path / "two.safetensors")
    (tmp_path / "folder" / "two.safetensors").symlink_to(tmp_path / "two.safetensors")
    refused(index, "its shard two.safetensors leads out of the folder")


def test_not_finite_values_are_found_wherever_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_files, "_FINITE_CHUNK", 4)
    for position in range(10):
        weight = torch.ones(2, 5)
        weight.view(-1)[position] = float("inf")
        save_file({"a": torch.ones(9), "w": weight}, str(tmp_path / "a.safetensors"))
        refused(tmp_path / "a.safetensors", "w holds NaN or infinity")


def test_a_file_under_the_suffix_of_another_format_is_refused(tmp_path, safe_torch):
    contents = {}
    save_file(WEIGHTS, str(tmp_path / "a.safetensors"))
    saved(tmp_path / "a.pth", WEIGHTS)
    np.savez(str(tmp_path / "a.npz"), a=np.ones(2))
    for suffix in (".safetensors", ".pth", ".npz"):
        contents[suffix] = (tmp_path / ("a" + suffix)).read_bytes()
    for suffix in contents:
        for other in set(contents) - {suffix}:
            path = written(tmp_path / ("b" + suffix), contents[other])
            refused(path, "it is (damaged|not a file of torch.save)|is not an array|0 members data.pkl")
