"""Hostile names, links and images: nothing is executed, overwritten outside of a run, or passed to a terminal."""

from __future__ import annotations

import ast
import errno
import io
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny_config, tiny_values, vit_ipu, write_config, write_image_folder
from PIL import Image

from vit_ipu.cli.console import error_line, exit_code, make_console
from vit_ipu.config_file import parse_config
from vit_ipu.data.images.decode import EncodedImage
from vit_ipu.data.images.pillow_formats import FORMATS, open_image, require_pixels
from vit_ipu.data.sources.base import IMAGE_SUFFIXES
from vit_ipu.data.sources.small_sets import ArraySource
from vit_ipu.errors import CheckpointError, DataError
from vit_ipu.report.page import write_report
from vit_ipu.runs.folder import RunFolder
from vit_ipu.runs.metrics import Metrics
from vit_ipu.text import LONGEST_MESSAGE, message
from vit_ipu.train import save_examples

ROOT = Path(__file__).parents[2]
TRAIN = ["train", "tiny.yaml", "--device", "cpu", "--output", "run"]

# ------------------------------------------------------------------------------------------- images


def test_images_are_opened_with_a_list_of_formats_everywhere():
    opened = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "vit_ipu").rglob("*.py")
        if any(
            isinstance(node, ast.Attribute) and node.attr == "open" and getattr(node.value, "id", "") == "Image"
            for node in ast.walk(ast.parse(path.read_text()))
        )
    ]
    assert opened == ["vit_ipu/data/images/pillow_formats.py"]
    assert "formats=" in (ROOT / opened[0]).read_text()


def test_the_formats_are_those_of_the_suffixes():
    Image.init()
    of_suffixes = {Image.EXTENSION[suffix] for suffix in IMAGE_SUFFIXES if suffix in Image.EXTENSION}
    assert of_suffixes <= set(FORMATS)
    assert set(FORMATS) - {"AVIF"} <= of_suffixes


def test_an_eps_called_jpg_starts_no_ghostscript(tmp_path):
    """Pillow starts `gs` for EPS; the one on this PATH would leave a file."""
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    written = io.BytesIO()
    Image.new("RGB", (9, 9)).save(written, "EPS")
    (tmp_path / "x.jpg").write_bytes(written.getvalue())
    code = "import sys; from vit_ipu.data.images.image_file import open_picture; open_picture(sys.argv[1]).rgb()"
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = [sys.executable, "-c", code, str(tmp_path / "x.jpg")]
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert b"it is not an image of a known format" in done.stderr
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("image_format", ["TGA", "PCX", "ICO", "PDF", "SGI", "MSP", "IM"])
def test_other_formats_of_pillow_are_refused(image_format):
    written = io.BytesIO()
    Image.new("1" if image_format == "MSP" else "RGB", (16, 16)).save(written, image_format)
    with pytest.raises(DataError, match="it is not an image of a known format"):
        EncodedImage(written.getvalue(), "x.jpg").rgb()


def test_an_image_of_one_colour_is_a_bomb_only_if_it_is_large():
    require_pixels(200 * 10**6, 1000)
    require_pixels(900 * 10**6, 10**7)
    with pytest.raises(ValueError, match="it has 900 megapixels in 1,000 bytes, which no picture has: make it smaller"):
        require_pixels(900 * 10**6, 1000)
    with pytest.raises(ValueError, match="more than 1000 megapixels"):
        require_pixels(10**9 + 1, 10**9)


def test_every_documented_format_is_read():
    for image_format in FORMATS:
        if image_format in Image.SAVE:
            written = io.BytesIO()
            Image.new("RGB", (9, 9), (255, 255, 255)).save(written, image_format)
            with open_image(written.getvalue()) as image:
                assert image.size == (9, 9)


# --------------------------------------------------------------------------------- names on terminals

CLEAR = "\x1b[2J\x1b]0;title\x07\r\u202e\udcff"


def test_escapes_in_messages_are_shown_and_not_executed(capsys):
    assert message(CLEAR) == r"\x1b[2J\x1b]0;title\x07\r\u202e\udcff"
    assert error_line(CheckpointError(f"no tensor {CLEAR}")) == r"no tensor \x1b[2J\x1b]0;title\x07 \u202e\udcff"
    for as_json in (False, True):
        make_console(as_json).print(f"note: {CLEAR}")
    captured = capsys.readouterr()
    assert captured.out == captured.err == "note: " + message(CLEAR) + "\n"


def test_a_long_message_keeps_its_start_and_its_end():
    text = message("start " + "x" * 100_000 + ": do this")
    assert text.startswith("start xxx")
    assert text.endswith("xxx: do this")
    assert len(text) <= LONGEST_MESSAGE + 5


