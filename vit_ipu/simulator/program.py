"""A compiled model on the simulated IPUs: its weights, optimizer state and random state, and how a call runs.

A call consumes D x G x R micro-batches in the order [D][G][R] and, in training, does D weight updates. The
pipeline drains before each update, so running the micro-batches one after the other computes the same.

Half precision is computed in float32 here: weights, optimizer state and activations that the model keeps in
float16 are float32 on the simulated IPU, and outputs are rounded to float16 when they leave it.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vit_ipu.simulator import context
from vit_ipu.simulator.arguments import Arguments, flatten, micro_batch_of, rebuild
from vit_ipu.simulator.enums import OutputMode, ReductionType
from vit_ipu.simulator.errors import cpp_error
from vit_ipu.simulator.optim import Attributes
from vit_ipu.simulator.options import Options
from vit_ipu.simulator.tracing import LossCatcher, LossId, Trace
from vit_ipu.simulator.updates import Updater
from vit_ipu.simulator.weights import Weights, borrowed, in_modes


class Program:
    """What compiling a model yields, and the state that it keeps on the IPUs."""

    def __init__(
        self,
        model: nn.Module,
        options: Options,
        compiled_for: Arguments,
        trace: Trace,
        device: torch.device,
        optimizer: Optional[Tuple[Attributes, Sequence[Sequence[str]]]],
    ) -> None:
        """`compiled_for`: arguments of a whole call; `optimizer`: attributes, and parameter names by group."""
        self._model, self._options, self._trace, self._device = model, options, trace, device
        self.compiled_for = compiled_for
        # What model.train() or model.eval() do after compilation has no effect on a program.
        self._modes = {module: module.training for module in model.modules()}
        self._iterations = int(options.device_iterations)
        self._accumulation = int(options.Training.gradient_accumulation)
        self._replicas = int(options.replication_factor)
        self.weights = Weights.of(model).map(lambda tensor: self._to_device(tensor, copy=True))
        self._final_loss: Optional[LossId] = trace.final_loss() if trace.is_training else None
        self.updater = Updater(optimizer[0], self.weights.parameters, optimizer[1]) if optimizer else None
        self._output_dtypes = [tensor.dtype for tensor in flatten(trace.outputs)]
        self.rng_state = _seeded(options.random_seed if options.exists("random_seed") else None, device)

    @property
    def micro_batches(self) -> int:
        """Micro-batches that a call consumes."""
        return self._iterations * self._accumulation * self._replicas

    # ------------------------------------------------------------------------------------ weights

    @torch.no_grad()
    def write_weights(self) -> None:
        """Copies the host's weights and buffers to the IPUs.

        A float16 weight that the host still holds as it was last read keeps its float32 value here.
        """
        host = dict(Weights.of(self._model).items())
        for name, tensor in self.weights.items():
            given = host[name].to(tensor.device)
            if given.dtype == tensor.dtype:
                tensor.copy_(given)
            else:
                tensor.copy_(torch.where(tensor.to(given.dtype) == given, tensor, given.to(tensor.dtype)))

    @torch.no_grad()
    def read_weights(self) -> None:
        """Copies the IPUs' weights and buffers to the host."""
        host = dict(Weights.of(self._model).items())
        for name, tensor in self.weights.items():
            host[name].copy_(tensor)

    # ---------------------------------------------------------------------------------------- runs

    def run(self, arguments: Arguments) -> Any:
        """One call: the outputs in the model's structure, or None if it returns nothing."""
        tensors = [self._to_device(tensor) for tensor in arguments.tensors()]
        collected: List[List[Tensor]] = []
        with self._random_numbers(), borrowed(self._model, self.weights), in_modes(self._modes), self._arithmetic():
            for iteration in range(self._iterations):
                first = iteration * self._accumulation * self._replicas
                indices = range(first, first + self._accumulation * self._replicas)
                if self._trace.is_training:
                    collected += self._update_weights(arguments, tensors, indices)
                else:
                    with torch.no_grad():
                        collected += [self._forward(arguments, tensors, index)[0] for index in indices]
        outputs = [self._gather(micro_outputs) for micro_outputs in zip(*collected)]
        dtypes = [_on_host(dtype) for dtype in self._output_dtypes]
        return rebuild(self._trace.outputs, [out.to("cpu", dtype) for out, dtype in zip(outputs, dtypes)])

    def _update_weights(
        self, arguments: Arguments, tensors: List[Tensor], indices: Sequence[int]
    ) -> List[List[Tensor]]:
        assert self.updater is not None
        collected = []
        for index in indices:
            outputs, loss = self._forward(arguments, tensors, index)
            assert loss is not None
            loss.backward(torch.full_like(loss, self.updater.attributes.loss_scaling))  # type: ignore[no-untyped-call]
            collected.append(outputs)
        self.updater.step(self._reduced_gradients())
        return collected

    def _forward(
        self, arguments: Arguments, tensors: List[Tensor], index: int
    ) -> Tuple[List[Tensor], Optional[Tensor]]:
        """The detached outputs of one micro-batch, and its loss in training."""
        micro = arguments.with_tensors([micro_batch_of(tensor, index, self.micro_batches) for tensor in tensors])
        losses: List[Tensor] = []
        with ExitStack() as stack:
            stack.enter_context(context.running(losses))
            if self._final_loss is not None and self._final_loss.of_function:
                losses = stack.enter_context(LossCatcher()).losses
            result = self._model(*micro.args, **micro.kwargs)
        outputs = [tensor.detach() for tensor in flatten(result)]
        return outputs, None if self._final_loss is None else losses[self._final_loss.number]

    def _reduced_gradients(self) -> Dict[str, Tensor]:
        """The gradients of one update, reduced and without the loss scale; the accumulators are emptied."""
        assert self.updater is not None
        training = self._options.Training
        mean = training.accumulation_and_replication_reduction_type == ReductionType.Mean
        divisor = self.updater.attributes.loss_scaling * (self._accumulation * self._replicas if mean else 1)
        gradients = {}
        for name, weight in self.weights.parameters.items():
            if weight.grad is not None:
                gradients[name] = weight.grad.div_(divisor)
                weight.grad = None
        return gradients

    def _gather(self, micro_outputs: Sequence[Tensor]) -> Tensor:
        """One output of all micro-batches, in the output mode's selection, joined along dim 0."""
        replicas, mode = self._replicas, self._options.output_mode
        if mode == OutputMode.Final:
            kept = list(micro_outputs[-replicas:])
        elif mode == OutputMode.Sum:
            kept = [torch.stack(list(micro_outputs[r::replicas])).sum(0) for r in range(replicas)]
        else:
            kept = list(_every(micro_outputs, int(self._options.output_return_period), replicas))
        if kept[0].dim() == 0:
            return kept[0] if len(kept) == 1 else torch.stack(kept)
        return torch.cat(kept)

    # ----------------------------------------------------------------------------------- precision

    def _to_device(self, tensor: Tensor, *, copy: bool = False) -> Tensor:
        dtype = torch.float32 if tensor.dtype == torch.float16 else tensor.dtype
        return tensor.detach().to(self._device, dtype, copy=copy)

    @contextmanager
    def _arithmetic(self) -> Iterator[None]:
        """New tensors are made on the device, and in float32 where the model asks for float16."""
        with ExitStack() as stack:
            if self._device.type != "cpu":
                stack.enter_context(self._device)
            if self._trace.uses_half:
                stack.enter_context(_FloatForHalf())
            yield

    @contextmanager
    def _random_numbers(self) -> Iterator[None]:
        """The device's random state is torch's while the program runs; the host's comes back afterwards."""
        cuda = self._device.type == "cuda"
        host = torch.cuda.get_rng_state(self._device) if cuda else torch.get_rng_state()
        _set_rng_state(self.rng_state, self._device)
        try:
            yield
        finally:
            self.rng_state = torch.cuda.get_rng_state(self._device) if cuda else torch.get_rng_state()
            _set_rng_state(host, self._device)


