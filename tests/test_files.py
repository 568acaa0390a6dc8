"""Files that are written completely or not at all, locks, hashes, and the cache folder."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vit_ipu import files
from vit_ipu.errors import UserError
from vit_ipu.files import (
    cache_folder,
    expand_home,
    is_within,
    lock,
    remove,
    sha256_of,
    sync,
    write_whole,
    written_whole,
)


@pytest.mark.parametrize(
    ("path", "expected"),
    [("a", True), ("a/b/c", True), ("link/b", True), ("ab", False), (".", False), ("a/../b", False)],
)
def test_a_path_is_within_a_folder_whatever_links_lead_there(tmp_path, monkeypatch, path, expected):
    monkeypatch.chdir(tmp_path)
    Path("a").mkdir()
    os.symlink("a", "link")
    assert is_within(Path(path), Path("a")) is expected
    assert is_within(Path(path), Path("/"))


def test_a_file_or_a_folder_appears_only_when_complete(tmp_path):
    write_whole(tmp_path / "text", "äöü")
    write_whole(tmp_path / "bytes", b"\0\1")
    with written_whole(tmp_path / "folder") as temporary:
        temporary.mkdir()
        (temporary / "part").write_text("x")
        assert not (tmp_path / "folder").exists()
    assert (tmp_path / "text").read_text(encoding="utf-8") == "äöü"
    assert (tmp_path / "bytes").read_bytes() == b"\0\1"
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["part"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bytes", "folder", "text"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_older_file_and_nothing_else(tmp_path, error):
    target = tmp_path / "file"
    target.write_text("before")

    def write_half(path, make):
        with written_whole(path) as temporary:
            make(temporary)
            raise error

    with pytest.raises(type(error)):
        write_half(target, lambda path: path.write_text("half"))
    with pytest.raises(type(error)):
        write_half(tmp_path / "folder", lambda path: (path.mkdir(), (path / "part").write_text("half")))
    assert target.read_text() == "before"
    assert list(tmp_path.iterdir()) == [target]


def test_leftovers_of_a_killed_process_are_replaced(tmp_path):
    (tmp_path / ".writing-file").mkdir()
    (tmp_path / ".writing-file" / "part").write_text("half")
    write_whole(tmp_path / "file", "whole")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_temporary_name_contains_the_suffix_and_with_unique_the_process_id(tmp_path):
    with written_whole(tmp_path / "a.npz", prefix=".packing-") as temporary:
        temporary.write_text("")
        assert temporary.name == ".packing-a.npz"
    with written_whole(tmp_path / "a.npz", unique=True) as temporary:
        temporary.write_text("")
        assert temporary.name == f".writing-{os.getpid()}-a.npz"


def test_contents_are_synced_before_the_rename_and_the_folder_after_it(tmp_path, monkeypatch):
    events = []
    entry, replace = files.sync_entry, os.replace
    monkeypatch.setattr(files, "sync_entry", lambda path: (events.append(path.name), entry(path)))
    monkeypatch.setattr(os, "replace", lambda old, new: (events.append("rename"), replace(old, new)))
    with written_whole(tmp_path / "folder") as temporary:
        temporary.mkdir()
        (temporary / "part").write_text("x")
    assert events == ["part", ".writing-folder", "rename", tmp_path.name]


def test_remove_deletes_files_folders_and_links_and_ignores_missing_paths(tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("")
    (tmp_path / "link").symlink_to(kept)
    for name in ("link", "missing"):
        remove(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (kept / "file").exists()
    sync(kept)
    remove(kept)
    assert list(tmp_path.iterdir()) == []


HOLDER = """
import os, sys, time
from vit_ipu.files import lock
file = open(sys.argv[1], "a")
is_locked = lock(file)
if os.fork() == 0:  # a worker that outlives the main process
    print(is_locked, flush=True)
    os.close(1), os.close(2)
    file.close()
    time.sleep(30)
    os._exit(0)
time.sleep(30)
"""


def test_a_lock_belongs_to_one_process_and_ends_with_it_even_if_children_live(tmp_path):
    path = tmp_path / ".lock"
    with path.open("a") as file, subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "True\n"
        assert lock(file) is False
        holder.kill()
        holder.wait()
        assert lock(file) is True


def test_sha256(tmp_path):
    data = os.urandom(3_000_000)
    (tmp_path / "file").write_bytes(data)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(data).hexdigest()
    with pytest.raises(OSError, match="missing"):
        sha256_of(tmp_path / "missing")


def test_the_cache_folder_follows_xdg_cache_home_and_home(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_folder() == tmp_path / "cache" / "vit_ipu"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "vit_ipu"


def test_a_home_folder_is_expanded_or_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand_home("~/images") == tmp_path / "images"
    assert expand_home("images/~") == Path("images/~")
    with pytest.raises(UserError, match="^~no-such-user/a: cannot expand ~: no such user; give an absolute path$"):
        expand_home("~no-such-user/a")
