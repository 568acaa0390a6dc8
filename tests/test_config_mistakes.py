"""Mistakes in configs: each is refused in one line with the numbers and the remedy, and blamed on its source."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from helpers import tiny_values

from vit_ipu.config_file import dump_config, load_config, parse_config
from vit_ipu.errors import ConfigError
from vit_ipu.ipu_rules import require_runnable

# Each mistake with the texts that its message must contain.
MISTAKES = [
    ({"model": {"variant": "vit_bse_patch16"}}, ["model", "vit_bse_patch16", "vit_base_patch16"]),
    ({"model": {"image_size": 30}}, ["image_size 30", "patch_size 7", "28 or 35"]),
    ({"model": {"num_heads": 5}}, ["width 32", "num_heads 5"]),
    ({"model": {"gelu": "relu"}}, ["model.gelu", "'erf' or 'tanh'", "relu"]),
    ({"model": {"dropout": 1.0}}, ["model.dropout", "less than 1", "1.0"]),
    ({"model": {"num_classes": 11}}, ["num_classes is 11", "sample", "10 classes", "model.num_classes: 10"]),
    ({"model": {"depth": 5}}, ["layers_per_ipu [1, 1, 1, 1]", "sums to 4", "model.depth is 5"]),
    ({"data": {"source": "image_net"}}, ["data.source", "imagefolder", "image_net"]),
    ({"data": {"crop_scale": [1.0, 0.5]}}, ["crop_scale", "1.0 to 0.5", "smaller first"]),
    ({"data": {"crop_scale": [0.5, 1.5]}}, ["crop_scale", "1.5", "at most 1"]),
    ({"data": {"std": [0.5, 0.0, 0.5]}}, ["std", "0.0", "above 0"]),
    ({"data": {"mean": [123.675, 0.5, 0.5]}}, ["mean", "123.675", "[0, 1]", "by 255"]),
    ({"data": {"std": [0.5, 0.5, 57.375]}}, ["std", "57.375", "[0, 1]", "by 255"]),
    ({"data": {"download": True}}, ["download", "sample", "remove"]),
    ({"data": {"eval_resize": 20}}, ["eval_resize 20", "image_size 28"]),
    (
        {"data": {"auto_augment": "imagenet", "rand_augment": [2, 9]}},
        ["auto_augment imagenet", "rand_augment [2, 9]", "remove one"],
    ),
    ({"data": {"auto_augment": "cifar10"}}, ["data.auto_augment", "imagenet", "cifar10"]),
    ({"data": {"rand_augment": [2, 31]}}, ["data.rand_augment", "30", "31"]),
    ({"data": {"rand_augment": [2]}}, ["data.rand_augment"]),
    ({"data": {"random_erasing": 1.5}}, ["data.random_erasing", "1.5"]),
    ({"data": {"mixup_alpha": -0.1}}, ["data.mixup_alpha", "-0.1"]),
    (
        {"data": {"mixup_alpha": 0.2}, "pipeline": {"micro_batch_size": 1}},
        ["micro_batch_size 1", "mixup_alpha 0.2", "cutmix_alpha 0.0", "2 or more"],
    ),
    ({"pipeline": {"global_batch_size": 30}}, ["global_batch_size 30", "micro_batch_size 4", "28 or 32"]),
    ({"pipeline": {"replication_factor": 3}}, ["global_batch_size 32", "replication_factor 3 = 12", "24 or 36"]),
    ({"pipeline": {"micro_batch_size": 0}}, ["pipeline.micro_batch_size", "greater than 0"]),
    ({"pipeline": {"micro_batch_size": "four"}}, ["pipeline.micro_batch_size", "four"]),
    ({"pipeline": {"layers_per_ipu": [2, 0, 1, 1]}}, ["[2, 0, 1, 1]", "IPU 1", "nothing to do"]),
    ({"pipeline": {"layers_per_ipu": [5, -1]}}, ["layers_per_ipu", "-1", "negative"]),
    ({"pipeline": {"native_micro_batch_size": 6}}, ["native_micro_batch_size 6", "micro_batch_size 4", "32"]),
    ({"pipeline": {"device_iterations": 3}}, ["run.updates 4", "device_iterations 3", "use 6"]),
    ({"precision": {"compute": "fp16"}}, ["precision.compute", "float16", "fp16"]),
    ({"precision": {"loss_scale": 0.0}}, ["precision.loss_scale", "greater than 0"]),
    ({"optim": {"optimizer": "adagrad"}}, ["optim.optimizer", "lamb", "adagrad"]),
    ({"optim": {"learning_rte": 1.0}}, ["optim.learning_rte", "unknown key", "learning_rate"]),
    ({"optim": {"min_learning_rate": 1.0}}, ["min_learning_rate 1.0", "learning_rate 0.05"]),
    ({"optim": {"betas": [0.9, 1.0]}}, ["betas", "1.0", "[0, 1): give two numbers such as [0.9, 0.999]"]),
    ({"optim": {"nesterov": True, "momentum": 0.0}}, ["nesterov", "momentum", "0.0"]),
    ({"optim": {"warmup_updates": 5}}, ["warmup_updates 5", "the 4 updates"]),
    ({"optim": {"loss": "mse"}}, ["optim.loss", "'cross_entropy' or 'bce'", "mse"]),
    ({"optim": {"bce_target_threshold": 1.0}}, ["optim.bce_target_threshold", "less than 1", "1.0"]),
    ({"optim": {"class_weights": "balance"}}, ["optim.class_weights: must be balanced, null, or a list", "'balance'"]),
    ({"optim": {"class_weights": 2.0}}, ["optim.class_weights: must be balanced, null, or a list", "it is 2.0"]),
    ({"optim": {"class_weights": [True] * 10}}, ["optim.class_weights: must be balanced", "[True, True"]),
    (
        {"optim": {"class_weights": [1.0, 0.0]}},
        ["optim.class_weights", "class 1 is 0:", "above 0", "remove its images"],
    ),
    ({"optim": {"class_weights": [float("inf")]}}, ["optim.class_weights", "class 0 is inf:", "up to 1e9"]),
    (
        {"optim": {"class_weights": [1, 2.5]}},
        ["class_weights has 2 numbers", "num_classes is 10", "one for each class"],
    ),
    (
        {"optim": {"class_weights": "balanced", "loss": "bce"}},
        ["optim.class_weights", "optim.loss is bce", "remove it", "data.sampling: balanced"],
    ),
    (
        {"optim": {"class_weights": "balanced"}, "data": {"sampling": "balanced"}},
        ["optim.class_weights balanced and data.sampling balanced", "remove one"],
    ),
    ({"data": {"sampling": "random"}}, ["data.sampling", "'shuffled' or 'balanced'", "random"]),
    ({"run": {"epochs": 1.0}}, ["updates is 4", "epochs is 1.0"]),
    ({"run": {"updates": None}}, ["updates is None", "epochs is None"]),
    ({"run": {"seed": True}}, ["run.seed", "True"]),
    ({"run": {"seed": 1 << 63}}, ["run.seed", "less than"]),
    ({"run": {"updates": None, "epochs": float("inf")}}, ["run.epochs", "finite"]),
    ({"model": {"mlp_ratio": float("inf")}}, ["model.mlp_ratio", "finite"]),
    ({"model": {"mlp_ratio": 1e20}}, ["model.mlp_ratio", "64"]),
    ({"model": {"layer_norm_eps": float("nan")}}, ["model.layer_norm_eps", "finite"]),
    ({"model": {"init": ""}}, ["model.init", "at least 1 character"]),
    ({"data": {"mean": [0.5, float("nan"), 0.5]}}, ["data.mean", "finite"]),
    ({"data": {"crop_ratio": [1.0, float("inf")]}}, ["data.crop_ratio", "finite"]),
    ({"optim": {"learning_rate": 1e308}}, ["optim.learning_rate", "1000000"]),
    ({"optim": {"weight_decay": float("inf")}}, ["optim.weight_decay", "finite"]),
]


@pytest.mark.parametrize(("change", "expected"), MISTAKES, ids=[str(change) for change, _ in MISTAKES])
def test_mistake_is_refused_with_numbers_and_remedy(change, expected):
    with pytest.raises(ConfigError) as caught:
        parse_config(tiny_values(**change))
    assert "\n" not in str(caught.value)
    for text in expected:
        assert text in str(caught.value)


FILES = [
    ("model: {variant: vit_test", ["line 1"]),
    ("model:\n  depth: 1\nmodel:\n  depth: 2\n", ["line 3", "model", "twice"]),
    ("- 1\n- 2\n", ["not a config", "model, data, pipeline"]),
    ("", ["not a config"]),
    ("models: {}\n", ["models", "unknown key", "'model'"]),
    ("!!python/object/apply:os.system ['true']\n", ["could not determine a constructor"]),
    ("? [a, b]\n: 1\n", ["line 1: key (a list) must be a string"]),
    ("? {a: b}\n: 1\n", ["line 1: key (a mapping) must be a string"]),
    ("? !!str [a, b]\n: 1\n", ["line 1: key (a list) must be a string"]),
    ("? !!int |\n  1\n  2\n: 3\n", ["line 1: key 1 2 must be a string"]),
    ("?\n: 1\n", ["line 1: key (empty) must be a string"]),
    ("model: !!int four\n", ["a value does not fit its type", "'four'"]),
    ("model: !!bool maybe\n", ["a value does not fit its type", "'maybe'"]),
    ("model: !!map four\n", ["a value does not fit its type"]),
    ("model: {3: 4}\n", ["line 1", "key 3 must be a string"]),
    ("[" * 3000, ["nested too deeply"]),
]


@pytest.mark.parametrize(("text", "expected"), FILES)
def test_broken_file_is_refused(tmp_path, text, expected):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert "\n" not in str(caught.value)
    for part in [str(path), *expected]:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.mkdir(), "directory"),
        (lambda path: path.write_bytes(b"\xff\xfe\x00"), "not a text file"),
    ],
)
def test_unreadable_file_is_refused(tmp_path, make, reason):
    path: Path = tmp_path / "nowhere.yaml"
    make(path)
    with pytest.raises(ConfigError, match=reason):
        load_config(path)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"optim": {}}, "these keys are missing: optim.optimizer, optim.learning_rate"),
        ({"optim": None, "run": None}, "these keys are missing: optim.optimizer, optim.learning_rate, run.epochs"),
        ({"model": {}, "data": {}}, "these keys are missing: model.variant, data.source"),
        ({"model": {"width": 32, "depth": 4}}, "these keys are missing: model.num_heads, model.patch_size"),
        ({"optim": {"optimizer": "sgd"}}, "optim.learning_rate: is missing"),
        (
            {"optim": {"lr": 0.1}, "data": {}},
            "optim.lr: unknown key; did you mean 'optim.learning_rate'?; data.source, optim.optimizer are missing",
        ),
    ],
)
def test_all_missing_keys_are_told_at_once(change, expected):
    values = {**tiny_values(), **change}
    values = {name: part for name, part in values.items() if part is not None}
    with pytest.raises(ConfigError) as caught:
        parse_config(values)
    assert str(caught.value).startswith(expected)


def test_pipeline_may_be_left_out_on_one_device_but_not_on_ipus():
    values = tiny_values(model={"gelu": "erf"})
    del values["pipeline"]
    config = parse_config(values)
    assert (config.pipeline.global_batch_size, config.pipeline.gradient_accumulation) == (64, 8)
    assert require_runnable(config, "cpu") == require_runnable(config, "cuda") == []
    for kind in ("ipu", "ipu-sim"):
        with pytest.raises(
            ConfigError, match=r"pipeline.global_batch_size and pipeline.micro_batch_size must be given"
        ):
            require_runnable(config, kind)
    half = parse_config({**values, "pipeline": {"global_batch_size": 32}})
    with pytest.raises(ConfigError, match=r"^pipeline.micro_batch_size must be given for IPUs"):
        require_runnable(half, "ipu")
    assert parse_config(yaml.safe_load(dump_config(config))).batch_sizes_left_out == ()


@pytest.mark.parametrize(("stated", "replaced"), [("updates", "epochs"), ("epochs", "updates")])
def test_an_override_of_the_length_replaces_the_other_way_to_state_it(stated, replaced):
    values = tiny_values(run={"updates": None, "epochs": None, replaced: 5})
    run = parse_config(values, [f"run.{stated}=7"]).run
    assert (getattr(run, stated), getattr(run, replaced)) == (7, None)
    for both in ([f"run.{stated}=7", f"run.{replaced}=5"], [f"run.{replaced}=null"]):
        with pytest.raises(ConfigError, match="give either updates or epochs"):
            parse_config(values, both)


BLAMED = {
    ("optim.lr=1",): "--set optim.lr=1: unknown key; did you mean 'optim.learning_rate'?",
    ("run.updates=many",): "--set run.updates=many: should be a valid integer, got 'many'",
    ("model.image_size=29",): "--set model.image_size=29: model: image_size 29 is not a multiple of patch_size 7",
    ("run.seed=1", "pipeline.global_batch_size=33"): "--set pipeline.global_batch_size=33: pipeline: global_batch_size",
    ("model.depth=2", "run.updates=3"): "--set model.depth=2: pipeline.layers_per_ipu [1, 1, 1, 1] sums to 4",
    ("lr=1",): "--set lr=1: expected section.key=value; did you mean 'optim.learning_rate'?",
    ("batch=1",): "--set batch=1: expected section.key=value; did you mean 'pipeline.global_batch_size'?",
    ("zzz=1",): "--set zzz=1: expected section.key=value",
    ("optimizer.lr=1",): "--set optimizer.lr=1: no section 'optimizer'; did you mean 'optim'?",
    ("run.updates=[",): "--set run.updates=[: line 1:",
    ("data.crop_scale=[1, 2",): "--set data.crop_scale=[1, 2: line 1:",
    ("optim.betas=[0.9]",): "--set optim.betas=[0.9]: should be a list of 2 values, got [0.9]",
    ("optim.betas=[]",): "--set optim.betas=[]: should be a list of 2 values, got []",
    ("data.mean=[0.5, 0.5]",): "--set data.mean=[0.5, 0.5]: should be a list of 3 values, got [0.5, 0.5]",
    ("data.rand_augment=[2, 9, 1]",): "--set data.rand_augment=[2, 9, 1]: should be a list of 2 values, got [2, 9, 1]",
    ("optim.freeze=embed",): "--set optim.freeze=embed: should be a list in brackets, got 'embed'",
    ("pipeline.popart_options=3",): "--set pipeline.popart_options=3: expected a mapping of keys, got 3",
    ("data.download=1",): "--set data.download=1: should be true or false, got 1",
}


@pytest.mark.parametrize(
    ("pipeline", "remedy"),
    [
        ({"global_batch_size": 100}, "use 96 or 104, or set micro_batch_size, which is 8 if it is left out, to 5"),
        ({"global_batch_size": 6}, "use 8, or set micro_batch_size, which is 8 if it is left out, to 6"),
        ({"global_batch_size": 20, "replication_factor": 2}, "use 16 or 32, or set micro_batch_size, which is 8 if it"),
        ({"global_batch_size": 9, "replication_factor": 2}, "use 16"),
        ({"global_batch_size": 100, "micro_batch_size": 8}, "use 96 or 104"),
    ],
    ids=str,
)
def test_a_global_batch_that_the_default_micro_batch_does_not_divide_has_a_remedy(pipeline, remedy):
    values = tiny_values()
    values["pipeline"] = pipeline
    with pytest.raises(ConfigError) as caught:
        parse_config(values)
    assert f": {remedy}" in str(caught.value)
    assert "set micro" in remedy or str(caught.value).endswith(remedy)


def test_a_list_that_is_too_short_is_named_beside_missing_keys():
    values = tiny_values(optim={"betas": [0.9]})
    del values["optim"]["learning_rate"]
    with pytest.raises(ConfigError) as caught:
        parse_config(values)
    assert str(caught.value) == "optim.betas: should be a list of 2 values, got [0.9]; optim.learning_rate is missing"


@pytest.mark.parametrize("overrides", list(BLAMED))
def test_a_mistake_in_an_override_is_blamed_on_it(tmp_path, overrides):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tiny_values()))
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    assert str(caught.value).startswith(BLAMED[overrides])
    assert str(path) not in str(caught.value)


def test_a_mistake_in_the_file_is_not_blamed_on_an_override(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tiny_values(optim={"lr": 1})))
    with pytest.raises(ConfigError) as caught:
        load_config(path, ["run.updates=3"])
    assert str(caught.value).startswith(f"{path}: optim.lr: unknown key")


def test_several_mistakes_are_told_at_once_and_many_are_counted():
    values = tiny_values(optim={"learning_rate": -1, "weight_decay": -1}, model={"dropout": 2})
    with pytest.raises(ConfigError) as caught:
        parse_config(values)
    first, *further = str(caught.value).split("; also ")
    assert first == "model.dropout: should be less than 1, got 2"
    assert [text.partition(":")[0] for text in further] == ["optim.learning_rate", "optim.weight_decay"]
    with pytest.raises(ConfigError, match=r"^model.dropout: .*; also optim.weight_decay: .*, got -1 \(and 1 more\)$"):
        parse_config(values, ["run.seed=x"])
    with pytest.raises(ConfigError, match=r"^--set model.dropout=2: .*, got 2; also run.seed: .*, got 'x'$"):
        parse_config(tiny_values(), ["run.seed=x", "model.dropout=2"])


def test_two_overrides_that_do_not_fit_together_are_both_blamed(tmp_path):
    overrides = ["optim.learning_rate=0.1", "optim.min_learning_rate=0.2"]
    with pytest.raises(ConfigError, match=r"^--set optim.min_learning_rate=0.2: optim: min_learning_rate 0.2 is above"):
        parse_config(tiny_values(optim={"learning_rate": 0.3}), overrides[::-1])
    both = ["pipeline.global_batch_size=33", "pipeline.micro_batch_size=5"]
    with pytest.raises(ConfigError, match=r"^--set pipeline.global_batch_size=33 --set pipeline.micro_batch_size=5: "):
        parse_config(tiny_values(), both)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optim.learning_rate", "section.key=value"),
        ("learning_rate=1", "section.key=value"),
        ("optm.learning_rate=1", "'optim'"),
        ("optim.learning_rate=[", "line 1"),
        ("optim.learning_rate=fast", "optim.learning_rate"),
    ],
)
def test_bad_override_is_refused(override, expected):
    with pytest.raises(ConfigError) as caught:
        parse_config(tiny_values(), [override])
    assert expected in str(caught.value)
