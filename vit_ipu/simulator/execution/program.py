"""A compiled model on the simulated IPUs: its weights, optimizer state and random state, and how a call runs.

A call consumes D x G x R micro-batches in the order [D][G][R] and, in training, does D weight updates. The
pipeline drains before each update, so running the micro-batches one after the other computes the same results.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, ContextManager, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from vit_ipu.simulator import instances
from vit_ipu.simulator import popart_enums as popart
from vit_ipu.simulator.arithmetic.half_mode import undispatched
from vit_ipu.simulator.cost.counters import Call
from vit_ipu.simulator.dtypes import in_32_bits
from vit_ipu.simulator.enums import OutputMode
from vit_ipu.simulator.execution.anchors import GRADIENT, UPDATED, Anchors
from vit_ipu.simulator.execution.device_formats import DeviceFormats
from vit_ipu.simulator.execution.forward import Forward
from vit_ipu.simulator.execution.passes import Passes, Training
from vit_ipu.simulator.execution.random_state import RandomState
from vit_ipu.simulator.execution.replicas import Grouping, Groupings, Replicas
from vit_ipu.simulator.nested import flatten, rebuild
from vit_ipu.simulator.options.options import Options
from vit_ipu.simulator.options.output_modes import joined
from vit_ipu.simulator.tracing.arguments import Arguments, micro_batch_of, micro_batches_of_input
from vit_ipu.simulator.tracing.trace import Trace
from vit_ipu.simulator.updates.attributes import Attributes
from vit_ipu.simulator.updates.gradients import Gradients, Reduction
from vit_ipu.simulator.updates.loss_scaling import AutomaticLossScale, OverflowWatch
from vit_ipu.simulator.updates.updater import Updater
from vit_ipu.simulator.weights import Weights, in_modes, swapped_weights

UNROUNDED = "Unrounded___"
"""Prefix of the names of `Program.unrounded_weights`, like PopART's prefixes of the optimizer's state."""
_OFF, _RANDOM_NORMAL = int(popart.SyntheticDataMode.Off), int(popart.SyntheticDataMode.RandomNormal)


class _Output(NamedTuple):
    """An output of the model: its dtype on the host, and whether it is a constant, which the host returns as it is."""

    dtype: torch.dtype
    is_constant: bool

    @classmethod
    def of(cls, traced: Tensor, trace: Trace) -> _Output:
        """Describes a traced output (_poplar_executor.py:865-874, popart_compiler Compiler.cpp:1310-1319)."""
        dtype = in_32_bits(traced.dtype) if traced.is_meta else traced.dtype
        return cls(dtype, trace.graph.is_constant(traced))

    def returned(self, values: Sequence[Tensor], replicas: int, mode: OutputMode, period: int) -> Tensor:
        """Returns what the host gets of the micro-batches' values."""
        value = values[0] if self.is_constant else joined(values, replicas, mode, period)
        return value.to("cpu", self.dtype)


