"""Containers of torch.save, old and new: altered ones, which torch.load must never see, are refused."""

from __future__ import annotations

import pickle
import re
import struct
import tarfile
import warnings
import zipfile
from collections import OrderedDict

import pytest
import torch
from helpers import equal_states
from untrusted_files import WEIGHTS, legacy, refused, saved, written, zipped

from vit_ipu.weights.tensor_files import read_tensors


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
