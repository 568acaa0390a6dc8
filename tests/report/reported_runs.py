"""A small run and its page, and an evaluation with a mistake, for the tests of reports."""

from __future__ import annotations

import base64
import io

from helpers import write_config
from PIL import Image

from vit_ipu.runs.last_evaluation import LastEvaluation


def picture(side):
    file = io.BytesIO()
    Image.new("RGB", (side, side), "red").save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def evaluation(num_classes=3, **changes):
    mistake = {"label": 0, "predicted": 1, "probability": 0.75, "loss": 2.0, "name": "a/b.png", "picture": picture(28)}
    values = {
        "update": 4,
        "classes": [f"<class {number}>" for number in range(num_classes)],
        "confusion": [(0, 0, 3), (0, 1, 1), (1, 1, 5)],
        "mistakes": [mistake],
    }
    return LastEvaluation.model_validate(dict(values, **changes))


def trained(run, folder, device, **options):
    config = write_config(folder, run=dict({"updates": 4, "evaluate_every": 2}, **options))
    run("train", config, "--device", device, "--output", f"run-{device}")
    return (folder / f"run-{device}" / "report.html").read_text()
