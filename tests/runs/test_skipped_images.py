"""Images that a run could not read: each is counted and listed once, also if the run is resumed."""

from __future__ import annotations

import os
import signal

import pytest
from helpers import write_image_folder
from small_runs import metrics_without_times, small_config, train_in

from vit_ipu.config_file import parse_config
from vit_ipu.errors import UserError
from vit_ipu.runs import logger
from vit_ipu.runs.skipped import SkippedImages


@pytest.fixture
def config(tmp_path):
    """Returns the config of a run that skips an image in training and another one in its evaluations."""
    write_image_folder(tmp_path / "images", count=4)
    (tmp_path / "images" / "train" / "dog" / "1.png").write_text("no image")
    (tmp_path / "images" / "val" / "dog" / "1.png").write_bytes(b"")
    values = small_config(updates=4, evaluate_every=2, checkpoint_every=1).model_dump(mode="json")
    values["model"]["num_classes"] = 2
    values["data"] = {"source": "imagefolder", "path": str(tmp_path / "images"), "on_error": "skip"}
    return parse_config(values)


def test_a_resumed_run_counts_and_lists_each_skipped_image_once(monkeypatch, tmp_path, config):
    train_in(tmp_path / "whole", config)
    step = logger.RunLogger.step

    def stopping(self, progress, *args):
        step(self, progress, *args)
        if progress.update == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as context:
        context.setattr(logger.RunLogger, "step", stopping)
        summary, _ = train_in(tmp_path / "run", config)
    assert summary.interrupted
    _, lines = train_in(tmp_path / "run", config, resume=True)
    assert not any(line.startswith("skipped image") for line in lines)
    listed = (tmp_path / "run" / "skipped.txt").read_text()
    assert [name in listed for name in ("train/dog/1.png", "val/dog/1.png")] == [True, True]
    assert len(listed.splitlines()) == 2
    assert listed == (tmp_path / "whole" / "skipped.txt").read_text()
    counts = [line.get("skipped", 0) for line in metrics_without_times(tmp_path / "run")]
    assert counts == sorted(counts)
    assert counts[-1] == 2
    assert metrics_without_times(tmp_path / "run") == metrics_without_times(tmp_path / "whole")


def test_the_list_is_continued_after_its_last_whole_line(tmp_path):
    path = tmp_path / "skipped.txt"
    path.write_bytes(b"a.png: bad\n\xff.png: bad\na.png: bad\nb.pn")
    skipped = SkippedImages(path, writes=True)
    assert path.read_bytes() == b"a.png: bad\n\xff.png: bad\n"
    assert len(skipped) == 2
    assert list(skipped.add(["a.png:\nbad", "\udcff.png: bad", "b.png: bad", "b.png: bad"])) == ["b.png: bad"]
    assert path.read_bytes() == b"a.png: bad\n\xff.png: bad\nb.png: bad\n"
    assert len(skipped) == 3


def test_a_process_that_does_not_write_leaves_the_list_alone(tmp_path):
    path = tmp_path / "skipped.txt"
    path.write_text("a.png: bad\nb.pn")
    skipped = SkippedImages(path, writes=False)
    assert list(skipped.add(["a.png: bad", "c.png: bad"])) == ["a.png: bad", "c.png: bad"]
    assert path.read_text() == "a.png: bad\nb.pn"


def test_a_list_that_cannot_be_read_says_what_to_do(tmp_path):
    path = tmp_path / "skipped.txt"
    os.mkfifo(str(path))
    with pytest.raises(UserError, match="skipped.txt cannot be read: it is not a regular file; remove it to resume$"):
        SkippedImages(path, writes=True)
