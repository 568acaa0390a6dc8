"""The pictures of a report as files: which there are, that each stands alone, and what is in them."""

from __future__ import annotations

import io
import json
import os
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from helpers import tiny_config, vit_ipu
from PIL import Image
from reported_runs import evaluation, picture, trained

from vit_ipu.planner.hardware import GC200
from vit_ipu.planner.memory import memory_per_ipu
from vit_ipu.report.curves import comparison_pictures, curve_pictures
from vit_ipu.report.evaluation_pictures import evaluation_pictures
from vit_ipu.report.memory import memory_picture
from vit_ipu.report.timetable import timetable_picture
from vit_ipu.runs.folder import RunFolder
from vit_ipu.runs.last_evaluation import read_last_evaluation

CURVES = ["loss", "accuracy", "learning_rate", "images_per_second"]
EVALUATION = ["mistakes", "confusions", "classes"]
LINE = {"update": 1, "samples": 4, "loss": 1.0, "learning_rate": 1.0, "images_per_second": 1.0}


def texts(svg):
    """Returns the texts of an SVG file, which must be XML."""
    found = ElementTree.fromstring(svg.encode()).iter("{http://www.w3.org/2000/svg}text")
    return ["".join(text.itertext()).replace("\u200b", "").strip() for text in found]


def by_name(pictures):
    return {picture.name: picture for picture in pictures}


def files(names):
    return [f"{name}.{kind}" for name in names for kind in ("svg", "png")]


# ----------------------------------------------------------------------------------------- the command


def test_the_pictures_of_a_run_are_written_beside_its_page(run, empty_folder):
    trained(run, empty_folder, "ipu-sim")
    names = files([*CURVES, *EVALUATION, "timetable", "memory"])
    lines = run("report", "run-ipu-sim", "--pictures", "new/folder").splitlines()
    assert lines == ["run-ipu-sim/report.html", *(f"new/folder/{name}" for name in names)]
    assert sorted(os.listdir("new/folder")) == sorted(names)
    found = run("report", "run-ipu-sim", "--pictures", "new/folder", "--json")  # replaces them
    assert json.loads(found) == {"report": lines[0], "pictures": lines[1:]}


def test_the_picture_of_classes_counts_those_without_held_out_images():
    for number, expected in ((2, "Top-1 (%)"), (3, "Top-1 (%); 1 class without held-out images")):
        found = by_name(evaluation_pictures(evaluation(number), "run"))["classes"]
        assert expected in texts(found.svg)


def test_each_picture_stands_alone(run, empty_folder):
    trained(run, empty_folder, "ipu-sim")
    run("report", "run-ipu-sim", "--pictures", "pictures")
    for path in Path("pictures").iterdir():
        if path.suffix == ".png":
            image = Image.open(path).convert("RGB")
            assert min(image.size) > 300
            assert image.getpixel((0, 0)) == (255, 255, 255)
            assert len(image.getcolors(1 << 20)) > 10
            continue
        text = path.read_text()
        assert "var(" not in text
        assert "#ffffff" in text
        assert not re.search(r'(?:href|src)="(?!#|data:image/png;base64,)', text)
        if path.stem != "timetable":
            assert "run-ipu-sim on ipu-sim, exact numerics" in "\n".join(texts(text))
        if path.stem == "images_per_second":
            assert "Images/s of the simulation, not of an IPU" in texts(text)


def test_a_run_on_a_cpu_has_no_pipeline(run, empty_folder):
    trained(run, empty_folder, "cpu")
    run("report", "run-cpu", "--pictures", "pictures")
    assert sorted(os.listdir("pictures")) == sorted(files([*CURVES, *EVALUATION]))
    assert "Images/s" in texts(Path("pictures/images_per_second.svg").read_text())


