"""Checkpoints of mmengine, Lightning, transformers and DINO: read with all their classes, of which none is imported."""

from __future__ import annotations

import argparse
import collections
import json
import pathlib
import sys
import types

import numpy as np
import pytest
import torch
from foreign import assert_same_logits, huggingface_model, mmpretrain_state, native_model
from helpers import equal_states, vit_ipu
from tiny_weights import TINY, optimizer_of, tiny_state
from untrusted_files import Touch, saved

from vit_ipu.errors import CheckpointError
from vit_ipu.files import sha256_of
from vit_ipu.model import ViT
from vit_ipu.weights.choose import weight_file
from vit_ipu.weights.export import convert
from vit_ipu.weights.namings import NAMINGS
from vit_ipu.weights.read import read_weights
from vit_ipu.weights.translate import from_ours

pytestmark = pytest.mark.usefixtures("safe_torch")


def prefixed(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def make_module(monkeypatch, name, **classes):
    """Makes a module with classes that can be pickled; returns the names of the module and of its parents."""
    parts = name.split(".")
    names = [".".join(parts[: length + 1]) for length in range(len(parts))]
    for each in names:
        monkeypatch.setitem(sys.modules, each, types.ModuleType(each))
    for class_name, value in classes.items():
        value.__module__, value.__qualname__ = name, class_name
        setattr(sys.modules[name], class_name, value)
    return names


# ----------------------------------------------------------------------------- mmengine and Lightning


def test_an_epoch_of_mmengine_is_read(tmp_path, monkeypatch):
    """Checks the layout of mmengine's Runner.save_checkpoint: buffers of numpy arrays, deques, numpy scalars."""

    class HistoryBuffer:
        def __init__(self):
            self._log_history, self._count_history = np.arange(3.0), np.arange(3)
            self._statistics_methods = {"mean": np.mean}

    names = make_module(monkeypatch, "mmengine.logging.history_buffer", HistoryBuffer=HistoryBuffer)
    log = collections.OrderedDict(loss=HistoryBuffer())
    value = mmpretrain_state(tiny_state(), "1.x", ["a", "b", "c", "d", "e"])
    value["meta"].update(epoch=np.int64(3), iter=10, cfg="x = 1", seed=None, extra=HistoryBuffer())
    value["message_hub"] = {"log_scalars": log, "runtime_info": collections.deque([1]), "resumed_keys": {}}
    value["state_dict"] = dict(value["state_dict"], **{"data_preprocessor.mean": torch.zeros(3, 1, 1)})
    value["optimizer"] = optimizer_of(ViT(TINY)).state_dict()
    value["param_schedulers"] = [{"_get_lr_called_within_step": False, "last": np.float32(1)}]
    path = saved(tmp_path / "epoch_3.pth", value)
    for name in names:
        monkeypatch.delitem(sys.modules, name)
    weights = read_weights(str(path))
    assert equal_states(weights.tensors, tiny_state())
    assert weights.metadata.classes == ("a", "b", "c", "d", "e")
    assert "mmengine" not in sys.modules


PREFIXES = ["model.", "net.", "vit.", "backbone.", "model.vit.", "module.model.encoder.", "timm_model."]


@pytest.mark.parametrize("prefix", [*PREFIXES, "model._orig_mod.", "net.model."])
def test_a_checkpoint_of_lightning_is_read(tmp_path, monkeypatch, prefix):
    class AttributeDict(dict):
        pass

    class Monitor:
        best = torch.tensor(0.5)

    names = make_module(monkeypatch, "lightning_fabric.utilities.data", AttributeDict=AttributeDict)
    names += make_module(monkeypatch, "my_project.callbacks", Monitor=Monitor)
    value = {
        "epoch": 1,
        "global_step": 8,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": collections.OrderedDict(prefixed(prefix, tiny_state())),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 1}}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_path": pathlib.Path("a")}, Monitor: Monitor()},
        "optimizer_states": [optimizer_of(ViT(TINY)).state_dict()],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": AttributeDict(lr=0.1, loss=torch.nn.functional.cross_entropy, model=Monitor()),
    }
    path = saved(tmp_path / "last.ckpt", value)
    for name in names:
        monkeypatch.delitem(sys.modules, name)
    assert equal_states(read_weights(str(path)).tensors, tiny_state())
    assert weight_file(tmp_path) == path
    assert "my_project.callbacks" not in sys.modules


def test_a_hugging_face_model_in_a_lightning_module_is_read(tmp_path):
    _, folder = huggingface_model("tiny", 16, 32, tmp_path)
    saved(tmp_path / "x.ckpt", {"state_dict": prefixed("model.", torch_state(folder))})
    assert equal_states(read_weights(str(tmp_path / "x.ckpt")).tensors, read_weights(str(folder)).tensors)


