"""Suggestions for keys, sections and files that a config misspells, or has from another program."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import tiny_values

from vit_ipu.config_file import load_config, parse_config
from vit_ipu.errors import ConfigError, suggest


@pytest.mark.parametrize(
    ("word", "expected"), [("optimiser", "; did you mean 'optim'?"), ("xyz", ": use one of model, optim")]
)
def test_a_suggestion_reads_the_known_names_once(word, expected):
    assert suggest(word, iter(["model", "optim"])) == expected


# Keys that other programs have, with the text that the message must contain.
FOREIGN = {
    "optim.lr": "did you mean 'optim.learning_rate'?",
    "optim.learning_rte": "did you mean 'learning_rate'?",
    "optim.LR": "did you mean 'optim.learning_rate'?",
    "optim.warmup_steps": "did you mean 'optim.warmup_updates'?",
    "optim.clip-grad": "did you mean 'optim.max_grad_norm'?",
    "optim.epochs": "did you mean 'run.epochs'?",
    "optim.llrd": "did you mean 'optim.layer_decay'?",
    "run.ema": "did you mean 'optim.ema_decay'?",
    "model.freeze": "did you mean 'optim.freeze'?",
    "model.frozen_stages": "did you mean 'optim.freeze'?",
    "optim.bce_loss": "did you mean 'optim.loss'?",
    "optim.criterion": "did you mean 'optim.loss'?",
    "optim.class_weight": "did you mean 'optim.class_weights'?",
    "optim.pos_weight": "each image has one class here; optim.class_weights or data.sampling makes up for rare ones",
    "optim.focal_loss": "data.sampling: balanced or optim.class_weights makes up for rare classes here",
    "optim.target_threshold": "did you mean 'optim.bce_target_threshold'?",
    "optim.bce_sum": "optim.loss: bce is the mean over samples and classes here",
    "data.sampler": "did you mean 'data.sampling'?",
    "data.weighted_random_sampler": "did you mean 'data.sampling'?",
    "run.batch_size": "did you mean 'pipeline.global_batch_size'?",
    "run.max_steps": "did you mean 'run.updates'?",
    "run.output_dir": "it is an option of the command: --output FOLDER",
    "run.patience": "did you mean 'run.early_stopping'?",
    "pipeline.gradient_accumulation_steps": "it follows from pipeline.global_batch_size / (micro_batch_size x",
    "model.img_size": "did you mean 'model.image_size'?",
    "model.pretrained": "did you mean 'model.init'?",
    "model.learning_rate": "did you mean 'optim.learning_rate'?",
    "data.val_split": "did you mean 'data.holdout'?",
    "data.workers": "did you mean 'data.num_workers'?",
    "data.shuffle": "training images are always shuffled",
    "precision.fp16": "did you mean 'precision.compute'?",
    "data.qqq": ": use one of source, path",
}


@pytest.mark.parametrize("key", list(FOREIGN))
def test_keys_of_other_programs_get_the_right_suggestion(key):
    section, _, name = key.partition(".")
    with pytest.raises(ConfigError) as caught:
        parse_config(tiny_values(**{section: {name: 1}}))
    assert str(caught.value).startswith(f"{key}: unknown key")
    assert FOREIGN[key] in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("lr", 0.1, "did you mean 'optim.learning_rate'?"),
        ("learning_rate", 0.1, "did you mean 'optim.learning_rate'?"),
        ("optimizer", {"lr": 1}, "did you mean 'optim'?"),
        ("optimizer", "adamw", "did you mean 'optim.optimizer'?"),
        ("training", {}, "did you mean 'run'?"),
        ("ema", True, "did you mean 'optim.ema_decay'?"),
        ("pipline", {}, "did you mean 'pipeline'?"),
        ("zzz", {}, "use one of model, data, pipeline"),
    ],
)
def test_sections_of_other_programs_get_the_right_suggestion(name, value, expected):
    with pytest.raises(ConfigError) as caught:
        parse_config({**tiny_values(), name: value})
    assert str(caught.value).startswith(f"{name}: unknown key")
    assert expected in str(caught.value)


def test_every_suggestion_is_a_key():
    from vit_ipu import config_mistakes

    assert set(config_mistakes._RENAMED) <= set(config_mistakes.all_keys())
    names = {key.partition(".")[2] for key in config_mistakes.all_keys()}
    assert not names & set(config_mistakes._WHY_ABSENT)
    assert not set(config_mistakes._BY_FOREIGN_NAME) & set(config_mistakes._WHY_ABSENT)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("quikstart", "did you mean quickstart?"),
        ("pipeline_configs/quickstrt.yaml", "did you mean quickstart?"),
        ("mmcls_vit_base_patch16_finetune_385", "did you mean mmcls_vit_base_patch16_finetune_384?"),
        ("mypetz.yaml", "did you mean mypets.yaml?"),
        ("zzzzzz.yaml", "`vit-ipu config` lists the shipped configs, and `vit-ipu init FOLDER` writes one"),
        ("photos", "`vit-ipu init photos` writes a config for images"),
    ],
)
def test_misspelt_names_of_configs_get_a_suggestion(empty_folder, name, expected):
    Path("mypets.yaml").write_text("")
    Path("photos").mkdir()
    with pytest.raises(ConfigError) as caught:
        load_config(name)
    assert str(caught.value).startswith(f"cannot read the config {name}: ")
    assert expected in str(caught.value)
