"""Tracing a model's forward pass: what is refused with PopTorch's errors, and what must be accepted."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from simulated import TwoStages, data, options
from torch import nn

from vit_ipu import simulator as poptorch
from vit_ipu.simulator.tracing import op_table

pytestmark = pytest.mark.usefixtures("sixteen_ipus")


class Function(nn.Module):
    """A model whose forward is `function`; `tensors` are plain attributes, and the model has no weights."""

    def __init__(self, function, **tensors):
        super().__init__()
        self.function = function
        self.__dict__.update(tensors)

    def forward(self, x):
        return self.function(self, x)


def infer(function, x=None, **tensors):
    return poptorch.inferenceModel(Function(function, **tensors))(torch.rand(2, 4, 6, 6) if x is None else x)


NOT_STATIC = {
    "item": (lambda m, x: x.sum().item() * x, "aten::item is only supported in eager mode"),
    "branch": (lambda m, x: x if x.sum() > 0 else -x, "aten::item is only supported in eager mode"),
    "float": (lambda m, x: x * float(x.mean()), "aten::item is only supported in eager mode"),
    "cpu": (lambda m, x: x.cpu(), r"Illegal move to CPU \(via `.to\(\"cpu\"\)`\)"),
    "to cpu": (lambda m, x: x.to("cpu"), "Instead, return this output as an IPU tensor"),
    "tolist": (lambda m, x: x.tolist(), "Illegal move to CPU"),
    "copy to a host tensor": (lambda m, x: torch.empty(2, 4, 6, 6, device="cpu").copy_(x), "Illegal move to CPU"),
    "nonzero": (lambda m, x: x.nonzero(), "Operations using aten::nonzero are unsupported because the output shape is"),
    "masked_select": (
        lambda m, x: x.masked_select(x > 0.5),
        "Type inference failed for aten::masked_select because .* Meta backend",
    ),
    "kthvalue": (lambda m, x: x.kthvalue(1).values, "Type inference failed for aten::kthvalue"),
    "repeat_interleave": (
        lambda m, x: x.repeat_interleave(2, 1),
        "inference failed for aten::repeat_interleave.Tensor",
    ),
    "repeat_interleave of tensors": (
        lambda m, x: torch.repeat_interleave(x, torch.ones(2, dtype=torch.long), 0),
        "Type inference failed for aten::repeat_interleave.Tensor",
    ),
    "logcumsumexp": (lambda m, x: torch.logcumsumexp(x, 1), "Type inference failed for aten::logcumsumexp because"),
    "logcumsumexp out": (lambda m, x: torch.logcumsumexp(x, 1, out=x * 1), "inference failed for aten::logcumsumexp"),
    "cummax": (lambda m, x: x.cummax(1).values, "Type inference failed for aten::cummax because"),
    "cummin": (lambda m, x: torch.cummin(x, 1).values, "Type inference failed for aten::cummin because"),
    "frexp": (lambda m, x: torch.frexp(x).mantissa, "Type inference failed for aten::frexp.Tensor because"),
    "combinations": (lambda m, x: torch.combinations(x[0, 0, 0]), "Type inference failed for aten::masked_select"),
    "allclose": (lambda m, x: x * torch.allclose(x, x), "aten::item is only supported in eager mode"),
    "one_hot": (lambda m, x: F.one_hot(x.long()), "OneHot num classes must be specified and must be constant."),
    "max_pool3d": (
        lambda m, x: F.max_pool3d(x, 2, return_indices=True)[1],
        "Type inference failed for aten::max_pool3d_with_indices",
    ),
    "bincount": (lambda m, x: torch.bincount(x.flatten().long()), "Bincount `minlength` must be specified"),
}


@pytest.mark.parametrize(("function", "message"), NOT_STATIC.values(), ids=NOT_STATIC.keys())
def test_operations_that_need_values_while_compiling_are_refused(function, message):
    with pytest.raises(poptorch.Error, match=message):
        infer(function)


@pytest.mark.parametrize("function", [lambda x: torch.fill(x, 3.0), lambda x: torch.vander(x)], ids=["fill", "vander"])
def test_functions_that_torch_2_0_takes_for_constructors_keep_their_arguments(function):
    x = torch.arange(3.0)
    assert torch.equal(infer(lambda m, x: function(x), x), function(x))


def test_repeat_interleave_works_on_the_host():
    repeated = infer(lambda m, x: x + len(m.row.repeat_interleave(2)), torch.zeros(2), row=torch.ones(2))
    assert repeated.tolist() == [4, 4]


def test_a_boolean_mask_raises_the_error_of_torchs_shape_inference():
    with pytest.raises(torch._subclasses.fake_tensor.DynamicOutputShapeException, match="aten.index.Tensor"):
        infer(lambda m, x: x[x > 0.5])


def test_a_model_can_be_called_in_inference_mode():
    with torch.inference_mode():
        assert torch.equal(infer(lambda m, x: x + 1, torch.zeros(2)), torch.ones(2))


def test_numpy_of_an_ipu_tensor_raises_torchs_error():
    with pytest.raises(TypeError, match="can't convert ipu:0 device type tensor to numpy"):
        infer(lambda m, x: x.numpy())


UNSUPPORTED = {
    "erfinv": (lambda m, x: torch.erfinv(x), "aten::erfinv"),
    "lerp": (lambda m, x: torch.lerp(x, x, 0.5), "aten::lerp"),
    "diagonal": (lambda m, x: x.diagonal(), "aten::diagonal"),
    "einsum": (lambda m, x: torch.einsum("bcii->bci", x), "aten::diagonal"),
    "nan_to_num": (lambda m, x: x.nan_to_num(), "aten::nan_to_num"),
    "grid_sample": (
        lambda m, x: F.grid_sample(x, x[..., :2].flatten(1, 2)[:, None], align_corners=False),
        "grid_sampler",
    ),
    "two": (lambda m, x: torch.erfinv(x).lgamma(), "aten::erfinv, aten::lgamma"),
}


@pytest.mark.parametrize(("function", "names"), UNSUPPORTED.values(), ids=UNSUPPORTED.keys())
def test_operations_without_a_handler_are_named(function, names):
    message = r"Unsupported ops found in compiled model: \[.*{}.*\]. Not all operations .* support@graphcore.ai"
    with pytest.raises(poptorch.Error, match=message.format(names)):
        infer(function)


SUPPORTED = {
    "attention": lambda m, x: F.scaled_dot_product_attention(x, x, x),
    "pooling": lambda m, x: F.adaptive_avg_pool2d(F.max_pool2d(x, 2), 1),
    "dropout": lambda m, x: F.dropout(x, 0.1, True),
    "advanced indexing": lambda m, x: x[:, [0, 2]],
    "unsupported, but constant": lambda m, x: x + torch.erfinv(torch.zeros(6)),
    "bincount": lambda m, x: torch.bincount(x.flatten().long(), minlength=3),
    "sort": lambda m, x: x.argsort(-1),
    "host scalar": lambda m, x: x * m.scale,
    "made on the host, then moved": lambda m, x: x + torch.tensor([1.0] * 6, device="cpu").to(x.device),
    "moved constant": lambda m, x: x * m.row.to("ipu"),
}


@pytest.mark.parametrize("function", SUPPORTED.values(), ids=SUPPORTED.keys())
def test_operations_that_poptorch_accepts_are_accepted(function):
    tensors = {"scale": torch.tensor(2.0), "row": torch.arange(6.0)}
    x = torch.rand(2, 4, 6, 6)
    out = infer(function, x, **tensors)
    assert out.shape == _on_host(function, x, tensors).shape


def _on_host(function, x, tensors):
    return function(Function(function, **{**tensors, "row": _Movable(tensors["row"])}), x)


class _Movable:
    """A host tensor whose `to` returns the tensor itself, because the host has no device "ipu"."""

    def __init__(self, tensor):
        self.tensor = tensor

    def to(self, device):
        return self.tensor


def test_triu_is_accepted_for_constants_only():
    with pytest.raises(poptorch.Error, match="torch.triu is only supported within constant expressions"):
        infer(lambda m, x: x.triu())
    assert torch.equal(infer(lambda m, x: x + torch.ones(3, 3).triu(), torch.zeros(3, 3)), torch.ones(3, 3).triu())


def test_an_operation_that_the_table_lacks_is_accepted_with_one_warning(caplog):
    assert op_table.verdict("aten::of_the_future") == op_table.verdict("aten::of_the_future") == op_table.Verdict.TAKEN
    assert [r.message for r in caplog.records if "of_the_future" in r.message] == [
        "aten::of_the_future is not an operation of torch 2.0.1: whether PopTorch takes it is not known"
    ]
    assert op_table.verdict("aten::_safe_softmax") == op_table.Verdict.TAKEN


def test_a_host_tensor_must_be_moved():
    message = (
        r'Expected an IPU tensor but got tensor\(device=cpu, shape=\[2\], dtype=Long\)(.|\n)*cpu_tensor.to\("ipu"\)'
    )
    with pytest.raises(poptorch.Error, match=message):
        infer(lambda m, x: x.index_select(0, m.index), torch.rand(4), index=torch.tensor([1, 0]))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_label_smoothing_above_zero_is_refused(smoothing):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.loss = nn.Linear(6, 3), nn.CrossEntropyLoss(label_smoothing=smoothing)

        def forward(self, x, labels):
            return self.loss(self.layer(x), labels)

    executor = poptorch.trainingModel(Model())
    if smoothing:
        with pytest.raises(poptorch.Error, match="aten::masked_select"):
            executor(*data(2))
    else:
        assert executor(*data(2)) > 0


def test_types_and_sizes_that_ipus_lack_are_refused():
    with pytest.raises(poptorch.Error, match="Unsupported tensor input type from pytorch: BFloat16"):
        infer(lambda m, x: x + 1, torch.ones(2, dtype=torch.bfloat16))
    with pytest.raises(poptorch.Error, match="Unsupported tensor input type from pytorch: BFloat16"):
        infer(lambda m, x: x.bfloat16().float())
    with pytest.raises(poptorch.Error, match="Unsupported tensor input type from pytorch: ComplexFloat"):
        infer(lambda m, x: torch.complex(x, x))
    with pytest.raises(poptorch.Error, match=r"Zero-sized tensors are unsupported \(Got shape \[0, 2\]\)."):
        infer(lambda m, x: x + 1, torch.ones(0, 2))


def test_a_layer_norm_needs_both_weight_and_bias_or_neither():
    affine = torch.ones(6)
    assert infer(lambda m, x: F.layer_norm(x, (6,))).shape == (2, 4, 6, 6)
    with pytest.raises(poptorch.Error, match="isNone"):
        infer(lambda m, x: F.layer_norm(x, (6,), weight=m.affine.to("ipu") * x[0, 0, 0]), affine=affine)


def test_an_input_that_requires_a_gradient_is_warned_about(caplog):
    infer(lambda m, x: x * 2, torch.ones(2, requires_grad=True))
    assert "Input tensor has requires_grad=True set" in caplog.text


def test_the_user_cannot_call_backward_on_outputs():
    out, loss = poptorch.trainingModel(TwoStages(), options())(*data(8))
    for tensor in (out, loss):
        with pytest.raises(poptorch.Error, match=r"backward\(\) cannot be called explicitly on outputs of a PopTorch"):
            tensor.backward()


def test_tensors_in_a_forward_are_on_the_device_ipu():
    def forward(model, x):
        assert x.device == torch.device("ipu:0")
        assert x.device.type == "ipu"
        assert x.is_ipu
        assert not x.is_cpu
        made = torch.ones(3, device="ipu") + torch.zeros(3, device=x.device) + torch.ones_like(x, device="ipu:0")
        return made + x.to("ipu") + model.constant.to(x.device)

    assert torch.equal(infer(forward, torch.ones(3), constant=torch.ones(3)), torch.full((3,), 4.0))


class Layer(nn.Module):
    """A model that calls one layer or function on a sequence (time, batch, 6)."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)


