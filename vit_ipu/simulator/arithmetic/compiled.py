"""The functions of kernels.c, compiled by the system's C compiler when they are first needed.

The library is kept in the user's folder of caches. Without a compiler, plain torch computes the same bits more slowly.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import List, Optional, Tuple

import platformdirs
import torch
from torch import Tensor
from typing_extensions import Protocol

from vit_ipu.simulator.arithmetic.random_bits import Operation
from vit_ipu.simulator.logs import logger

_SOURCE = Path(__file__).with_name("kernels.c")
_FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-shared")
_NATIVE = "-march=native"
_Strides = ctypes.c_int64 * 3
_SECONDS = 120
"""How long a compilation may take."""
_FLOAT = ctypes.c_float
_INT, _POINTER, _SIZE, _WORD = ctypes.c_int, ctypes.c_void_p, ctypes.c_int64, ctypes.c_uint64


Factors = Tuple[float, float]
"""What a sum, and what is added to it, are multiplied by."""


class Kernels(Protocol):
    """Compiled functions on the tensors of one device; HostKernels has their descriptions."""

    def round(self, values: Tensor, results: Tensor, clipped: Tensor, operation: Optional[Operation]) -> None: ...

    def multiply(
        self,
        left: Tensor,
        right: Tensor,
        results: Tensor,
        clipped: Tensor,
        chunk: int,
        operation: Optional[Operation],
    ) -> None: ...


@lru_cache(maxsize=None)
def kernels_for(device: torch.device) -> Optional[Kernels]:
    """Returns the compiled functions for a device, or None if there are none."""
    if device.type == "cpu":
        return host_kernels()
    if device.type != "cuda":
        return None
    try:
        from vit_ipu.simulator.arithmetic.cuda_kernels import CudaKernels
    except ImportError:
        logger.warning("Triton 3 was not found: an IPU's float16 is simulated many times more slowly.")
        return None
    return CudaKernels(device)


class HostKernels:
    """Compiled functions on contiguous tensors in the host's memory."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._round, self._multiply = library.round_to_half, library.product_in_half
        self._accumulate = library.accumulate_in_half
        self._accumulate.argtypes = [_POINTER] * 2 + [_FLOAT] * 2 + [_POINTER, _SIZE, _INT, _WORD, _WORD, _INT]
        self._round.argtypes = [_POINTER] * 4 + [_SIZE, _INT, _WORD, _WORD, _INT]
        self._multiply.argtypes = [_POINTER] * 7 + [_SIZE] * 5 + [_INT, _WORD, _WORD, _INT]

    def round(self, values: Tensor, results: Tensor, clipped: Tensor, operation: Optional[Operation]) -> None:
        """Rounds float32 `values` into float16 `results`, stochastically with the bits of `operation` if given.

        Adds the number of finite values that were too large to `clipped`, an int64.
        """
        seed, number = operation[:2] if operation is not None else (0, 0)
        pointers = values.data_ptr(), results.data_ptr(), None, clipped.data_ptr()
        self._round(*pointers, values.numel(), operation is not None, seed, number, torch.get_num_threads())

    def round_in_place(
        self, address: int, count: int, clipped: int, is_stochastic: bool, seed: int, number: int
    ) -> None:
        """Rounds `count` float32 values at an address to float16 values; `clipped` is the address of an int64."""
        self._round(address, None, address, clipped, count, is_stochastic, seed, number, torch.get_num_threads())

    def accumulate(
        self, sums: Tensor, values: Tensor, factors: Factors, clipped: Tensor, operation: Optional[Operation]
    ) -> None:
        """Makes float16 `sums` sum * factors[0] + value * factors[1] of float16 `values`, rounded."""
        seed, number = operation[:2] if operation is not None else (0, 0)
        pointers = sums.data_ptr(), values.data_ptr()
        how = operation is not None, seed, number, torch.get_num_threads()
        self._accumulate(*pointers, *factors, clipped.data_ptr(), sums.numel(), *how)

    def multiply(
        self,
        left: Tensor,
        right: Tensor,
        results: Tensor,
        clipped: Tensor,
        chunk: int,
        operation: Optional[Operation],
    ) -> None:
        """Multiplies float16 values (batch, M, K) and (batch, K, N) into contiguous `results`, float16 or float32.

        The running sum is rounded after each chunk of K; sums that are clipped are counted. Raises MemoryError.
        """
        left, right = left.float(), right.float()
        seed, number = operation[:2] if operation is not None else (0, 0)
        batch, rows, inner = left.shape
        halves, wide = (results, None) if results.dtype == torch.float16 else (None, results)
        found = (None if of is None else of.data_ptr() for of in (halves, wide))
        inputs = left.data_ptr(), _Strides(*left.stride()), right.data_ptr(), _Strides(*right.stride())
        pointers = *inputs, *found, clipped.data_ptr()
        sizes = batch, rows, right.shape[2], inner, chunk
        if self._multiply(*pointers, *sizes, operation is not None, seed, number, torch.get_num_threads()):
            raise MemoryError("no memory for a product of float16")


