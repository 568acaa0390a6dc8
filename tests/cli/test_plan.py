"""The command `plan`: predictions, the search, exit codes and mistakes."""

from __future__ import annotations

import json
import re

import pytest
import yaml
from helpers import vit_ipu, write_config

from vit_ipu.config_file import load_config
from vit_ipu.pipeline import num_ipus

FINE_TUNE = "mmcls_vit_base_patch16_finetune_224_ipu"
LARGE = "mmcls_vit_large_patch16_finetune_384"


def test_plan_predicts_and_says_so(run):
    text = run("plan", FINE_TUNE)
    assert "Predicted memory in training, MB of the 941 MB of each gc200 IPU:" in text
    assert "Predicted to fit.\n" in text
    assert re.search(r"^  0 +44 +44 +44 +126 +165 +280 +8 +70 +780 \[#{8}-? *\] +482-819 +yes$", text, re.M)
    assert "Predicted time of a cycle, on gc200 IPUs:" in text
    assert re.search(r"^Predicted 5,8\d\d images/s in training, between 5,2\d\d and 9,\d\d\d$", text, re.M)
    assert re.search(r"^Predicted 0\.37\d s an update, limited by matrix products of IPU 0$", text, re.M)
    assert re.search(r"^Predicted \d+\.\d minutes for the run, without evaluations$", text, re.M)
    after = text[text.index("Predicted memory") :]
    assert max(len(line) for line in after.splitlines()) <= 80


@pytest.mark.parametrize("name", ["quickstart", LARGE])
def test_lines_fit_into_80_columns(run, name):
    for line in run("plan", name, "--search").splitlines():
        assert len(line) <= 80


def test_hardware_is_the_configs_or_the_options(run):
    assert json.loads(run("plan", FINE_TUNE, "--json"))["hardware"] == "gc200"
    bow = json.loads(run("plan", FINE_TUNE, "--json", "--set", "pipeline.ipu_version=21"))
    chosen = json.loads(run("plan", FINE_TUNE, "--json", "--hardware", "bow"))
    assert bow["hardware"] == chosen["hardware"] == "bow"
    assert bow["predicted"] == chosen["predicted"]


def test_json_has_what_it_had_and_the_predictions(run):
    plan = json.loads(run("plan", FINE_TUNE, "--json"))
    assert (plan["num_ipus"], plan["gradient_accumulation"], plan["violations"]) == (16, 32, [])
    assert plan["fits"] is True
    assert plan["predicted"]["low"] < plan["predicted"]["images_per_second"] < plan["predicted"]["high"]
    assert [row["units"] for row in plan["ipus"]] == plan["placement"]
    assert "search" not in plan


def test_a_config_that_does_not_fit_gets_advice(run):
    text = run("plan", FINE_TUNE, "--set", "pipeline.recompute=none")
    assert "Predicted not to fit: the lowest total of an IPU is more than its memory." in text
    assert "What would fit, each alone: pipeline.recompute=every_block" in text
    unknown = run("plan", FINE_TUNE, "--set", "pipeline.recompute=auto")
    assert "Not known whether it fits: an IPU's memory is within the range of its total." in unknown
    assert re.search(r"^  0 .* \?$", unknown, re.M)
    assert json.loads(run("plan", FINE_TUNE, "--set", "pipeline.recompute=auto", "--json"))["fits"] is None


