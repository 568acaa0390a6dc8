"""predict: folders of images, files of predictions, and mistakes, each one line."""

from __future__ import annotations

import csv
import json
import shutil
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from helpers import TINY, vit_ipu

from vit_ipu import predict, train
from vit_ipu.backends.build import resolve_device
from vit_ipu.data.images import image_file
from vit_ipu.data.sources.image_list import find_images
from vit_ipu.errors import UserError


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """Returns a folder with a run, and its ten examples in folders beside a file that is not an image."""
    root = tmp_path_factory.mktemp("predict")
    (root / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    train(root / "tiny.yaml", device="cpu", output=root / "run", quiet=True)
    (root / "photos" / "deep").mkdir(parents=True)
    for number, path in enumerate(sorted((root / "run" / "examples").glob("*.png"))):
        shutil.copy(str(path), str(root / "photos" / ("deep" if number > 6 else "") / path.name))
    (root / "photos" / "bad.jpg").write_bytes(b"not an image")
    return root


@pytest.fixture
def command(material, tmp_path, monkeypatch, capsys):
    shutil.copytree(str(material), str(tmp_path / "here"))
    monkeypatch.chdir(tmp_path / "here")
    return lambda *arguments: vit_ipu(monkeypatch, capsys, "predict", *arguments, "--device", "cpu")


def test_a_folder_is_predicted_in_order_and_unreadable_images_are_listed(command):
    code, out, err = command("run", "photos", "--json")
    assert code == 2
    assert err == "vit-ipu: cannot read the image photos/bad.jpg: it is not an image of a known format\n"
    told = json.loads(out)
    names = [row["image"] for row in told["predictions"]]
    readable = [
        str(path) for path in [*sorted(Path("photos").glob("*.png")), *sorted(Path("photos/deep").glob("*.png"))]
    ]
    assert names == readable
    assert len(names) == 10
    assert list(told["unreadable"]) == ["photos/bad.jpg"]
    assert told["device"] == "cpu"


def test_files_of_csv_and_json_have_what_is_printed(command):
    told = json.loads(command("run", "photos", "--json")[1])
    code, out, err = command("run", "photos", "--output", "out.json")
    assert (code, out) == (2, "out.json: predictions for 10 images\n")
    assert err.count("\n") == 1
    assert json.loads(Path("out.json").read_text()) == told
    Path("photos/bad.jpg").unlink()
    code, out, _ = command("run", "photos", "--output", "out.csv", "--json")
    assert code == 0
    assert json.loads(out)["output"] == "out.csv"
    assert (json.loads(out)["num_images"], json.loads(out)["unreadable"]) == (10, {})
    with open("out.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:5] == ["path", "class_1", "probability_1", "class_2", "probability_2"]
    assert len(rows[0]) == 11
    for row, expected in zip(rows, told["predictions"]):
        assert row["path"] == expected["image"]
        for rank, named in enumerate(expected["classes"], 1):
            assert row[f"class_{rank}"] == named["name"]
            assert float(row[f"probability_{rank}"]) == pytest.approx(named["probability"], abs=1e-6)


def test_one_image_is_counted_as_one_and_an_existing_file_is_replaced(command):
    Path("out.csv").write_text("old")
    image = sorted(Path("photos").glob("*.png"))[0]
    assert command("run", image, "--output", "out.csv")[:2] == (0, "out.csv: predictions for 1 image\n")
    assert Path("out.csv").read_text().startswith("path,class_1,")


def test_without_a_readable_image_the_files_are_empty_but_whole(command):
    assert command("run", "photos/bad.jpg", "--output", "out.csv")[0] == 2
    assert Path("out.csv").read_text() == "path," + ",".join(f"class_{n},probability_{n}" for n in range(1, 6)) + "\n"
    told = json.loads(command("run", "photos/bad.jpg", "--json")[1])
    assert told["predictions"] == []
    assert list(told["unreadable"]) == ["photos/bad.jpg"]


def test_images_are_read_and_predicted_a_chunk_at_a_time(command, monkeypatch):
    whole = predict("run", sorted(Path("photos").glob("*.png")), device="cpu", quiet=True)
    story = import_module("vit_ipu.predict")
    monkeypatch.setattr(story, "CHUNK", 2)
    read = []
    monkeypatch.setattr(story, "open_picture", lambda path: read.append(path) or image_file.open_picture(path))
    found = find_images([str(path) for path in sorted(Path("photos").glob("*.png"))], lambda note: None)
    done = []
    stream = story.predictions("run", found, resolve_device("cpu"), progress=done.append)
    first = next(stream)
    assert len(read) == 2
    rest = list(stream)
    assert done == list(range(1, 8))
    assert [p.path for p in [first, *rest]] == [p.path for p in whole]
    for one, other in zip([first, *rest], whole):
        assert dict(one.classes) == pytest.approx(dict(other.classes), rel=1e-4)


def test_progress_is_shown_if_stdout_has_no_predictions(command, monkeypatch):
    monkeypatch.setattr("vit_ipu.cli.progress._SECONDS_BETWEEN_LINES", 0.0)
    Path("photos/bad.jpg").unlink()
    code, out, err = command("run", "photos", "--output", "out.csv")
    assert (code, err) == (0, "")
    assert "predict: 10 of 10 images\n" in out
    code, out, _ = command("run", "photos")
    assert code == 0
    assert "of 10" not in out


def test_python_takes_a_folder_and_refuses_a_wrong_number_of_classes(command):
    Path("photos/bad.jpg").unlink()
    assert len(predict("run", "photos", device="cpu", top=2, quiet=True)) == 10
    for top in (0, -1):
        with pytest.raises(
            UserError, match=f"^top {top}: give the number of classes to name for each image, 1 or more"
        ):
            predict("run", "photos", device="cpu", top=top, quiet=True)


MISTAKES = {
    "empty folder": (["run", "empty"], ["no images below empty", ".png"]),
    "unknown suffix": (["run", "photos", "--output", "out.txt"], ["--output out.txt", ".csv or .json"]),
    "no suffix": (["run", "photos", "--output", "out"], ["--output out:", ".csv or .json"]),
    "no folder for the output": (["run", "photos", "--output", "nowhere/out.csv"], ["nowhere is not a folder"]),
    "output that is a folder": (["run", "photos", "--output", "folder.csv"], ["folder.csv is a folder"]),
    "output in a file": (["run", "photos", "--output", "tiny.yaml/out.csv"], ["tiny.yaml is not a folder"]),
    "checkpoint that is not there": (["nowhere", "photos", "--output", "out.csv"], ["no checkpoint at nowhere"]),
}


@pytest.mark.parametrize("name", list(MISTAKES))
def test_a_mistake_is_one_line_and_writes_nothing(command, name):
    Path("empty").mkdir()
    Path("folder.csv").mkdir()
    before = sorted(Path().rglob("*"))
    arguments, expected = MISTAKES[name]
    code, out, err = command(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    for text in expected:
        assert text in err
    assert sorted(Path().rglob("*")) == before


def test_an_output_in_a_folder_that_cannot_be_written_is_refused_first(command, monkeypatch):
    monkeypatch.setattr("vit_ipu.cli.paths.os.access", lambda path, mode: False)
    code, out, err = command("run", "photos", "--output", "out.csv")
    assert (code, out) == (2, "")
    assert err == "vit-ipu: --output out.csv: . cannot be written: give a path in another folder\n"
