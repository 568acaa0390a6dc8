"""Functions of autograd and gradient checkpointing: an IPU differentiates the recorded forward pass."""

from __future__ import annotations

import inspect
import logging
from contextlib import nullcontext
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from simulated import data, options
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential
from two_layers import Model, assert_equal, trained

from vit_ipu import simulator as poptorch

pytestmark = pytest.mark.usefixtures("sixteen_ipus")


class Spike(torch.autograd.Function):
    """A step whose backward passes the gradient straight through."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x > 0).float()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Tripled(torch.autograd.Function):
    """A sigmoid whose backward is three times too large, written with `setup_context`."""

    @staticmethod
    def forward(x, scale):
        return torch.sigmoid(scale * x), scale

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.scale = inputs[1]
        assert output[1] == inputs[1]

    @staticmethod
    def backward(ctx, gradient, _):
        return 3 * ctx.scale * gradient, None


class InPlace(torch.autograd.Function):
    """A ReLU that overwrites its input, with a wrong backward."""

    @staticmethod
    def forward(ctx, x):
        assert ctx.needs_input_grad == (True,)
        ctx.mark_dirty(x)
        return x.relu_()

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


spike, tripled, in_place = Spike.apply, Tripled.apply, InPlace.apply  # as programs keep them


FUNCTIONS = {
    "setup_context": (lambda f, x: tripled(f(x), 2.0)[0], lambda f, x: torch.sigmoid(2.0 * f(x))),
    "in place": (lambda f, x: in_place(f(x)), lambda f, x: f(x).relu()),
    "both": (lambda f, x: tripled(in_place(f(x)), 1.0)[0], lambda f, x: torch.sigmoid(f(x).relu())),
}


@pytest.mark.parametrize(("middle", "expected"), FUNCTIONS.values(), ids=FUNCTIONS.keys())
def test_the_forward_of_a_function_is_differentiated(middle, expected):
    assert_equal(trained(middle)[0], trained(expected)[0])


def test_a_straight_through_spike_does_not_train_the_layers_before_it():
    before = Model(None).state_dict()
    after, _ = trained(lambda f, x: spike(f(x)))
    assert_equal(after["first.weight"], before["first.weight"])
    assert not torch.equal(after["second.weight"], before["second.weight"])


def test_the_remedy_of_the_warning_trains_straight_through():
    def middle(first, x):
        h = first(x)
        return h + (F.relu(h.sign()) - h).detach()

    native = Model(lambda f, x: spike(f(x)))
    optimizer = torch.optim.SGD(native.parameters(), lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        native(*data(8)).backward()
        optimizer.step()
    torch.testing.assert_close(trained(middle)[0], dict(native.state_dict()))


def test_a_function_is_warned_about_once_by_name(caplog):
    trained(lambda f, x: spike(spike(f(x))))
    assert [r.getMessage() for r in caplog.records if "Function" in r.getMessage()] == [
        f"{__name__}.Spike: PopTorch ignores backward() of a torch.autograd.Function and differentiates forward() "
        "instead, which gives another gradient unless backward() is the derivative of forward(); write the gradient "
        "with detach(), as in x + (hard(x) - x).detach() for a straight-through estimator"
    ]


def test_inference_applies_a_function_without_a_warning(caplog):
    model = Model(lambda f, x: spike(f(x)))
    x, labels = data(8)
    assert torch.equal(poptorch.inferenceModel(model)(x, labels), model(x, labels))
    assert not caplog.records


def test_functions_outside_a_program_keep_their_backward():
    trained(lambda f, x: spike(f(x)))
    x = torch.ones(3, requires_grad=True)
    spike(x).sum().backward()
    assert torch.equal(x.grad, torch.ones(3))
    assert "apply" not in vars(torch.autograd.function._SingleLevelFunction)
    assert "__getattribute__" not in vars(torch.autograd.function.FunctionMeta)


def _sequential(first, x):
    return checkpoint_sequential([first, nn.Tanh(), nn.Identity()], 3, x, use_reentrant=False)


CHECKPOINTS = {
    "reentrant": lambda f, x: torch.tanh(checkpoint(f, x, use_reentrant=True)),
    "not reentrant": lambda f, x: checkpoint(lambda y: torch.tanh(f(y)), x, use_reentrant=False),
    "keyword": lambda f, x: torch.tanh(checkpoint(lambda y, *, more: f(y), x, use_reentrant=False, more=1)),
    "sequential": _sequential,
    "nested": lambda f, x: checkpoint(
        lambda y: torch.tanh(checkpoint(f, y, use_reentrant=False)), x, use_reentrant=True
    ),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("middle", CHECKPOINTS.values(), ids=CHECKPOINTS.keys())
def test_checkpointing_changes_neither_weights_nor_memory(middle, caplog):
    """PopART decides what it computes again, and so differentiates inputs that do not require a gradient too."""
    weights, report = trained(middle)
    expected, plain = trained(lambda f, x: torch.tanh(f(x)))
    assert_equal(weights, expected)
    assert report == plain
    assert not caplog.records


@pytest.mark.parametrize("middle", CHECKPOINTS.values(), ids=CHECKPOINTS.keys())
def test_checkpointing_works_in_inference(middle):
    x, labels = data(8)
    expected = Model(lambda f, x: torch.tanh(f(x)))(x, labels)
    assert torch.equal(poptorch.inferenceModel(Model(middle))(x, labels), expected)


def test_checkpoint_takes_context_fn_where_torch_does():
    """torch 2.0.1 passes an unknown argument to the function, which refuses it; so does the simulator."""

    def middle(first, x):
        return torch.tanh(checkpoint(first, x, use_reentrant=False, context_fn=lambda: (nullcontext(), nullcontext())))

    if "context_fn" in inspect.signature(checkpoint).parameters:
        assert_equal(trained(middle)[0], trained(lambda f, x: torch.tanh(f(x)))[0])
    else:
        for call in (lambda: Model(middle)(*data(8)), lambda: trained(middle)):
            with pytest.raises(TypeError, match="got an unexpected keyword argument 'context_fn'"):
                call()


class Classifier(nn.Module):
    """A model of images and its loss."""

    def __init__(self, model, logits):
        super().__init__()
        self.model, self.logits = model, logits

    def forward(self, images, labels):
        return F.cross_entropy(self.logits(self.model, images), labels)


def _timm_vit(checkpointed):
    import timm

    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=3, depth=2)
    model.set_grad_checkpointing(checkpointed)
    return model, lambda model, images: model(images)


def _hugging_face_vit(use_reentrant, checkpointed):
    import transformers

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    settings = transformers.ViTConfig(**sizes, image_size=32, num_labels=3, attn_implementation="eager")
    model = transformers.ViTForImageClassification(settings).train()
    if checkpointed:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
        assert model.is_gradient_checkpointing
    return model, lambda model, images: model(images).logits


@pytest.mark.parametrize(
    "build",
    [_timm_vit, partial(_hugging_face_vit, True), partial(_hugging_face_vit, False)],
    ids=["timm", "transformers, reentrant", "transformers"],
)
def test_models_of_libraries_train_with_checkpointing_as_without(build, caplog):
    caplog.set_level(logging.WARNING, logger="poptorch")
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    weights = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        model = Classifier(*build(checkpointed))
        executor = poptorch.trainingModel(model, options(), poptorch.optim.SGD(model.parameters(), lr=0.1))
        executor(images, labels)
        weights.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    assert_equal(weights[1], weights[0])
    assert "Function" not in caplog.text
