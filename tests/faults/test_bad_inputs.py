"""Bad input of every kind gives one clear line on stderr and exit 2, at once, in little memory, and writes nothing.

Each case is a function that prepares the folder, a command, and texts that the line must contain.
"""

from __future__ import annotations

import gzip
import importlib
import io
import json
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib

import numpy as np
import pytest
import torch
import yaml
from helpers import tiny_values, vit_ipu, write_config, write_image_folder
from PIL import Image
from safetensors.torch import save_file

TRAIN = ["train", "tiny.yaml", "--device", "cpu"]
SECONDS, MEGABYTES = 2.0, 200
"""Limits of a case: seconds of the processor, because tests share it, and memory above that of a good run."""
HANGS_AFTER_SECONDS = 300


def file(name, content):
    """Returns a function that writes a file."""

    def write(folder):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return write


def sparse(name, size=6 << 30):
    """Returns a function that makes a file of 6 GB that takes no place on the disk."""

    def write(folder):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with (folder / name).open("wb") as opened:
            opened.truncate(size)

    return write


def fifo(name):
    def make(folder):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(str(folder / name))

    return make


def link(name, target):
    def make(folder):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(target)

    return make


def a_socket(name):
    def make(folder):
        here = os.getcwd()
        os.chdir(str(folder))  # the path of a socket has at most 108 bytes
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(name)
        os.chdir(here)

    return make


def several(*functions):
    def make(folder):
        for function in functions:
            function(folder)

    return make


def with_set(*settings):
    return [*TRAIN, *[argument for setting in settings for argument in ("--set", setting)]]


# ------------------------------------------------------------------------------------------- config

