"""The report: what its sections hold, of runs of every kind, and the comparison of runs."""

from __future__ import annotations

import base64
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
from reported_runs import trained

from vit_ipu.config_file import changed_settings, parse_config
from vit_ipu.runs.folder import RunFolder
from vit_ipu.runs.last_evaluation import read_last_evaluation
from vit_ipu.weights.native import best_update

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
