"""Weights from the Hugging Face Hub, or from its cache: revisions, pins, what is missing, and no network."""

from __future__ import annotations

import functools
import hashlib
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest
from fetching import CONTENT, OTHER, PIN, linked, refused, written
from huggingface_hub import constants, errors

from vit_ipu.weights.choose import weight_file
from vit_ipu.weights.fetch import Located, locate

COMMIT, PUSHED = "a" * 40, "b" * 40


class Hub(BaseHTTPRequestHandler):
    """The part of the Hub's protocol that a download uses."""

    protocol_version = "HTTP/1.0"  # a connection for each request, so that closing the server is seen

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, *, with_body):
        files, error, content = self.server.files, None, b""
        parts = self.path.split("/", 5)  # /owner/name/resolve/revision/file
        if len(parts) < 6:
            error = (404, "EntryNotFound")
        elif parts[2] in ("unknown", "gated"):
            error = {"unknown": (401, "RepoNotFound"), "gated": (403, "GatedRepo")}[parts[2]]
        elif parts[4] not in ("main", "v1", COMMIT):
            error = (404, "RevisionNotFound")
        elif parts[5] not in files:
            error = (404, "EntryNotFound")
        else:
            self.server.asked.append((parts[4], parts[5]))
            content = files[parts[5]]
        self.send_response(200 if error is None else error[0])
        if error is not None:
            self.send_header("X-Error-Code", error[1])
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def log_message(self, *args):
        pass


def new_sessions():
    """Drops huggingface_hub's HTTP session, because version 0 decides whether it is offline when it makes a session."""
    from huggingface_hub import utils

    (utils.reset_sessions if hasattr(utils, "reset_sessions") else utils.close_session)()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Starts a Hub on this machine with an empty repository owner/name, and uses an empty cache."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.asked = {}, []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    agents = written(tmp_path / "agents.json", b'{"harnesses": {}}')  # otherwise version 2 asks the real Hub for a list
    monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", str(agents), raising=False)
    download = functools.partial(huggingface_hub.hf_hub_download, endpoint=url)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr("vit_ipu.weights.fetch.can_reach", lambda url: True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    new_sessions()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()
    new_sessions()


@pytest.fixture
def offline(monkeypatch):
    def call():
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        new_sessions()

    return call


def snapshot_of(tmp_path):
    return tmp_path / "hub" / "models--owner--name" / "snapshots" / COMMIT


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def index_of(*names):
    return json.dumps({"weight_map": {f"tensor {i}": name for i, name in enumerate(names)}}).encode()


@pytest.mark.parametrize(
    ("files", "fetched"),
    [
        (["model.safetensors", "pytorch_model.bin", "README.md"], ["model.safetensors"]),
        (["config.json", "pytorch_model.bin"], ["config.json", "pytorch_model.bin"]),
        (["preprocessor_config.json", "model.safetensors"], ["model.safetensors", "preprocessor_config.json"]),
    ],
)
def test_a_repository_is_fetched_into_the_cache(tmp_path, hub, files, fetched):
    hub.files.update({name: name.encode() for name in files})
    found = locate("hf-hub:owner/name")
    assert found == Located(snapshot_of(tmp_path), verified=False)
    assert names_in(found.path) == sorted(fetched)
    weights = weight_file(found.path)  # a link to a blob
    assert weights.is_symlink()
    assert weights.read_bytes() == weights.name.encode()


def test_shards_of_a_repository_are_fetched(tmp_path, hub):
    shards = ["model-1-of-2.safetensors", "model-2-of-2.safetensors"]
    index = "model.safetensors.index.json"
    hub.files.update({name: name.encode() for name in [*shards, "pytorch_model.bin"]}, **{index: index_of(*shards)})
    found = locate("hf-hub:owner/name@v1")
    assert names_in(found.path) == sorted([*shards, index])
    assert weight_file(found.path).name == index
    refused("hf-hub:owner/name", "hf-hub:owner/name has its weights in several files, and a sha256 pins", sha256=PIN)


def test_a_repository_whose_index_names_a_missing_shard_is_refused(hub):
    hub.files["model.safetensors.index.json"] = index_of("model-1.safetensors")
    refused("hf-hub:owner/name", "has no model-1.safetensors, which model.safetensors.index.json names$")


def test_an_index_cannot_ask_for_other_paths(hub):
    hub.files["model.safetensors.index.json"] = index_of("../../x.safetensors")
    refused("hf-hub:owner/name", "its shard '../../x.safetensors' is not a .safetensors file beside it")


def test_all_files_come_from_the_commit_of_the_first_file(hub):
    hub.files.update({"config.json": b"{}", "model.safetensors": b"x"})
    locate("hf-hub:owner/name")
    assert set(hub.asked) == {("main", "config.json"), (COMMIT, "model.safetensors")}


def test_a_pinned_repository_is_verified(hub):
    hub.files["model.safetensors"] = CONTENT
    assert locate("hf-hub:owner/name", sha256=PIN).verified
    refused("hf-hub:owner/name", f"model.safetensors has the sha256 {PIN} and not {OTHER}", sha256=OTHER)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hf-hub:owner/unknown", "there is no such repository, or it is private: check the name, or hf auth login"),
        ("hf-hub:owner/gated", "it is gated: accept its terms at https://huggingface.co/owner/gated, then hf auth"),
        ("hf-hub:owner/name@v7", "cannot fetch hf-hub:owner/name@v7: it has no revision v7"),
        ("hf-hub:owner/name", "hf-hub:owner/name has no weights: model.safetensors, .* or pytorch_model.bin"),
        ("hf-hub:owner", "hf-hub:owner is not of the form hf-hub:OWNER/NAME or hf-hub:OWNER/NAME@REVISION"),
        ("hf-hub:", "is not of the form"),
        ("hf-hub:../name", "cannot fetch hf-hub:../name: "),
        ("hf-hub:owner/na--me", "cannot fetch hf-hub:owner/na--me: .*--"),
        ("hf-hub:a/b/c", "is not of the form"),
        ("hf-hub:owner/name@", "is not of the form"),
    ],
)
def test_repositories_that_cannot_be_fetched_are_refused(hub, source, message):
    refused(source, message)


