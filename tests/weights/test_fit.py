"""Initial weights, and weights of other libraries in the commands: adapted with a note, or refused."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest
import torch
from foreign import google_arrays, huggingface_model, timm_model
from helpers import equal_states, tiny_config
from safetensors.torch import load_file, save_file

from vit_ipu.config import ModelConfig
from vit_ipu.errors import CheckpointError, ConfigError
from vit_ipu.model import ViT
from vit_ipu.runs.checkpoint import Progress, save_checkpoint
from vit_ipu.weights.export import convert
from vit_ipu.weights.fit import load_init
from vit_ipu.weights.namings import NAMINGS
from vit_ipu.weights.native import ModelDescription
from vit_ipu.weights.position_embeddings import resize_pos_embed
from vit_ipu.weights.translate import from_ours


def fresh(**changes):
    torch.manual_seed(1)
    return ViT(ModelConfig(**{"variant": "vit_test", "image_size": 28, "num_classes": 10, **changes})).state_dict()


def write_init(folder, state, name="weights.safetensors"):
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, str(folder / name))
    return str(folder / name)


def init(source, own, notes=None, **model):
    config = tiny_config(model=dict({"init": source}, **model), pipeline={"layers_per_ipu": None})
    return load_init(config, own, notify=(notes if notes is not None else []).append)


def test_every_weight_that_fits_is_taken(tmp_path):
    source = fresh()
    own = {name: torch.zeros_like(tensor) for name, tensor in source.items()}
    notes = []
    assert equal_states(init(write_init(tmp_path, source), own, notes), dict(source))
    assert notes[0].endswith("weights.safetensors, timm naming")


def test_a_checkpoint_or_a_run_folder_can_be_the_init(tmp_path):
    state = {"model": fresh(), "optimizer": {}, "rng": {}}
    description = ModelDescription.of_run(tiny_config(), tuple("abcdefghij"), 96)
    path = save_checkpoint(tmp_path / "checkpoints", state, Progress(1, 1, 32), description, device_kind="cpu")
    for source in (path, tmp_path):
        notes = []
        assert equal_states(init(str(source), fresh(), notes), dict(state["model"]))
        assert notes[0].endswith("native naming")


def test_another_number_of_classes_gets_a_zero_head(tmp_path):
    source = {name: tensor + 1 for name, tensor in fresh(num_classes=21843).items()}
    notes = []
    loaded = init(write_init(tmp_path, source), fresh(), notes)
    assert not loaded["head.weight"].any()
    assert not loaded["head.bias"].any()
    assert torch.equal(loaded["norm.weight"], source["norm.weight"])
    assert "the head is new, for 10 classes: that of the weights has 21843" in notes


@pytest.mark.parametrize("kind", ["normal", "xavier"])
def test_another_number_of_classes_gets_the_head_that_the_config_asks_for(tmp_path, kind):
    source, own = fresh(num_classes=21843), fresh(head_init=kind, head_bias_init=-1.0)
    loaded = init(write_init(tmp_path, source), own, head_init=kind, head_bias_init=-1.0)
    assert torch.equal(loaded["head.weight"], own["head.weight"])
    assert loaded["head.weight"].any()
    assert (loaded["head.bias"] == -1).all()


@pytest.mark.parametrize("name", NAMINGS)
def test_positions_are_resized_by_the_rule_of_the_origin(tmp_path, name):
    source, naming = fresh(image_size=42), NAMINGS[name]
    if naming.flax:
        import numpy as np

        path = tmp_path / "weights.npz"
        np.savez(path, **google_arrays(source, num_heads=2))
    else:
        path = write_init(tmp_path, from_ours(source, naming, num_heads=2))
    notes = []
    loaded = init(str(path), fresh(image_size=70), notes)
    assert torch.equal(loaded["pos_embed"], resize_pos_embed(source["pos_embed"], 100, naming.resize))
    assert loaded["pos_embed"].shape[1] == 1 + (70 // 7) ** 2
    assert f"position embeddings resized from 6 x 6 to 10 x 10 ({naming.resize})" in notes


def test_a_representation_layer_is_dropped_or_made_as_the_config_says(tmp_path):
    with_layer, without = fresh(representation_size=48), fresh()
    notes = []
    loaded = init(write_init(tmp_path, with_layer), without, notes)
    assert set(loaded) == set(without)
    assert not loaded["head.weight"].any()  # the head of the weights takes features of another width
    assert "the representation layer is dropped: model.representation_size is null" in notes
    loaded = init(write_init(tmp_path, without), with_layer)
    assert torch.equal(loaded["pre_logits.fc.weight"], with_layer["pre_logits.fc.weight"])


def test_weights_without_a_head_get_a_zero_head(tmp_path):
    source = {name: tensor for name, tensor in fresh().items() if not name.startswith("head.")}
    assert not init(write_init(tmp_path, source), fresh())["head.weight"].any()


def test_half_precision_is_widened(tmp_path):
    source = {name: tensor.half() for name, tensor in fresh().items()}
    loaded = init(write_init(tmp_path, source), fresh())
    assert loaded["pos_embed"].dtype == torch.float32
    assert torch.equal(loaded["pos_embed"].half(), source["pos_embed"])


def test_settings_that_differ_from_those_of_the_weights_are_noted(tmp_path):
    _, source = huggingface_model("tiny", 16, 32, tmp_path)
    notes = []
    tiny = {"width": 192, "depth": 12, "num_heads": 3, "patch_size": 16, "image_size": 32, "variant": None}
    init(str(source), fresh(**tiny), notes, gelu="tanh", **tiny)
    assert "note: model.gelu is tanh, but the weights were trained with erf" in notes
    assert "note: model.layer_norm_eps is 1e-06, but the weights were trained with 1e-12" in notes


MISTAKES = [
    (
        lambda state: {"what/" + name: tensor for name, tensor in state.items()},
        "model.init: .*not a ViT in any known naming",
    ),
    (lambda state: dict(state, extra=torch.zeros(1)), "not a plain ViT: .*extra"),
    (lambda state: dict(state, pos_embed=torch.zeros(1, 15, 32)), "not that of a class token and a square grid"),
    (lambda state: fresh(width=64, num_heads=2), r"shape \(1, 1, 64\) but the model needs \(1, 1, 32\)"),
    (
        lambda state: fresh(depth=3),
        "blocks.3.norm1.weight is missing: set the keys of model to the shape of",
    ),
    (lambda state: fresh(depth=5), "blocks.4.* is not in the model"),
    (lambda state: fresh(representation_size=8), None),
]


@pytest.mark.parametrize(("change", "message"), MISTAKES)
def test_weights_that_do_not_fit_are_refused(tmp_path, change, message):
    source = write_init(tmp_path, change(fresh()))
    if message is None:  # a layer that the config lacks is not a mistake; a layer of another width is
        with pytest.raises(
            CheckpointError, match=r"pre_logits.fc.weight has shape .8, 32. but the model needs .16, 32"
        ):
            init(source, fresh(representation_size=16))
        return
    with pytest.raises(CheckpointError, match=message):
        init(source, fresh())


def test_another_number_of_heads_is_refused(tmp_path):
    _, source = huggingface_model("tiny", 16, 32, tmp_path)
    with pytest.raises(
        CheckpointError,
        match="has 3 attention heads but model.num_heads is 2: set the keys of model to the shape of",
    ):
        init(str(source), fresh())


def test_a_folder_without_weights_is_refused_as_init(tmp_path):
    with pytest.raises(CheckpointError, match="model.init: "):
        init(str(tmp_path), fresh())
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        init(str(tmp_path / "nowhere"), fresh())


def test_a_pinned_file_must_have_the_pinned_sha256(tmp_path):
    source = write_init(tmp_path, fresh())
    digest = hashlib.sha256((tmp_path / "weights.safetensors").read_bytes()).hexdigest()
    init(source, fresh(), init_sha256=digest)
    with pytest.raises(CheckpointError, match="model.init: .*sha256"):
        init(source, fresh(), init_sha256="0" * 64)


def test_an_init_url_must_have_a_sha256():
    with pytest.raises(ConfigError, match="init is an https address: give the SHA-256 of its file as init_sha256"):
        tiny_config(model={"init": "https://example.org/weights.pth"})
    with pytest.raises(ConfigError, match="model.init_sha256"):
        tiny_config(model={"init": "https://example.org/weights.pth", "init_sha256": "abc"})


# ------------------------------------------------------------------------------------ the commands


@pytest.fixture
def published(empty_folder, run):
    """Returns a random ViT of transformers, its folder, and an image."""
    theirs, folder = huggingface_model("tiny", 16, 32, empty_folder, classes=["cat", "dog", "newt", "owl", "yak"])
    run("train", write(empty_folder), "--device", "cpu", "--output", "examples")
    return theirs, folder, next((empty_folder / "examples" / "examples").glob("*.png"))


def write(empty_folder):
    from helpers import write_config

    return write_config(empty_folder, run={"updates": 1})


def test_predict_by_a_published_model_gives_its_probabilities(published, run):
    from PIL import Image
    from torchvision.transforms.functional import pil_to_tensor

    theirs, folder, image = published
    found = json.loads(run("predict", folder, image, "--device", "cpu", "--json"))["predictions"][0]["classes"]
    pixels = pil_to_tensor(Image.open(image).convert("RGB").resize((32, 32), Image.Resampling.BILINEAR))
    with torch.no_grad():
        expected = theirs((pixels[None] / 255 - 0.5) / 0.5).softmax(1)[0]
    names = ["cat", "dog", "newt", "owl", "yak"]
    assert {row["name"]: row["probability"] for row in found} == pytest.approx(
        dict(zip(names, expected.tolist())), abs=1e-5
    )


def test_evaluate_by_a_published_model(empty_folder, run, published):
    """Uses class folders with ids, as in ImageNet: class names differ from the model's, class positions do not."""
    _, folder, image = published
    for split in ("train", "val"):
        for name in ("n01", "n02", "n03", "n04", "n05"):
            (empty_folder / "images" / split / name).mkdir(parents=True)
            shutil.copy(str(image), str(empty_folder / "images" / split / name / "a.png"))
    (empty_folder / "theirs.yaml").write_text(
        """
model: {variant: vit_tiny_patch16, image_size: 32, num_classes: 5, layer_norm_eps: 1e-12}
data: {source: imagefolder, path: images}
pipeline: {global_batch_size: 4, micro_batch_size: 4}
optim: {optimizer: sgd, learning_rate: 0.1}
run: {updates: 1}
"""
    )
    found = json.loads(run("evaluate", "theirs.yaml", "--checkpoint", folder, "--device", "cpu", "--json"))
    assert found["num_images"] == 5
    assert found["top1"] == pytest.approx(20.0)  # the same image five times, of five classes
    run("convert", folder, "native", "--to", "native")
    again = json.loads(run("evaluate", "theirs.yaml", "--checkpoint", "native", "--device", "cpu", "--json"))
    assert again["loss"] == found["loss"]


