"""The functions that `from vit_ipu import ...` gives: they do what the commands do, and docs/python.md is true."""

from __future__ import annotations

import inspect
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import tiny_config, write_config

import vit_ipu
from vit_ipu import Config, convert, evaluate, load_config, load_model, plan, predict, train
from vit_ipu.errors import ConfigError, DataError, RunFailed, UserError
from vit_ipu.runs.metrics import read_metrics

PAGE = Path(__file__).parent.parent / "docs" / "python.md"
NAMES = ("Config", "load_config", "train", "evaluate", "predict", "load_model", "plan", "convert")


def test_the_code_of_the_page_runs(empty_folder, capsys):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    assert len(blocks) >= 6
    values = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), values)
    out = capsys.readouterr().out
    assert "did you mean quickstart?" in out
    assert out.count("examples/") == 10
    assert set(NAMES) <= set(re.findall(r"\w+", "\n".join(blocks))) | {"Config"}


def test_names_are_imported_without_torch():
    code = f"import sys, vit_ipu; from vit_ipu import {', '.join(NAMES)}; load_config('quickstart'); plan('quickstart')"
    code += "; assert 'torch' not in sys.modules; assert set(vit_ipu.__all__) <= set(dir(vit_ipu))"
    subprocess.run([sys.executable, "-c", code], check=True)
    code = "import sys, vit_ipu; assert not {'pydantic', 'numpy', 'rich'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("first", ["", "import vit_ipu.train, vit_ipu.plan", "from vit_ipu.evaluate import Evaluation"])
