"""`train --restart` and `make quickstart` remove a run of the same config, and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from helpers import vit_ipu, write_config

from vit_ipu.config_file import load_config, shipped_configs
from vit_ipu.errors import UserError
from vit_ipu.runs import removal
from vit_ipu.runs.folder import RunFolder
from vit_ipu.runs.removal import remove_run

ROOT = Path(__file__).parent.parent.parent


def make(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs make in the repository as from a shell: `make test` sets variables that change what it prints."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    environment.update(variables)
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, env=environment, cwd=str(ROOT), capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Returns the folder of a finished run that has every kind of file, and its config."""
    from small_runs import train_in

    folder = tmp_path_factory.mktemp("finished")
    config = load_config(write_config(folder, run={"checkpoint_every": 2, "keep_best": "top1", "evaluate_every": 2}))
    train_in(folder / "run", config)
    (folder / "run" / "report.html").write_text("<html>")
    (folder / "run" / "skipped.txt").write_text("image 3\n")
    (folder / "run" / "tensorboard").mkdir()
    (folder / "run" / "tensorboard" / "events.out.tfevents.1.host").write_text("")
    (folder / "run" / "checkpoints" / "update-00000002").rename(folder / "run/checkpoints/damaged-update-00000002")
    (folder / "run" / "checkpoints" / ".writing-update-00000009").mkdir()
    return folder / "run", config


@pytest.fixture
def run_folder(finished, empty_folder):
    shutil.copytree(str(finished[0]), "run")
    return empty_folder / "run", finished[1]


def snapshot(folder: Path):
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def test_a_run_of_this_config_is_removed(run_folder):
    path, config = run_folder
    remove_run(path, config)
    assert not path.exists()
    remove_run(path, config)  # nothing is there
    path.mkdir()
    remove_run(path, config)
    assert path.is_dir()


def test_every_file_of_a_run_is_known(tmp_path):
    folder = RunFolder(tmp_path)
    names = [path.name for path in (*folder._files(), folder.lock_path)]
    assert len(names) > 8
    assert [name for name in names if not removal._WRITTEN.fullmatch(name)] == []


FOREIGN = {
    "notes": (lambda p: (p / "notes.txt").write_text("mine"), "holds notes.txt, which a run does not write"),
    "a folder": (lambda p: ((p / "data").mkdir(), (p / "data/a.png").write_text("")), "holds data/a.png"),
    "a picture among the examples": (lambda p: (p / "examples/me.png").write_text(""), "holds examples/me.png"),
    "a file in a checkpoint": (
        lambda p: (p / "checkpoints/update-00000004/better.safetensors").write_text(""),
        "holds checkpoints/update-00000004/better.safetensors",
    ),
    "a link to a folder": (lambda p: (p / "examples/link").symlink_to(p.parent), "holds examples/link"),
    "no config": (lambda p: (p / "config.yaml").unlink(), "is not a run folder"),
    "no checkpoints": (lambda p: shutil.rmtree(str(p / "checkpoints")), "is not a run folder"),
    "a damaged config": (lambda p: (p / "config.yaml").write_text("model: ["), "has a config that cannot be read"),
    "another config": (
        lambda p: (p / "config.yaml").write_text((p / "config.yaml").read_text().replace("0.05", "0.06")),
        "is a run of another config: optim.learning_rate differs",
    ),
}


@pytest.mark.parametrize("name", list(FOREIGN))
def test_any_other_folder_is_refused_and_stays(run_folder, name):
    (path, config), (change, reason) = run_folder, FOREIGN[name]
    change(path)
    before = snapshot(path)
    with pytest.raises(UserError) as caught:
        remove_run(path, config)
    assert f"--restart: {path} {reason}" in str(caught.value)
    assert "nothing was removed: give another --output" in str(caught.value)
    assert snapshot(path) == before


@pytest.mark.parametrize(("kind", "reason"), [("link", "is a link"), ("file", "is not a run folder")])
def test_what_is_not_a_folder_is_refused(run_folder, kind, reason):
    path, config = run_folder
    other = path.with_name("other")
    other.symlink_to(path) if kind == "link" else other.write_text("")
    with pytest.raises(UserError, match=reason):
        remove_run(other, config)
    assert os.path.lexists(str(other))


def test_a_run_that_another_process_trains_in_is_refused(run_folder):
    path, config = run_folder
    folder = RunFolder.reopen(path, config)
    with pytest.raises(UserError, match="another process is training in"):
        remove_run(path, config)
    folder.release()


