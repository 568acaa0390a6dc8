"""The README.md of a Hugging Face export: true, readable by the hub, and safe for any name of a class."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import yaml
from helpers import tiny_values, vit_ipu, write_config
from markdown_it import MarkdownIt
from tiny_weights import noise

from vit_ipu import convert, predict, train
from vit_ipu.config_file import parse_config
from vit_ipu.convert import run_facts
from vit_ipu.runs.metrics import read_metrics
from vit_ipu.weights.model_card import MOST_CLASSES, Results, RunFacts, markdown, model_card
from vit_ipu.weights.native import ModelDescription

NAMES = [
    "plain",
    "a | b",
    "*bold* _x_ __y__",
    "<script>alert(1)</script>",
    "[link](http://x.org)",
    "`code` ``",
    "\\*\\",
    "line\nbreak",
    "&amp; &#42;",
    "# head",
    "$x$ :smile: @who ~~no~~",
    "www.example.com",
    "日本語",
    "",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Returns a run of 4 updates with an evaluation after 2 and 4, and its export."""
    root = tmp_path_factory.mktemp("card")
    values = tiny_values(run={"updates": 4, "evaluate_every": 2, "keep_best": "loss", "keep_checkpoints": 2})
    values["pipeline"]["executable_cache"] = str(root / "secret-cache")
    run = train(parse_config(values), device="cpu", output=root / "secret" / "run", quiet=True)
    convert(run.path, root / "exported", "huggingface", quiet=True)
    return run


def exported(run):
    return run.path.parent.parent / "exported"


def front_of(card):
    """Returns the values of the YAML at the start of a card."""
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", card, re.S)[1])


def cells_of(card):
    """Returns the cells of all tables of a card as a reader of the rendered page sees them."""
    parsed = MarkdownIt("commonmark").enable("table").parse(card)
    inlines = [token for token in parsed if token.type == "inline"]
    assert not [part.type for token in inlines for part in token.children if part.type in ("html_inline", "link_open")]
    assert not [token for token in parsed if token.type == "html_block"]
    starts = [place for place, token in enumerate(parsed) if token.type == "td_open"]
    return ["".join(part.content for part in parsed[place + 1].children) for place in starts]


def a_description(classes=("cat", "dog"), **sections):
    values = tiny_values(**{"data": {"source": "imagefolder", "path": "pictures", "crop": "center"}, **sections})
    values["data"] = {key: value for key, value in values["data"].items() if key not in ("num_train", "num_eval")}
    values["model"] = dict(values["model"], num_classes=len(classes))
    return ModelDescription.of_run(parse_config(values), tuple(classes), 96)


def card_of(description, name="name", source="runs/x", origin="native", facts=None):
    return model_card(name, description, num_parameters=12345, source=source, origin=origin, facts=facts or RunFacts())


def test_the_card_states_the_results_of_the_exported_checkpoint(run):
    card = (exported(run) / "README.md").read_text(encoding="utf-8")
    front = front_of(card)
    update = int(re.search(r"by the run itself at update (\d),", card)[1])
    lines = [line for line in read_metrics(run.path / "metrics.jsonl") if "top1" in line]
    (line,) = [line for line in lines if line["update"] == update]
    assert front["library_name"] == "transformers"
    assert front["pipeline_tag"] == "image-classification"
    assert "license" not in front
    assert "# license:" in card
    metrics = front["model-index"][0]["results"][0]["metrics"]
    assert metrics[0] == {"type": "accuracy", "value": round(line["top1"] / 100, 6), "name": "Top-1 accuracy"}
    cells = cells_of(card)
    assert cells[cells.index("held-out images") + 1] == "50"
    assert cells[cells.index("top-1") + 1] == f"{line['top1']:.2f} %"
    assert "Ankle boot" in cells
    assert f"Trained on 96 images (`data.source` sample) for {update} weight updates of 32 images each" in card
    assert "learning_rate: 0.05" in card
    assert "Python " in card
    assert "imulat" not in card


def test_the_hub_s_own_reader_accepts_the_card(run):
    from huggingface_hub import ModelCard

    data = ModelCard.load(exported(run) / "README.md").data
    assert data.model_name == "exported"
    assert [result.metric_type for result in data.eval_results] == ["accuracy", "accuracy"]
    assert data.eval_results[0].dataset_type == "sample"


def test_the_code_of_the_card_runs(run, monkeypatch, capsys):
    monkeypatch.chdir(exported(run).parent)
    picture = noise(28, 28)
    picture.save("photo.jpg", quality=100)
    card = (exported(run) / "README.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", card, re.S)[1]
    assert len(code.splitlines()) <= 6
    exec(compile(code, "README.md", "exec"), {})
    lines = [line.rpartition(" ") for line in capsys.readouterr().out.splitlines() if re.search(r" 0\.\d", line)]
    ours = predict(run.path, "photo.jpg", device="cpu", quiet=True)[0].classes
    assert [name for name, _, _ in lines] == [name for name, _ in ours]
    assert [float(score) for _, _, score in lines] == pytest.approx([score for _, score in ours], abs=1e-3)


def test_the_card_has_no_path_of_the_machine(run):
    card = (exported(run) / "README.md").read_text(encoding="utf-8")
    assert "secret" not in card
    place = {"source": "imagefolder", "path": "/home/me/pictures", "crop": "center"}
    settings = {"init": "/home/me/base.safetensors", "variant": "vit_test", "image_size": 28}
    description = a_description(data=place, model=settings, pipeline={"profile": "/home/me/p", **PIPELINE})
    card = card_of(description, source="/home/me/runs/x")
    assert "/home/me" not in card
    assert "fine-tuned from weights called base.safetensors with vit_ipu" in card
    assert "base_model" not in front_of(card)


