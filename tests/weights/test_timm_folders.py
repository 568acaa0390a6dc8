"""Folders in timm's format: plain ViTs compute timm's logits here, and every other architecture is refused by name."""

from __future__ import annotations

import collections
import json
import math
import re
import shutil

import pytest
import timm
import torch
from foreign import native_model, randomise
from safetensors.torch import save_file
from timm.models._hub import save_config_for_hf
from tiny_weights import quiet

from vit_ipu.errors import CheckpointError
from vit_ipu.weights.export import convert
from vit_ipu.weights.native import load_description
from vit_ipu.weights.read import read_weights
from vit_ipu.weights.timm_models import PLAIN_VITS, default_pixels, plain_vit

MODULES = ("vision_transformer", "deit")


def save_folder(model, folder, arguments):
    """Writes a folder as timm's save_for_hf does."""
    folder.mkdir(exist_ok=True)
    save_file(model.state_dict(), str(folder / "model.safetensors"))
    save_config_for_hf(model, folder / "config.json", model_args=arguments)
    return folder


def small_folder(tmp_path, changes=None, architecture="vit_tiny_patch16_224", **arguments):
    """Writes the folder of a random timm model of depth 1 for 32 px, with changes of its config.json."""
    torch.manual_seed(0)
    arguments = dict({"img_size": 32, "depth": 1, "num_classes": 3}, **arguments)
    model = randomise(timm.create_model(architecture, **arguments).eval())
    folder = save_folder(model, tmp_path / "timm", {**arguments, "img_size": (32, 32)})
    config = json.loads((folder / "config.json").read_text())
    for key, value in (changes or {}).items():
        section, _, name = key.rpartition(".")
        (config[section] if section else config)[name] = value
    (folder / "config.json").write_text(json.dumps(config))
    return model, folder


def relative_error(expected, found):
    return float((expected - found).norm() / expected.norm())


def assert_same(theirs, folder, pixels):
    images = torch.randn(2, 3, pixels, pixels, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, found = theirs(images), native_model(str(folder))(images)
    assert expected.std() > 0.01
    assert relative_error(expected, found) <= 1e-5


# ---------------------------------------------------------------------------------- what is read


@pytest.mark.parametrize("name", PLAIN_VITS)
def test_the_table_of_plain_vits_is_timms(name):
    """Compares heads, shape, epsilon, GELU and pooling with the model that timm builds."""
    with torch.device("meta"):
        model = timm.create_model(name)
    block, shape = model.blocks[0], PLAIN_VITS[name]
    assert (model.embed_dim, len(model.blocks), block.attn.num_heads) == shape[:3]
    assert (block.mlp.fc1.out_features, model.patch_embed.patch_size[0]) == (int(shape[0] * shape[3]), shape[4])
    assert {norm.eps for norm in (block.norm1, block.norm2, model.norm)} == {1e-6}
    values = torch.linspace(-3, 3, 7)
    assert torch.equal(block.mlp.act(values), torch.nn.functional.gelu(values))
    assert (model.global_pool, model.num_prefix_tokens) == ("token", 1)


@pytest.mark.parametrize("name", PLAIN_VITS)
def test_the_default_pixels_of_plain_vits_are_timms(name):
    theirs, ours = timm.get_pretrained_cfg(name), default_pixels(name)
    assert ours == (theirs.mean, theirs.std, theirs.crop_pct, theirs.interpolation, theirs.input_size[1])
    assert (theirs.crop_mode, theirs.input_size[2]) == ("center", ours.side)
    assert default_pixels(f"{name}.{theirs.tag}") is None


def test_old_names_of_plain_vits_are_known():
    from timm.models._registry import _deprecated_models

    for old in ("vit_base_patch16_224_in21k", "vit_small_patch8_224_dino", "vit_base_patch32_224_sam"):
        assert plain_vit(old) == plain_vit(_deprecated_models[old]) is not None
    assert plain_vit("vit_base_patch16_224.augreg_in21k") == PLAIN_VITS["vit_base_patch16_224"]
    assert plain_vit("vit_base_patch32_224_clip_laion2b") is None


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_heads": 6},
        {"embed_dim": 64, "num_heads": 4, "mlp_ratio": 3.0, "patch_size": 8},
        {"act_layer": "gelu_tanh", "init_values": 0.1, "no_embed_class": True, "qkv_bias": False},
        {"drop_rate": 0.1, "proj_drop_rate": 0.1, "class_token": True, "global_pool": "token", "in_chans": 3},
    ],
)
def test_arguments_that_leave_a_vit_plain_are_applied(tmp_path, arguments):
    theirs, folder = small_folder(tmp_path, **arguments)
    convert(str(folder), tmp_path / "native", "native", notify=quiet)
    assert_same(theirs, tmp_path / "native", 32)
    assert load_description(tmp_path / "native").assumed == ()


