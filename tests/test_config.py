"""Configs: every shipped config is valid, and every mistake is refused with the numbers and the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from helpers import tiny_config, tiny_values
from pydantic import ValidationError

from vit_ipu.config import Config, ModelConfig, PrecisionConfig
from vit_ipu.config_file import _load_yaml, dump_config, load_config, parse_config, shipped_configs
from vit_ipu.errors import ConfigError, suggest
from vit_ipu.ipu_rules import ipu_violations, require_runnable
from vit_ipu.pipeline import num_ipus
from vit_ipu.unused_options import unused_options
from vit_ipu.variants import VARIANTS

SHIPPED = shipped_configs()

# Batch arithmetic of the published configs: micro-batch, accumulation, replicas, device iterations, updates
# (shared sources: mmclassification's page and config; graphcore/examples configs.yml and release 2.5's README).
PUBLISHED = {
    "mmcls_vit_base_patch16_finetune_224_ipu": (17, 32, 4, 1, 5000),
    "graphcore_vit_base_patch16_cifar10_pod16": (17, 128, 4, 1, 2000),
    "graphcore_vit_base_patch16_imagenet_pod16": (17, 30, 4, 8, 5000),
    "graphcore_vit_base_patch16_imagenet_pod4": (17, 120, 1, 8, 5000),
    "graphcore_vit_base_patch16_pretrain_pod16": (8, 128, 4, 1, 93600),
    "graphcore_vit_base_patch16_pretrain_lamb_pod16": (8, 2048, 4, 1, 11400),
    "graphcore_vit_base_patch16_pretrain_lamb_pod64": (8, 512, 16, 1, 11400),
}


def test_every_row_of_the_reference_table_has_a_config():
    rows = {"quickstart", "quickstart_pretrain", "vit_small_patch14_finetune_fashion_mnist_ipu", *PUBLISHED}
    rows |= {f"mmcls_vit_{v}_pretrain_224" for v in ("base_patch16", "base_patch32", "large_patch16")}
    rows |= {f"mmcls_vit_{v}_finetune_384" for v in ("base_patch16", "base_patch32", "large_patch16")}
    assert set(SHIPPED) == rows | {"own_folder_gpu", "own_folder_pod4", "own_folder_pod16"}


@pytest.mark.parametrize("name", sorted(set(SHIPPED) - {"own_folder_gpu"}))
def test_shipped_config_is_valid_and_runs_on_ipus(name):
    assert ipu_violations(load_config(SHIPPED[name])) == []


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_the_config_for_a_gpu_runs_on_one_device_without_a_note(kind):
    config = load_config(SHIPPED["own_folder_gpu"])
    assert require_runnable(config, kind) == []
    assert unused_options(config) == []


@pytest.mark.parametrize(("name", "ipus"), [("own_folder_pod4", 4), ("own_folder_pod16", 16)])
def test_the_configs_for_pods_take_all_their_ipus(name, ipus):
    assert num_ipus(load_config(SHIPPED[name])) == ipus


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_shipped_config_opens_with_its_command_and_reference(name):
    header = SHIPPED[name].read_text().split("\nmodel:")[0]
    device = "cuda" if name == "own_folder_gpu" else "ipu"
    assert header.startswith("# yaml-language-server: $schema=config.schema.json\n")
    assert f"vit-ipu train pipeline_configs/{name}.yaml --device {device}" in header
    if not name.startswith("quickstart"):  # which are measured
        assert "Derived, unpublished" in header if name.startswith("own_folder") else "Reference" in header
        assert "Not yet measured here" in header


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_shipped_config_states_only_what_differs_from_the_defaults(name):
    config = load_config(SHIPPED[name])
    declared = {"width", "depth", "num_heads", "patch_size", "global_batch_size", "micro_batch_size"}
    defaults = {section: type(getattr(config, section)).model_fields for section in Config.model_fields}
    repeated = [
        f"{section}.{key}"
        for section, fields in defaults.items()
        for key in getattr(config, section).model_fields_set - declared
        if not fields[key].is_required() and fields[key].default == getattr(getattr(config, section), key)
    ]
    assert repeated == []


@pytest.mark.parametrize(("name", "expected"), sorted(PUBLISHED.items()))
def test_published_batches_are_reproduced(name, expected):
    config = load_config(SHIPPED[name])
    pipeline = config.pipeline
    assert expected == (
        pipeline.micro_batch_size,
        pipeline.gradient_accumulation,
        pipeline.replication_factor,
        pipeline.device_iterations,
        config.run.updates,
    )


def test_a_config_is_frozen():
    config = tiny_config()
    with pytest.raises(ValidationError):
        config.model.width = 3
    with pytest.raises(ValidationError):
        config.run = None


def test_a_config_that_is_written_and_read_is_unchanged(tmp_path):
    for path in SHIPPED.values():
        config = load_config(path)
        copy = tmp_path / path.name
        copy.write_text(dump_config(config))
        assert load_config(copy) == config


@pytest.mark.parametrize("chosen", ["balanced", (1.0, 2.0) * 5])
def test_class_weights_that_are_written_and_read_are_unchanged(tmp_path, chosen):
    config = parse_config(tiny_values(), [f"optim.class_weights={list(chosen) if chosen != 'balanced' else chosen}"])
    assert config.optim.class_weights == chosen
    (tmp_path / "copy.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "copy.yaml") == config
    assert Config.model_validate(config.model_dump(mode="json")) == config


def test_variant_fills_in_the_shape_and_yields_to_explicit_fields():
    model = ModelConfig(variant="vit_base_patch16", depth=2)
    assert (model.width, model.depth, model.num_heads, model.patch_size) == (768, 2, 12, 16)


def test_variants_are_the_papers_sizes_at_three_patch_sizes():
    sizes = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12)}
    sizes.update(large=(1024, 24, 16), huge=(1280, 32, 16))
    for size, shape in sizes.items():
        for patch in (14, 16, 32):
            variant = VARIANTS[f"vit_{size}_patch{patch}"]
            assert (variant["width"], variant["depth"], variant["num_heads"], variant["patch_size"]) == (*shape, patch)


@pytest.mark.parametrize("text", ["1e-6", "1.0e-6", "1E-6", "+1e-6", "0.000001"])
def test_yaml_reads_exponents_as_numbers(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(tiny_config()).replace("layer_norm_eps: 1.0e-06", "layer_norm_eps: " + text))
    assert load_config(path).model.layer_norm_eps == 1e-6


def test_override_parses_its_value_as_yaml():
    overrides = ["optim.learning_rate=1e-3", "pipeline.layers_per_ipu=[2, 2]", "run.evaluate_every=null"]
    config = parse_config(tiny_values(), overrides)
    assert config.optim.learning_rate == 1e-3
    assert config.pipeline.layers_per_ipu == (2, 2)
    assert config.run.evaluate_every is None


def test_a_shipped_config_is_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config("quickstart") == load_config(SHIPPED["quickstart"])
    assert load_config("pipeline_configs/quickstart.yaml") == load_config(SHIPPED["quickstart"])


def test_dates_are_strings_and_merge_keys_are_merged(tmp_path):
    path = tmp_path / "config.yaml"
    text = dump_config(tiny_config())
    path.write_text(text.replace("path: null", "path: 2020-13-45") + "# end\n")
    assert load_config(path).data.path == "2020-13-45"
    merged = "shared: &shared {updates: 4}\nrun:\n  <<: *shared\n  seed: 3\n"
    assert _load_yaml(merged)["run"] == {"updates": 4, "seed": 3}


@pytest.mark.parametrize("word", ["1e5", "null", "yes", "2020-01-01", "1.5", "-"])
def test_strings_that_look_like_other_types_stay_strings(tmp_path, word):
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(tiny_config(data={"path": word})))
    assert load_config(path).data.path == word


def test_an_empty_section_has_only_defaults():
    values = tiny_values()
    values["precision"] = None
    assert parse_config(values).precision == PrecisionConfig()


def test_a_warmup_longer_than_the_epochs_is_refused_once_the_images_are_counted():
    config = tiny_config(run={"updates": None, "epochs": 1.0}, optim={"warmup_updates": 1000})
    with pytest.raises(
        ConfigError, match="1000 is more than the 3 updates of the run: set optim.warmup_updates to 3 or"
    ):
        config.total_updates(96)


def test_epochs_become_whole_host_steps():
    config = tiny_config(run={"updates": None, "epochs": 2.5}, pipeline={"device_iterations": 2})
    assert config.total_updates(1000) == 2500 // 64 * 2
    assert config.total_updates(10) == 2  # at least one host step


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
    ({"optim": {"betas": [0.9, 1.0]}}, ["betas", "1.0", "[0, 1)"]),
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
    ("word", "expected"), [("optimiser", "; did you mean 'optim'?"), ("xyz", ": use one of model, optim")]
)
def test_a_suggestion_reads_the_known_names_once(word, expected):
    assert suggest(word, iter(["model", "optim"])) == expected


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


def test_two_overrides_that_do_not_fit_together_are_both_blamed(tmp_path):
    overrides = ["optim.learning_rate=0.1", "optim.min_learning_rate=0.2"]
    with pytest.raises(ConfigError, match=r"^--set optim.min_learning_rate=0.2: optim: min_learning_rate 0.2 is above"):
        parse_config(tiny_values(optim={"learning_rate": 0.3}), overrides[::-1])
    both = ["pipeline.global_batch_size=33", "pipeline.micro_batch_size=5"]
    with pytest.raises(ConfigError, match=r"^--set pipeline.global_batch_size=33 --set pipeline.micro_batch_size=5: "):
        parse_config(tiny_values(), both)


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