ALIASES = "".join(f"x{n}: &x{n} [{', '.join(f'*x{n - 1}' for _ in range(10))}]\n" for n in range(1, 12))
CONFIG_FILES = {
    "empty": (b"", "expected the sections"),
    "null": (b"null\n", "expected the sections"),
    "list": (b"- model\n", "expected the sections"),
    "text": (b"hello\n", "expected the sections"),
    "nested deeply in flow": (b"model: " + b"[" * 30_000, "nested too deeply"),
    "nested deeply in mappings": (b"model: " + b"{a: " * 10_000, "nested too deeply"),
    "nested deeply in blocks": (b"- " * 5_000 + b"a\n", "nested too deeply"),
    "aliases that mean billions": (("x0: &x0 [1, 1, 1, 1]\n" + ALIASES).encode(), "more than 10,000 values"),
    "aliases that mean billions in a known key": (
        ("x0: &x0 [1, 1]\n" + ALIASES + "pipeline: {layers_per_ipu: *x11}\n").encode(),
        "more than 10,000 values",
    ),
    "merges that mean billions": (
        b"a0: &a0 {k: 1}\n"
        + b"".join(b"a%d: &a%d {<<: [%s]}\n" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 9)) for n in range(1, 9)),
        "more than 10,000 values",
    ),
    "alias of itself": (b"model: &a [*a]\n", "an alias repeats the value that contains it"),
    "mapping of itself": (b"model: &a {b: *a}\n", "an alias repeats the value that contains it"),
    "too long": (b"model: {}\n" + b"# comment\n" * 7_000, "at most 65,536 are read"),
    "Latin-1": ("model: é\n".encode("latin-1"), "not a text file"),
    "UTF-16": ("model: {}\n".encode("utf-16"), "not a text file"),
    "NUL": (b"model: \0\n", "not YAML"),
    "control character": (b"model: \x1b[2J\n", "not YAML"),
    "tab": (b"model:\n\tdepth: 1\n", "line 2"),
    "key twice": (b"model: {depth: 1, depth: 2}\n", "'depth' is given twice"),
    "number as key": (b"1: 2\n", "key 1 must be a string"),
    "list as key": (b"? [a]\n: 1\n", "must be a string"),
    "long key twice": (b"%s: 1\n" % (b"k" * 900) * 2, "is given twice"),
    "open quote": (b"model: 'a\n", "line"),
    "unknown alias": (b"model: *nothing\n", "undefined alias"),
    "two documents": (b"model: {}\n---\nmodel: {}\n", "line 2"),
    "call of a function": (b"model: !!python/object/apply:os.system [touch x]\n", "could not determine a constructor"),
    "integer that is none": (b"model: {depth: !!int foo}\n", "a value does not fit its type"),
    "date that is none": (b"model: {depth: !!timestamp 2001-99-99}\n", "a value does not fit its type"),
    "binary that is none": (b"model: !!binary x\n", "line 1"),
    "integer of 5,000 digits": (b"model: {depth: %s}\n" % (b"9" * 5_000), "5,000 digits"),
    "hexadecimal integer of 5,000 digits": (b"model: {depth: 0x%s}\n" % (b"f" * 5_000), "5,002 digits"),
    "key of 60,000 letters": (b"model: {%s: 1}\n" % (b"k" * 900), "unknown key"),
    "value of 60,000 letters": (b"model: {depth: %s}\n" % (b"v" * 60_000), "model.depth"),
    "version of YAML": (b"%YAML 9.9\n---\nmodel: {}\n", "line"),
    "name with commands of a terminal": (b'model: {"\\e[2J\\e]0;x\\a": 1}\n', "\\x1b[2J"),
    "section that is a number": (b"model: 3\n", "model"),
    "half a surrogate": (b'data: {path: "\\ud800"}\n', ""),
}
SPECIAL = {
    "folder": (lambda p: (p / "bad.yaml").mkdir(), "directory"),
    "pipe": (fifo("bad.yaml"), "not a regular file"),
    "socket": (a_socket("bad.yaml"), "not a regular file"),
    "endless device": (link("bad.yaml", "/dev/zero"), "not a regular file"),
    "null device": (link("bad.yaml", "/dev/null"), "not a regular file"),
    "6 GB": (sparse("bad.yaml"), "at most 65,536 are read"),
    "link to nothing": (link("bad.yaml", "nowhere"), "No such file"),
    "link to itself": (link("bad.yaml", "bad.yaml"), "symbolic links"),
}
SETTINGS = {
    "NaN": ("optim.learning_rate=.nan", "learning_rate"),
    "infinity": ("optim.learning_rate=.inf", "learning_rate"),
    "float beyond floats": ("optim.learning_rate=1e999", "learning_rate"),
    "negative rate": ("optim.learning_rate=-1.0", "learning_rate"),
    "no updates": ("run.updates=0", "updates"),
    "negative updates": ("run.updates=-5", "updates"),
    "updates beyond 31 bits": ("run.updates=99999999999", "updates"),
    "integer of 5,000 digits": ("run.updates=" + "9" * 5_000, "5,000 digits"),
    "truth for a number": ("run.updates=true", "updates"),
    "text for a number": ("run.updates='3'", "updates"),
    "mapping for a number": ("run.updates={a: 1}", "updates"),
    "fraction": ("run.updates=1.5", "updates"),
    "sexagesimal": ("run.updates=1:00:00:00:00:00:00:00", "updates"),
    "empty path": ("data.path=''", "data.path"),
    "NUL in a path": (r'data.path="a\0b"', "data.path"),
    "NUL in weights": (r'model.init="a\0b"', "model.init"),
    "NUL in a cache": (r'pipeline.executable_cache="a\0b"', "executable_cache"),
    "path of 5,000 letters": ("data.path=" + "p" * 5_000, "data.path"),
    "nothing": ("", "section.key=value"),
    "no key": ("model.=3", "section.key=value"),
    "no section": (".depth=3", "no section"),
    "only =": ("=", "section.key=value"),
    "section alone": ("model=3", "section.key=value"),
    "key in a key": ("model.depth.x=3", "unknown key"),
    "100,000 letters": ("model.x" + "k" * 100_000, "section.key=value"),
    "value of 100,000 letters": ("model.depth=" + "v" * 100_000, "100,000 characters"),
    "open bracket": ("model.depth=[", "line 1"),
    "deep list": ("model.depth=" + "[" * 5_000, "nested too deeply"),
    "aliases": ("model.depth=[&a [1, 1], &b [*a, *a], *c]", "undefined alias"),
    "escapes of a terminal": ('model."\x1b[2J"=3', "\\x1b[2J"),
    "newline in a key": ("model.a\nb=3", "--set model.a b=3: unknown key"),
    "mean of text": ("data.mean=[a, b, c]", "data.mean"),
    "mean of two": ("data.mean=[0.5, 0.5]", "data.mean"),
    "std of zero": ("data.std=[0.0, 0.5, 0.5]", "std"),
    "crop backwards": ("data.crop_scale=[1.0, 0.1]", "crop_scale"),
    "negative layers": ("pipeline.layers_per_ipu=[-1, 5]", "layers_per_ipu"),
    "layers that are text": ("pipeline.layers_per_ipu=[a]", "layers_per_ipu"),
    "option of NaN": ("pipeline.engine_options={a: .nan}", "engine_options"),
    "option of infinity": ("pipeline.engine_options={a: -.inf}", "engine_options"),
    "option of PopART of NaN": ("pipeline.popart_options={outlineThreshold: .nan}", "outlineThreshold"),
    "option that is a list": ("pipeline.engine_options={a: [1]}", "engine_options"),
    "unknown option of PopART": ("pipeline.popart_options={nonsense: 1}", "popart_options"),
    "variant that is a number": ("model.variant=3", "variant"),
    "width of a planet": ("model.width=1000000000000", "width"),
    "seed that is a list": ("run.seed=[1]", "seed"),
    "sha256 that is none": ("model.init_sha256=abc", "init_sha256"),
    "workers": ("data.num_workers=100000", "num_workers"),
}

