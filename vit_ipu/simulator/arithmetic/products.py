"""Matrix products and convolutions of float16, with partial sums in float32 or in float16.

With float16 partials the running sum is read into float32, the products of one chunk of K are added, and the
sum is rounded to float16 again (Graphcore, "AI-Float - Mixed Precision Arithmetic for AI", on FP16.16).
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vit_ipu.simulator.arithmetic.rounding import Rounding

_CONVOLUTION = torch.ops.aten.convolution.default
_CONVOLUTION_BACKWARD = torch.ops.aten.convolution_backward.default


_WITH_FORMAT: Dict[Any, Callable[..., Tensor]] = {
    getattr(torch.ops.aten, name).default: getattr(torch, name)
    for name in ("mm", "bmm")
    if hasattr(getattr(torch.ops.aten, name), "dtype")
}
"""Products that can have another format than their inputs; older versions of torch lack them."""


class Partials:
    """The formats of partial sums in matrix products and in convolutions, and the number of products per rounding."""

    def __init__(self, *, half_products: bool, half_convolutions: bool, chunk: int, rounding: Rounding) -> None:
        self.half_products, self.half_convolutions = half_products, half_convolutions
        self._chunk, self._rounding = chunk, rounding

    def product(self, function: Any, left: Tensor, right: Tensor) -> Tensor:
        """Returns `function` (mm or bmm) of (..., M, K) and (..., K, N), in float16 if the partials are, else float32.

        Partials are float16 only if both inputs are.
        """
        in_half = self.half_products and left.dtype == right.dtype == torch.float16
        if not in_half:
            return _in_float32(function, left, right)
        return self.chunked(left, right)

    def chunked(self, left: Tensor, right: Tensor) -> Tensor:
        """Returns the product of float16 values as float16, with the running sum rounded after each chunk of K."""
        return self._rounding.product(left, right, self._chunk)

    def chunked_in_float32(self, left: Tensor, right: Tensor) -> Tensor:
        """Returns what `chunked` returns, but in float32; `left` and `right` may be in float32, too."""
        return self._rounding.product(left, right, self._chunk, dtype=torch.float32)


def _in_float32(function: Any, left: Tensor, right: Tensor) -> Tensor:
    """Returns the product in float32; a GPU's units for float16 add products in float32 too, and need no conversion."""
    if left.is_cuda and left.dtype == right.dtype == torch.float16 and function in _WITH_FORMAT:
        return _WITH_FORMAT[function](left, right, out_dtype=torch.float32)
    return function(left.float(), right.float())


def convolution(partials: Partials, image: Tensor, weight: Tensor, *settings: Any) -> Tensor:
    """Returns aten.convolution without bias, in float16 with float16 partials, else in float32.

    `settings`: stride, padding, dilation, transposed, ..., groups.
    """
    wide_image, wide_weight = image.float(), weight.float()
    if not (partials.half_convolutions and image.dtype == weight.dtype == torch.float16):
        return _CONVOLUTION(wide_image, wide_weight, None, *settings)
    geometry = _Geometry(wide_image, wide_weight, settings)
    columns = geometry.columns(wide_image)  # (N, K, L)
    rows = wide_weight.flatten(1)  # (C_out, K)
    return partials.chunked(rows.expand(len(columns), -1, -1), columns).reshape(geometry.shape_of_result)


def convolution_backward(
    partials: Partials, gradient: Tensor, image: Tensor, weight: Tensor, bias_sizes: Any, *settings: Any
) -> Tuple[Optional[Tensor], ...]:
    """Returns aten.convolution_backward in float32: gradients of image, weight and bias, by the mask in `settings`."""
    *shape_settings, mask = settings
    wide = gradient.float(), image.float(), weight.float()
    in_half = partials.half_convolutions and image.dtype == weight.dtype == torch.float16
    if not in_half:
        return _CONVOLUTION_BACKWARD(*wide, bias_sizes, *shape_settings, mask)
    geometry = _Geometry(wide[1], wide[2], shape_settings)
    columns, of_result = geometry.columns(wide[1]), wide[0].flatten(2)  # (N, K, L), (N, C_out, L)
    of_image = of_weight = None
    if mask[0]:
        transposed = wide[2].flatten(1).t().expand(len(columns), -1, -1)
        of_image = geometry.image(partials.chunked(transposed, of_result).float())
    if mask[1]:
        positions = of_result.transpose(0, 1).flatten(1), columns.permute(0, 2, 1).flatten(0, 1)
        of_weight = partials.chunked(*positions).float().reshape(weight.shape)
    return of_image, of_weight, of_result.sum((0, 2)) if mask[2] else None


class _Geometry:
    """A 1-D or 2-D convolution as a matrix product over columns of patches.

    Raises NotImplementedError for a transposed, grouped or 3-D convolution.
    """

    def __init__(self, image: Tensor, weight: Tensor, settings: Sequence[Any]) -> None:
        stride, padding, dilation, is_transposed, _, groups = settings
        if is_transposed or groups != 1 or image.dim() > 4:
            raise NotImplementedError("float16 partials of a transposed, grouped or 3-D convolution are not simulated")
        self._is_flat = image.dim() == 3
        flat = [1] if self._is_flat else []
        self._image_size = (*flat, *image.shape[2:])
        self._unfold_settings: Dict[str, Any] = {
            "kernel_size": flat + list(weight.shape[2:]),
            "stride": flat + list(stride),
            "padding": ([0] if self._is_flat else []) + list(padding),
            "dilation": flat + list(dilation),
        }
        sizes = [
            (size + 2 * p - d * (k - 1) - 1) // s + 1
            for size, p, d, k, s in zip(image.shape[2:], padding, dilation, weight.shape[2:], stride)
        ]
        self.shape_of_result = [image.shape[0], weight.shape[0], *sizes]

    def columns(self, image: Tensor) -> Tensor:
        """Returns the patches of an image as columns (N, C_in x kernel, positions)."""
        return F.unfold(image.unsqueeze(2) if self._is_flat else image, **self._unfold_settings)

    def image(self, columns: Tensor) -> Tensor:
        """Returns the image in which overlapping patches are summed: the transpose of `columns`."""
        folded = F.fold(columns, self._image_size, **self._unfold_settings)
        return folded.squeeze(2) if self._is_flat else folded
