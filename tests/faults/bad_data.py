"""Bad shards, indices, data sets and images."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
import zlib

import numpy as np
from bad_files import TRAIN, a_file, a_socket, fifo, link, npz, several, sparse, with_set
from helpers import write_image_folder
from pictures import png_of_chunks
from PIL import Image

CASES = {}
"""Cases of test_bad_inputs.py by their names."""


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


def shard(content):
    return several(a_file("shards/train/a.tar", content), a_file("shards/val/a.tar", GOOD))


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
    CASES["shard: " + name] = (several(make, a_file("shards/val/a.tar", GOOD)), [*TRAIN, *SHARDS], "not a regular file")
CASES["shard: 6 GB of zeros"] = (
    several(sparse("shards/train/a.tar"), a_file("shards/val/a.tar", GOOD)),
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


def indexed(index=None, table=None):
    content = json.dumps(INDEX) if index is None else index
    return several(
        shard(GOOD),
        a_file("shards/train/index.json", content),
        a_file("shards/train/index.npz", npz(**TABLE) if table is None else table),
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
    several(shard(GOOD), a_file("shards/train/index.json", json.dumps(INDEX)), fifo("shards/train/index.npz")),
    [*TRAIN, *SHARDS],
    "index.npz is missing or damaged",
)
for name, make, expected in [
    ("not UTF-8", a_file("shards/train/classes.txt", b"\xff\xfe"), "not a text file"),
    ("of 6 GB", sparse("shards/train/classes.txt"), "at most 8,388,608 are read"),
]:
    CASES["class names " + name] = (several(shard(GOOD), make), [*TRAIN, *SHARDS], expected)

IMAGENET = ["--set", "data.source=imagenet", "--set", "data.path=images", "--set", "model.num_classes=2"]


def imagenet(make):
    def prepare(folder):
        write_image_folder(folder / "images", ("train",), ("n00000001", "n00000002"))
        a_file("images/val/a.png", encoded())(folder)
        make(folder)

    return prepare


for name, make, expected in [
    (
        "solution with an open quote",
        a_file("images/LOC_val_solution.csv", b'ImageId,PredictionString\n"' + b"a" * 200_000),
        "not Kaggle's list",
    ),
    ("solution of spaces", a_file("images/LOC_val_solution.csv", b"ImageId,PredictionString\na, \n"), "does not list"),
    ("solution not UTF-8", a_file("images/LOC_val_solution.csv", b"\xff"), "not a text file"),
    ("solution of 6 GB", sparse("images/LOC_val_solution.csv"), "are read"),
    ("labels of 5,000 digits", a_file("images/meta/val.txt", b"a.png " + b"9" * 5_000), "expected `PATH LABEL`"),
    ("labels beyond the classes", a_file("images/meta/val.txt", b"a.png 77\n"), "not a label"),
    ("lines without labels", a_file("images/meta/val.txt", b"a.png\n"), "expected `PATH LABEL`"),
    (
        "damaged devkit",
        several(
            a_file("images/ILSVRC2012_validation_ground_truth.txt", b"1\n"),
            a_file("images/meta.mat", b"MATLAB 5.0 nonsense"),
        ),
        "meta.mat",
    ),
]:
    CASES["ImageNet: " + name] = (imagenet(make), [*TRAIN, *IMAGENET], expected)

FASHION = ["--set", "data.source=fashion_mnist", "--set", "data.path=fashion"]
IDX = "fashion/train-images-idx3-ubyte"
for name, make in {
    "text": a_file(IDX, b"no idx file"),
    "empty": a_file(IDX, b""),
    "damaged gzip": a_file(IDX + ".gz", b"\x1f\x8b nonsense"),
    "bomb": a_file(IDX + ".gz", gzip.compress(bytes(300 << 20), 1)),
    "lies about its size": a_file(IDX, struct.pack(">4B3I", 0, 0, 8, 3, 4_000_000_000, 4_000_000_000, 4_000_000_000)),
    "255 dimensions": a_file(IDX, b"\0\0\x08\xff" + b"\1" * 1020),
    "6 GB": sparse(IDX),
}.items():
    CASES["idx file: " + name] = (make, [*TRAIN, *FASHION], "is not an idx file")
CASES["CIFAR that is text"] = (
    a_file("cifar/cifar-10-batches-py/data_batch_1", b"no pickle"),
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
    a_file("saved/dataset_dict.json", b"no JSON"),
    [*TRAIN, "--set", "data.source=huggingface", "--set", "data.path=saved"],
    "is not a folder of DatasetDict.save_to_disk",
)


# ------------------------------------------------------------------------------------------- images


def png_of(width, height):
    return png_of_chunks(width, height, 8, 2, (b"IDAT", zlib.compress(bytes(1000))))


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
IMAGES = {
    "missing": (lambda p: None, "no image at"),
    "empty": (a_file("x.jpg", b""), "it is empty"),
    "text": (a_file("x.jpg", b"no image"), "not an image of a known format"),
    "EPS": (a_file("x.jpg", EPS), "not an image of a known format"),
    "PDF": (a_file("x.jpg", b"%PDF-1.4\n"), "not an image of a known format"),
    "TGA": (lambda p: Image.new("RGB", (9, 9)).save(str(p / "x.jpg"), "TGA"), "not an image of a known format"),
    "ICO": (lambda p: Image.new("RGB", (16, 16)).save(str(p / "x.jpg"), "ICO"), "not an image of a known format"),
    "JPEG 2000 or PCX": (lambda p: Image.new("RGB", (9, 9)).save(str(p / "x.jpg"), "PCX"), "of a known format"),
    "6 GB": (sparse("x.jpg"), "at most 536,870,912 are read"),
    "pipe": (fifo("x.jpg"), "not a regular file"),
    "socket": (a_socket("x.jpg"), "not a regular file"),
    "endless device": (link("x.jpg", "/dev/zero"), "not a regular file"),
    "folder": (lambda p: (p / "x.jpg").mkdir(), "no images below x.jpg"),
    "link to itself": (link("x.jpg", "x.jpg"), "symbolic links"),
    "cut off": (a_file("x.jpg", encoded("JPEG", 64)[:-40]), "cannot read the image"),
    "of 10 gigapixels": (a_file("x.jpg", png_of(100_000, 100_000)), "more than 1000 megapixels"),
    "of 900 megapixels in a kilobyte": (a_file("x.jpg", png_of(30_000, 30_000)), "which no picture has"),
    "of no pixels": (a_file("x.jpg", png_of(0, 5)), "cannot read the image"),
    "of 2 billion columns": (a_file("x.jpg", png_of(0x7FFFFFFF, 1)), "cannot read the image"),
}
for name, (make, expected) in IMAGES.items():
    CASES["image: " + name] = (make, ["predict", "RUN", "x.jpg", "--device", "cpu"], expected)
