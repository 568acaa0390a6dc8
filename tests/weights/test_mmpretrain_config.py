"""Settings that the config in a checkpoint of mmclassification or mmpretrain states: read, and never executed."""

from __future__ import annotations

import pytest
from mmpretrain_texts import (
    ARCH,
    HALF,
    NEW,
    OLD,
    REFERENCE,
    RESIZED,
    SHAPE,
    SHORT_SIDE,
    STD,
    USUAL,
    changed,
    old,
    pixels,
    stated,
)

from vit_ipu.weights.mmpretrain_config import stated_in_meta
from vit_ipu.weights.native import PIXEL_SETTINGS

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
