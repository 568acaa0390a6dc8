"""From the user's source to a local path: pins are compared, downloads are complete or absent, links stay inside."""

from __future__ import annotations

import functools
import hashlib
import http.client
import io
import json
import os
import re
import sys
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from vit_ipu.errors import CheckpointError
from vit_ipu.small_files import MAX_TEXT_BYTES
from vit_ipu.weights import fetch as locations
from vit_ipu.weights.choose import leads_out, weight_file, weight_map
from vit_ipu.weights.fetch import Located, locate

CONTENT = b"weights" * 300_000
SIZE = len(CONTENT)
PIN = hashlib.sha256(CONTENT).hexdigest()
OTHER = "0" * 64
URL = "https://example.org/models/vit.safetensors"


def refused(source, message, **options):
    with pytest.raises(CheckpointError, match=message) as caught:
        locate(source, **options)
    assert "\n" not in str(caught.value)


def written(path, content=CONTENT):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# ---------------------------------------------------------------------------------------------- disk


def test_local_files_and_folders_are_used_in_place(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = written(tmp_path / "models" / "a.pth")
    assert locate(str(path)) == Located(path, verified=False)
    assert locate(str(path.parent)) == Located(path.parent, verified=False)
    assert locate("~/models/a.pth") == Located(path, verified=False)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere/a.pth", "no checkpoint at nowhere/a.pth: there is no such file or folder"),
        (
            "~nobody-of-this-name/a.pth",
            "cannot read ~nobody-of-this-name/a.pth: cannot expand ~: no such user; give an absolute path",
        ),
        ("a\0b", "null (byte|character)|no checkpoint"),
        ("a" * 5000, "File name too long"),
        ("http://example.org/a.pth", "cannot fetch http://example.org/a.pth: use https:// or a local path"),
        ("s3://bucket/a.pth", "cannot fetch s3://bucket/a.pth: use https:// or a local path"),
        ("file:///tmp/a.pth", "use https:// or a local path"),
    ],
)
def test_missing_and_unsupported_sources_are_refused(empty_folder, source, message):
    refused(source, message)


def test_a_pinned_file_is_verified(tmp_path):
    path = written(tmp_path / "a.pth")
    assert locate(str(path), sha256=PIN) == Located(path, verified=True)
    assert locate(str(path), sha256=PIN.upper()).verified
    refused(str(path), f"a.pth has the sha256 {PIN} and not {OTHER}: it is damaged or another", sha256=OTHER)
    refused(str(tmp_path), "is a folder: a sha256 pins a file, so name its file of weights", sha256=PIN)


@pytest.mark.parametrize("sha256", ["", "abc", "g" * 64, "0" * 63, "0" * 65, "0" * 64 + "\n"])
@pytest.mark.parametrize("source", ["a.pth", URL, "hf-hub:google/vit"])
def test_a_malformed_sha256_is_refused(source, sha256):
    refused(source, "is not 64 hexadecimal digits: see sha256sum FILE", sha256=sha256)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    path = tmp_path / "a.pth"
    path.symlink_to("/proc/self/mem")  # opens, and fails to read at 0
    refused(str(path), "cannot read .*a.pth: Input/output error", sha256=PIN)


@pytest.mark.parametrize("target", ["pipe", "/dev/zero"])
def test_a_pipe_or_a_device_is_refused_before_it_is_read(tmp_path, target):
    os.mkfifo(str(tmp_path / "pipe"))
    (tmp_path / "a.pth").symlink_to(target)
    refused(str(tmp_path / "a.pth"), "^cannot read .*a.pth: it is not a regular file$", sha256=PIN)


# --------------------------------------------------------------------------------------------- https


class Response(io.BytesIO):
    """A server's response; `claimed` is its Content-Length."""

    def __init__(self, content=CONTENT, claimed=SIZE, failure=None):
        super().__init__(content)
        self.headers = {} if claimed is None else {"Content-Length": str(claimed)}
        self.failure = failure

    def read(self, count):
        part = super().read(count)
        if not part and self.failure is not None:
            raise self.failure
        return part


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vit_ipu"


