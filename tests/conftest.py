"""Fixtures for all tests, and a skip with a reason for tests that need more hardware than the machine has."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
import torch
from helpers import vit_ipu

from vit_ipu.signals import STOPPING
from vit_ipu.simulator import instances, machine

torch.set_num_threads(1)


if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # in a background job of a shell, children would ignore Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # under nohup
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_runtest_setup(item: pytest.Item) -> None:
    wanted = [mark.args[0] for mark in item.iter_markers("ipus")]
    if wanted:
        import poptorch

        if getattr(poptorch, "__simulated__", False) or not poptorch.ipuHardwareIsAvailable(max(wanted)):
            pytest.skip(f"needs {max(wanted)} IPUs")
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def _separate_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Gives the tests a separate cache, so that they neither read nor fill the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def _separate_handlers() -> Iterator[None]:
    """Takes the handlers of signals back, which a command sets, or at its end ignores, for the rest of its process."""
    before = {number: signal.getsignal(number) for number in STOPPING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def _separate_instances() -> Iterator[None]:
    """Leaves the instances of poprun that a test has joined and, where it failed, not left."""
    yield
    instances.leave()


@pytest.fixture(autouse=True)
def _separate_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the hook for dropped signals back, which a command installs for the rest of its process."""
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Changes into an empty folder and returns it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, empty_folder: Path) -> Callable[..., str]:
    """Returns a function that runs a command, asserts that it succeeds, and returns what it wrote to stdout."""

    def call(*arguments: Any) -> str:
        code, out, err = vit_ipu(monkeypatch, capsys, *arguments)
        assert code == 0, err
        return out

    return call


@pytest.fixture
def sixteen_ipus() -> Iterator[None]:
    """Sets up a simulated machine of 16 IPUs, all of them free."""
    machine.configure(16)
    yield
    machine.configure(16)
