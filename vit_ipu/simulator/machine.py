"""The simulated machine: its IPUs, the compiled models that hold them, and the torch device of the IPUs' tensors."""

from __future__ import annotations

import gc
import weakref
from typing import Any, Optional

import torch

from vit_ipu.simulator.errors import cpp_error

MAX_IPUS_PER_PROCESS = 64

_NO_HARDWARE = "No IPU detected in the system. \nFor more information use the Graphcore command-line tool `gc-monitor`."


class Machine:
    """Mk2 IPUs (GC200) of one host process; compiled models hold IPUs in powers of two."""

    def __init__(self, num_ipus: int = 16, *, device: str = "cpu", hardware: bool = True) -> None:
        self.num_ipus, self.device, self.hardware = num_ipus, torch.device(device), hardware
        self._held: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._ids: weakref.WeakKeyDictionary[Any, Optional[int]] = weakref.WeakKeyDictionary()

    def __reduce__(self) -> Any:
        """Pickles only a reference: an unpickled executor uses the machine of the process that unpickles it."""
        return _of_this_process, ()

    @property
    def ipus_held(self) -> int:
        """The number of IPUs that compiled models hold now."""
        return sum(self._held.values())

    def attach(self, owner: Any, num_ipus: int, ipu_id: Optional[int] = None) -> None:
        """Reserves `num_ipus` IPUs (0 for the IPU Model) for `owner`, on the device that `ipu_id` names, if given.

        Raises Error if the machine does not have enough free IPUs, or if the device is taken.
        """
        if num_ipus and not self.hardware:
            raise cpp_error(f"Failed to acquire {num_ipus} IPU(s)\n{_NO_HARDWARE}")
        if self.ipus_held + num_ipus > self.num_ipus:
            gc.collect()  # frees the IPUs of executors that only a reference cycle with their optimizer keeps alive
        if self.ipus_held + num_ipus > self.num_ipus:
            hint = ""
            if num_ipus > self.num_ipus:
                hint = f"\nNo device found on the system with {num_ipus} IPUs: the configuration needs changing"
            raise cpp_error(f"Failed to acquire {num_ipus} IPU(s){hint}")
        if num_ipus and ipu_id is not None and ipu_id in self._ids.values():
            raise cpp_error(f"Failed to acquire device id {ipu_id} with {num_ipus} IPU(s): it is in use")
        self._held[owner], self._ids[owner] = num_ipus, ipu_id

    def detach(self, owner: Any) -> None:
        """Frees the IPUs that `owner` holds."""
        self._held.pop(owner, None)
        self._ids.pop(owner, None)

    def is_attached(self, owner: Any) -> bool:
        return owner in self._held


def round_up_num_ipus(num_ipus: int, auto_round: bool) -> int:
    """Returns the power of two IPUs that PopTorch reserves (CompilerImpl.cpp:693-717).

    Raises Error if that is more than MAX_IPUS_PER_PROCESS, or if rounding up is necessary but `auto_round` is false.
    """
    rounded = 1 << (num_ipus - 1).bit_length()
    if rounded > MAX_IPUS_PER_PROCESS:
        raise cpp_error(
            f"Too many IPUs requested ({rounded}). Experiments that need more than {MAX_IPUS_PER_PROCESS} IPUs require "
            "distributed execution."
        )
    if rounded != num_ipus and not auto_round:
        raise cpp_error(
            f"The model specifies the use of {num_ipus} IPUs, however PopTorch must reserve a minimum of {rounded} in "
            "order to allow the model to run, because PopTorch must reserve a power of 2 or maximum of 64 IPUs per "
            "process. Please reconfigure your model to use a different number of IPUs or set "
            "poptorch.Options().autoRoundNumIPUs(True)."
        )
    return rounded


current = Machine()
"""The machine that this process simulates."""


def _of_this_process() -> Machine:
    return current


def configure(num_ipus: int, *, device: str = "cpu", hardware: bool = True) -> None:
    """Replaces the machine with a new machine; executors on the old machine keep the old machine."""
    global current
    current = Machine(num_ipus, device=device, hardware=hardware)
