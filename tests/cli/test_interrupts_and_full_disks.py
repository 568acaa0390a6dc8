"""Ctrl-C at any time, full disks, and terminals that cannot show every character."""

from __future__ import annotations

import io
import sys

import pytest
import torch
from helpers import vit_ipu, write_config

from vit_ipu.__main__ import main
from vit_ipu.cli.console import make_console
from vit_ipu.errors import RunFailed
from vit_ipu.runs import logger
from vit_ipu.weights.native import save_tensors


def test_ctrl_c_while_importing_is_reported(monkeypatch, capsys):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr("vit_ipu.cli.app.main", interrupt)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "vit-ipu: interrupted\n"


def test_ctrl_c_in_a_command_is_reported(monkeypatch, capsys):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("vit_ipu.model_cost.describe_variants", interrupt)
    assert vit_ipu(monkeypatch, capsys, "models") == (130, "", "vit-ipu: interrupted\n")


def test_ctrl_c_in_a_verification_does_not_claim_that_work_is_kept(monkeypatch, capsys):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("vit_ipu.data.packing.verification.verify", interrupt)
    code, out, err = vit_ipu(monkeypatch, capsys, "pack", "images", "shards", "--verify")
    assert (code, out) == (130, "")
    assert err == (
        "vit-ipu: interrupted before all shards were checked; start again with: vit-ipu pack images shards --verify\n"
    )


def test_any_text_is_shown_on_any_terminal(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii", errors="strict", write_through=True))
    make_console(as_json=False).print("class \udcff of \u00e4")
    assert written.getvalue() == b"class \\udcff of \\xe4\n"


def test_a_checkpoint_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(RunFailed, match=r"^cannot write .*nowhere/model.safetensors: .*No such file"):
        save_tensors({"x": torch.zeros(3)}, tmp_path / "nowhere" / "model.safetensors")


def test_a_full_disk_while_training_is_named(monkeypatch, capsys, empty_folder):
    def refuse(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(logger.RunLogger, "step", refuse)
    code, _, err = vit_ipu(monkeypatch, capsys, "train", write_config(empty_folder), "--device", "cpu")
    assert (code, err) == (1, "vit-ipu: runs/tiny: No space left on device\n")