CASES = {}
for name, (content, expected) in CONFIG_FILES.items():
    CASES["config: " + name] = (file("bad.yaml", content), ["plan", "bad.yaml"], expected)
for name, (make, expected) in SPECIAL.items():
    CASES["config: " + name] = (make, ["plan", "bad.yaml"], expected)
for name, (setting, expected) in SETTINGS.items():
    CASES["set: " + name] = (None, with_set(setting), expected)

# --------------------------------------------------------------------------------------------- data


def encoded(image_format="PNG", side=8):
    written = io.BytesIO()
    Image.new("RGB", (side, side), (9, 99, 9)).save(written, image_format)
    return written.getvalue()


def member(name, content, size=None, kind=tarfile.REGTYPE):
    """Returns a member of a tar, whose header may lie about its size."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(content) if size is None else size
    return info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)


def a_tar(*members, end=bytes(1024)):
    return b"".join(members) + end


def pax(**headers):
    """Returns an extended header with lies."""
    lines = b""
    for key, value in headers.items():
        body = f" {key}={value}\n".encode()
        length = len(body) + 1
        while len(str(length)) + len(body) != length:
            length = len(str(length)) + len(body)
        lines += str(length).encode() + body
    return member("pax", lines, kind=tarfile.XHDTYPE)


GOOD = a_tar(*(member(f"{n}.png", encoded()) + member(f"{n}.cls", str(n).encode()) for n in range(10)))
SHARDS = ["--set", "data.source=shards", "--set", "data.path=shards"]


def shard(content, name="a.tar"):
    return several(file(f"shards/train/{name}", content), file("shards/val/a.tar", GOOD))


def labelled(suffix, label):
    return a_tar(member("0.png", encoded()), member("0" + suffix, label))


SHARD_FILES = {
    "text": (b"no tar" * 1000, "is not a tar"),
    "zeros": (bytes(4096), "no images"),
    "gzip": (gzip.compress(GOOD), "compressed (gzip)"),
    "cut off": (GOOD[:700], "cut off"),
    "without its end": (GOOD[:-1024], "cut off"),
    "NaN as label": (labelled(".json", b'{"label": NaN}'), "NaN"),
    "infinity as label": (labelled(".json", b'{"label": 1e999}'), "label"),
    "label of 5,000 digits": (labelled(".cls", b"9" * 5_000), "expected a whole number"),
    "label of 5,000 digits in JSON": (labelled(".json", b'{"label": %s}' % (b"9" * 5_000)), "label"),
    "label in deep JSON": (labelled(".json", b"[" * 100_000), "not a JSON object"),
    "negative label": (labelled(".cls", b"-1"), "expected a whole number"),
    "label with commands of a terminal": (labelled(".cls", b"\x1b[2J"), "\\x1b[2J"),
    "label of 2 MB": (labelled(".cls", b"1" * (2 << 20)), "2,097,152 bytes"),
    "label beyond the classes": (labelled(".cls", b"77"), "label 77"),
    "no label": (a_tar(member("0.png", encoded())), "has no label"),
    "negative size in a header": (a_tar(member("0.png", encoded(), size=-512)), "claims -512 bytes"),
    "size of a terabyte": (a_tar(member("0.png", encoded(), size=1 << 40)), "cut off"),
    "extended header of 8 GB": (a_tar(member("x", b"", size=8 << 30, kind=tarfile.XHDTYPE)), "claims"),
    "long name of 1 MB": (a_tar(member("x", b"n" * (1 << 20), kind=tarfile.GNUTYPE_LONGNAME)), "claims"),
    "extended size below zero": (a_tar(pax(size="-1024"), member("0.png", encoded())), "not a tar"),
    "extended size of 5,000 digits": (a_tar(pax(size="9" * 5_000), member("0.png", encoded())), "a.tar"),
    "extended size that is a word": (a_tar(pax(size="many"), member("0.png", encoded())), "a.tar"),
    "extended header that is damaged": (a_tar(member("x", b"x y z\n", kind=tarfile.XHDTYPE)), "a.tar"),
    "extended name that climbs": (a_tar(pax(path="../../0.png"), member("0.png", encoded())), "a.tar"),
    "sparse member": (a_tar(pax(**{"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}), member("0.png", b"9")), "a.tar"),
    "link": (a_tar(member("0.png", b"", kind=tarfile.SYMTYPE)), "stored as a link"),
}
for name, (content, expected) in SHARD_FILES.items():
    CASES["shard: " + name] = (shard(content), [*TRAIN, *SHARDS], expected)
for name, make in {
    "pipe": fifo("shards/train/a.tar"),
    "endless device": link("shards/train/a.tar", "/dev/zero"),
}.items():
    CASES["shard: " + name] = (several(make, file("shards/val/a.tar", GOOD)), [*TRAIN, *SHARDS], "not a regular file")
CASES["shard: 6 GB of zeros"] = (
    several(sparse("shards/train/a.tar"), file("shards/val/a.tar", GOOD)),
    [*TRAIN, *SHARDS],
    "no images",
)
for name, pattern, expected in [
    ("300,000,000 shards", "a-{0..300000000}.tar", "more than 100,000 shards"),
    ("products of braces", "{a,b}" * 40, "more than 100,000 shards"),
    ("numbers of 200 digits", "{0.." + "9" * 200 + "}", "more than 100,000 shards"),
    ("a range backwards", "a-{300000000..0}.tar", "more than 100,000 shards"),
    ("a shard that is missing", "a-{0..3}.tar", "missing: 4 of 4"),
    ("nothing", "*.tar", "no shard at"),
]:
    arguments = ["--set", "data.source=shards", "--set", f"data.path='{pattern}'", "--set", "data.eval_path=x.tar"]
    CASES["braces: " + name] = (None, [*TRAIN, *arguments], expected)

INDEX = {
    "format": "webdataset: KEY.jpg",
    "classes": [str(n) for n in range(10)],
    "samples": 10,
    "settings": {"version": 1, "shards": 1},
    "shards": [{"name": "a.tar", "sha256": "0" * 64, "bytes": len(GOOD), "samples": 10}],
}
TABLE = {
    "shard": np.zeros(10, np.int32),
    "offset": np.arange(10) * 2048 + 512,
    "size": np.full(10, len(encoded())),
    "label": np.arange(10, dtype=np.int32),
    "sha256": np.array(["0" * 64]),
}


def npz(compressed=False, **arrays):
    written = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(written, **arrays)
    return written.getvalue()


def indexed(index=None, table=None):
    content = json.dumps(INDEX) if index is None else index
    return several(
        shard(GOOD),
        file("shards/train/index.json", content),
        file("shards/train/index.npz", npz(**TABLE) if table is None else table),
    )


for name, content in {
    "empty": "",
    "cut off": json.dumps(INDEX)[:-20],
    "deep": '{"format": "webdataset: KEY.jpg", "classes": ' + "[" * 50_000,
    "of 5,000 digits": json.dumps(INDEX).replace('"samples": 10', '"samples": ' + "9" * 5_000, 1),
    "with NaN": json.dumps(INDEX).replace('"samples": 10', '"samples": NaN', 1),
    "not UTF-8": b'{"format": "\xff"}',
    "without shards": json.dumps({**INDEX, "shards": []}),
    "with shards of text": json.dumps({**INDEX, "shards": "abc"}),
    "with shards of numbers": json.dumps({**INDEX, "shards": [1]}),
    "with classes of numbers": json.dumps({**INDEX, "classes": [1, 2]}),
    "without classes": json.dumps({key: value for key, value in INDEX.items() if key != "classes"}),
    "with settings of text": json.dumps({**INDEX, "settings": "abc"}),
}.items():
    CASES["index " + name] = (indexed(index=content), [*TRAIN, *SHARDS], "index.json is damaged")
for name, make in {
    "a pipe": fifo("shards/train/index.json"),
    "endless": link("shards/train/index.json", "/dev/zero"),
    "of 6 GB": sparse("shards/train/index.json"),
}.items():
    CASES["index that is " + name] = (several(shard(GOOD), make), [*TRAIN, *SHARDS], "index.json is damaged")
for name, content in {
    "empty": b"",
    "text": b"no zip",
    "cut off": npz(**TABLE)[:-100],
    "compressed": npz(compressed=True, **TABLE),
    "a bomb": npz(compressed=True, **{**TABLE, "label": np.zeros(100_000_000, np.int32)}),
    "of floats": npz(**{**TABLE, "label": np.full(10, np.nan)}),
    "of objects": npz(**{**TABLE, "label": np.array([None] * 10)}),
    "of two dimensions": npz(**{**TABLE, "label": np.zeros((10, 2), np.int32)}),
    "without labels": npz(**{key: value for key, value in TABLE.items() if key != "label"}),
    "of other shards": npz(**{**TABLE, "shard": np.full(10, 7, np.int32)}),
    "of negative shards": npz(**{**TABLE, "shard": np.full(10, -1, np.int32)}),
    "of offsets before the shard": npz(**{**TABLE, "offset": np.full(10, -4096)}),
    "of offsets behind the shard": npz(**{**TABLE, "offset": np.full(10, 1 << 60)}),
    "of images of a terabyte": npz(**{**TABLE, "size": np.full(10, 1 << 40)}),
    "of negative images": npz(**{**TABLE, "size": np.full(10, -5)}),
}.items():
    CASES["table " + name] = (indexed(table=content), [*TRAIN, *SHARDS], "index.npz is missing or damaged")
CASES["table that is a pipe"] = (
    several(shard(GOOD), file("shards/train/index.json", json.dumps(INDEX)), fifo("shards/train/index.npz")),
    [*TRAIN, *SHARDS],
    "index.npz is missing or damaged",
)
for name, make, expected in [
    ("not UTF-8", file("shards/train/classes.txt", b"\xff\xfe"), "not a text file"),
    ("of 6 GB", sparse("shards/train/classes.txt"), "at most 8,388,608 are read"),
]:
    CASES["class names " + name] = (several(shard(GOOD), make), [*TRAIN, *SHARDS], expected)

IMAGENET = ["--set", "data.source=imagenet", "--set", "data.path=images", "--set", "model.num_classes=2"]


def imagenet(make):
    def prepare(folder):
        write_image_folder(folder / "images", ("train",), ("n00000001", "n00000002"))
        file("images/val/a.png", encoded())(folder)
        make(folder)

    return prepare


for name, make, expected in [
    (
        "solution with an open quote",
        file("images/LOC_val_solution.csv", b'ImageId,PredictionString\n"' + b"a" * 200_000),
        "not Kaggle's list",
    ),
    ("solution of spaces", file("images/LOC_val_solution.csv", b"ImageId,PredictionString\na, \n"), "does not list"),
    ("solution not UTF-8", file("images/LOC_val_solution.csv", b"\xff"), "not a text file"),
    ("solution of 6 GB", sparse("images/LOC_val_solution.csv"), "are read"),
    ("labels of 5,000 digits", file("images/meta/val.txt", b"a.png " + b"9" * 5_000), "expected `PATH LABEL`"),
    ("labels beyond the classes", file("images/meta/val.txt", b"a.png 77\n"), "not a label"),
    ("lines without labels", file("images/meta/val.txt", b"a.png\n"), "expected `PATH LABEL`"),
    (
        "damaged devkit",
        several(
            file("images/ILSVRC2012_validation_ground_truth.txt", b"1\n"),
            file("images/meta.mat", b"MATLAB 5.0 nonsense"),
        ),
        "meta.mat",
    ),
]:
    CASES["ImageNet: " + name] = (imagenet(make), [*TRAIN, *IMAGENET], expected)

FASHION = ["--set", "data.source=fashion_mnist", "--set", "data.path=fashion"]
IDX = "fashion/train-images-idx3-ubyte"
for name, make in {
    "text": file(IDX, b"no idx file"),
    "empty": file(IDX, b""),
    "damaged gzip": file(IDX + ".gz", b"\x1f\x8b nonsense"),
    "bomb": file(IDX + ".gz", gzip.compress(bytes(300 << 20), 1)),
    "lies about its size": file(IDX, struct.pack(">4B3I", 0, 0, 8, 3, 4_000_000_000, 4_000_000_000, 4_000_000_000)),
    "255 dimensions": file(IDX, b"\0\0\x08\xff" + b"\1" * 1020),
    "6 GB": sparse(IDX),
}.items():
    CASES["idx file: " + name] = (make, [*TRAIN, *FASHION], "is not an idx file")
CASES["CIFAR that is text"] = (
    file("cifar/cifar-10-batches-py/data_batch_1", b"no pickle"),
    [*TRAIN, "--set", "data.source=cifar10", "--set", "data.path=cifar"],
    "damaged or incomplete",
)
for name, path in {
    "a batch": "cifar/cifar-10-batches-py/data_batch_3",
    "the last batch, by its own folder": "cifar/test_batch",
    "the names of the classes": "cifar/cifar-10-batches-py/batches.meta",
}.items():
    CASES[f"CIFAR of which {name} has 6 GB"] = (
        sparse(path),
        [*TRAIN, "--set", "data.source=cifar10", "--set", "data.path=cifar"],
        f"{path} is not a file of CIFAR: it has 6,442,450,944 bytes",
    )
CASES["CIFAR to download, whose archive has 6 GB"] = (
    sparse("cifar/cifar-100-python.tar.gz"),
    with_set("model.num_classes=100", "data.source=cifar100", "data.path=cifar", "data.download=true"),
    "is not a file of CIFAR",
)
CASES["data set of Hugging Face that is text"] = (
    file("saved/dataset_dict.json", b"no JSON"),
    [*TRAIN, "--set", "data.source=huggingface", "--set", "data.path=saved"],
    "is not a folder of DatasetDict.save_to_disk",
)

# ------------------------------------------------------------------------------------------- images


def png_of(width, height):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000)))


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
IMAGES = {
    "missing": (lambda p: None, "no image at"),
    "empty": (file("x.jpg", b""), "it is empty"),
    "text": (file("x.jpg", b"no image"), "not an image of a known format"),
    "EPS": (file("x.jpg", EPS), "not an image of a known format"),
    "PDF": (file("x.jpg", b"%PDF-1.4\n"), "not an image of a known format"),
    "TGA": (lambda p: Image.new("RGB", (9, 9)).save(str(p / "x.jpg"), "TGA"), "not an image of a known format"),
    "ICO": (lambda p: Image.new("RGB", (16, 16)).save(str(p / "x.jpg"), "ICO"), "not an image of a known format"),
    "JPEG 2000 or PCX": (lambda p: Image.new("RGB", (9, 9)).save(str(p / "x.jpg"), "PCX"), "of a known format"),
    "6 GB": (sparse("x.jpg"), "at most 536,870,912 are read"),
    "pipe": (fifo("x.jpg"), "not a regular file"),
    "socket": (a_socket("x.jpg"), "not a regular file"),
    "endless device": (link("x.jpg", "/dev/zero"), "not a regular file"),
    "folder": (lambda p: (p / "x.jpg").mkdir(), "no images below x.jpg"),
    "link to itself": (link("x.jpg", "x.jpg"), "symbolic links"),
    "cut off": (file("x.jpg", encoded("JPEG", 64)[:-40]), "cannot read the image"),
    "of 10 gigapixels": (file("x.jpg", png_of(100_000, 100_000)), "more than 1000 megapixels"),
    "of 900 megapixels in a kilobyte": (file("x.jpg", png_of(30_000, 30_000)), "which no picture has"),
    "of no pixels": (file("x.jpg", png_of(0, 5)), "cannot read the image"),
    "of 2 billion columns": (file("x.jpg", png_of(0x7FFFFFFF, 1)), "cannot read the image"),
}
for name, (make, expected) in IMAGES.items():
    CASES["image: " + name] = (make, ["predict", "RUN", "x.jpg", "--device", "cpu"], expected)

# -------------------------------------------------------------------------------------- checkpoints


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
    CASES["weights: " + name] = (file(path, content), command, expected)
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

DEEP = "[" * 50_000
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
        several(file("w/config.json", content), file("w/model.safetensors", header_of(2))),
        ["convert", "w", "out", "--to", "native"],
        "config.json",
    )
for name, make in {
    "pipe": fifo("w/config.json"),
    "endless": link("w/config.json", "/dev/zero"),
    "6 GB": sparse("w/config.json"),
}.items():
    CASES["config.json beside weights: " + name] = (
        several(make, file("w/model.safetensors", header_of(2))),
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
        several(file("w/config.json", content), file("w/state.json", "{}"), file("w/model.safetensors", header_of(2))),
        ["convert", "w", "out", "--to", "timm"],
        "config.json",
    )

# --------------------------------------------------------------------------------------- run folders

ENVIRONMENTS = {
    "deep": DEEP,
    "empty": "",
    "a list": "[]",
    "with only one key": '{"simulated": false}',
    "with versions of text": '{"simulated": false, "device": "cpu", "versions": "1"}',
    "with a command of numbers": (
        '{"simulated": 1, "device": 3, "hardware": 3, "versions": {}, "compute": 1, "vit_ipu": 1, "python": 1, '
        '"commit": 1, "command": [1], "time": 1}'
    ),
    "of 5,000 digits": '{"simulated": ' + "9" * 5_000 + "}",
    "not UTF-8": b"\xff\xfe",
}
CONFIG = file("run/config.yaml", yaml.safe_dump(tiny_values()))
for name, content in ENVIRONMENTS.items():
    CASES["environment.json " + name] = (
        several(CONFIG, file("run/environment.json", content)),
        ["report", "run"],
        "environment.json is damaged",
    )
for name, make in {
    "a pipe": fifo("run/environment.json"),
    "endless": link("run/environment.json", "/dev/zero"),
    "of 6 GB": sparse("run/environment.json"),
}.items():
    CASES["environment.json that is " + name] = (make, ["report", "run"], "environment.json is damaged")

# ----------------------------------------------------------------------------- command line and names

COMMANDS = {
    "nothing": (["report"], "RUN"),
    "unknown command": (["\x1b[2J"], "\\x1b[2J"),
    "command of 100,000 letters": (["t" * 100_000], "..."),
    "device of 100,000 letters": ([*TRAIN[:2], "--device", "d" * 100_000], "..."),
    "device with commands of a terminal": ([*TRAIN[:2], "--device", "\x1b]0;title\x07"], "\\x1b]0;title\\x07"),
    "run with a line break": (["report", "a\nb"], "not a run folder"),
    "run with commands of a terminal": (["report", "\x1b[2J"], "\\x1b[2J"),
    "run that is not UTF-8": (["report", os.fsdecode(b"\xff\xfe")], "\\udcff\\udcfe"),
    "config that is not UTF-8": (["plan", os.fsdecode(b"\xff.yaml")], "\\udcff.yaml"),
    "weights that are not UTF-8": (["convert", os.fsdecode(b"\xff.pth"), "out", "--to", "native"], "\\udcff.pth"),
    "image that is not UTF-8": (["predict", "RUN", os.fsdecode(b"\xff.png"), "--device", "cpu"], "\\udcff.png"),
    "steps of 5,000 digits": (["benchmark", "tiny.yaml", "--steps", "9" * 4_000], "--steps"),
    "steps that are a word": (["benchmark", "tiny.yaml", "--steps", "many"], "--steps"),
    "quality above 100": (["pack", "images", "out", "--quality", "101"], "--quality"),
    "shard size of nothing": (["pack", "images", "out", "--shard-size", "0"], "--shard-size"),
    "shard size beyond floats": (["pack", "images", "out", "--shard-size", "9" * 400], "--shard-size"),
    "shard size of 100,000 digits": (["pack", "images", "out", "--shard-size", "9" * 100_000], "--shard-size"),
    "shard size that is a word": (["pack", "images", "out", "--shard-size", "big"], "--shard-size"),
    "workers below one": (["pack", "images", "out", "--workers", "0"], "--workers"),
    "unknown format": (["convert", "RUN", "out", "--to", "\x1b[2J"], "\\x1b[2J"),
    "heads of no model": (["predict", "RUN", "x.png", "--num-heads", "0"], "--num-heads"),
    "sha256 of letters": (["convert", "w.pth", "out", "--to", "native", "--sha256", "x" * 100_000], "hexadecimal"),
    "scheme that is unknown": (["convert", "ftp://x/y.pth", "out", "--to", "native"], "use https://"),
    "address of 100,000 letters": (["convert", "https://" + "a" * 100_000, "out", "--to", "native"], "sha256"),
    "hub without a name": (["convert", "hf-hub:../../etc", "out", "--to", "native"], "OWNER/NAME"),
    "home of nobody": (["convert", "~nobody-here/w.pth", "out", "--to", "native"], "cannot expand ~"),
    "name of 100,000 letters": (["plan", "n" * 100_000], "too long"),
    "models of no pixels": (["models", "--image-size", "0"], "--image-size"),
    "target that is there": (["convert", "RUN", "tiny.yaml", "--to", "native"], "tiny.yaml"),
}
for name, (command, expected) in COMMANDS.items():
    CASES["command: " + name] = (None, command, expected)


# -------------------------------------------------------------------------------------------- tests


@pytest.fixture(scope="module", autouse=True)
def _imported():
    """Imports what the commands import, so that the time and the memory of imports are not those of the first case."""
    for name in (
        "train",
        "predict",
        "report.page",
        "report.curves",
        "weights.export",
        "data.packing.pack",
        "benchmark",
    ):
        importlib.import_module(f"vit_ipu.{name}")
    pytest.importorskip("datasets")


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """Trains a tiny run once, in another process; predictions of bad images start from it."""
    folder = tmp_path_factory.mktemp("finished")
    write_config(folder)
    command = [sys.executable, "-m", "vit_ipu", *TRAIN, "--output", "run"]
    subprocess.run(command, cwd=str(folder), check=True, stdout=subprocess.DEVNULL)
    return folder / "run"


def entries_below(folder):
    return sorted((str(path), os.lstat(str(path)).st_size) for path in folder.rglob("*"))


def assert_refused(code, out, err, expected):
    assert code == 2, (out, err[:500])
    assert err.startswith("vit-ipu: "), err[:500]
    assert err.count("\n") == 1, err[:500]
    assert err[:-1].isprintable()
    assert len(err) < 2100
    assert "Traceback" not in out + err
    assert expected in err


def hangs(signum, frame):
    raise AssertionError(f"it hangs for {HANGS_AFTER_SECONDS} s")


@pytest.mark.parametrize("name", list(CASES))
def test_bad_input_is_refused_in_one_line(monkeypatch, capsys, tmp_path, request, name):
    prepare, command, expected = CASES[name]
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path)
    if "RUN" in command:
        command = [str(request.getfixturevalue("finished_run")) if part == "RUN" else part for part in command]
    if prepare is not None:
        prepare(tmp_path)
    before, memory = entries_below(tmp_path), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    previous = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(HANGS_AFTER_SECONDS)
    start = time.process_time()
    try:
        code, out, err = vit_ipu(monkeypatch, capsys, *command)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    seconds = time.process_time() - start
    assert_refused(code, out, err, expected)
    assert entries_below(tmp_path) == before
    assert seconds < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < MEGABYTES << 10


def test_there_are_enough_cases():
    assert len(CASES) >= 150
    assert len(set(PROCESSES) & set(CASES)) == 15


PROCESSES = [
    "config: aliases that mean billions in a known key",
    "config: pipe",
    "config: endless device",
    "config: 6 GB",
    "set: integer of 5,000 digits",
    "shard: extended size below zero",
    "shard: pipe",
    "braces: 300,000,000 shards",
    "index that is endless",
    "table a bomb",
    "image: 6 GB",
    "weights: endless .npz",
    "config.json beside weights: deep",
    "environment.json with only one key",
    "command: config that is not UTF-8",
]


@pytest.mark.parametrize("name", PROCESSES)
def test_bad_input_is_refused_by_a_real_process(tmp_path, request, name):
    prepare, command, expected = CASES[name]
    write_config(tmp_path)
    if "RUN" in command:
        command = [str(request.getfixturevalue("finished_run")) if part == "RUN" else part for part in command]
    if prepare is not None:
        prepare(tmp_path)
    before = entries_below(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "vit_ipu", *command],
        cwd=str(tmp_path),
        capture_output=True,
        timeout=HANGS_AFTER_SECONDS,
        check=False,
    )
    assert_refused(done.returncode, done.stdout.decode(), done.stderr.decode(), expected)
    assert entries_below(tmp_path) == before
