"""Arguments of a call: binds them to parameters, lists their tensors, compares them with the compiled arguments.

Rules and messages come from PopTorch's python/_args_parser.py and python/_utils.py.
"""

from __future__ import annotations

import inspect
from typing import Any, Dict, Iterable, List, Optional, Tuple

import torch
from torch import Tensor, nn

from vit_ipu.simulator.errors import error
from vit_ipu.simulator.logs import logger
from vit_ipu.simulator.nested import flatten, rebuild
from vit_ipu.simulator.options.options import Options

_MISMATCH = (
    "\nThis error occurred because the inputs passed at runtime don't match the inputs used to compile the model.\n"
    "To recompile the model for the new inputs create a new inferenceModel / trainingModel wrapper or call destroy() "
    "on the curent one and try again."
)


class Arguments:
    """The positional and named arguments of one call; `names` holds the names of the positional arguments."""

    def __init__(self, names: List[str], args: List[Any], kwargs: Dict[str, Any]) -> None:
        self.names, self.args, self.kwargs = names, args, kwargs

    def tensors(self) -> List[Tensor]:
        return flatten((self.args, self.kwargs))

    def with_tensors(self, tensors: Iterable[Tensor]) -> Arguments:
        args, kwargs = rebuild((self.args, self.kwargs), tensors)
        return Arguments(self.names, args, kwargs)

    def check_same(self, other: Arguments) -> None:
        """Raises Error if `other` differs in structure, shapes, dtypes or plain values."""
        if len(other.args) != len(self.args):
            raise error(
                f"Number of positional arguments mismatch: expected {len(self.args)} arguments but got "
                f"{len(other.args)}.{_MISMATCH}"
            )
        for name, compiled, given in zip(self.names, self.args, other.args):
            _check_same(name, compiled, given)
        _check_same("named arguments", self.kwargs, other.kwargs)


def _check_same(name: str, compiled: Any, given: Any) -> None:
    if type(compiled) is not type(given):
        raise error(f"Type mismatch for {name}: expected {type(compiled)} but got {type(given)}.{_MISMATCH}")
    if isinstance(compiled, (tuple, list)):
        if len(compiled) != len(given):
            raise error(
                f"Length mismatch for {name}: expected {len(compiled)} elements but got {len(given)}.{_MISMATCH}"
            )
        for index, (a, b) in enumerate(zip(compiled, given)):
            _check_same(f"{name}[{index}]", a, b)
    elif isinstance(compiled, dict):
        if set(compiled) != set(given):
            raise error(f"Keys mismatch for {name}: {_key_difference(compiled, given)}.{_MISMATCH}")
        for key, value in compiled.items():
            _check_same(key if name == "named arguments" else f"{name}[{key}]", value, given[key])
    elif isinstance(compiled, Tensor):
        if compiled.dtype != given.dtype:
            raise error(f"Data type mismatch for {name}: expected {compiled.dtype} but got {given.dtype}.{_MISMATCH}")
        if compiled.shape != given.shape:
            raise error(f"Shape mismatch for {name}: expected {compiled.shape} but got {given.shape}.{_MISMATCH}")
    elif flatten(compiled):  # a type with a custom parser
        _check_same(name, tuple(flatten(compiled)), tuple(flatten(given)))
    elif compiled != given:
        raise error(f"Value mismatch for {name}: expected {compiled} but got {given}.{_MISMATCH}")


def _key_difference(compiled: Dict[str, Any], given: Dict[str, Any]) -> str:
    details = []
    if set(given) - set(compiled):
        details.append("Unexpected arguments: " + ", ".join(sorted(set(given) - set(compiled))))
    if set(compiled) - set(given):
        details.append("Missing arguments: " + ", ".join(sorted(set(compiled) - set(given))))
    return ". ".join(details)


class ArgumentParser:
    """Binds the arguments of calls to the parameters of a model's forward."""

    def __init__(self, model: Any) -> None:
        forward = model.forward if isinstance(model, nn.Module) else model
        try:
            self._parameters = list(inspect.signature(forward).parameters.values())
        except ValueError:  # a builtin without a signature
            self._parameters = [
                inspect.Parameter("args", inspect.Parameter.VAR_POSITIONAL),
                inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD),
            ]
        self._warned = False

    def __call__(self, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Arguments:
        self._check_names(args, kwargs)
        left = list(args)
        bound = Arguments([], [], {})
        variadic: Optional[str] = None
        for index, parameter in enumerate(self._parameters):
            name = parameter.name
            if parameter.kind == inspect.Parameter.VAR_KEYWORD:
                used = {p.name for p in self._parameters[:index]}
                bound.kwargs.update({key: value for key, value in kwargs.items() if key not in used})
            elif parameter.kind == inspect.Parameter.VAR_POSITIONAL:
                variadic = name
                bound.names += [f"*{name}[{i}]" for i in range(len(left))]
                bound.args += left
                left = []
            else:
                value = self._value(parameter, left, kwargs)
                if variadic is not None:  # everything after *args must be named
                    bound.kwargs[name] = value
                else:
                    bound.names.append(name)
                    bound.args.append(value)
        return self._contiguous(bound)

    def _check_names(self, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> None:
        variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        if any(parameter.kind in variadic for parameter in self._parameters):
            return
        names = [parameter.name for parameter in self._parameters]
        given = len(args) + len(kwargs)
        assert given <= len(names), f"Too many arguments provided: expected {names} ({len(names)}) but got {given}"
        for key in kwargs:
            assert key in names, f"{key} is not a valid parameter.Allowed values are {names}"

    @staticmethod
    def _value(parameter: inspect.Parameter, left: List[Any], kwargs: Dict[str, Any]) -> Any:
        name = parameter.name
        if left and parameter.kind != inspect.Parameter.KEYWORD_ONLY:
            assert name not in kwargs, f"Parameter {name} was passed more than once"
            return left.pop(0)
        if name in kwargs:
            return kwargs[name]
        if parameter.default is inspect.Parameter.empty:
            raise error(f"Mandatory parameter {name} missing")
        return parameter.default

    def _contiguous(self, arguments: Arguments) -> Arguments:
        tensors = arguments.tensors()
        if all(tensor.is_contiguous() for tensor in tensors):
            return arguments
        if not self._warned:
            logger.warning("At least one input tensor is not contiguous: non-contiguous tensors will be converted.")
            self._warned = True
        return arguments.with_tensors([tensor.contiguous() for tensor in tensors])


ArgsParser = ArgumentParser
"""PopTorch's name for the class; programs import it from poptorch._args_parser (mmcv/device/ipu/model_wrapper.py)."""


def micro_batches_of_input(options: Options) -> int:
    """Returns the micro-batches in an input of a call: D x G x the number of replica groups that share inputs."""
    groups = options.replication_factor // options.input_group_size
    return int(options.device_iterations * options.Training.gradient_accumulation * groups)


def micro_batch_of(tensor: Tensor, index: int, count: int) -> Tensor:
    """Returns micro-batch `index` of `count` along dim 0, or the tensor itself if it has no dimensions."""
    if tensor.dim() == 0:
        return tensor
    size = tensor.shape[0] // count
    return torch.narrow(tensor, 0, index * size, size)
