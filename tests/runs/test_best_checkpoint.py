"""run.keep_best: the checkpoint of the best evaluation is kept beside the newest ones, and named by best.json."""

from __future__ import annotations

import json

import pytest
from small_runs import choose_evaluations, names_in, small_config, train_in

from vit_ipu.runs import logger
from vit_ipu.runs.metrics import read_metrics
from vit_ipu.unused_options import unused_options

TOP1 = {2: 10.0, 4: 30.0, 6: 20.0, 8: 30.0}
"""The pretended top-1 at each update."""


@pytest.fixture
def chosen_evaluations(monkeypatch):
    choose_evaluations(monkeypatch, TOP1)


def config(measure):
    return small_config(evaluate_every=2, keep_checkpoints=1, keep_best=measure)


@pytest.mark.parametrize(("measure", "best", "value"), [("top1", 4, 30.0), ("top5", 2, 90.0), ("loss", 4, 2.0)])
def test_the_first_of_the_best_evaluations_keeps_its_checkpoint(chosen_evaluations, empty_folder, measure, best, value):
    train_in(empty_folder / "run", config(measure))
    names = [f"update-{best:08d}", "update-00000008"]
    assert names_in(empty_folder / "run" / "checkpoints") == names
    assert json.loads((empty_folder / "run" / "best.json").read_text()) == {
        "checkpoint": f"checkpoints/{names[0]}",
        "update": best,
        measure: value,
    }


def test_without_the_option_only_the_newest_is_kept(chosen_evaluations, empty_folder):
    train_in(empty_folder / "run", config(None))
    assert names_in(empty_folder / "run" / "checkpoints") == ["update-00000008"]
    assert not (empty_folder / "run" / "best.json").exists()


@pytest.mark.parametrize("stopped_at", [5, 6, 7])
def test_the_best_checkpoint_survives_a_resume(chosen_evaluations, monkeypatch, empty_folder, stopped_at):
    original = logger.RunLogger.step

    def crash(self, progress, *args):
        if progress.update == stopped_at:
            raise MemoryError
        original(self, progress, *args)

    with monkeypatch.context() as context:
        context.setattr(logger.RunLogger, "step", crash)
        with pytest.raises(MemoryError):
            train_in(empty_folder / "run", config("top1"))
    train_in(empty_folder / "run", config("top1"), resume=True)
    assert names_in(empty_folder / "run" / "checkpoints") == ["update-00000004", "update-00000008"]
    assert json.loads((empty_folder / "run" / "best.json").read_text())["update"] == 4
    evaluations = [line for line in read_metrics(empty_folder / "run" / "metrics.jsonl") if "top1" in line]
    assert [(line["update"], line["top1"]) for line in evaluations] == list(TOP1.items())


def test_a_resume_without_the_option_forgets_the_best(chosen_evaluations, empty_folder):
    train_in(empty_folder / "run", config("top1"))
    train_in(empty_folder / "run", config(None), resume=True)
    assert not (empty_folder / "run" / "best.json").exists()


def test_an_only_evaluation_at_the_end_needs_no_option():
    assert unused_options(config("top1")) == []
    assert unused_options(small_config(keep_best="loss")) == [
        "run.keep_best has no effect without evaluate_every: the only evaluation is at the end"
    ]


def test_a_run_given_for_its_weights_means_its_best_checkpoint(chosen_evaluations, empty_folder):
    from vit_ipu.weights.read import read_weights

    run = empty_folder / "run"
    train_in(run, config("top1"))
    notes = []
    assert read_weights(str(run), notify=notes.append).path.name == "update-00000004"
    assert notes == [f"note: {run}: using the best checkpoint, update-00000004; the newest one is update-00000008"]
    newest = run / "checkpoints" / "update-00000008"
    assert read_weights(str(newest), notify=notes.append).path == newest
    (run / "best.json").write_text("{")  # damaged
    assert read_weights(str(run), notify=notes.append).path == newest
    (run / "best.json").write_text('{"update": 5}')  # of a checkpoint that is gone
    assert read_weights(str(run), notify=notes.append).path == newest
    assert len(notes) == 1


def test_a_damaged_best_checkpoint_is_named_and_the_newest_used(chosen_evaluations, empty_folder):
    from vit_ipu.weights.read import read_weights

    run = empty_folder / "run"
    train_in(run, config("top1"))
    (run / "checkpoints" / "update-00000004" / "model.safetensors").write_bytes(b"")
    notes = []
    assert read_weights(str(run), notify=notes.append).path.name == "update-00000008"
    assert "update-00000004" in notes[-1]
    assert notes[-1].endswith("update-00000008 is used instead")
