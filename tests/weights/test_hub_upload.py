"""`convert --push` uploads a Hugging Face export to a hub, here one on this machine; each mistake is one line."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import vit_ipu, write_config
from hub_server import READ_ONLY, TOKEN, serving, serving_instead_of_the_real_hub
from huggingface_hub import constants

from vit_ipu import convert, train

ROOT = Path(__file__).parent.parent.parent
FILES = ["README.md", "config.json", "model.safetensors", "preprocessor_config.json"]


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    """Returns the folder of a small run."""
    root = tmp_path_factory.mktemp("push")
    return train(write_config(root, run={"updates": 1}), device="cpu", output=root / "run", quiet=True).path


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with serving_instead_of_the_real_hub(monkeypatch, tmp_path) as server:
        yield server


def push(monkeypatch, capsys, source, target, *options, name="me/pets", to="huggingface"):
    code, out, err = vit_ipu(monkeypatch, capsys, "convert", source, target, "--to", to, "--push", name, *options)
    lines = [line for line in err.splitlines() if line.startswith("vit-ipu:")]
    return code, out, lines


def test_an_export_is_uploaded_in_one_commit(native, hub, tmp_path, monkeypatch, capsys):
    code, out, _ = push(monkeypatch, capsys, native, tmp_path / "hf")
    assert code == 0
    assert f"uploading {tmp_path / 'hf'} to {hub.url}/me/pets" in out
    assert out.splitlines()[-1].endswith(f"written as huggingface to {tmp_path / 'hf'} and uploaded as me/pets")
    repository = hub.repositories["me/pets"]
    assert repository["private"] is False
    assert len(repository["commits"]) == 1
    assert sorted(repository["files"]) == [".gitattributes", *FILES]
    for name in FILES:
        assert repository["files"][name] == (tmp_path / "hf" / name).read_bytes()
    assert b'pipeline("image-classification", model="me/pets")' in repository["files"]["README.md"]


def test_the_uploaded_weights_are_those_of_the_run(native, hub, tmp_path):
    convert(native, tmp_path / "hf", "huggingface", push="me/pets", private=True, quiet=True)
    repository = hub.repositories["me/pets"]
    assert repository["private"] is True
    for name in FILES:
        (tmp_path / name).write_bytes(repository["files"][name])
    convert(tmp_path / "hf", tmp_path / "a.npz", "google", quiet=True)
    assert json.loads(repository["files"]["config.json"])["num_attention_heads"] == 2


def test_an_empty_repository_is_filled(native, hub, tmp_path, monkeypatch, capsys):
    hub.repositories["me/pets"] = {"private": True, "files": {".gitattributes": b""}, "commits": []}
    assert push(monkeypatch, capsys, native, tmp_path / "hf", "--private")[0] == 0
    assert sorted(hub.repositories["me/pets"]["files"]) == [".gitattributes", *FILES]


def test_json_names_the_repository(native, hub, tmp_path, monkeypatch, capsys):
    code, out, _ = push(monkeypatch, capsys, native, tmp_path / "hf", "--json")
    assert (code, json.loads(out)["push"]) == (0, "me/pets")


def test_the_environment_names_the_hub_and_the_token(native, tmp_path):
    with serving() as server:
        environment = dict(os.environ, HF_ENDPOINT=server.url, HF_TOKEN=TOKEN, HF_HUB_DISABLE_XET="1")
        environment.update(PYTHONPATH=str(ROOT), NO_PROXY="127.0.0.1", HF_HOME=str(tmp_path / "home"))
        environment.update(HF_HUB_DISABLE_TELEMETRY="1")
        arguments = [str(native), str(tmp_path / "hf"), "--to", "huggingface", "--push", "me/pets"]
        command = [sys.executable, "-m", "vit_ipu", "convert", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert sorted(server.repositories["me/pets"]["files"]) == [".gitattributes", *FILES]


# ------------------------------------------------------------------------------------------- mistakes


def refused(monkeypatch, capsys, native, target, message, *options, status=2, **changes):
    """Asserts that the command fails with this one line, and that nothing was written, unless the upload failed."""
    code, _, lines = push(monkeypatch, capsys, native, target, *options, **changes)
    assert (code, lines) == (status, [f"vit-ipu: {message}"])


def test_without_a_token_nothing_begins(native, hub, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    message = "--push me/pets: there is no token: set HF_TOKEN, or run hf auth login"
    refused(monkeypatch, capsys, native, tmp_path / "hf", message)
    assert not (tmp_path / "hf").exists()
    assert hub.asked == []


def test_a_refused_token(native, hub, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_bad")
    message = f"--push me/pets: {hub.url} refused the token (401): make one that may write at {hub.url}/settings/tokens"
    refused(monkeypatch, capsys, native, tmp_path / "hf", f"{message}, and set HF_TOKEN or run hf auth login")
    assert not (tmp_path / "hf").exists()


def test_a_token_that_may_not_write_leaves_the_export(native, hub, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", READ_ONLY)
    message = (
        "--push me/pets: the token may not write there (403): give it the write role, or another OWNER; "
        f"{tmp_path / 'hf'} is complete: hf upload me/pets {tmp_path / 'hf'}"
    )
    refused(monkeypatch, capsys, native, tmp_path / "hf", message)
    assert sorted(path.name for path in (tmp_path / "hf").iterdir()) == FILES


def test_a_failed_upload_leaves_the_export(native, hub, tmp_path, monkeypatch, capsys):
    hub.broken = "/commit/"
    code, _, lines = push(monkeypatch, capsys, native, tmp_path / "hf")
    assert (code, len(lines)) == (1, 1)
    assert lines[0].startswith("vit-ipu: --push me/pets: the upload failed: ")
    assert lines[0].endswith(f"; {tmp_path / 'hf'} is complete: hf upload me/pets {tmp_path / 'hf'}")


@pytest.mark.parametrize("kind", ["closed", "silent"])
def test_no_network(native, hub, tmp_path, monkeypatch, capsys, kind):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if kind == "silent":
            listener.listen()  # connects, and never answers
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", url)
        start = time.monotonic()
        code, _, lines = push(monkeypatch, capsys, native, tmp_path / "hf")
        assert time.monotonic() - start < 6
    assert (code, len(lines)) == (2, 1)
    assert lines[0].startswith(f"vit-ipu: --push me/pets: cannot reach {url} (")
    assert lines[0].endswith("): check the network and HF_ENDPOINT, or convert without --push")
    assert ("no answer within 5 s" in lines[0]) == (kind == "silent")
    assert not (tmp_path / "hf").exists()


def test_offline(native, hub, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    message = "--push me/pets: HF_HUB_OFFLINE forbids the network: unset it"
    refused(monkeypatch, capsys, native, tmp_path / "hf", message)


@pytest.mark.parametrize("name", ["pets", "a/b/c", "me/", "/pets", "me/my pets", "http://x/y", "me/p\nq"])
def test_a_name_that_is_not_owner_and_name(native, hub, tmp_path, monkeypatch, capsys, name):
    shown = " ".join(name.split())
    message = f"--push {shown}: the name of a repository is of the form OWNER/NAME"
    refused(monkeypatch, capsys, native, tmp_path / "hf", message, name=name)
    assert hub.asked == []


@pytest.mark.parametrize("name", ["me/a--b", "me/.pets", "me/a..b", "me/pets.git"])
def test_a_name_that_the_hub_does_not_take(native, hub, tmp_path, monkeypatch, capsys, name):
    code, _, lines = push(monkeypatch, capsys, native, tmp_path / "hf", name=name)
    assert (code, len(lines), hub.asked) == (2, 1, [])
    assert lines[0].startswith(f"vit-ipu: --push {name}: ")
    assert lines[0].endswith("; give another name")


@pytest.mark.parametrize("to", ["timm", "native", "onnx"])
def test_another_format(native, hub, tmp_path, monkeypatch, capsys, to):
    message = f"--push me/pets: the hub takes exports --to huggingface, not --to {to}"
    refused(monkeypatch, capsys, native, tmp_path / "x", message, to=to)


def test_a_target_that_exists(native, hub, tmp_path, monkeypatch, capsys):
    (tmp_path / "hf").mkdir()
    refused(monkeypatch, capsys, native, tmp_path / "hf", f"{tmp_path / 'hf'} is already there: give another name")
    assert hub.asked == []


def test_a_repository_with_files_is_not_overwritten(native, hub, tmp_path, monkeypatch, capsys):
    hub.repositories["me/pets"] = {"private": False, "files": {".gitattributes": b"", "README.md": b"x"}, "commits": []}
    message = (
        "--push me/pets: the repository already has README.md: give another name, or convert without --push and "
        "upload with hf upload me/pets FOLDER"
    )
    refused(monkeypatch, capsys, native, tmp_path / "hf", message)
    assert hub.repositories["me/pets"]["files"]["README.md"] == b"x"
    assert not (tmp_path / "hf").exists()


def test_private_weights_are_not_put_into_a_public_repository(native, hub, tmp_path, monkeypatch, capsys):
    hub.repositories["me/pets"] = {"private": False, "files": {".gitattributes": b""}, "commits": []}
    message = (
        "--push me/pets: the repository exists and is public, and --private makes only new ones private: change it at "
        f"{hub.url}/me/pets/settings, or leave --private out"
    )
    refused(monkeypatch, capsys, native, tmp_path / "hf", message, "--private")
    assert not (tmp_path / "hf").exists()


def test_private_without_push(native, tmp_path, monkeypatch, capsys):
    arguments = ("convert", native, tmp_path / "hf", "--to", "huggingface", "--private")
    code, _, err = vit_ipu(monkeypatch, capsys, *arguments)
    assert (code, err) == (2, "vit-ipu: --private is for --push OWNER/NAME: give both\n")
    assert not (tmp_path / "hf").exists()


def test_a_missing_extra_is_named(native, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    message = "--push me/pets needs the extra hub: pip install 'vit-ipu[hub]'"
    refused(monkeypatch, capsys, native, tmp_path / "hf", message)
