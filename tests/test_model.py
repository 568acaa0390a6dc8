"""The ViT: exact parameter counts, timm's weight names, and timm's logits."""

from __future__ import annotations

from typing import Tuple

import pytest
import torch
from helpers import tiny_config
from torch import nn

from vit_ipu.config import ModelConfig
from vit_ipu.model import DropPath, ExplicitAttention, ViT
from vit_ipu.model_cost import forward_flops, num_parameters, printed_flops, training_flops
from vit_ipu.optim import freeze as freeze_units
from vit_ipu.variants import VARIANTS

COUNTS = [
    ("vit_base_patch16", 384, 86_859_496),
    ("vit_base_patch32", 384, 88_297_192),
    ("vit_large_patch16", 384, 304_715_752),
    ("vit_base_patch16", 224, 86_567_656),
]


def meta_model(config: ModelConfig) -> ViT:
    with torch.device("meta"):
        return ViT(config)


@pytest.mark.parametrize(("variant", "size", "expected"), COUNTS)
def test_parameter_count_is_exact(variant, size, expected):
    config = ModelConfig(variant=variant, image_size=size)
    assert sum(p.numel() for p in meta_model(config).parameters()) == expected
    assert num_parameters(config) == expected


@pytest.mark.parametrize("variant", sorted(VARIANTS))
@pytest.mark.parametrize("representation_size", [None, 48])
def test_closed_form_counts_every_variant(variant, representation_size):
    patch = VARIANTS[variant]["patch_size"]
    config = ModelConfig(variant=variant, image_size=4 * patch, representation_size=representation_size)
    assert num_parameters(config) == sum(p.numel() for p in meta_model(config).parameters())


@pytest.mark.parametrize(
    ("variant", "printed"), [("vit_base_patch16", 33.03), ("vit_base_patch32", 8.56), ("vit_large_patch16", 116.68)]
)
def test_printed_flops_are_reproduced(variant, printed):
    assert round(printed_flops(ModelConfig(variant=variant, image_size=384)) / 1e9, 2) == printed


def test_flops_count_the_matrix_products(monkeypatch):
    """Compares with the products that modules report while one image passes."""
    counted = []
    attend = ExplicitAttention.attend

    def counting_attend(self, query, key, value):
        counted.append(2 * query.numel() * key.shape[-2])  # QK, and the product with V
        return attend(self, query, key, value)

    monkeypatch.setattr(ExplicitAttention, "attend", counting_attend)
    config = ModelConfig(variant="vit_test", image_size=28, num_classes=10, representation_size=16)
    model = ViT(config, attention="explicit")
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.register_forward_hook(lambda m, _, out: counted.append(out.numel() * m.weight[0].numel()))
    model(torch.zeros(1, 3, 28, 28))
    assert sum(counted) == forward_flops(config)


FREEZES = [
    (),
    ("embed",),
    ("embed", "blocks.0-1"),
    ("blocks.1", "norm"),
    ("embed", "blocks"),
    ("embed", "blocks", "norm"),
]


@pytest.mark.parametrize("freeze", [*FREEZES, (*FREEZES[-1], "pre_logits")], ids=str)
def test_flops_of_training_leave_out_what_frozen_weights_save(freeze):
    config = tiny_config(model={"representation_size": 16}, optim={"freeze": freeze})
    model = ViT(config.model, attention="explicit")
    freeze_units(model, config.optim)
    flop_counter = pytest.importorskip("torch.utils.flop_counter", reason="torch 2.1 or later")
    with flop_counter.FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 28, 28)).sum().backward()
    embed = config.model.num_patches * 3 * config.model.patch_size**2 * config.model.width
    of_pixels = 0 if "embed" in freeze else embed  # torch leaves them out
    assert counter.get_total_flops() == 2 * (training_flops(config.model, freeze) - of_pixels)
    if not freeze:
        assert training_flops(config.model) == 3 * forward_flops(config.model)


def timm_pair(name: str, variant: str, size: int) -> Tuple[nn.Module, ViT]:
    import timm

    torch.manual_seed(0)
    theirs = timm.create_model(name, pretrained=False, img_size=size, num_classes=10).eval()
    for parameter in theirs.parameters():  # biases and the class token start at or near zero
        nn.init.normal_(parameter, std=0.05)
    ours = ViT(ModelConfig(variant=variant, image_size=size, num_classes=10)).eval()
    ours.load_state_dict(theirs.state_dict())  # strict: every name and shape is timm's
    return theirs, ours


PAIRS = [
    ("vit_tiny_patch16_224", "vit_tiny_patch16", 64),
    ("vit_small_patch32_224", "vit_small_patch32", 96),
]