def test_a_config_of_one_level_is_read(tmp_path):
    """Covers the first folders of timm on the Hub."""
    _, folder = small_folder(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    flat = dict(config["pretrained_cfg"], architecture="vit_tiny_patch16_224", mean=[0.1, 0.2, 0.3], num_classes=3)
    (folder / "config.json").write_text(json.dumps(dict(flat, model_args={"depth": 1}, input_size=[3, 32, 32])))
    assert read_weights(str(folder)).metadata.mean == (0.1, 0.2, 0.3)


def test_pixels_that_a_config_leaves_out_are_assumed(tmp_path):
    _, folder = small_folder(tmp_path, {"pretrained_cfg": {}})
    assert read_weights(str(folder)).metadata.assumed == ("mean", "std", "eval_crop", "eval_resize", "interpolation")


@pytest.mark.parametrize("crop_mode", [None, "center", "squash"])
def test_the_crop_of_timm_is_followed(tmp_path, crop_mode):
    _, folder = small_folder(tmp_path, {"pretrained_cfg.crop_mode": crop_mode, "pretrained_cfg.crop_pct": 0.8})
    metadata = read_weights(str(folder)).metadata
    assert (metadata.eval_crop, metadata.eval_resize, metadata.assumed) == (crop_mode or "center", 40, ())


# ------------------------------------------------------------------------ transformers' TimmWrapper


def wrapper_folder(folder, **settings):
    """Writes the folder of a random TimmWrapperForImageClassification; returns the model."""
    transformers = pytest.importorskip("transformers", minversion="4.48", reason="TimmWrapper is new in 4.48")
    torch.manual_seed(0)
    pixels = {"input_size": [3, 32, 32], "mean": [0.4] * 3, "std": [0.2] * 3, "crop_pct": 1.0}
    model_args = {"img_size": 32, "depth": 1, "num_heads": 6}
    stated = {"architecture": "vit_tiny_patch16_224", "model_args": model_args, "pretrained_cfg": pixels}
    config = transformers.TimmWrapperConfig(**stated, **settings)
    model = transformers.TimmWrapperForImageClassification(config)
    randomise(model.eval()).save_pretrained(str(folder))
    return model


@pytest.mark.parametrize("prefix", ["timm_model.", ""])
@pytest.mark.parametrize(
    ("settings", "problem_type"),
    [
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, "multi_label_classification"),
        ({"num_labels": 1}, "multi_label_classification"),  # a sigmoid, by transformers' pipeline
        ({"num_labels": 3}, "single_label_classification"),
    ],
)
def test_a_folder_of_transformers_timm_wrapper_is_read(tmp_path, prefix, settings, problem_type):
    """Covers transformers 5, and transformers 4, which wrote timm's own keys without timm_model."""
    model = wrapper_folder(tmp_path, **settings)
    state = {prefix + name: tensor for name, tensor in model.timm_model.state_dict().items()}
    save_file(state, str(tmp_path / "model.safetensors"))
    metadata = read_weights(str(tmp_path)).metadata
    assert (metadata.problem_type, metadata.num_heads, metadata.mean) == (problem_type, 6, (0.4,) * 3)
    assert_same(model.timm_model, tmp_path, 32)


