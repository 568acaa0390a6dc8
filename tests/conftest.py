"""Hardware behind markers: a test that needs more than is there is not run, and says so."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
import torch
from helpers import vit_ipu

from vit_ipu.simulator import machine

torch.set_num_threads(1)


if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell's background job: its children would ignore Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    wanted = [mark.args[0] for mark in item.iter_markers("ipus")]
    if wanted:
        import poptorch

        if getattr(poptorch, "__simulated__", False) or not poptorch.ipuHardwareIsAvailable(max(wanted)):
            pytest.skip(f"needs {max(wanted)} IPUs")
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def _cache_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing is kept in, or taken from, the cache of whoever runs the tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, empty_folder: Path) -> Callable[..., str]:
    """Runs a command that must succeed: what it wrote to stdout."""

    def call(*arguments: Any) -> str:
        code, out, err = vit_ipu(monkeypatch, capsys, *arguments)
        assert code == 0, err
        return out

    return call


@pytest.fixture
def sixteen_ipus() -> Iterator[None]:
    """A simulated machine of 16 IPUs that nobody holds."""
    machine.configure(16)
    yield
    machine.configure(16)
