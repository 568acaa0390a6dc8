"""Checkpoints that are written while training continues: nothing is lost, and errors are told."""

from __future__ import annotations

import json
import os
import signal
import threading
import time

import pytest
from helpers import backend_for, equal_states, random_batch, tiny_config, vit_ipu, write_config
from small_runs import names_in, small_config, train_in

from vit_ipu.backends.native.backend import NativeBackend
from vit_ipu.data.loading.loader import EvaluationLoader
from vit_ipu.data.loading.workers import WorkerPool
from vit_ipu.runs import checkpoint, logger
from vit_ipu.runs.background import BackgroundWriter
from vit_ipu.runs.checkpoint import load_checkpoint
from vit_ipu.weights import native


def test_one_write_at_a_time_in_order():
    writer, events, begun, may_end = BackgroundWriter(), [], threading.Event(), threading.Event()

    def first():
        begun.set()
        may_end.wait(60)
        events.append("first")

    writer.start(first)
    assert begun.wait(60)
    assert events == []  # and `start` has returned
    threading.Timer(0.2, may_end.set).start()
    writer.start(lambda: events.append("second"))
    writer.wait()
    assert events == ["first", "second"]


def test_an_error_is_raised_once_by_the_next_call():
    writer = BackgroundWriter()

    def fail():
        raise OSError(28, "No space left on device")

    for method in (writer.wait, lambda: writer.start(lambda: None)):
        writer.start(fail)
        with pytest.raises(OSError, match="No space left"):
            method()
        writer.wait()
        writer.raise_error()