def test_convert_prints_what_it_wrote(empty_folder, run, published):
    _, folder, image = published
    out = run("convert", folder, "weights.pth", "--to", "torchvision")
    assert "note: torchvision has a layer norm epsilon of 1e-06, but the model was trained with 1e-12" in out
    assert "(huggingface, 5,488,517 parameters, 5 classes) written as torchvision to weights.pth" in " ".join(
        out.split()
    )
    found = json.loads(run("convert", "weights.pth", "native", "--to", "native", "--trust-pickle", "--json"))
    assert (found["origin"], found["to"], found["num_classes"]) == ("torchvision", "native", 5)
    assert "cat" not in run("predict", "native", image, "--device", "cpu")  # a .pth of torchvision has no class names
    assert "class 4" in run("predict", "native", image, "--device", "cpu")


def test_a_run_converted_to_hugging_face_and_back_is_unchanged(empty_folder, run):
    run("train", write(empty_folder), "--device", "cpu", "--output", "mine")
    run("convert", "mine", "theirs", "--to", "huggingface")
    run("convert", "theirs", "back", "--to", "native")
    checkpoint = next((empty_folder / "mine" / "checkpoints").iterdir())
    assert equal_states(
        load_file(str(empty_folder / "back" / "model.safetensors")), load_file(str(checkpoint / "model.safetensors"))
    )
    image = next((empty_folder / "mine" / "examples").glob("*.png"))
    assert run("predict", "back", image, "--device", "cpu") == run("predict", "mine", image, "--device", "cpu")


