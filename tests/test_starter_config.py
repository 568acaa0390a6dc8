"""The text of a first config: valid on its device for every number of images and every shape."""

from __future__ import annotations

from pathlib import Path

import pytest

from vit_ipu.config import ModelConfig
from vit_ipu.config_file import load_config, parse_text
from vit_ipu.ipu_rules import require_runnable
from vit_ipu.starter_config import IPUS, Pictures, StartingWeights, config_text, layers_per_ipu
from vit_ipu.unused_options import unused_options
from vit_ipu.weights.native import Preprocessing

KINDS = ("cpu", "cuda", "ipu", "ipu-sim")
PLAIN = Preprocessing((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
BASE = StartingWeights("vit.safetensors", ModelConfig(variant="vit_base_patch16"), PLAIN)


def pictures(num_train: int = 900, **values) -> Pictures:
    return Pictures("pictures", 10, num_train, 300, **{"holdout": 0.1, **values})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weights", [None, BASE], ids=["fresh", "weights"])
@pytest.mark.parametrize("num_train", [1, 2, 79, 80, 900, 50_000, 1_281_167])
def test_it_runs_on_its_device_for_any_number_of_images(kind, weights, num_train):
    config = parse_text(config_text(pictures(num_train), weights, kind))
    require_runnable(config, kind)
    assert unused_options(config) == []
    updates = config.total_updates(num_train)
    assert config.optim.warmup_updates <= updates
    assert config.run.evaluate_every >= 1
    if kind in IPUS:
        assert config.pipeline.layers_per_ipu == (3, 3, 3, 3)


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5, 6, 7, 12, 24, 32, 40])
def test_blocks_are_spread_over_a_power_of_two_of_ipus(depth):
    layers = layers_per_ipu(depth)
    assert sum(layers) == depth
    assert len(layers) in (1, 2, 4)
    assert max(layers) - min(layers) <= 1
    weights = StartingWeights("w", ModelConfig(width=64, depth=depth, num_heads=2, patch_size=16), PLAIN)
    require_runnable(parse_text(config_text(pictures(), weights, "ipu")), "ipu")


def test_the_weights_decide_shape_and_pixels():
    model = ModelConfig(
        width=192,
        depth=12,
        num_heads=3,
        patch_size=16,
        mlp_ratio=3.0,
        image_size=384,
        gelu="tanh",
        layer_norm_eps=1e-12,
    )
    pixels = Preprocessing((0.4, 0.5, 0.6), (0.2, 0.3, 0.4), 400, "bicubic", "squash")
    weights = StartingWeights("odd: name.safetensors", model, pixels, "a" * 64)
    config = parse_text(config_text(pictures(), weights, "cuda"))
    assert config.model.variant == "vit_tiny_patch16"
    kept = ("width", "depth", "num_heads", "patch_size", "mlp_ratio", "image_size", "gelu", "layer_norm_eps")
    assert {key: getattr(config.model, key) for key in kept} == {key: getattr(model, key) for key in kept}
    assert (config.model.init, config.model.init_sha256) == ("odd: name.safetensors", "a" * 64)
    data = config.data
    assert (data.mean, data.std, data.eval_resize) == (pixels.mean, pixels.std, 400)
    assert (data.interpolation, data.eval_crop) == ("bicubic", "squash")
    on_ipus = parse_text(config_text(pictures(), weights, "ipu")).model
    assert (on_ipus.gelu, on_ipus.layer_norm_eps) == ("tanh", 1e-6)


@pytest.mark.parametrize(
    ("short_side", "image_size", "patch_size"), [(500, 224, 16), (96, 96, 8), (64, 64, 8), (28, 32, 4)]
)
def test_a_fresh_model_fits_the_size_of_the_images(short_side, image_size, patch_size):
    text = config_text(Pictures("p", 10, 900, short_side), None, "cpu")
    model = parse_text(text).model
    assert (model.image_size, model.patch_size, model.width) == (image_size, patch_size, 192)


def test_one_device_needs_no_pipeline_and_unreadable_images_are_left_out():
    text = config_text(pictures(num_unreadable=3), None, "cpu")
    assert "pipeline:" not in text
    assert parse_text(text).data.on_error == "skip"
    divided = parse_text(config_text(pictures(holdout=None), None, "cpu"))
    assert (divided.data.holdout, divided.data.on_error) == (None, "raise")


@pytest.mark.parametrize(
    "path", ["plain", "with space", "#hash", "a: b", "[x]", "true", "1e5", "null", "é", "'q' \"d\"", "a #b"]
)
def test_any_path_is_read_back(tmp_path, path):
    file = tmp_path / "c.yaml"
    file.write_text(config_text(Pictures(path, 10, 900, 300), None, "cpu"), encoding="utf-8")
    assert load_config(Path(file)).data.path == path


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_short_and_fits_into_eighty_columns(kind):
    lines = config_text(pictures(), BASE, kind).splitlines()
    assert len(lines) <= 50
    assert max(map(len, lines)) <= 100
