"""Why PopTorch refuses an operation, in plain words, and what to write instead."""

from __future__ import annotations

import re
from typing import NamedTuple, Sequence, Tuple


class Advice(NamedTuple):
    """What to do about the findings whose text matches `pattern`; `reason` replaces PopTorch's message if not empty.

    The text is the operation, the function of torch that the model calls, and PopTorch's message.
    """

    pattern: str
    remedy: str
    reason: str = ""


def advice_for(operation: str, function: str, message: str) -> Tuple[str, str]:
    """Returns the reason and the remedy of a finding of the simulator."""
    text = f"{operation} {function} {message}"
    for advice in _ADVICE:
        if re.search(advice.pattern, text):
            return advice.reason or message, advice.remedy
    return message, _OTHERWISE


_OTHERWISE = (
    "write it with operations that PopTorch supports, or compute it on the host and give the model the result as an "
    "input or a buffer"
)
_STATIC = "PopTorch records the model once, before any value is known, so Python cannot read a value of a tensor"
_DYNAMIC = "the shape of its result depends on values, and every shape on an IPU is fixed"
_FIXED = (
    "keep the shape fixed: multiply by the mask, or use torch.where or masked_fill; torch.topk selects a fixed number"
)
_MARK = "poptorch.identity_loss(loss, reduction='none')"
_ON_HOST = "resize it once on the host, when the model is built (position embeddings), or before the model is called"

_LOSSES: Sequence[Advice] = (
    Advice(
        "cross_entropy.*masked_select",
        "write the smoothing s out: loss = (1 - s) * F.cross_entropy(logits, labels) - s * "
        f"logits.log_softmax(-1).mean(); then mark it: {_MARK}",
        "PyTorch 2.0.1 computes label smoothing with masked_select, whose result has no fixed shape",
    ),
    Advice(
        '"weight" is unsupported',
        "weigh the losses of the samples: w = weight[labels]; loss = (w * F.cross_entropy(logits, labels, "
        f"reduction='none')).sum() / w.sum(); then mark it: {_MARK}",
        "PopTorch's cross-entropy has no class weights",
    ),
    Advice(
        "Couldn't find a loss",
        "compute the loss in forward, by a loss function of torch with hard targets, or mark a loss that is written "
        f"out or has soft targets: {_MARK}",
        "a training model must compute its loss in forward, and PopTorch found none",
    ),
    Advice(
        "Multiple independent losses",
        "add the losses and mark the sum: poptorch.identity_loss(a + b, reduction='none')",
        "a training model must have one final loss, and PopTorch found several",
    ),
    Advice(
        'reduction="none" is currently not supported',
        "use the reduction 'mean' or 'sum'",
    ),
)

_VALUES: Sequence[Advice] = (
    Advice(
        "^(aten::item|allclose)",
        "compute with the tensor instead of .item(), float() or bool(); for a choice use torch.where; return what the "
        "program needs to read, and read it after the call",
        _STATIC,
    ),
    Advice(
        "Illegal move to CPU|^numpy|convert ipu",
        "keep the tensor on the IPU: remove .cpu(), .tolist() and .numpy() from forward; return the tensor and move it "
        "after the call",
        "a tensor cannot leave the IPU before the model ends",
    ),
    Advice(
        "Expected an IPU tensor",
        "make it a buffer (self.register_buffer), or make it in forward with device=x.device",
        "the tensor is on the host, and PopTorch copies only weights, buffers and inputs to the IPU",
    ),
    Advice("OneHot num classes", "give num_classes", "the number of classes would depend on values"),
    Advice("minlength", "give minlength: the result has this length", "the length of its result depends on values"),
    Advice(
        "repeat_interleave",
        "use unsqueeze, expand and flatten: x.unsqueeze(d + 1).expand(...).flatten(d, d + 1)",
        "PopTorch cannot infer its shape",
    ),
    Advice("kthvalue", "use torch.topk or torch.sort", "PopTorch cannot infer its shape"),
    Advice("cummax|cummin|logcumsumexp|frexp", _OTHERWISE, "PopTorch cannot infer its shape"),
    Advice("nonzero|masked_select|unique|aten[.:]+index|combinations", _FIXED, _DYNAMIC),
    Advice("Zero-sized", "give every input and every slice at least one element in each dimension"),
)