def test_an_exported_timm_folder_opens_in_timm_with_the_right_preprocessing(tmp_path):
    import timm

    theirs, source = timm_model("tiny", 16, 64, tmp_path)
    convert(str(source), tmp_path / "out", "timm", notify=lambda text: None)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architecture"] == "vit_tiny_patch16_224"
    opened = timm.create_model("local-dir:{}".format(tmp_path / "out"), pretrained=True, num_classes=5).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(opened(images), theirs(images), rtol=0, atol=1e-6)
    assert timm.data.resolve_model_data_config(opened)["mean"] == [0.5, 0.5, 0.5]


def test_hugging_faces_processor_makes_the_same_pixels_as_ours(tmp_path):
    from PIL import Image
    from transformers import AutoImageProcessor

    from vit_ipu.data.images.decode import DecodedImage
    from vit_ipu.data.images.transforms import EvalTransform, normalize_on_host
    from vit_ipu.predict import inference_config
    from vit_ipu.weights.describe import describe
    from vit_ipu.weights.read import read_weights

    _, source = timm_model("tiny", 16, 64, tmp_path)
    convert(str(source), tmp_path / "out", "huggingface", notify=lambda text: None)
    weights = read_weights(str(tmp_path / "out"))
    data = inference_config(describe(weights), weights.path).data
    gradient = torch.linspace(0, 255, 300).expand(200, 300).to(torch.uint8).numpy()
    image = Image.fromarray(gradient).convert("RGB")
    theirs = AutoImageProcessor.from_pretrained(str(tmp_path / "out"))(image, return_tensors="np")["pixel_values"][0]
    ours = normalize_on_host(EvalTransform(data, 64)(DecodedImage(image)), data)
    assert theirs.shape == ours.shape
    assert abs(theirs - ours).max() < 0.05  # a rounding of the resized width, and of the pixels
    assert abs(theirs - ours).mean() < 0.01
