"""Files of compiled models, which `save` writes and which `load` and `loadExecutable` read.

A file contains the arguments that the model was compiled for but no machine code: loading compiles the model again.
Like PopTorch's file, it is a pickle that contains the user's model and optimizer: load only files that you trust.
"""

from __future__ import annotations

import os
import pickle
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Dict, List, Optional

from vit_ipu.simulator.enums import ConnectionType
from vit_ipu.simulator.logs import logger
from vit_ipu.simulator.options.options import Options
from vit_ipu.simulator.tracing.arguments import Arguments

_BEGINNING = b"vit_ipu.simulator executable"
_MAGIC = _BEGINNING + b" 2\n"
"""The number changes if a class in the pickle is renamed."""


@dataclass
class Executable:
    """A compiled model; `training` and the fields after it are None in a file without the model."""

    version: str
    arguments: Arguments
    options: Options
    rng_state: Optional[List[int]] = None
    training: Optional[bool] = None
    model: Any = None
    optimizer: Any = None
    optimizer_state: Optional[Dict[str, Any]] = None

    def write(self, filename: str) -> None:
        """Writes the file under a temporary name and renames it; removes the temporary file if that fails."""
        temporary = f"{filename}.{os.getpid()}"
        try:
            with open(temporary, "wb") as file:
                file.write(_MAGIC)
                pickle.dump(self, file, protocol=4)
            os.replace(temporary, filename)
        finally:
            with suppress(FileNotFoundError):
                os.remove(temporary)

    @classmethod
    def read(cls, filename: str, version: str) -> Executable:
        """Returns the executable in a file. Raises AssertionError if there is none or its version differs."""
        with open(filename, "rb") as file:
            beginning = file.read(len(_MAGIC))
            is_old = beginning != _MAGIC and beginning.startswith(_BEGINNING)
            assert not is_old, "another version of this simulator wrote it: compile and save the model again"
            assert beginning == _MAGIC, "it was not written by this simulator"
            executable = pickle.load(file)
        assert executable.version == version, (
            f"PopTorch version mismatch: File was created with version: {executable.version} and this is version "
            f"{version}"
        )
        _make_online(executable.options)
        return executable  # type: ignore[no-any-return]


def _make_online(options: Options) -> None:
    """Undoes the settings of useOfflineIpuTarget."""
    options._freeze(False)
    options.deleteIfExists("ipu_version")
    if options.connection_type == ConnectionType.Never:
        options.connectionType(ConnectionType.Always)


def destination(filename: str) -> str:
    """Returns the file to write for the name that the user gave, and makes the folder of the file."""
    folder = os.path.dirname(filename)
    if folder and not os.path.exists(folder):
        os.makedirs(folder)
    assert not folder or os.path.isdir(folder), f"Destination folder {folder} is not a directory"
    if not os.path.isdir(filename):
        return filename
    inside = os.path.join(filename, "model.poptorch")
    logger.warning("save(): %s is a directory, saving model to %s", filename, inside)
    return inside
