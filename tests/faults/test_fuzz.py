"""Arbitrary and mutated bytes lead every parser to a result or to a UserError, never to another exception."""

from __future__ import annotations

import contextlib
import io
import json
import os
import struct

import numpy as np
import pytest
import torch
from helpers import tiny_config, tiny_values
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from vit_ipu.config_file import dump_config, load_config, parse_config
from vit_ipu.data.images.decode import EncodedImage
from vit_ipu.data.packing.journal import read_journal
from vit_ipu.data.sources.listing import ListingCache
from vit_ipu.data.sources.shard_index import INDEX, TABLE, classes_beside, read_index, read_table
from vit_ipu.data.sources.shards import expand_braces
from vit_ipu.data.sources.small_sets import open_fashion_mnist
from vit_ipu.data.sources.tar_headers import scan_shard
from vit_ipu.errors import UserError
from vit_ipu.report.curves import curves_svg
from vit_ipu.report.figures import figures
from vit_ipu.report.page import write_report
from vit_ipu.runs.folder import RunFolder
from vit_ipu.runs.metrics import read_metrics
from vit_ipu.small_files import parse_json
from vit_ipu.weights.choose import weight_map
from vit_ipu.weights.fetch import locate, split_part
from vit_ipu.weights.folder_configs import read_folder_config
from vit_ipu.weights.native import load_description
from vit_ipu.weights.tensor_files import read_tensors

FEW = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)


def encoded_image(image_format):
    written = io.BytesIO()
    Image.new("RGB", (16, 16), (9, 99, 9)).save(written, image_format)
    return written.getvalue()


def tar():
    import tarfile

    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w", format=tarfile.PAX_FORMAT) as opened:
        for name, content in (("ü" * 60 + ".png", encoded_image("PNG")), ("ü" * 60 + ".json", b'{"label": 3}')):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            opened.addfile(member, io.BytesIO(content))
    return written.getvalue()


def npz(**arrays):
    written = io.BytesIO()
    np.savez(written, **arrays)
    return written.getvalue()


def pickled():
    written = io.BytesIO()
    torch.save({"a": torch.zeros(3), "b": {"c": [1, "d"]}}, written)
    return written.getvalue()


INDEX_JSON = json.dumps(
    {
        "format": "webdataset: KEY.jpg",
        "classes": ["a"],
        "samples": 1,
        "settings": {"version": 1, "shards": 1},
        "shards": [{"name": "a.tar", "sha256": "0", "bytes": 10240, "samples": 1}],
    }
)
TABLE_NPZ = npz(
    **{name: np.full(1, value) for name, value in {"offset": 512, "size": 512, "shard": 0, "label": 0}.items()},
    sha256=np.array(["0"]),
)
ENVIRONMENT = json.dumps(
    {
        **dict.fromkeys(("vit_ipu", "commit", "python", "platform", "device", "hardware", "compute", "time"), "a"),
        "versions": {"torch": "2"},
        "simulated": True,
        "command": ["a"],
    }
)
HUGGING_FACE = json.dumps({"model_type": "vit", "hidden_size": 32, "num_attention_heads": 2, "hidden_act": "gelu"})
TIMM = json.dumps({"architecture": "vit_base_patch16_224", "pretrained_cfg": {"mean": [0.5, 0.5, 0.5]}})
DESCRIPTION = json.dumps(
    {"id2label": {str(n): str(n) for n in range(10)}, "num_train": 3, "config": tiny_values(), "labels_sha256": None}
)
METRICS = """{"update": 1, "host_step": 1, "samples": 3, "loss": 2.0}
{"update": 2, "top1": 1.0, "top5": 2.0, "evaluation_loss": 1.0}
"""
EVALUATION = """{"update": 2, "classes": ["cat", "dog"], "confusion": [[0, 0, 3], [1, 0, 2]], "mistakes": [{"name":
"image 3", "label": 1, "predicted": 0, "probability": 0.9, "loss": 2.5, "picture": "iVBORw0KGgo="}]}"""


def read_report(folder):
    run = RunFolder(folder)
    write_report(run)
    run.report.unlink()


def read_journal_in(folder):
    with (folder / "journal").open("a+", encoding="utf-8") as journal:
        read_journal(journal, folder)


def read_whole_image(folder):
    EncodedImage((folder / "image").read_bytes(), "image").middle(8, 8, "bilinear")


def read_figures(folder):
    figures(read_metrics(folder / "metrics.jsonl"), tiny_config())


def read_shards(folder):
    classes_beside([str(folder / "a.tar")])
    read_index(folder)
    read_table(folder, [str(folder / "a.tar")])


