"""Hardware behind markers: a test that needs more than is there is not run, and says so."""

from __future__ import annotations

import pytest
import torch

torch.set_num_threads(1)


def pytest_runtest_setup(item: pytest.Item) -> None:
    wanted = [mark.args[0] for mark in item.iter_markers("ipus")]
    if wanted:
        import poptorch

        if getattr(poptorch, "__simulated__", False) or not poptorch.ipuHardwareIsAvailable(max(wanted)):
            pytest.skip("needs {} IPUs".format(max(wanted)))
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