@pytest.mark.parametrize("naming", ["huggingface", "torchvision", "mmpretrain", "graphcore"])
@pytest.mark.parametrize("prefix", ["model.", "vit.", "my.backbone."])
def test_the_attribute_that_holds_any_librarys_model_is_stripped(tmp_path, naming, prefix):
    theirs = from_ours(tiny_state(), NAMINGS[naming], num_heads=2)
    weights = read_weights(str(saved(tmp_path / "x.ckpt", {"state_dict": prefixed(prefix, theirs)})))
    assert weights.origin == naming
    assert equal_states(weights.tensors, tiny_state())


@pytest.mark.parametrize(
    ("others", "shown"),
    [
        ({"criterion.weight": torch.ones(4)}, "1 other key of unknown use: criterion.weight"),
        (
            {"classifier.weight": torch.ones(5, 32), "classifier.bias": torch.ones(5)},
            "2 other keys of .*classifier.bias",
        ),
        (prefixed("teacher.", tiny_state()), "56 other keys of unknown use: teacher.cls_token, .*, \\.\\.\\."),
    ],
)
def test_keys_beside_a_lightning_modules_vit_are_named(tmp_path, others, shown):
    """Refuses rather than drops them: one could be the head, or averaged weights."""
    path = saved(tmp_path / "x.ckpt", {"state_dict": dict(prefixed("model.vit.", tiny_state()), **others)})
    message = f"x.ckpt: beside a ViT in timm's naming under model.vit it holds {shown}: save the state dict of the ViT"
    with pytest.raises(CheckpointError, match=message):
        read_weights(str(path))


def test_keys_of_another_model_are_named_in_full(tmp_path):
    path = saved(tmp_path / "x.ckpt", {"state_dict": prefixed("model.", {**tiny_state(), "rope.freqs": torch.ones(3)})})
    with pytest.raises(CheckpointError, match="not a plain ViT: 1 of its keys are unknown .* timm: rope.freqs"):
        read_weights(str(path))


def torch_state(folder):
    from safetensors.torch import load_file

    return load_file(str(folder / "model.safetensors"))


# -------------------------------------------------------------------------------------- shards of .bin


def write_bin_shards(folder, state):
    """Writes what transformers' save_pretrained(max_shard_size=..., safe_serialization=False) wrote."""
    names = [f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)]
    shards = {name: {} for name in names}
    for number, (key, tensor) in enumerate(state.items()):
        shards[names[number % 2]][key] = tensor
    for name, part in shards.items():
        saved(folder / name, part)
    weight_map = {key: name for name, part in shards.items() for key in part}
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


def test_shards_of_pickles_are_put_together(tmp_path, monkeypatch):
    model, folder = huggingface_model("tiny", 16, 32, tmp_path)
    index = write_bin_shards(folder, torch_state(folder))
    (folder / "model.safetensors").rename(folder / "other")
    saved(folder / "training_args.bin", argparse.Namespace(lr=1))
    assert_same_logits(model, native_model(str(folder)), 32)
    assert native_model(str(index)) is not None
    monkeypatch.setattr(torch, "__version__", "2.0.1")
    assert read_weights(str(folder), trust_pickle=True).origin == "huggingface"
    with pytest.raises(CheckpointError, match="00001-of-00002.bin: torch 2.0.1 may be made to run code"):
        read_weights(str(folder))
    digest = sha256_of(index)  # pins the index, not the shards
    with pytest.raises(CheckpointError, match="00001-of-00002.bin: torch 2.0.1 may be made to run code"):
        read_weights(str(index), sha256=digest)


@pytest.mark.parametrize("name", ["a.safetensors", "../a.bin", "a.pth"])
def test_an_index_of_pickles_names_pickles_beside_it(tmp_path, name):
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match="its shard '.*' is not a .bin file beside it"):
        read_weights(str(tmp_path))


# ------------------------------------------------------------------------------------------------ DINO


def dino(path):
    """Writes the layout of facebookresearch/dino's main_dino.py."""
    head = {"head.mlp.0.weight": torch.ones(8, 32), "head.last_layer.weight_g": torch.ones(9, 1)}
    networks = [{n: t for n, t in tiny_state(seed).items() if not n.startswith("head.")} for seed in (0, 1)]
    student, teacher = (dict(prefixed("backbone.", network), **head) for network in networks)
    args = argparse.Namespace(arch="vit_small", patch_size=16)
    value = {"student": prefixed("module.", student), "teacher": teacher, "args": args, "epoch": 3}
    saved(path, dict(value, dino_loss={"center": torch.zeros(1, 9)}, optimizer={"state": {}, "param_groups": []}))
    return networks