@pytest.fixture
def serve(monkeypatch):
    """Makes every URL answer with a response, or fail with an exception; returns the URLs that were asked for."""

    def call(answer):
        asked = []

        def open_url(url):
            asked.append(url)
            if isinstance(answer, BaseException):
                raise answer
            return answer

        monkeypatch.setattr(locations, "_open_url", open_url)
        return asked

    return call


def test_a_pinned_url_is_fetched_once(cache, serve):
    asked, notes = serve(Response()), []
    found = locate(URL + "?download=true", sha256=PIN, notify=notes.append)
    assert found == Located(cache / f"{PIN[:16]}-vit.safetensors", verified=True)
    assert found.path.read_bytes() == CONTENT
    assert notes == [f"fetching {URL}?download=true (2 MB)"]
    assert locate(URL, sha256=PIN, notify=notes.append) == found
    assert len(asked) == len(notes) == 1
    assert list(cache.iterdir()) == [found.path]


def test_without_xdg_cache_home_the_cache_is_in_the_home(tmp_path, monkeypatch, serve):
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    serve(Response(claimed=None))
    assert locate(URL, sha256=PIN).path.parent == tmp_path / ".cache" / "vit_ipu"


def test_a_cached_file_is_verified_again_and_replaced_if_it_has_changed(cache, serve):
    serve(Response())
    path = locate(URL, sha256=PIN).path
    path.write_bytes(b"something else")
    notes = []
    serve(Response(claimed=None))
    assert locate(URL, sha256=PIN, notify=notes.append).path == path
    assert path.read_bytes() == CONTENT
    assert notes == [f"fetching {URL}"]


def test_a_cached_file_that_cannot_be_read_is_named(cache, serve, monkeypatch):
    serve(AssertionError("nothing is fetched"))
    cached = f"{PIN[:16]}-vit.safetensors"
    linked(cache, cached, "/proc/self/mem")  # opens, and fails to read at 0
    remedy = "remove it, or set XDG_CACHE_HOME to another folder$"
    refused(URL, f"^cannot read the cached file {cache / cached}: Input/output error; {remedy}", sha256=PIN)
    monkeypatch.setenv("XDG_CACHE_HOME", "/" + "a" * 5000)
    refused(URL, f"^cannot read the cached file .*{cached}: File name too long; {remedy}", sha256=PIN)


@pytest.mark.parametrize("name", ["a%2Fb.npz", "..%2f.npz", "a b.npz", "a:b.npz", "\u00e9" * 300 + ".npz"])
def test_a_url_cannot_write_outside_the_cache(cache, serve, name):
    serve(Response())
    path = locate("https://example.org/" + name, sha256=PIN).path
    assert path.resolve().parent == cache.resolve()
    assert re.fullmatch(PIN[:16] + r"-[A-Za-z0-9_.-]{1,100}", path.name)


def test_a_url_must_be_pinned_and_name_a_file_of_weights(cache, serve):
    serve(AssertionError("nothing is fetched"))
    refused(URL, r"cannot fetch .* without its sha256: give model.init_sha256 \(or --sha256\)")
    for url in ("https://example.org", "https://example.org/models/", "https://example.org/a.zip?name=a.pth"):
        refused(url, "expected a file that ends in .safetensors, .npz, .pth, .pt, .bin", sha256=PIN)