class _FloatForHalf(TorchFunctionMode):
    """Whatever asks for float16 gets float32."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Tuple[Any, ...] = (), kwargs: Optional[Dict[str, Any]] = None
    ) -> Any:
        if func is Tensor.half:
            func = Tensor.float
        args = tuple(torch.float32 if arg is torch.float16 else arg for arg in args)
        kwargs = {key: torch.float32 if value is torch.float16 else value for key, value in (kwargs or {}).items()}
        return func(*args, **kwargs)


def _set_rng_state(state: Tensor, device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)


def _seeded(seed: Optional[int], device: torch.device) -> Tensor:
    """A fresh random state; without a seed, one that differs at every compilation, as on an IPU."""
    generator = torch.Generator(device=device)
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator.get_state()


def _every(micro_outputs: Sequence[Tensor], period: int, replicas: int) -> Iterator[Tensor]:
    """The outputs of all replicas at every `period`-th micro-batch."""
    rounds = len(micro_outputs) // replicas
    if rounds % period:
        raise cpp_error("The output return period {} does not divide the {} micro-batches".format(period, rounds))
    for last in range(period - 1, rounds, period):
        yield from micro_outputs[last * replicas : (last + 1) * replicas]


def _on_host(dtype: torch.dtype) -> torch.dtype:
    """64-bit types come back in 32 bits (_poplar_executor.py:865-874)."""
    return {torch.int64: torch.int32, torch.float64: torch.float32}.get(dtype, dtype)
