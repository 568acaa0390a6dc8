"""The weights that the package contains: `package:quickstart`, where the quickstart starts from."""

from __future__ import annotations

import pytest
import torch
from helpers import vit_ipu

from vit_ipu.backends.build import open_backend, resolve_device
from vit_ipu.config_file import load_config
from vit_ipu.errors import CheckpointError
from vit_ipu.weights.fetch import PRETRAINED, locate
from vit_ipu.weights.fit import load_initial_weights
from vit_ipu.weights.read import read_weights

FILE = PRETRAINED / "quickstart.safetensors"


def test_they_are_small_and_described():
    assert FILE.stat().st_size < 4 << 20
    page = (PRETRAINED / "README.md").read_text()
    assert "package:quickstart" in page
    assert "Licence" in page


def test_they_are_the_quickstarts_model_without_a_head():
    weights = read_weights("package:quickstart")
    assert weights.path == FILE
    assert not any(name.startswith("head") for name in weights.tensors)
    config = load_config("quickstart")
    assert config.model.init == "package:quickstart"
    with open_backend(config, resolve_device("cpu")) as backend:
        load_initial_weights(backend, config, notify=lambda line: None)
        loaded = backend.state_dict()["model"]
    assert set(loaded) - set(weights.tensors) == {"head.weight", "head.bias"}
    for name, tensor in weights.tensors.items():
        assert torch.equal(loaded[name], tensor), name
    assert not loaded["head.weight"].any()


def test_a_name_that_the_package_lacks_is_refused():
    with pytest.raises(CheckpointError, match=r"package:quickstat does not exist; did you mean 'package:quickstart'\?"):
        locate("package:quickstat")


@pytest.mark.parametrize("command", ["train quickstart --set model.init=package:x", "convert package:x y --to timm"])
def test_commands_refuse_it_in_one_line(monkeypatch, capsys, empty_folder, command):
    code, _, err = vit_ipu(monkeypatch, capsys, *command.split())
    assert (code, err.count("\n")) == (2, 1)
    assert "package:x does not exist" in err
    assert list(empty_folder.iterdir()) == []