def test_a_name_stays_a_function_whatever_was_imported(first):
    code = f"""
{first}
import inspect, sys, vit_ipu
from vit_ipu import train
from vit_ipu.train import Summary
import vit_ipu.train, vit_ipu.plan
for name in ("train", "evaluate", "predict", "plan"):
    assert inspect.isfunction(getattr(vit_ipu, name)), name
assert vit_ipu.train is train and inspect.ismodule(sys.modules["vit_ipu.train"])
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_name_is_typed_and_documented():
    assert (Path(vit_ipu.__file__).parent / "py.typed").is_file()
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        vit_ipu.trian  # noqa: B018
    for name in ("train", "evaluate", "predict", "load_model", "plan", "convert"):
        function = getattr(vit_ipu, name)
        assert function.__doc__.strip()
        signature = inspect.signature(function)
        assert all(part.annotation is not part.empty for part in signature.parameters.values())
        assert signature.return_annotation is not signature.empty


@pytest.fixture
def trained(empty_folder):
    return train(write_config(empty_folder), device="cpu", quiet=True)


def test_results_are_those_of_the_commands(run, trained, empty_folder):
    assert trained.path == Path("runs/tiny")
    assert trained.finished
    assert trained.report.is_file()
    assert (trained.updates, trained.total_updates) == (4, 4)
    last = read_metrics(trained.path / "metrics.jsonl")[-1]
    assert (trained.evaluation.top1, trained.evaluation.loss) == (last["top1"], last["evaluation_loss"])
    found = evaluate("tiny.yaml", trained.path, device="cpu", quiet=True).evaluation
    told = json.loads(run("evaluate", "tiny.yaml", "--checkpoint", "runs/tiny", "--device", "cpu", "--json"))
    assert (found.top1, found.loss) == (told["top1"], told["loss"])
    images = sorted(trained.path.glob("examples/*.png"))
    told = json.loads(run("predict", "runs/tiny", *images, "--device", "cpu", "--json"))["predictions"]
    for prediction, expected in zip(predict(trained.path, images, device="cpu", quiet=True), told):
        assert [name for name, _ in prediction.classes] == [row["name"] for row in expected["classes"]]
    assert plan("tiny.yaml") == json.loads(run("plan", "tiny.yaml", "--json"))
    weights = convert(trained.path, "out.safetensors", "timm", quiet=True)
    assert weights.num_classes == 10
    assert Path("out.safetensors").is_file()


def test_a_loaded_model_computes_the_probabilities_of_predict(trained):
    images = sorted(trained.path.glob("examples/*.png"))
    state = torch.get_rng_state()
    model = load_model(trained.path, quiet=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.module.training
    with torch.inference_mode():
        probabilities = model.module(model.preprocess(images)).softmax(1)
    for row, prediction in zip(probabilities, predict(trained.path, images, device="cpu", quiet=True)):
        name, value = prediction.classes[0]
        assert model.classes[int(row.argmax())] == name
        assert float(row.max()) == pytest.approx(value, rel=1e-4)
    assert model.preprocess(str(images[0])).shape == (1, 3, 28, 28)


def test_a_config_object_trains_into_the_folder_that_is_named(empty_folder):
    config = tiny_config()
    assert isinstance(config, Config)
    assert train(config, device="cpu", quiet=True).path == Path("runs/run")
    assert train(config, device="ipu-sim", output=empty_folder / "sim", quiet=True).finished
    assert train(config, device="cpu", restart=True, quiet=True).finished
    assert train(config, device="cpu", resume=True, quiet=True).finished


def test_notes_and_progress_are_lines_in_a_notebook(empty_folder, monkeypatch):
    class ZMQInteractiveShell:
        """The class of the shell in a notebook, by whose name rich knows one."""

    class Cell(io.StringIO):
        """Standard output in a notebook, which has no file."""

        def fileno(self):
            raise io.UnsupportedOperation("fileno")

    monkeypatch.setattr("builtins.get_ipython", ZMQInteractiveShell, raising=False)
    cell = Cell()
    monkeypatch.setattr(sys, "stdout", cell)
    train(tiny_config(data={"path": "nowhere"}), device="cpu")
    lines = cell.getvalue().splitlines()
    assert "note: data.path has no effect with source sample" in lines
    assert any(re.fullmatch(r"update 4 of 4: loss [0-9.]+, learning rate .*, .* images/s", line) for line in lines)
    assert any(line.startswith("update 4: top-1 ") for line in lines)
    before = cell.getvalue()
    predict("runs/run", sorted(Path("runs/run/examples").glob("*.png")), device="cpu", quiet=True)
    assert cell.getvalue() == before


MISTAKES = {
    "a config that does not exist": (lambda: train("quikstart"), ConfigError, "did you mean quickstart?"),
    "an override that is wrong": (
        lambda: plan("quickstart", overrides=["run.x=1"]),
        ConfigError,
        "override run.x=1: unknown key",
    ),
    "overrides that are a string": (
        lambda: plan("quickstart", overrides="run.seed=1"),
        UserError,
        "overrides must be a list, but is the string 'run.seed=1': give ['run.seed=1']",
    ),
    "overrides of load_config that are a string": (
        lambda: load_config("quickstart", "run.seed=1"),
        UserError,
        "overrides must be a list, but is the string 'run.seed=1'",
    ),
    "changes that are a string": (
        lambda: train(tiny_config(), device="cpu", resume=True, allow_config_change="run.seed"),
        UserError,
        "allow_config_change must be a list, but is the string 'run.seed': give ['run.seed']",
    ),
    "no classes to name": (lambda: predict("nowhere", "x.png", top=0), UserError, "top 0: give the number of classes"),
    "a negative number of classes": (lambda: predict("nowhere", "x.png", top=-1), UserError, "top -1: give the number"),
    "numerics of a CPU": (
        lambda: train(tiny_config(), device="cpu", numerics="ipu"),
        UserError,
        "numerics='ipu': only ipu-sim simulates an IPU's arithmetic, but the device is cpu: add device='ipu-sim'",
    ),
    "no run to resume": (
        lambda: train(tiny_config(), device="cpu", resume=True),
        UserError,
        "resume=True: there is no run in runs/run: start one without resume=True",
    ),
    "resume and restart": (
        lambda: train(tiny_config(), device="cpu", resume=True, restart=True),
        UserError,
        "resume=True and restart=True exclude each other",
    ),
    "nothing to evaluate": (lambda: evaluate(tiny_config(), device="cpu"), UserError, "checkpoint is missing: name a"),
    "overrides of a config": (lambda: plan(tiny_config(), overrides=["run.seed=1"]), ConfigError, "to load_config"),
    "an unknown device": (lambda: train(tiny_config(), device="tpu"), UserError, "tpu: unknown; use one of auto"),
    "no checkpoint": (lambda: load_model("nowhere"), UserError, "no checkpoint at nowhere"),
    "no checkpoint to evaluate": (lambda: evaluate(tiny_config(), "nowhere", device="cpu"), UserError, "nowhere"),
    "an unknown format": (lambda: convert("nowhere", "out", "keras"), UserError, "keras"),
    "overrides that are a number": (
        lambda: plan("quickstart", overrides=3),
        UserError,
        "overrides is 3 (int), but must",
    ),
    "an override that is a number": (
        lambda: load_config("quickstart", [3]),
        UserError,
        "overrides has 3 (int), but must be a list of strings",
    ),
    "a config that is a dict": (
        lambda: plan({"model": 1}),
        UserError,
        "config is {'model': 1} (dict), but must be a Config, the path of a YAML file, the name of a shipped",
    ),
    "a config that is None": (lambda: load_config(None), UserError, "path is None (NoneType), but must be the path of"),
    "an empty config": (lambda: train(""), UserError, "config is empty: give a Config, the path of a YAML file"),
    "an empty output": (
        lambda: train(tiny_config(), device="cpu", output="", quiet=True),
        UserError,
        "output is empty: give a path",
    ),
    "a zero byte": (lambda: train(tiny_config(), device="cpu", output="a\0"), UserError, "'a\\x00' has a zero byte"),
    "a name that is too long": (
        lambda: train(tiny_config(), device="cpu", output="a" * 300, quiet=True),
        UserError,
        "aaa: File name too long",
    ),
    "a run to resume whose name is too long": (
        lambda: train(tiny_config(), device="cpu", output="a" * 300, quiet=True, resume=True),
        UserError,
        "aaa: File name too long",
    ),
    "an empty checkpoint": (lambda: load_model(""), UserError, "checkpoint is empty: give a path"),
    "an empty checkpoint to evaluate": (
        lambda: evaluate(tiny_config(), "", device="cpu"),
        UserError,
        "checkpoint is empty: give a path",
    ),
    "a checkpoint that is bytes": (
        lambda: load_model(b"run"),
        UserError,
        "checkpoint is b'run' (bytes), but must be a",
    ),
    "a source that is None": (
        lambda: convert(None, "out", "timm"),
        UserError,
        "source is None (NoneType), but must be",
    ),
    "a target that is empty": (lambda: convert("run", "", "timm"), UserError, "target is empty: give a path"),
    "a format that is None": (lambda: convert("run", "out", None), UserError, "to is None (NoneType), but must be the"),
    "a hash that is a number": (
        lambda: convert("run", "out", "timm", sha256=1),
        UserError,
        "sha256 is 1 (int), but must be a string",
    ),
    "images that are None": (
        lambda: predict("run", None),
        UserError,
        "images is None (NoneType), but must be a path or",
    ),
    "an image that is a number": (lambda: predict("run", [7]), UserError, "images is 7 (int), but must be a path"),
    "classes that are not a number": (lambda: predict("run", "x", top=None), UserError, "top None: give the number"),
    "a fraction of classes": (lambda: predict("run", "x", top=1.5), UserError, "top 1.5: give the number"),
    "heads that are a text": (
        lambda: load_model("run", num_heads="2"),
        UserError,
        "num_heads is '2' (str), but must be a whole number of 1 or more",
    ),
    "heads that are True": (lambda: load_model("run", num_heads=True), UserError, "num_heads is True (bool), but must"),
    "no heads": (
        lambda: predict("run", "x", num_heads=0),
        UserError,
        "num_heads is 0 (int), but must be a whole number",
    ),
    "an unknown IPU": (
        lambda: plan("quickstart", hardware="mk1"),
        ConfigError,
        "hardware mk1: unknown: use one of gc200",
    ),
    "a POD without a search": (
        lambda: plan("quickstart", pod=4),
        ConfigError,
        "pod has no effect without search=True: add search=True",
    ),
    "a search for two kinds": (
        lambda: plan("quickstart", hardware="gc200,bow", search=True),
        ConfigError,
        "hardware gc200,bow: search=True is for one kind of IPU: give one, or leave out search=True",
    ),
    "a run that exists": (lambda: [train(tiny_config(), device="cpu") for _ in range(2)], UserError, "already holds"),
}


@pytest.mark.parametrize("name", list(MISTAKES))
def test_a_mistake_is_an_error_of_one_line(empty_folder, name):
    call, kind, text = MISTAKES[name]
    with pytest.raises(kind) as caught:
        call()
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "--" not in str(caught.value)


def test_a_plan_is_for_the_ipus_that_are_asked_for(run, empty_folder):
    config = write_config(empty_folder)
    for options in (["--hardware", "bow"], ["--hardware", "gc200,bow"], ["--search", "--pod", "4"]):
        shown = json.loads(run("plan", config, "--json", *options))
        given = {"hardware": options[1]} if options[0] == "--hardware" else {"search": True, "pod": 4}
        assert plan(config, **given) == shown
    assert plan(config, hardware="bow")["hardware"] == "bow"


def test_an_evaluation_has_the_figures_of_the_command_by_their_names(run, trained):
    found = evaluate(trained.path, device="cpu", quiet=True)
    shown = json.loads(run("evaluate", trained.path, "--device", "cpu", "--json"))
    names = ("top1", "top5", "loss", "num_images", "per_class", "confusion")
    assert {name: getattr(found, name) for name in names} == {name: shown[name] for name in names}
    assert sum(map(sum, found.confusion)) == found.num_images == 50


def test_an_image_that_cannot_be_read_is_named(trained):
    with pytest.raises(DataError, match="no image at nowhere.png"):
        predict(trained.path, "nowhere.png", device="cpu", quiet=True)


def test_no_images_are_refused(trained):
    with pytest.raises(DataError, match="^there are no images to preprocess: give one image file or several$"):
        load_model(trained.path, quiet=True).preprocess([])
    with pytest.raises(DataError, match="^there are no images to predict: give image files or folders of images$"):
        predict(trained.path, [], device="cpu", quiet=True)


def test_a_run_that_fails_leaves_a_report(empty_folder, monkeypatch):
    with pytest.raises(RunFailed, match="lower optim.learning_rate"):
        train(tiny_config(optim={"learning_rate": 1e6}), device="cpu", output="diverged", quiet=True)
    assert "<svg" in Path("diverged/report.html").read_text()

    def fail(*arguments, **options):
        raise RuntimeError("a cable was pulled")

    monkeypatch.setattr("vit_ipu.backends.native.backend.NativeBackend.train_step", fail)
    with pytest.raises(RuntimeError, match="a cable was pulled"):
        train(tiny_config(), device="cpu", output="failed", quiet=True)
    assert Path("failed/report.html").is_file()


def test_notes_name_arguments(trained, capsys):
    train(trained.path, resume=True, device="cpu", overrides=["optim.seed=1"][:0])
    assert "--" not in capsys.readouterr().out
    train("tiny.yaml", device="cpu", output="new", overrides=["data.path=nowhere"])
    assert "note: data.path has no effect with source sample" in capsys.readouterr().out


def test_load_config_reads_what_the_commands_read():
    assert load_config("quickstart", ["run.seed=3"]).run.seed == 3