@pytest.mark.parametrize(("name", "variant", "size"), PAIRS)
def test_logits_equal_timms(name, variant, size):
    theirs, ours = timm_pair(name, variant, size)
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "variant", "size"),
    [
        ("vit_base_patch16_224", "vit_base_patch16", 224),
        ("vit_base_patch32_224", "vit_base_patch32", 384),
        ("vit_large_patch16_224", "vit_large_patch16", 384),
    ],
)
def test_logits_of_large_models_equal_timms(name, variant, size):
    theirs, ours = timm_pair(name, variant, size)
    images = torch.randn(1, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-4)


def tiny_model(**changes: object) -> ModelConfig:
    return ModelConfig(**{"variant": "vit_test", "image_size": 28, "num_classes": 5, **changes})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_explicit_and_fused_attention_agree_in_values_and_gradients(dtype):
    torch.manual_seed(0)
    explicit = ViT(tiny_model(), attention="explicit").to(dtype)
    fused = ViT(tiny_model(), attention="fused").to(dtype)
    nn.init.normal_(explicit.head.weight)
    fused.load_state_dict(explicit.state_dict())
    images = torch.randn(3, 3, 28, 28, dtype=dtype)
    outputs = [model(images) for model in (explicit, fused)]
    for output in outputs:
        output.square().sum().backward()
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(*outputs, **tolerance)
    for a, b in zip(explicit.parameters(), fused.parameters()):
        torch.testing.assert_close(a.grad, b.grad, **tolerance)


@pytest.mark.parametrize("attention", ["explicit", "fused"])
def test_attention_dropout_acts_in_training_only(attention):
    torch.manual_seed(0)
    model = ViT(tiny_model(attention_dropout=0.5), attention=attention)
    nn.init.normal_(model.head.weight)
    images = torch.randn(2, 3, 28, 28)
    assert not torch.equal(model.train()(images), model(images))
    assert torch.equal(model.eval()(images), model(images))


def test_gelu_forms_differ_by_less_than_their_known_bound():
    x = torch.linspace(-6, 6, 2001)
    torch.manual_seed(0)
    tanh, erf = (ViT(tiny_model(gelu=form)).blocks[0].mlp.act for form in ("tanh", "erf"))
    difference = (tanh(x) - erf(x)).abs().max()
    assert 4e-4 < difference < 5e-4  # 4.7e-4


def test_representation_layer_is_a_tanh_layer_under_timms_old_name():
    model = ViT(tiny_model(representation_size=16))
    assert model.pre_logits.fc.weight.shape == (16, 32)
    assert model.head.in_features == 16
    assert model.pre_logits(torch.full((1, 32), 1e4)).abs().max() <= 1
    assert {"pre_logits.fc.weight", "pre_logits.fc.bias"} <= set(model.state_dict())


def test_weights_are_initialised_as_in_the_papers():
    torch.manual_seed(0)
    model = ViT(ModelConfig(variant="vit_tiny_patch16"))
    for name in ("blocks.3.attn.qkv.weight", "blocks.5.mlp.fc1.weight", "pos_embed", "head.weight"):
        weight = dict(model.named_parameters())[name]
        assert abs(weight.std().item() - 0.02) < 1e-3
    assert abs(model.patch_embed.proj.weight.std().item() - (3 * 16 * 16) ** -0.5) < 2e-3
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or name == "cls_token":
            assert not parameter.any(), name
    assert all((norm.weight == 1).all() for norm in model.modules() if isinstance(norm, nn.LayerNorm))


def test_a_head_starts_as_the_config_says():
    heads = {}
    for kind in ("auto", "normal", "zero", "xavier"):
        torch.manual_seed(0)
        heads[kind] = ViT(tiny_model(head_init=kind, head_bias_init=-10.0 if kind == "xavier" else 0.0)).head
    assert torch.equal(heads["auto"].weight, heads["normal"].weight)
    assert heads["normal"].weight.abs().max() > 0
    assert not heads["zero"].weight.any()
    deviation = (2 / sum(heads["xavier"].weight.shape)) ** 0.5
    assert heads["xavier"].weight.std().item() == pytest.approx(deviation, rel=0.15)
    assert (heads["xavier"].bias == -10).all()
    assert not heads["normal"].bias.any()


@pytest.mark.parametrize("size", [14, 28, 70])
def test_any_image_size(size):
    assert ViT(tiny_model(image_size=size))(torch.zeros(1, 3, size, size)).shape == (1, 5)


def test_drop_path_keeps_the_mean_and_drops_whole_samples():
    torch.manual_seed(0)
    layer = DropPath(0.25).train()
    out = layer(torch.ones(20000, 1, 3))
    kept = out[:, 0, 0] > 0
    assert ((out == 0) | (out == 1 / 0.75)).all()
    assert (out == out[:, :, :1]).all()
    assert abs(kept.float().mean().item() - 0.75) < 0.02
    assert torch.equal(layer.eval()(out), out)


def test_drop_path_rises_linearly_over_the_blocks():
    rates = [block.drop_path1.rate for block in ViT(tiny_model(drop_path=0.3)).blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])
    assert ViT(tiny_model(depth=1, drop_path=0.3)).blocks[0].drop_path1.rate == 0
