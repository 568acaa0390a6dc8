"""Messages about mistakes in a config: one line that names the key, and the key that was probably meant."""

from __future__ import annotations

import difflib
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from pydantic import ValidationError

from vit_ipu.config import Config
from vit_ipu.errors import suggest
from vit_ipu.text import all_mistakes, counted, shortened

LONGEST_VALUE = 200
"""Characters of a wrong value that a message shows."""

_RENAMED = {
    "optim.learning_rate": "lr base_lr max_lr peak_lr initial_lr init_lr lr0 eta",
    "optim.min_learning_rate": "min_lr lr_min final_lr end_lr eta_min",
    "optim.weight_decay": "wd decay l2 weight_decay_rate",
    "optim.optimizer": "opt optim optimizer_name optimiser",
    "optim.betas": "beta1 beta2 opt_betas adam_betas adam_beta1 adam_beta2",
    "optim.eps": "epsilon adam_epsilon opt_eps",
    "optim.max_grad_norm": "clip_grad grad_clip clip_grad_norm gradient_clip_val gradient_clipping max_norm clip_norm",
    "optim.label_smoothing": "smoothing label_smooth label_smoothing_factor",
    "optim.loss": "bce bce_loss criterion loss_fn loss_function loss_type loss_name",
    "optim.bce_target_threshold": "bce_threshold target_threshold",
    "optim.class_weights": "class_weight loss_weight loss_weights ce_weight ce_weights label_weights weight_classes",
    "data.sampling": "sampler weighted_sampler weighted_random_sampler class_balanced balanced_sampling "
    "balanced_sampler class_balanced_sampling oversample oversampling balance_classes sampling_strategy",
    "optim.schedule": "sched scheduler lr_schedule lr_scheduler lr_scheduler_type lr_policy",
    "optim.warmup_updates": "warmup warmup_steps num_warmup_steps warmup_iters warmup_epochs warmup_ratio",
    "optim.warmup_start": "warmup_lr warmup_factor",
    "pipeline.global_batch_size": "batch batch_size bs train_batch_size global_bs total_batch_size",
    "pipeline.micro_batch_size": "per_device_train_batch_size batch_size_per_gpu samples_per_gpu mbs",
    "pipeline.replication_factor": "replicas num_replicas replication data_parallel",
    "pipeline.layers_per_ipu": "ipus num_ipus ipus_per_replica pipeline_stages num_stages",
    "pipeline.recompute": "gradient_checkpointing grad_checkpointing recompute_checkpoint use_checkpoint",
    "run.evaluation_micro_batch_size": "eval_batch_size per_device_eval_batch_size val_batch_size",
    "run.epochs": "epoch num_epochs num_train_epochs max_epochs n_epochs",
    "run.updates": "steps max_steps num_steps iterations iters max_iters num_iters total_steps num_updates",
    "run.evaluate_every": "eval_every eval_steps eval_interval eval_freq val_interval val_every evaluation_interval",
    "run.checkpoint_every": "save_every save_steps save_interval save_freq checkpoint_interval checkpoint_steps",
    "run.keep_checkpoints": "save_total_limit max_keep_ckpts keep checkpoint_hist",
    "run.keep_best": "save_best load_best_model_at_end metric_for_best_model",
    "run.log_every": "log_interval log_steps logging_steps print_freq",
    "run.tracking": "report_to logger tracker wandb tensorboard log_wandb",
    "run.seed": "random_seed manual_seed random_state",
    "model.variant": "arch architecture model_name model_type name backbone",
    "model.init": "pretrained checkpoint weights init_from initial_checkpoint pretrained_path load_from finetune",
    "model.image_size": "img_size input_size resolution size crop_size",
    "model.num_classes": "classes nb_classes num_labels n_classes",
    "model.width": "embed_dim hidden_size hidden_dim d_model dim embed_dims",
    "model.depth": "layers num_layers num_hidden_layers n_layer n_layers blocks num_blocks",
    "model.num_heads": "heads n_head n_heads num_attention_heads",
    "model.patch_size": "patch patch_sizes",
    "model.dropout": "drop drop_rate dropout_rate hidden_dropout_prob",
    "model.attention_dropout": "attn_drop attn_drop_rate attention_probs_dropout_prob",
    "model.drop_path": "drop_path_rate stochastic_depth stochastic_depth_prob droppath",
    "model.gelu": "act act_layer activation hidden_act",
    "model.mlp_ratio": "mlp_dim intermediate_size feedforward_channels",
    "model.layer_norm_eps": "norm_eps",
    "data.source": "dataset dataset_name dataset_type",
    "data.path": "data_dir data_path dataset_path root root_dir folder dir train_dir train_path data_root",
    "data.eval_path": "val_dir val_path eval_dir test_dir test_path",
    "data.holdout": "val_split validation_split val_ratio val_fraction test_size split_ratio train_val_split",
    "data.num_workers": "workers num_worker n_workers dataloader_num_workers workers_per_gpu",
    "data.mixup_alpha": "mixup",
    "data.cutmix_alpha": "cutmix",
    "data.mixing_probability": "mixup_prob",
    "data.cutmix_share": "mixup_switch_prob",
    "data.random_erasing": "reprob erasing random_erase random_erasing_prob",
    "data.auto_augment": "aa autoaugment",
    "data.rand_augment": "randaugment randaug",
    "data.horizontal_flip": "hflip flip random_flip",
    "data.crop_scale": "scale min_scale random_resized_crop",
    "data.crop_ratio": "ratio",
    "data.background": "bg bg_color bg_colour background_color background_colour",
    "data.eval_resize": "crop_pct resize eval_size val_resize_size",
    "precision.compute": "amp fp16 bf16 dtype half mixed_precision amp_dtype",
    "precision.torch_compile": "compile torchcompile",
    "optim.ema_decay": "ema model_ema model_ema_decay use_ema swa",
    "optim.layer_decay": "llrd layerwise_decay layer_wise_lr_decay layer_lr_decay lr_mult head_lr",
    "optim.freeze": "freeze_backbone freeze_layers frozen_stages linear_probe",
    "run.early_stopping": "early_stop patience early_stopping_patience",
    "run.early_stopping_margin": "min_delta early_stopping_threshold early_stopping_min_delta",
}
"""Names that other programs give to a key of this program."""
_BY_FOREIGN_NAME = {name: key for key, names in _RENAMED.items() for name in names.split()}
_SECTION_NAMES = {
    "model": "network net architecture backbone",
    "data": "dataset datasets dataloader input",
    "pipeline": "ipu ipus batch parallel",
    "precision": "amp dtype numerics",
    "optim": "optimizer optimiser optimization solver schedule scheduler",
    "run": "train training trainer runtime experiment",
}
_BY_SECTION_NAME = {name: section for section, names in _SECTION_NAMES.items() for name in names.split()}
_ONE_LABEL = "each image has one class here; optim.class_weights or data.sampling makes up for rare ones"
_DERIVED = "it follows from pipeline.global_batch_size / (micro_batch_size x replication_factor)"
_OPTION = "it is an option of the command"
_ABSENT = {
    _DERIVED: "gradient_accumulation gradient_accumulation_steps accumulation_steps accumulate_grad_batches accum_iter "
    "grad_accum_steps grad_accum accum_steps update_freq",
    f"{_OPTION}: --output FOLDER": "output output_dir work_dir save_dir log_dir out_dir",
    f"{_OPTION}: --resume": "resume resume_from resume_from_checkpoint",
    f"{_OPTION}: --device": "device accelerator gpus gpu devices",
    "training images are always shuffled, by run.seed": "shuffle shuffle_buffer",
    _ONE_LABEL: "pos_weight multi_label multilabel",
    "optim.loss: bce is the mean over samples and classes here, which is timm's default": "bce_sum sum_classes",
    "data.sampling: balanced or optim.class_weights makes up for rare classes here": "focal focal_loss focal_gamma",
    "colours are changed by data.auto_augment or data.rand_augment": "color_jitter colour_jitter jitter",
    "page-locked memory is used where it helps": "pin_memory pin_mem",
}
_WHY_ABSENT = {name: reason for reason, names in _ABSENT.items() for name in names.split()}
_SHAPE = ("model.width", "model.depth", "model.num_heads", "model.patch_size")


