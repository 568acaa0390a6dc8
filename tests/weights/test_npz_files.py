"""Arrays in untrusted .npz files: valid ones are read exactly; hostile ones are refused, and run no code."""

from __future__ import annotations

import io
import struct
import warnings
import zipfile

import numpy as np
import pytest
import torch
from untrusted_files import Touch, refused, written, zipped

from vit_ipu.weights import untrusted
from vit_ipu.weights.tensor_files import read_tensors


def npy(array, **options):
    file = io.BytesIO()
    np.lib.format.write_array(file, array, **options)
    return file.getvalue()


def lying_npy(shape, dtype="<f4", data=b"\0" * 8):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"shape": shape, "fortran_order": False, "descr": dtype})
    return file.getvalue() + data


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
