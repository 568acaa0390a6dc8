"""PoplarExecutor: a model wrapped for training or inference (python/_poplar_executor.py).

Weights exist twice, on the host in the user's model and on the simulated IPUs, and are copied when PopTorch
copies them: to the IPUs when the executor attaches or `copyWeightsToDevice` is called, to the host when the
executor detaches or when the wrapped model's weights are read after a training call.
"""

from __future__ import annotations

import time
from typing import Any, Dict, List, Optional

import torch
from torch import Tensor, nn

from vit_ipu.simulator import machine
from vit_ipu.simulator.enums import ConnectionType
from vit_ipu.simulator.errors import error
from vit_ipu.simulator.execution.compile_hooks import around_compilation
from vit_ipu.simulator.execution.executable_file import Executable, destination
from vit_ipu.simulator.execution.measures import MeasuredExecutor
from vit_ipu.simulator.execution.optimizer_sync import OptimizerSync
from vit_ipu.simulator.execution.program import Program
from vit_ipu.simulator.execution.replicas import GroupableParameter, Groupings, of_one_replica
from vit_ipu.simulator.execution.wrapped_model import unwrap, wrap
from vit_ipu.simulator.logs import logger
from vit_ipu.simulator.nested import flatten
from vit_ipu.simulator.options.options import Options
from vit_ipu.simulator.printing import module_repr
from vit_ipu.simulator.tracing.arguments import ArgumentParser, Arguments
from vit_ipu.simulator.tracing.compile_checks import (
    check_clipping,
    check_named_buffers,
    clone_for_executor,
    first_micro_batch,
    ipus_to_reserve,
)
from vit_ipu.simulator.tracing.trace import Trace
from vit_ipu.simulator.tracing.trace_model import trace_model
from vit_ipu.simulator.weights import Weights