def test_plan_exits_with_2_where_poptorch_would_refuse(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, out, _ = vit_ipu(monkeypatch, capsys, "plan", "quickstart", "--set", "model.gelu=erf")
    assert code == 2
    assert "PopTorch would refuse: model.gelu erf" in out
    code, out, _ = vit_ipu(monkeypatch, capsys, "plan", "quickstart", "--set", "model.gelu=erf", "--json")
    assert code == 2
    assert json.loads(out)["violations"] == [
        "model.gelu erf would be computed in its tanh form on IPUs: set model.gelu: tanh"
    ]


@pytest.mark.parametrize(
    "change",
    [
        "pipeline.available_memory_proportion=[0.1, 0.2]",
        "pipeline.available_memory_proportion=1.5",
        "pipeline.layers_per_ipu=[1,1,2]",
        "pipeline.io_tiles=1472",
        "pipeline.io_tiles=5000",
        "pipeline.global_batch_size=8",
        "precision.compute=float64",
    ],
)
def test_what_poptorch_refuses_is_still_planned(monkeypatch, capsys, tmp_path, change):
    monkeypatch.chdir(tmp_path)
    code, out, err = vit_ipu(monkeypatch, capsys, "plan", "quickstart", "--set", change)
    assert (code, err) == (2, "")
    assert "PopTorch would refuse: " in out


def test_the_search_prints_yaml_and_writes_configs_that_run(run, empty_folder):
    text = run("plan", LARGE, "--search", "--output", "plans")
    sections = re.findall(r"^# \d: predicted [\d,]+ images/s, predicted to fit\n(pipeline:\n(?:  .*\n)+)", text, re.M)
    files = sorted((empty_folder / "plans").iterdir())
    assert [file.name for file in files] == ["plan-1.yaml", "plan-2.yaml", "plan-3.yaml"]
    for section, file in zip(sections, files):
        found = load_config(file)
        assert num_ipus(found) == 16
        values = yaml.safe_load(section)["pipeline"]
        assert {key: found.pipeline.model_dump(mode="json")[key] for key in values} == values
        assert "Predicted: " in file.read_text().splitlines()[1]
    assert "Predicted to fit." in run("plan", "plans/plan-1.yaml")
    assert text.count("written plans/plan-") == 3


def test_the_search_as_json(run):
    plan = json.loads(run("plan", LARGE, "--search", "--pod", "64", "--json"))
    for candidate in plan["search"]:
        pipeline = candidate["config"]["pipeline"]
        assert len(pipeline["layers_per_ipu"]) * pipeline["replication_factor"] == 64
        assert candidate["predicted"]["images_per_second"] > 0


def test_a_search_without_result_says_so(run):
    arguments = ["plan", "quickstart", "--search", "--set", "model.width=16384"]
    assert "--search: nothing on this POD is predicted to fit for sure" in run(*arguments)
    found = json.loads(run(*arguments, "--json"))
    assert found["search"] == []
    assert found["nothing_found"].startswith("nothing on this POD is predicted to fit for sure")


def test_a_search_without_result_makes_no_folder(run, empty_folder):
    run("plan", "quickstart", "--search", "--set", "model.width=16384", "--output", "plans")
    assert not (empty_folder / "plans").exists()


def test_a_search_names_what_poptorch_refuses_and_not_the_memory(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, out, _ = vit_ipu(monkeypatch, capsys, "plan", "quickstart", "--search", "--set", "model.gelu=erf")
    assert code == 2
    assert "nothing on this POD" not in out
    assert out.endswith(
        "\n--search: PopTorch would refuse every config that is predicted to fit:\n"
        "model.gelu erf would be computed in its tanh form on IPUs: set model.gelu: tanh\n"
    )


# --------------------------------------------------------------------------------- several kinds of IPUs


def test_several_kinds_of_ipus_are_shown_side_by_side(run):
    text = run("plan", FINE_TUNE, "--hardware", "gc200,bow")
    assert re.search(r"^Predicted on +gc200 +bow$", text, re.M)
    assert re.search(r"^IPU 0 MB +780 \(482-819\) yes +780 \(482-819\) yes$", text, re.M)
    assert re.search(r"^fits +yes +yes$", text, re.M)
    rates = []
    for name in ("gc200", "bow"):
        predicted = json.loads(run("plan", FINE_TUNE, "--hardware", name, "--json"))["predicted"]
        rates.append(f"{predicted['images_per_second']:,.0f}")
        assert predicted["limited_by"] in text
    assert re.search(rf"^images/s +{rates[0]} +{rates[1]}$", text, re.M)
    assert max(map(len, text.splitlines())) <= 80


def test_several_kinds_of_ipus_as_json(run):
    both = json.loads(run("plan", FINE_TUNE, "--hardware", "bow, gc200", "--json"))
    assert [one["hardware"] for one in both["predictions"]] == ["bow", "gc200"]
    for one in both.pop("predictions"):
        assert {**both, **one} == json.loads(run("plan", FINE_TUNE, "--hardware", one["hardware"], "--json"))


def test_several_kinds_of_ipus_get_advice_each(run):
    text = run("plan", FINE_TUNE, "--hardware", "gc200,bow", "--set", "pipeline.recompute=none")
    for name in ("gc200", "bow"):
        assert f"What would fit on {name}, each alone:\n  pipeline.recompute=every_block\n" in text


def test_lines_of_16_ipus_side_by_side_fit_into_80_columns(run):
    wide = ["--set", "pipeline.recompute=none", "--hardware", "gc200,bow"]
    for line in run("plan", LARGE, *wide).splitlines():
        assert len(line) <= 80


def test_several_kinds_of_ipus_say_what_poptorch_refuses(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    arguments = ["quickstart", "--hardware", "gc200,bow", "--set", "model.gelu=erf"]
    code, out, _ = vit_ipu(monkeypatch, capsys, "plan", *arguments)
    assert code == 2
    assert "PopTorch would refuse: model.gelu erf" in out


MISTAKES = [
    (["--hardware", "mk1"], "--hardware mk1: unknown: use one of gc200, bow"),
    (["--hardware", "gc200,mk1"], "--hardware gc200,mk1: mk1: unknown: use one of gc200, bow"),
    (["--hardware", "gc200,"], "--hardware gc200,: an empty name: unknown: use one of gc200, bow"),
    (["--hardware", "bow,bow"], "--hardware bow,bow: bow is given twice: give each kind of IPU once"),
    (
        ["--hardware", "gc200,bow", "--search"],
        "--hardware gc200,bow: --search is for one kind of IPU: give one, or leave out --search",
    ),
    (["--search", "--pod", "5"], "--pod 5: there is no such POD: use one of 4, 16, 64, 256"),
    (["--search", "--pod", "0"], "--pod 0: there is no such POD: use one of 4, 16, 64, 256"),
    (["--pod", "4"], "--pod has no effect without --search: add --search"),
    (["--output", "plans"], "--output has no effect without --search: add --search"),
    (
        ["--search", "--set", "pipeline.execution=sharded"],
        "pipeline.execution sharded: --search splits pipelines: use pipelined, or no --search",
    ),
    (["--search", "--output", "full"], "--output full: plan-1.yaml exists: give another folder"),
    (["--search", "--output", "tiny.yaml"], "--output tiny.yaml is not a folder: give a folder for the found configs"),
]


@pytest.mark.parametrize(("arguments", "expected"), MISTAKES, ids=[text for _, text in MISTAKES])
def test_mistakes(monkeypatch, capsys, tmp_path, arguments, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "plan-1.yaml").write_text("mine")
    code, out, err = vit_ipu(monkeypatch, capsys, "plan", write_config(tmp_path), *arguments)
    assert (code, out, err) == (2, "", f"vit-ipu: {expected}\n")
    assert (tmp_path / "full" / "plan-1.yaml").read_text() == "mine"
