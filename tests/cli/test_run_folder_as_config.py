"""A run folder stands wherever a config may, and settings that nobody stated get no notes."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml
from helpers import tiny_values, vit_ipu

from vit_ipu import evaluate, load_config, plan, train
from vit_ipu.errors import UserError
from vit_ipu.run_config import stated_settings


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """Returns a folder with two runs of the tiny config, the second of which keeps its best checkpoint."""
    root = tmp_path_factory.mktemp("runs")
    (root / "tiny.yaml").write_text(yaml.safe_dump(tiny_values(optim={"eps": 1e-6})))
    train(root / "tiny.yaml", device="cpu", output=root / "run", quiet=True)
    overrides = ["run.evaluate_every=1", "run.keep_best=loss", "run.keep_checkpoints=1", "optim.learning_rate=2.0"]
    train(root / "tiny.yaml", device="cpu", output=root / "best", overrides=overrides, quiet=True)
    return root


@pytest.fixture
def command(material, tmp_path, monkeypatch, capsys):
    """Returns a function that runs a command beside the two runs."""
    shutil.copytree(str(material), str(tmp_path / "here"))
    monkeypatch.chdir(tmp_path / "here")
    return lambda *arguments: vit_ipu(monkeypatch, capsys, *arguments)


@pytest.mark.parametrize("name", ["run", "run/", "run/config.yaml"])
def test_only_settings_that_somebody_stated_get_notes(command, name):
    code, out, err = command("evaluate", name, "--checkpoint", "run", "--device", "cpu")
    assert (code, err) == (0, "")
    assert [line for line in out.splitlines() if "note" in line] == ["note: optim.eps has no effect with sgd"]
    assert load_config(name) == load_config("tiny.yaml")
    assert load_config(name, ["run.seed=9"]).run.seed == 9


def test_weights_that_are_evaluated_are_not_called_random(command):
    freeze = ["--set", "optim.freeze=[embed]"]
    code, out, _ = command("evaluate", "tiny.yaml", "--checkpoint", "run", "--device", "cpu", *freeze)
    assert code == 0
    assert "random weights" not in out
    assert "optim.freeze keeps random weights" in command("train", "tiny.yaml", "--device", "cpu", *freeze)[1]


@pytest.mark.parametrize(
    "arguments", [["config", "--json"], ["plan", "--json"], ["check"], ["benchmark", "--device", "cpu", "--steps", "1"]]
)
def test_a_command_takes_the_config_of_a_run(command, arguments):
    name, *options = arguments
    code, out, err = command(name, "run", *options)
    assert (code, err) == (0, "")
    if "--json" in options:
        assert out == command(name, "tiny.yaml", *options)[1]
    if name == "check":
        assert "PopTorch would accept run." in out


def test_evaluate_takes_the_last_checkpoint_of_a_run_or_the_best_that_it_keeps(command):
    code, out, _ = command("evaluate", "run", "--device", "cpu")
    assert code == 0
    assert "run/checkpoints/update-00000004" in out
    with open("best/best.json", encoding="utf-8") as file:
        best = json.load(file)
    assert best["update"] < 4, "the last update must not be the best, or this test shows nothing"
    told = json.loads(command("evaluate", "best", "--device", "cpu", "--json")[1])
    assert told["checkpoint"] == f"best/{best['checkpoint']}"
    assert told["loss"] == pytest.approx(best["loss"], rel=1e-5)
    last = "best/checkpoints/update-00000004"
    given = json.loads(command("evaluate", "best", "--checkpoint", last, "--device", "cpu", "--json")[1])
    assert given["checkpoint"] == last


def test_train_resumes_restarts_or_copies_a_run(command):
    code, out, _ = command("train", "run", "--resume", "--device", "cpu", "--set", "run.log_every=2")
    assert code == 0
    assert "run folder run\n" in out
    assert "resuming at update 4" in out
    code, out, _ = command("train", "run", "--device", "cpu", "--output", "copy")
    assert code == 0
    assert "run folder copy\n" in out
    code, out, _ = command("train", "run", "--device", "cpu", "--restart")
    assert code == 0
    assert "update 1 of 4" in out


def test_train_of_a_run_alone_says_what_to_do(command):
    code, out, err = command("train", "run", "--device", "cpu")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("vit-ipu: run is a run folder: --resume continues the run, --restart ")


def test_a_run_without_a_checkpoint_cannot_be_evaluated(command):
    shutil.rmtree("run/checkpoints")
    code, out, err = command("evaluate", "run", "--device", "cpu")
    assert (code, out) == (2, "")
    assert err == "vit-ipu: run has no checkpoint yet: continue the run with --resume\n"


def test_train_takes_the_file_of_a_run_as_it_takes_the_folder(command):
    code, out, err = command("train", "run/config.yaml", "--device", "cpu")
    assert (code, out) == (2, "")
    assert err.startswith("vit-ipu: run/config.yaml is the config of a run: --resume continues the run, --restart ")
    code, out, _ = command("train", "run/config.yaml", "--resume", "--device", "cpu")
    assert code == 0
    assert "run folder run\n" in out
    code, out, _ = command("train", "run/config.yaml", "--device", "cpu", "--output", "copy")
    assert code == 0
    assert "run folder copy\n" in out


def test_a_broken_config_of_a_run_is_named(command):
    with open("run/config.yaml", "w", encoding="utf-8") as file:
        file.write("model: [1]\n")
    code, out, err = command("plan", "run")
    assert (code, out) == (2, "")
    assert err.startswith("vit-ipu: run/config.yaml: model: ")


def test_python_functions_take_a_run(command):
    assert plan("run") == plan("tiny.yaml")
    found = evaluate("best", device="cpu", quiet=True)
    assert found.checkpoint.parent.parent.name == "best"
    assert train("run", resume=True, device="cpu", quiet=True).path.name == "run"
    with pytest.raises(UserError, match="run is a run folder"):
        train("run", device="cpu", quiet=True)
    with pytest.raises(UserError, match="checkpoint is missing"):
        evaluate("tiny.yaml", device="cpu", quiet=True)


FULL = {"global_batch_size": 64, "micro_batch_size": 8, "layers_per_ipu": None, "recompute_mid_layers": []}


@pytest.mark.parametrize(
    ("environment", "pipeline", "stated"),
    [
        ('{"device": "cpu"}', FULL, {}),
        ('{"device": "ipu-sim"}', FULL, {"global_batch_size": 64, "micro_batch_size": 8}),
        ("damaged", FULL, {"global_batch_size": 64, "micro_batch_size": 8}),
        ('{"device": "cpu"}', {**FULL, "micro_batch_size": 4}, {"global_batch_size": 64, "micro_batch_size": 4}),
        ('{"device": "cpu"}', {**FULL, "global_batch_size": 8}, {"global_batch_size": 8}),
        ('{"device": "cuda"}', {**FULL, "native_micro_batch_size": 2}, {"native_micro_batch_size": 2}),
        (
            '{"device": "ipu"}',
            {**FULL, "global_batch_size": 32},
            {"global_batch_size": 32, "micro_batch_size": 8},
        ),
        ('{"device": "cpu"}', None, None),
    ],
)
def test_batch_sizes_count_as_left_out_only_if_the_config_was_not_written_for_ipus(
    tmp_path, environment, pipeline, stated
):
    (tmp_path / "environment.json").write_text(environment)
    assert stated_settings({"pipeline": pipeline}, tmp_path) == {"pipeline": stated}


def test_a_shape_that_follows_from_the_variant_is_not_stated(tmp_path):
    shape = {"variant": "vit_test", "width": 32, "depth": 4, "num_heads": 4, "patch_size": 7}
    assert stated_settings({"model": shape}, tmp_path) == {"model": {"variant": "vit_test", "num_heads": 4}}
    assert stated_settings(["not", "a config"], tmp_path) == ["not", "a config"]
    assert stated_settings({"data": {"holdout": 0, "download": 0}}, tmp_path) == {"data": {"holdout": 0, "download": 0}}
