"""Fixtures for the tests of backends."""

from __future__ import annotations

import types

import pytest

from vit_ipu import simulator


@pytest.fixture
def ipu():
    """Installs the simulator, not at import, so that IPUs keep real PopTorch; returns the modules of backends/ipu."""
    simulator.install()
    from vit_ipu.backends.ipu import blocks, optimizer, options

    return types.SimpleNamespace(blocks=blocks, optimizer=optimizer, options=options)