PIPELINE = tiny_values()["pipeline"]


def test_an_earlier_checkpoint_has_its_own_results(run):
    lines = [line for line in read_metrics(run.path / "metrics.jsonl") if "top1" in line]
    facts = run_facts(run.path / "checkpoints" / "update-00000002")
    assert facts.updates == 2
    best = min(lines, key=lambda line: line["evaluation_loss"])
    best_of = 2 if best is lines[0] else None
    assert facts.results == Results(lines[0]["top1"], lines[0]["top5"], lines[0]["evaluation_loss"], 50, best_of)


def test_a_checkpoint_was_not_chosen_from_the_evaluation_before_training(tmp_path):
    sections = {"optim": {"optimizer": "sgd", "learning_rate": 0.5}, "run": {"updates": 2, "evaluate_every": 1}}
    sections["run"].update(keep_best="loss", evaluate_at_start=True)
    path = write_config(tmp_path, **sections)
    run = train(path, device="cpu", output=tmp_path / "run", quiet=True)
    assert len([line for line in read_metrics(run.path / "metrics.jsonl") if "top1" in line]) == 3
    best = run.path / json.loads((run.path / "best.json").read_text())["checkpoint"]
    assert run_facts(best).results.best_of == 2


def test_a_checkpoint_that_was_chosen_by_its_results_says_so():
    said = "The checkpoint was chosen as the best of 12 evaluations of the same images."
    assert said in card_of(a_description(), facts=RunFacts(3, Results(50.0, 100.0, 0.5, 10, best_of=12)))
    assert "chosen" not in card_of(a_description(), facts=RunFacts(3, Results(50.0, 100.0, 0.5, 10)))
    assert "chosen" not in card_of(a_description(), facts=RunFacts(3, Results(50.0, 100.0, 0.5, 10, best_of=1)))


@pytest.mark.parametrize("init", ["hf-hub:google/vit-base-patch16-224", "hf-hub:google/vit-base-patch16-224@refs/pr/1"])
def test_the_base_model_is_a_repository_of_the_hub(init):
    card = card_of(a_description(model={"variant": "vit_test", "image_size": 28, "init": init}))
    assert front_of(card)["base_model"] == "google/vit-base-patch16-224"
    assert "fine-tuned from google/vit-base-patch16-224 on the Hugging Face Hub" in card


def test_a_conversion_states_no_training(tmp_path):
    description = replace(a_description(), trained=None, assumed=("gelu", "mean"))
    card = card_of(description, source=str(tmp_path / "x.pth"), origin="timm")
    assert "converted it from weights in the format timm." in card
    assert "assumed in the conversion: tanh GELU, pixel mean 0.5 0.5 0.5." in card
    assert str(tmp_path) not in card
    assert not re.search("## (Training|Results)", card)
    assert not {"metrics", "model-index", "base_model"} & set(front_of(card))
    card = card_of(description, source="hf-hub:timm/x", origin="timm")
    assert front_of(card)["base_model"] == "timm/x"


def test_names_of_classes_are_shown_as_they_are():
    cells = cells_of(card_of(a_description(NAMES)))
    start = cells.index("plain")
    shown = [name.replace("\n", "\\n") or "(no name)" for name in NAMES]
    assert cells[start : start + 2 * len(NAMES) : 2] == shown


def test_a_name_is_not_a_link_or_a_mention():
    assert markdown("www.a.b") == r"www\.a.b"
    assert markdown("http://a") == r"http\://a"
    assert markdown("me@b.c") == r"me\@b.c"


def test_the_name_of_the_model_is_a_string_of_yaml_and_python():
    name = 'it\'s: "x" #1'
    card = card_of(a_description(), name, facts=RunFacts(3, Results(50.0, 100.0, 0.5, 10)))
    assert front_of(card)["model-index"][0]["name"] == name
    code = re.search(r"```python\n(.*?)```", card, re.S)[1]
    assert f"model={json.dumps(name)})" in code
    compile(code, "README.md", "exec")


def test_of_many_classes_the_first_are_listed():
    card = card_of(a_description([f"class {label}" for label in range(MOST_CLASSES + 7)]))
    assert "7 more are in `id2label` of `config.json`." in card
    assert f"class {MOST_CLASSES - 1} |" in card
    assert f"class {MOST_CLASSES} |" not in card


def test_a_simulated_run_says_so(tmp_path, monkeypatch, capsys):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_values(run={"updates": 1})))
    run = tmp_path / "run"
    assert vit_ipu(monkeypatch, capsys, "train", path, "--device", "ipu-sim", "--output", run)[0] == 0
    assert vit_ipu(monkeypatch, capsys, "convert", run, tmp_path / "hf", "--to", "huggingface")[0] == 0
    card = (tmp_path / "hf" / "README.md").read_text(encoding="utf-8")
    assert "**Simulated: no IPU was used.**" in card
    assert "held-out images. The device was simulated." in card
    assert "simulated IPUs on CPU" in card


@pytest.mark.parametrize("name", ["environment.json", "metrics.jsonl", "evaluation.json"])
@pytest.mark.parametrize("content", ["", "[1]", '{"simulated": true}', '{"update": 4, "top1": "x"}'])
def test_a_damaged_file_of_the_run_is_left_out(run, tmp_path, name, content):
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(str(run.path), str(copy))
    (copy / name).write_text(content)
    convert(copy, tmp_path / "hf", "huggingface", quiet=True)
    card = (tmp_path / "hf" / "README.md").read_text(encoding="utf-8")
    assert ("Device: " in card) == (name != "environment.json")
    assert ("## Results" in card) == (name != "metrics.jsonl")
    if name == "evaluation.json":
        assert "| held-out images | number not recorded |" in card
