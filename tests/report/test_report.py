"""The report: what its sections hold, of runs of every kind, and the comparison of runs."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import os
import re
import shutil
from pathlib import Path

import pytest
from helpers import interrupted_after, tiny_values, vit_ipu, write_config, write_image_folder
from PIL import Image

from vit_ipu.config_file import changed_settings, parse_config
from vit_ipu.errors import UserError
from vit_ipu.report.mistakes import classes_table, confusion_table, mistakes_grid
from vit_ipu.runs.folder import RunFolder
from vit_ipu.runs.last_evaluation import LastEvaluation, read_last_evaluation
from vit_ipu.weights.native import best_update


def picture(side):
    file = io.BytesIO()
    Image.new("RGB", (side, side), "red").save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def evaluation(num_classes=3, **changes):
    mistake = {"label": 0, "predicted": 1, "probability": 0.75, "loss": 2.0, "name": "a/b.png", "picture": picture(28)}
    values = {
        "update": 4,
        "classes": [f"<class {number}>" for number in range(num_classes)],
        "confusion": [(0, 0, 3), (0, 1, 1), (1, 1, 5)],
        "mistakes": [mistake],
    }
    return LastEvaluation.model_validate(dict(values, **changes))


def trained(run, folder, device, **options):
    config = write_config(folder, run=dict({"updates": 4, "evaluate_every": 2}, **options))
    run("train", config, "--device", device, "--output", f"run-{device}")
    return (folder / f"run-{device}" / "report.html").read_text()


# ------------------------------------------------------------------------------------------ one run


def test_the_page_shows_mistakes_confusions_and_classes_of_the_last_evaluation(run, empty_folder):
    page = trained(run, empty_folder, "cpu")
    found = read_last_evaluation(RunFolder(empty_folder / "run-cpu"))
    assert found.update == 4
    assert int(found.matrix.sum()) == 50
    assert page.count("<img") == len(found.mistakes) > 0
    losses = [mistake.loss for mistake in found.mistakes]
    assert losses == sorted(losses, reverse=True)
    assert "Evaluation at update 4." in page
    assert "Accuracy by class" in page
    image = Image.open(io.BytesIO(base64.b64decode(found.mistakes[0].picture)))
    assert (image.format, image.size) == ("PNG", (28, 28))


def test_pages_need_nothing_from_elsewhere(run, empty_folder):
    page = trained(run, empty_folder, "cpu")
    assert not re.search(r'(?:src|href)="(?!#|data:image/png;base64,)', page)
    assert "url(" not in re.sub(r"url\(#", "", page)
    assert "<script" not in page


def test_only_a_run_on_ipus_shows_their_placement(run, empty_folder):
    assert "IPU 3" in trained(run, empty_folder, "ipu-sim")
    assert "IPU" not in re.sub(r"(?s)<details>.*?</details>", "", trained(run, empty_folder, "cpu"))


def test_the_pipeline_shows_the_predicted_memory_of_each_ipu(run, empty_folder):
    page = trained(run, empty_folder, "ipu-sim")
    assert "Predicted megabytes in training on each gc200 IPU, not measured" in page
    table = page.split('<table class="memory">')[1].split("</table>")[0]
    plan = json.loads(run("plan", "tiny.yaml", "--json"))
    totals = [f"{sum(ipu['memory_bytes'].values()) / 1e6:,.0f}" for ipu in plan["ipus"]]
    rows = re.findall(r"<tr><th scope=\"row\">IPU \d</th>(.*?)</tr>", table)
    assert [re.findall(r'class="number">([\d,]+)<', row)[-1] for row in rows] == totals


def test_the_best_update_is_marked(run, empty_folder):
    trained(run, empty_folder, "cpu", keep_best="loss", checkpoint_every=2)
    best = json.loads((empty_folder / "run-cpu" / "best.json").read_text())["update"]
    assert best_update(empty_folder / "run-cpu") == best


def test_the_config_shows_what_differs_and_folds_all(run, empty_folder):
    page = trained(run, empty_folder, "cpu")
    shown, folded = page.split("<h2>Config</h2>")[1].split("<details>")
    assert "updates: 4" in shown
    assert "tracking" not in shown
    assert "tracking: none" in folded


def test_changed_settings_are_those_without_a_default_and_those_that_differ():
    text = changed_settings(parse_config(tiny_values(optim={"optimizer": "adamw", "weight_decay": 0.0})))
    assert "optimizer: adamw" in text
    assert "weight_decay" not in text


def test_skipped_images_are_listed(run, empty_folder):
    write_image_folder(empty_folder / "images", count=8)
    (empty_folder / "images" / "val" / "dog" / "1.png").write_text("no image")
    data = {"source": "imagefolder", "path": "images", "num_train": None, "num_eval": None, "on_error": "skip"}
    config = write_config(empty_folder, data=data, model={"num_classes": 2}, run={"updates": 2})
    run("train", config, "--device", "cpu", "--output", "run")
    page = (empty_folder / "run" / "report.html").read_text()
    assert "<h2>Skipped images</h2>" in page
    assert "val/dog/1.png" in page.split("<h2>Skipped images</h2>")[1]
    (empty_folder / "run" / "skipped.txt").write_bytes(b"\xff")
    run("report", "run")
    assert "skipped.txt cannot be read" in (empty_folder / "run" / "report.html").read_text()


def test_a_run_that_fails_has_its_report(run, monkeypatch, capsys, empty_folder):
    config = write_config(empty_folder, run={"updates": 40, "evaluate_every": 1}, optim={"learning_rate": 1e6})
    code, _, err = vit_ipu(monkeypatch, capsys, "train", config, "--device", "cpu", "--output", "run")
    assert code == 1
    assert "lower optim.learning_rate" in err
    assert "<h2>Curves</h2>" in (empty_folder / "run" / "report.html").read_text()


def test_a_run_that_ended_early_says_how_far_it_came(run, monkeypatch, capsys, empty_folder):
    config = write_config(empty_folder, run={"updates": 8, "evaluate_every": 2})
    with monkeypatch.context() as context:
        interrupted_after(context, 3)
        assert vit_ipu(monkeypatch, capsys, "train", config, "--device", "cpu", "--output", "run")[0] == 130
    page = (empty_folder / "run" / "report.html").read_text()
    assert "3 of 8, 96</td>" in page
    assert "Top-1, top-5 at update 2</th>" in page
    assert vit_ipu(monkeypatch, capsys, "train", config, "--device", "cpu", "--output", "run", "--resume")[0] == 0
    page = (empty_folder / "run" / "report.html").read_text()
    assert "8, 256</td>" in page
    assert "Top-1, top-5</th>" in page


# ------------------------------------------------------------------------------------------ the parts


@pytest.mark.parametrize(("name", "is_turned"), [("cat", False), ("signs_and_symbols", True)])
def test_long_names_of_classes_are_turned_over_the_columns_of_the_matrix(name, is_turned):
    found = confusion_table(evaluation(2, classes=[name, "dog"]))
    assert found.count('<th scope="col" class="turned">') == (2 if is_turned else 0)


def test_names_are_escaped():
    for part in (mistakes_grid, confusion_table, classes_table):
        assert "<class" not in part(evaluation())
        assert "&lt;class 0&gt;" in part(evaluation())


def test_small_pictures_keep_their_pixels():
    assert '<img class="small"' in mistakes_grid(evaluation())
    large = dict(evaluation().mistakes[0].model_dump(), picture=picture(128))
    assert "<img src" in mistakes_grid(evaluation(mistakes=[large]))
    assert mistakes_grid(evaluation(mistakes=[])) == "<p>There is no mistake to show.</p>"


def test_a_matrix_of_many_classes_is_a_list_of_pairs():
    assert "Rows: the class of the images" in confusion_table(evaluation(30))
    listed = confusion_table(evaluation(31))
    assert "taken for" in listed
    assert listed.count("<tr>") == 2


def test_classes_are_listed_worst_first_and_without_those_that_have_no_image():
    table = classes_table(evaluation())
    assert table.index("75.0%") < table.index("100.0%")
    assert "class 2" not in table


@pytest.mark.parametrize(
    "changes",
    [
        {"confusion": [(0, 3, 1)]},
        {"classes": []},
        {"update": -1},
        {"mistakes": [{"name": "a"}]},
        {"extra": 1},
        {"classes": ["c"] * 100_000},
        {"mistakes": [dict(evaluation().mistakes[0].model_dump(), picture="A=")]},
    ],
    ids=["a class without a name", "no classes", "update", "mistake", "another key", "too many classes", "picture"],
)
def test_a_damaged_evaluation_is_refused(tmp_path, changes):
    folder = RunFolder(tmp_path)
    values = evaluation().model_dump()
    folder.evaluation.write_text(json.dumps(values))
    assert read_last_evaluation(folder).update == 4
    folder.evaluation.write_text(json.dumps(dict(values, **changes)))
    with pytest.raises(UserError, match="evaluation.json is damaged: it is not what the run wrote"):
        read_last_evaluation(folder)


# ----------------------------------------------------------------------------------------- several runs


def test_runs_are_compared_side_by_side(run, empty_folder):
    trained(run, empty_folder, "cpu")
    trained(run, empty_folder, "ipu-sim", keep_checkpoints=1)
    lines = run("report", "run-cpu", "run-ipu-sim").splitlines()
    assert [re.sub(r"[0-9.]+ %", "X %", line) for line in lines] == [
        "run-cpu: top-1 X % at update 4",
        "run-ipu-sim: top-1 X % at update 4",
        "comparison.html",
    ]
    page = (empty_folder / "comparison.html").read_text()
    assert re.search(r"Device</th><td>cpu</td><td>ipu-sim, exact numerics</td>", page)
    assert re.search(r"run\.keep_checkpoints</th><td>2</td><td>1</td>", page)
    assert "run.updates" not in page
    assert json.loads(run("report", "run-cpu", "run-ipu-sim", "--output", "x.html", "--json")) == {"report": "x.html"}


def test_names_of_runs_are_shown_as_they_are(run, empty_folder):
    trained(run, empty_folder, "cpu")
    for name in (r"$\foo$", "_hidden"):
        shutil.copytree("run-cpu", name)
    run("report", "run-cpu", r"$\foo$", "_hidden")
    page = (empty_folder / "comparison.html").read_text()
    for name in ("run-cpu", r"$\foo$", "_hidden"):
        assert f'<th scope="col">{name}</th>' in page
    assert page.count("_hidden -->") == 4


EVALUATE = "vit-ipu evaluate run-cpu/config.yaml --checkpoint run-cpu --predictions predictions.csv"


def report_note(run):
    """Writes the report of run-cpu again; returns the note of the command and the section on mistakes."""
    lines = run("report", "run-cpu").splitlines()
    page = Path("run-cpu/report.html").read_text()
    assert "<img" not in page
    assert "Confusions" not in page
    assert lines[1:] == ["run-cpu/report.html"]
    return lines[0], html.unescape(page.split("<h2>Worst mistakes</h2>")[1].split("</section>")[0])


def test_an_evaluation_that_is_not_the_last_is_not_shown(run, empty_folder):
    assert "Evaluation at update 4." in trained(run, empty_folder, "cpu")
    metrics = empty_folder / "run-cpu" / "metrics.jsonl"
    kept = [line for line in metrics.read_text().splitlines(True) if json.loads(line)["update"] < 4]
    metrics.write_text("".join(kept))  # as a run that resumes from an earlier checkpoint
    note, section = report_note(run)
    reason = "run-cpu/evaluation.json is of update 4, but the last evaluation in metrics.jsonl is of update 2"
    assert note.startswith(f"note: no mistakes to show: {reason}: wait for the next evaluation, or get what the model")
    assert reason in section


def test_a_report_says_how_to_get_the_mistakes_of_runs_that_did_not_keep_them(run, empty_folder):
    trained(run, empty_folder, "cpu")
    (empty_folder / "run-cpu" / "evaluation.json").unlink()
    note, section = report_note(run)
    assert note.startswith("note: no mistakes to show: run-cpu/evaluation.json does not exist, as in runs of versions")
    assert note.endswith(f"get what the model predicts for each image with: {EVALUATE}")
    assert EVALUATE in section
    run(*EVALUATE.split()[1:], "--device", "cpu")
    assert len((empty_folder / "predictions.csv").read_text().splitlines()) == 51


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read: Is a directory"),
        (b"{", "cannot be read: it is not JSON: Expecting property name enclosed in double quotes in line 1"),
        (b"[]", "is damaged: it is not what the run wrote"),
        (b"\xff", "cannot be read: not a text file: its byte 0 is not UTF-8"),
    ],
    ids=["folder", "not JSON", "other values", "not UTF-8"],
)
def test_an_evaluation_that_cannot_be_read_is_one_clear_line(run, empty_folder, content, reason):
    trained(run, empty_folder, "cpu")
    evaluation = empty_folder / "run-cpu" / "evaluation.json"
    evaluation.unlink()
    evaluation.mkdir() if content is None else evaluation.write_bytes(content)
    note, section = report_note(run)
    assert note.startswith(f"note: no mistakes to show: run-cpu/evaluation.json {reason}; get what the model predicts")
    assert reason in section


def test_a_run_that_was_never_evaluated_says_nothing_of_mistakes(run, empty_folder):
    trained(run, empty_folder, "cpu")
    metrics = empty_folder / "run-cpu" / "metrics.jsonl"
    metrics.write_text("".join(line for line in metrics.read_text().splitlines(True) if "top1" not in line))
    assert run("report", "run-cpu") == "run-cpu/report.html\n"
    assert "Worst mistakes" not in (empty_folder / "run-cpu" / "report.html").read_text()


def test_the_page_says_which_images_the_mistakes_of_several_processes_are_from(run, empty_folder):
    assert "torchrun" not in trained(run, empty_folder, "cpu")
    path = empty_folder / "run-cpu" / "evaluation.json"
    values = json.loads(path.read_text())
    assert (values["num_images"], values["num_searched"]) == (50, 50)
    path.write_text(json.dumps(dict(values, num_searched=26)))
    run("report", "run-cpu")
    page = (empty_folder / "run-cpu" / "report.html").read_text()
    assert (
        "The mistakes shown are those among the 26 images that the first process of torchrun evaluated, of 50 in all"
        in page
    )


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["run-cpu", "./run-cpu"], "run-cpu is given twice: compare different runs"),
        (["run-cpu", "damaged"], "damaged/environment.json is damaged: it must be the JSON object that the run wrote"),
        (["run-cpu", "--output", "pipe"], "--output pipe is not a file: give the path of a file"),
        (["run-cpu", "run-cpu"], "run-cpu is given twice: compare different runs"),
        (["run-cpu", "other"], "other is not a run folder: it does not contain environment.json"),
        (
            ["run-cpu", "--output", "no/x.html"],
            "--output no/x.html: no is not a folder: make it first, or give another",
        ),
        (["run-cpu", "--output", "run-cpu"], "--output run-cpu is a folder: give the path of a file"),
        (["tiny.yaml"], "tiny.yaml is not a run folder: it does not contain environment.json"),
        (["no-config"], "no-config/config.yaml is missing or not a file: restore it, for example from the config that"),
        (["run-cpu", "no-config"], "no-config/config.yaml is missing or not a file: restore it, for example from the"),
    ],
)
def test_mistakes_in_a_report_are_one_line(run, monkeypatch, capsys, empty_folder, arguments, error):
    trained(run, empty_folder, "cpu")
    shutil.copytree("run-cpu", "damaged")
    (empty_folder / "damaged" / "environment.json").write_text('{"simulated": false}')
    shutil.copytree("run-cpu", "no-config")
    (empty_folder / "no-config" / "config.yaml").unlink()
    os.mkfifo("pipe")
    capsys.readouterr()
    code, out, err = vit_ipu(monkeypatch, capsys, "report", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"vit-ipu: {error}")
    assert err.count("\n") == 1


# ------------------------------------------------------------------------------------------- evaluate


def test_evaluate_tells_each_class_and_each_image(run, empty_folder):
    trained(run, empty_folder, "cpu")
    evaluate = ["evaluate", "tiny.yaml", "--checkpoint", "run-cpu", "--device", "cpu", "--json"]
    found = json.loads(run(*evaluate, "--predictions", "all.csv"))
    confusion = found["confusion"]
    assert sum(map(sum, confusion)) == found["num_images"] == 50
    assert [entry["num_images"] for entry in found["per_class"]] == [sum(row) for row in confusion]
    right = sum(confusion[label][label] for label in range(10))
    assert found["top1"] == pytest.approx(100 * right / 50)
    lines = (empty_folder / "all.csv").read_text().splitlines()
    assert lines[0] == "image,class,predicted,probability,loss"
    rows = [line.split(",") for line in lines[1:]]
    assert len({row[0] for row in rows}) == 50
    assert sum(row[1] == row[2] for row in rows) == right


def test_predictions_need_a_folder(run, monkeypatch, capsys, empty_folder):
    trained(run, empty_folder, "cpu")
    capsys.readouterr()
    arguments = ["evaluate", "tiny.yaml", "--checkpoint", "run-cpu", "--predictions", "no/all.csv"]
    code, _, err = vit_ipu(monkeypatch, capsys, *arguments)
    assert code == 2
    assert "--predictions no/all.csv: no is not a folder" in err


def test_predictions_keep_names_that_are_formulas_and_warn_of_them(run, empty_folder):
    classes = ('+1, or "so"', "=cmd")
    write_image_folder(empty_folder / "images", classes=classes, count=8)
    data = {"source": "imagefolder", "path": "images", "num_train": None, "num_eval": None}
    config = write_config(empty_folder, data=data, model={"num_classes": 2}, run={"updates": 2})
    run("train", config, "--device", "cpu", "--output", "run")
    evaluate = ["evaluate", config, "--checkpoint", "run", "--device", "cpu", "--predictions", "all.csv"]
    warning = "warning: all.csv has names that a spreadsheet program takes for formulas, such as "
    assert run(*evaluate).splitlines()[0] == f"{warning}{classes[0]}: import its columns as text"
    with open("all.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 16
    assert {row["class"] for row in rows} == set(classes)
    assert all(Path("images", row["image"]).is_file() or Path(row["image"]).is_file() for row in rows)


def test_predictions_without_formulas_have_no_warning(run, empty_folder):
    trained(run, empty_folder, "cpu")
    evaluate = ["evaluate", "tiny.yaml", "--checkpoint", "run-cpu", "--device", "cpu", "--predictions", "all.csv"]
    assert "warning" not in run(*evaluate)