class Program:
    """A compiled model, and its state on the IPUs."""

    def __init__(
        self,
        model: nn.Module,
        options: Options,
        compiled_for: Arguments,
        trace: Trace,
        device: torch.device,
        optimizer: Optional[Tuple[Attributes, Sequence[Sequence[str]]]],
        groupings: Groupings,
        num_ipus: int = 0,
    ) -> None:
        """`compiled_for`: arguments of a complete call; `optimizer`: attributes, and parameter names by group."""
        self._model, self._options, self._trace, self._device = model, options, trace, device
        self.compiled_for = compiled_for
        # Calls of model.train() or model.eval() after compilation have no effect on a program.
        self._modes = {module: module.training for module in model.modules()}
        self._formats = DeviceFormats(options, trace, device, self._modes)
        self._iterations = int(options.device_iterations)
        self._accumulation = int(options.Training.gradient_accumulation)
        self._replicas = int(options.replication_factor)
        self._synthetic_data = int(options._Popart.options.get("syntheticDataMode", _OFF))
        self._input_groups = Grouping(options.input_cgt, int(options.input_group_size))
        self.weights = Weights.of(model).map(lambda tensor: self._formats.to_device(tensor, copy=True))
        own_buffers = trace.mutates_buffers and not options.broadcast_buffers
        self._by_replica = Replicas(self.weights, groupings, self._replicas, own_buffers=own_buffers)
        self._training = self._new_training(*optimizer) if optimizer is not None else None
        state: Dict[str, Tensor] = self.updater.state if self.updater is not None else {}
        self._anchors = Anchors(options, self._by_replica, state)
        self._outputs = [_Output.of(tensor, trace) for tensor in flatten(trace.outputs)]
        self._forward = Forward(model, trace, device, self._by_replica, self._training and self._training.loss)
        self._passes = self._training and Passes(
            self._forward, self._training, options, trace, device, self._by_replica, self._formats.half
        )
        seed = int(options.random_seed) if options.exists("random_seed") else None
        self._random_state = RandomState(seed, device, self._formats.half, num_ipus)

    def _new_training(self, attributes: Attributes, names: Sequence[Sequence[str]]) -> Training:
        loss, reduction = self._trace.final_loss(), Reduction.of(self._options)
        rounding = self._formats.half.rounding if self._formats.half is not None else None
        trained = [item for item in self._model.named_parameters() if item[1].requires_grad]
        half = {name for name, weight in trained if weight.dtype == torch.float16}
        loss_scale = AutomaticLossScale(half) if attributes.automatic_loss_scaling else None
        overflow = OverflowWatch(half) if loss_scale is None else None  # an automatic scale tries what is too large
        weights = self.weights.parameters
        return Training(
            loss,
            Gradients(weights, reduction, attributes.accum_type, rounding, loss_scale, overflow),
            Updater(attributes, weights, names, reduction, rounding, loss_scale, self._by_replica.groups),
        )

    @property
    def updater(self) -> Optional[Updater]:
        """The updater of the weights; None in inference."""
        return None if self._training is None else self._training.updater

    @property
    def rounds(self) -> int:
        """The number of micro-batches that each replica consumes in a call."""
        return self._iterations * self._accumulation

    @property
    def trace(self) -> Trace:
        """The trace of the model."""
        return self._trace

    @property
    def anchored(self) -> Dict[str, Tensor]:
        """The anchored tensors of the last call by their short names."""
        return self._anchors.results

    def tensor_names(self) -> List[str]:
        """Returns the names of the tensors in PopART's graph, as far as the simulator knows these tensors."""
        names = ["input" + (f"/{i}" if i else "") for i in range(len(self.compiled_for.tensors()))]
        names += [name for name, _ in self.weights.items()]
        if self.updater is not None:
            names += ["loss"] + [prefix + name for prefix in (GRADIENT, UPDATED) for name in self.weights.parameters]
            names += [*self.updater.state, *self.updater.parameters]
        return names

    def transfers(self) -> Call:
        """Returns the transfers of a call between host and IPUs."""
        options, inputs = self._options, len(self.compiled_for.tensors())
        period, mode = int(options.output_return_period), OutputMode(options.output_mode)
        rounds = self.rounds if self._synthetic_data == _OFF else 0
        outputs = sum(not output.is_constant for output in self._outputs)
        return Call(rounds, self._replicas, inputs, outputs, mode, period)

    @property
    def num_clipped(self) -> int:
        """The number of finite values that were too large for float16 since compilation; 0 with exact numerics."""
        return 0 if self._formats.half is None else self._formats.half.rounding.num_clipped

    @property
    def rng_state(self) -> List[int]:
        """The seed, the random state, and the state of stochastic rounding if rounding is stochastic."""
        return self._random_state.values

    @rng_state.setter
    def rng_state(self, state: Sequence[int]) -> None:
        """Sets the seed and the states; a seed alone starts the sequence of that seed."""
        self._random_state.values = state

    # ------------------------------------------------------------------------------------ weights

    @torch.no_grad()
    def write_weights(self, only: Optional[Sequence[str]] = None) -> None:
        """Copies the host's weights and buffers, or only those that `only` names, to the IPUs.

        A float16 weight that the host has not changed since it was last read keeps its float32 value on the IPUs.
        """
        host = dict(Weights.of(self._model).items())
        for name, tensor in self.weights.items():
            if only is not None and name not in only:
                continue
            given = host[name].to(tensor.device)
            if given.dtype == tensor.dtype:
                tensor.copy_(given)
            else:
                tensor.copy_(torch.where(tensor.to(given.dtype) == given, tensor, given.to(tensor.dtype)))
        self._by_replica.follow_first()

    @torch.no_grad()
    def read_weights(self) -> None:
        """Copies the IPUs' weights and buffers to the host."""
        host = dict(Weights.of(self._model).items())
        for name, tensor in self.weights.items():
            host[name].copy_(tensor)

    @property
    def unrounded_weights(self) -> Dict[str, Tensor]:
        """The weights that the model has in float16, and exact numerics in float32, by names of their own."""
        host = dict(Weights.of(self._model).items())
        halves = [name for name, tensor in host.items() if tensor.dtype == torch.float16]
        ours = dict(self.weights.items())
        return {UNROUNDED + name: ours[name] for name in halves if ours[name].dtype == torch.float32}

    @torch.no_grad()
    def restore_unrounded(self, saved: Dict[str, Tensor]) -> None:
        """Sets `unrounded_weights` to saved values, where these round to the float16 values that the weights have."""
        for name, tensor in self.unrounded_weights.items():
            if name in saved:
                before = saved[name].to(tensor.device)
                tensor.copy_(torch.where(before.half() == tensor.half(), before, tensor))
        self._by_replica.follow_first()

    # ---------------------------------------------------------------------------------------- runs

    def run(self, arguments: Arguments) -> Any:
        """Runs one call; returns the outputs in the model's structure, or None if the model returns nothing."""
        with torch.inference_mode(False):  # inference tensors do not count changes
            tensors = [self._formats.input_to_device(self._synthetic(tensor)) for tensor in arguments.tensors()]
        versions = [_version(tensor) for tensor in tensors]
        collected: List[List[Tensor]] = []
        self._anchors.start_call()
        with self._random_state.in_use(), self._same_weights(), in_modes(self._modes), self._formats.in_use():
            for iteration in range(self._iterations):
                first = iteration * self._accumulation * self._replicas
                indices = range(first, first + self._accumulation * self._replicas)
                if self._training is not None:
                    collected += self._update_weights(self._training, arguments, tensors, indices)
                else:
                    with torch.no_grad():
                        collected += [self._infer(arguments, tensors, index) for index in indices]
        self._anchors.end_call()
        changed = [_version(tensor) > version for tensor, version in zip(tensors, versions)]
        _return_changes(arguments.tensors(), tensors, changed)
        if self._trace.graph.is_random:
            self._random_state.advance(self.rounds, self._replicas * int(self._options.Distributed.numProcesses))
        mode, period = OutputMode(self._options.output_mode), int(self._options.output_return_period)
        outputs = zip(self._outputs, zip(*collected))
        return rebuild(self._trace.outputs, [out.returned(of, self._replicas, mode, period) for out, of in outputs])

    def _synthetic(self, tensor: Tensor) -> Tensor:
        """Returns the input, or its replacement with Options.enableSyntheticData.

        Random normal data replace floating-point inputs if the option selects them; zeros replace all other inputs.
        """
        if self._synthetic_data == _OFF:
            return tensor
        if self._synthetic_data == _RANDOM_NORMAL and tensor.is_floating_point():
            return torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0)).to(tensor.dtype)
        return torch.zeros_like(tensor)

    def _update_weights(
        self, training: Training, arguments: Arguments, tensors: List[Tensor], indices: Sequence[int]
    ) -> List[List[Tensor]]:
        """Updates the weights by the gradients of some micro-batches; returns the outputs of each of these."""
        updater = training.updater
        assert self._passes is not None
        collected = self._passes.run(arguments, [self._inputs_of(tensors, index) for index in indices])
        with undispatched():
            gradients = training.gradients.reduced()
            self._anchors.before_update(updater.loss_scale)
            processes, mean = int(self._options.Distributed.numProcesses), Reduction.of(self._options).is_mean
            updater.step(instances.reduce_gradients(gradients, processes=processes, mean=mean))
            self._anchors.after_update()
        return collected

    def _infer(self, arguments: Arguments, tensors: List[Tensor], index: int) -> List[Tensor]:
        return self._forward(arguments, self._inputs_of(tensors, index), index % self._replicas)[0]

    def _inputs_of(self, tensors: List[Tensor], index: int) -> List[Tensor]:
        """Returns the part of each input that a micro-batch reads."""
        part, parts = self._part_of_input(index)
        return [micro_batch_of(tensor, part, parts) for tensor in tensors]

    def _same_weights(self) -> ContextManager[None]:
        """Swaps the weights in for a complete call if they are the same for all replicas."""
        return nullcontext() if self._by_replica.differ else swapped_weights(self._model, self.weights)

    def _part_of_input(self, index: int) -> Tuple[int, int]:
        """Returns the index of the part of an input that a micro-batch reads, and the number of parts.

        All replicas of a group read the same part.
        """
        groups = self._input_groups.count(self._replicas)
        step, replica = divmod(index, self._replicas)
        part = step * groups + self._input_groups.group_of(replica, self._replicas)
        return part, micro_batches_of_input(self._options)


def _version(tensor: Tensor) -> int:
    """Returns a number that grows with each change in place; 0 for an inference tensor, which is the caller's own."""
    return 0 if tensor.is_inference() else tensor._version


@torch.no_grad()
def _return_changes(host: Sequence[Tensor], device: Sequence[Tensor], changed: Sequence[bool]) -> None:
    """Copies inputs that the model has changed in place to the caller's tensors (PoplarExecutable.cpp:160-168)."""
    for given, on_device, is_changed in zip(host, device, changed):
        if is_changed and on_device.data_ptr() != given.data_ptr():
            given.copy_(on_device)