# Each parser: the name of its file, a valid content, other files beside it, and the function that reads the folder.
PARSERS = {
    "config": ("config.yaml", dump_config(tiny_config()).encode(), {}, lambda p: load_config(p / "config.yaml")),
    "index": (INDEX, INDEX_JSON.encode(), {TABLE: TABLE_NPZ, "a.tar": bytes(10240)}, read_shards),
    "table": (TABLE, TABLE_NPZ, {INDEX: INDEX_JSON.encode(), "a.tar": bytes(10240)}, read_shards),
    "class names": ("classes.txt", b"cat\ndog\n", {}, lambda p: classes_beside([str(p / "a.tar")])),
    "shard": ("a.tar", tar(), {}, lambda p: scan_shard(str(p / "a.tar"))),
    "journal": ("journal", b'{"version": 1, "shards": 3}\n{"name": "a", "samples": 3}\n', {}, read_journal_in),
    "idx": (
        "train-images-idx3-ubyte",
        struct.pack(">4B3I", 0, 0, 8, 3, 2, 2, 2) + bytes(8),
        {"train-labels-idx1-ubyte": struct.pack(">4BI", 0, 0, 8, 1, 2) + bytes(2)},
        lambda p: open_fashion_mnist(p, "train", download=False),
    ),
    "JPEG": ("image", encoded_image("JPEG"), {}, read_whole_image),
    "PNG": ("image", encoded_image("PNG"), {}, read_whole_image),
    "TIFF": ("image", encoded_image("TIFF"), {}, read_whole_image),
    "GIF": ("image", encoded_image("GIF"), {}, read_whole_image),
    "WebP": ("image", encoded_image("WEBP"), {}, read_whole_image),
    "npz": ("w.npz", npz(a=np.zeros(3, np.float32)), {}, lambda p: read_tensors(p / "w.npz")),
    "pickle": ("w.pth", pickled(), {}, lambda p: read_tensors(p / "w.pth", trust_pickle=True)),
    "safetensors": ("w.safetensors", save({"a": torch.zeros(3)}), {}, lambda p: read_tensors(p / "w.safetensors")),
    "weight map": (
        "w.safetensors.index.json",
        b'{"weight_map": {"a": "b.safetensors"}}',
        {},
        lambda p: weight_map(p / "w.safetensors.index.json"),
    ),
    "config.json of transformers": (
        "config.json",
        HUGGING_FACE.encode(),
        {},
        lambda p: read_folder_config(p / "model.safetensors"),
    ),
    "config.json of timm": ("config.json", TIMM.encode(), {}, lambda p: read_folder_config(p / "model.safetensors")),
    "preprocessor_config.json": (
        "preprocessor_config.json",
        b'{"image_mean": [0.5, 0.5, 0.5], "size": {"height": 224, "width": 224}, "resample": 2}',
        {"config.json": HUGGING_FACE.encode()},
        lambda p: read_folder_config(p / "model.safetensors"),
    ),
    "config.json of a checkpoint": ("config.json", DESCRIPTION.encode(), {}, load_description),
    "metrics": ("metrics.jsonl", METRICS.encode(), {}, read_figures),
    "environment": (
        "environment.json",
        ENVIRONMENT.encode(),
        {"config.yaml": dump_config(tiny_config()).encode()},
        read_report,
    ),
    "evaluation.json": (
        "evaluation.json",
        EVALUATION.encode(),
        {"config.yaml": dump_config(tiny_config()).encode(), "environment.json": ENVIRONMENT.encode()},
        read_report,
    ),
    "best.json": (
        "best.json",
        b'{"checkpoint": "checkpoints/update-00000002", "update": 2, "top1": 50.0}',
        {
            "config.yaml": dump_config(tiny_config()).encode(),
            "environment.json": ENVIRONMENT.encode(),
            "metrics.jsonl": METRICS.encode(),
        },
        read_report,
    ),
}


def mutate(content, edits):
    """Returns the content with bytes replaced, inserted or removed at relative places."""
    changed = bytearray(content)
    for place, kind, piece in edits:
        at = int(place * len(changed))
        changed[at : at + (0 if kind == "insert" else len(piece))] = b"" if kind == "remove" else piece
    return bytes(changed)