def test_a_problem_type_of_a_timm_wrapper_that_is_not_known_is_refused(tmp_path):
    _, folder = small_folder(tmp_path, {"model_type": "timm_wrapper", "problem_type": "ranking"})
    with pytest.raises(CheckpointError, match="config.json: problem_type ranking is not one of"):
        read_weights(str(folder))


# ------------------------------------------------------------------------------- what is refused

REFUSED = [
    ({"architecture": "vit_small_patch16_rope_ape_224"}, "its architecture vit_small_patch16_rope_ape_224 is not one"),
    ({"architecture": "vit_tiny_patch16_reg_224"}, "its architecture vit_tiny_patch16_reg_224 is not one of timm's"),
    ({"architecture": "vit_base_patch16_gap_224"}, "its architecture vit_base_patch16_gap_224 is not one of timm's"),
    ({"architecture": None}, "its architecture None is not one of timm's plain ViTs"),
    ({"model_args.block_fn": "ResPostBlock"}, "its block_fn ResPostBlock is not known: only plain ViTs .* is null$"),
    ({"model_args.attn_layer": "diff"}, "its attn_layer diff is not known: .* whose attn_layer is null$"),
    ({"model_args.fc_norm": True}, "its fc_norm True is not known: .* whose fc_norm is null or false$"),
    ({"model_args.reg_tokens": 4}, "its reg_tokens 4 is not known: .* whose reg_tokens is 0 or null$"),
    ({"model_args.qk_norm": True}, "its qk_norm True is not known"),
    ({"model_args.rope": True}, r"its model_args rope \(of value True\) is not known: it may change what the model"),
    ({"pretrained_cfg.crop_mode": "border"}, "its crop_mode border is not known: only center is, .* and squash"),
    ({"pretrained_cfg.interpolation": "lanczos"}, "its interpolation lanczos is not one of bilinear, bicubic"),
    ({"pretrained_cfg.global_pool": "avg"}, "its global_pool is avg, not the class token"),
    ({"global_pool": "avg"}, "its global_pool is avg, not the class token"),
    ({"model_args.global_pool": "avg"}, "its global_pool is avg, not the class token"),
    ({"model_args.img_size": None, "pretrained_cfg.input_size": [3, 32, 64]}, "its images are 32 x 64 pixels"),
    ({"model_args.depth": 12}, "it describes a model of depth 12, but the tensors have 1: correct the file"),
    ({"model_args.embed_dim": 384}, "it describes a model of width 384, but the tensors have 192"),
    ({"model_args.img_size": 224}, "it describes a model of image_size 224, but the tensors have 32"),
    ({"model_args.mlp_ratio": 3}, "it describes a model of mlp_width 576, but the tensors have 768"),
    ({"model_args.num_classes": 1000}, "it describes a model of num_classes 1000, but the tensors have 3"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_what_is_not_a_plain_vit_is_refused_by_name(tmp_path, changes, message):
    _, folder = small_folder(tmp_path, changes)
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(folder))}/config.json: {message}"):
        convert(str(folder), tmp_path / "native", "native", notify=quiet)
    assert not (tmp_path / "native").exists()


