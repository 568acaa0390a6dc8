"""Printing in the simulator: tensors from the IPU, and modules with their blocks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from vit_ipu import simulator as poptorch
from vit_ipu.simulator.ops.print_tensor import PrintFormat, text_of

pytestmark = pytest.mark.usefixtures("sixteen_ipus")

X = torch.tensor([1.0, 2.0])


class Printer(nn.Module):
    def __init__(self, *arguments) -> None:
        super().__init__()
        self.arguments = arguments
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x):
        out = poptorch.ipu_print_tensor(x * self.weight, *self.arguments) * 2
        return out, poptorch.identity_loss(out, "sum")


PRINTED = torch.tensor([[1.4962566, 1.7682219], [1.0884774, 1.1320305]])
PRINT_CASES = [
    (PRINTED, (1000, 3, 75, 8, "auto", " ", "{", "}"), "{\n {1.4962566 1.7682219}\n {1.0884774 1.1320305}\n}"),
    (
        PRINTED,
        (500, 2, 15, 8, "scientific", ",", "[", "]"),
        "[\n [1.4962566e+00,\n   1.7682219e+00]\n [1.0884774e+00,\n   1.1320305e+00]\n]",
    ),
    (PRINTED, (1500, 1, 125, 8, "fixed", ";", "(", ")"), "(\n (1.4962566;1.7682219)\n (1.0884774;1.1320305)\n)"),
    (torch.tensor(2.0), (), "2.000"),
    (torch.tensor([-1, 100]), (), "( -1,100)"),
    (torch.tensor([True, False]), (), "(1,0)"),
    (torch.tensor([0.5, -20.0]), (), "(  0.50,-20.00)"),
    (torch.tensor([1.0, 1e6]), (), "(1.000e+00,1.000e+06)"),
    (torch.tensor([1.0, 0.25]), (1000, 3, 80, 0), "(1,0.25)"),
    (torch.tensor([1.0, 1e6]), (1000, 3, 80, 4, "none"), "(    1,1e+06)"),
    (torch.tensor([math.nan, math.inf]), (), "(nan,inf)"),
    (torch.arange(10), (8, 2), "(0,1,...,8,9)"),
    (torch.arange(6).reshape(6, 1), (5, 1), "(\n (0)\n ...\n (5)\n)"),
]


@pytest.mark.parametrize(
    ("tensor", "style", "expected"),
    PRINT_CASES,
    ids="auto scientific fixed scalar integers bools aligned wide unaligned none special cut cut-rows".split(),
)
def test_a_tensor_is_formatted_in_the_chosen_style(tensor, style, expected):
    assert text_of(tensor, PrintFormat(*style)) == expected


def test_printing_happens_when_the_model_runs(capfd):
    model = poptorch.inferenceModel(Printer("mine"))
    poptorch.ipu_print_tensor(X, "host")
    model.compile(X)
    assert capfd.readouterr().err == ""
    model(X)
    assert capfd.readouterr().err == "mine: (1.000,2.000)\n"


@pytest.mark.parametrize(
    ("title", "print_gradient", "expected"),
    [
        ("x", True, "x: (1.000,2.000)\nx_gradient: (2.000,2.000)\n"),
        ("x", False, "x: (1.000,2.000)\n"),
        ("", True, "PrintTensor: (1.000,2.000)\nPrintTensor_gradient: (2.000,2.000)\n"),
    ],
    ids=["gradient", "no-gradient", "untitled"],
)
def test_the_gradient_is_printed_in_the_backward_pass(capfd, title, print_gradient, expected):
    poptorch.trainingModel(Printer(title, print_gradient))(X)
    assert capfd.readouterr().err == expected


def test_a_module_is_printed_with_its_blocks(capsys):
    model = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.ReLU()))
    assert poptorch.module_repr(model) == repr(model)
    poptorch.BeginBlock(model[1], "second", ipu_id=1)
    marked = repr(model).replace("(1): Seq", "(1): BeginBlock(user_id=second, ipu_id=1) Seq")
    assert poptorch.module_repr(model) == marked
    poptorch.print(model)
    poptorch.print("text")
    assert capsys.readouterr().out == f"{marked}\n{model}\ntext\n"
    poptorch.removeBlocks(model)
    assert poptorch.module_repr(model) == repr(model)
