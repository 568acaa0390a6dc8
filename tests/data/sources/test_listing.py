"""Folders are listed once, and again when they have changed."""

from __future__ import annotations

import os

import numpy as np
import pytest

from vit_ipu.data.sources import listing
from vit_ipu.data.sources.listing import ListingCache, class_folders, list_images
from vit_ipu.errors import DataError, UserError
from vit_ipu.files import expand_home

CLASSES = ["ant", "bee", "cow"]


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Makes three class folders that were changed long ago, and uses a separate cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in CLASSES:
        (tmp_path / "images" / name).mkdir(parents=True)
        for file in ("b.png", "a.JPG", "Z.jpeg", ".hidden.png", "notes.txt", "ä ö.png"):
            (tmp_path / "images" / name / file).write_bytes(b"")
    age(tmp_path / "images")
    return tmp_path / "images"


def age(root, seconds=100):
    for name in ["", *CLASSES]:
        state = (root / name).stat()
        os.utime(str(root / name), ns=(state.st_atime_ns, state.st_mtime_ns - seconds * 10**9))


def listed(root, **options):
    paths = list_images(root, CLASSES, ListingCache(**options))
    return [paths[index] for index in range(len(paths))]


def expected(root):
    """Returns the images in alphabetical order of their paths."""
    return [
        str(root / name / file)
        for name in CLASSES
        for file in sorted(os.listdir(str(root / name)))
        if not file.startswith(".") and not file.endswith(".txt")
    ]


@pytest.fixture
def scans(monkeypatch):
    """Records the folders that are really listed."""
    found = []
    real = listing._list_folder
    monkeypatch.setattr(listing, "_list_folder", lambda folder: found.append(folder) or real(folder))
    return found


def test_the_second_start_takes_the_list_from_the_cache(root, scans):
    first = listed(root)
    assert (first, len(scans)) == (expected(root), 3)
    assert listed(root) == first
    assert len(scans) == 3
    assert os.fsdecode(os.listdir(os.environ["XDG_CACHE_HOME"] + "/vit_ipu/listings")[0]).endswith(".npz")


def test_labels_follow_the_folders(root):
    paths = list_images(root, CLASSES, ListingCache())
    assert paths.folder.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert paths.name(3) == "ä ö.png"


CHANGES = {
    "a file added": lambda root: (root / "bee" / "c.png").write_bytes(b""),
    "a file removed": lambda root: (root / "bee" / "b.png").unlink(),
    "a file renamed": lambda root: (root / "bee" / "b.png").rename(root / "bee" / "c.png"),
}


@pytest.mark.parametrize("change", list(CHANGES))
def test_a_change_is_seen(root, scans, change):
    before = listed(root)
    CHANGES[change](root)
    after = listed(root)
    assert after == expected(root) != before
    assert len(scans) == 6


def test_another_set_of_classes_is_another_list(root):
    listed(root)
    assert len(list_images(root, CLASSES[:2], ListingCache())) == 8


def test_a_change_that_left_the_times_alone_is_seen_with_rescan(root):
    before = listed(root)
    state = (root / "bee").stat()
    (root / "bee" / "c.png").write_bytes(b"")
    os.utime(str(root / "bee"), ns=(state.st_atime_ns, state.st_mtime_ns))
    if (root / "bee").stat().st_size == state.st_size:
        assert listed(root) == before
    assert listed(root, rescan=True) == expected(root)
    assert listed(root) == expected(root)


def test_a_folder_that_changed_just_now_is_not_cached(root, scans):
    """A file system's clock may be so coarse that the next change has the same time."""
    (root / "bee" / "c.png").write_bytes(b"")
    listed(root)
    (root / "bee" / "d.png").write_bytes(b"")
    assert listed(root) == expected(root)
    assert len(scans) == 6


@pytest.mark.parametrize(
    "damage",
    [lambda b: b"", lambda b: b[: len(b) // 2], lambda b: b"no zip", lambda b: b.replace(b"a.JPG", b"b.JPG")],
    ids=["empty", "cut off", "something else", "one byte"],
)
def test_a_damaged_cache_is_made_again(root, scans, damage):
    listed(root)
    (path,) = (root.parent / "cache" / "vit_ipu" / "listings").iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert listed(root) == expected(root)
    assert len(scans) == 6
    assert listed(root) == expected(root)
    assert len(scans) == 6
    assert len(list(path.parent.iterdir())) == 1


def test_a_cache_that_cannot_be_written_is_only_noted(root, monkeypatch):
    (root.parent / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(root.parent / "file"))
    notes = []
    cache = ListingCache(notify=notes.append)
    for _ in range(2):
        images = list_images(root, CLASSES, cache)
        assert [images[index] for index in range(len(images))] == expected(root)
    reason = f"note: cannot keep the list of images in {root.parent}/file/vit_ipu/listings: Not a directory"
    assert notes.count(reason) == 1


def test_without_a_home_folder_lists_are_cached_with_temporary_files(root, monkeypatch, tmp_path):
    def no_such_user(uid):
        raise KeyError(uid)

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", no_such_user)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    assert listed(root) == expected(root)
    assert len(list((tmp_path / "temporary" / ".cache" / "vit_ipu" / "listings").iterdir())) == 1
    with pytest.raises(UserError, match="^~/images: cannot expand ~: no such user; give an absolute path$"):
        expand_home("~/images")


def test_a_long_listing_is_noted(root, monkeypatch):
    monkeypatch.setattr(listing, "_WORTH_SAYING_SECONDS", -1.0)
    notes = []
    listed(root, notify=notes.append)
    assert notes[0] == f"listed the images in {root} in 0 s; the next start takes the list from the cache"


def test_files_that_are_left_out_are_noted_at_every_start(root):
    (root / "bee" / "folder").mkdir()
    (root / "bee" / "folder.png").mkdir()
    age(root)
    for _ in range(2):
        notes = []
        assert str(root / "bee" / "folder.png") not in listed(root, notify=notes.append)
        assert len(notes) == 1
        assert notes[0].startswith(
            f"note: left out 5 entries in {root} (such as in bee): images are files with a suffix of .jpg "
        )


def test_names_that_are_not_unicode_and_links_are_listed(root):
    os.close(os.open(os.fsencode(str(root / "ant")) + b"/\xff.png", os.O_CREAT))
    (root / "ant" / "link.png").symlink_to(root / "bee" / "b.png")
    age(root)
    names = [os.path.basename(os.fsencode(path)) for path in listed(root)]
    assert b"\xff.png" in names
    assert b"link.png" in names
    assert listed(root) == listed(root, rescan=True)


def test_a_class_folder_that_cannot_be_listed_is_named(root, monkeypatch):
    real = os.scandir

    def refuse(path):
        if str(path).endswith("bee"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(DataError, match=r"^cannot list .*images/bee: Permission denied$"):
        listed(root)
    with pytest.raises(DataError, match=r"^cannot list .*images/dog: No such file or directory$"):
        list_images(root, ["dog"], ListingCache())
    with pytest.raises(DataError, match=r"^cannot list .*nowhere: No such file or directory$"):
        class_folders(root / "nowhere")


def test_paths_are_arrays_and_not_objects(root):
    paths = list_images(root, CLASSES, ListingCache())
    assert all(isinstance(array, np.ndarray) for array in (paths._names, paths._ends, paths.folder))


def test_the_digest_depends_on_names_and_order(root):
    digests = {list_images(root, names, ListingCache()).digest() for names in (CLASSES, CLASSES[:2], CLASSES[::-1])}
    assert len(digests) == 3
    assert list_images(root, CLASSES, ListingCache()).digest() in digests