def test_a_comparison_has_a_picture_of_each_kind_of_curve(run, empty_folder):
    trained(run, empty_folder, "cpu")
    trained(run, empty_folder, "ipu-sim")
    run("report", "run-cpu", "run-ipu-sim", "--pictures", "pictures")
    assert sorted(os.listdir("pictures")) == sorted(files(["loss", "top1", "learning_rate", "images_per_second"]))
    for name in ("loss", "images_per_second"):
        found = texts(Path(f"pictures/{name}.svg").read_text())
        assert {"run-cpu (cpu)", "run-ipu-sim (ipu-sim, exact numerics)", "Comparison of 2 runs"} <= set(found)


def test_a_run_has_pictures_of_what_it_has(run, empty_folder):
    trained(run, empty_folder, "cpu")
    Path("run-cpu/evaluation.json").unlink()
    run("report", "run-cpu", "--pictures", "curves")
    assert sorted(os.listdir("curves")) == sorted(files(CURVES))
    Path("run-cpu/metrics.jsonl").unlink()
    assert run("report", "run-cpu", "--pictures", "pictures") == "run-cpu/report.html\n"
    assert json.loads(run("report", "run-cpu", "--pictures", "pictures", "--json"))["pictures"] == []


@pytest.mark.parametrize("kind", ["file", "pipe"])
def test_pictures_need_a_folder(run, monkeypatch, capsys, empty_folder, kind):
    trained(run, empty_folder, "cpu")
    before = Path("run-cpu/report.html").stat().st_mtime_ns
    os.mkfifo("place") if kind == "pipe" else Path("place").write_text("mine")
    capsys.readouterr()
    code, out, err = vit_ipu(monkeypatch, capsys, "report", "run-cpu", "--pictures", "place")
    assert (code, out) == (2, "")
    assert err == "vit-ipu: --pictures place is not a folder: give a folder for the pictures\n"
    assert Path("run-cpu/report.html").stat().st_mtime_ns == before


# ---------------------------------------------------------------------------------------- what they show


def test_curves_show_their_labels_and_the_best_update():
    metrics = [LINE, {"update": 2, "top1": 10.0, "top5": 50.0, "evaluation_loss": 2.0}]
    found = by_name(curve_pictures(metrics, "a run", best=2, simulated=False))
    assert list(found) == CURVES
    assert {"a run", "Loss (nats)", "training", "held out", "update"} <= set(texts(found["loss"].svg))
    assert {"Accuracy (%)", "top-1", "top-5", "best, update 2"} <= set(texts(found["accuracy"].svg))
    assert "best, update 2" not in texts(found["loss"].svg)
    assert [picture.name for picture in curve_pictures([LINE], "a run", best=None, simulated=False)] == [
        name for name in CURVES if name != "accuracy"
    ]


def test_the_confusions_of_a_run_have_its_numbers(run, empty_folder):
    trained(run, empty_folder, "cpu")
    kept = read_last_evaluation(RunFolder(Path("run-cpu")))
    found = texts(by_name(evaluation_pictures(kept, "t"))["confusions"].svg)
    counts = [str(count) for row in kept.matrix.tolist() for count in row]
    start = found.index(counts[0])
    assert any(found[start : start + len(counts)] == counts for start in range(len(found)))
    assert start >= 0
    for name in kept.classes:
        assert found.count(name) == 2


def test_classes_are_worst_first_and_mistakes_have_names():
    found = by_name(evaluation_pictures(evaluation(), "a run"))
    assert list(found) == EVALUATION
    assert {"75.0% of 4", "100.0% of 5", "<class 0>"} <= set(texts(found["classes"].svg))
    assert "<class 2>" not in texts(found["classes"].svg)
    mistakes = texts(found["mistakes"].svg)
    assert {"<class 0>, taken for", "<class 1> (75%)", "a run, evaluation at update 4"} <= set(mistakes)
    assert "data:image/png;base64," in found["mistakes"].svg


def test_many_classes_are_shown_as_the_most_frequent_confusions():
    few = by_name(evaluation_pictures(evaluation(30), "t"))["confusions"]
    assert "Confusions (images)" in texts(few.svg)
    many = by_name(evaluation_pictures(evaluation(31), "t"))["confusions"]
    assert {"<class 0>, taken for <class 1>", "1"} <= set(texts(many.svg))
    pairs = [(label, label, 1) for label in range(60)]
    found = by_name(evaluation_pictures(evaluation(60, confusion=pairs, mistakes=[]), "t"))
    assert list(found) == ["classes"]
    assert "Top-1 (%) of the 50 worst of 60 classes" in texts(found["classes"].svg)