PIECES = st.one_of(
    st.binary(min_size=1, max_size=4),
    st.sampled_from(
        [
            b"[",
            b"{",
            b"}",
            b"null",
            b"NaN",
            b"-1",
            b"1e999",
            b'"a"',
            b"\0\0\0\0",
            b"\xff\xff\xff\xff",
            b"9" * 200,
            b"&a",
            b"*a",
        ]
    ),
)
EDITS = st.lists(
    st.tuples(st.floats(0, 1), st.sampled_from(["replace", "insert", "remove"]), PIECES), min_size=1, max_size=4
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def assert_read_or_refused(folder, name, content):
    path, _, beside, read = PARSERS[name]
    place = folder / name
    place.mkdir(exist_ok=True)
    for other, other_content in beside.items():
        (place / other).write_bytes(other_content)
    (place / path).write_bytes(content)
    with contextlib.suppress(UserError):
        read(place)


@pytest.mark.parametrize("name", list(PARSERS))
def test_valid_content_is_read(folder, name):
    path, content, beside, read = PARSERS[name]
    place = folder / f"valid {name}"
    place.mkdir()
    for other, other_content in {path: content, **beside}.items():
        (place / other).write_bytes(other_content)
    read(place)


@pytest.mark.parametrize("name", list(PARSERS))
def test_mutated_content_is_read_or_refused(folder, name):
    @FEW
    @given(EDITS)
    def check(edits):
        assert_read_or_refused(folder, name, mutate(PARSERS[name][1], edits))

    check()


@pytest.mark.parametrize("name", list(PARSERS))
def test_arbitrary_bytes_are_read_or_refused(folder, name):
    @settings(FEW, max_examples=15)
    @given(st.binary(max_size=200))
    def check(content):
        assert_read_or_refused(folder, name, content)

    check()


def replaced(value, place, new):
    """Returns a nested value with one of its values, or itself, replaced; `place` is from 0 to 1."""
    paths = [()]
    for path in paths:  # grows while it is read
        inner = value
        for key in path:
            inner = inner[key]
        keys = inner if isinstance(inner, dict) else range(len(inner)) if isinstance(inner, list) else ()
        paths.extend((*path, key) for key in keys)
    path = paths[min(int(place * len(paths)), len(paths) - 1)]
    copy = json.loads(json.dumps(value))
    if not path:
        return new
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = new
    return copy


JSON_FILES = [name for name, (path, *_) in PARSERS.items() if path.endswith(".json")]


@pytest.mark.parametrize("name", JSON_FILES)
def test_json_with_a_value_replaced_is_read_or_refused(folder, name):
    valid = json.loads(PARSERS[name][1])

    @FEW
    @given(st.floats(0, 1), VALUES)
    def check(place, value):
        assert_read_or_refused(folder, name, json.dumps(replaced(valid, place, value)).encode())

    check()


@settings(FEW, max_examples=150)
@given(st.floats(0, 1), VALUES)
def test_config_with_a_value_replaced_is_read_or_refused(place, value):
    with contextlib.suppress(UserError):
        parse_config(replaced(tiny_config().model_dump(mode="json"), place, value))


@FEW
@given(st.text(max_size=30), st.text(max_size=30))
def test_overrides_are_read_or_refused(key, value):
    for override in (f"{key}={value}", f"optim.learning_rate={value}", f"pipeline.popart_options={value}", key):
        with contextlib.suppress(UserError):
            parse_config(tiny_values(), [override])


@FEW
@given(st.text("{},.019a", max_size=30))
def test_braces_are_expanded_or_refused(pattern):
    with contextlib.suppress(UserError):
        assert len(expand_braces(pattern)) <= 100_000


@FEW
@given(st.text(max_size=30))
def test_sources_of_weights_are_found_or_refused(source):
    with contextlib.suppress(UserError):
        locate(split_part("./" + source)[0])


@settings(FEW, max_examples=200)
@given(st.text('[]{}",:0123456789eE.-+NaInfity\\u \n', max_size=60))
def test_json_is_parsed_as_by_the_standard_library_or_refused(text):
    try:
        expected = json.loads(text)
    except (ValueError, RecursionError):
        with pytest.raises(ValueError):
            parse_json(text)
        return
    assert repr(parse_json(text, allow_nan=True)) == repr(expected)


def test_a_damaged_listing_in_the_cache_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "images").mkdir()
    os.utime(str(tmp_path / "images"), (1, 1))  # old enough to be kept
    made = []

    def make():
        made.append(1)
        return {"a": np.arange(5)}

    def get():
        return ListingCache().get("x", [str(tmp_path / "images")], make)["a"].tolist()

    get()
    (kept,) = (tmp_path / "cache").rglob("*.npz")
    content = kept.read_bytes()

    @FEW
    @given(EDITS)
    def check(edits):
        kept.write_bytes(mutate(content, edits))
        assert get() == [0, 1, 2, 3, 4]

    check()
    assert len(made) > 1


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e300", "9" * 90, "true"])
def test_curves_of_odd_numbers_are_drawn(tmp_path, value):
    """Python reads NaN and integers of any size, and a loss can be any of them."""
    (tmp_path / "metrics.jsonl").write_text(METRICS.replace("2.0", value))
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 2
    assert curves_svg(read_metrics(tmp_path / "metrics.jsonl")).startswith("<svg")
