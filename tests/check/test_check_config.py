"""`vit-ipu check` accepts every shipped config, and refuses others with everything that is wrong with them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import tiny_config, vit_ipu, write_config

from vit_ipu import losses, model, step
from vit_ipu.check import NOT_CHECKED, check_config
from vit_ipu.config_file import load_config, shipped_configs
from vit_ipu.ipu_rules import ipu_violations, num_rules

BAD = {
    "model": {"gelu": "erf"},
    "pipeline": {"replication_factor": 3, "global_batch_size": 12, "micro_batch_size": 4},
    "precision": {"compute": "bfloat16"},
}


@pytest.mark.parametrize("name", sorted(set(shipped_configs()) - {"own_folder_gpu"}))
def test_every_shipped_config_for_ipus_is_accepted(name):
    report = check_config(load_config(shipped_configs()[name]))
    assert report.accepted
    assert (report.violations, report.findings()) == ((), [])
    training, inference = report.programs
    assert (training.name, inference.name) == ("training step", "inference step")
    assert training.num_operations > inference.num_operations > 200
    assert report.num_rules >= 17


def test_all_violations_of_the_config_are_in_the_report():
    config = tiny_config(**BAD)
    report = check_config(config)
    assert len(report.violations) == 4
    assert list(report.violations) == ipu_violations(config)
    assert not report.accepted
    assert all(program.accepted for program in report.programs)
    (finding,) = [finding for finding, _ in report.findings()]
    assert (finding.verdict, finding.operation, len(finding.modules)) == ("different", "aten::gelu", 4)


SETTINGS = {
    "mixing and smoothing": {"data": {"mixup_alpha": 0.2}, "optim": {"label_smoothing": 0.1}},
    "class weights": {"optim": {"class_weights": "balanced"}, "precision": {"compute": "float16"}},
    "bce": {
        "optim": {"loss": "bce", "label_smoothing": 0.1, "bce_target_threshold": 0.2},
        "data": {"mixup_alpha": 0.2},
    },
    "dropout": {"model": {"dropout": 0.1, "attention_dropout": 0.1, "drop_path": 0.1, "representation_size": 16}},
    "floats": {"data": {"transfer": "float32"}},
    "float16": {"precision": {"compute": "float16", "loss_scale": 128.0}},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_what_a_config_may_use_is_accepted(name):
    report = check_config(tiny_config(**SETTINGS[name]))
    assert report.accepted
    assert report.findings() == []


def test_the_operations_of_the_model_and_of_the_loss_are_judged(monkeypatch):
    """Breaks the model and the loss, as an edit of them might."""
    monkeypatch.setattr(model.MLP, "forward", lambda self, x: self.fc2(torch.lerp(self.fc1(x), self.fc1(x), 0.5)))
    monkeypatch.setattr(
        losses, "classification_loss", lambda z, y, *_, **__: F.cross_entropy(z, y, label_smoothing=0.1)
    )
    report = check_config(tiny_config())
    found = {finding.operation: (finding, programs) for finding, programs in report.findings()}
    assert set(found) == {"aten::lerp", "cross_entropy"}
    lerp, programs = found["aten::lerp"]
    assert programs == ["training step", "inference step"]
    assert lerp.modules == tuple(f"model.blocks.{index}.mlp" for index in range(4))
    loss, programs = found["cross_entropy"]
    assert (programs, loss.file) == (["training step"], __file__)
    assert not any(program.accepted for program in report.programs)


def test_a_loss_that_is_not_returned_as_one_is_refused(monkeypatch):
    from vit_ipu import check

    monkeypatch.setattr(check, "_MarkedStep", step.TrainingStep)
    config = tiny_config(optim={"label_smoothing": 0.1})
    (finding,) = check_config(config).programs[0].refused
    assert finding.message == "Couldn't find a loss in graph!"


def test_a_branch_on_a_value_names_if(monkeypatch, capsys, empty_folder):
    monkeypatch.setattr(model.MLP, "forward", lambda self, x: self.fc2(self.fc1(x)) if x.sum() > 0 else x)
    code, out, _ = vit_ipu(monkeypatch, capsys, "check", write_config(empty_folder))
    assert code == 2
    assert "refused: aten::item, called by if or bool(), 4 times" in " ".join(out.split())


# ------------------------------------------------------------------------------------------ command


def test_the_command_accepts_a_good_config_and_says_what_it_checked(run):
    out = run("check", "quickstart")
    assert "PopTorch would accept quickstart." in out
    assert " ".join(out.split()).endswith(f"Only PopTorch and an IPU can tell {NOT_CHECKED}.")
    assert "training step: " in out
    assert f"settings: {num_rules(load_config(Path('quickstart')))} rules, 0 violated" in out
    assert max(map(len, out.splitlines())) <= 80
    assert "poptorch" not in sys.modules or getattr(sys.modules["poptorch"], "__simulated__", False)


def test_the_command_refuses_a_bad_config_with_exit_2(monkeypatch, capsys, empty_folder):
    path = write_config(empty_folder, "bad", **BAD)
    code, out, err = vit_ipu(monkeypatch, capsys, "check", path)
    assert (code, err) == (2, "")
    assert out.count("refused: ") == 4
    assert "PopTorch would refuse bad.yaml." in out
    assert "model.py:" in out
    assert max(map(len, out.splitlines())) <= 80
    assert vit_ipu(monkeypatch, capsys, "check", path, "--set", "model.gelu=tanh")[1].count("refused: ") == 3


def test_the_output_names_operation_place_reason_and_remedy(monkeypatch, capsys, empty_folder):
    monkeypatch.setattr(model.MLP, "forward", lambda self, x: self.fc2(torch.lerp(self.fc1(x), self.fc1(x), 0.5)))
    code, out, _ = vit_ipu(monkeypatch, capsys, "check", write_config(empty_folder))
    assert code == 2
    text = " ".join(out.split())
    assert "refused: aten::lerp, called by torch's lerp, 4 times (training step and inference step) where: " in text
    assert (
        ", in model.blocks.0.mlp (MLP) and 3 more why: PopTorch has no handler for aten::lerp do: write it out: a"
        in text
    )
    assert "training step: " in text
    assert ", 1 place refused" in text


def test_json_has_all_findings_and_the_exit_code_is_the_same(monkeypatch, capsys, empty_folder):
    monkeypatch.setattr(model.MLP, "forward", lambda self, x: self.fc2(torch.lerp(self.fc1(x), self.fc1(x), 0.5)))
    path = write_config(empty_folder, "bad", **BAD)
    code, out, _ = vit_ipu(monkeypatch, capsys, "check", path, "--json")
    values = json.loads(out)
    assert code == 2
    assert values["accepted"] is False
    assert len(values["violations"]) == 4
    finding = values["programs"][0]["findings"][0]
    assert set(finding) >= {"verdict", "operation", "file", "line", "modules", "reason", "remedy", "message", "count"}
    assert (finding["operation"], finding["count"]) == ("aten::lerp", 4)
    assert json.loads(vit_ipu(monkeypatch, capsys, "check", "quickstart", "--json")[1])["not_checked"] == NOT_CHECKED