def test_offline_the_cache_is_enough(tmp_path, hub, offline):
    hub.files.update({"config.json": b"{}", "pytorch_model.bin": CONTENT})
    assert locate("hf-hub:owner/name", sha256=PIN).verified
    hub.asked.clear()
    offline()
    assert locate("hf-hub:owner/name", sha256=PIN) == Located(snapshot_of(tmp_path), verified=True)
    assert hub.asked == []
    message = "the cache {} of hf-hub:owner/other has no weights: .*: unset HF_HUB_OFFLINE if a network is available"
    refused("hf-hub:owner/other", message.format(tmp_path / "hub"))


def test_a_cache_made_by_hand_is_enough_offline(tmp_path, hub, offline):
    repository = tmp_path / "hub" / "models--owner--name"
    written(repository / "refs" / "main", PUSHED.encode())
    written(repository / "blobs" / "123")
    linked(repository / "snapshots" / PUSHED, "model.safetensors", "../../blobs/123")
    offline()
    assert locate("hf-hub:owner/name").path == repository / "snapshots" / PUSHED


@pytest.fixture
def unreachable(monkeypatch):
    """Returns a function that cuts the network: huggingface_hub then fails as it does after its last attempt."""
    download = huggingface_hub.hf_hub_download

    def cached(name, file, **options):
        try:
            return download(name, file, local_files_only=True, **options)
        except errors.LocalEntryNotFoundError:
            raise errors.LocalEntryNotFoundError("An error happened\nwhile trying to locate the file") from None

    return lambda: monkeypatch.setattr(huggingface_hub, "hf_hub_download", cached)


def test_an_unreachable_hub_is_not_taken_for_a_repository_without_a_config(tmp_path, hub, unreachable):
    unreachable()
    message = "cannot reach the Hugging Face Hub for config.json of hf-hub:owner/name, and the cache {} lacks it: check"
    refused("hf-hub:owner/name", message.format(tmp_path / "hub"))


def test_files_that_a_repository_is_known_to_lack_need_no_network(tmp_path, hub, unreachable):
    hub.files["pytorch_model.bin"] = b"x"
    locate("hf-hub:owner/name")  # the cache records that config.json and model.safetensors are missing
    unreachable()
    assert locate("hf-hub:owner/name").path == snapshot_of(tmp_path)


def test_other_failures_are_one_line(monkeypatch):
    def fail(*args, **options):
        raise RuntimeError("first\n\nsecond")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    refused("hf-hub:owner/name", "cannot fetch hf-hub:owner/name: first second")


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused("hf-hub:owner/name", r"hf-hub:owner/name needs the extra hub: pip install 'vit-ipu\[hub\]'")
