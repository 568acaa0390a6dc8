"""README.md of a folder for transformers or timm: a model card with what is known of a model, and nothing else.

The form of the YAML at its start is the hub's (huggingface_hub, docs "Model cards": library_name, pipeline_tag,
base_model, model-index). Where a fact is not known, the card says nothing, or that it is not known.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Dict, List, Optional, Tuple

import yaml

from vit_ipu import __version__
from vit_ipu.config import Config
from vit_ipu.config_file import changed_settings
from vit_ipu.config_sections.colors import Rgb, color_text
from vit_ipu.text import counted, escaped, plain_numbers, python_string
from vit_ipu.variants import VARIANTS
from vit_ipu.weights.describe import assumed_values
from vit_ipu.weights.native import ONE_CLASS, ModelDescription
from vit_ipu.weights.timm_code import TIMM_EPSILON, timm_call


@dataclass(frozen=True)
class Library:
    """A library that reads an exported folder."""

    name: str
    pixels_file: str
    """File of the folder that states how an image becomes pixels."""
    transform: str
    """What of the library follows it."""
    class_names: str
    """Key of config.json that has the names of the classes."""


LIBRARIES = {
    "huggingface": Library("transformers", "preprocessor_config.json", "transformers' image processor", "id2label"),
    "timm": Library("timm", "config.json", "`timm.data.create_transform`", "label_names"),
}
"""By the format of the export."""
MOST_CLASSES = 100
"""Classes up to which the card lists all names; of more classes it lists this many and says where the others are."""
_PUNCTUATION = re.compile(r"([\\`*\[\]<>#|~&$:@]|(?<![^\W_])_|_(?![^\W_])|(?<=www)\.)", re.IGNORECASE)
"""Characters that Markdown does not show as they are; an underscore inside a word it does."""
_PLACES = ("data.path", "data.eval_path", "model.init", "pipeline.executable_cache", "pipeline.profile")
"""Keys whose values are places on the machine that trained, which the card does not show."""
_UNRELATED = ("data.num_workers", "data.download", "run.tracking", "run.log_every", "run.keep_checkpoints")
"""Keys that do not change the weights."""


@dataclass(frozen=True)
class Results:
    """An evaluation of the exported weights."""

    top1: float
    """In per cent."""
    top5: float
    """In per cent."""
    loss: float
    """Mean cross-entropy in nats, or binary cross-entropy (optim.loss)."""
    num_images: Optional[int]
    """Number of held-out images; None if the run did not record it."""
    best_of: Optional[int] = None
    """Number of evaluations of these images of which this is the best, if `run.keep_best` chose the checkpoint so."""


@dataclass(frozen=True)
class RunFacts:
    """What a run folder states about the checkpoint that is exported."""

    updates: Optional[int] = None
    """Weight updates of the checkpoint; None if the weights are not those of a run."""
    results: Optional[Results] = None
    environments: Tuple[Dict[str, Any], ...] = ()
    """Contents of environment.json: of the first start, then of each resume."""


def model_card(
    name: str,
    description: ModelDescription,
    *,
    to: str = "huggingface",
    num_parameters: int,
    source: str,
    origin: str,
    assumed_from: str = "",
    facts: RunFacts,
) -> str:
    """Returns the text of README.md.

    `name` is what the library loads: the folder, or OWNER/NAME of the hub. `to` is a key of LIBRARIES. `source` and
    `origin` are those of the weights that were exported: only a name on the hub is shown, never a path of this
    machine. `assumed_from` is the library whose defaults were assumed, if it is known.
    """
    sections = [
        f"# {markdown(name)}",
        _introduction(description, source, origin),
        _model(description, LIBRARIES[to], num_parameters, assumed_from),
        _classes(description, LIBRARIES[to]),
        _training(description, facts),
        _results(facts),
        _usage(name, description, to),
        _versions(facts),
    ]
    front = _front_matter(name, description, LIBRARIES[to], source, facts)
    return front + "\n" + "\n\n".join(section for section in sections if section) + "\n"


def markdown(text: str) -> str:
    """Returns a name as Markdown that shows exactly these characters: no link, tag, emphasis, formula or table cell."""
    return _PUNCTUATION.sub(r"\\\1", escaped(text)) or "(no name)"


def _code(text: str, language: str) -> str:
    """Returns a block of code, whose fence is longer than any run of backticks in it."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


# -------------------------------------------------------------------------------------------- sections


def _front_matter(name: str, description: ModelDescription, library: Library, source: str, facts: RunFacts) -> str:
    values: Dict[str, Any] = {
        "library_name": library.name,
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "vit", "vit_ipu"],
    }
    base = _base_model(description, source)
    if base is not None:
        values["base_model"] = base
    if facts.results is not None:
        values["metrics"] = ["accuracy"]
        values["model-index"] = [{"name": name, "results": [_indexed(description, facts.results)]}]
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return f"---\n# license: not known to the program that wrote this file; add it, such as apache-2.0\n{text}---\n"


