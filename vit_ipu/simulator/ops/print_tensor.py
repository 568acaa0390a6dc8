"""Prints tensors from the IPU to stderr (python/ops.py:49-155; PopTorch's tests/ipu_print_tensor_test.py: the format).

Poplar's code is not public. PopTorch documents that a matrix is printed as `title: {`, one line per row, `}`, and that
separator and brackets are single characters. docs/simulator.md lists what the simulator assumes beyond that.
"""

from __future__ import annotations

import math
import sys
from typing import Any, Callable, List, NamedTuple

import torch
from torch import Tensor

from vit_ipu.simulator import context
from vit_ipu.simulator.errors import error


class PrintFormat(NamedTuple):
    """The format of a printed tensor: see `ipu_print_tensor`."""

    summarise_threshold: int = 1000
    edge_items: int = 3
    max_line_width: int = 80
    digits: int = 4
    float_format: str = "auto"
    separator: str = ","
    open_bracket: str = "("
    close_bracket: str = ")"


_register_hook: Callable[..., Any] = Tensor.register_hook
"""torch's own method, also where a program's hooks have no effect (tracing/autograd_functions.py)."""

_FLOAT_FORMATS = {"auto", "fixed", "scientific", "none"}


def ipu_print_tensor(
    tensor: Tensor,
    title: str = "",
    print_gradient: bool = True,
    summarise_threshold: int = 1000,
    edge_items: int = 3,
    max_line_width: int = 80,
    digits: int = 4,
    float_format: str = "auto",
    separator: str = ", ",
    open_bracket: str = "(",
    close_bracket: str = ")",
) -> Tensor:
    """Returns the tensor and prints it when the model runs on the IPU; prints its gradient in the backward pass.

    Tensors of more than `summarise_threshold` elements show `edge_items` at each end of a dimension. `float_format`
    is "auto", "fixed", "scientific" or "none". Only the first character of separator and brackets is printed.
    """
    if not isinstance(tensor, Tensor):
        raise error(f"ipu print tensor must take a torch.tensor argument. {type(tensor)} is not supported.")
    if float_format not in _FLOAT_FORMATS:
        raise KeyError(float_format)
    style = PrintFormat(
        summarise_threshold,
        edge_items,
        max_line_width,
        digits,
        float_format,
        separator[:1],
        open_bracket[:1],
        close_bracket[:1],
    )
    passed = tensor.view_as(tensor)
    if context.current.on_ipu and context.current.trace is None:
        _print(title or "PrintTensor", tensor, style)
        if print_gradient and passed.requires_grad:
            name = (title or "PrintTensor") + "_gradient"
            _register_hook(passed, lambda gradient: _print(name, gradient, style))
    return passed


def _print(title: str, tensor: Tensor, style: PrintFormat) -> None:
    with context.on_host():
        sys.stderr.write(f"{title}: {text_of(tensor.detach().cpu(), style)}\n")


def text_of(tensor: Tensor, style: PrintFormat) -> str:
    """Returns the printed form of a tensor."""
    element = _element_format(tensor, style)
    is_summarised = 0 < style.summarise_threshold < tensor.numel()
    return _text(tensor, style, element, style.edge_items if is_summarised else 0, 0)


def _text(tensor: Tensor, style: PrintFormat, element: Callable[[Any], str], edge: int, depth: int) -> str:
    if tensor.dim() == 0:
        return element(tensor.item())
    count = tensor.shape[0]
    is_cut = edge > 0 and 2 * edge < count
    indices = [*range(edge), *range(count - edge, count)] if is_cut else list(range(count))
    if tensor.dim() == 1:
        parts = [element(tensor[index].item()) for index in indices]
        if is_cut:
            parts.insert(edge, "...")
        return style.open_bracket + _line(parts, style, depth) + style.close_bracket
    rows = [_text(tensor[index], style, element, edge, depth + 1) for index in indices]
    if is_cut:
        rows.insert(edge, "...")
    indent = " " * (depth + 1)
    body = "".join(f"{indent}{row}\n" for row in rows)
    return f"{style.open_bracket}\n{body}{' ' * depth}{style.close_bracket}"


def _line(parts: List[str], style: PrintFormat, depth: int) -> str:
    """Returns the elements of a row, continued on lines that are indented by two more than the row."""
    lines, width = [""], depth + 1
    for index, part in enumerate(parts):
        text = part + (style.separator if index + 1 < len(parts) else "")
        if 0 < style.max_line_width < width + len(text) and lines[-1]:
            lines.append("")
            width = depth + 2
        lines[-1] += text
        width += len(text)
    return ("\n" + " " * (depth + 2)).join(lines)


def _element_format(tensor: Tensor, style: PrintFormat) -> Callable[[Any], str]:
    """Returns the formatter of the elements: pads elements to the width of the widest, unless `digits` is 0."""
    write: Callable[[Any], str] = _float_format(tensor, style) if tensor.is_floating_point() else _integer
    if style.digits == 0 or not tensor.numel():
        return write
    width = max(len(write(value)) for value in tensor.flatten().tolist())
    return lambda value: write(value).rjust(width)


def _integer(value: Any) -> str:
    return str(int(value))


def _float_format(tensor: Tensor, style: PrintFormat) -> Callable[[float], str]:
    if style.digits == 0 or style.float_format == "none":
        return f"{{:.{style.digits or 6}g}}".format
    magnitudes = tensor.abs()[torch.isfinite(tensor) & (tensor != 0)].tolist()
    before_point = max((math.floor(math.log10(magnitude)) + 1 for magnitude in magnitudes), default=1)
    after_leading = style.digits - 1
    is_wide = before_point > style.digits or any(magnitude < 10.0**-after_leading for magnitude in magnitudes)
    if style.float_format == "scientific" or (style.float_format == "auto" and is_wide):
        return f"{{:.{after_leading}e}}".format
    return f"{{:.{max(style.digits - max(before_point, 1), 0)}f}}".format