def test_without_threads_the_write_is_made_at_once(monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    written = []
    writer = BackgroundWriter()
    writer.start(lambda: written.append(1))
    assert written == [1]
    writer.wait()


@pytest.mark.parametrize("device", ["cpu", "ipu-sim"])
def test_later_steps_do_not_change_a_state_that_is_being_written(device):
    config = tiny_config(optim={"optimizer": "adamw"}, model={"dropout": 0.1})
    backend = backend_for(config, device)
    backend.train_step(random_batch(config, 0), 0.01)
    tensors = flat(backend.state_dict())
    copies = {name: tensor.clone() for name, tensor in tensors.items()}
    backend.train_step(random_batch(config, 1), 0.01)
    assert equal_states(tensors, copies)
    assert len(copies) > 100


def flat(value, name=""):
    if isinstance(value, dict):
        return {key: tensor for k, part in value.items() for key, tensor in flat(part, f"{name}/{k}").items()}
    return {name: value} if hasattr(value, "clone") else {}


def test_training_continues_while_a_checkpoint_is_written(monkeypatch, empty_folder):
    save, step = logger.save_checkpoint, logger.RunLogger.step
    stepped = threading.Event()
    order = []

    def slow(folder, state, progress, *args, **options):
        if progress.update == 2:
            assert stepped.wait(60)
        order.append(f"saved {progress.update}")
        return save(folder, state, progress, *args, **options)

    def note(self, progress, *args):
        step(self, progress, *args)
        order.append(f"step {progress.update}")
        if progress.update == 3:
            stepped.set()

    monkeypatch.setattr(logger, "save_checkpoint", slow)
    monkeypatch.setattr(logger.RunLogger, "step", note)
    train_in(empty_folder / "run", small_config(checkpoint_every=2, keep_checkpoints=5))
    assert order.index("step 3") < order.index("saved 2") < order.index("saved 4")
    names = [f"update-{update:08d}" for update in (2, 4, 6, 8)]
    assert names_in(empty_folder / "run" / "checkpoints") == names


def test_a_device_that_stops_threads_trains_only_after_a_checkpoint_is_written(monkeypatch, empty_folder):
    """PopTorch keeps Python's global lock during a host step, so a thread beside it would hardly ever run."""
    events, save, step = [], logger.save_checkpoint, NativeBackend.train_step

    def slow(folder, state, progress, *args, **options):
        time.sleep(0.2)
        saved = save(folder, state, progress, *args, **options)
        events.append(f"written {progress.update}")
        return saved

    def note(self, *args):
        events.append("step")
        return step(self, *args)

    monkeypatch.setattr(NativeBackend, "blocks_threads", True)
    monkeypatch.setattr(NativeBackend, "train_step", note)
    monkeypatch.setattr(logger, "save_checkpoint", slow)
    train_in(empty_folder / "run", small_config(checkpoint_every=4))
    assert events == ["step"] * 4 + ["written 4"] + ["step"] * 4 + ["written 8"]


def test_a_checkpoint_is_written_while_the_evaluation_of_its_update_runs(monkeypatch, empty_folder):
    save, predict = logger.save_checkpoint, NativeBackend.predict
    predicted = threading.Event()
    order = []

    def slow(folder, state, progress, *args, **options):
        if progress.update == 4:
            assert predicted.wait(60)
        order.append(f"saved {progress.update}")
        return save(folder, state, progress, *args, **options)

    def note(self, images):
        order.append("predicted")
        predicted.set()
        return predict(self, images)

    monkeypatch.setattr(logger, "save_checkpoint", slow)
    monkeypatch.setattr(NativeBackend, "predict", note)
    config = small_config(checkpoint_every=4, evaluate_every=4, keep_best="top1")
    train_in(empty_folder / "run", config)
    assert order.index("predicted") < order.index("saved 4") < order.index("saved 8")
    best = json.loads((empty_folder / "run" / "best.json").read_text())
    assert (empty_folder / "run" / best["checkpoint"]).is_dir()


def test_no_process_is_forked_while_a_checkpoint_is_written(monkeypatch, empty_folder):
    save, start = logger.save_checkpoint, WorkerPool._start
    writing, found = [], []

    def slow(folder, state, progress, *args, **options):
        writing.append(progress.update)
        time.sleep(0.2)
        save(folder, state, progress, *args, **options)
        writing.pop()

    def note(pool):
        found.append(list(writing))
        start(pool)

    monkeypatch.setattr(logger, "save_checkpoint", slow)
    monkeypatch.setattr(WorkerPool, "_start", note)
    config = small_config(checkpoint_every=1, evaluate_every=3)
    config = config.model_copy(update={"data": config.data.model_copy(update={"num_workers": 1})})
    train_in(empty_folder / "run", config)
    assert found == [[]] * 2  # of the training and of the evaluations


def test_an_evaluation_that_fails_loses_no_checkpoint(monkeypatch, empty_folder):
    def fail(self, images):
        raise MemoryError

    monkeypatch.setattr(NativeBackend, "predict", fail)
    with pytest.raises(MemoryError):
        train_in(empty_folder / "run", small_config(checkpoint_every=4, evaluate_every=4))
    assert names_in(empty_folder / "run" / "checkpoints") == ["update-00000004"]


def test_an_interrupt_while_the_processes_end_loses_no_checkpoint(monkeypatch, empty_folder):
    save = logger.save_checkpoint

    def slow(*args, **options):
        time.sleep(0.5)
        save(*args, **options)

    def fail(self, images):
        raise MemoryError

    def interrupt(self, *exc):
        raise KeyboardInterrupt

    monkeypatch.setattr(logger, "save_checkpoint", slow)
    monkeypatch.setattr(NativeBackend, "predict", fail)
    monkeypatch.setattr(EvaluationLoader, "__exit__", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train_in(empty_folder / "run", small_config(checkpoint_every=4, evaluate_every=4))
    assert names_in(empty_folder / "run" / "checkpoints") == ["update-00000004"]


@pytest.mark.parametrize("update", [2, 8])
def test_a_checkpoint_that_cannot_be_written_ends_the_run_in_one_line(monkeypatch, capsys, empty_folder, update):
    original = native.save_file

    def full(tensors, path, *args):
        if f"{update:08d}" in path and "optimizer" in path:
            raise OSError(28, "No space left on device")
        original(tensors, path, *args)

    config = write_config(empty_folder, run={"updates": 8, "checkpoint_every": 2, "keep_checkpoints": 1})
    with monkeypatch.context() as context:
        context.setattr(native, "save_file", full)
        code, _, err = vit_ipu(monkeypatch, capsys, "train", config, "--device", "cpu", "--output", "run")
    last = "none" if update == 2 else "run/checkpoints/update-00000006"
    assert code == 1
    assert err.startswith(f"vit-ipu: cannot write the checkpoint of update {update}: cannot write run/checkpoints/")
    assert err.endswith(
        f"optimizer.safetensors: No space left on device; the last whole one is {last}: free some space, and continue "
        "with --resume\n"
    )
    assert names_in(empty_folder / "run" / "checkpoints") == ([] if update == 2 else ["update-00000006"])
    assert vit_ipu(monkeypatch, capsys, "train", config, "--device", "cpu", "--output", "run", "--resume")[0] == 0
    load_checkpoint(empty_folder / "run" / "checkpoints" / "update-00000008", device_kind="cpu")


def test_an_old_checkpoint_that_cannot_be_removed_ends_the_run_and_a_resumed_run_removes_it(
    monkeypatch, capsys, empty_folder
):
    def refuse(path):
        raise OSError(13, "Permission denied")

    config = write_config(empty_folder, run={"updates": 4, "checkpoint_every": 2, "keep_checkpoints": 1})
    train_it = ("train", config, "--device", "cpu", "--output", "run")
    with monkeypatch.context() as context:
        context.setattr(checkpoint, "remove_whole", refuse)
        code, _, err = vit_ipu(monkeypatch, capsys, *train_it)
    assert code == 1
    assert err == (
        "vit-ipu: cannot remove old checkpoints in run/checkpoints: Permission denied; all newer ones are whole: "
        "continue with --resume, which tries again\n"
    )
    assert names_in(empty_folder / "run" / "checkpoints") == ["update-00000002", "update-00000004"]
    assert vit_ipu(monkeypatch, capsys, *train_it, "--resume")[0] == 0
    assert names_in(empty_folder / "run" / "checkpoints") == ["update-00000004"]


def test_a_stop_waits_for_the_checkpoint_that_is_being_written(monkeypatch, empty_folder):
    save, step = logger.save_checkpoint, logger.RunLogger.step
    stopping = threading.Event()

    def slow(folder, state, progress, *args, **options):
        assert stopping.wait(60)
        return save(folder, state, progress, *args, **options)

    def stop(self, progress, *args):
        step(self, progress, *args)
        if progress.update == 3:
            os.kill(os.getpid(), signal.SIGINT)
            threading.Timer(0.3, stopping.set).start()

    monkeypatch.setattr(logger, "save_checkpoint", slow)
    monkeypatch.setattr(logger.RunLogger, "step", stop)
    summary, _ = train_in(empty_folder / "run", small_config(checkpoint_every=2))
    assert summary.interrupted
    assert names_in(empty_folder / "run" / "checkpoints") == ["update-00000002", "update-00000003"]
    assert summary.checkpoint.name == "update-00000003"


def test_a_failed_run_still_completes_the_checkpoint_that_is_being_written(monkeypatch, empty_folder):
    save, step = logger.save_checkpoint, logger.RunLogger.step
    failing = threading.Event()

    def slow(*args, **options):
        assert failing.wait(60)
        return save(*args, **options)

    def fail(self, progress, *args):
        step(self, progress, *args)
        if progress.update == 3:
            threading.Timer(0.3, failing.set).start()
            raise MemoryError

    monkeypatch.setattr(logger, "save_checkpoint", slow)
    monkeypatch.setattr(logger.RunLogger, "step", fail)
    with pytest.raises(MemoryError):
        train_in(empty_folder / "run", small_config(checkpoint_every=2))
    assert names_in(empty_folder / "run" / "checkpoints") == ["update-00000002"]


def test_workers_are_forked_beside_checkpoints(empty_folder):
    config = small_config(checkpoint_every=1, evaluate_every=1, keep_best="loss")
    config = config.model_copy(update={"data": config.data.model_copy(update={"num_workers": 2})})
    summary, _ = train_in(empty_folder / "run", config)
    assert summary.progress.update == 8


def test_files_of_a_checkpoint_have_the_usual_permissions(tmp_path):
    (tmp_path / "usual").touch()
    native.save_tensors({}, tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_write_is_completed_after_ctrl_c_has_interrupted_the_wait_for_it():
    writer, written = BackgroundWriter(), []

    def write():
        time.sleep(1)
        written.append(1)

    writer.start(write)
    threading.Timer(0.2, signal.pthread_kill, (threading.get_ident(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        writer.wait()
    assert written == []
    writer.wait()
    assert written == [1]