# ------------------------------------------------------------------------------ all that timm has


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_vit_of_timm_is_converted_or_refused(tmp_path):
    """Converts every model, with every tag, of timm's vision_transformer.py and deit.py, with random weights.

    The models have two blocks, all of which are equal, and 10 classes. Prints the figure in docs/checkpoints.md.
    """
    kinds = [(module, tags) for module in MODULES for tags in (False, True)]
    names = sorted({name for module, tags in kinds for name in timm.list_models(module=module, pretrained=tags)})
    assert len(names) > 300
    outcomes = collections.Counter()
    for name in names:
        outcomes[outcome_of(name, tmp_path / "folder")] += 1
        shutil.rmtree(str(tmp_path / "folder"))
    converted = outcomes.pop("converted")
    print(f"timm {timm.__version__}: {len(names)} names, {converted} converted, {sum(outcomes.values())} refused:")
    for reason, count in outcomes.most_common():
        print(f"  {count:4} {reason}")
    assert converted >= len(PLAIN_VITS)


def outcome_of(name, folder):
    """Returns `converted`, or the reason of a refusal. Fails if the logits of a converted model are not timm's."""
    arguments = {"depth": 2, "num_classes": 10}
    with torch.device("meta"):
        model = timm.create_model(name, **arguments)
    folder.mkdir()
    write_config(model, folder, arguments)
    save_file({"cls_token": torch.zeros(1)}, str(folder / "model.safetensors"))  # a refusal comes before the tensors
    refusal = refusal_of(folder)
    if "config.json" in refusal:
        architecture, reason = name.partition(".")[0], difference_from_a_plain_vit(model)
        assert f"its architecture {architecture} is not one of timm's plain ViTs" in refusal
        assert reason is not None, f"{name} is a plain ViT, but was refused"
        return f"refused: {reason}"
    torch.manual_seed(0)
    model = randomise(timm.create_model(name, **arguments).eval())
    save_file(model.state_dict(), str(folder / "model.safetensors"))
    convert(str(folder), folder / "native", "native", notify=quiet)
    assert_same_description(model, load_description(folder / "native"), name)
    side = model.patch_embed.img_size[0]
    images = torch.randn(1, 3, side, side)
    with torch.no_grad():
        expected, found = model(images), native_model(str(folder / "native"))(images)
    assert expected.std() > 0.01, name
    assert relative_error(expected, found) <= 1e-5, name
    return "converted"


def refusal_of(folder):
    with pytest.raises(CheckpointError) as refusal:
        read_weights(str(folder))
    return str(refusal.value)


def difference_from_a_plain_vit(model):
    """Returns what timm's model computes that a plain ViT does not, or None; read from its modules, not its name."""
    block, tested = model.blocks[0], torch.linspace(-3, 3, 7)
    if type(block) is not timm.models.vision_transformer.Block:
        return f"blocks of {type(block).__name__}"
    if getattr(model, "head_dist", None) is not None:
        return "a second head and a distillation token"
    if model.global_pool != "token":
        return f"pooling {model.global_pool}"
    if model.num_prefix_tokens != 1:
        return "register tokens"
    if not isinstance(model.norm_pre, torch.nn.Identity):
        return "a norm before the blocks"
    if type(block.mlp).__name__ != "Mlp" or not torch.equal(block.mlp.act(tested), torch.nn.functional.gelu(tested)):
        return "an MLP without GELU"
    return "no norm after the blocks" if isinstance(model.norm, torch.nn.Identity) else None


def write_config(model, folder, arguments):
    """Writes timm's config.json, with names in the place of classes and functions, which timm cannot write itself."""
    own = getattr(model, "_model_args", {})
    texts = {key: str(value) for key, value in own.items() if not isinstance(value, (int, float, str, tuple, list))}
    save_config_for_hf(model, folder / "config.json", model_args={**texts, **arguments})


def assert_same_description(model, description, name):
    pixels, theirs = description.preprocessing, timm.data.resolve_model_data_config(model)
    assert description.assumed == (), name
    assert (pixels.mean, pixels.std, pixels.interpolation) == (theirs["mean"], theirs["std"], theirs["interpolation"])
    assert pixels.eval_crop == theirs["crop_mode"], name
    assert pixels.eval_resize == math.floor(description.model.image_size / theirs["crop_pct"]), name
