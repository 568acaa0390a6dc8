"""Figures of the IPUs that the planner predicts for, each with its source.

A figure without a source is an assumption and says so; `dataclasses.replace` sets another value. MAC: multiply and
accumulate. Sources: poptorch is graphcore/poptorch (sdk-release-3.4), poplibs is graphcore/poplibs, POD64 and Bow are
the data sheets https://docs.graphcore.ai/projects/ipu-pod64-datasheet and .../bow-pod256-datasheet and
.../bow-2000-datasheet, and chip is https://thecharlieblake.co.uk/ipus.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Tuple

from vit_ipu.errors import ConfigError, suggest


@dataclass(frozen=True)
class Hardware:
    """One kind of IPU, and how IPUs are connected to each other and to their host."""

    name: str
    title: str
    clock_hertz: float
    """Derived: the FP16.16 peak divided by tiles x 64 MACs x 2 operations."""
    fitted_share: float
    """Share of the modelled speed of work on the chip that programs reach. The planner's only fitted constant, one for
    each kind of IPU: `calibration.py` fits it to published ViT figures. Physical range: above 0, at most 1."""
    tiles: int = 1472
    """poptorch popart_compiler/source/Utils.cpp:70-74; Bow: 5,888 tiles in a Bow-2000 of 4 IPUs."""
    tile_bytes: int = 638_976
    """624 KiB: popart tests/integration/available_memory_proportion_test.py:160."""
    half_macs_per_cycle: int = 64
    """Of a tile, float16 with float16 partials: POD64, 15.978 PFLOP/s on 64 IPUs; Bow, 89.23 PFLOP/s on 256."""
    mixed_macs_per_cycle: int = 32
    """Of a tile, float16 with float32 partials. Assumption: half the rate of float16 partials."""
    float_macs_per_cycle: int = 16
    """Of a tile, float32: POD64, 3.994 PFLOP/s on 64 IPUs; Bow, 22.31 PFLOP/s on 256."""
    exchange_bytes_per_cycle: int = 4
    """Received by a tile (poplibs, Target::getExchangeBytesPerCycle): 7.8 TB/s in all; chip gives 8 TB/s."""
    vector_bytes: int = 8
    """Width of a tile's vector unit: 4 float16 or 2 float32 (poplibs, Target::getVectorWidth)."""
    cycles_per_vector: float = 2.0
    """Of one elementwise pass, load and store included: poplibs lib/popops/popopsCycleEstimators.cpp, ADD and MULTIPLY
    of HALF: 1 cycle and 1 of overhead."""
    weight_load_bytes_per_cycle: int = 8
    """Into a tile's matrix unit: poplibs, Target::getConvUnitCoeffLoadBytesPerCycle."""
    step_cycles: int = 800
    """Of a synchronisation and a vertex call: 600 (Target::getGlobalSyncCycles) and 198 (poplibs
    popopsCycleEstimators.cpp, sharedSupervisorOverhead)."""
    steps_per_operation: int = 3
    """Assumption: an operation exchanges, computes, and exchanges or reduces."""
    neighbour_bytes_per_second: float = 64e9
    """Between neighbours in a pipeline or a ring of replicas, in each direction. An IPU has 10 IPU-Links of 32 GB/s
    (320 GB/s, chip). Assumption: 2 of them lead to a neighbour."""
    gateway_bytes_per_second: float = 6.25e9
    """Of one IPU to other IPU-Link domains: a Bow-2000's two GW-Links of 100 Gbit/s (Bow), shared by its 4 IPUs."""
    link_domain_ipus: int = 16
    """IPUs that IPU-Links connect; gateways connect more. graphcore/examples vision/vit/pytorch/benchmarks.yml starts
    64 IPUs as 8 IPU-Link domains (poprun --num-ilds=8), and nlp/bert/popart 16 as one."""
    host_bytes_per_second: float = 5.5e9
    """Between the host and a gateway: the rate in the README of graphcore/examples vision/efficientdet/tensorflow2. The
    chip's PCIe link has 64 GB/s (chip)."""
    gateway_ipus: int = 4
    """IPUs that share a gateway: those of an M2000 or a Bow-2000 (Bow)."""
    streaming_bytes_per_second: float = 5.5e9
    """Of one IPU to its Streaming Memory. No figure is published; assumption: as to the host."""
    code_bytes: int = 70_000_000
    """Code, constants and exchange sequences of an IPU's program. No figure is published: an assumption, whose range
    `memory.KINDS` explains."""

    def __post_init__(self) -> None:
        if not 0 < self.fitted_share <= 1:
            raise ConfigError(
                f"fitted_share {self.fitted_share} of {self.name} is not in (0, 1]: it is a share of the modelled speed"
            )

    @property
    def memory_bytes(self) -> int:
        """Bytes of one IPU's SRAM."""
        return self.tiles * self.tile_bytes

    def macs_per_cycle(self, element_bytes: int, partial_bytes: int) -> int:
        """Returns a tile's peak for elements and partial sums of 2 bytes (float16) or 4 bytes (float32)."""
        if element_bytes == 4:
            return self.float_macs_per_cycle
        return self.half_macs_per_cycle if partial_bytes == 2 else self.mixed_macs_per_cycle

    def peak_flops(self, element_bytes: int = 2, partial_bytes: int = 2) -> float:
        """Returns the peak operations per second of one IPU; a MAC counts as 2."""
        return 2.0 * self.tiles * self.macs_per_cycle(element_bytes, partial_bytes) * self.clock_hertz


GC200 = Hardware(name="gc200", title="GC200 (Mk2)", clock_hertz=1.325e9, fitted_share=0.593)
BOW = Hardware(name="bow", title="Bow", clock_hertz=1.85e9, fitted_share=0.559)
HARDWARE: Dict[str, Hardware] = {hardware.name: hardware for hardware in (GC200, BOW)}
PODS: Tuple[int, ...] = (4, 16, 64, 256)
"""IPUs of a POD4, POD16, POD64 and POD256: 4 in each M2000 or Bow-2000."""


def hardware_named(name: str) -> Hardware:
    """Returns the figures of a kind of IPU. Raises ConfigError if the name is unknown."""
    if name not in HARDWARE:
        raise ConfigError(f"--hardware {name}: unknown{suggest(name, HARDWARE)}")
    return HARDWARE[name]


def hardware_names(text: str) -> Tuple[str, ...]:
    """Returns the names of kinds of IPUs in a list such as "gc200,bow".

    Raises ConfigError if one is unknown or given twice.
    """
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in HARDWARE:
            raise ConfigError(f"--hardware {text}: {name or 'an empty name'}: unknown{suggest(name, HARDWARE)}")
        if names.count(name) > 1:
            raise ConfigError(f"--hardware {text}: {name} is given twice: give each kind of IPU once")
    return names


def hardware_of(ipu_version: int) -> Hardware:
    """Returns the figures of the IPUs of a config's `pipeline.ipu_version`: 2 is a Mk2, 21 a Bow."""
    return GC200 if ipu_version == 2 else BOW


def pod_for(num_ipus: int) -> int:
    """Returns the IPUs of the smallest POD that has `num_ipus`. Raises ConfigError if no POD has as many."""
    for ipus in PODS:
        if ipus >= num_ipus:
            return ipus
    raise ConfigError(f"{num_ipus} IPUs are more than the {PODS[-1]} of a POD{PODS[-1]}: use fewer replicas")
