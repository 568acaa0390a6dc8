"""Functions of torch that tracing handles by name, because their aten operations do not show PopTorch's rules.

The messages come from poptorch/source/popart_canonicalization and dispatch_tracer.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, Optional, Sequence
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit_ipu.simulator.errors import cpp_error, error
from vit_ipu.simulator.nested import flatten
from vit_ipu.simulator.tracing.dispatch_mode import ITEM, raise_not_inferred
from vit_ipu.simulator.tracing.library_ops import operation_name, traced_form


def check_function(func: Callable[..., Any], args: Sequence[Any], kwargs: Dict[str, Any]) -> None:
    """Raises Error if PopTorch refuses the function with these arguments."""
    check = _CHECKS.get(getattr(func, "__name__", ""))
    if check is not None:
        check(*args, **kwargs)


def _check_cross_entropy(
    input: Tensor, target: Tensor, weight: Any = None, *args: Any, reduction: str = "mean", **kwargs: Any
) -> None:
    """Raises Error for the mean with label smoothing, whose elements torch 2.0.1 selects by a mask."""
    smooths = bool(kwargs.get("label_smoothing"))
    if smooths and reduction == "mean" and weight is None and not target.is_floating_point():
        raise_not_inferred("aten::masked_select")


def _check_dropout(
    input: Any, p: float = 0.5, training: bool = True, inplace: bool = False, train: bool = True
) -> None:
    """Raises Error for a probability of 1 (popart dropoutbase.cpp:38-46)."""
    if training and train and not 0 <= p < 1:
        raise error(f"ratio value {p} is not valid. Please use a value in the interval [0,1)", "popart_exception")


def _check_attention(
    query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0, *args: Any, **kwargs: Any
) -> None:
    _check_dropout(query, dropout_p)


def _check_allclose(input: Tensor, *args: Any, **kwargs: Any) -> None:
    """Raises Error on the IPU, because the answer is a Python bool."""
    if input.is_meta:
        raise cpp_error(ITEM)


def _refused_part(name: str) -> Callable[..., None]:
    """Returns a check that raises Error on the IPU for a function that newer torch versions run without its part."""

    def check(input: Tensor, *args: Any, **kwargs: Any) -> None:
        if input.is_meta:
            raise_not_inferred(name)

    return check


def _check_matrix_norm(A: Tensor, ord: Any = "fro", *args: Any, **kwargs: Any) -> None:
    """Raises Error for the nuclear norm and the 2-norm (RegisterAtenOverloads.cpp, linalgMatrixNorm)."""
    if ord == "nuc":
        raise cpp_error("Matrix nuclear norm is not supported.")
    if ord in (2, -2):
        raise cpp_error("Matrix 2-norm is not supported.")


def _recurrent_check(kind: str, no_bias: Optional[str], two_ways: str) -> Callable[..., None]:
    """Returns a check of a recurrent function's arguments (RNNOps.cpp).

    The arguments are (input, state, weights, has_biases, num_layers, dropout, train, bidirectional, ...).
    """

    def check(input: Tensor, *args: Any) -> None:
        if not isinstance(args[1], (list, tuple)):
            return  # packed sequences have other arguments
        _, _, has_biases, num_layers, dropout, _, bidirectional = args[:7]
        if num_layers != 1:
            verb = "is " if kind == "RNN" else ""
            raise cpp_error(f"Only {kind} with 1 layer {verb}supported")
        if dropout:
            raise cpp_error(f"{kind} only supports dropout = 0.0")
        if bidirectional:
            raise cpp_error(two_ways)
        if no_bias is not None and not has_biases:
            raise cpp_error(no_bias)

    return check


def _check_numpy(tensor: Tensor, *args: Any, **kwargs: Any) -> None:
    raise TypeError(
        "can't convert ipu:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first."
    )


_plain_rnn = _recurrent_check("RNN", "RNN without biases is not supported", "Bidirectional RNN is not supported")
_CHECKS: Dict[str, Callable[..., None]] = {
    "allclose": _check_allclose,
    "combinations": _refused_part("aten::masked_select"),
    "cross_entropy": _check_cross_entropy,
    "dropout": _check_dropout,
    "dropout1d": _check_dropout,
    "dropout2d": _check_dropout,
    "dropout3d": _check_dropout,
    "gru": _recurrent_check("GRU", None, "bidirectional GRU not supported"),
    "linalg_matrix_norm": _check_matrix_norm,
    "lstm": _recurrent_check("LSTM", "LSTM without biases not supported", "bidirectional LSTM not supported"),
    "numpy": _check_numpy,
    "repeat_interleave": _refused_part("aten::repeat_interleave.Tensor"),
    "rnn_relu": _plain_rnn,
    "rnn_tanh": _plain_rnn,
    "scaled_dot_product_attention": _check_attention,
}


@contextmanager
def initialised_as_in_torch_2_0() -> Iterator[None]:
    """Makes `trunc_normal_` run the operations of torch 2.0.1 inside the `with` block; newer ones loop over a test."""
    with patch.object(nn.init, "_no_grad_trunc_normal_", _trunc_normal):
        yield


def _trunc_normal(tensor: Tensor, mean: float, std: float, a: float, b: float, generator: Any = None) -> Tensor:
    low, high = (math.erf((bound - mean) / std / math.sqrt(2)) for bound in (a, b))
    with torch.no_grad():
        tensor.uniform_(low, high, generator=generator).erfinv_()
        return tensor.mul_(std * math.sqrt(2)).add_(mean).clamp_(min=a, max=b)


def stand_in_for(func: Callable[..., Any], arguments: Any) -> Callable[..., Any]:
    """Returns a function whose result has the shape of `func`'s if torch cannot infer the shape, else `func`."""
    if not any(tensor.is_meta for tensor in flatten(arguments)):
        return func
    return _STAND_INS.get(func) or traced_form(operation_name(func)) or func


def _ctc_loss(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Any,
    target_lengths: Any,
    blank: int = 0,
    reduction: Any = "mean",
    zero_infinity: bool = False,
) -> Tensor:
    if reduction in ("none", 0):
        raise cpp_error('CTCLoss with reduction="none" is currently not supported')
    return log_probs.sum()


def _bincount(input: Tensor, weights: Optional[Tensor] = None, minlength: int = 0) -> Tensor:
    if minlength <= 0:
        raise cpp_error(
            "Bincount `minlength` must be specified and must be a constant. On the IPU MK2 platform the minimum length "
            "is also the maximum length"
        )
    counted = input.long() if weights is None else weights
    return counted.sum().expand(minlength).clone()


def _one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    if num_classes == -1:
        raise cpp_error("OneHot num classes must be specified and must be constant.")
    return tensor.long().unsqueeze(-1).expand(*tensor.shape, num_classes).clone()


_STAND_INS: Dict[Any, Callable[..., Any]] = {
    F.ctc_loss: _ctc_loss,
    F.one_hot: _one_hot,
    torch.ctc_loss: _ctc_loss,
    torch.bincount: _bincount,
    Tensor.bincount: _bincount,
}
