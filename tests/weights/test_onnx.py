"""ONNX files: the model's logits in ONNX Runtime, documented inputs, outputs and metadata, and no half-written file."""

from __future__ import annotations

import copy
import inspect
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from vit_ipu.config import ModelConfig
from vit_ipu.errors import RunFailed, UserError
from vit_ipu.model import ViT
from vit_ipu.weights import onnx as onnx_file
from vit_ipu.weights.onnx import MAX_BYTES, OPSET, write_onnx

METADATA = {"classes": '["Kleid", "Schuh ₂"]', "image_size": "28"}


def model_config(**changes):
    return ModelConfig(**{"variant": "vit_test", "image_size": 28, "num_classes": 5, **changes})


def random_state(model):
    """Returns weights that all affect logits of size one; in a fresh model, biases are zero and layers barely act."""
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in ViT(model).state_dict().items()}
    scales = {name: (0.3 if len(shape) == 1 else shape[1:].numel() ** -0.5) for name, shape in shapes.items()}
    scales.update(cls_token=0.5, pos_embed=0.5)
    state = {name: scales[name] * torch.randn(shapes[name], generator=generator) for name in sorted(shapes)}
    return {name: tensor + float("norm" in name and "weight" in name) for name, tensor in state.items()}


def written(folder, model, state, metadata=METADATA):
    path = folder / "model.onnx"
    write_onnx(path, model, state, metadata=metadata)
    assert [p.name for p in folder.iterdir()] == ["model.onnx"]
    return path


def largest_difference(path, model, state, batch):
    """Returns the largest difference between ONNX Runtime's logits and our model's with the other attention kernel."""
    network = ViT(model, attention="fused").eval()
    network.load_state_dict(state)
    images = torch.randn(batch, 3, model.image_size, model.image_size, generator=torch.Generator().manual_seed(77))
    found = onnxruntime.InferenceSession(str(path)).run(["logits"], {"images": images.numpy()})[0]
    assert found.dtype == np.float32
    with torch.no_grad():
        expected = network(images)
    assert expected.abs().max() > 0.1  # far above the bounds
    return float((torch.from_numpy(found) - expected).abs().max())


MODELS = [{"gelu": "erf"}, {"gelu": "tanh"}, {"representation_size": 16}, {"image_size": 56, "num_classes": 1}]


@pytest.mark.parametrize("changes", MODELS, ids=str)
def test_logits_of_any_batch_equal_the_models(tmp_path, changes):
    model = model_config(**changes)
    state = random_state(model)
    path = written(tmp_path, model, state)
    for batch in (1, 2, 5):
        assert largest_difference(path, model, state, batch) < 1e-5


def test_the_file_computes_the_models_form_of_gelu(tmp_path):
    """Checks that the two forms differ by more than the error of either file."""
    state = random_state(model_config())
    tanh = written(tmp_path, model_config(gelu="tanh"), state)
    assert largest_difference(tanh, model_config(gelu="erf"), state, 2) > 1e-4
    assert largest_difference(tanh, model_config(gelu="tanh"), state, 2) < 1e-5


@pytest.mark.slow
def test_logits_of_vit_base_at_224_px_equal_the_models(tmp_path):
    model = ModelConfig(variant="vit_base_patch16")
    state = random_state(model)
    assert largest_difference(written(tmp_path, model, state), model, state, 2) < 1e-4


@pytest.mark.slow
@pytest.mark.skipif("dynamo" not in inspect.signature(torch.onnx.export).parameters, reason="torch has one exporter")
def test_the_newer_exporter_works_after_torch_drops_the_older_one(tmp_path, monkeypatch, capfd):
    export = torch.onnx.export

    def future_export(network, images, target, *, input_names, output_names, dynamic_axes, opset_version):
        names = {"input_names": input_names, "output_names": output_names, "dynamic_axes": dynamic_axes}
        export(network, images, target, opset_version=opset_version, **names)

    monkeypatch.setattr(torch.onnx, "export", future_export)
    model = model_config(gelu="tanh")
    state = random_state(model)
    path = written(tmp_path, model, state)
    assert largest_difference(path, model, state, 5) < 1e-5
    assert capfd.readouterr() == ("", "")