class Mistakes(NamedTuple):
    """What is wrong with a config: the first mistakes and the number of others, as one line."""

    where: str
    """Key or section of the first mistake; empty if it is not about one."""
    text: str

    @property
    def line(self) -> str:
        return f"{self.where}: {self.text}" if self.where else self.text


def find_mistakes(error: ValidationError) -> Mistakes:
    """Returns the first mistakes of a validation, the number of further ones, and all keys that are missing."""
    errors = _with_short_lists([dict(found) for found in error.errors(include_url=False)])
    missing = _missing_keys([found["loc"] for found in errors if found["type"] == "missing"])
    others = [found for found in errors if found["type"] != "missing"]
    if not others:
        if len(missing) == 1:
            return Mistakes(missing[0], "is missing")
        return Mistakes("", f"these keys are missing: {', '.join(missing)}")
    first, *further = (Mistakes(_place(found), _text(found)) for found in others)
    text = all_mistakes([first.text, *(mistake.line for mistake in further)])
    unnamed = [key for key in missing if key not in text and key.rpartition(".")[2] not in text]
    also = f"; {', '.join(unnamed)} {'is' if len(unnamed) == 1 else 'are'} missing" if unnamed else ""
    return Mistakes(first.where, f"{text}{also}")


def _place(found: Dict[str, Any]) -> str:
    return shortened(".".join(str(part) for part in found["loc"]), LONGEST_VALUE)