HANDLERS = {
    "upsample linear": (
        nn.Upsample(scale_factor=2, mode="linear"),
        "aten::upsample_linear1d: currently only 'nearest' is",
    ),
    "lstm bias": (nn.LSTM(6, 2, bias=False), "LSTM without biases not supported"),
    "lstm bidirectional": (nn.LSTM(6, 2, bidirectional=True), "bidirectional LSTM not supported"),
    "gru bidirectional": (nn.GRU(6, 2, bidirectional=True), "bidirectional GRU not supported"),
    "gru layers": (nn.GRU(6, 2, num_layers=2), "Only GRU with 1 layer supported"),
    "rnn layers": (nn.RNN(6, 2, num_layers=2), "Only RNN with 1 layer is supported"),
    "rnn bias": (nn.RNN(6, 2, bias=False), "RNN without biases is not supported"),
    "rnn bidirectional": (nn.RNN(6, 2, bidirectional=True), "Bidirectional RNN is not supported"),
    "matrix 2-norm": (lambda x: torch.linalg.matrix_norm(x, 2), "Matrix 2-norm is not supported."),
    "nuclear norm": (lambda x: torch.linalg.matrix_norm(x, "nuc"), "Matrix nuclear norm is not supported."),
    "ctc": (
        lambda x: F.ctc_loss(x, torch.ones(3, 2), torch.ones(3), torch.ones(3), reduction="none"),
        'CTCLoss with reduction="none" is currently not supported',
    ),
}


