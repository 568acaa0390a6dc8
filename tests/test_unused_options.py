"""Options that have no effect with others are reported."""

from __future__ import annotations

import pytest
from helpers import tiny_config

from vit_ipu.unused_options import unused_options


def test_unused_options_are_reported():
    config = tiny_config(
        optim={"optimizer": "adamw", "momentum": 0.5, "schedule": "constant", "min_learning_rate": 0.0},
        data={"crop_scale": [0.1, 1.0], "path": "images", "eval_path": "others"},
    )
    assert unused_options(config) == [
        "optim.momentum has no effect with adamw",
        "optim.min_learning_rate has no effect with schedule constant",
        "data.path has no effect with source sample",
        "data.eval_path has no effect with source sample",
        "data.crop_scale has no effect with crop center",
    ]
    assert unused_options(tiny_config()) == []
    optim = {"bce_target_threshold": 0.2}
    assert unused_options(tiny_config(optim=optim)) == [
        "optim.bce_target_threshold has no effect with loss cross_entropy"
    ]
    assert unused_options(tiny_config(optim=dict(optim, loss="bce"))) == []
    for pipeline in ({"layers_per_ipu": [4]}, {"execution": "sharded"}):
        config = tiny_config(pipeline={"recompute_mid_layers": [1], **pipeline})
        assert unused_options(config) == [
            "pipeline.recompute_mid_layers has no effect with recompute auto, except in a pipeline of IPUs"
        ]
    assert unused_options(tiny_config(pipeline={"recompute_mid_layers": [1]})) == []


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (
            {"mixup_alpha": 0.2, "cutmix_share": 0.3},
            ["data.cutmix_share has no effect unless mixup_alpha and cutmix_alpha are both above 0"],
        ),
        (
            {"mixing_draw": "update", "mixing_probability": 0.5},
            [
                "data.mixing_draw has no effect without mixup_alpha or cutmix_alpha",
                "data.mixing_probability has no effect without mixup_alpha or cutmix_alpha",
            ],
        ),
        (
            {"cutmix_alpha": 1.0, "mixing_probability": 0.0},
            ["data.cutmix_alpha has no effect with mixing_probability 0"],
        ),
        ({"mixup_alpha": 0.2, "cutmix_alpha": 1.0, "cutmix_share": 0.3, "mixing_draw": "update"}, []),
    ],
)
def test_unused_options_of_mixing_are_reported(data, expected):
    assert unused_options(tiny_config(data=data)) == expected
