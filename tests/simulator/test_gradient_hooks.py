"""Hooks on gradients: an IPU does not run them, warns of them, and trains as without them."""

from __future__ import annotations

import pytest
import torch
from simulated import data, options
from torch import nn
from two_layers import Model, assert_equal, trained

from vit_ipu import simulator as poptorch

pytestmark = pytest.mark.usefixtures("sixteen_ipus")


def ten_times(*arguments):
    """A hook of a tensor, or of a module in any form of backward hook, that multiplies the gradient by ten."""
    gradients = arguments[-1] if len(arguments) < 3 else arguments[1]
    return 10 * gradients if isinstance(gradients, torch.Tensor) else tuple(10 * gradient for gradient in gradients)


def _hooked_tensor(first, x):
    h = first(x)
    h.register_hook(ten_times).remove()
    h.register_hook(ten_times)
    return h


def _hooked_tensors(first, x):
    h = first(x)
    torch.autograd.graph.register_multi_grad_hook([h], pytest.fail)
    return h


def _hooked_in_forward(first, x):
    module = nn.Identity()
    module.register_full_backward_hook(ten_times)
    return module(first(x))


def _hooked_module(register):
    def middle(first, x):
        return first(x)

    middle.prepare = lambda model: getattr(model.first, register)(ten_times)
    return middle


def _hooked_weight(first, x):
    return first(x)


_hooked_weight.prepare = lambda model: model.first.weight.register_hook(ten_times)


if hasattr(torch.Tensor, "register_post_accumulate_grad_hook"):  # torch 2.1 and later

    def _accumulated_weight(first, x):
        first.weight.register_post_accumulate_grad_hook(pytest.fail)
        return first(x)

    _hooked_later = _hooked_module("")
    _hooked_later.prepare = lambda model: model.first.bias.register_post_accumulate_grad_hook(pytest.fail)


_hooked_everywhere = _hooked_module("")


_hooked_everywhere.prepare = lambda model: nn.modules.module.register_module_full_backward_hook(ten_times)


_LINEAR = "backward hooks of torch.nn.modules.linear.Linear"


HOOKS = {
    "tensor": (_hooked_tensor, ["Tensor.register_hook"]),
    "tensors": (_hooked_tensors, ["Tensor.register_hook"]),
    "module in forward": (_hooked_in_forward, ["backward hooks of torch.nn.modules.linear.Identity"]),
    "module": (_hooked_module("register_full_backward_hook"), [_LINEAR]),
    "module, before": (_hooked_module("register_full_backward_pre_hook"), [_LINEAR]),
    "module, old": (_hooked_module("register_backward_hook"), [_LINEAR]),
    "modules": (_hooked_everywhere, [f"backward hooks of {Model.__module__}.Model", _LINEAR]),
    "weight": (_hooked_weight, ["hooks of first.weight"]),
}


if hasattr(torch.Tensor, "register_post_accumulate_grad_hook"):
    HOOKS["accumulated weight"] = (_accumulated_weight, ["Tensor.register_post_accumulate_grad_hook"])
    HOOKS["accumulated bias"] = (_hooked_later, ["hooks of first.bias"])


def trained_with_hooks(middle):
    """Returns the weights after three updates of a model that `middle.prepare` gives hooks."""
    model = Model(middle)
    handle = getattr(middle, "prepare", lambda model: None)(model)
    try:
        executor = poptorch.trainingModel(model, options(), poptorch.optim.SGD(model.parameters(), lr=0.5))
        for _ in range(3):
            executor(*data(8))
    finally:
        if handle is not None:
            handle.remove()
    return dict(model.state_dict())


@pytest.mark.parametrize(("middle", "kinds"), HOOKS.values(), ids=HOOKS.keys())
def test_hooks_on_gradients_do_not_run_and_are_warned_about_once(middle, kinds, caplog):
    assert_equal(trained_with_hooks(middle), trained(lambda f, x: f(x))[0])
    assert [r.getMessage() for r in caplog.records] == [
        f"{kind}: PopTorch never runs autograd's backward, so hooks on gradients do not run on an IPU and gradients "
        "stay as they are; change a gradient in forward, as in factor * x + (x - factor * x).detach()"
        for kind in kinds
    ]


def test_hooks_added_after_compilation_do_not_run_either():
    model = Model(lambda f, x: f(x))
    executor = poptorch.trainingModel(model, options(), poptorch.optim.SGD(model.parameters(), lr=0.5))
    executor.compile(*data(8))
    model.first.register_full_backward_hook(ten_times)
    for _ in range(3):
        executor(*data(8))
    assert_equal(dict(model.state_dict()), trained(lambda f, x: f(x))[0])


def test_inference_accepts_hooks_without_a_warning(caplog):
    x, labels = data(8)
    assert torch.equal(
        poptorch.inferenceModel(Model(_hooked_tensor))(x, labels), Model(lambda f, x: f(x))(x, labels).detach()
    )
    assert not caplog.records


def test_the_remedy_of_the_warning_about_hooks_changes_the_gradient():
    def middle(first, x):
        h = first(x)
        return 10 * h + (h - 10 * h).detach()

    native = Model(_hooked_tensor)
    optimizer = torch.optim.SGD(native.parameters(), lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        for part in zip(*(tensor.chunk(4) for tensor in data(8))):
            (native(*part) / 4).backward()
        optimizer.step()
    torch.testing.assert_close(trained(middle)[0], dict(native.state_dict()), rtol=1e-4, atol=1e-5)


def test_hooks_outside_a_program_run():
    trained_with_hooks(_hooked_tensor)
    x = torch.ones(3, requires_grad=True)
    x.register_hook(ten_times)
    module = nn.Identity()
    module.register_full_backward_hook(ten_times)
    module(x).sum().backward()
    assert torch.equal(x.grad, torch.full((3,), 100.0))
