"""`check_module` names the operation, the line, the reason and the remedy for any module, and leaves it as it was."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.nn.functional as F
import user_models
from torch import nn
from user_models import marked_line

from vit_ipu import simulator
from vit_ipu.check import check_module
from vit_ipu.errors import UserError

X = torch.rand(2, 8)
LABELS = torch.tensor([1, 0])

USER_MODELS = {
    "mask": (user_models.Masking, torch.rand(2, 5, 8), "aten::index", "shape of its result depends", "torch.where"),
    "branch": (user_models.EarlyExit, X, "aten::item", "before any value is known", "torch.where"),
    "lerp": (user_models.Repeated, X, "aten::lerp", "no handler for aten::lerp", "a + weight * (b - a)"),
    "host": (user_models.WithTable, X, "aten::index_select", "the tensor is on the host", "self.register_buffer"),
}


@pytest.mark.parametrize("name", USER_MODELS)
def test_a_finding_has_operation_line_reason_and_remedy(name):
    model, inputs, operation, reason, remedy = USER_MODELS[name]
    report = check_module(model(), inputs)
    (finding,) = report.findings
    assert not report.accepted
    assert (finding.verdict, finding.operation) == ("refused", operation)
    assert (finding.file, finding.line) == (user_models.__file__, marked_line(name))
    assert reason in finding.reason
    assert remedy in finding.remedy
    assert report.stopped is None


def test_all_findings_are_reported_at_once():
    report = check_module(user_models.ManyMistakes(), (X, LABELS), training=True)
    assert [f.line for f in report.refused] == [marked_line(str(number)) for number in range(1, 8)]
    assert [f.operation for f in report.refused] == [
        "aten::erfinv",
        "aten::item",
        "aten::_to_copy",
        "aten::nonzero",
        "aten::upsample_bilinear2d",
        "repeat_interleave",
        "cross_entropy",
    ]
    assert report.stopped is None


def test_a_made_up_result_has_elements_so_that_what_follows_is_found():
    report = check_module(user_models.MaskedMaximum(), X)
    assert [f.operation for f in report.refused] == ["aten::masked_select", "aten::erfinv"]
    assert {f.line for f in report.refused} == {marked_line("maximum")}
    assert report.stopped is None


def test_what_the_simulator_lacks_is_not_taken_for_accepted():
    class WithCustomOp(nn.Module):
        def forward(self, x):
            return simulator.custom_op([x], "Cube", "custom", 1, example_outputs=[x])[0]

    report = check_module(WithCustomOp(), X)
    assert report.refused == ()
    assert not report.accepted
    assert "test_check_module.py:" in report.stopped
    assert "NotImplementedError" in report.stopped


def test_modules_that_reach_the_same_line_are_one_finding():
    (finding,) = check_module(user_models.Repeated(), X).findings
    assert finding.modules == ("blocks.0", "blocks.1", "blocks.2")
    assert finding.count == 3
    assert finding.where.endswith(f"user_models.py:{marked_line('lerp')}, in blocks.0 (Interpolating) and 2 more")


def test_a_module_of_torch_alone_is_named_by_its_path():
    report = check_module(nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Dropout(1.0))), X)
    (finding,) = report.findings
    assert (finding.file, finding.line, finding.modules) == (None, None, ("1.0",))
    assert finding.where == "1.0 (Dropout)"


def test_a_loop_that_waits_for_a_value_ends():
    report = check_module(user_models.Endless(), X)
    (finding,) = report.refused
    assert finding.line == marked_line("loop")
    assert f"user_models.py:{marked_line('loop')}: a loop that waits for a value" in report.stopped
    assert not report.accepted


def test_a_model_that_fails_by_itself_is_the_users_mistake():
    with pytest.raises(UserError, match=rf"user_models.py:{marked_line('broken')}: RuntimeError: .*on the CPU first"):
        check_module(user_models.Broken(), X)
    with pytest.raises(
        UserError, match=r"the model: Mandatory parameter labels missing: .*call it with them on the CPU first"
    ):
        check_module(user_models.ManyMistakes(), X)
    with pytest.raises(UserError, match=r"the model: Too many arguments provided: expected \['x'\]"):
        check_module(user_models.Masking(), (X, X))


def test_a_failure_after_a_refusal_ends_the_report_and_says_where():
    report = check_module(user_models.BrokenAfterwards(), torch.rand(6, 6))
    assert [f.line for f in report.refused] == [marked_line("count")]
    assert f"user_models.py:{marked_line('afterwards')}: RuntimeError" in report.stopped


def test_reassigned_buffers_are_all_named_and_the_module_stays_as_it_was():
    model = user_models.Counting()
    before = dict(model.state_dict())
    report = check_module(model, X)
    assert [f.message.split()[:2] for f in report.refused] == [["Buffer", "total"], ["Buffer", "calls"]]
    assert all("self.name.copy_(value)" in f.remedy for f in report.refused)
    assert model.count == 0
    assert all(
        model.state_dict()[name] is tensor or torch.equal(model.state_dict()[name], tensor)
        for name, tensor in before.items()
    )
    assert not model.total.is_meta


def test_nothing_is_installed_computed_or_drawn():
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))
    state, modules = torch.get_rng_state(), set(sys.modules)
    assert check_module(model, X).accepted
    assert torch.equal(torch.get_rng_state(), state)
    assert "poptorch" not in set(sys.modules) - modules


def test_weights_and_inputs_may_be_on_meta():
    with torch.device("meta"):
        assert check_module(nn.Linear(100_000, 100_000), torch.empty(64, 100_000)).accepted


def test_an_input_that_is_not_contiguous_is_nothing_to_report():
    assert check_module(nn.ReLU(), torch.rand(8, 8).T).findings == ()


def test_named_inputs():
    assert check_module(nn.MultiheadAttention(8, 2), named_inputs={"query": X, "key": X, "value": X}).accepted


class Loss(nn.Module):
    def __init__(self, loss):
        super().__init__()
        self.layer, self.loss = nn.Linear(8, 8), loss

    def forward(self, x, labels):
        return self.loss(self.layer(x), labels)


SOFT = torch.rand(2, 8).softmax(-1)
LOSSES = {
    "hard targets": (F.cross_entropy, LABELS, None),
    "none": (lambda z, y: z.sum() + y.sum(), LABELS, "found none"),
    "written out": (lambda z, y: -(y * z.log_softmax(-1)).sum(-1).mean(), SOFT, "found none"),
    "soft targets": (F.cross_entropy, SOFT, "found none"),
    "soft targets, marked": (lambda z, y: simulator.identity_loss(F.cross_entropy(z, y), "none"), SOFT, None),
    "two": (lambda z, y: (F.cross_entropy(z, y), F.mse_loss(z, z * 0)), LABELS, "found several"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_training_model_needs_one_loss(name):
    loss, labels, problem = LOSSES[name]
    report = check_module(Loss(loss), (X, labels), training=True)
    assert report.accepted == (problem is None)
    assert check_module(Loss(loss), (X, labels)).accepted
    if problem is not None:
        (finding,) = report.refused
        assert problem in finding.reason
        assert "poptorch.identity_loss(" in finding.remedy
        assert finding.where == "the model as a whole"


def test_compiled_and_scripted_modules_are_refused():
    for compiled in (torch.jit.script(nn.Linear(8, 8)), torch.compile(nn.Linear(8, 8), backend="eager")):
        report = check_module(nn.Sequential(nn.ReLU(), compiled), X)
        (finding,) = report.refused
        assert (finding.where.split()[0], finding.remedy) == ("1", "give PopTorch the plain module")
        assert report.stopped == "1: a compiled module hides its operations"


def test_types_of_weights_are_refused_once_with_the_names():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).bfloat16()
    given, finding = check_module(model, X.bfloat16()).refused
    assert (given.operation, given.where) == ("input", "the model as a whole")
    assert finding.operation == "weight"
    assert finding.modules == ("0.weight", "0.bias", "1.weight", "1.bias")
    assert (finding.reason, finding.where) == ("an IPU has no bfloat16", "0.weight and 3 more")
    assert [f.operation for f in check_module(model, X).refused][:1] == ["weight"]
