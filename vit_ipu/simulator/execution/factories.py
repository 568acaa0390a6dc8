"""Functions that make executors: trainingModel, inferenceModel and load (python/__init__.py:71-750)."""

from __future__ import annotations

import copy
from typing import Any, Callable, Optional

import torch

from vit_ipu.simulator.execution.executable_file import Executable
from vit_ipu.simulator.execution.executor import PoplarExecutor
from vit_ipu.simulator.execution.wrapped_model import is_wrapped
from vit_ipu.simulator.options.options import Options

__version__ = "3.4.0+simulated"


def trainingModel(
    model: Any, options: Optional[Options] = None, optimizer: Optional[torch.optim.Optimizer] = None
) -> PoplarExecutor:
    """Wraps a model whose forward computes one loss; each call trains the model."""
    model = model.model if isinstance(model, PoplarExecutor) else model
    if is_wrapped(model):
        raise RuntimeError(
            "Model has already been wrapped in 'poptorch.trainingModel'. Call model.destroy() on the model to unwrap "
            "before wrapping again."
        )
    return PoplarExecutor(copy.copy(model), options, True, __version__, optimizer=optimizer, user_model=model)


def inferenceModel(model: Any, options: Optional[Options] = None) -> PoplarExecutor:
    """Wraps a shallow copy of a model for inference; a later eval() of the original does not affect the copy."""
    model = model.model if isinstance(model, PoplarExecutor) else model
    return PoplarExecutor(copy.copy(model), options, False, __version__)


def load(filename: str, edit_opts_fn: Optional[Callable[[Options], None]] = None) -> PoplarExecutor:
    """Loads the model in a file that `compileAndExport` or `save` wrote; `edit_opts_fn` may change the options first.

    The file is a pickle: load only files that you trust. Raises AssertionError if the file contains no model.
    """
    try:
        executable = Executable.read(filename, __version__)
    except AssertionError as invalid:
        raise AssertionError(f"Invalid file {filename}: {invalid}") from invalid
    assert executable.model is not None, (
        f"{filename} is a valid PopTorch file but was created with 'export_model=False' which means you need to "
        "re-create the PopTorch model using poptorch.inferenceModel or poptorch.trainingModel then call poptorch_model."
        f'loadExecutable("{filename}").'
    )
    if edit_opts_fn:
        edit_opts_fn(executable.options)
    if executable.training:
        if executable.optimizer_state is not None:
            executable.optimizer.load_state_dict(executable.optimizer_state)
        executor = trainingModel(executable.model, executable.options, executable.optimizer)
    else:
        executor = inferenceModel(executable.model, executable.options)
    executor.loadExecutable(filename)
    if executable.rng_state is not None:
        executor.rng_state = executable.rng_state
    return executor
