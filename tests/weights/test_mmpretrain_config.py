"""Settings that the config in a checkpoint of mmclassification or mmpretrain states: read, and never executed."""

from __future__ import annotations

import ast
import time

import pytest
import torch
from foreign import mmpretrain_state
from tiny_weights import quiet

from vit_ipu.config import ModelConfig
from vit_ipu.model import ViT
from vit_ipu.weights.describe import assumptions, describe
from vit_ipu.weights.export import convert
from vit_ipu.weights.mmpretrain_config import stated_in_meta
from vit_ipu.weights.native import PIXEL_SETTINGS
from vit_ipu.weights.read import read_weights

HALF, IMAGENET = (0.5, 0.5, 0.5), (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SHAPE = {"image_size": 224, "width": 64}

OLD = """img_norm_cfg = dict(
    mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5], to_rgb=True)
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='VisionTransformer',
        arch='b',
        img_size=224,
        init_cfg=dict(
            type='Pretrained',
            checkpoint=
            'https://localhost/vit-base-p16.pth',
            prefix='backbone')),
    neck=None,
    head=dict(type='VisionTransformerClsHead', num_classes=5))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', size=224, backend='pillow', interpolation='bicubic'),
    dict(
        type='Normalize',
        mean=[1.0, 2.0, 3.0],
        std=[4.0, 5.0, 6.0],
        to_rgb=True)
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', size=(999, -1))
]
data = dict(
    samples_per_gpu=17,
    train=dict(type='ImageNet', pipeline=[dict(type='LoadImageFromFile')]),
    test=dict(
        type='ImageNet',
        data_prefix='data/imagenet/val',
        pipeline=[
            dict(type='LoadImageFromFile'),
            RESIZE,
            dict(type='CenterCrop', crop_size=224),
            dict(
                type='Normalize',
                mean=[127.5, 127.5, 127.5],
                std=[127.5, 127.5, 127.5],
                to_rgb=True),
            dict(type='ImageToTensor', keys=['img']),
            dict(type='ToHalf', keys=['img']),
            dict(type='Collect', keys=['img'])
        ]))
optimizer = dict(
    type='SGD',
    lr=0.08,
    weight_decay=1e-05,
    paramwise_cfg=dict(
        custom_keys=dict({
            '.cls_token': dict(decay_mult=0.0),
            '.pos_embed': dict(decay_mult=0.0)
        })))
opencv_num_threads = 0
work_dir = './work_dirs/vit'
"""
"""Of mmclassification 0.x, as yapf lays it out; RESIZE is the step to fill in."""
SHORT_SIDE = "dict(type='Resize', size=(224, -1), backend='pillow')"

NEW = """auto_scale_lr = dict(base_batch_size=4096)
data_preprocessor = dict(
    mean=[
        123.675,
        116.28,
        103.53,
    ],
    num_classes=5,
    std=[
        58.395,
        57.12,
        57.375,
    ],
    to_rgb=True)
launcher = 'none'
model = dict(
    backbone=dict(
        arch='b', drop_rate=0.1, patch_size=16, type='VisionTransformer'),
    head=dict(num_classes=5, type='VisionTransformerClsHead'),
    type='ImageClassifier')
test_dataloader = dict(
    batch_size=64,
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        ann_file='meta/val.txt',
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(
                backend='pillow',
                edge='short',
                interpolation='bicubic',
                scale=256,
                type='ResizeEdge'),
            dict(crop_size=224, type='CenterCrop'),
            dict(type='PackInputs'),
        ],
        type='ImageNet'),
    sampler=dict(shuffle=False, type='DefaultSampler'))
test_pipeline = [
    dict(type='LoadImageFromFile'),
]
"""
"""Of mmpretrain 1.x."""


def old(resize=SHORT_SIDE, **changes):
    return changed(OLD.replace("RESIZE", resize), changes)


def changed(text, changes):
    for before, after in changes.items():
        assert text.count(before) >= 1
        text = text.replace(before, after)
    return text


def stated(text, key="config", **shape):
    return stated_in_meta({key: text}, {**SHAPE, **shape})


def pixels(mean, std, interpolation, crop, resize):
    return {
        "mean": mean,
        "std": std,
        "interpolation": interpolation,
        "eval_crop": crop,
        "eval_resize": resize,
    }


REFERENCE = pixels(HALF, HALF, "bilinear", "center", None)
"""mmclassification's fine-tuning on IPUs: vit-base-p16_ft-4xb544-ipu_in1k.py."""
USUAL = pixels(IMAGENET, IMAGENET_STD, "bicubic", "center", 256)


# ------------------------------------------------------------------------------------------ what is stated


def test_the_fine_tuning_on_ipus_states_its_pixels():
    assert stated(old()) == REFERENCE


def test_mmpretrain_states_its_pixels():
    assert stated(NEW, "cfg") == USUAL
    assert stated_in_meta({"cfg": NEW, "config": old()}, SHAPE) == USUAL


BOTH_SIDES = "dict(type='Resize', size=224, backend='pillow', interpolation='bicubic')"
CROP = "            dict(type='CenterCrop', crop_size=224),\n"


@pytest.mark.parametrize(
    ("resize", "interpolation", "crop", "side"),
    [
        ("dict(type='Resize', size=(256, -1), interpolation='bicubic')", "bicubic", "center", 256),
        ("dict(type='Resize', size=(256, -1), adaptive_side='short')", "bilinear", "center", 256),
        ("dict(type='Resize', size=[256, 256])", "bilinear", "squash", 256),
        ("dict(type='Resize', scale=256, keep_ratio=False)", "bilinear", "squash", 256),
        ("dict(type='Resize', scale=(224, 224))", "bilinear", "squash", None),
        ("dict(type='mmcls.ResizeEdge', scale=236)", "bilinear", "center", 236),
        (BOTH_SIDES, "bicubic", "squash", None),
    ],
)
def test_every_resize_to_a_square_or_of_the_short_side_is_read(resize, interpolation, crop, side):
    assert stated(old(resize)) == pixels(HALF, HALF, interpolation, crop, side)


def test_a_squash_needs_no_crop():
    assert stated(old(BOTH_SIDES, **{CROP: ""})) == pixels(HALF, HALF, "bicubic", "squash", None)


def test_names_of_the_text_and_the_pipeline_variable_are_read():
    start = OLD.index("pipeline=[\n            dict(type='Load") + len("pipeline=")
    pipeline = old()[start : old().index("]))\noptimizer") + 1]
    assert stated(f"steps = {pipeline}\ndata = dict(test=dict(pipeline=steps))\n") == REFERENCE
    assert stated(f"side = 224\ntest_pipeline = {pipeline.replace('(224, -1)', '(side, -1)')}\n") == REFERENCE


def test_the_preprocessor_in_the_model_is_the_stronger_one():
    inside = "model = dict(data_preprocessor=dict(mean=[0, 0, 0], std=[255, 255.0, 255], to_rgb=True),"
    found = stated(changed(NEW, {"model = dict(": inside}), "cfg")
    assert (found["mean"], found["std"]) == ((0, 0, 0), (1, 1, 1))


ARCH = "arch=dict(embed_dims=64, num_layers=1, num_heads=4, feedforward_channels=64)"


@pytest.mark.parametrize(
    ("backbone", "settings"),
    [
        (ARCH, {"num_heads": 4}),
        ("norm_cfg=dict(type='LN', eps=1e-12)", {"layer_norm_eps": 1e-12}),
        ("norm_cfg=dict(type='LN')", {"layer_norm_eps": 1e-5}),  # the default of build_norm_layer
        ("out_type='cls_token'", {"pooling": "token"}),
        ("output_cls_token=True", {"pooling": "token"}),
        ("out_type='avg_featmap'", {}),
        (ARCH.replace("num_heads=4", "num_heads=5"), {}),
        (ARCH.replace("num_heads=4", "num_heads=0"), {}),
        (ARCH.replace("num_heads=4", "num_heads=(4, 4)"), {}),
        (ARCH.replace("num_heads=4", "num_heads=True"), {}),
        ("norm_cfg=dict(type='LN', eps=-1.0)", {}),
        ("norm_cfg=dict(type='LN', eps=nan)", {}),
        ("norm_cfg=dict(type='BN', eps=0.1)", {}),
        (f"{ARCH}, layer_cfgs=dict(num_heads=2)", {}),
        (f"{ARCH}, layer_cfgs=unknown()", {}),
        ("act_cfg=dict(type='GELU')", {}),
    ],
)
def test_what_the_backbone_states_plainly_is_read(backbone, settings):
    text = changed(old(), {"arch='b'": backbone})
    assert {name: value for name, value in stated(text).items() if name not in PIXEL_SETTINGS} == settings
    other = changed(text, {"'VisionTransformer',": "'SwinTransformer',"})
    assert stated(other) == REFERENCE


# ---------------------------------------------------------------------------------- what is not stated

RESIZED = ("eval_crop", "eval_resize")


@pytest.mark.parametrize(
    "resize",
    [
        "dict(type='Resize', size=(200, -1))",  # smaller than the crop
        "dict(type='Resize', size=(10000, -1))",
        "dict(type='Resize', size=(256, -1), adaptive_side='long')",
        "dict(type='Resize', size=(256, 300))",
        "dict(type='Resize', size=(256, -2))",
        "dict(type='Resize', size=True)",
        "dict(type='Resize', size=256.0)",
        "dict(type='Resize', size='256')",
        "dict(type='Resize', scale=(256, -1), keep_ratio=True)",
        "dict(type='Resize', scale=256, keep_ratio=unknown)",
        "dict(type='Resize')",
        "dict(type='ResizeEdge', scale=256, edge='long')",
    ],
)
def test_a_resize_that_this_program_does_not_have_is_not_stated(resize):
    assert stated(old(resize)) == {name: REFERENCE[name] for name in ("mean", "std", "interpolation")}


@pytest.mark.parametrize("crop", ["crop_size=256", "crop_size=(224, 200)", "crop_size=224, efficientnet_style=True"])
def test_a_crop_to_another_size_than_the_models_is_not_stated(crop):
    found = stated(old(**{"crop_size=224": crop}))
    assert set(REFERENCE) - set(found) == set(RESIZED)
    assert set(REFERENCE) - set(stated(old(), image_size=384)) == set(RESIZED)


@pytest.mark.parametrize(
    "changes",
    [
        {CROP: ""},  # the short side alone
        {CROP: CROP + "            dict(type='Pad', size=(224, 224)),\n"},
        {CROP: CROP + CROP},
        {SHORT_SIDE: "dict(type='Lambda')"},
        {SHORT_SIDE + ",\n": ""},
    ],
)
def test_steps_that_this_program_does_not_have_leave_the_resize_unstated(changes):
    found = stated(old(**changes))
    assert (found["mean"], found["std"]) == (HALF, HALF)
    assert not set(RESIZED) & set(found)


@pytest.mark.parametrize("interpolation", ["'lanczos'", "'nearest'", "3", "unknown", "['bicubic']"])
def test_other_filters_are_not_stated(interpolation):
    found = stated(old(f"dict(type='Resize', size=(256, -1), interpolation={interpolation})"))
    assert found == {"mean": HALF, "std": HALF, "eval_crop": "center", "eval_resize": 256}


STD = "std=[127.5, 127.5, 127.5]"


@pytest.mark.parametrize(
    "changes",
    [
        {STD: f"std=[127.5, 127.5, {value}]"}
        for value in ("0", "-1", "nan", "inf", "1e999", "'1'", "True", "None", "1e-300", "float('nan')", "[1]")
    ]
    + [
        {STD: "std=[127.5, 127.5]"},
        {STD: "std=127.5"},
        {STD + ",\n": ""},
        {"to_rgb=True": "to_rgb=False"},
        {"to_rgb=True": "to_rgb=unknown"},
        {"dict(type='LoadImageFromFile')": "dict(type='LoadImageFromFile', color_type='grayscale')"},
        {"opencv_num_threads = 0": "data_preprocessor = dict(mean=[0, 0, 0], std=[1, 1, 1], to_rgb=True)"},
    ],
)
def test_a_normalisation_that_is_not_known_is_not_stated(changes):
    found = stated(old(**changes))
    assert found == {name: REFERENCE[name] for name in ("interpolation", *RESIZED)}


@pytest.mark.parametrize(
    "changes",
    [
        {"    to_rgb=True)\nlauncher": "    )\nlauncher"},
        {"data_preprocessor": "preprocessor"},
        {"std=[": "deviation=["},
    ],
)
def test_mmpretrains_preprocessor_has_blue_first_unless_it_says_otherwise(changes):
    assert stated(changed(NEW, changes), "cfg") == {name: USUAL[name] for name in ("interpolation", *RESIZED)}


@pytest.mark.parametrize(
    "meta",
    [None, [], "text", {}, {"config": None}, {"config": b"data = 1"}, {"cfg": 1}, {"cfg": ""}, {"config": "data = ("}],
)
def test_a_file_without_a_config_states_nothing(meta):
    assert stated_in_meta(meta, SHAPE) == {}


@pytest.mark.parametrize("text", ["data = 1", "data = dict(test=[])", "data = dict(test=dict(pipeline=dict(type=1)))"])
def test_a_pipeline_of_another_form_states_nothing(text):
    assert stated(text) == {}
    assert stated("test_pipeline = [1, 'Resize', dict(type=2), {}]") == {}


# --------------------------------------------------------------------------------------------- hostile texts

DEEP, MANY = 100_000, 80_000
HOSTILE = {
    "brackets": "x = " + "[" * DEEP + "]" * DEEP,
    "brackets within the limit of characters": "x = " + "[" * 90 + "]" * 90,
    "calls": "x = f" + "()" * MANY,
    "calls over lines": "x = f" + "()\n" * MANY,
    "subscripts": "x = a" + "[0]" * MANY,
    "attributes": "x = a" + ".a" * MANY,
    "a sum": "x = 1" + "+1" * MANY,
    "a difference": "x = 1" + "-1" * MANY,
    "a difference over lines": "x = [1" + "\n-1" * MANY + "]",
    "a difference of hexadecimal numbers": "x = 0xe" + "-0xe" * (MANY // 2),
    "signs": "x = " + "-" * MANY + "1",
    "signs in words": "x = " + "not " * MANY + "1",
    "conditions": "x = 1" + " if 1 else 1" * (MANY // 4),
    "functions": "x = " + "lambda:" * (MANY // 4) + "1",
    "powers": "x = 9**9**9**9",
    "an f-string": "x = f'{" + "(" * 5000 + ")" * 5000 + "}'",
    "a long string": "x = ''' ' ''' " + "(" * 5000 + " '",
    "a bytes string": "x = b'a'",
    "5 MB": "x = '" + "a" * 5_000_000 + "'",
    "5 MB of spaces": " " * 5_000_000,
    "a complex number": "x = 1j",
    "digits": "x = " + "9" * 200_000,
    "an open string": "x = '" + "\\a" * 100_000,
    "an open bracket": "x = [",
    "other brackets": "x = [)",
    "an import": "import os",
    "a call of a function": "__import__('os').system('touch executed')",
    "a comprehension": "x = [y for y in z]",
    "a statement that is not an assignment": "dict(a=1)",
    "two targets": "x = y = 1",
    "an unpacking": "(x, y) = (1, 2)",
    "an assignment to an item": "data['test'] = 1",
    "an annotation": "x: y = 1",
    "a walrus": "x = (y := 1)",
    "null": "x = '\x00'",
    "a surrogate": "x = '\udcff'",
    "a bad escape": r"x = '\N{no such name}'",
    "letters of other scripts": "\u2179 = 1",
    "a comment": "# coding: utf-7\nx = 1",
    "a continued line": "x = \\\n1",
    "an indented line": "  x = 1",
    "two operands": "x = 1 2",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_text_states_nothing(name):
    began = time.perf_counter()
    assert stated(old() + HOSTILE[name] + "\n") == {}
    assert stated(HOSTILE[name] + "\n" + old()) == {}
    assert time.perf_counter() - began < 10


PARSED = ("an import", "two targets", "an unpacking", "a statement that is not an assignment", "null", "a surrogate")
PARSED += ("an assignment to an item", "an annotation", "a bad escape", "an indented line", "two operands")


@pytest.mark.parametrize("name", sorted(set(HOSTILE) - set(PARSED)))
def test_most_hostile_texts_are_not_even_parsed(name, monkeypatch):
    texts = []
    monkeypatch.setattr(ast, "parse", texts.append)
    assert stated(HOSTILE[name]) == {}
    assert texts == []


@pytest.mark.parametrize(
    "value",
    [
        "__import__('executed')",
        "open('executed', 'w')",
        "dict([('a', open('executed', 'w'))])",
        "eval('open(1)')",
        "a[0]",
        "a[1:2]",
        "{1, 2}",
        "unknown",
        "{dict(): 1}",
    ],
)
def test_nothing_is_executed_and_other_settings_are_read(value, empty_folder):
    assert stated(old(**{"opencv_num_threads = 0": f"opencv_num_threads = {value}"})) == REFERENCE
    assert "mean" not in stated(old(**{"mean=[127.5, 127.5, 127.5]": f"mean=[127.5, 127.5, {value}]"}))
    assert list(empty_folder.iterdir()) == []


@pytest.mark.filterwarnings("error")
def test_a_path_of_windows_is_read_without_a_warning():
    assert stated(old(**{"'./work_dirs/vit'": r"'C:\data\vit'"})) == REFERENCE


def test_shared_values_cost_no_time():
    """Builds two trees of 2 ** 200 leaves each from names: comparing or hashing them would never end."""
    lines = ["a0 = (1, 1)\nb0 = (1, 1)"]
    lines += [f"{n}{i + 1} = ({n}{i}, {n}{i})" for i in range(200) for n in "ab"]
    names = "\n".join(lines)
    began = time.perf_counter()
    assert "eval_resize" not in stated(names + "\n" + old("dict(type='Resize', size=(a200, b200))"))
    assert "mean" not in stated(names + "\n" + old(**{STD: "std=(a200, b200, a200)"}))
    assert time.perf_counter() - began < 5


# ------------------------------------------------------------------------------------------------- files


def checkpoint(folder, version, **meta):
    """Writes a checkpoint of a ViT of one block for 224 px with a config; returns the file."""
    torch.manual_seed(0)
    shape = {"width": 64, "depth": 1, "num_heads": 4, "patch_size": 16, "image_size": 224, "mlp_ratio": 1.0}
    content = mmpretrain_state(ViT(ModelConfig(num_classes=5, **shape)).state_dict(), version, list("abcde"))
    content["meta"].update(meta)
    torch.save(content, str(folder / "w.pth"), _use_new_zipfile_serialization=version == "1.x")
    return folder / "w.pth"


def metadata_of(file):
    return read_weights(str(file), trust_pickle=True).metadata


def pixels_of(metadata):
    return {name: getattr(metadata, name) for name in PIXEL_SETTINGS}


@pytest.mark.parametrize(("version", "meta"), [("0.23", {"config": old()}), ("1.x", {"cfg": NEW})])
def test_a_checkpoint_states_what_its_config_states(tmp_path, version, meta):
    file = checkpoint(tmp_path, version, **meta)
    metadata = metadata_of(file)
    assert pixels_of(metadata) == (REFERENCE if version == "0.23" else USUAL)
    assert metadata.assumed == ("num_heads", "gelu", "layer_norm_eps", "pooling")
    assert metadata.classes == tuple("abcde")
    weights = read_weights(str(file), trust_pickle=True)
    (note,) = assumptions(weights, describe(weights, num_heads=4))
    assert "as mmpretrain has them by default: erf GELU, layer norm epsilon 1e-06, a head on the class token" in note
    assert "pixel" not in note


@pytest.mark.parametrize("text", [None, "x = " + "[" * DEEP, "import os", "x" * 5_000_000])
def test_a_checkpoint_with_a_hostile_config_has_the_defaults_of_the_library(tmp_path, text):
    metadata = metadata_of(checkpoint(tmp_path, "1.x", cfg=text))
    assert pixels_of(metadata) == USUAL
    assert set(PIXEL_SETTINGS) <= set(metadata.assumed)


def test_settings_of_the_config_are_stated_singly(tmp_path):
    file = checkpoint(tmp_path, "1.x", config=old(**{"crop_size=224": "crop_size=256", "arch='b'": ARCH}))
    metadata = metadata_of(file)
    assert pixels_of(metadata) == dict(REFERENCE, eval_resize=256)
    assert metadata.num_heads == 4
    assert metadata.assumed == ("gelu", "layer_norm_eps", "pooling", *RESIZED)


@pytest.mark.parametrize(
    ("to", "name"), [("native", "n"), ("timm", "t.safetensors"), ("mmpretrain", "m.pth"), ("huggingface", "h")]
)
def test_a_converted_file_keeps_what_the_config_states(tmp_path, to, name):
    file, target = checkpoint(tmp_path, "0.23", config=old()), tmp_path / "out" / name
    convert(str(file), target, to, trust_pickle=True, num_heads=4, notify=quiet)
    metadata = metadata_of(target)
    found = pixels_of(metadata)
    assert dict(found, eval_resize=found["eval_resize"] or 224) == dict(REFERENCE, eval_resize=224)
    assert not set(PIXEL_SETTINGS) & set(metadata.assumed)


def test_a_file_of_this_program_is_believed_before_a_config(tmp_path):
    """Adds another config to a file that `convert` wrote."""
    convert(
        str(checkpoint(tmp_path, "0.23", config=old())),
        tmp_path / "m.pth",
        "mmpretrain",
        trust_pickle=True,
        num_heads=4,
        notify=quiet,
    )
    content = torch.load(str(tmp_path / "m.pth"))
    content["meta"]["cfg"] = NEW
    torch.save(content, str(tmp_path / "m.pth"))
    assert pixels_of(metadata_of(tmp_path / "m.pth")) == REFERENCE
