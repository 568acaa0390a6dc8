"""Reads settings of a model from the config that mmclassification 0.x and mmpretrain 1.x keep in their checkpoints.

The config is a text of Python: `meta["config"]` of mmclassification, `meta["cfg"]` of mmpretrain. It is never executed.
It is parsed only if it is short, and has nothing but names, numbers, strings, brackets and `,`, `=`, `:`, which bounds
the depth of the parser: `1-1-1...`, `not not...`, `f()()...` and f-strings can overflow its stack. What is not a
literal, a call of `dict` or a name of the same text is unreadable, and a setting that needs it is not stated.

Sources: mmcls/datasets/pipelines and mmcls/models/backbones/vision_transformer.py of mmclassification 0.25;
mmpretrain/datasets/transforms/processing.py, models/utils/data_preprocessor.py, models/utils/norm.py and
models/backbones/vision_transformer.py of mmpretrain 1.2; mmcv/transforms/processing.py of mmcv 2. The `backend` of a
resize is not read: this program averages pixels when it shrinks an image, as Pillow does; OpenCV, the default there,
does not.

No activation is read: `GELU` is erf on CPU and GPU, but tanh where IPUs trained.
"""

from __future__ import annotations

import ast
import math
import re
import warnings
from keyword import iskeyword
from typing import Any, Dict, List, Mapping, Optional, Tuple

from vit_ipu.weights.image_processors import RESAMPLE, Triple

_MAX_CHARACTERS, _MAX_DEPTH = 1 << 18, 16
"""Limits of a text: published configs have 10 to 30 thousand characters, and brackets 8 deep."""
_TOKEN = re.compile(
    r"""[ \t\n]*(?:
    (?P<operand>(?:
        [A-Za-z_]\w*
        | -?(?:\d{1,40}(?:\.\d{0,40})?|\.\d{1,40})(?:e[+-]?\d{1,3})?
        | '(?:[^'\\\r\n]|\\[^\r\n])*'
        | "(?:[^"\\\r\n]|\\[^\r\n])*"
    )(?![\w.'"]))
    | (?P<opening>[(\[{]) | (?P<closing>[)\]}]) | (?P<mark>[,=]|:(?!=)))""",
    re.VERBOSE | re.ASCII,
)
_CLOSING = {"(": ")", "[": "]", "{": "}"}
_UNREADABLE = object()
_KEEP_SIZE = (
    *("LoadImageFromFile", "Normalize", "ImageToTensor", "ToTensor", "ToHalf"),
    *("Collect", "PackInputs", "PackClsInputs"),
)
"""Steps of a pipeline that do not change the size of an image."""
_MAX_MARGIN = 16
"""Limit of the side that an image is resized to, as a multiple of the model's."""


def stated_in_meta(meta: Any, shape: Mapping[str, int]) -> Dict[str, Any]:
    """Returns the settings that the config in a checkpoint's `meta` states, by the names of WeightsMetadata.

    `shape` is the model's, of `completeness.measured_shape`. Raises nothing: what does not fit states nothing.
    """
    text = meta.get("cfg", meta.get("config")) if isinstance(meta, dict) else None
    config = _values(text) if isinstance(text, str) else {}
    steps = _test_pipeline(config)
    return {**_normalisation(config, steps), **_resizing(steps, shape["image_size"]), **_backbone(config, shape)}


# ------------------------------------------------------------------------------------------- the text