_TYPES: Sequence[Advice] = (
    Advice("BFloat16", "use float16 or float32, such as model.half()", "an IPU has no bfloat16"),
    Advice(
        "Complex|complex|_fft_|view_as_real",
        "compute real and imaginary parts as two real tensors; for rotary embeddings: x1 * cos - x2 * sin and "
        "x1 * sin + x2 * cos",
        "an IPU has no complex numbers and no FFT",
    ),
    Advice("^float64|^(weight|input) .*float64", "use float32 on all devices if results are to be compared"),
    Advice("int64 is int32", "keep values below 2^31, or compute them on the host"),
)

_OPERATIONS: Sequence[Advice] = (
    Advice("_upsample_\\w+_aa", f"leave antialias out, or {_ON_HOST}", "PopTorch has no antialiased resizing"),
    Advice("align_corners", f"set align_corners=False, or {_ON_HOST}", "PopTorch's bicubic has no aligned corners"),
    Advice("ilinear upsampling", f"use one whole factor for height and width, or {_ON_HOST}"),
    Advice(
        "currently only 'nearest'", "use mode='nearest'", "PopTorch interpolates one and three dimensions by nearest"
    ),
    Advice("erfinv", "initialise weights on the host, when the model is built: trunc_normal_ needs erfinv"),
    Advice("aten::lerp", "write it out: a + weight * (b - a)"),
    Advice("nan_to_num", "use torch.where(x != x, torch.zeros_like(x), x), and clamp for infinities"),
    Advice(
        "diagonal|as_strided",
        "multiply by an identity matrix, kept as a buffer, and sum: (x * eye).sum(-1); einsum: no label twice in one "
        "operand",
    ),
    Advice(
        "select_scatter|slice_scatter|diagonal_scatter", "assign to a slice of a copy: y = x.clone(); y[:, i] = value"
    ),
    Advice("grid_sampler", "sample on the host, where the data is loaded"),
    Advice("native_dropout", "use torch.nn.Dropout or F.dropout"),
    Advice("ratio value", "use a probability p with 0 <= p < 1"),
    Advice(
        "isNone",
        "give the normalisation both weight and bias, or neither (elementwise_affine=False, affine=False)",
        "PopTorch's normalisations need both weight and bias, or neither",
    ),
    Advice("torch.triu", "apply triu to a constant, such as torch.ones(n, n, device=x.device), and multiply by it"),
    Advice("aten::embedding", "set sparse=False and scale_grad_by_freq=False"),
    Advice("is not divisible by the corresponding", "choose an output size that divides the input size, or crop first"),
    Advice("RNN|LSTM|GRU", "use one layer, one direction, biases, and dropout 0; stack several such layers"),
    Advice("Matrix .*norm", "use the Frobenius norm, or compute it on the host"),
    Advice(
        "^.*::.* Couldn't find a registered operation", "write it with operations of torch, or as poptorch.custom_op"
    ),
)

_MODELS: Sequence[Advice] = (
    Advice("reassigned within the model", "change it in place: self.name.copy_(value)"),
    Advice("removed from the model", "keep it, and change it in place"),
    Advice("^torch.compile", "give PopTorch the plain module"),
    Advice(
        "No active Block",
        "put every operation, the loss too, inside a block; poptorch.BeginBlock lasts until the next block begins",
        "the operation is after a block has ended and before the next one begins",
    ),
)

_DIFFERENCES: Sequence[Advice] = (
    Advice("GELU", "use approximate='tanh' on all devices, so that they compute the same"),
    Advice("underflows in float16", "use eps 1e-6 or more"),
    Advice("torch.equal", "compare with (x == y).all(), and choose with torch.where"),
    Advice("backward|hook", "write the gradient into forward: factor * x + (x - factor * x).detach()"),
    Advice(
        "newer than torch 2.0.1", "check with torch 2.0.1 (constraints-ipu.txt), which decomposes it as PopTorch does"
    ),
)

_ADVICE = (*_LOSSES, *_MODELS, *_DIFFERENCES, *_TYPES, *_OPERATIONS, *_VALUES)
"""All advice; the first that matches counts."""