class PoplarExecutor(MeasuredExecutor):
    """A model wrapped by `trainingModel` or `inferenceModel`, called like the model itself."""

    def __init__(
        self,
        model: nn.Module,
        options: Optional[Options],
        training: bool,
        poptorch_version: str,
        optimizer: Optional[torch.optim.Optimizer] = None,
        user_model: Optional[nn.Module] = None,
    ) -> None:
        self._model, self._user_model = model, user_model or model
        self._training, self._version = training, poptorch_version
        self._machine = machine.current
        self._parse = ArgumentParser(model)
        super().__init__(clone_for_executor(options, training))
        self._executable_inputs: Optional[Arguments] = None
        self._num_ipus = 0
        self._groupings: Groupings = {}
        self._pending_rng_state: Optional[List[int]] = None
        self._host_weights_are_old = False
        self._host_weights_version = 0
        self._seen_weights_version: Optional[int] = 0
        self._optimizer_sync = OptimizerSync(self) if training else None
        if training:
            self.setOptimizer(optimizer or torch.optim.SGD(self._user_model.parameters(), lr=0.01))
            wrap(self._user_model, self)
        self._options._freeze()

    # ------------------------------------------------------------------------------- wrapped model

    @property
    def model(self) -> nn.Module:
        """The user's model."""
        return self._user_model

    @property
    def options(self) -> Options:
        """The frozen options."""
        return self._options

    @property
    def _optimizer(self) -> Optional[torch.optim.Optimizer]:
        """PopTorch's private name for the user's optimizer."""
        return None if self._optimizer_sync is None else self._optimizer_sync.optimizer

    def __getattr__(self, attr: str) -> Any:
        if attr.startswith("__") or "_user_model" not in self.__dict__:
            raise AttributeError(attr)
        value = getattr(self._user_model, attr)
        return GroupableParameter(self._groupings, attr, value) if isinstance(value, nn.Parameter) else value

    def __repr__(self) -> str:
        return module_repr(self._user_model)

    # ----------------------------------------------------------------------------- compile and run

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compiles for arguments of these shapes; has no effect if the model is already compiled."""
        arguments = self._parse(args, kwargs)
        if self.isCompiled():
            logger.warning("Call to compile() ignored: the executable is already compiled")
        else:
            self._compile(arguments)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        assert self._options.connection_type != ConnectionType.Never, (
            "Trying to run a model on an offline device (ConnectionType.Never): use model.compile(inputs) instead of "
            "model(inputs)"
        )
        arguments = self._parse(args, kwargs)
        if not self.isCompiled():
            self._compile(arguments)
        if not self.isAttachedToDevice():
            self.attachToDevice()
        if self._optimizer_sync is None:
            self._follow_training_model()
        program = self._compiled()
        program.compiled_for.check_same(arguments)
        if self._optimizer_sync is not None:
            self._optimizer_sync.write_state()
        outputs = program.run(arguments)
        self._has_run = True
        if self._optimizer_sync is not None:
            self._host_weights_are_old = True
            self._optimizer_sync.on_step()
        for tensor in flatten(outputs):
            tensor.backward = _no_backward  # type: ignore[method-assign]
        return outputs

    def _compile(self, arguments: Arguments) -> None:
        """Compiles and, unless the target is offline, attaches.

        As in PopTorch, an executable that is replaced keeps its IPUs until the new one has its own. If there are not
        enough IPUs for both, the executor keeps the old executable.
        """
        start = time.perf_counter()
        self._executable_inputs = arguments
        first = first_micro_batch(arguments, self._options)
        replicas = int(self._options.replication_factor)
        weights = of_one_replica(Weights.of(self._model), self._groupings, replicas)
        with around_compilation():
            manager = self._options._execution_strategy.stage_manager
            trace = trace_model(self._model, weights, first, manager, self._training)
        check_named_buffers(self._options, weights.buffers)
        num_ipus = ipus_to_reserve(trace, self._options)
        if self._optimizer_sync is not None and self._optimizer_sync.attributes is not None:
            check_clipping(trace, self._options, self._optimizer_sync.attributes.max_grad_norm)
        program = self._new_program(arguments, trace, num_ipus)
        seconds = time.perf_counter() - start
        is_online = self._options.connection_type != ConnectionType.Never
        if is_online:
            self._reserve(program, num_ipus)
        if self._program is not None:
            self._machine.detach(self._program)
        self._program, self._num_ipus, self._has_run = program, num_ipus, False
        self._seconds_to_compile = seconds
        if is_online:
            self._on_attach(program)

    def _new_program(self, arguments: Arguments, trace: Trace, num_ipus: int) -> Program:
        optimizer = None
        if self._optimizer_sync is not None:
            assert self._optimizer_sync.attributes is not None
            optimizer = self._optimizer_sync.attributes, self._optimizer_sync.names_of_groups(self._model)
        device = self._machine.device
        return Program(self._model, self._options, arguments, trace, device, optimizer, self._groupings, num_ipus)

    def destroy(self) -> None:
        """Frees the IPUs and the executable, and unwraps the model."""
        if self._program is None:
            return
        if self._optimizer_sync is not None:
            self.copyWeightsToHostIfNeeded()
            self._optimizer_sync.read_state()
        self._machine.detach(self._program)
        self._program, self._has_run = None, False
        if self._training:
            unwrap(self._user_model)

    # --------------------------------------------------------------------------------------- files

    def compileAndExport(self, filename: str, *args: Any, export_model: bool = True, **kwargs: Any) -> None:
        """Compiles for arguments of these shapes and writes the executable to a file, as `save` does."""
        self.compile(*args, **kwargs)
        self.save(filename, export_model)

    def save(self, filename: str, export_model: bool = True, save_rng_state: bool = True) -> None:
        """Writes the executable, by default with the model, to a file for `poptorch.load` or `loadExecutable`."""
        executable = Executable(self._version, self._compiled().compiled_for, self._options)
        if save_rng_state:
            executable.rng_state = self.rng_state
        if export_model:
            executable.training, executable.model = self._training, self.model
            if self._optimizer_sync is not None:
                executable.optimizer = self._optimizer_sync.optimizer
                executable.optimizer_state = executable.optimizer.state_dict()
        executable.write(destination(filename))

    def loadExecutable(self, filename: str) -> None:
        """Compiles for the arguments that the executable in a file was compiled for."""
        try:
            executable = Executable.read(filename, self._version)
        except AssertionError as invalid:
            raise error(f"Invalid file {filename}: {invalid}") from invalid
        self._compile(executable.arguments)

    # ------------------------------------------------------------------------------------- devices

    def isAttachedToDevice(self) -> bool:
        """Tells whether the executor holds IPUs."""
        return self._program is not None and self._machine.is_attached(self._program)

    @property
    def _is_attached(self) -> bool:
        """PopTorch's private name for isAttachedToDevice(), read by subclasses (mmcv/device/ipu/model_wrapper.py)."""
        return self.isAttachedToDevice()

    def attachToDevice(self) -> None:
        """Reserves the IPUs and copies weights, optimizer state and random state to the IPUs."""
        program = self._compiled()
        assert self._options.connection_type != ConnectionType.Never, (
            "Trying to attach to an offline device (ConnectionType.Never)"
        )
        if self.isAttachedToDevice():
            raise error("Device is already attached")
        self._reserve(program, self._num_ipus)
        self._on_attach(program)

    def _reserve(self, program: Program, num_ipus: int) -> None:
        ipu_id = self._options.ipu_id if self._options.exists("ipu_id") else None
        self._machine.attach(program, num_ipus, ipu_id)

    def _on_attach(self, program: Program) -> None:
        """Copies weights, optimizer state and random state to newly reserved IPUs."""
        self.copyWeightsToDevice()
        if self._optimizer_sync is not None:
            self._optimizer_sync.on_attach()
        if self._pending_rng_state is not None:
            program.rng_state = self._pending_rng_state
            self._pending_rng_state = None

    def detachFromDevice(self) -> None:
        """Copies weights and optimizer state to the host and frees the IPUs."""
        program = self._compiled()
        if not self.isAttachedToDevice():
            raise error("Device is not attached")
        if self._optimizer_sync is not None:
            self.copyWeightsToHostIfNeeded()
            self._optimizer_sync.read_state()
        self._machine.detach(program)

    # ------------------------------------------------------------------------------------- weights

    def copyWeightsToHostIfNeeded(self) -> bool:
        """Copies the weights to the user's model if training has changed them, and tells whether it has."""
        if not self._host_weights_are_old:
            return False
        self.copyWeightsToHost()
        return True

    def copyWeightsToHost(self) -> None:
        """Copies the weights to the user's model."""
        program = self._compiled()
        self._host_weights_are_old = False
        program.read_weights()
        self._host_weights_version += 1

    def copyWeightsToDevice(self) -> None:
        """Copies the weights of the user's model to the IPUs."""
        program = self._compiled()
        self._host_weights_are_old = False
        if self._optimizer_sync is not None:
            self._optimizer_sync.read_state()
        program.write_weights()

    def copyNamedBuffersToDevice(self) -> None:
        """Copies the buffers that Options.updatableNamedBuffers names to the IPUs."""
        program = self._compiled()
        names = self._options._Popart.options.get("updatableNamedBuffers")
        if names is None:
            raise error("No named buffers marked as updatable via updatableNamedBuffers option")
        self._host_weights_are_old = False
        if self._optimizer_sync is not None:
            self._optimizer_sync.read_state()
        program.write_weights(only=names)

    def load_state_dict(self, state_dict: Dict[str, Tensor], strict: bool = True) -> Any:
        """Loads weights into the user's model and, if the executor is attached, copies them to the IPUs."""
        loaded = self._user_model.load_state_dict(state_dict, strict)
        if self.isAttachedToDevice():
            self.copyWeightsToDevice()
        return loaded

    def _follow_training_model(self) -> None:
        """Copies to the IPUs the weights that a training executor of the same model has changed since the last call."""
        copy_if_needed = getattr(self._user_model, "copyWeightsToHostIfNeeded", None)
        if not callable(copy_if_needed):
            return
        copy_if_needed()
        version = self._user_model._host_weights_version
        if version != self._seen_weights_version:
            self.copyWeightsToDevice()
            self._seen_weights_version = version  # type: ignore[assignment]

    def setOptimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Passes the optimizer's attributes, such as a new learning rate, to the IPUs."""
        assert self._optimizer_sync is not None, "Optimizer should be None for inference"
        self._optimizer_sync.set(optimizer, self._options, self._program)
        if self.isAttachedToDevice():
            self._optimizer_sync.write_state()

    # -------------------------------------------------------------------------------- random state

    @property
    def rng_state(self) -> List[int]:
        """The seed and the state of the device's random generator."""
        program = self._compiled()
        return program.rng_state if self._pending_rng_state is None else self._pending_rng_state

    @rng_state.setter
    def rng_state(self, state: List[int]) -> None:
        program = self._compiled()
        if self.isAttachedToDevice():
            program.rng_state = state
        else:
            self._pending_rng_state = state.copy()


def _no_backward(*args: Any, **kwargs: Any) -> None:
    raise error(
        "backward() cannot be called explicitly on outputs of a PopTorch model. If you're using a trainingModel, the "
        "backwards pass is performed automatically when invoking the model. If you're using an inferenceModel, you "
        "should use a trainingModel instead."
    )