FAILURES = [
    (lambda: Response(b"other", 5), f"has the sha256 d9298a10d1b0735837dc4bd85dac641b.* and not {PIN}"),
    (lambda: Response(CONTENT[:-1]), "the download broke off after 2099999 of 2100000 bytes: try again"),
    (lambda: Response(CONTENT[:-1], None), f"has the sha256 .* and not {PIN}: it is another file"),
    (lambda: Response(CONTENT, 33 << 30), "cannot fetch .*: 33 GiB is more than 32 GiB, the limit"),
    (lambda: Response(failure=ConnectionResetError("reset by peer")), "cannot fetch .*: reset by peer"),
    (lambda: Response(failure=http.client.IncompleteRead(b"")), "cannot fetch .*: IncompleteRead"),
    (lambda: urllib.error.HTTPError(URL, 404, "Not Found", {}, None), "cannot fetch .*: HTTP Error 404: Not Found"),
    (lambda: urllib.error.URLError("Name or\nservice not known"), "cannot fetch .*: .*Name or service not known"),
    (lambda: TimeoutError(), "cannot fetch .*: TimeoutError"),
    (lambda: ValueError("bad port"), "cannot fetch .*: bad port"),
]


@pytest.mark.parametrize(("answer", "message"), FAILURES)
def test_a_download_that_fails_leaves_nothing_behind(cache, serve, answer, message):
    serve(answer())
    refused(URL, message, sha256=PIN)
    assert list(cache.iterdir()) == []


def test_an_interrupted_download_leaves_nothing_behind(cache, serve):
    serve(Response(failure=KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        locate(URL, sha256=PIN)
    assert list(cache.iterdir()) == []


def test_an_endless_download_is_stopped(cache, serve, monkeypatch):
    monkeypatch.setattr(locations, "_MAX_DOWNLOAD", 1 << 20)
    serve(Response(claimed=None))
    refused(URL, "cannot fetch .*: more than 0 GiB, the limit", sha256=PIN)
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch, serve):
    monkeypatch.setenv("XDG_CACHE_HOME", str(written(tmp_path / "file")))
    serve(Response())
    refused(URL, "cannot fetch .*: .*Not a directory", sha256=PIN)


def test_a_file_is_on_the_disk_before_it_has_its_name(cache, serve, monkeypatch):
    events = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (events.append(("sync", os.fstat(file).st_size)), sync(file)))
    monkeypatch.setattr(os, "replace", lambda old, new: (events.append("rename"), replace(old, new)))
    serve(Response())
    locate(URL, sha256=PIN)
    assert events[:2] == [("sync", SIZE), "rename"]  # then the folder is synced


def redirected(target):
    request = urllib.request.Request(URL)
    return locations._SecureRedirects().redirect_request(request, None, 302, "Found", {}, target)


def test_redirects_stay_on_https():
    assert redirected("https://cdn.example.org/a").full_url == "https://cdn.example.org/a"
    for target in ("http://example.org/a", "ftp://example.org/a", "file:///etc/passwd"):
        with pytest.raises(CheckpointError, match=f"it redirects to {target}, which is not https"):
            redirected(target)


def test_the_opener_uses_the_redirect_rule_and_sends_a_user_agent(monkeypatch):
    seen = {}

    def open_request(self, request, timeout):
        seen.update(handlers=self.handlers, agent=request.get_header("User-agent"), timeout=timeout)

    monkeypatch.setattr(urllib.request.OpenerDirector, "open", open_request)
    locations._open_url(URL)
    assert [type(h) for h in seen["handlers"] if isinstance(h, urllib.request.HTTPRedirectHandler)] == [
        locations._SecureRedirects
    ]
    assert seen["agent"].startswith("vit-ipu/")
    assert seen["timeout"] == 60


# ------------------------------------------------------------------------------------- weight_file


def test_the_weights_of_a_folder_are_chosen_by_preference(tmp_path):
    names = ["odd.npz", "pytorch_model.bin", "model.safetensors.index.json", "model.safetensors"]
    for name in names:  # each name is preferred to the names before it
        path = written(tmp_path / name, b"x")
        written(tmp_path / "config.json", b"{}")
        assert weight_file(tmp_path) == path


