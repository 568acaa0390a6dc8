"""Tensors in untrusted files: valid tensors are read exactly; hostile files are refused and run no code."""

from __future__ import annotations

import argparse
import errno
import io
import json
import os
import pickle
import re
import struct
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import equal_states
from safetensors.torch import save_file

from vit_ipu.errors import CheckpointError
from vit_ipu.weights import tensor_files, untrusted
from vit_ipu.weights.choose import INDEX_SUFFIXES, WEIGHT_SUFFIXES
from vit_ipu.weights.pickles import known_holes
from vit_ipu.weights.tensor_files import read_tensors

WEIGHTS = {
    "cls_token": torch.linspace(-1, 1, 6).reshape(1, 1, 6),
    "blocks.0.norm1.weight": torch.tensor([1.5, 2.5], dtype=torch.float16),
    "head.weight": torch.tensor([[3.0, -4.0]], dtype=torch.bfloat16),
    "head.bias": torch.tensor(5.0, dtype=torch.float64),
}


def refused(path, message, **options):
    """Asserts that the file is refused in one printable line that begins with its path; returns the line."""
    with pytest.raises(CheckpointError, match=message) as caught:
        read_tensors(path, **options)
    line = str(caught.value)
    assert line.startswith(f"cannot read {path}: ")
    assert line.isprintable()
    return line


def written(path, content):
    path.write_bytes(content)
    return path


# ------------------------------------------------------------------------ files that are not weights


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


# ------------------------------------------------------------------------------------------------ npz


def npy(array, **options):
    file = io.BytesIO()
    np.lib.format.write_array(file, array, **options)
    return file.getvalue()


def lying_npy(shape, dtype="<f4", data=b"\0" * 8):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"shape": shape, "fortran_order": False, "descr": dtype})
    return file.getvalue() + data