@pytest.mark.parametrize(
    ("error", "detail"),
    [
        (MemoryError(), ""),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried "
                "to allocate 1048576 bytes. Error code 12 (Cannot allocate memory)"
            ),
            " (1048576 bytes were asked for)",
        ),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has"), " (2.50 GiB were asked for)"),
    ],
)
def test_no_memory_is_told_in_words(error, detail):
    assert error_line(error) == (
        f"not enough memory{detail}: lower pipeline.micro_batch_size or data.num_workers, or stop other programs "
        "(--debug shows where)"
    )


def test_a_folder_that_cannot_be_written_is_a_mistake_of_the_user():
    assert {exit_code(OSError(number, "why")) for number in (errno.EROFS, errno.EACCES)} == {2}
    assert {exit_code(OSError(number, "why")) for number in (errno.ENOSPC, errno.EIO)} == {1}


def test_memory_that_torch_cannot_allocate_is_told_in_words():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert error_line(caught.value).startswith("not enough memory (1152921504606846976 bytes were asked for): ")


# -------------------------------------------------------------------------------------------- links


@pytest.fixture
def run_folder(monkeypatch, capsys, tmp_path):
    """Trains a tiny run in tmp_path/run."""
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path, run={"updates": 1}, data={"num_train": 32, "num_eval": 10})
    assert vit_ipu(monkeypatch, capsys, *TRAIN)[0] == 0
    return tmp_path / "run"


def test_a_report_replaces_a_link_and_leaves_its_target(run_folder, tmp_path):
    (tmp_path / "precious").write_text("mine")
    (run_folder / "report.html").unlink()
    (run_folder / "report.html").symlink_to(tmp_path / "precious")
    (run_folder / ".writing-report.html").symlink_to(tmp_path / "precious")
    write_report(RunFolder(run_folder))
    assert (tmp_path / "precious").read_text() == "mine"
    assert not (run_folder / "report.html").is_symlink()
    assert (run_folder / "report.html").read_text().startswith("<!doctype html>")


def test_a_resumed_run_writes_through_no_link(run_folder, monkeypatch, capsys, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "metrics").write_bytes((run_folder / "metrics.jsonl").read_bytes())
    before = (outside / "metrics").read_bytes()
    for name in ("metrics.jsonl", "report.html"):
        (run_folder / name).unlink()
    (run_folder / "metrics.jsonl").symlink_to(outside / "metrics")
    (run_folder / "report.html").symlink_to(outside / "report")
    for path in (run_folder / "examples").iterdir():
        path.unlink()
    (run_folder / "examples").rmdir()
    (run_folder / "examples").symlink_to(outside)
    assert vit_ipu(monkeypatch, capsys, *TRAIN, "--resume")[0] == 0
    assert sorted(path.name for path in outside.iterdir()) == ["metrics"]
    assert (outside / "metrics").read_bytes() == before
    assert len(list((run_folder / "examples").iterdir())) == 10


@pytest.mark.parametrize("resume", [True, False])
def test_checkpoints_that_are_a_link_are_refused_and_what_it_names_is_unchanged(
    run_folder, monkeypatch, capsys, tmp_path, resume
):
    outside = tmp_path / "outside"
    if resume:
        (run_folder / "checkpoints").rename(outside)
    else:
        shutil.rmtree(str(run_folder))
        run_folder.mkdir()
        outside.mkdir()
    (run_folder / "checkpoints").symlink_to(outside)
    (outside / ".writing-mine").write_text("mine")
    before = sorted(outside.rglob("*"))
    code, _, err = vit_ipu(monkeypatch, capsys, *TRAIN, *(["--resume"] if resume else []))
    assert code == 2
    assert "run/checkpoints is a link, and a run writes only into its own folder: replace it" in err
    assert sorted(outside.rglob("*")) == before


def test_a_tracker_writes_through_no_link(run_folder, tmp_path):
    (tmp_path / "outside").mkdir()
    (run_folder / "tensorboard").symlink_to(tmp_path / "outside")
    config = tiny_config(run={"tracking": "tensorboard"})
    metrics = Metrics(RunFolder(run_folder), config, resumed_at=1, notify=print)
    metrics.write({"update": 2, "samples": 64, "loss": 1.0})
    metrics.close()
    assert list((tmp_path / "outside").iterdir()) == []
    assert len(list((run_folder / "tensorboard").iterdir())) == 1


# ------------------------------------------------------------------------------ class and run names


@pytest.mark.parametrize("name", ["a" * 255, "é" * 127, "𐍈" * 63, "../../up", CLEAR, "." * 9, ""])
def test_examples_of_any_class_name_can_be_written(tmp_path, name):
    source = ArraySource(np.zeros((2, 9, 9, 3), np.uint8), np.zeros(2, np.int64), [name])
    save_examples(source, tmp_path / "examples")
    found = sorted(path.name for path in (tmp_path / "examples").iterdir())
    assert [path[:3] for path in found] == ["00_", "01_"]
    assert [path.name for path in tmp_path.iterdir()] == ["examples"]