def test_inputs_outputs_opset_and_metadata_are_as_documented(tmp_path):
    model = model_config()
    path = written(tmp_path, model, random_state(model))
    graph = onnx.load(str(path))
    assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", OPSET)]
    assert {entry.key: entry.value for entry in graph.metadata_props} == METADATA
    session = onnxruntime.InferenceSession(str(path))
    (images,), (logits,) = session.get_inputs(), session.get_outputs()
    assert (images.name, images.type, images.shape) == ("images", "tensor(float)", ["batch", 3, 28, 28])
    assert (logits.name, logits.type, logits.shape) == ("logits", "tensor(float)", ["batch", 5])
    assert session.get_modelmeta().custom_metadata_map == METADATA


def test_dropout_is_not_exported_and_half_weights_are_written_in_float32(tmp_path):
    model = model_config(dropout=0.5, attention_dropout=0.5, drop_path=0.5)
    state = {name: tensor.bfloat16() for name, tensor in random_state(model).items()}
    path = written(tmp_path, model, state)
    assert largest_difference(path, model, {name: tensor.float() for name, tensor in state.items()}, 3) < 1e-5


def test_an_older_file_is_replaced(tmp_path):
    model = model_config()
    (tmp_path / "model.onnx").write_text("older")
    state = random_state(model)
    assert largest_difference(written(tmp_path, model, state), model, state, 1) < 1e-5


def test_an_export_prints_logs_and_warns_of_nothing(tmp_path, capfd, recwarn):
    model = model_config()
    written(tmp_path, model, random_state(model))
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    model = model_config()
    with pytest.raises(UserError, match=r"needs the extra onnx: pip install 'vit-ipu\[onnx\]'"):
        write_onnx(tmp_path / "model.onnx", model, random_state(model), metadata={})
    assert not list(tmp_path.iterdir())


def test_weights_beyond_the_limit_of_protobuf_are_refused_with_the_numbers(tmp_path):
    model = ModelConfig(variant="vit_huge_patch14")
    with torch.device("meta"):
        state = ViT(model).state_dict()
    with pytest.raises(UserError, match="the weights take 2.35 GiB in float32 and an ONNX file holds 2.00 GiB"):
        write_onnx(tmp_path / "model.onnx", model, state, metadata={})
    assert not list(tmp_path.iterdir())
    assert 4 * 305_000_000 < MAX_BYTES < 2**31  # a ViT-L fits


def test_a_file_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    """Simulates an exporter that loses a bias."""
    path, model = tmp_path / "model.onnx", model_config()
    path.write_text("older")
    state = random_state(model)
    export = onnx_file._export

    def lossy(network, *arguments):
        lost = copy.deepcopy(network)
        lost.blocks[3].mlp.fc2.bias.data.zero_()
        export(lost, *arguments)

    monkeypatch.setattr(onnx_file, "_export", lossy)
    with pytest.raises(RunFailed, match="model.onnx was not written: ONNX Runtime's logits of 1 random images differ"):
        write_onnx(path, model, state, metadata={})
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("model.onnx", "older")]


def test_weights_that_are_not_finite_are_not_written(tmp_path):
    model = model_config()
    state = random_state(model)
    state["head.bias"][0] = float("nan")
    with pytest.raises(RunFailed, match="differ from the model's by nan"):
        write_onnx(tmp_path / "model.onnx", model, state, metadata={})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("step", ["_export", "_add_metadata", "_check"])
def test_a_crash_at_any_step_leaves_the_older_file_and_nothing_else(tmp_path, monkeypatch, step):
    path, model = tmp_path / "model.onnx", model_config()
    path.write_text("older")
    original = getattr(onnx_file, step)

    def crash(*arguments):
        original(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(onnx_file, step, crash)
    with pytest.raises(KeyboardInterrupt):
        write_onnx(path, model, random_state(model), metadata={})
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("model.onnx", "older")]


def test_a_file_that_is_not_valid_is_not_written(tmp_path, monkeypatch):
    model = model_config()
    original = onnx_file._add_metadata

    def misspell(source, metadata, target):
        graph = onnx.load(str(source))
        graph.graph.node[0].op_type = "Reschape"
        onnx.save(graph, str(source))
        original(source, metadata, target)

    monkeypatch.setattr(onnx_file, "_add_metadata", misspell)
    with pytest.raises(RunFailed, match="model.onnx is not valid ONNX, and was not written: .*Reschape"):
        write_onnx(tmp_path / "model.onnx", model, random_state(model), metadata={})
    assert not list(tmp_path.iterdir())
