"""A compiled model on the simulated IPUs: its weights, optimizer state and random state, and how a call runs.

A call consumes D x G x R micro-batches in the order [D][G][R] and, in training, does D weight updates. The
pipeline drains before each update, so running the micro-batches one after the other computes the same results.

With exact numerics, half precision is computed in float32: weights, optimizer state and activations that the model
keeps in float16 are float32 on the simulated IPU, and outputs are rounded to float16 when they leave the IPU. With an
IPU's numerics, all these tensors are float16 (arithmetic/half_mode.py).
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, Callable, ContextManager, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vit_ipu.simulator import context, instances
from vit_ipu.simulator import popart_enums as popart
from vit_ipu.simulator.arithmetic.half_mode import HalfArithmetic, undispatched
from vit_ipu.simulator.arithmetic.mixed_formats import MixedFormats
from vit_ipu.simulator.arithmetic.mode import chosen
from vit_ipu.simulator.cost.counters import Call
from vit_ipu.simulator.dtypes import in_32_bits
from vit_ipu.simulator.enums import OutputMode
from vit_ipu.simulator.execution.anchors import GRADIENT, UPDATED, Anchors
from vit_ipu.simulator.execution.batch_norm import FixedStatistics, updates_statistics
from vit_ipu.simulator.execution.replicas import Grouping, Groupings, Replicas
from vit_ipu.simulator.nested import flatten, rebuild
from vit_ipu.simulator.options.options import Options
from vit_ipu.simulator.options.output_modes import joined
from vit_ipu.simulator.tracing.arguments import Arguments, micro_batch_of, micro_batches_of_input
from vit_ipu.simulator.tracing.autograd_functions import forward_gradients, without_checkpoints
from vit_ipu.simulator.tracing.comparisons import Comparisons
from vit_ipu.simulator.tracing.device_names import DeviceNames
from vit_ipu.simulator.tracing.host_state import as_before
from vit_ipu.simulator.tracing.trace import LossCatcher, LossId, Trace
from vit_ipu.simulator.updates.attributes import Attributes
from vit_ipu.simulator.updates.gradients import Gradients, Reduction
from vit_ipu.simulator.updates.loss_scaling import AutomaticLossScale
from vit_ipu.simulator.updates.updater import Updater
from vit_ipu.simulator.weights import Weights, in_modes, swapped_weights

_OFF, _RANDOM_NORMAL = int(popart.SyntheticDataMode.Off), int(popart.SyntheticDataMode.RandomNormal)


class _Training(NamedTuple):
    """The parts of a program that only training needs."""

    loss: LossId
    gradients: Gradients
    updater: Updater


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
    ) -> None:
        """`compiled_for`: arguments of a complete call; `optimizer`: attributes, and parameter names by group."""
        self._model, self._options, self._trace, self._device = model, options, trace, device
        self.compiled_for = compiled_for
        numerics = chosen()
        self._half = HalfArithmetic.of(options, numerics, device) if numerics.is_ipu else None
        # Calls of model.train() or model.eval() after compilation have no effect on a program.
        self._modes = {module: module.training for module in model.modules()}
        self._iterations = int(options.device_iterations)
        self._accumulation = int(options.Training.gradient_accumulation)
        self._replicas = int(options.replication_factor)
        self._synthetic_data = int(options._Popart.options.get("syntheticDataMode", _OFF))
        self._input_groups = Grouping(options.input_cgt, int(options.input_group_size))
        self.weights = Weights.of(model).map(lambda tensor: self._to_device(tensor, copy=True))
        own_buffers = trace.mutates_buffers and not options.broadcast_buffers
        self._by_replica = Replicas(self.weights, groupings, self._replicas, own_buffers=own_buffers)
        self._training = self._new_training(*optimizer) if optimizer is not None else None
        state: Dict[str, Tensor] = self.updater.state if self.updater is not None else {}
        self._anchors = Anchors(options.anchored_tensors, self._by_replica, state)
        self._output_dtypes = [tensor.dtype for tensor in flatten(trace.outputs)]
        self._random_state = _seeded(options.random_seed if options.exists("random_seed") else None, device)

    def _new_training(self, attributes: Attributes, names: Sequence[Sequence[str]]) -> _Training:
        loss, reduction = self._trace.final_loss(), Reduction.of(self._options)
        rounding = self._half.rounding if self._half is not None else None
        loss_scale = None
        if attributes.automatic_loss_scaling:
            trained = [item for item in self._model.named_parameters() if item[1].requires_grad]
            loss_scale = AutomaticLossScale({name for name, weight in trained if weight.dtype == torch.float16})
        weights = self.weights.parameters
        return _Training(
            loss,
            Gradients(weights, reduction, attributes.accum_type, rounding, loss_scale),
            Updater(attributes, weights, names, reduction, rounding, loss_scale),
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
        return Call(rounds, self._replicas, inputs, len(self._output_dtypes), mode, period)

    @property
    def rng_state(self) -> Tensor:
        """The random state, followed by the state of stochastic rounding if rounding is stochastic."""
        if self._half is None or not self._half.rounding.is_stochastic:
            return self._random_state
        return torch.cat([self._random_state, self._half.rounding.state])

    @rng_state.setter
    def rng_state(self, state: Tensor) -> None:
        own = len(self._random_state)
        self._random_state = state[:own].clone()
        if self._half is not None and len(state) > own:
            self._half.rounding.state = state[own:]

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

    # ---------------------------------------------------------------------------------------- runs

    def run(self, arguments: Arguments) -> Any:
        """Runs one call; returns the outputs in the model's structure, or None if the model returns nothing."""
        tensors = [self._to_device(self._synthetic(tensor)) for tensor in arguments.tensors()]
        collected: List[List[Tensor]] = []
        self._anchors.start_call()
        with self._random_numbers(), self._same_weights(), in_modes(self._modes), self._arithmetic():
            for iteration in range(self._iterations):
                first = iteration * self._accumulation * self._replicas
                indices = range(first, first + self._accumulation * self._replicas)
                if self._training is not None:
                    collected += self._update_weights(self._training, arguments, tensors, indices)
                else:
                    with torch.no_grad():
                        collected += [self._forward(arguments, tensors, index)[0] for index in indices]
        self._anchors.end_call()
        mode, period = OutputMode(self._options.output_mode), int(self._options.output_return_period)
        outputs = [joined(values, self._replicas, mode, period) for values in zip(*collected)]
        dtypes = [in_32_bits(dtype) for dtype in self._output_dtypes]  # _poplar_executor.py:865-874
        return rebuild(self._trace.outputs, [out.to("cpu", dtype) for out, dtype in zip(outputs, dtypes)])

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
        self, training: _Training, arguments: Arguments, tensors: List[Tensor], indices: Sequence[int]
    ) -> List[List[Tensor]]:
        updater, collected = training.updater, []
        for number, index in enumerate(indices):
            outputs, loss = self._forward(arguments, tensors, index)
            assert loss is not None
            if loss.requires_grad:  # false if all weights are frozen
                loss.backward(torch.full_like(loss, updater.loss_scale))  # type: ignore[no-untyped-call]
            with undispatched():
                self._by_replica.gather_gradients()
                training.gradients.take(number)
            collected.append(outputs)
        with undispatched():
            gradients = training.gradients.reduced()
            self._anchors.before_update(updater.loss_scale)
            processes, mean = int(self._options.Distributed.numProcesses), Reduction.of(self._options).is_mean
            updater.step(instances.reduce_gradients(gradients, processes=processes, mean=mean))
            self._anchors.after_update()
        return collected

    def _forward(
        self, arguments: Arguments, tensors: List[Tensor], index: int
    ) -> Tuple[List[Tensor], Optional[Tensor]]:
        """Returns the detached outputs of one micro-batch, and in training the loss."""
        replica = index % self._replicas
        part, parts = self._part_of_input(index)
        micro = arguments.with_tensors([micro_batch_of(tensor, part, parts) for tensor in tensors])
        losses: List[Tensor] = []
        with ExitStack() as stack:
            if self._by_replica.differ:
                stack.enter_context(swapped_weights(self._model, self._by_replica.weights_of(replica)))
            stack.enter_context(context.during(context.Session(on_ipu=True, on_loss=losses.append)))
            if self._trace.host_changes:
                stack.enter_context(as_before(self._trace.host_changes))
            if self._trace.names_devices:
                stack.enter_context(DeviceNames(self._device))
            if self._trace.comparisons:
                stack.enter_context(Comparisons(self._trace.comparisons))
            if self._trace.has_checkpoints:
                stack.enter_context(without_checkpoints())
            if self._trace.autograd_functions:
                stack.enter_context(forward_gradients())
            if self._training is not None and self._training.loss.of_function:
                losses = stack.enter_context(LossCatcher()).losses
            result = self._model(*micro.args, **micro.kwargs)
        outputs = [tensor.detach() for tensor in flatten(result)]
        return outputs, None if self._training is None else losses[self._training.loss.number]

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

    # ----------------------------------------------------------------------------------- precision

    def _to_device(self, tensor: Tensor, *, copy: bool = False) -> Tensor:
        narrow = torch.float16 if self._half is None else torch.float64
        dtype = torch.float32 if tensor.dtype == narrow else tensor.dtype
        return tensor.detach().to(self._device, dtype, copy=copy)

    @contextmanager
    def _arithmetic(self) -> Iterator[None]:
        """Makes new tensors on the device and, with exact numerics, in float32 if the model asks for float16."""
        with ExitStack() as stack:
            stack.enter_context(context.unvalidated_distributions())
            if not self._trace.is_training and updates_statistics(self._modes):
                stack.enter_context(FixedStatistics())
            if self._device.type != "cpu":
                stack.enter_context(self._device)
            if self._half is not None:
                stack.enter_context(self._half)
                stack.enter_context(MixedFormats())
            elif self._trace.uses_half:
                stack.enter_context(_FloatForHalf())
            yield

    @contextmanager
    def _random_numbers(self) -> Iterator[None]:
        """Gives torch the device's random state while the program runs, then restores the host's random state."""
        host = _rng_state(self._device)
        _set_rng_state(self._random_state, self._device)
        try:
            yield
        finally:
            self._random_state = _rng_state(self._device)
            _set_rng_state(host, self._device)


class _FloatForHalf(TorchFunctionMode):
    """Replaces float16 with float32 in calls of torch functions."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Tuple[Any, ...] = (), kwargs: Optional[Dict[str, Any]] = None
    ) -> Any:
        if func is Tensor.half:
            func = Tensor.float
        args = tuple(torch.float32 if arg is torch.float16 else arg for arg in args)
        kwargs = {key: torch.float32 if value is torch.float16 else value for key, value in (kwargs or {}).items()}
        return func(*args, **kwargs)


def _rng_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_rng_state(state: Tensor, device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)


def _seeded(seed: Optional[int], device: torch.device) -> Tensor:
    """Returns a new random state, which without a seed differs at every compilation, as on an IPU."""
    generator = torch.Generator(device=device)
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator.get_state()
