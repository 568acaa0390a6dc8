"""Functions that prepare the folder of a case of bad input, and the command that trains in it."""

from __future__ import annotations

import io
import os
import socket

import numpy as np

TRAIN = ["train", "tiny.yaml", "--device", "cpu"]


def a_file(name, content):
    """Returns a function that writes a file."""

    def write(folder):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return write


def sparse(name, size=6 << 30):
    """Returns a function that makes a file of 6 GB that takes no place on the disk."""

    def write(folder):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with (folder / name).open("wb") as opened:
            opened.truncate(size)

    return write


def fifo(name):
    def make(folder):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(str(folder / name))

    return make


def link(name, target):
    def make(folder):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(target)

    return make


def a_socket(name):
    def make(folder):
        here = os.getcwd()
        os.chdir(str(folder))  # the path of a socket has at most 108 bytes
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(name)
        os.chdir(here)

    return make


def several(*functions):
    def make(folder):
        for function in functions:
            function(folder)

    return make


def with_set(*settings):
    return [*TRAIN, *[argument for setting in settings for argument in ("--set", setting)]]


def npz(compressed=False, **arrays):
    written = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(written, **arrays)
    return written.getvalue()


DEEP = "[" * 50_000
