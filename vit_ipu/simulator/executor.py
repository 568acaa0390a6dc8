"""PoplarExecutor: a model wrapped for training or inference (python/_poplar_executor.py).

Weights live twice, on the host in the user's model and on the simulated IPUs, and are copied when PopTorch
copies them: to the IPUs when the executor attaches or `copyWeightsToDevice` is called, to the host when it
detaches or when the wrapped model's weights are read after a training call.
"""

from __future__ import annotations

import logging
from types import MethodType
from typing import Any, Dict, List, Optional

import torch
from torch import Tensor, nn

from vit_ipu.simulator import machine
from vit_ipu.simulator.arguments import ArgumentParser, Arguments
from vit_ipu.simulator.checks import ipus_to_reserve, prepared
from vit_ipu.simulator.enums import ConnectionType, MeanReductionStrategy
from vit_ipu.simulator.errors import error
from vit_ipu.simulator.optim import Attributes, Optimizer
from vit_ipu.simulator.options import Options
from vit_ipu.simulator.program import Program
from vit_ipu.simulator.tracing import trace_model
from vit_ipu.simulator.wrapping import unwrap, wrap

logger = logging.getLogger("poptorch")

_NO_EXECUTABLE = "Model has not been compiled or has been destroyed."

# Methods of PopTorch's executor that are not simulated.
_NOT_SIMULATED = frozenset(
    "getTensorNames getAnchoredTensor copyNamedBuffersToDevice loadExecutable save compileAndExport cycleCount "
    "compilationTime getPerfCounters getHostIpuLatency getComputeLatency getIpuHostLatency getLatency".split()
)