def test_folders_without_one_file_of_weights_are_refused(tmp_path):
    written(tmp_path / "config.json", b"{}")
    with pytest.raises(CheckpointError, match="holds no weights: expected model.safetensors, .* or one file that ends"):
        weight_file(tmp_path)
    for name in ("b.pth", "a.npz"):
        written(tmp_path / name, b"x")
    with pytest.raises(CheckpointError, match=r"holds several files of weights \(a.npz, b.pth\): name one of them"):
        weight_file(tmp_path)


def linked(folder, name, target):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).symlink_to(target)
    return folder / name


@pytest.mark.parametrize("name", ["model.safetensors", "odd.pth"])
def test_links_out_of_a_folder_are_refused(tmp_path, name):
    written(tmp_path / "secret")
    written(tmp_path / "folder" / "inside" / "file")
    assert weight_file(linked(tmp_path / "folder", name, "inside/file").parent).name == name
    link = linked(tmp_path / "other", name, "../secret")
    with pytest.raises(CheckpointError, match=f"{link} leads out of the folder: name the file that it links"):
        weight_file(tmp_path / "other")
    through = linked(tmp_path / "third", name, "../folder/" + name)  # the target is inside of another folder
    assert leads_out(through)


def test_a_folder_that_is_itself_a_link_is_accepted(tmp_path):
    written(tmp_path / "folder" / "model.safetensors")
    linked(tmp_path, "link", "folder")
    assert weight_file(tmp_path / "link") == tmp_path / "link" / "model.safetensors"


def test_a_hugging_face_cache_may_link_to_its_blobs(tmp_path):
    repository = tmp_path / "models--google--vit"
    snapshot = repository / "snapshots" / "abc"
    written(repository / "blobs" / "123")
    assert not leads_out(linked(snapshot, "own.pth", "../../blobs/123"))
    written(tmp_path / "blobs" / "12" / "123")  # shared by the repositories of a cache, since huggingface_hub 2
    linked(repository / "blobs", "shared", "../../blobs/12/123")
    assert not leads_out(linked(snapshot, "shared.pth", "../../blobs/shared"))
    written(tmp_path / "secret")
    linked(repository / "blobs", "out", "../../secret")
    assert leads_out(linked(snapshot, "out.pth", "../../blobs/out"))
    assert leads_out(linked(snapshot, "refs.pth", written(repository / "refs" / "main")))


def test_only_a_hugging_face_cache_may_link_to_blobs_elsewhere(tmp_path):
    written(tmp_path / "blobs" / "123")
    assert leads_out(linked(tmp_path / "plain", "a.pth", "../blobs/123"))
    assert leads_out(linked(tmp_path / "any" / "snapshots" / "abc", "a.pth", "../../../blobs/123"))
    assert leads_out(linked(tmp_path / "models--any" / "other" / "abc", "a.pth", "../../../blobs/123"))


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', '{"weight_map": ["ab"]}', "[" * 100_000],
)
def test_a_malformed_index_is_refused(tmp_path, content):
    path = written(tmp_path / "model.safetensors.index.json", content.encode())
    with pytest.raises(CheckpointError, match="is not an index of safetensors files|its shard 'b'"):
        weight_map(path)


def test_an_enormous_index_is_refused(tmp_path):
    path = written(tmp_path / "model.safetensors.index.json", b'{"weight_map": {}}')
    assert weight_map(path) == {}
    os.truncate(str(path), MAX_TEXT_BYTES + 1)
    with pytest.raises(CheckpointError, match="is not an index of safetensors files"):
        weight_map(path)


@pytest.mark.parametrize(
    "name",
    ["../a.safetensors", "/a.safetensors", "b/a.safetensors", "b\\a.safetensors", "a.bin", ".safetensors/..", ""],
)
def test_shards_that_are_not_beside_the_index_are_refused(tmp_path, name):
    path = written(tmp_path / "model.safetensors.index.json", json.dumps({"weight_map": {"a": name}}).encode())
    with pytest.raises(CheckpointError, match=r"its shard .* is not a .safetensors file beside it"):
        weight_map(path)


# ------------------------------------------------------------------------------- Hugging Face's Hub

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