def _values(text: str) -> Dict[str, Any]:
    """Returns the values that a text assigns to names; none if the text has other statements, or is not plain."""
    if len(text) > _MAX_CHARACTERS or not _is_plain(text):
        return {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a \ in a string, such as a path of Windows
            statements = ast.parse(text).body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return {}
    values: Dict[str, Any] = {}
    for statement in statements:
        target = statement.targets[0] if isinstance(statement, ast.Assign) and len(statement.targets) == 1 else None
        if not isinstance(statement, ast.Assign) or not isinstance(target, ast.Name):
            return {}
        values[target.id] = _value(statement.value, values)
    return values


def _is_plain(text: str) -> bool:
    """Tells whether a text has no operators and no keywords, and brackets in pairs and of bounded depth."""
    place, before = 0, "mark"
    opened: List[str] = []
    while (match := _TOKEN.match(text, place)) is not None:
        kind, place = str(match.lastgroup), match.end()
        token = match.group(kind)
        is_operator = token.startswith("-") and before not in ("mark", "opening")  # rather than a sign
        if is_operator or (iskeyword(token) and token not in ("None", "True", "False")):
            return False
        if kind == "opening":
            opened.append(_CLOSING[token])
            if before == "closing" or len(opened) > _MAX_DEPTH:
                return False
        if kind == "closing" and (not opened or opened.pop() != token):
            return False
        before = kind
    return not opened and not text[place:].strip()


def _value(node: ast.AST, names: Mapping[str, Any]) -> Any:
    """Returns the value of an expression, with tuples for lists; _UNREADABLE for any other expression."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return names.get(node.id, _UNREADABLE)
    if isinstance(node, (ast.List, ast.Tuple)):
        return tuple(_value(item, names) for item in node.elts)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        operand = _value(node.operand, names)
        return -operand if _is_number(operand) else _UNREADABLE
    if isinstance(node, ast.Dict):
        return {_key(key): _value(value, names) for key, value in zip(node.keys, node.values)}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        return {keyword.arg: _value(keyword.value, names) for keyword in node.keywords}
    return _UNREADABLE


def _key(node: Optional[ast.AST]) -> Any:
    return node.value if isinstance(node, ast.Constant) else _UNREADABLE


def _at(value: Any, *keys: str) -> Any:
    """Returns a value in nested dicts; None if there is none."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


# ------------------------------------------------------------------------------------------- the pixels


def _test_pipeline(config: Dict[str, Any]) -> Tuple[Dict[str, Any], ...]:
    """Returns the steps from a file to pixels, each with its `type` without a module; none if they are unreadable."""
    steps = config.get("test_pipeline")
    if config.get("test_dataloader") is not None:
        steps = _at(config["test_dataloader"], "dataset", "pipeline")
    elif config.get("data") is not None:
        steps = _at(config["data"], "test", "pipeline")
    if not isinstance(steps, tuple) or not all(isinstance(_at(step, "type"), str) for step in steps):
        return ()
    return tuple(dict(step, type=step["type"].rpartition(".")[2]) for step in steps)


def _normalisation(config: Dict[str, Any], steps: Tuple[Dict[str, Any], ...]) -> Dict[str, Any]:
    """Returns mean and deviation, which a step of the pipeline states, or from mmpretrain 1.x on the preprocessor."""
    found: List[Any] = [dict({"to_rgb": True}, **step) for step in steps if step["type"] == "Normalize"]
    inside, beside = _at(config, "model", "data_preprocessor"), config.get("data_preprocessor")
    if inside is not None or beside is not None:
        found.append(beside if inside is None else inside)
    colors = [step.get("color_type", "color") for step in steps if step["type"] == "LoadImageFromFile"]
    if len(found) != 1 or colors != ["color"] or _at(found[0], "to_rgb") is not True:
        return {}  # blue first, or normalised twice
    mean, std = _unit_triple(found[0].get("mean")), _unit_triple(found[0].get("std"))
    return {} if mean is None or std is None or min(std) <= 0 else {"mean": mean, "std": std}


def _unit_triple(values: Any) -> Optional[Triple]:
    """Returns three values of pixels in [0, 255] as values of pixels in [0, 1]; None for anything else."""
    if not isinstance(values, tuple) or len(values) != 3 or not all(map(_is_number, values)):
        return None
    first, second, third = (round(value / 255, 9) for value in values)
    return first, second, third


def _resizing(steps: Tuple[Dict[str, Any], ...], image_size: int) -> Dict[str, Any]:
    """Returns the filter of the resize, and the resize and crop if they make images of the model's size."""
    changes = [step for step in steps if step["type"] not in _KEEP_SIZE]
    types = [step["type"] for step in changes]
    if types not in (["Resize"], ["Resize", "CenterCrop"], ["ResizeEdge", "CenterCrop"]):
        return {}
    interpolation = changes[0].get("interpolation", "bilinear")
    stated = {"interpolation": interpolation} if interpolation in tuple(RESAMPLE.values()) else {}
    eval_crop, side = _resized(changes[0])
    cropped = _cropped(changes[1]) if len(changes) > 1 else side if eval_crop == "squash" else None
    if side is None or cropped != image_size or not image_size <= side <= _MAX_MARGIN * image_size:
        return stated
    return dict(stated, eval_crop=eval_crop, eval_resize=None if side == image_size else side)


def _resized(step: Dict[str, Any]) -> Tuple[str, Optional[int]]:
    """Returns whether a resize keeps the aspect ratio (`center`) or not (`squash`), and its side; None: unreadable."""
    if step["type"] == "ResizeEdge":
        return "center", _square(step.get("scale")) if step.get("edge", "short") == "short" else None
    size = step.get("size")
    if isinstance(size, tuple) and len(size) == 2 and size[1] == -1:
        return "center", _square(size[0]) if step.get("adaptive_side", "short") == "short" else None
    if step.get("keep_ratio", False) is not False:
        return "center", None  # mmcv 2 fits the image into the scale
    return "squash", _square(step.get("scale") if size is None else size)


def _cropped(step: Dict[str, Any]) -> Optional[int]:
    return _square(step.get("crop_size")) if step.get("efficientnet_style", False) is False else None


def _square(size: Any) -> Optional[int]:
    """Returns the side of a square, of which a size is one side or both; None for anything else."""
    sides = [size, size] if _is_count(size) else size
    if not isinstance(sides, (list, tuple)) or len(sides) != 2 or not all(map(_is_count, sides)):
        return None
    return sides[0] if sides[0] == sides[1] else None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


# ------------------------------------------------------------------------------------------- the model


def _backbone(config: Dict[str, Any], shape: Mapping[str, int]) -> Dict[str, Any]:
    """Returns the heads, epsilon and pooling that the ViT's arguments state; those for single blocks are not read."""
    backbone = _at(config, "model", "backbone")
    kind = _at(backbone, "type")
    if not isinstance(kind, str) or kind.rpartition(".")[2] != "VisionTransformer" or backbone.get("layer_cfgs"):
        return {}
    stated: Dict[str, Any] = {}
    num_heads: Any = _at(backbone, "arch", "num_heads")
    norm = backbone.get("norm_cfg")
    if _is_count(num_heads) and shape["width"] % num_heads == 0:
        stated["num_heads"] = num_heads
    epsilon: Any = norm.get("eps", 1e-5) if _at(norm, "type") == "LN" else None
    if _is_number(epsilon) and 0 < epsilon < 1:
        stated["layer_norm_eps"] = float(epsilon)
    if backbone.get("out_type") == "cls_token" or backbone.get("output_cls_token") is True:
        stated["pooling"] = "token"
    return stated