@pytest.mark.parametrize(("layer", "message"), HANDLERS.values(), ids=HANDLERS.keys())
def test_arguments_that_a_handler_does_not_support_are_refused(layer, message):
    with pytest.raises(poptorch.Error, match=message):
        poptorch.inferenceModel(Layer(layer))(torch.rand(4, 3, 6))


def test_dropout_between_recurrent_layers_is_refused():
    lstm = nn.LSTM(6, 2)
    lstm.dropout = 0.5
    with pytest.raises(poptorch.Error, match="LSTM only supports dropout = 0.0"):
        poptorch.inferenceModel(Layer(lstm))(torch.rand(4, 3, 6))
    lstm.dropout = 0.0
    out, _ = poptorch.inferenceModel(Layer(lstm))(torch.rand(4, 3, 6))
    assert out.shape == (4, 3, 2)


def test_an_ipu_tensor_can_be_the_target_of_a_copy():
    x = torch.rand(2, 2)
    assert torch.equal(infer(lambda m, x: torch.empty(2, 2).copy_(x), x), x)


def test_a_user_defined_operation_without_a_shape_rule_is_refused():
    library = torch.library.Library("simulator_test", "DEF")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", lambda x: x * 2, "CPU")
    with pytest.raises(poptorch.Error, match="Type inference failed for simulator_test::twice"):
        infer(lambda m, x: torch.ops.simulator_test.twice(x))
