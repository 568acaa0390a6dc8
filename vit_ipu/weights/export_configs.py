"""Config files of transformers and timm that are written beside exported weights."""

from __future__ import annotations

from typing import Any, Dict

from vit_ipu.weights.huggingface_configs import HIDDEN_ACT
from vit_ipu.weights.image_processors import RESAMPLE
from vit_ipu.weights.native import ONE_CLASS, ModelDescription
from vit_ipu.weights.timm_code import timm_model


def huggingface_config(description: ModelDescription) -> Dict[str, Any]:
    """Returns the config.json of transformers' ViTForImageClassification."""
    model = description.model
    names, problem_type = list(description.classes), description.problem_type
    return {
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        "hidden_size": model.width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.num_heads,
        "intermediate_size": model.mlp_width,
        "hidden_act": next(name for name, gelu in HIDDEN_ACT.items() if gelu == model.gelu),
        "hidden_dropout_prob": model.dropout,
        "attention_probs_dropout_prob": model.attention_dropout,
        "layer_norm_eps": model.layer_norm_eps,
        "image_size": model.image_size,
        "patch_size": model.patch_size,
        "num_channels": 3,
        "qkv_bias": True,
        "id2label": {str(label): name for label, name in enumerate(names)},
        "label2id": {name: label for label, name in enumerate(names)},
        "torch_dtype": "float32",
        **({} if problem_type == ONE_CLASS else {"problem_type": problem_type}),  # of one class, one_class is refused
    }


def huggingface_pixels(description: ModelDescription) -> Dict[str, Any]:
    """Returns the preprocessor_config.json: resize, centre crop, mean and standard deviation.

    transformers' CLIPImageProcessor resizes the short side, and DeiTImageProcessor both sides; both crop the centre.
    """
    data, size = description.preprocessing, description.model.image_size
    side, is_square = data.eval_resize or size, data.eval_crop == "squash"
    return {
        "image_processor_type": "DeiTImageProcessor" if is_square else "CLIPImageProcessor",
        "do_resize": True,
        "size": {"height": side, "width": side} if is_square else {"shortest_edge": side},
        "resample": next(number for number, name in RESAMPLE.items() if name == data.interpolation),
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(data.mean),
        "image_std": list(data.std),
        "do_convert_rgb": True,
    }


def timm_config(description: ModelDescription) -> Dict[str, Any]:
    """Returns the config.json of a folder that `timm.create_model("local-dir:FOLDER")` reads."""
    model, data = description.model, description.preprocessing
    name, arguments = timm_model(model)
    return {
        "architecture": name,
        "num_classes": model.num_classes,
        "num_features": model.width,
        "label_names": list(description.classes),
        "model_args": dict(arguments, img_size=model.image_size),
        "pretrained_cfg": {
            "input_size": [3, model.image_size, model.image_size],
            "fixed_input_size": True,
            "interpolation": data.interpolation,
            "crop_pct": model.image_size / (data.eval_resize or model.image_size),
            "crop_mode": data.eval_crop,
            "mean": list(data.mean),
            "std": list(data.std),
            "num_classes": model.num_classes,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
