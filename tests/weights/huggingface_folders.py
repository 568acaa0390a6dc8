"""Folders in transformers' format with a random model, pictures, and classes by our program."""

from __future__ import annotations

import json

import numpy as np
from foreign import huggingface_model
from PIL import Image

from vit_ipu.backends.build import resolve_device
from vit_ipu.files import CHECKSUMS, write_checksums
from vit_ipu.predict import predict

CPU = resolve_device("cpu")


def picture(path, width=90, height=40):
    """Writes an image with fine and coarse structure; a format without loss, so that all readers see equal pixels."""
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(columns / a + rows / b) * 100 + 128 for a, b in ((3, 7), (11, 5), (30, 17))]
    Image.fromarray(np.stack(waves, -1).astype(np.uint8)).save(str(path))
    return path


def huggingface_folder(folder, problem_type=None, classes=("a", "b", "c", "d", "e"), **processor):
    """Writes a random transformers model of 32 pixels with its processor, ViTImageProcessor if none is given."""
    from transformers import ViTImageProcessor

    _, made = huggingface_model("tiny", 16, 32, folder, classes=classes)
    config = json.loads((made / "config.json").read_text())
    config["problem_type"] = problem_type
    (made / "config.json").write_text(json.dumps(config))
    ViTImageProcessor(size={"height": 32, "width": 32}, **processor).save_pretrained(str(made))
    return made


def rewrite(path, **values):
    stated = json.loads(path.read_text())
    path.write_text(json.dumps({key: part for key, part in dict(stated, **values).items() if part != "removed"}))
    if (path.parent / CHECKSUMS).exists():
        write_checksums(path.parent)


def by_us(source, image):
    return dict(predict(str(source), [str(image)], CPU, trust_pickle=True)[0].classes)
