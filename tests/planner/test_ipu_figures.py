"""Figures of the IPUs: they agree with the published totals, and wrong names and values are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vit_ipu.errors import ConfigError
from vit_ipu.planner.hardware import BOW, GC200, HARDWARE, PODS, hardware_named, pod_for


@pytest.mark.parametrize(
    ("hardware", "half", "single"), [(GC200, 15.978e15 / 64, 3.994e15 / 64), (BOW, 89.23e15 / 256, 22.31e15 / 256)]
)
def test_peaks_are_those_of_the_data_sheets(hardware, half, single):
    assert hardware.peak_flops() == pytest.approx(half, rel=2e-3)
    assert hardware.peak_flops(4, 4) == pytest.approx(single, rel=2e-3)
    assert hardware.peak_flops(2, 4) == hardware.peak_flops() / 2


def test_memory_is_897_mebibytes():
    for hardware in HARDWARE.values():
        assert hardware.memory_bytes == 1472 * 624 * 1024
        assert round(hardware.memory_bytes / 2**20) == 897


def test_exchange_bandwidth_is_the_published_one():
    total = GC200.tiles * GC200.exchange_bytes_per_cycle * GC200.clock_hertz
    assert total == pytest.approx(8e12, rel=0.03)


def test_an_unknown_kind_of_ipu_is_refused():
    with pytest.raises(ConfigError, match=r"--hardware bowl: unknown; did you mean 'bow'\?"):
        hardware_named("bowl")
    assert hardware_named("bow") is BOW


@pytest.mark.parametrize("share", [0.0, 1.01, -1.0])
def test_a_fitted_share_outside_its_physical_range_is_refused(share):
    with pytest.raises(ConfigError, match=rf"fitted_share {share} of gc200 is not in \(0, 1\]"):
        replace(GC200, fitted_share=share)


def test_the_smallest_pod():
    assert [pod_for(ipus) for ipus in (1, 4, 5, 64, 65)] == [4, 4, 16, 64, 256]
    with pytest.raises(ConfigError, match="512 IPUs are more than the 256 of a POD256: use fewer replicas"):
        pod_for(2 * PODS[-1])
