"""Fixtures for the tests of weights."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def safe_torch(monkeypatch):
    """Makes torch count as a version without known holes, whichever version runs the tests."""
    monkeypatch.setattr(torch, "__version__", "2.10.0+cpu")
