"""poptorch.MultiConv: its results, its options, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from called_ops import X, infer, message_of

from vit_ipu import simulator as poptorch

pytestmark = pytest.mark.usefixtures("sixteen_ipus")


def two_convolutions(multi_conv):
    first, second = torch.randn(2, 1, 3, 3), torch.randn(2, 1, 3, 3)

    def forward(x, a, b):
        with multi_conv:
            return torch.conv2d(x, a) - torch.conv2d(x, b)

    image = torch.randn(1, 1, 5, 5)
    return infer(forward, image, first, second), torch.conv2d(image, first) - torch.conv2d(image, second)


ALL_OPTIONS = (
    poptorch.MultiConv()
    .availableMemoryProportions((0.8, 0.7))
    .partialsTypes([torch.float, torch.half])
    .enableConvDithering(True)
    .planType(poptorch.MultiConvPlanType.Serial)
    .perConvReservedTiles(120)
    .cycleBackOff(0.4)
)


NO_OPTIONS = poptorch.MultiConv().availableMemoryProportions(None).enableConvDithering(None).planType(None)


@pytest.mark.parametrize("multi_conv", [ALL_OPTIONS, NO_OPTIONS], ids=["all", "none"])
def test_a_multi_convolution_equals_its_convolutions(multi_conv):
    for out, expected in (two_convolutions(multi_conv), two_convolutions(multi_conv)):
        assert torch.allclose(out, expected)


@pytest.mark.parametrize(
    ("multi_conv", "message"),
    [
        (poptorch.MultiConv().availableMemoryProportions(1.5), "availableMemoryProportion must be in (0,1]"),
        (poptorch.MultiConv().availableMemoryProportions([0.1] * 3), "has 3 available memory proportions for 2 conv"),
        (poptorch.MultiConv().partialsTypes([torch.half] * 3), "has 3 partials types for 2 convolutions"),
        (poptorch.MultiConv().enableConvDithering([True] * 3), "has 3 ditherings for 2 convolutions"),
    ],
    ids=["range", "memory", "partials", "dithering"],
)
def test_options_must_match_the_convolutions(multi_conv, message):
    with pytest.raises(poptorch.Error) as caught:
        two_convolutions(multi_conv)
    assert message in str(caught.value)


def nested(x):
    with poptorch.MultiConv(), poptorch.MultiConv():
        return x


def without_convolution(x):
    with poptorch.MultiConv():
        return x * 2


def test_nested_and_empty_multi_convolutions_are_refused():
    assert "Nested poptorch.MultiConv is not supported" in message_of(poptorch.Error, nested, X)
    assert "Unexpected end_multi_conv" in message_of(poptorch.Error, without_convolution, X)
    assert torch.equal(without_convolution(X), X * 2)  # on the host


@pytest.mark.parametrize(
    ("set_option", "raised", "message"),
    [
        (lambda m: m.availableMemoryProportions(1), AssertionError, "Invalid available memory proportion!"),
        (lambda m: m.availableMemoryProportions([]), AssertionError, "Invalid available memory proportion!"),
        (lambda m: m.partialsTypes("half"), ValueError, "Invalid partials types. Expecting torch.float or torch.half"),
        (lambda m: m.partialsTypes([torch.int32]), ValueError, "Invalid partials types."),
        (lambda m: m.enableConvDithering([True, 1]), ValueError, "value must be bool or list of bools"),
        (lambda m: m.planType("parallel"), AssertionError, "Invalid plan type!"),
        (lambda m: m.perConvReservedTiles(1.0), AssertionError, ""),
        (lambda m: m.cycleBackOff(1), AssertionError, ""),
    ],
    ids="memory memory-list partials partials-list dithering plan tiles cycles".split(),
)
def test_invalid_options_of_multi_convolutions_are_refused(set_option, raised, message):
    with pytest.raises(raised) as caught:
        set_option(poptorch.MultiConv())
    assert message in str(caught.value)