def _indexed(description: ModelDescription, results: Results) -> Dict[str, Any]:
    """Returns an evaluation in the form of the hub's model-index, in which an accuracy is a share of 1."""
    source = "imagefolder" if description.trained is None else description.trained.config.data.source
    metrics = [
        {"type": "accuracy", "value": round(results.top1 / 100, 6), "name": "Top-1 accuracy"},
        {"type": "accuracy", "value": round(results.top5 / 100, 6), "name": "Top-5 accuracy"},
    ]
    dataset = {"type": source, "name": source, "split": "held-out images"}
    return {"task": {"type": "image-classification"}, "dataset": dataset, "metrics": metrics}


def _base_model(description: ModelDescription, source: str) -> Optional[str]:
    """Returns the repository of the hub that the weights come from; None if they come from elsewhere."""
    init = source if description.trained is None else description.trained.config.model.init
    match = re.fullmatch(r"hf-hub:([\w.-]+/[\w.-]+)(?:@[\w./-]+)?", init or "")
    return None if match is None else match.group(1)


def _introduction(description: ModelDescription, source: str, origin: str) -> str:
    kind = "A Vision Transformer that classifies images"
    base = _base_model(description, source)
    trained = description.trained
    if trained is None:
        known = f", which are those of {markdown(base)} on the Hugging Face Hub" if base else ""
        return f"{kind}. vit_ipu {__version__} converted it from weights in the format {origin}{known}."
    init = trained.config.model.init
    if init is None:
        return f"{kind}, trained from random weights with vit_ipu."
    start = f"{markdown(base)} on the Hugging Face Hub" if base else f"weights called {markdown(PurePath(init).name)}"
    return f"{kind}, fine-tuned from {start} with vit_ipu."


def _model(description: ModelDescription, library: Library, num_parameters: int, assumed_from: str) -> str:
    model, pixels = description.model, description.preprocessing
    shape = {key: getattr(model, key) for key in ("width", "depth", "num_heads", "patch_size")}
    variant = next((name for name, values in VARIANTS.items() if values == shape and model.mlp_ratio == 4), None)
    side, size = pixels.eval_resize or model.image_size, model.image_size
    resize = "both sides are resized" if pixels.eval_crop == "squash" else "the short side is resized"
    on = "" if pixels.background is None else f", on {color_text(pixels.background)} where it is transparent"
    rows = [
        ("shape", f"{f'{variant}: ' if variant else ''}width {model.width}, {counted(model.depth, 'block')}, "
                  f"{counted(model.num_heads, 'head')}, patches of {model.patch_size} x {model.patch_size} pixels"),
        ("parameters", f"{num_parameters:,}, in float32"),
        ("GELU, layer norm epsilon", f"{model.gelu}, {model.layer_norm_eps:g}"),
        ("images", f"RGB{on}; {resize} to {side} ({pixels.interpolation}), then the centre {size} x {size} is cropped"),
        ("pixels", f"in 0 to 1, minus mean {plain_numbers(pixels.mean)}, divided by {plain_numbers(pixels.std)}"),
        ("outputs", f"{description.problem_type}: {counted(len(description.classes), 'class', 'classes')}"),
    ]  # fmt: skip
    text = "## Model\n\n" + _table(("", ""), rows)
    text += f"\n\n`{library.pixels_file}` states the same, and {library.transform} follows it"
    text += (
        "." if pixels.background is None else ", but for transparent images: lay them on the colour first, as below."
    )
    if description.assumed:
        default = f", as {assumed_from} has it by default" if assumed_from else ""
        text += "\n\nThe weights did not state the following, which was assumed in the conversion"
        text += f"{default}: {assumed_values(description)}."
    return text


def _classes(description: ModelDescription, library: Library) -> str:
    names = description.classes
    shown = [(str(label), markdown(name)) for label, name in enumerate(names[:MOST_CLASSES])]
    more = len(names) - len(shown)
    rest = f"\n\n{more:,} more are in `{library.class_names}` of `config.json`." if more else ""
    return "## Classes\n\n" + _table(("output", "class"), shown) + rest


def _training(description: ModelDescription, facts: RunFacts) -> str:
    trained = description.trained
    if trained is None:
        return ""
    parts = ["## Training", _length(trained.config, trained.num_train, facts.updates), *_devices(facts)]
    parts += ["The settings that differ from the program's defaults, without paths of the machine that trained:"]
    parts.append(_code(changed_settings(trained.config, leave_out=(*_PLACES, *_UNRELATED)), "yaml"))
    return "\n\n".join(parts)