def test_a_network_of_dino_is_chosen_by_its_key(tmp_path, monkeypatch, capsys):
    path = tmp_path / "checkpoint.pth"
    student, teacher = dino(path)
    message = (
        "two networks of self-distillation .DINO. under student, teacher: name one, for example checkpoint.pth#teacher"
    )
    with pytest.raises(CheckpointError, match=message):
        read_weights(str(path))
    assert equal_states(read_weights(f"{path}#student").tensors, student)
    weights = read_weights(f"{path}#teacher")
    assert equal_states(weights.tensors, teacher)
    assert (weights.num_classes, weights.source, weights.path) == (0, f"{path}#teacher", path)
    command = ["convert", f"{path}#teacher", str(tmp_path / "f.safetensors"), "--to", "timm", "--features"]
    assert vit_ipu(monkeypatch, capsys, *command, "--num-heads", "2")[0] == 0
    assert equal_states(read_weights(str(tmp_path / "f.safetensors")).tensors, teacher)


def test_networks_of_ibot_are_read(tmp_path):
    """Covers bytedance/ibot's main_ibot.py with separate heads: models/head.py, models/vision_transformer.py."""
    state = {name: tensor for name, tensor in tiny_state().items() if not name.startswith("head.")}
    names = ["mlp.0.weight", "last_norm.weight", "mlp2.weight", "last_norm2.weight"]
    names += [f"{layer}.weight_{part}" for layer in ("last_layer", "last_layer2") for part in "gv"]
    head = {f"head.{name}": torch.ones(3) for name in names}
    teacher = dict(prefixed("backbone.", state), **head)
    student = prefixed("module.", dict(teacher, **{"backbone.masked_embed": torch.zeros(1, 32)}))
    path = saved(tmp_path / "checkpoint.pth", {"student": student, "teacher": teacher, "epoch": 3})
    for part in ("student", "teacher"):
        assert equal_states(read_weights(f"{path}#{part}").tensors, state)
    published = saved(tmp_path / "checkpoint_teacher.pth", {"state_dict": dict(state, masked_embed=torch.zeros(1, 32))})
    assert equal_states(read_weights(str(published)).tensors, state)


def test_a_key_that_is_not_there_is_refused(tmp_path):
    dino(tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="it has no weights under tutor: it has dino_loss, student, teacher"):
        read_weights(f"{tmp_path}/a.pth#tutor")
    saved(tmp_path / "b.pth", tiny_state())
    with pytest.raises(CheckpointError, match="it has no weights under x: it has no parts with weights"):
        read_weights(f"{tmp_path}/b.pth#x")
    convert(str(tmp_path / "b.pth"), tmp_path / "c", "native", num_heads=2, notify=print)
    with pytest.raises(CheckpointError, match="c#x: a checkpoint of this program has no parts: leave out #x"):
        read_weights(f"{tmp_path}/c#x")
    with pytest.raises(CheckpointError, match="it has no parts such as x: only a pickle, such as .pth"):
        read_weights(f"{tmp_path}/c/model.safetensors#x")
    with pytest.raises(CheckpointError, match="no checkpoint at .*/missing.pth: there is no such file"):
        read_weights(f"{tmp_path}/missing.pth#x")


def test_a_key_chooses_the_weights_that_are_not_averaged(tmp_path):
    path = saved(tmp_path / "a#b.pth", {"state_dict": tiny_state(0), "state_dict_ema": tiny_state(1)})
    assert equal_states(read_weights(str(path)).tensors, tiny_state(1))  # the # is in the name of the file
    assert equal_states(read_weights(f"{path}#state_dict").tensors, tiny_state(0))


def test_other_parts_with_weights_are_named(tmp_path):
    path = saved(tmp_path / "a.pth", {"generator": tiny_state(0), "epoch": 1})
    with pytest.raises(
        CheckpointError, match="it holds weights under generator: name one, for example a.pth#generator"
    ):
        read_weights(str(path))


# --------------------------------------------------------------------------------------------- attacks


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("version", ["2.0.1", "2.10.0"])
def test_code_beside_the_weights_is_not_executed(tmp_path, monkeypatch, version, is_zip):
    marker = tmp_path / "executed"
    value = {
        "state_dict": tiny_state(),
        "args": argparse.Namespace(lr=Touch(marker), deep=[{"x": (Touch(marker),)}]),
        "callbacks": {Touch: [Touch(marker)]},
        "optimizer": collections.OrderedDict(state=Touch(marker)),
    }
    path = saved(tmp_path / "evil.pth", value, _use_new_zipfile_serialization=is_zip)
    monkeypatch.setattr(torch, "__version__", version)
    assert equal_states(read_weights(str(path), trust_pickle=True).tensors, tiny_state())
    assert not marker.exists()
    torch.load(str(path), weights_only=False)  # the bait works
    assert marker.exists()
