"""The optimizer of a training executor: its attributes and its state, on the host and on the IPUs."""

from __future__ import annotations

from types import MethodType
from typing import Any, Dict, List, Optional

import torch
from torch import nn
from typing_extensions import Protocol

from vit_ipu.simulator.enums import MeanReductionStrategy
from vit_ipu.simulator.execution.program import Program
from vit_ipu.simulator.logs import logger
from vit_ipu.simulator.optim import Optimizer
from vit_ipu.simulator.options.options import Options
from vit_ipu.simulator.updates.attributes import Attributes, AttributeTracker


class WeightsHost(Protocol):
    """The part of an executor that provides its optimizer with weights and with the compiled program."""

    def copyWeightsToHostIfNeeded(self) -> bool: ...

    def _compiled(self) -> Program: ...


class OptimizerSync:
    """Synchronises the user's optimizer and the optimizer on the IPUs."""

    def __init__(self, executor: WeightsHost) -> None:
        self._executor = executor
        self._tracker = AttributeTracker()
        self.optimizer: Optional[torch.optim.Optimizer] = None
        self.attributes: Optional[Attributes] = None

    def set(self, optimizer: torch.optim.Optimizer, options: Options, program: Optional[Program]) -> None:
        """Takes the optimizer and its attributes. Raises Error if the compiled program cannot use them."""
        attributes = Attributes(optimizer, options, self._tracker)
        if attributes.automatic_loss_scaling and isinstance(optimizer, Optimizer):
            optimizer.variable_attrs.markAsVariable("loss_scaling")  # type: ignore[attr-defined]
        if program is not None and program.updater is not None:
            attributes.check_replaces(program.updater.attributes)
        _set_reduction_strategy(attributes, options, is_compiled=program is not None)
        if program is not None and optimizer is not self.optimizer:
            self._release(program)
            if isinstance(optimizer, Optimizer):
                optimizer.ipu_state_is_dirty = True
        if isinstance(optimizer, Optimizer):
            optimizer.state_dict = MethodType(_state_dict_of, self)  # type: ignore[method-assign]
        self.optimizer, self.attributes = optimizer, attributes
        if program is not None and program.updater is not None:
            program.updater.attributes = attributes

    def state_dict(self) -> Dict[str, Any]:
        """Returns the state of PopTorch's optimizer, read from the IPUs if the state there is newer."""
        assert isinstance(self.optimizer, Optimizer)
        self.read_state()
        return self.optimizer.get_state_dict()

    def on_step(self) -> None:
        """Marks the host's state as old, because the IPUs have updated their state."""
        if isinstance(self.optimizer, Optimizer):
            self.optimizer.host_state_is_dirty = True

    def on_attach(self) -> None:
        """Copies the optimizer's state on the host, if there is one, to newly attached IPUs."""
        if not isinstance(self.optimizer, Optimizer):
            return
        if self.optimizer.has_state():
            self.optimizer.ipu_state_is_dirty = True
            self.write_state()
        else:
            self.optimizer.host_state_is_dirty = True
            self.optimizer.ipu_state_is_dirty = False

    def read_state(self) -> None:
        """Copies the state to the host if the IPUs have changed it."""
        if isinstance(self.optimizer, Optimizer) and self.optimizer.host_state_is_dirty:
            self._read(self._executor._compiled())

    def write_state(self) -> None:
        """Copies the state to the IPUs if the user has loaded another state."""
        if not isinstance(self.optimizer, Optimizer) or not self.optimizer.ipu_state_is_dirty:
            return
        program = self._executor._compiled()
        updater = program.updater
        assert updater is not None
        if self.optimizer.has_state():
            self._executor.copyWeightsToHostIfNeeded()
            saved = self.optimizer.get_state_dict()["ipu_state"]
            for name, tensor in updater.state.items():
                if name in saved:
                    tensor.copy_(saved[name])
                else:
                    logger.warning("The optimizer state has no %s: it starts from its initial value", name)
            program.restore_unrounded(saved)
            updater.load_parameters(self.optimizer.get_state_dict()["ipu_param"])
        self.optimizer.ipu_state_is_dirty = False

    def names_of_groups(self, model: nn.Module) -> List[List[str]]:
        """Returns the names of the parameters in each of the optimizer's groups."""
        assert self.attributes is not None
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        return [[names[id(p)] for p in group["params"]] for group in self.attributes.groups]

    def _release(self, program: Program) -> None:
        """Detaches the old optimizer, which keeps its state and no longer reads the state from the IPUs."""
        if isinstance(self.optimizer, Optimizer):
            if self.optimizer.host_state_is_dirty:
                self._read(program)
            self.optimizer.state_dict = self.optimizer.get_state_dict  # type: ignore[method-assign]

    def _read(self, program: Program) -> None:
        updater = program.updater
        assert updater is not None
        assert isinstance(self.optimizer, Optimizer)
        # Exact numerics keep more of a float16 weight than the host gets: with it, a resumed training is the same.
        on_ipus = {**updater.state, **program.unrounded_weights}
        state = {name: tensor.detach().cpu().clone() for name, tensor in on_ipus.items()}
        torch_state = torch.optim.Optimizer.state_dict(self.optimizer)
        self.optimizer.set_state_dict(dict(torch_state, ipu_state=state, ipu_param=updater.parameters))
        self.optimizer.ipu_state_is_dirty = False


def _state_dict_of(sync: OptimizerSync) -> Dict[str, Any]:
    return sync.state_dict()


def _set_reduction_strategy(attributes: Attributes, options: Options, *, is_compiled: bool) -> None:
    """Sets the running mean if a float16 accumulator needs it (_optimizer_attributes.py:130-152)."""
    training = options.Training
    strategy = training.meanAccumulationAndReplicationReductionStrategy
    if not attributes.needs_running_mean or strategy == MeanReductionStrategy.Running:
        return
    if is_compiled:
        raise ValueError(
            "Invalid optimizer: the new optimizer would require changing options.Training."
            "meanAccumulationAndReplicationReductionStrategy to poptorch.MeanReductionStrategy.Running but the "
            "executable is already compiled."
        )
    options._freeze(False)
    training.setMeanAccumulationAndReplicationReductionStrategy(MeanReductionStrategy.Running)
    options._freeze()