def _with_short_lists(errors: List[Dict[str, Any]]) -> List[Dict[str, Any]]:
    """Returns the errors with one for each list that is too short in the place of those on its missing items."""
    merged: Dict[Any, Dict[str, Any]] = {}
    for number, found in enumerate(errors):
        place = found["loc"]
        if found["type"] == "missing" and isinstance(place[-1], int):
            merged[place[:-1]] = {**found, "type": "too_short", "loc": place[:-1], "ctx": {"length": place[-1] + 1}}
        else:
            merged[number] = found
    return list(merged.values())


def _missing_keys(places: Sequence[Tuple[Any, ...]]) -> List[str]:
    """Returns the keys at these places; for a missing section its required keys, and for a shape its variant."""
    keys: List[str] = []
    for place in places:
        keys += [".".join(map(str, place))] if len(place) > 1 else _required_keys(str(place[0]))
    if all(key in keys for key in _SHAPE):
        keys = [key for key in keys if key not in _SHAPE[1:]]
        keys[keys.index(_SHAPE[0])] = "model.variant"
    return keys


def _required_keys(section: str) -> List[str]:
    fields = section_fields(section)
    return [f"{section}.{name}" for name, field in fields.items() if field.is_required()] or [
        "run.epochs (or run.updates)" if section == "run" else section
    ]


def section_fields(section: str) -> Dict[str, Any]:
    """Returns the fields of a section of a config by name."""
    annotation: Any = Config.model_fields[section].annotation
    fields: Dict[str, Any] = annotation.model_fields
    return fields


def all_keys() -> List[str]:
    """Returns all keys of a config, such as `run.updates`."""
    return [f"{section}.{name}" for section in Config.model_fields for name in section_fields(section)]


def _text(found: Dict[str, Any]) -> str:
    if found["type"] == "extra_forbidden":
        place = [str(part) for part in found["loc"]]
        if len(place) == 1:
            return f"unknown key{suggest_section(place[0], is_mapping=isinstance(found['input'], dict))}"
        return f"unknown key{suggest_key(place[-1], place[0])}"
    if found["type"] == "value_error":
        return str(found["ctx"]["error"])
    return f"{_expected(found)}, got {shown(found['input'])}"


def _expected(found: Dict[str, Any]) -> str:
    """Returns what a value should be, in the words of YAML."""
    if found["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return "expected a mapping of keys"
    if found["type"] in ("too_short", "too_long"):
        length = found["ctx"].get("length", found["ctx"].get("max_length"))
        return f"should be a list of {counted(length, 'value')}"
    if found["type"] == "tuple_type":
        return "should be a list in brackets"
    if found["type"] == "bool_type":
        return "should be true or false"
    return str(found["msg"]).replace("Input should be", "should be")


def suggest_section(name: str, *, is_mapping: bool = True) -> str:
    """Returns the end of a message about an unknown section, or about a key that is in none."""
    plain = _plain(name)
    if is_mapping and plain in _BY_SECTION_NAME:
        return f"; did you mean {_BY_SECTION_NAME[plain]!r}?"
    if plain in _WHY_ABSENT:
        return f": {_WHY_ABSENT[plain]}"
    key = _meant_key(plain)
    close = difflib.get_close_matches(name, list(Config.model_fields), n=1, cutoff=0.7)
    if key is not None and not (is_mapping and close):
        return f"; did you mean {key!r}?"
    return suggest(name, Config.model_fields)


def suggest_key(name: str, section: str) -> str:
    """Returns the end of a message about an unknown key: the key that other programs call so, or a similar one."""
    plain = _plain(name)
    if plain in _WHY_ABSENT:
        return f": {_WHY_ABSENT[plain]}"
    known = section_fields(section)
    if not difflib.get_close_matches(name, known, n=1, cutoff=0.8) or plain in _BY_FOREIGN_NAME:
        key = _meant_key(plain)
        if key is not None:
            return f"; did you mean {key!r}?"
    return suggest(name, known)


def _meant_key(plain: str) -> Optional[str]:
    """Returns the key that a name from another program, or from another section, stands for; None if none does."""
    if plain in _BY_FOREIGN_NAME:
        return _BY_FOREIGN_NAME[plain]
    by_name = {key.partition(".")[2]: key for key in all_keys()}
    if plain in by_name:
        return by_name[plain]
    close = difflib.get_close_matches(plain, by_name, n=1, cutoff=0.85)
    return by_name[close[0]] if close else None


def _plain(name: str) -> str:
    return name.strip().lower().replace("-", "_").replace(" ", "_")


def suggest_file(name: str, known: Dict[str, str]) -> str:
    """Returns the end of a message about a config that does not exist: one with a similar name, or what to do.

    `known` are the configs that exist, by name, as the user would give them.
    """
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {known[close[0]]}?"
    return "; `vit-ipu config` lists the shipped configs, and `vit-ipu init FOLDER` writes one for a folder of images"


def shown(value: Any) -> str:
    """Returns a wrong value as a message shows it."""
    return shortened(repr(value), LONGEST_VALUE)
