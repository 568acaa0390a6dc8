"""Units of a ViT, by the names of its parameters and in `optim.freeze`."""

from __future__ import annotations

import pytest
from helpers import tiny_config, tiny_values

from vit_ipu.config_file import parse_config
from vit_ipu.errors import ConfigError
from vit_ipu.model import ViT
from vit_ipu.units import frozen_units, unit_of
from vit_ipu.unused_options import unused_options


def test_each_parameter_of_a_model_has_a_unit():
    model = ViT(tiny_config(model={"representation_size": 8}).model)
    units = {unit_of(name) for name, _ in model.named_parameters()}
    assert units == {"embed", "blocks.0", "blocks.1", "blocks.2", "blocks.3", "norm", "pre_logits", "head"}
    assert [unit_of(name) for name in ("cls_token", "pos_embed", "patch_embed.proj.bias")] == ["embed"] * 3
    assert unit_of("blocks.11.attn.qkv.weight") == "blocks.11"


@pytest.mark.parametrize(
    ("names", "units"),
    [
        ([], set()),
        (["embed"], {"embed"}),
        (["blocks"], {"blocks.0", "blocks.1", "blocks.2", "blocks.3"}),
        (["blocks.1-2", "norm"], {"blocks.1", "blocks.2", "norm"}),
        (["blocks.3", "blocks.3-3"], {"blocks.3"}),
    ],
)
def test_units_to_freeze(names, units):
    assert frozen_units(names, 4) == units


MISTAKES = {
    "head": "optim.freeze: 'head' cannot be frozen: the head is always trained; give embed, blocks, blocks.N",
    "encoder": "optim.freeze: 'encoder' cannot be frozen; give embed, blocks, blocks.N, blocks.FIRST-LAST, norm or",
    "blocks.4": "optim.freeze: 'blocks.4' names blocks that do not exist: the blocks are 0 to 3",
    "blocks.2-1": "'blocks.2-1' names no block: give the first block before the last, as in blocks.1-2",
    "blocks.1-": "optim.freeze: 'blocks.1-' cannot be frozen; give embed",
    "pre_logits": "optim.freeze: the model has no pre_logits: remove it, or set model.representation_size",
}


@pytest.mark.parametrize("name", list(MISTAKES))
def test_wrong_names_are_refused(name):
    with pytest.raises(ConfigError) as caught:
        parse_config(tiny_values(optim={"freeze": [name]}))
    assert MISTAKES[name] in str(caught.value)


def test_frozen_random_weights_are_noted():
    config = tiny_config(optim={"freeze": ["embed"]})
    assert "optim.freeze keeps random weights as they are, because model.init gives no others" in unused_options(config)
    initialised = tiny_config(model={"init": "a.safetensors"}, optim={"freeze": ["embed"]})
    assert not any("freeze" in note for note in unused_options(initialised))