@lru_cache(maxsize=None)
def host_kernels() -> Optional[HostKernels]:
    """Returns the compiled functions; None, with a warning in the log, if they cannot be compiled here."""
    compiler = os.environ.get("CC") or next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None)
    if compiler is None:
        logger.warning("No C compiler was found: an IPU's float16 is simulated many times more slowly; install gcc.")
        return None
    is_parallel = _share_threads_of_torch()
    problem = ""
    for flags in (_flags(is_parallel, _NATIVE), _flags(False, _NATIVE), _flags(False)):
        try:
            return HostKernels(ctypes.CDLL(str(_compiled(compiler, flags))))
        except (OSError, subprocess.SubprocessError, AttributeError) as error:
            problem = problem or str(getattr(error, "stderr", "") or error).strip().splitlines()[0]
    logger.warning(
        "%s cannot compile %s (%s): an IPU's float16 is simulated many times more slowly.",
        compiler,
        _SOURCE.name,
        problem,
    )
    return None


def _flags(is_parallel: bool, *others: str) -> List[str]:
    return [*_FLAGS, *others, *(["-fopenmp"] if is_parallel else [])]


def _share_threads_of_torch() -> bool:
    """Makes the symbols of torch's OpenMP library visible, so that both use the same threads; False without it.

    The threads of a second library would wait in busy loops beside those of the first.
    """
    try:
        mapped = Path("/proc/self/maps").read_text()
    except OSError:
        return False
    paths = {line.split()[-1] for line in mapped.splitlines() if "libgomp" in line}
    for path in sorted(paths):
        ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
    return bool(paths)


def _compiled(compiler: str, flags: List[str]) -> Path:
    """Returns the library, compiled now or by an earlier process. Raises SubprocessError or OSError."""
    name = f"kernels-{_fingerprint(compiler, flags)}.so"
    folder = own_folder()
    if folder is not None and (folder / name).is_file():
        return folder / name
    if folder is None:
        folder = Path(tempfile.mkdtemp(prefix="vit_ipu-"))
    handle, temporary = tempfile.mkstemp(dir=str(folder), suffix=".so")
    os.close(handle)
    unfinished = Path(temporary)
    try:
        objects = unfinished.with_suffix(".o")
        compile_only = [flag for flag in flags if flag != "-shared"]
        _run([compiler, *compile_only, "-c", str(_SOURCE), "-o", str(objects)])
        _run([compiler, "-shared", str(objects), "-o", temporary])  # not linked with a second OpenMP library
        os.replace(temporary, str(folder / name))
    finally:
        for path in (unfinished, objects):
            if path.exists():
                path.unlink()
    return folder / name


def _run(command: List[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=_SECONDS, stdin=subprocess.DEVNULL)


def own_folder() -> Optional[Path]:
    """Returns the folder that keeps libraries, or None if it cannot be made or others could write to it."""
    try:
        folder = Path(platformdirs.user_cache_dir("vit_ipu", appauthor=False)) / "kernels"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = folder.stat()
    except (OSError, RuntimeError):
        return None
    is_ours = folder.is_absolute() and status.st_uid == os.getuid() and not status.st_mode & 0o022
    return folder if is_ours and os.access(str(folder), os.W_OK) else None


def _fingerprint(compiler: str, flags: List[str]) -> str:
    """Returns a name for what decides on the library: the source, the compiler, its flags and the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        processor = platform.processor()
    facts = [_SOURCE.read_text(), shutil.which(compiler) or compiler, *flags, platform.machine(), processor]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]