def zipped(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(str(path), "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


ARRAYS = {
    "params/Transformer/encoderblock_0/kernel": np.arange(24, dtype="<f4").reshape(2, 3, 4),
    "half": np.array([1.5, -2.5], dtype="<f2"),
    "big_endian": np.array([1.25, -7.0], dtype=">f4"),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "scalar": np.array(3.0, dtype="<f4"),
    "empty": np.zeros((0, 3), dtype="<f4"),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_come_back_as_stored(tmp_path, save):
    path = tmp_path / "vit.npz"
    save(str(path), **ARRAYS)
    found = read_tensors(path)
    assert found.metadata == {}
    assert set(found.tensors) == set(ARRAYS)
    for name, tensor in found.tensors.items():
        assert tensor.is_contiguous()
        assert tensor.dtype == torch.from_numpy(ARRAYS[name].astype(ARRAYS[name].dtype.newbyteorder("="))).dtype
        assert tensor.shape == ARRAYS[name].shape
        np.testing.assert_array_equal(tensor.numpy(), ARRAYS[name])


def test_big_visions_bfloat16_is_read(tmp_path):
    expected = torch.tensor([[1.0, -0.3359375], [3.0e38, 1e-40]], dtype=torch.bfloat16)
    path = tmp_path / "vit.npz"
    np.savez(str(path), kernel=expected.view(torch.int16).numpy().view("V2"))
    (kernel,) = read_tensors(path).tensors.values()
    assert kernel.dtype == torch.bfloat16
    assert torch.equal(kernel, expected)


def test_a_counter_among_arrays_is_left_out(tmp_path):
    path = tmp_path / "vit.npz"
    np.savez(str(path), **{"opt/state/step": np.array(7), "opt/target/cls": np.ones(2, dtype="<f4")})
    assert list(read_tensors(path).tensors) == ["opt/target/cls"]


class Touch:
    """An object whose pickle creates a file when an unsafe reader loads it."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_an_array_of_objects_is_refused_and_not_unpickled(tmp_path):
    marker = tmp_path / "executed"
    path = zipped(tmp_path / "a.npz", {"a.npy": npy(np.array([Touch(marker)], dtype=object), allow_pickle=True)})
    refused(path, "a is an array of object: weights are float16")
    with pytest.raises(AttributeError), np.load(str(path), allow_pickle=True) as loaded:
        loaded["a"][0].marker  # noqa: B018 (os.system returned a number: the bait works)
    assert marker.exists()
    marker.unlink()
    refused(path, "a is an array of object")
    assert not marker.exists()


STRANGE_ARRAYS = [
    ({"a.npy": npy(np.zeros(2, dtype=[("x", "<f4")]))}, r"a is an array of \[\('x', '<f4'\)\]"),
    ({"a.npy": npy(np.zeros(2, dtype=[("x", "<f2")]))}, r"a is an array of \[\('x', '<f2'\)\]"),
    ({"a.npy": lying_npy((1,), "2i1", b"12")}, r"a is an array of \('i1', \(2,\)\)"),
    ({"a.npy": lying_npy((1,), "|V3", b"123")}, r"a is an array of \|V3"),
    ({"a.npy": npy(np.zeros(2, dtype="<i8"))}, "a is an array of int64"),
    ({"step.npy": npy(np.zeros(2, dtype="<i8"))}, "step is an array of int64"),
    ({"a.npy": npy(np.zeros(2, dtype="<c8"))}, "a is an array of complex64"),
    ({"a.npy": npy(np.zeros(2, dtype="S4"))}, r"a is an array of \|S4"),
    ({"a.npy": npy(np.zeros(2, dtype="?"))}, "a is an array of bool"),
    ({"a.npy": npy(np.zeros(2, dtype="<f4"), version=(2, 0))}, "a is not an array of numbers"),
    ({"a.npy": lying_npy((10 << 28,))}, r"a of shape \(2684354560,\) would take 10737418240 bytes, but has 8"),
    ({"a.npy": lying_npy((1,))}, r"a of shape \(1,\) would take 4 bytes, but has 8"),
    ({"a.npy": lying_npy((-1, -2))}, r"a of shape \(-1, -2\) would take 8 bytes"),
    ({"a.npy": lying_npy((1 << 62, 1 << 62))}, "a of shape .* would take"),
    ({"a.npy": lying_npy((2,), "<f4", b"")}, r"a of shape \(2,\) would take 8 bytes, but has 0"),
    ({"readme.txt": b"hello"}, "readme.txt is not an array"),
    ({"a.npy": b"hello"}, "it is damaged or not what its name says"),
    ({"a.npy": b""}, "it is damaged or not what its name says"),
    ({"a.npy": b"\x93NUMPY\x01\x00\x10\x00" + b"(" * 16}, "it is damaged or not what its name says"),
    ({}, "it holds no tensors"),
]


@pytest.mark.parametrize(("members", "message"), STRANGE_ARRAYS)
def test_strange_arrays_are_refused(tmp_path, members, message):
    refused(zipped(tmp_path / "a.npz", members), message)


def test_arrays_of_one_name_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(str(path), "w") as archive:
            for value in (1.0, 2.0):
                archive.writestr("a.npy", npy(np.array(value)))
    refused(path, "two members of the archive have one name")


def test_an_array_whose_bits_have_changed_is_refused(tmp_path):
    path = zipped(tmp_path / "a.npz", {"a.npy": npy(np.ones(100, dtype="<f4"))})
    content = bytearray(path.read_bytes())
    content[300] ^= 1
    refused(written(path, bytes(content)), "it is damaged .*Bad CRC-32 for file 'a.npy'")
    refused(written(path, bytes(content[:300])), "it is damaged .*not a zip file")


def test_an_archive_that_unpacks_to_far_more_than_its_size_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "bomb.npz"
    np.savez_compressed(str(path), a=np.zeros(1 << 19, dtype="<f4"))
    assert path.stat().st_size < 10_000
    read_tensors(path)  # many zeros are allowed
    monkeypatch.setattr(untrusted, "_MAX_UNPACKED", 1 << 20)
    monkeypatch.setattr(zipfile.ZipFile, "open", None)  # nothing is unpacked
    refused(path, r"it claims 0.0 GiB in a file of 0.0 MiB")


def test_a_gigabyte_in_a_small_archive_is_refused(tmp_path):
    path = zipped(tmp_path / "bomb.npz", {"a.npy": b"x"})
    content = path.read_bytes()
    directory = content.index(b"PK\x01\x02")  # its entry: compressed size at 20, size at 24
    lying = content[: directory + 24] + struct.pack("<I", 3 << 30) + content[directory + 28 :]
    refused(written(path, lying), "it claims 3.0 GiB in a file of 0.0 MiB")


# -------------------------------------------------------------------------------------------- pickles


@pytest.fixture
def safe_torch(monkeypatch):
    """Makes torch count as a version without known holes, whichever version runs the tests."""
    monkeypatch.setattr(torch, "__version__", "2.10.0+cpu")


def saved(path, value, **options):
    torch.save(value, str(path), **options)
    return path


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
def test_pickles_come_back_as_stored(tmp_path, safe_torch, suffix):
    found = read_tensors(saved(tmp_path / ("a" + suffix), OrderedDict(WEIGHTS)))
    assert equal_states(found.tensors, WEIGHTS)
    assert found.metadata == {}


def test_parameters_and_other_memory_layouts_become_plain_contiguous_tensors(tmp_path, safe_torch):
    kernel = torch.randn(2, 3, 4, 5)
    state = {"a": torch.nn.Parameter(torch.ones(2)), "b": kernel.contiguous(memory_format=torch.channels_last)}
    found = read_tensors(saved(tmp_path / "a.pth", state)).tensors
    assert type(found["a"]) is torch.Tensor
    assert not found["a"].requires_grad
    assert found["b"].is_contiguous()
    assert torch.equal(found["b"], kernel)


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "module"])
def test_values_that_programs_save_beside_the_weights_become_metadata(tmp_path, safe_torch, key):
    meta = {"CLASSES": ["cat", "dog"], "epoch": 3, "loss": 0.5, "sizes": ((1, 2), None), 7: {"x": True}}
    optimizer = {"state": {0: {"exp_avg": torch.ones(2)}}}
    found = read_tensors(
        saved(tmp_path / "a.pth", {"meta": meta, key: WEIGHTS, "epoch": 9, "optimizer": optimizer, 5: 6})
    )
    assert equal_states(found.tensors, WEIGHTS)
    assert found.metadata == {"meta": meta, "epoch": 9}


def test_a_state_dict_may_have_other_values_beside_its_tensors(tmp_path, safe_torch):
    found = read_tensors(saved(tmp_path / "a.pth", dict(WEIGHTS, model={"name": "vit"}, epoch=3)))
    assert equal_states(found.tensors, WEIGHTS)
    assert found.metadata == {"model": {"name": "vit"}, "epoch": 3}


def test_the_first_wrapper_that_holds_tensors_is_taken(tmp_path, safe_torch):
    value = {"model": {"a": torch.ones(1)}, "state_dict": {"b": torch.ones(1)}, "module": {"c": torch.ones(1)}}
    assert list(read_tensors(saved(tmp_path / "a.pth", value)).tensors) == ["b"]


def endless():
    value = []
    value.append({"again": value})
    return value


def doubled():
    value = "ha"
    for _ in range(30):
        value = [value, value]
    return value


def deep():
    value = "ha"
    for _ in range(100):
        value = {"in": (value,)}
    return value


@pytest.mark.parametrize("nested", [endless, doubled, deep])
def test_metadata_without_bounds_is_left_out(tmp_path, safe_torch, nested):
    value = {"model": WEIGHTS, "good": 1, "bad": nested()}
    assert read_tensors(saved(tmp_path / "a.pth", value)).metadata == {"good": 1}


@pytest.mark.parametrize("prefixes", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_every_name_are_stripped(tmp_path, safe_torch, prefixes):
    state = {prefixes + name: tensor for name, tensor in WEIGHTS.items()}
    counted = dict(state, n_averaged=torch.tensor(3))
    assert equal_states(read_tensors(saved(tmp_path / "a.pth", counted)).tensors, WEIGHTS)
    save_file(state, str(tmp_path / "a.safetensors"))
    assert equal_states(read_tensors(tmp_path / "a.safetensors").tensors, WEIGHTS)


def test_a_prefix_of_only_some_names_is_kept(tmp_path, safe_torch):
    state = {"module.a": torch.ones(1), "b": torch.ones(1)}
    assert equal_states(read_tensors(saved(tmp_path / "a.pth", state)).tensors, state)


@pytest.mark.parametrize("name", ["num_batches_tracked", "bn.num_batches_tracked", "n_averaged", "step"])
def test_counters_are_left_out(tmp_path, safe_torch, name):
    state = {"a": torch.ones(1), name: torch.tensor(3)}
    assert list(read_tensors(saved(tmp_path / "a.pth", state)).tensors) == ["a"]
    save_file(state, str(tmp_path / "a.safetensors"))
    assert list(read_tensors(tmp_path / "a.safetensors").tensors) == ["a"]


STRANGE_TENSORS = [
    (torch.ones(2, dtype=torch.int64), "w is int64: weights are float16, bfloat16, float32 or float64"),
    (torch.tensor(3), "w is int64"),
    (torch.ones(2, dtype=torch.bool), "w is bool"),
    (torch.ones(2, dtype=torch.complex64), "w is complex64"),
    (torch.ones(2, 2).to_sparse(), "w is sparse float32"),
    (torch.empty(1 << 40, 1 << 10, device="meta"), "w is meta float32"),
    (torch.ones(1).expand(1 << 30, 10), r"w of shape \(1073741824, 10\) would take 42949672960 bytes, but has 4"),
    (torch.tensor([1.0, float("nan")]), "w holds NaN or infinity: take an earlier checkpoint"),
    (torch.tensor([1.0, -float("inf")], dtype=torch.bfloat16), "w holds NaN or infinity"),
    ([torch.ones(2)], "'w' is a list, not a tensor by its name"),
]


@pytest.mark.parametrize(("tensor", "message"), STRANGE_TENSORS)
def test_strange_tensors_are_refused(tmp_path, safe_torch, tensor, message):
    refused(saved(tmp_path / "a.pth", {"model": {"good": torch.ones(1), "w": tensor}}), message)


def test_quantized_tensors_are_refused(tmp_path, safe_torch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensor = torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8)
        # Whether torch's unpickler admits them depends on the version.
        refused(saved(tmp_path / "a.pth", {"w": tensor}), "w is quantized qint8|asks for torch._utils._rebuild_qtensor")


def test_not_finite_values_are_found_wherever_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_files, "_FINITE_CHUNK", 4)
    for position in range(10):
        weight = torch.ones(2, 5)
        weight.view(-1)[position] = float("inf")
        save_file({"a": torch.ones(9), "w": weight}, str(tmp_path / "a.safetensors"))
        refused(tmp_path / "a.safetensors", "w holds NaN or infinity")


def test_names_that_are_not_strings_are_refused(tmp_path, safe_torch):
    refused(saved(tmp_path / "a.pth", {3: torch.ones(1)}), "3 is a Tensor, not a tensor by its name")


@pytest.mark.parametrize("value", [torch.ones(2), 7, [torch.ones(2)], {}, {"epoch": 3}])
def test_values_without_named_tensors_are_refused(tmp_path, safe_torch, value):
    refused(saved(tmp_path / "a.pth", value), "it holds no tensors")


def test_tensors_that_would_grow_when_copied_are_refused(tmp_path, safe_torch):
    storage = torch.randn(100, 100)
    tied = {"a": storage, "b": storage, "c": storage.t()}
    assert len(read_tensors(saved(tmp_path / "a.pth", tied)).tensors) == 3
    overlapping = {str(number): storage.t() for number in range(50)}
    refused(saved(tmp_path / "a.pth", overlapping), "its tensors overlap and would take 2000000 bytes")


def test_names_cannot_write_to_the_terminal(tmp_path, safe_torch):
    state = {"a\x1b[2J\nb" + "c" * 5000: torch.ones(2, dtype=torch.int8)}
    line = refused(saved(tmp_path / "a.pth", state), r"a\\x1b\[2J bccc")
    assert len(line) < 600 + len(str(tmp_path))


@pytest.mark.parametrize("version", ["2.0.1", "2.10.0"])
@pytest.mark.parametrize("trust_pickle", [True, False])
def test_code_in_a_pickle_is_not_executed(tmp_path, monkeypatch, version, trust_pickle):
    marker = tmp_path / "executed"
    for number, value in enumerate([Touch(marker), {"model": {"w": torch.ones(1), "x": Touch(marker)}}]):
        path = saved(tmp_path / f"evil{number}.pth", value)
        monkeypatch.setattr(torch, "__version__", version)
        refused(path, "it asks for posix.system, which is neither a tensor|CVE", trust_pickle=trust_pickle)
        assert not marker.exists()
        torch.load(str(path), weights_only=False)  # the bait works
        assert marker.exists()
        marker.unlink()


def test_a_class_in_a_pickle_is_named(tmp_path, safe_torch):
    for value in (argparse.Namespace(lr=1), {"model": argparse.Namespace(lr=1)}):
        path = saved(tmp_path / "a.pth", value)
        refused(path, r"it asks for argparse.Namespace, which is neither .*: save its state_dict\(\) alone")
    refused(saved(tmp_path / "a.pth", {"model": dict(WEIGHTS, x=argparse.Namespace())}), "asks for argparse.Namespace")


DOUBLED = b")q\x00" + b"".join(b"h%ch%c\x86q%c" % (level, level, level + 1) for level in range(60))
"""Operations that make, as memo entry 60, a tuple of 2 ** 60 values: each of 60 tuples holds the one before twice."""
TUPLE, ONE, ZERO = b"h\x3c", b"K\x01\x85", b"X\x01\x00\x00\x000"


def tensor_pickle(size=ONE, stride=ONE, offset=b"K\x00", key=ZERO, count=b"K\x04", what=b"X\x07\x00\x00\x00storage"):
    """Returns the pickle of {"w": a tensor}, of which one part can be a value of any size."""
    storage = b"(" + what + b"ctorch\nFloatStorage\n" + key + b"X\x03\x00\x00\x00cpu" + count + b"tQ"
    call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + offset + size + stride + b"\x89}tR"
    return b"\x80\x02" + DOUBLED + b"}X\x01\x00\x00\x00w" + call + b"s."


HUGE = b"\x8b" + (1 << 20).to_bytes(4, "little") + b"\x01" * (1 << 20)


@pytest.mark.parametrize(
    "claims",
    [
        {"size": TUPLE},
        {"size": TUPLE + b"\x85"},
        {"stride": TUPLE},
        {"size": b"(" + b"K\x01" * 65 + b"t", "stride": b"(" + b"K\x01" * 65 + b"t"},
        {"size": b"(" + HUGE * 2 + b"t", "stride": b"(" + HUGE * 2 + b"t"},
        {"size": b"K\x01"},
        {"offset": TUPLE},
        {"count": TUPLE},
        {"key": TUPLE},
        {"what": TUPLE},
    ],
)
def test_a_claim_of_any_size_is_refused_and_not_printed(tmp_path, safe_torch, claims):
    """Covers tuples that would take centuries to hash or to print, and numbers that would take long to multiply."""
    path = zipped(tmp_path / "a.pth", {"a/data.pkl": tensor_pickle(**claims), "a/data/0": b"\0" * 16})
    refused(
        path, "is not a tuple of at most 64 numbers: fetch it again|is damaged: fetch it again|asks for torch.Float"
    )


def test_a_claim_of_usual_size_is_read(tmp_path, safe_torch):
    path = zipped(tmp_path / "a.pth", {"a/data.pkl": tensor_pickle(count=b"K\x04"), "a/data/0": b"\0" * 16})
    assert equal_states(read_tensors(path).tensors, {"w": torch.zeros(1)})


def test_values_of_any_size_in_the_format_of_torch_before_1_6_are_refused(tmp_path, safe_torch):
    content = legacy(tmp_path / "old.pth", {"w": torch.ones(4)}).read_bytes()
    version = content.replace(b"M\xe9\x03.", DOUBLED + TUPLE + b".", 1)
    refused(written(tmp_path / "a.pth", version), "its version is not 1001: save it again")
    keys = re.sub(rb"\]q.X.{4}\d+q.a\.", lambda match: DOUBLED + b"]" + TUPLE + b"a.", content, flags=re.DOTALL)
    assert keys != content
    refused(written(tmp_path / "a.pth", keys), "its table of storages is damaged: fetch it again")


DEEPER = [
    (lambda state: {"model": {"state_dict": state}}, r"\['model'\]\['state_dict'\]"),
    (lambda state: [state], r"\[0\]"),
    (lambda state: (3, {"a": state}), r"\[1\]\['a'\]"),
    (lambda state: {"checkpoint": {"epoch": 3, "net": OrderedDict(state)}}, r"\['checkpoint'\]\['net'\]"),
]


@pytest.mark.parametrize(("nest", "place"), DEEPER)
def test_the_place_of_tensors_that_are_deeper_is_named(tmp_path, safe_torch, nest, place):
    message = f"its tensors are deeper, in {place}: save that state dict alone with torch.save"
    refused(saved(tmp_path / "a.pth", nest(WEIGHTS)), message)


def test_many_references_to_large_values_are_searched_once(tmp_path, safe_torch):
    """Covers pickles of a megabyte in which a search of every reference would look at 10 ** 10 values."""
    large = {number: number for number in range(100_000)}
    saved(tmp_path / "a.pth", dict.fromkeys(range(100_000), large))
    refused(tmp_path / "a.pth", "it holds no tensors")
    saved(tmp_path / "b.pth", [[large] * 10_000] * 10_000 + [{"x" * 100_000: large}] * 10_000)
    refused(tmp_path / "b.pth", "it holds no tensors")


@pytest.mark.parametrize("value", [{}, [], 3, {"a": [{"b": [{"c": 1}]}]}, [[]] * 20_000])
def test_a_pickle_without_tensors_is_refused(tmp_path, safe_torch, value):
    refused(saved(tmp_path / "a.pth", value), "it holds no tensors")


@pytest.mark.parametrize(
    ("version", "holes"),
    [
        ("2.0.1+cu117", ("CVE-2025-32434", "CVE-2026-24747")),
        ("2.5.1", ("CVE-2025-32434", "CVE-2026-24747")),
        ("2.6.0a0+git123", ("CVE-2026-24747",)),
        ("2.9.1+cu130", ("CVE-2026-24747",)),
        ("2.10.0a0", ()),
        ("2.10.0", ()),
        ("2.15.0+cu130", ()),
        ("3.0", ()),
    ],
)
def test_known_holes_depend_on_the_version_of_torch(version, holes):
    assert known_holes(version) == holes


def test_a_torch_with_holes_reads_a_pickle_only_if_it_is_trusted(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.pth", WEIGHTS)
    monkeypatch.setattr(torch, "__version__", "2.0.1")
    line = refused(path, r"torch 2.0.1 may be made to run code by a pickle \(CVE-2025-32434, CVE-2026-24747\)")
    assert "pin its sha256 in model.init_sha256, give --trust-pickle, or convert it on torch 2.10 or newer" in line
    assert equal_states(read_tensors(path, trust_pickle=True).tensors, WEIGHTS)
    monkeypatch.setattr(torch, "__version__", "2.9.1")
    assert "CVE-2025-32434" not in refused(path, "CVE-2026-24747")


# ------------------------------------------------------------- archives that torch.load must never see


def repacked(path, compression=zipfile.ZIP_STORED, rename=lambda name: [name]):
    """Rewrites a file of torch.save with its members compressed or renamed."""
    with zipfile.ZipFile(str(path)) as archive:
        members = {new: archive.read(name) for name in archive.namelist() for new in rename(name)}
    return zipped(path, members, compression)


def test_a_torchscript_program_is_refused(tmp_path, safe_torch):
    path = tmp_path / "program.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(path))
    message = r"it is a TorchScript program: save its state_dict\(\) with torch.save instead"
    refused(path, message)
    for telltale in ("a/constants.pkl", "a/code/__torch__.py"):
        refused(zipped(path, {"a/data.pkl": b"", telltale: b""}), message, trust_pickle=True)


ALTERED = [
    (lambda path: repacked(path, zipfile.ZIP_DEFLATED), "its members are compressed, which torch.save never does"),
    (lambda path: repacked(path, rename=lambda name: [name, "b/data.pkl"]), "it has 2 members data.pkl where"),
    (lambda path: repacked(path, rename=lambda name: [name.replace(".pkl", "")]), "it has 0 members data.pkl where"),
    (lambda path: written(path, path.read_bytes()[:-100]), "it is damaged or not what its name says"),
    (lambda path: zipped(path, {"a/data.pkl": b"\x80\x02garbage", "a/version": b"3\n"}), "its pickle is damaged"),
]


@pytest.mark.parametrize(("alter", "message"), ALTERED)
def test_altered_archives_are_refused(tmp_path, safe_torch, alter, message):
    refused(alter(saved(tmp_path / "a.pth", {"w": torch.ones(2)})), message, trust_pickle=True)


def test_members_that_overlap_are_refused(tmp_path, safe_torch):
    path = zipped(tmp_path / "a.pth", {"a/data.pkl": b"x" * 5000, "a/data/0": b""})
    content = path.read_bytes()
    at = content.rindex(b"PK\x01\x02") + 20  # both sizes of the empty member in the directory
    content = content[:at] + struct.pack("<II", 5000, 5000) + content[at + 8 :]
    refused(written(path, content), "its members overlap, which torch.save never does")


def legacy(path, value):
    """Writes the format of torch before 1.6, in which mmpretrain publishes its weights."""
    return saved(path, value, _use_new_zipfile_serialization=False)


def test_the_format_of_torch_before_1_6_is_read(tmp_path, safe_torch):
    value = {"meta": {"epoch": 3}, "optimizer": {0: torch.ones(3, dtype=torch.int64)}, "state_dict": WEIGHTS}
    found = read_tensors(legacy(tmp_path / "old.pth", value))
    assert equal_states(found.tensors, WEIGHTS)
    assert found.metadata == {"meta": {"epoch": 3}}
    assert equal_states(read_tensors(legacy(tmp_path / "plain.pth", OrderedDict(WEIGHTS))).tensors, WEIGHTS)


def test_damage_in_the_format_of_torch_before_1_6_is_refused(tmp_path, safe_torch):
    path = legacy(tmp_path / "old.pth", {"w": torch.ones(100)})
    content = path.read_bytes()
    refused(written(path, content[:-1]), "it ends within a storage of 400 bytes: fetch it again")
    refused(written(path, content[:-408] + struct.pack("<q", 1 << 40) + content[-400:]), "it ends within a storage")
    refused(
        written(path, content[:-408] + struct.pack("<q", 99) + content[-400:]), "should take 400 bytes, but have 396"
    )
    refused(written(path, content.replace(b"FloatStorage", b"LongsStorage")), "it is damaged")
    swapped = re.sub(rb"(?<=little_endianq.)\x88", b"\x89", content)
    refused(written(path, swapped), "its numbers are big-endian: save it again on a computer like this one")
    refused(written(path, content[:200]), "its pickle is damaged: fetch it again")
    refused(written(path, pickle.dumps({"w": 1}, protocol=2)), "it is a bare pickle, not a file of torch.save")
    refused(written(path, content.replace(b"M\xe9\x03.", b"M\xe8\x03.", 1)), "its version 1000 is not 1001")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refused(legacy(path, torch.nn.Linear(2, 2)), r"it is a complete module: save its state_dict\(\)")


def test_older_formats_of_torch_are_refused(tmp_path, safe_torch):
    path = tmp_path / "old.pth"
    with tarfile.open(str(path), "w") as archive:
        archive.addfile(tarfile.TarInfo("sys_info"))
    refused(path, "it is a tar file, the format of torch's first years", trust_pickle=True)
    refused(written(path, b"(dp0\n."), "it is not a file of torch.save", trust_pickle=True)


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
