"""From the user's source to a local path: pins are compared, and downloads are complete or absent."""

from __future__ import annotations

import http.client
import io
import os
import re
import urllib.error
import urllib.request

import pytest
from fetching import CONTENT, OTHER, PIN, SIZE, URL, linked, refused, written

from vit_ipu.errors import CheckpointError
from vit_ipu.weights import fetch as locations
from vit_ipu.weights.fetch import Located, locate


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