def test_an_example_replaces_a_link(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "00_cat.png").symlink_to(tmp_path / "precious")
    source = ArraySource(np.zeros((1, 9, 9, 3), np.uint8), np.zeros(1, np.int64), ["cat"])
    save_examples(source, tmp_path / "examples")
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_run_name_that_is_not_utf_8_is_escaped_in_the_report(run_folder, monkeypatch, capsys, tmp_path):
    name = os.fsdecode(b"\xff\x1b[2J")
    run_folder.rename(tmp_path / name)
    code, out, _ = vit_ipu(monkeypatch, capsys, "report", name)
    assert (code, out) == (0, "\\udcff\\x1b[2J/report.html\n")
    assert r"<title>\udcff\x1b[2J on cpu</title>" in (tmp_path / name / "report.html").read_text("utf-8")


# ------------------------------------------------------------------------------------ exchanged files


def test_an_image_exchanged_under_its_name_is_not_noticed_by_a_resume_and_the_docs_say_so(
    monkeypatch, capsys, tmp_path
):
    monkeypatch.chdir(tmp_path)
    write_image_folder(tmp_path / "images", count=4)
    data = {"source": "imagefolder", "path": "images", "num_train": None, "num_eval": None}
    sizes = {"global_batch_size": 4, "micro_batch_size": 4, "layers_per_ipu": None}
    write_config(tmp_path, data=data, pipeline=sizes, model={"num_classes": 2}, run={"updates": 1})
    assert vit_ipu(monkeypatch, capsys, *TRAIN)[0] == 0
    Image.new("RGB", (50, 50), (1, 2, 3)).save(str(tmp_path / "images" / "train" / "cat" / "0.png"))
    assert vit_ipu(monkeypatch, capsys, *TRAIN, "--resume")[0] == 0
    text = " ".join((ROOT / "docs" / "data.md").read_text().split())
    assert "the bytes of the images are not compared" in text


# -------------------------------------------------------------------------------------- environment


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("XDG_CACHE_HOME", "relative"),
        ("XDG_CACHE_HOME", ""),
        ("XDG_CACHE_HOME", "/dev/null"),
        ("XDG_CACHE_HOME", "/proc/nowhere"),
        ("XDG_CACHE_HOME", os.fsdecode(b"/tmp/\xff")),
        ("XDG_CACHE_HOME", "/" + "x" * 5_000),
        ("TMPDIR", "/nowhere"),
        ("TMPDIR", "/dev/null"),
        ("HOME", ""),
        ("HOME", None),
        ("HOME", "/dev/null"),
        ("COLUMNS", "many"),
        ("COLUMNS", "-5"),
        ("TERM", "\x1b"),
        ("NO_COLOR", "1"),
        ("WORLD_SIZE", "many"),
        ("WORLD_SIZE", "9" * 5_000),
        ("WORLD_SIZE", "²"),
    ],
)
def test_odd_environments_are_survived(monkeypatch, capsys, tmp_path, variable, value):
    """Lists images, which uses the cache, and then predicts nothing: the image is missing, in one line."""
    monkeypatch.chdir(tmp_path)
    write_image_folder(tmp_path / "images")
    os.utime(str(tmp_path / "images" / "train" / "cat"), (1, 1))
    data = {"source": "imagefolder", "path": "images", "num_train": None, "num_eval": None}
    write_config(tmp_path, data=data, model={"num_classes": 3})  # one class too many: a mistake found after listing
    before = sorted(tmp_path.rglob("*"))
    if value is None:
        monkeypatch.delenv(variable, raising=False)
    else:
        monkeypatch.setenv(variable, value)
    code, out, err = vit_ipu(monkeypatch, capsys, "train", "tiny.yaml", "--device", "cpu")
    assert code == 2
    assert err.startswith("vit-ipu: ")
    assert err.count("\n") == 1
    assert "Traceback" not in out
    assert "2 classes" in err
    assert sorted(path for path in tmp_path.rglob("*") if ".cache" not in path.parts) == before


def test_a_report_needs_no_backend_of_matplotlib():
    code = "from vit_ipu.report.curves import curves_svg; print(curves_svg([{'update': 1, 'loss': 2.0}])[:4])"
    environment = {**os.environ, "MPLBACKEND": "nonsense", "SOURCE_DATE_EPOCH": "never"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)
    assert done.stdout == b"<svg\n", done.stderr


def test_the_config_has_no_name_with_a_nul():
    values = tiny_values(data={"path": "a\0b"})
    with pytest.raises(Exception, match="has a NUL, which no path can have"):
        parse_config(values)
