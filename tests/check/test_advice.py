"""Each kind of finding has a reason and a remedy, and each advice is given for a model that needs it."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from forwards import FORWARDS, Function, H, I, L, X, Z
from torch import nn

from vit_ipu import ipu_remedies, simulator
from vit_ipu.check import check_module
from vit_ipu.ipu_remedies import advice_for

WEIGHT = torch.ones(4)


class TwoBlocks(nn.Module):
    def forward(self, x):
        with simulator.Block("first", ipu_id=0):
            x = x * 2
        return x + 1


class Reassigning(nn.Module):
    def __init__(self, *, removes):
        super().__init__()
        self.removes = removes
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x):
        if self.removes:
            del self.mean
        else:
            self.mean = x.mean()
        return x


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def norm_without_bias(x):
    return F.layer_norm(x, (8,), weight=torch.ones(8, device=x.device) * x[0, 0, 0])


CASES = {
    "class weights": (lambda z, y: F.cross_entropy(z, y, WEIGHT.to("ipu")), (Z, L), "no class weights", "w.sum()"),
    "label smoothing": (*FORWARDS["cross_entropy label_smoothing"], "with masked_select", "(1 - s) * F.cross_entropy"),
    "ctc": (
        lambda x: F.ctc_loss(x, torch.ones(3, 2), torch.ones(3), torch.ones(3), reduction="none"),
        (torch.rand(4, 3, 6),),
        'reduction="none"',
        "'mean' or 'sum'",
    ),
    "allclose": (lambda x: x * torch.allclose(x, x), (X,), "Python cannot read a value", "torch.where"),
    "item": (*FORWARDS["item()"], "Python cannot read a value", "read it after the call"),
    "numpy": (lambda x: x + float(x.detach().numpy().sum()), (X,), "cannot leave the IPU", "remove .cpu()"),
    "tolist": (lambda x: x.tolist(), (X,), "cannot leave the IPU", "move it after the call"),
    "host tensor": (lambda x: x + WEIGHT.repeat(2), (X,), "the tensor is on the host", "self.register_buffer"),
    "one_hot": (lambda y: F.one_hot(y), (L,), "number of classes", "give num_classes"),
    "bincount": (lambda y: torch.bincount(y), (L,), "length of its result", "give minlength"),
    "repeat_interleave": (
        *FORWARDS["repeat_interleave int"],
        "cannot infer its shape",
        "unsqueeze, expand and flatten",
    ),
    "kthvalue": (lambda x: x.kthvalue(1).values, (X,), "cannot infer its shape", "torch.topk"),
    "cummax": (lambda x: x.cummax(1).values, (X,), "cannot infer its shape", "operations that PopTorch supports"),
    "unique": (lambda y: torch.unique(y), (L,), "shape of its result depends on values", "masked_fill"),
    "zero-sized": (lambda x: x * 2, (torch.rand(0, 2),), "Zero-sized", "at least one element"),
    "empty slice": (
        lambda x: x[:, 3:3],
        (X,),
        "Zero-sized tensors are unsupported (Got shape [2, 0, 8])",
        "at least one element",
    ),
    "bfloat16": (*FORWARDS["bfloat16"], "no bfloat16", "float16 or float32"),
    "complex": (*FORWARDS["complex rope"], "no complex numbers", "x1 * cos - x2 * sin"),
    "fft": (*FORWARDS["fft2"], "no FFT", "two real tensors"),
    "antialias": (*FORWARDS["interpolate bicubic antialias"], "no antialiased resizing", "once on the host"),
    "aligned": (
        lambda x: F.interpolate(x, scale_factor=2, mode="bicubic", align_corners=True),
        (I,),
        "no aligned corners",
        "align_corners=False",
    ),
    "not whole": (
        lambda x: F.interpolate(x, scale_factor=1.5, mode="bilinear"),
        (I,),
        "non-integer factor not supported (the factor is 1.5)",
        "one whole factor",
    ),
    "not uniform": (
        lambda x: F.interpolate(x, size=(16, 24), mode="bilinear"),
        (I,),
        "Non-uniform bilinear upsampling not supported (the factors are 2 and 3)",
        "one whole factor",
    ),
    "trilinear": (nn.Upsample(scale_factor=2, mode="trilinear"), (I[None],), "by nearest", "mode='nearest'"),
    "erfinv": (*FORWARDS["trunc_normal_"], "no handler for aten::erfinv_", "when the model is built"),
    "lerp": (*FORWARDS["lerp"], "no handler", "a + weight * (b - a)"),
    "nan_to_num": (*FORWARDS["nan_to_num"], "which torch makes of aten::nan_to_num", "torch.where(x != x"),
    "diagonal": (
        *FORWARDS["einsum repeated"],
        "aten::as_strided, which torch makes of aten::diagonal",
        "no label twice",
    ),
    "select_scatter": (*FORWARDS["select_scatter"], "no handler", "y[:, i] = value"),
    "grid_sample": (*FORWARDS["grid_sample"], "no handler", "where the data is loaded"),
    "native_dropout": (*FORWARDS["native_dropout"], "no handler", "torch.nn.Dropout"),
    "dropout of all": (nn.Dropout(1.0), (X,), "ratio value 1.0 is not valid", "0 <= p < 1"),
    "attention dropout": (
        lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=1.0),
        (H,),
        "ratio value 1.0",
        "0 <= p < 1",
    ),
    "layer norm": (norm_without_bias, (X,), "both weight and bias, or neither", "elementwise_affine=False"),
    "triu": (lambda x: x.triu(), (X,), "constant expressions", "multiply by it"),
    "embedding": (nn.Embedding(4, 2, sparse=True), (L,), "Unsupported aten::embedding", "sparse=False"),
    "pooling": (nn.AdaptiveAvgPool2d(3), (I,), "is not divisible", "divides the input size"),
    "lstm": (nn.LSTM(8, 4, num_layers=2), (X,), "Only LSTM with 1 layer", "stack several"),
    "matrix norm": (lambda x: torch.linalg.matrix_norm(x, 2), (X,), "2-norm is not supported", "Frobenius"),
    "other library": (lambda x: torch.ops.check_test.twice(x), (X,), "no other operations", "poptorch.custom_op"),
    "reassigned": (Reassigning(removes=False), (X,), "Buffer mean is reassigned", "self.name.copy_(value)"),
    "removed": (Reassigning(removes=True), (X,), "Buffer mean is removed", "change it in place"),
    "outside of blocks": (TwoBlocks(), (X,), "after a block has ended", "poptorch.BeginBlock"),
    "erfc": (lambda x: x.lgamma(), (X,), "no handler for aten::lgamma", "operations that PopTorch supports"),
}
DIFFERENT = {
    "gelu": (*FORWARDS["gelu none"], "tanh form", "approximate='tanh'"),
    "float64": (lambda x: x.double() + 1, (X,), "float64 is float32", "float32 on all devices"),
    "float64 input": (lambda x: x + 1, (X.double(),), "float64 is float32", "float32 on all devices"),
    "int64": (*FORWARDS["int64 arithmetic"], "int64 is int32", "below 2^31"),
    "small eps": (nn.LayerNorm(8, eps=1e-12).half(), (X.half(),), "eps 1e-12 underflows", "1e-6 or more"),
    "equal": (lambda x: x * torch.equal(x, x), (X,), "always False", "(x == y).all()"),
}


@pytest.fixture(scope="module", autouse=True)
def library():
    made = torch.library.Library("check_test", "DEF")
    made.define("twice(Tensor x) -> Tensor")
    made.impl("twice", lambda x: torch.empty_like(x), "Meta")
    return made


def report_on(forward, inputs):
    return check_module(forward if isinstance(forward, nn.Module) else Function(forward), inputs)


@pytest.mark.parametrize("name", CASES)
def test_a_refusal_has_a_reason_and_a_remedy(name):
    *case, reason, remedy = CASES[name]
    report = report_on(*case)
    found = [f for f in report.refused if reason in f.reason and remedy in f.remedy]
    assert found, [(f.reason, f.remedy) for f in report.refused]
    assert not report.accepted


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_an_ipu_computes_differently_is_told_and_accepted(name):
    *case, reason, remedy = DIFFERENT[name]
    report = report_on(*case)
    assert report.accepted
    assert report.findings
    for finding in report.findings:
        assert finding.verdict == "different"
        assert reason in finding.reason
        assert remedy in finding.remedy


def test_an_assertion_of_poptorch_is_a_refusal():
    def without_ipu(x):
        with simulator.Block("first"):
            return x * 2

    report = report_on(without_ipu, (X,))
    (finding,) = report.refused
    assert finding.message == "poptorch.AutoStage.SameAsIpu was selected but no IPU was specified for block first"
    assert finding.line == without_ipu.__code__.co_firstlineno + 1
    assert report.stopped.endswith("the refused call has no result")


def test_a_gradient_of_ones_own_never_runs_on_an_ipu():
    class Model(nn.Module):
        def forward(self, x):
            return simulator.identity_loss(Straight.apply(x).mean(), "none")

    (finding,) = check_module(Model(), (X,), training=True).findings
    assert finding.verdict == "different"
    assert "backward" in finding.reason
    assert ".detach()" in finding.remedy


def test_an_operation_that_is_newer_than_poptorchs_torch_is_unknown(monkeypatch):
    from vit_ipu.simulator.tracing import judging

    monkeypatch.setattr(judging, "is_known", lambda name: name != "aten::relu")
    for _ in range(2):  # also the second time, when the log no longer warns
        report = check_module(nn.ReLU(), X)
        (finding,) = report.findings
        assert (finding.verdict, finding.operation) == ("unknown", "aten::relu")
        assert "check with torch 2.0.1" in finding.remedy
        assert report.accepted


def test_every_advice_is_given_in_a_test():
    given = set()
    reports = [report_on(*case[:-2]) for case in (*CASES.values(), *DIFFERENT.values())]
    for finding in (finding for report in reports for finding in report.findings):
        text = f"{finding.operation} {finding.function} {finding.message}"
        given.add(next((a.pattern for a in ipu_remedies._ADVICE if re.search(a.pattern, text)), None))
    elsewhere = {"Couldn't find a loss", "Multiple independent losses", "^torch.compile", "backward|hook"}
    elsewhere |= {"newer than torch 2.0.1"}
    assert {advice.pattern for advice in ipu_remedies._ADVICE} - elsewhere == given - {None}


def test_a_finding_without_advice_gets_poptorchs_words_and_a_general_remedy():
    reason, remedy = advice_for("aten::something", "", "Something else is wrong")
    assert reason == "Something else is wrong"
    assert "operations that PopTorch supports" in remedy
