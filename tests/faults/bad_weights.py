"""Bad files of weights, and bad configs beside them."""

from __future__ import annotations

import io
import struct
import zipfile

import numpy as np
import torch
from bad_files import DEEP, a_file, fifo, link, npz, several, sparse
from safetensors.torch import save_file

CASES = {}
"""Cases of test_bad_inputs.py by their names."""


def header_of(size, text=b"{}"):
    return struct.pack("<Q", size) + text


def with_zip(**members):
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "."), content)
    return written.getvalue()


def npy(header):
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


NPY = "{{'descr': '<f4', 'fortran_order': False, 'shape': {}, }}".format
WEIGHTS = {
    "empty safetensors": ("w.safetensors", b"", "it is empty"),
    "safetensors of text": ("w.safetensors", b"no weights at all", "damaged"),
    "safetensors with a header of an exabyte": ("w.safetensors", header_of(1 << 60), "damaged"),
    "safetensors with a deep header": ("w.safetensors", header_of(90_000, b"[" * 90_000), "damaged"),
    "safetensors of nothing": ("w.safetensors", header_of(2), "no tensors"),
    "pickle of text": ("w.pth", b"no weights", "not a file of torch.save"),
    "pickle that is damaged": ("w.pth", b"\x80\x02nonsense", "damaged"),
    "pickle that never ends": ("w.pth", b"\x80\x02" + b"(" * 100_000, "damaged"),
    "zip that is none": ("w.pth", b"PK\x03\x04nonsense", "damaged"),
    "zip without a pickle": ("w.pth", with_zip(a="b"), "data.pkl"),
    "npz of text": ("w.npz", b"no zip", "damaged"),
    "npz with another file": ("w.npz", with_zip(a="b"), "not an array"),
    "npz that lies about its shape": ("w.npz", with_zip(a__npy=npy(NPY("(1000000, 1000000)"))), "would take"),
    "npz of a negative shape": ("w.npz", with_zip(a__npy=npy(NPY("(-1, -5)"))), "w.npz"),
    "npz of a shape of 5,000 digits": ("w.npz", with_zip(a__npy=npy(NPY("(" + "9" * 60 + ",)"))), "w.npz"),
    "npz whose header calls": ("w.npz", with_zip(a__npy=npy("__import__('os').system('touch x')")), "damaged"),
    "npz of objects": ("w.npz", npz(a=np.array([None])), "w.npz"),
    "bomb": ("w.npz", with_zip(a__npy=bytes(1 << 20) * 200), "w.npz"),
    "Git LFS": ("w.pth", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "another suffix": ("w.txt", b"weights", "expected a file that ends in"),
    "index of text": ("w.safetensors.index.json", b"no JSON", "not an index"),
    "index that is deep": ("w.safetensors.index.json", b"[" * 100_000, "not an index"),
    "index of numbers": ("w.safetensors.index.json", b'{"weight_map": {"a": 1}}', "not an index"),
    "index that climbs": (
        "w.safetensors.index.json",
        b'{"weight_map": {"a": "../x.safetensors"}}',
        "not a .safetensors",
    ),
    "index of a shard that is missing": (
        "w.safetensors.index.json",
        b'{"weight_map": {"a": "x.safetensors"}}',
        "is missing",
    ),
    "index of 5,000 digits": ("w.safetensors.index.json", b'{"weight_map": %s}' % (b"9" * 5_000), "not an index"),
}
for name, (path, content, expected) in WEIGHTS.items():
    command = ["convert", path, "out", "--to", "native", "--trust-pickle"]
    CASES["weights: " + name] = (a_file(path, content), command, expected)
for suffix in (".safetensors", ".npz", ".pth", ".safetensors.index.json"):
    command = ["convert", "w" + suffix, "out", "--to", "native", "--trust-pickle"]
    CASES[f"weights: pipe {suffix}"] = (fifo("w" + suffix), command, "not a regular file")
    CASES[f"weights: endless {suffix}"] = (link("w" + suffix, "/dev/zero"), command, "not a regular file")
    CASES[f"weights: 6 GB {suffix}"] = (sparse("w" + suffix), command, "w" + suffix)
CASES["weights: tensor with commands of a terminal in its name"] = (
    lambda p: save_file({"\x1b[2J\x07" + "n" * 5_000: torch.zeros(2)}, str(p / "w.safetensors")),
    ["convert", "w.safetensors", "out", "--to", "native"],
    "w.safetensors",
)


BESIDE = {
    "deep": DEEP,
    "of 5,000 digits": '{"model_type": "vit", "hidden_size": ' + "9" * 5_000 + "}",
    "with NaN": '{"model_type": "vit", "hidden_size": NaN}',
    "beyond floats": '{"model_type": "vit", "layer_norm_eps": 1e999}',
    "a list": "[1]",
    "empty": "",
    "not UTF-8": b"\xff",
    "of a size that is text": '{"model_type": "vit", "hidden_size": "many", "num_attention_heads": []}',
}
for name, content in BESIDE.items():
    CASES["config.json beside weights: " + name] = (
        several(a_file("w/config.json", content), a_file("w/model.safetensors", header_of(2))),
        ["convert", "w", "out", "--to", "native"],
        "config.json",
    )
for name, make in {
    "pipe": fifo("w/config.json"),
    "endless": link("w/config.json", "/dev/zero"),
    "6 GB": sparse("w/config.json"),
}.items():
    CASES["config.json beside weights: " + name] = (
        several(make, a_file("w/model.safetensors", header_of(2))),
        ["convert", "w", "out", "--to", "native"],
        "config.json",
    )

NATIVE = {
    "deep": DEEP,
    "empty": "",
    "a list": "[]",
    "a number": "7",
    "null": "null",
    "of 5,000 digits": '{"num_train": ' + "9" * 5_000 + "}",
    "with names that are a list": '{"id2label": [], "config": {}, "num_train": 1}',
    "with names that are a number": '{"id2label": 3, "config": {}, "num_train": 1}',
    "with another config": '{"id2label": {"0": "a"}, "config": [], "num_train": 1}',
    "with no config": '{"id2label": {"0": "a"}, "config": null, "num_train": 0}',
    "with NaN images": '{"id2label": {"0": "a"}, "config": {}, "num_train": NaN}',
    "with infinite images": '{"id2label": {"0": "a"}, "config": {}, "num_train": Infinity}',
    "with classes of numbers": '{"id2label": {"0": 1}, "config": {"model": {}, "data": {}}, "num_train": 0}',
}
for name, content in NATIVE.items():
    CASES["config.json of a checkpoint: " + name] = (
        several(
            a_file("w/config.json", content), a_file("w/state.json", "{}"), a_file("w/model.safetensors", header_of(2))
        ),
        ["convert", "w", "out", "--to", "timm"],
        "config.json",
    )
