"""Arguments of operations that PopTorch's handlers refuse although they have the operation.

The messages come from poptorch/source/popart_canonicalization (sdk-release-3.4).
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Optional, Sequence

from vit_ipu.simulator.errors import cpp_error


def check_arguments(name: str, args: Sequence[Any]) -> None:
    """Raises Error if PopTorch refuses the operation, named without its overload, with these arguments."""
    limit = _LIMITS.get(name)
    problem = None if limit is None else limit(name, args)
    if problem is not None:
        raise cpp_error(problem)


def uneven_scaling(name: str, args: Sequence[Any]) -> Optional[str]:
    """Returns why bilinear upsampling may differ or fail on an IPU: it needs one whole factor (ReshapeOps.cpp:932-935).

    PopTorch compares the factors only if it gets them in place of a size, so the simulator does not raise this.
    """
    if name != "aten::upsample_bilinear2d":
        return None
    factors = [size / before for size, before in zip(args[1], args[0].shape[-2:])]
    if factors[0] != factors[1]:
        return f"Non-uniform bilinear upsampling not supported (the factors are {factors[0]:g} and {factors[1]:g})"
    if factors[0] != int(factors[0]):
        return f"Bilinear upsampling with non-integer factor not supported (the factor is {factors[0]:g})"
    return None


def _only_nearest(name: str, args: Sequence[Any]) -> Optional[str]:
    return f"Unsupported upsample mode {name}: currently only 'nearest' is supported"  # ReshapeOps.cpp:957-962


def _bicubic(name: str, args: Sequence[Any]) -> Optional[str]:
    return "Only support align_corners=False." if args[2] else None  # ReshapeOps.cpp:843


def _half_affine(weight: int, bias: int) -> Callable[[str, Sequence[Any]], Optional[str]]:
    """Returns the limit of normalisations that have weight and bias at these positions (NormalizationOps.cpp:53)."""

    def limit(name: str, args: Sequence[Any]) -> Optional[str]:
        return "isNone(*weight) != isNone(*bias)" if (args[weight] is None) != (args[bias] is None) else None

    return limit


def _class_weights(name: str, args: Sequence[Any]) -> Optional[str]:
    is_given = len(args) > 2 and args[2] is not None
    return 'Parameter "weight" is unsupported for aten::nll_loss_nd' if is_given else None  # LossOps.cpp:101


def _embedding(name: str, args: Sequence[Any]) -> Optional[str]:
    return "Unsupported aten::embedding operation" if any(args[3:5]) else None  # EmbeddingOps.cpp:27


def _adaptive_pooling(name: str, args: Sequence[Any]) -> Optional[str]:
    sizes = args[0].shape[-len(args[1]) :]  # PoolingOps.cpp:136-142
    for number, (size, pooled) in enumerate(zip(sizes, args[1])):
        if size % pooled:
            return (
                f"Input dim {number} ({size}) is not divisible by the corresponding output dim ({pooled}). The results "
                "will differ numerically from PyTorch's implementation."
            )
    return None


_LIMITS: Dict[str, Callable[[str, Sequence[Any]], Optional[str]]] = {
    "aten::upsample_linear1d": _only_nearest,
    "aten::upsample_trilinear3d": _only_nearest,
    "aten::upsample_bicubic2d": _bicubic,
    "aten::native_layer_norm": _half_affine(2, 3),
    "aten::native_group_norm": _half_affine(1, 2),
    "aten::native_batch_norm": _half_affine(1, 2),
    "aten::_native_batch_norm_legit": _half_affine(1, 2),
    "aten::nll_loss_forward": _class_weights,
    "aten::nll_loss2d_forward": _class_weights,
    "aten::embedding": _embedding,
    "aten::_adaptive_avg_pool2d": _adaptive_pooling,
    "aten::_adaptive_avg_pool3d": _adaptive_pooling,
}