def test_a_run_on_other_images_is_another_run(run_folder):
    path, config = run_folder
    other = config.model_copy(update={"data": config.data.model_copy(update={"path": "other"})})
    with pytest.raises(UserError, match=r"is a run of another config: data\.path differs; nothing was removed"):
        remove_run(path, other)
    assert (path / "metrics.jsonl").is_file()


def test_a_restart_that_cannot_begin_keeps_the_earlier_run(monkeypatch, capsys, empty_folder):
    config = write_config(empty_folder, run={"updates": 2})
    command = ("train", config, "--device", "cpu", "--output", "run")
    assert vit_ipu(monkeypatch, capsys, *command)[0] == 0
    before = snapshot(empty_folder / "run")

    def fail(*arguments, **options):
        raise UserError("the images are gone")

    with monkeypatch.context() as context:
        context.setattr(import_module("vit_ipu.train"), "open_source", fail)
        code, _, err = vit_ipu(monkeypatch, capsys, *command, "--restart")
    assert (code, err) == (2, "vit-ipu: the images are gone\n")
    assert snapshot(empty_folder / "run") == before
    assert [path.name for path in empty_folder.iterdir() if path.name.startswith(".")] == []
    assert vit_ipu(monkeypatch, capsys, *command, "--restart")[0] == 0
    assert [path.name for path in empty_folder.iterdir() if path.name.startswith(".")] == []


def test_restart_trains_the_same_config_again(monkeypatch, capsys, empty_folder):
    config = write_config(empty_folder, run={"updates": 2})
    command = ["train", config, "--device", "cpu", "--restart"]
    for _ in range(2):
        code, _, err = vit_ipu(monkeypatch, capsys, *command)
        assert (code, err) == (0, "")
    assert [path.name for path in (empty_folder / "runs").iterdir()] == ["tiny"]
    code, _, err = vit_ipu(monkeypatch, capsys, *command, "--resume")
    assert (code, err.count("\n")) == (2, 1)
    assert "--resume and --restart exclude each other" in err


def test_make_quickstart_removes_only_a_run_of_the_quickstart(empty_folder):
    """Runs the Makefile's recipe with a program that trains nothing but checks the folder as `train` does."""
    bin_folder = empty_folder / "venv" / "bin"
    bin_folder.mkdir(parents=True)
    script = (
        "import sys; from pathlib import Path; from vit_ipu.runs.removal import remove_run\n"
        "from vit_ipu.config_file import load_config; from vit_ipu.errors import UserError\n"
        "a = sys.argv[1:]\n"
        "if a[0] == 'train':\n"
        "    assert '--restart' in a\n"
        "    try: remove_run(Path(a[a.index('--output') + 1]), load_config(a[1]))\n"
        "    except UserError as error: sys.exit(f'vit-ipu: {error}')\n"
    )
    (bin_folder / "vit-ipu").write_text(f"#!{sys.executable}\n{script}")
    (bin_folder / "vit-ipu").chmod(0o755)
    (bin_folder.parent / ".ready").touch()

    def quickstart(run: str) -> subprocess.CompletedProcess[str]:
        return make("--silent", "quickstart", f"VENV={bin_folder.parent}", RUN=run, PYTHONPATH=str(ROOT))

    photos = empty_folder / "my photos; rm -rf $HOME"
    (photos / "2019").mkdir(parents=True)
    (photos / "2019" / "a.jpg").write_text("precious")
    before = snapshot(photos)
    done = quickstart(str(photos))
    assert done.returncode != 0
    assert done.stderr.count("vit-ipu: ") == 1
    assert "is not a run folder; nothing was removed: give another --output" in done.stderr
    assert snapshot(photos) == before
    for run in ("", str(empty_folder), "/"):
        assert quickstart(run).returncode != 0
    old = empty_folder / "old"
    RunFolder.create(old, load_config(shipped_configs()["quickstart"])).release()
    (old / "checkpoints").mkdir(parents=True, exist_ok=True)
    shutil.copy(str(shipped_configs()["quickstart"]), str(old / "config.yaml"))
    assert quickstart(str(old)).returncode == 0
    assert not old.exists()


@pytest.mark.parametrize("made", [(), ("pyvenv.cfg",), (".ready",)])
def test_make_clean_leaves_what_setup_did_not_make(empty_folder, made):
    (empty_folder / "mine").mkdir()
    for name in made:
        (empty_folder / "mine" / name).touch()
    recipe = make("--dry-run", "clean", f"VENV={empty_folder / 'mine'}")
    assert recipe.returncode == 0
    subprocess.run(recipe.stdout.splitlines()[0], shell=True, check=True)
    assert (empty_folder / "mine").is_dir()
