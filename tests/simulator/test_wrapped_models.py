"""Models that an executor wraps: they are pickled, copied, unwrapped, attached and destroyed."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from scale_model import Scale
from simulated import options
from torch import nn

from vit_ipu import simulator as poptorch
from vit_ipu.simulator import machine
from vit_ipu.simulator.execution import wrapped_model as wrapping

pytestmark = pytest.mark.usefixtures("sixteen_ipus")


def test_a_wrapped_model_is_pickled_unwrapped_with_trained_weights():
    model = Scale()
    executor = poptorch.trainingModel(model, options(G=1), torch.optim.SGD(model.parameters(), lr=0.1))
    executor(torch.ones(1, 2))
    for read in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model), _through_torch_save(model)):
        assert type(read) is Scale
        assert torch.equal(read.factor, model.factor.detach())
        assert not torch.equal(read.factor, torch.tensor([2.0, 3.0]))
    assert type(copy.copy(model)) is type(model)


def _through_torch_save(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False) if "2.0" not in torch.__version__ else torch.load(file)


def test_a_model_is_unwrapped_and_wrapped_again():
    model = Scale()
    executor = poptorch.trainingModel(model, options(G=1), torch.optim.SGD(model.parameters(), lr=0.1))
    wrapped = type(model), type(model.factor), type(model.offset)
    wrapping.unwrapModelIfNecessary(model)
    assert (type(model), type(model.factor), type(model.offset)) == (Scale, nn.Parameter, torch.Tensor)
    wrapping.rewrapModelIfNecessary(model)
    assert (type(model), type(model.factor), type(model.offset)) == wrapped
    executor(torch.ones(1, 2))
    assert not torch.equal(model.factor.detach(), torch.tensor([2.0, 3.0]))


@pytest.mark.parametrize("name", ["unwrapModelIfNecessary", "rewrapModelIfNecessary"])
def test_a_plain_model_is_not_changed(name):
    model = Scale()
    getattr(wrapping, name)(model)
    assert (type(model), type(model.factor)) == (Scale, nn.Parameter)


class OnlyIfNecessary(poptorch.PoplarExecutor):
    """Attaches and detaches as mmcv's executor does."""

    def attachToDevice(self):
        if self.isCompiled() and not self._is_attached:
            super().attachToDevice()

    def detachFromDevice(self):
        if self.isCompiled() and self._is_attached:
            super().detachFromDevice()


def test_a_subclass_of_the_executor_knows_whether_it_is_attached():
    executor = OnlyIfNecessary(Scale().eval(), poptorch.Options(), training=False, poptorch_version="")
    executor.detachFromDevice()
    executor(torch.ones(1, 2))
    executor.attachToDevice()
    assert machine.current.ipus_held == 1
    executor.detachFromDevice()
    executor.detachFromDevice()
    assert machine.current.ipus_held == 0


def test_a_wrapped_model_can_destroy_its_executor():
    model = Scale()
    executor = poptorch.trainingModel(model, options(1, 1, 1))
    executor(torch.ones(2, 2))
    assert repr(executor) == poptorch.module_repr(model)
    model.destroy()
    assert not executor.isCompiled()
    assert machine.current.ipus_held == 0
    assert (type(model), type(model.factor), type(model.offset)) == (Scale, nn.Parameter, torch.Tensor)
