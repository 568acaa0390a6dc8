"""Run folders: starts that were killed, what they leave behind, and changes of the config that a resume accepts."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from helpers import vit_ipu, write_config
from small_runs import names_in, small_config, train_in

from vit_ipu.config_file import dump_config, load_config
from vit_ipu.errors import UserError
from vit_ipu.files import remove_leftovers, remove_whole
from vit_ipu.runs.folder import RunFolder

CONFIG = small_config(updates=2)

LEFT_BY_KILLED_STARTS = {
    "an empty folder": lambda p: p.mkdir(),
    "folders": lambda p: (p / "checkpoints").mkdir(parents=True),
    "folders and the lock": lambda p: ((p / "checkpoints").mkdir(parents=True), (p / ".lock").touch()),
    "an unfinished config": lambda p: (
        (p / "checkpoints").mkdir(parents=True),
        (p / ".lock").touch(),
        (p / ".writing-config.yaml").write_text("mod"),
    ),
}


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("left", list(LEFT_BY_KILLED_STARTS))
def test_a_start_that_was_killed_can_be_started_again(empty_folder, left, resume):
    path = empty_folder / "run"
    LEFT_BY_KILLED_STARTS[left](path)
    summary, lines = train_in(path, CONFIG, resume=resume)
    assert summary.progress.update == 2
    assert load_config(path / "config.yaml") == CONFIG
    assert ".writing-config.yaml" not in names_in(path)
    if resume:
        assert "resuming at update 0: there is no checkpoint yet, so the run starts from the beginning" in lines


@pytest.mark.parametrize("name", ["notes.txt", "metrics.jsonl", "environment.json", "best.json"])
def test_a_folder_of_others_is_not_a_start_that_was_killed(empty_folder, name):
    (empty_folder / "run").mkdir()
    (empty_folder / "run" / name).write_text("mine")
    with pytest.raises(UserError, match="there is no run in .*: start one without --resume"):
        RunFolder.reopen(empty_folder / "run", CONFIG)
    assert names_in(empty_folder / "run") == [name]


def test_a_run_that_has_checkpoints_but_lost_its_config_is_not_started_again(empty_folder):
    (empty_folder / "run" / "checkpoints" / "update-00000002").mkdir(parents=True)
    with pytest.raises(UserError, match="there is no run in"):
        RunFolder.reopen(empty_folder / "run", CONFIG)
    with pytest.raises(UserError, match="already holds checkpoints"):
        RunFolder.create(empty_folder / "run", CONFIG)


@pytest.mark.parametrize("content", [None, b"", b"model: {var", b"\xff"])
def test_a_config_that_is_lost_or_damaged_can_be_restored(empty_folder, content):
    path = empty_folder / "run"
    train_in(path, CONFIG)
    if content is None:
        (path / "config.yaml").unlink()
    else:
        (path / "config.yaml").write_bytes(content)
    with pytest.raises(UserError, match=r"^--resume: .*restore config\.yaml, for example from the config that the run"):
        RunFolder.reopen(path, CONFIG)
    (path / "config.yaml").write_text(dump_config(CONFIG))
    RunFolder.reopen(path, CONFIG).release()


def test_a_damaged_environment_says_how_to_resume(empty_folder):
    path = empty_folder / "run"
    train_in(path, CONFIG)
    (path / "environment.json").write_text("{")
    with pytest.raises(UserError, match="environment.json is damaged: .*; remove it to resume"):
        train_in(path, CONFIG, resume=True)
    (path / "environment.json").unlink()
    assert train_in(path, CONFIG, resume=True)[0].progress.update == 2


@pytest.mark.parametrize("resume", [False, True])
def test_a_lock_that_is_a_link_is_not_followed(empty_folder, resume):
    (empty_folder / "run").mkdir()
    (empty_folder / "elsewhere").write_text("mine")
    (empty_folder / "run" / ".lock").symlink_to(empty_folder / "elsewhere")
    with pytest.raises(UserError, match="cannot write the run folder .*run: .*symbolic links"):
        train_in(empty_folder / "run", CONFIG, resume=resume)
    assert names_in(empty_folder / "run") == [".lock"]


def test_a_full_disk_at_the_start_leaves_a_folder_that_can_be_started(monkeypatch, capsys, empty_folder):
    from vit_ipu.runs import folder

    def refuse(*args):
        raise OSError(28, "No space left on device")

    config = write_config(empty_folder, run={"updates": 1})
    (empty_folder / "run").mkdir()
    with monkeypatch.context() as context:
        context.setattr(folder, "write_whole", refuse)
        code, _, err = vit_ipu(monkeypatch, capsys, "train", config, "--device", "cpu", "--output", "run")
    assert (code, err) == (2, "vit-ipu: cannot write the run folder run: No space left on device\n")
    assert vit_ipu(monkeypatch, capsys, "train", config, "--device", "cpu", "--output", "run", "--resume")[0] == 0


def test_a_start_whose_environment_is_written_but_not_synced_can_be_made_again(monkeypatch, empty_folder):
    from vit_ipu import files

    original = files.sync_entry

    def fail(path):
        if (path / "environment.json").is_file():
            raise OSError(5, "Input/output error")
        original(path)

    with monkeypatch.context() as context:
        context.setattr(files, "sync_entry", fail)
        with pytest.raises(OSError, match="Input/output error"):
            train_in(empty_folder / "run", CONFIG)
    assert not (empty_folder / "run").exists()
    assert train_in(empty_folder / "run", CONFIG)[0].progress.update == 2


def test_the_next_start_removes_what_interrupted_writes_and_removals_left(empty_folder):
    path = empty_folder / "run"
    train_in(path, CONFIG)
    for name in (
        "config.yaml",
        "metrics.jsonl",
        "environment.json",
        "evaluation.json",
        "skipped.txt",
        "report.html",
        "best.json",
        "diverged.json",
        "mine",
    ):
        (path / f".writing-{name}").write_text("half")
    for name in (".writing-update-00000004", ".removing-update-00000001"):
        (path / "checkpoints" / name).mkdir()
        (path / "checkpoints" / name / "model.safetensors").write_bytes(b"half")
    RunFolder.reopen(path, CONFIG).release()
    assert [name for name in names_in(path) if name.startswith(".")] == [".lock", ".writing-mine"]
    assert names_in(path / "checkpoints") == ["update-00000002"]


@pytest.mark.parametrize("at", ["rename", "removal"])
def test_a_folder_is_removed_completely_or_not_at_all(tmp_path, monkeypatch, at):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "file").write_text("x")

    def crash(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(*((os, "replace") if at == "rename" else (shutil, "rmtree")), crash)
    with pytest.raises(KeyboardInterrupt):
        remove_whole(tmp_path / "old")
    monkeypatch.undo()
    assert names_in(tmp_path) == (["old"] if at == "rename" else [".removing-old"])
    remove_leftovers(tmp_path)
    assert names_in(tmp_path) == (["old"] if at == "rename" else [])


# ------------------------------------------------------------------------------- changes of the config


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    path = tmp_path_factory.mktemp("started") / "run"
    train_in(path, CONFIG)
    return path


@pytest.fixture
def run_folder(started, empty_folder):
    shutil.copytree(str(started), "run")
    return empty_folder / "run"


CHANGED = small_config(updates=4).model_copy(update={"optim": CONFIG.optim.model_copy(update={"learning_rate": 0.5})})


def test_all_keys_that_differ_are_named_at_once(run_folder):
    expected = r"was started with optim.learning_rate 0.001, not 0.5; run.updates 2, not 4: resume with the same config"
    with pytest.raises(UserError, match=expected):
        RunFolder.reopen(run_folder, CHANGED)
    with pytest.raises(UserError, match=r"was started with run.updates 2, not 4: .*--allow-config-change KEY"):
        RunFolder.reopen(run_folder, CHANGED, allowed=["optim.learning_rate"])


def test_accepted_changes_are_noted_recorded_and_accepted_from_then_on(run_folder):
    both = ["optim.learning_rate", "run.updates"]
    summary, lines = train_in(run_folder, CHANGED, resume=True, allowed_changes=both)
    assert summary.progress.update == 4
    assert [line for line in lines if line.startswith("note: ")] == [
        f"note: optim.learning_rate is 0.5 from here on; {run_folder} was started with 0.001",
        f"note: run.updates is 4 from here on; {run_folder} was started with 2",
    ]
    (resumed,) = json.loads((run_folder / "environment.json").read_text())["resumed"]
    assert resumed["config_changes"] == {"optim.learning_rate": [0.001, 0.5], "run.updates": [2, 4]}
    assert load_config(run_folder / "config.yaml") == CHANGED
    RunFolder.reopen(run_folder, CHANGED).release()


def test_a_resumed_run_may_evaluate_at_other_times(run_folder):
    changed = small_config(updates=2, evaluate_every=2, evaluate_at_start=True, keep_best="loss", early_stopping=3)
    RunFolder.reopen(run_folder, changed).release()


def test_a_run_cannot_be_made_shorter_than_it_is(run_folder):
    shorter = CONFIG.model_copy(update={"run": CONFIG.run.model_copy(update={"updates": 1})})
    with pytest.raises(UserError, match="is of update 2, but the run now has 1: raise run.updates"):
        train_in(run_folder, shorter, resume=True, allowed_changes=["run.updates"])


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("optim.learning_rat", "optim has no key 'learning_rat'; did you mean 'learning_rate'"),
        ("optin.learning_rate", "there is no section 'optin'; did you mean 'optim'"),
        ("learning_rate", "expected section.key"),
        ("pipeline.global_batch_size", "a checkpoint does not fit another pipeline.global_batch_size: start a new run"),
    ],
)
def test_keys_that_cannot_be_accepted_are_refused(monkeypatch, capsys, run_folder, key, message):
    config = write_config(run_folder.parent)
    command = ["train", config, "--device", "cpu", "--output", "run", "--resume", "--allow-config-change", key]
    code, _, err = vit_ipu(monkeypatch, capsys, *command)
    assert code == 2
    assert err.startswith(f"vit-ipu: --allow-config-change {key}: ")
    assert message in err
    assert err.count("\n") == 1


def test_a_new_run_has_no_config_to_change(monkeypatch, capsys, empty_folder):
    config = write_config(empty_folder)
    command = ["train", config, "--device", "cpu", "--allow-config-change", "run.seed"]
    code, _, err = vit_ipu(monkeypatch, capsys, *command)
    assert (code, err) == (2, "vit-ipu: --allow-config-change needs --resume: a new run takes any config\n")


def test_the_option_is_given_once_for_each_key(monkeypatch, capsys, run_folder):
    sections = {name: dict(values) for name, values in CHANGED.model_dump(mode="json", exclude_unset=True).items()}
    config = write_config(run_folder.parent, **sections)
    command = ["train", config, "--device", "cpu", "--output", "run", "--resume"]
    assert vit_ipu(monkeypatch, capsys, *command)[0] == 2
    for key in ("optim.learning_rate", "run.updates"):
        command += ["--allow-config-change", key]
    code, out, err = vit_ipu(monkeypatch, capsys, *command)
    assert code == 0, err
    assert "note: run.updates is 4 from here on; run was started with 2" in out