def _length(config: Config, num_train: int, updates: Optional[int]) -> str:
    images = f"{counted(num_train, 'image')} (`data.source` {config.data.source})"
    batch = config.pipeline.global_batch_size
    if updates is None:
        return f"Trained on {images}, {batch:,} in each weight update; seed {config.run.seed}."
    return (
        f"Trained on {images} for {counted(updates, 'weight update')} of {counted(batch, 'image')} each; passes over "
        f"all images: {updates * batch / num_train:.3g}; seed {config.run.seed}."
    )


def _devices(facts: RunFacts) -> List[str]:
    """Returns what the run was computed on, each device once, and whether it was simulated."""
    texts = []
    for environment in facts.environments:
        numerics = f", {environment['numerics']} numerics" if environment.get("numerics") else ""
        texts.append(f"{environment['hardware']}, {environment['compute']}{numerics}")
    if not texts:
        return []
    found = [f"Device: {markdown('; '.join(dict.fromkeys(texts)))}."]
    if any(environment["simulated"] for environment in facts.environments):
        found.append("**Simulated: no IPU was used.** The weights and the accuracy were computed by a simulator.")
    return found


def _results(facts: RunFacts) -> str:
    results = facts.results
    if results is None:
        return ""
    number = "number not recorded" if results.num_images is None else f"{results.num_images:,}"
    rows = [
        ("top-1", f"{results.top1:.2f} %"),
        ("top-5", f"{results.top5:.2f} %"),
        ("loss", f"{results.loss:.4f}"),
        ("held-out images", number),
    ]
    by = f"Measured by the run itself at update {facts.updates:,}, one run, on its held-out images."
    if results.best_of is not None and results.best_of > 1:
        by += f" The checkpoint was chosen as the best of {results.best_of:,} evaluations of the same images."
    if any(environment["simulated"] for environment in facts.environments):
        by += " The device was simulated."
    return f"## Results\n\n{_table(('measure', 'value'), rows)}\n\n{by}"


def _usage(name: str, description: ModelDescription, to: str) -> str:
    lines = _timm_code(name, description) if to == "timm" else _transformers_code(name, description)
    note = "" if description.problem_type == ONE_CLASS else f"\n\nThe model is one of {description.problem_type}."
    if to == "timm":
        call = timm_call(description.model, len(description.classes), file=f"{name}/model.safetensors")
        note += f"\n\nThe weights alone, without `config.json`, are loaded by:\n\n{_code(call, 'python')}"
    return "## Use\n\n" + _code("\n".join(lines), "python") + note


def _transformers_code(name: str, description: ModelDescription) -> List[str]:
    background, photo = description.preprocessing.background, '"photo.jpg"'
    lines = ["from transformers import pipeline", ""]
    if background is not None:
        photo = "photo"
        lines = ["from PIL import Image", *lines, *_on_background(background)]
    return [
        *lines,
        f'classify = pipeline("image-classification", model={python_string(name)})',
        f"for found in classify({photo}):",
        '    print(found["label"], found["score"])',
    ]


def _timm_code(name: str, description: ModelDescription) -> List[str]:
    background = description.preprocessing.background
    one_class = description.problem_type == ONE_CLASS
    opened = ['photo = Image.open("photo.jpg").convert("RGB")'] if background is None else _on_background(background)
    return [
        *([] if description.model.layer_norm_eps == TIMM_EPSILON else ["import functools", ""]),
        "import timm",
        "import torch",
        "from PIL import Image",
        "",
        *opened,
        f"model = {timm_call(description.model, len(description.classes), folder=name)}.eval()",
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))",
        "with torch.no_grad():",
        f"    scores = model(transform(photo)[None]){'.softmax(1)' if one_class else '.sigmoid()'}[0]",
        f"for score, label in zip(*scores.topk({min(5, len(description.classes))})):",
        '    print(model.pretrained_cfg["label_names"][label], float(score))',
    ]


def _on_background(background: Rgb) -> List[str]:
    """Returns the lines that lay an image with transparency on a colour."""
    return [
        'drawing = Image.open("photo.png").convert("RGBA")',
        f'photo = Image.new("RGBA", drawing.size, {(*background, 255)})',
        "photo.alpha_composite(drawing)",
        'photo = photo.convert("RGB")',
    ]


def _versions(facts: RunFacts) -> str:
    exported = f"Exported by vit_ipu {__version__}."
    if not facts.environments:
        return f"## Versions\n\n{exported}"
    last = facts.environments[-1]
    versions = ", ".join(f"{name} {version}" for name, version in last["versions"].items())
    trained = f"Trained with vit_ipu {last['vit_ipu']}, Python {last['python']}, {versions}."
    return f"## Versions\n\n{markdown(trained)} {markdown(exported)}"


def _table(heads: Tuple[str, str], rows: List[Tuple[str, str]]) -> str:
    return "\n".join(f"| {left} | {right} |" for left, right in [heads, ("---", "---"), *rows])