def test_no_confusions_of_too_many_classes_are_no_picture():
    assert list(by_name(evaluation_pictures(evaluation(confusion=[], mistakes=[]), "t"))) == []


def test_the_same_pictures_are_the_same_files():
    first, again = (list(evaluation_pictures(evaluation(), "t")) for _ in range(2))
    assert first == again


def test_one_class_has_its_pictures():
    values = {"classes": ["only"], "confusion": [(0, 0, 3)], "mistakes": []}
    found = by_name(evaluation_pictures(evaluation(**values), "t"))
    assert list(found) == ["confusions", "classes"]
    assert "100.0% of 3" in texts(found["classes"].svg)


def test_mistakes_of_a_part_of_the_images_say_so():
    found = by_name(evaluation_pictures(evaluation(num_images=9, num_searched=5), "t"))
    assert "t, evaluation at update 4, among 5 of 9 images" in texts(found["mistakes"].svg)
    assert "t, evaluation at update 4" in texts(found["classes"].svg)


@pytest.mark.parametrize("damage", ["", "AAAA", picture(129), picture(28)[:60]])
def test_a_damaged_picture_of_a_mistake_is_left_out(damage):
    shown = dict(evaluation().mistakes[0].model_dump(), picture=damage)
    found = by_name(evaluation_pictures(evaluation(mistakes=[shown]), "t"))
    assert "damaged picture" in texts(found["mistakes"].svg)


def test_odd_names_are_shown_as_they_are():
    names = ["$x^2$", "_hidden", "a\x1b[31m\nb", "猫", "x" * 200]
    found = by_name(evaluation_pictures(evaluation(classes=names, confusion=[(0, 1, 2), (2, 3, 4), (4, 4, 1)]), "$t$"))
    shown = texts(found["confusions"].svg)
    assert {"$x^2$", "_hidden", r"a\x1b[31m\nb", "猫", "x" * 24 + "..."} <= set(shown)
    assert "$t$, evaluation at update 4" in shown
    runs = by_name(comparison_pictures([("$a$", [LINE]), ("_b", [LINE])], "t"))
    assert {"$a$", "_b"} <= set(texts(runs["loss"].svg))


def test_the_timetable_has_every_micro_batch():
    found = timetable_picture(2, 4)
    numbers = [text for text in texts(found.svg) if text.isdigit()]
    assert sorted(numbers) == sorted(2 * 2 * ["0", "1", "2", "3"])
    assert found.svg.count("<rect") == 2 * 2 * 4 + 2
    colors = Image.open(io.BytesIO(found.png)).getcolors(1 << 20)
    assert {(0x2F, 0x6B, 0xB0), (0xB8, 0x5C, 0x00)} <= {color for _, color in colors}


def test_the_timetable_of_many_ipus_has_a_picture_of_bounded_size():
    image = Image.open(io.BytesIO(timetable_picture(64, 2048).png))
    assert 4000 < image.width < 12000


def test_the_memory_has_the_plans_numbers():
    config = tiny_config()
    found = texts(memory_picture(config, "a run").svg)
    for ipu, memory in enumerate(memory_per_ipu(config, GC200)):
        assert f"IPU {ipu}" in found
        assert f"{memory.total / 1e6:,.0f} MB, fits" in found
    assert "Predicted memory in training on each gc200 IPU, not measured" in found
    assert {"memory of an IPU, 941 MB", "optimizer state", "stash"} <= set(found)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300, 1.7e308, -1.7e308, int("9" * 90), 0.0])
def test_odd_numbers_are_drawn(value):
    metrics = [{"update": 1, "loss": value}, {"update": 2, "loss": -value}]
    (found,) = curve_pictures(metrics, "t", best=None, simulated=False)
    assert "Loss (nats)" in texts(found.svg)