class PoplarExecutor:
    """Made by `trainingModel` and `inferenceModel`; called like the model it wraps."""

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
        self._machine = machine.machine
        self._parse = ArgumentParser(model)
        self._options = prepared(options, training)
        self._program: Optional[Program] = None
        self._num_ipus = 0
        self._optimizer: Optional[torch.optim.Optimizer] = None
        self._attributes: Optional[Attributes] = None
        self._pending_rng_state: Optional[List[int]] = None
        self._host_weights_are_old = False
        self._host_weights_version = 0
        self._seen_weights_version: Optional[int] = 0
        if training:
            self.setOptimizer(optimizer or torch.optim.SGD(self._user_model.parameters(), lr=0.01))
            wrap(self._user_model, self)
        self._options._freeze()

    # ------------------------------------------------------------------------------- what it wraps

    @property
    def model(self) -> nn.Module:
        """The user's model."""
        return self._user_model

    @property
    def options(self) -> Options:
        """The frozen options."""
        return self._options

    def __getattr__(self, attr: str) -> Any:
        if attr in _NOT_SIMULATED:
            raise NotImplementedError("poptorch.PoplarExecutor.{} is not simulated".format(attr))
        if attr.startswith("__") or "_user_model" not in self.__dict__:
            raise AttributeError(attr)
        return getattr(self._user_model, attr)

    def __repr__(self) -> str:
        return repr(self._user_model)

    # ----------------------------------------------------------------------------- compile and run

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compiles for arguments of these shapes; without effect if it was done before."""
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
        if not self._training:
            self._follow_training_model()
        program = self._compiled()
        program.compiled_for.check_same(arguments)
        self._write_optimizer_state()
        outputs = program.run(arguments)
        if self._training:
            self._host_weights_are_old = True
            if isinstance(self._optimizer, Optimizer):
                self._optimizer.host_state_is_dirty = True
        return outputs

    def _compile(self, arguments: Arguments) -> None:
        first = arguments.with_tensors([self._first_micro_batch(tensor) for tensor in arguments.tensors()])
        trace = trace_model(self._model, first, self._options._execution_strategy.stage_manager, self._training)
        self._num_ipus = ipus_to_reserve(trace, self._options)
        optimizer = (self._attributes, self._names_of_groups()) if self._attributes is not None else None
        self._program = Program(self._model, self._options, arguments, trace, self._machine.device, optimizer)
        if self._options.connection_type != ConnectionType.Never:
            try:
                self.attachToDevice()
            except Exception:
                self._program = None
                raise

    def _first_micro_batch(self, tensor: Tensor) -> Tensor:
        options = self._options
        count = options.device_iterations * options.replication_factor * options.Training.gradient_accumulation
        size = tensor.shape[0] if tensor.dim() else 1
        assert size % count == 0, (
            "Invalid batch dimension: In the input {}, the batch dimension ({}) must be a multiple of "
            "Options.deviceIterations({}) * (Options.replicationFactor({}) / "
            "Options.inputReplicaGrouping.input_group_size(1)) * Options.Training.gradientAccumulation({}) = {} "
            "because it is used to calculate the batch size which will be executed on the device in any given "
            "iteration. For a full explanation see the batching semantics page of the documentation.".format(
                tensor.shape,
                size,
                options.device_iterations,
                options.replication_factor,
                options.Training.gradient_accumulation,
                count,
            )
        )
        return tensor[: size // count] if tensor.dim() else tensor

    def isCompiled(self) -> bool:
        """Whether there is an executable."""
        return self._program is not None

    def destroy(self) -> None:
        """Frees the IPUs and the executable, and unwraps the model."""
        if not self.isCompiled():
            return
        if self._training:
            self.copyWeightsToHostIfNeeded()
            self._read_optimizer_state()
        self._machine.detach(self)
        self._program = None
        if self._training:
            unwrap(self._user_model)

    # ------------------------------------------------------------------------------------- devices

    def isAttachedToDevice(self) -> bool:
        """Whether the executor holds IPUs."""
        return self.isCompiled() and self._machine.is_attached(self)

    def attachToDevice(self) -> None:
        """Reserves the IPUs again and copies weights, optimizer state and random state to them."""
        program = self._compiled()
        assert self._options.connection_type != ConnectionType.Never, (
            "Trying to attach to an offline device (ConnectionType.Never)"
        )
        if self.isAttachedToDevice():
            raise error("Device is already attached")
        self._machine.attach(self, self._num_ipus)
        self.copyWeightsToDevice()
        if isinstance(self._optimizer, Optimizer):
            if self._optimizer.has_state():
                self._optimizer.ipu_state_is_dirty = True
                self._write_optimizer_state()
            else:
                self._optimizer.host_state_is_dirty = True
                self._optimizer.ipu_state_is_dirty = False
        if self._pending_rng_state is not None:
            program.rng_state = _state_of(self._pending_rng_state)
            self._pending_rng_state = None

    def detachFromDevice(self) -> None:
        """Copies weights and optimizer state to the host and frees the IPUs."""
        self._compiled()
        if not self.isAttachedToDevice():
            raise error("Device is not attached")
        if self._training:
            self.copyWeightsToHostIfNeeded()
            self._read_optimizer_state()
        self._machine.detach(self)

    # ------------------------------------------------------------------------------------- weights

    def copyWeightsToHostIfNeeded(self) -> bool:
        """Copies the weights to the user's model if training has changed them; whether it has."""
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
        """Copies the user's model's weights to the IPUs."""
        program = self._compiled()
        self._host_weights_are_old = False
        self._read_optimizer_state()
        program.write_weights()

    def load_state_dict(self, state_dict: Dict[str, Tensor], strict: bool = True) -> Any:
        """Loads into the user's model and, if attached, copies to the IPUs."""
        loaded = self._user_model.load_state_dict(state_dict, strict)
        if self.isAttachedToDevice():
            self.copyWeightsToDevice()
        return loaded

    def _follow_training_model(self) -> None:
        """Takes over what a training executor of the same model has learnt since the last call."""
        copy_if_needed = getattr(self._user_model, "copyWeightsToHostIfNeeded", None)
        if not callable(copy_if_needed):
            return
        copy_if_needed()
        version = self._user_model._host_weights_version
        if version != self._seen_weights_version:
            self.copyWeightsToDevice()
            self._seen_weights_version = version  # type: ignore[assignment]

    # ----------------------------------------------------------------------------------- optimizer

    def setOptimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Hands the optimizer's attributes, such as a new learning rate, to the IPU."""
        attributes = Attributes(optimizer)
        if self._program is not None and self._program.updater is not None:
            attributes.check_replaces(self._program.updater.attributes)
        self._set_reduction_strategy(attributes)
        if self.isCompiled() and optimizer is not self._optimizer:
            self._release_optimizer()
            if isinstance(optimizer, Optimizer):
                optimizer.ipu_state_is_dirty = True
        if isinstance(optimizer, Optimizer):
            optimizer.state_dict = MethodType(PoplarExecutor._optimizer_state_dict, self)  # type: ignore[method-assign]
        self._optimizer, self._attributes = optimizer, attributes
        if self._program is not None and self._program.updater is not None:
            self._program.updater.attributes = attributes
            if self.isAttachedToDevice():
                self._write_optimizer_state()

    def _set_reduction_strategy(self, attributes: Attributes) -> None:
        """A float16 accumulator needs the running mean (_optimizer_attributes.py:130-152)."""
        training = self._options.Training
        strategy = training.meanAccumulationAndReplicationReductionStrategy
        if attributes.accum_type != torch.float16 or strategy == MeanReductionStrategy.Running:
            return
        if self.isCompiled():
            raise ValueError(
                "Invalid optimizer: the new optimizer would require changing options.Training."
                "meanAccumulationAndReplicationReductionStrategy to poptorch.MeanReductionStrategy.Running but the "
                "executable is already compiled."
            )
        self._options._freeze(False)
        training.setMeanAccumulationAndReplicationReductionStrategy(MeanReductionStrategy.Running)
        self._options._freeze()

    def _release_optimizer(self) -> None:
        """The optimizer that is being replaced keeps its state and no longer asks this executor for it."""
        if isinstance(self._optimizer, Optimizer):
            self._read_optimizer_state()
            self._optimizer.state_dict = self._optimizer.get_state_dict  # type: ignore[method-assign]

    def _optimizer_state_dict(self) -> Dict[str, Any]:
        assert isinstance(self._optimizer, Optimizer)
        self._read_optimizer_state()
        return self._optimizer.get_state_dict()

    def _read_optimizer_state(self) -> None:
        if not isinstance(self._optimizer, Optimizer) or not self._optimizer.host_state_is_dirty:
            return
        updater = self._compiled().updater
        assert updater is not None
        state = {name: tensor.detach().cpu().clone() for name, tensor in updater.state.items()}
        torch_state = torch.optim.Optimizer.state_dict(self._optimizer)
        self._optimizer.set_state_dict(dict(torch_state, ipu_state=state, ipu_param=updater.parameters))
        self._optimizer.ipu_state_is_dirty = False

    def _write_optimizer_state(self) -> None:
        if not isinstance(self._optimizer, Optimizer) or not self._optimizer.ipu_state_is_dirty:
            return
        updater = self._compiled().updater
        assert updater is not None
        if self._optimizer.has_state():
            self.copyWeightsToHostIfNeeded()
            saved = self._optimizer.get_state_dict()["ipu_state"]
            for name, tensor in updater.state.items():
                if name in saved:
                    tensor.copy_(saved[name])
                else:
                    logger.warning("The optimizer state has no %s: it starts anew", name)
        self._optimizer.ipu_state_is_dirty = False

    def _names_of_groups(self) -> List[List[str]]:
        assert self._attributes is not None
        names = {id(parameter): name for name, parameter in self._model.named_parameters()}
        return [[names[id(p)] for p in group["params"]] for group in self._attributes.groups]

    # -------------------------------------------------------------------------------- random state

    @property
    def rng_state(self) -> List[int]:
        """The seed and the state of the device's random generator."""
        program = self._compiled()
        if self._pending_rng_state is not None:
            return self._pending_rng_state
        seed = self._options.random_seed if self._options.exists("random_seed") else 0
        return [int(seed)] + program.rng_state.tolist()

    @rng_state.setter
    def rng_state(self, state: List[int]) -> None:
        program = self._compiled()
        if self.isAttachedToDevice():
            program.rng_state = _state_of(state)
        else:
            self._pending_rng_state = state.copy()

    def _compiled(self) -> Program:
        if self._program is None:
            raise error(_NO_EXECUTABLE)
        return self._program


def _state_of(state: List[int]) -> Tensor:
    return torch.tensor(state[1:], dtype=torch.uint8)
