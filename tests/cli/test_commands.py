"""The commands other than train: evaluate, predict, benchmark, compile, plan, models, report."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import backend_for, vit_ipu, write_config
from PIL import Image
from safetensors.torch import load_file, save_file

from vit_ipu.backends.build import resolve_device
from vit_ipu.errors import DataError
from vit_ipu.files import write_checksums
from vit_ipu.predict import predict
from vit_ipu.runs.checkpoint import load_checkpoint
from vit_ipu.runs.metrics import read_metrics
from vit_ipu.simulator import numerics as simulator_numerics
from vit_ipu.weights.native import newest_checkpoint


def test_outputs_that_are_not_finite_fail_an_evaluation(run, monkeypatch, capsys, empty_folder):
    config = write_config(empty_folder)
    run("train", config, "--device", "cpu", "--output", "run")
    path = newest_checkpoint(empty_folder / "run" / "checkpoints") / "model.safetensors"
    weights = load_file(str(path))
    weights["norm.bias"][0] = float("nan")
    save_file(weights, str(path))
    write_checksums(path.parent)
    image = str(next((empty_folder / "run" / "examples").glob("*.png")))
    for command in (["evaluate", config, "--checkpoint", "run"], ["predict", "run", image]):
        code, out, err = vit_ipu(monkeypatch, capsys, *command, "--device", "cpu", "--json")
        assert (code, out) == (1, "")
        assert "not finite: its weights are damaged, or have diverged; take an earlier checkpoint" in err


@pytest.fixture
def trained(run, empty_folder):
    config = write_config(empty_folder, run={"updates": 30}, data={"num_train": 600})
    run("train", config, "--device", "cpu", "--output", "run")
    return config


@pytest.mark.parametrize("device", ["cpu", "ipu-sim"])
def test_evaluate_gives_the_same_results_as_training(run, trained, empty_folder, device):
    last = read_metrics(empty_folder / "run" / "metrics.jsonl")[-1]
    found = json.loads(run("evaluate", trained, "--checkpoint", "run", "--device", device, "--json"))
    assert (found["top1"], found["top5"], found["num_images"]) == (last["top1"], last["top5"], 50)
    assert found["loss"] == pytest.approx(last["evaluation_loss"], rel=1e-5)
    assert found["simulated"] is (device == "ipu-sim")
    assert "top-1 {:.2f} %".format(last["top1"]) in run("evaluate", trained, "--checkpoint", "run", "--device", device)


def test_evaluation_notes_what_differs_from_training(run, trained):
    out = run("evaluate", trained, "--checkpoint", "run", "--set", "data.mean=[0.0,0.0,0.0]", "--set", "model.gelu=erf")
    assert "note: data.mean is (0.0, 0.0, 0.0), but the checkpoint was trained with (0.5, 0.5, 0.5)" in out
    assert "note: model.gelu is erf, but the checkpoint was trained with tanh" in out


def test_rules_of_training_do_not_apply_to_inference(run, trained, empty_folder):
    """Covers a batch that is too small for a pipeline to train on, and a GELU that IPUs lack."""
    few = ["--set", "pipeline.global_batch_size=8"]
    found = json.loads(run("evaluate", trained, "--checkpoint", "run", "--device", "ipu-sim", "--json", *few))
    assert found["num_images"] == 50
    config = write_config(empty_folder, "erf", model={"gelu": "erf"}, pipeline={"global_batch_size": 8})
    run("train", config, "--device", "cpu", "--output", "erf")
    image = str(next((empty_folder / "erf" / "examples").glob("*.png")))
    assert "%" in run("predict", "erf", image, "--device", "ipu-sim")


def test_evaluation_computes_top1_top5_and_loss_over_all_images():
    from vit_ipu.backends.contract import HostBatch, Instances
    from vit_ipu.evaluate import evaluate_batches

    class Fixed:
        instances = Instances()

        def predict(self, images):
            return images

    logits = torch.tensor([[9.0, 8, 7, 6, 5, 4, 3], [1, 2, 3, 4, 5, 6, 7], [0, 0, 0, 0, 0, 0, 1]])
    batches = [HostBatch(logits[:2], torch.tensor([0, 1])), HostBatch(logits[2:], torch.tensor([6]))]
    found = evaluate_batches(Fixed(), batches)
    assert (found.top1, found.top5, found.num_images) == (pytest.approx(200 / 3), pytest.approx(200 / 3), 3)
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 6])).item()
    assert found.loss == pytest.approx(expected)


def test_predict_names_classes(run, trained, empty_folder):
    images = sorted((empty_folder / "run" / "examples").glob("*.png"))
    text = run("predict", "run", *images[:2])
    assert text.startswith(str(images[0]))
    assert len(re.findall(r"^ +\d+\.\d\d %  \S", text, re.M)) == 10
    found = json.loads(run("predict", "run", *images, "--device", "ipu-sim", "--json"))["predictions"]
    assert [p["image"] for p in found] == [str(path) for path in images]
    for prediction in found:
        probabilities = [c["probability"] for c in prediction["classes"]]
        assert len(probabilities) == 5
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) <= 1 + 1e-6


def test_predict_notes_a_nearly_black_image_of_sixteen_bits(trained, empty_folder, monkeypatch, capsys):
    for name, highest in (("bright.png", 65535), ("dark.png", 4095), ("dark2.png", 10)):
        Image.fromarray(np.linspace(0, highest, 784).reshape(28, 28).astype(np.uint16)).save(name)
    code, out, _ = vit_ipu(monkeypatch, capsys, "predict", "run", "bright.png", "dark.png", "dark2.png")
    assert code == 0
    notes = " ".join(out.split())
    assert notes.count("nearly black") == 1
    assert "note: dark.png is nearly black: it has 16 bits a value but none above 4,095" in notes


def test_predict_names_the_images_that_it_cannot_read(run, trained, empty_folder, monkeypatch, capsys):
    image = str(next((empty_folder / "run" / "examples").glob("*.png")))
    Path("empty.png").write_bytes(b"")
    alone = json.loads(run("predict", "run", image, "--device", "cpu", "--json"))["predictions"]
    call = ["predict", "run", "nowhere.png", image, "empty.png", "--device", "cpu"]
    code, out, err = vit_ipu(monkeypatch, capsys, *call)
    assert code == 2
    assert out.startswith(image)
    reasons = {"nowhere.png": "no image at nowhere.png", "empty.png": "cannot read the image empty.png: it is empty"}
    assert err.splitlines() == ["vit-ipu: " + reason for reason in reasons.values()]
    code, out, _ = vit_ipu(monkeypatch, capsys, *call, "--json")
    assert code == 2
    device = {"device": "cpu", "simulated": False, "numerics": None}
    assert json.loads(out) == {"predictions": alone, "unreadable": reasons, **device}
    with pytest.raises(DataError, match=r"^no image at nowhere.png$"):
        predict("run", ["nowhere.png", image], resolve_device("cpu"))


def test_predict_names_the_weights_whose_pixels_are_not_possible(run, trained, empty_folder, monkeypatch, capsys):
    run("convert", "run", "out", "--to", "huggingface")
    stated = json.loads(Path("out/preprocessor_config.json").read_text())
    Path("out/preprocessor_config.json").write_text(json.dumps(dict(stated, image_std=[0.5, 0.0, 0.5])))
    code, _, err = vit_ipu(monkeypatch, capsys, "predict", "out", "a.png", "--device", "cpu")
    assert code == 2
    assert err.startswith("vit-ipu: out/model.safetensors: data: std: 0.0 must be above 0; ")
    assert err.endswith("correct the config.json or preprocessor_config.json that states it\n")


def test_predictions_equal_the_models_probabilities(run, trained, empty_folder):
    from vit_ipu.config_file import load_config
    from vit_ipu.data.images.transforms import EvalTransform
    from vit_ipu.data.loading.loader import stack_images
    from vit_ipu.data.sources.registry import open_source

    config = load_config(trained)
    source = open_source(config.data, config.model, "eval")
    backend = backend_for(config, "cpu")
    backend.load_state_dict(
        load_checkpoint(newest_checkpoint(empty_folder / "run" / "checkpoints"), device_kind="cpu")[0]
    )
    pixels = EvalTransform(config.data, 28)(source.picture(0))
    expected = backend.predict(stack_images([pixels], config.data)).softmax(1)[0]
    image = sorted((empty_folder / "run" / "examples").glob("*.png"))[0]
    best = json.loads(run("predict", "run", image, "--device", "cpu", "--json"))["predictions"][0]["classes"][0]
    assert best["name"] == source.classes[int(expected.argmax())]
    assert best["probability"] == pytest.approx(expected.max().item(), rel=1e-4)


def test_a_float16_run_can_predict_on_a_cpu(run, empty_folder):
    config = write_config(empty_folder, precision={"compute": "float16"})
    run("train", config, "--device", "ipu-sim", "--output", "half")
    image = sorted((empty_folder / "half" / "examples").glob("*.png"))[0]
    assert "%" in run("predict", "half", image, "--device", "cpu")


@pytest.mark.parametrize("device", ["cpu", "ipu-sim"])
@pytest.mark.parametrize("more", [[], ["--real-data"]])
def test_benchmark_reports_images_per_second(run, empty_folder, device, more):
    config = write_config(empty_folder)
    command = ["benchmark", config, "--device", device, "--steps", "3", "--burn-in", "1", *more]
    found = json.loads(run(*command, "--json"))
    assert len(found["seconds"]) == 3
    assert found["samples_per_step"] == 32
    assert found["images_per_second"] == pytest.approx(32 / sorted(found["seconds"])[1])
    assert found["quartiles"][0] >= found["images_per_second"] >= found["quartiles"][1]
    assert found["simulated"] is (device == "ipu-sim")
    text = run(*command)
    assert ("simulated" if device == "ipu-sim" else "measured") in text
    if device == "cpu":
        assert list(found["parts"]) == ["batch", "to the device", "passes", "update"]
        assert 0 < found["share_of_matrix_rate"] < 1
        assert found["peak_bytes"] is None
        assert re.search(r"[0-9.]+ % of the [0-9.]+ TFLOP/s that one large matrix product reaches here\n", text)
        assert re.search(r"time goes: batch [0-9.]+ ms, to the device [0-9.]+ ms, passes [0-9.]+ ms, update", text)
    else:
        assert list(found["parts"]) == ["batch"]
        assert found["matrix_rate"] is None


SMALL_STEPS = {
    "pipeline": {"global_batch_size": 8, "micro_batch_size": 2, "layers_per_ipu": [2, 2]},
    "data": {"num_train": 32, "num_eval": 16},
    "precision": {"compute": "float16"},
}


@pytest.mark.parametrize("numerics", [None, "ipu"])
def test_each_command_with_a_device_states_its_numerics(run, empty_folder, numerics):
    config = write_config(empty_folder, run={"updates": 1}, **SMALL_STEPS)
    expected = numerics or "exact"
    options = ["--device", "ipu-sim", *(["--numerics", numerics] if numerics else [])]
    assert f"ipu-sim, {expected} numerics: simulated IPUs on " in run("train", config, *options, "--output", "run")
    environment = json.loads((empty_folder / "run" / "environment.json").read_text())
    image = str(next((empty_folder / "run" / "examples").glob("*.png")))
    found = [
        json.loads(run(*command, *options, "--json"))
        for command in (
            ["train", config],
            ["evaluate", config, "--checkpoint", "run"],
            ["predict", "run", image],
            ["compile", config],
            ["benchmark", config, "--steps", "1", "--burn-in", "0"],
        )
    ]
    for values in [environment, *found]:
        assert (values["device"], values["simulated"], values["numerics"]) == ("ipu-sim", True, expected)
    benchmark = run("benchmark", config, *options, "--steps", "1", "--burn-in", "0")
    assert f"(simulated, {expected} numerics; " in benchmark
    assert simulator_numerics.current() == "exact"  # other programs of this process are not affected


def test_numerics_change_what_a_float16_model_computes(run, empty_folder):
    config = write_config(empty_folder, run={"updates": 3}, **SMALL_STEPS)
    losses = {}
    for numerics in ("exact", "ipu"):
        command = ["train", config, "--device", "ipu-sim", "--numerics", numerics, "--output", numerics]
        losses[numerics] = json.loads(run(*command, "--json"))["loss"]
    assert losses["ipu"] != losses["exact"]
    assert losses["ipu"] == pytest.approx(losses["exact"], rel=1e-2)
    with simulator_numerics("ipu"):  # as by `python -m vit_ipu.simulator --numerics ipu -m vit_ipu`
        assert json.loads(run("train", config, "--device", "ipu-sim", "--json"))["loss"] == losses["ipu"]
    evaluated = {
        numerics: json.loads(
            run("evaluate", config, "--checkpoint", "exact", "--device", "ipu-sim", "--numerics", numerics, "--json")
        )["loss"]
        for numerics in ("exact", "ipu")
    }
    assert evaluated["exact"] == losses["exact"]
    assert evaluated["ipu"] != losses["exact"]


def test_compile_on_the_simulator_checks_poptorchs_rules(run, empty_folder):
    assert "rules hold" in run("compile", write_config(empty_folder), "--device", "ipu-sim", "--offline")
    assert json.loads(run("compile", write_config(empty_folder), "--device", "ipu-sim", "--json"))["simulated"] is True


def test_plan_shows_placement_and_arithmetic(run):
    text = run("plan", "mmcls_vit_base_patch16_finetune_224_ipu")
    assert "IPU 0: embed, blocks.0, blocks.1, blocks.2\n" in text
    assert "IPU 3: blocks.9, blocks.10, blocks.11, head\n" in text
    assert "16 IPUs = 4 a replica x 4 replicas" in text
    assert "global batch 2,176 = micro-batch 17 x accumulation 32 x replicas 4" in text
    assert "7 stages in training, 38 cycles an update" in text
    assert "evaluation IPU" not in text
    text = run(
        "plan",
        "quickstart",
        "--set",
        "run.evaluation_layers_per_ipu=[2,2]",
        "--set",
        "run.evaluation_replication_factor=4",
    )
    assert "evaluation IPU 1: blocks.2, blocks.3, head" in text
    assert "evaluation 8 IPUs = 2 a replica x 4 replicas" in text
    plan = json.loads(run("plan", "quickstart", "--json"))
    assert (plan["num_ipus"], plan["gradient_accumulation"], plan["violations"]) == (4, 8, [])


def test_models_lists_variants_with_their_figures(run):
    rows = {row["variant"]: row for row in json.loads(run("models", "--json", "--image-size", "384"))["models"]}
    assert rows["vit_base_patch16"]["parameters"] == 86_859_496
    assert rows["vit_base_patch16"]["mmclassification"]["printed_flops_g"] == 33.03
    for name in ("vit_base_patch16", "vit_base_patch32", "vit_large_patch16"):
        printed = rows[name]["mmclassification"]
        assert round(printed["reproduced_parameters"] / 1e6, 2) == printed["printed_parameters_m"]
        assert round(printed["reproduced_flops"] / 1e9, 2) == printed["printed_flops_g"]
    text = run("models")
    assert re.search(r"vit_base_patch16 .* 86,567,656 +17\.56 +86\.86 M, 33\.03 G", text)


def test_report_is_one_page_with_curves_and_timetable(run, empty_folder):
    from xml.etree import ElementTree

    config = write_config(empty_folder, run={"updates": 4, "evaluate_every": 2})
    run("train", config, "--device", "ipu-sim", "--output", "run")
    (empty_folder / "run" / "report.html").unlink()
    assert run("report", "run").strip() == "run/report.html"
    page = (empty_folder / "run" / "report.html").read_text()
    assert "Simulated: no IPU was used" in page
    assert not re.search(r'(src|href)="(?!#|data:)', page)
    pictures = re.findall(r"<svg.*?</svg>", page, re.S)
    assert len(pictures) == 2
    for picture in pictures:
        ElementTree.fromstring(picture)
    timetable = pictures[1]
    assert timetable.count("<rect") == 2 * 4 * 8 + 2  # forward and backward of 8 micro-batches on 4 IPUs, legend
    last = read_metrics(empty_folder / "run" / "metrics.jsonl")[-1]
    assert f"{last['top1']:.2f}&nbsp;%, {last['top5']:.2f}&nbsp;%" in page


def test_a_long_update_is_drawn_in_part():
    from vit_ipu.report.timetable import timetable_svg

    picture = timetable_svg(4, 2048)
    assert "drawn for 18 of 2048" in picture
    assert picture.count("<rect") == 2 * 4 * 18 + 2


def test_the_header_of_a_run_counts_trained_weights_and_shows_ipus_only_on_ipus(run, empty_folder):
    path = write_config(empty_folder, optim={"freeze": ["embed", "blocks", "norm"]})
    out = run("train", path, "--device", "cpu")
    assert "trains 330 of 56,522 parameters" in out
    assert "on 4 IPUs each" not in out
    assert "x replicas 1, on 4 IPUs each" in run("train", path, "--device", "ipu-sim")
