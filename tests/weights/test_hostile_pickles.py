"""Hostile pickles: none runs code, is unfolded to any size, or reaches a torch with known holes untrusted."""

from __future__ import annotations

import argparse
import re

import pytest
import torch
from helpers import equal_states
from untrusted_files import WEIGHTS, Touch, legacy, refused, saved, written, zipped

from vit_ipu.weights.pickles import known_holes
from vit_ipu.weights.tensor_files import read_tensors


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
