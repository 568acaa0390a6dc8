"""Operations of libraries outside torch: PyTorch Geometric's that PopTorch handles, and refusals of the others.

The libraries are not installed. Operations of the same names and signatures stand in for them; like the libraries' own,
their kernels refuse tensors that are not on a CPU.
"""

from __future__ import annotations

import pytest
import torch
from simulated import options
from test_tracing import infer
from torch import nn

from vit_ipu import simulator as poptorch

pytestmark = pytest.mark.usefixtures("sixteen_ipus")

SRC = torch.tensor([[1.0, 3.0, 2.0, 4.0, 5.0, 6.0], [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]])
INDEX = torch.tensor([[0, 1, 0, 1, 1, 3]] * 2)


def scattered(reduce):
    """Returns a kernel that reduces with torch's own scatter_reduce, or raises like torch_scatter's CHECK_CPU."""

    def kernel(src, index, dim, out=None, dim_size=None):
        if src.device.type != "cpu":
            raise RuntimeError('src.device().is_cpu() INTERNAL ASSERT FAILED at "csrc/cpu/scatter_cpu.cpp":17')
        shape = list(src.shape)
        shape[dim] = dim_size
        made = src.new_zeros(shape) if out is None else out
        result = made.scatter_reduce(dim, index, src, reduce, include_self=out is not None)
        if out is not None:
            out.copy_(result)
        return result if reduce == "prod" else (result, result.argmax(dim, keepdim=True).expand(result.shape).clone())

    return kernel


@pytest.fixture(scope="module", autouse=True)
def libraries():
    """Defines the stand-ins, which torch removes with their Library objects."""
    names = ("torch_scatter", "torch_cluster", "torch_spline_conv", "simulator_ops")
    made = {name: torch.library.Library(name, "DEF") for name in names}

    def define(name, signature, kernel, key="CompositeImplicitAutograd"):
        namespace, _, operation = name.partition("::")
        made[namespace].define(operation + signature)
        made[namespace].impl(operation, kernel, key)

    scatter = "(Tensor src, Tensor index, int dim, Tensor? out, int? dim_size) -> "
    define("torch_scatter::scatter_max", scatter + "(Tensor, Tensor)", scattered("amax"))
    define("torch_scatter::scatter_min", scatter + "(Tensor, Tensor)", scattered("amin"))
    define("torch_scatter::scatter_mul", scatter + "Tensor", scattered("prod"))
    define("torch_scatter::gather_coo", "(Tensor src, Tensor index) -> Tensor", lambda s, i: scattered("prod")(s, i, 0))
    define("torch_cluster::grid", "(Tensor pos, Tensor size, Tensor? start, Tensor? end) -> Tensor", _grid)
    define(
        "torch_spline_conv::spline_basis",
        "(Tensor pseudo, Tensor kernel_size, Tensor is_open_spline, int degree) -> (Tensor, Tensor)",
        _spline_basis,
    )
    define(
        "torch_spline_conv::spline_weighting",
        "(Tensor x, Tensor weight, Tensor basis, Tensor weight_index) -> Tensor",
        _spline_weighting,
    )
    define("simulator_ops::double", "(Tensor x) -> Tensor", lambda x: x + x, "CompositeImplicitAutograd")
    define("simulator_ops::parts", "(Tensor x) -> Tensor", lambda x: x + x, "CompositeExplicitAutograd")
    define("simulator_ops::same", "(Tensor x) -> Tensor", lambda x: x.clone(), "CPU")
    define("simulator_ops::broken", "(Tensor x) -> Tensor", _broken)
    made["simulator_ops"].impl("same", torch.empty_like, "Meta")
    yield
    made.clear()


def _grid(pos, size, start=None, end=None):
    if pos.device.type != "cpu":
        raise RuntimeError("pos.device().is_cpu() INTERNAL ASSERT FAILED")
    return (pos / size).to(torch.int64) @ torch.tensor([1, 10])


def _spline_basis(pseudo, kernel_size, is_open_spline, degree):
    """Stands for a basis of (edges, (degree + 1) ** dimensions), with made-up values."""
    if pseudo.device.type != "cpu":
        raise RuntimeError("pseudo.device().is_cpu() INTERNAL ASSERT FAILED")
    basis = pseudo.repeat(1, (degree + 1) ** pseudo.shape[1] // pseudo.shape[1])
    return basis, basis.to(torch.int64) % 3


def _spline_weighting(x, weight, basis, weight_index):
    if x.device.type != "cpu":
        raise RuntimeError("x.device().is_cpu() INTERNAL ASSERT FAILED")
    return sum(basis[:, s, None] * (x[:, None] @ weight[weight_index[:, s]])[:, 0] for s in range(basis.shape[1]))


def _broken(x):
    raise RuntimeError("the kernel's own error")


def scatter(name):
    return getattr(torch.ops.torch_scatter, "scatter_" + name)


@pytest.mark.parametrize("name", ["max", "min"])
def test_scatter_max_and_min_return_values_and_positions(name):
    values, positions = infer(lambda m, x: scatter(name)(x, m.index.to("ipu"), 1, None, 4), SRC, index=INDEX)
    expected = scatter(name)(SRC, INDEX, 1, None, 4)
    torch.testing.assert_close(values, expected[0])
    torch.testing.assert_close(positions, expected[1].int())


def test_scatter_mul_by_its_overload():
    product = infer(lambda m, x: scatter("mul").default(x, m.index.to("ipu"), -1, None, 4), SRC, index=INDEX)
    torch.testing.assert_close(product, torch.tensor([[2.0, 60.0, 0.0, 6.0], [24.0, 30.0, 0.0, 1.0]]))


def test_scatter_mul_into_a_tensor():
    def forward(model, x):
        out = torch.ones(2, 4)
        scatter("mul")(x, model.index.to("ipu"), 1, out, 4)
        return out * 2

    expected = torch.tensor([[4.0, 120.0, 2.0, 12.0], [48.0, 60.0, 2.0, 2.0]])
    torch.testing.assert_close(infer(forward, SRC, index=INDEX), expected)


def test_scatter_max_trains_as_natively():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(6))

        def forward(self, x, index):
            return poptorch.identity_loss(scatter("max")(x * self.weight, index, 1, None, 4)[0], reduction="sum")

    model = Model()
    poptorch.trainingModel(model, options(G=1), poptorch.optim.SGD(model.parameters(), lr=0.5))(SRC, INDEX)
    native = Model()
    native(SRC, INDEX).backward()
    torch.testing.assert_close(model.weight.data, 1 - 0.5 * native.weight.grad)


def test_grid_of_torch_cluster():
    pos = torch.tensor([[0.0, 11.0], [14.0, 3.0], [5.0, 12.0]])
    voxels = infer(lambda m, x: torch.ops.torch_cluster.grid(x, torch.full((2,), 5.0), None, None), pos)
    assert voxels.tolist() == [20, 2, 21]


def test_splines_of_torch_spline_conv():
    def convolve(x, weight):
        library = torch.ops.torch_spline_conv
        basis, index = library.spline_basis(x[:, :2], x.new_full((2,), 3).to(torch.int64), x.new_ones(2).byte(), 1)
        return library.spline_weighting(x, weight, basis, index)

    weight = torch.rand(3, 6, 5, generator=torch.Generator().manual_seed(0))
    convolved = infer(lambda m, x: convolve(x, m.weight.to("ipu")), SRC, weight=weight)
    torch.testing.assert_close(convolved, convolve(SRC, weight))
    assert convolved.shape == (2, 5)


def test_a_grid_needs_a_size_for_each_dimension():
    with pytest.raises(poptorch.Error, match=r"grid: size.numel\(\) == pos.size\(1\)"):
        infer(lambda m, x: torch.ops.torch_cluster.grid(x, torch.ones(3), None, None), torch.ones(4, 2))


SCATTER_ERRORS = {
    "no size": ((None, None), "You must provide either an output parameter or specify dim_size so the output shape"),
    "two sizes": ((torch.ones(2, 5), 4), r"dim_size = 4 expected to be the same as out.shape\(\)\[dim\] = 5, dim = 1"),
}


@pytest.mark.parametrize(("arguments", "message"), SCATTER_ERRORS.values(), ids=SCATTER_ERRORS.keys())
def test_scatter_needs_one_size(arguments, message):
    def forward(model, x):
        out = arguments[0] if arguments[0] is None else arguments[0].to("ipu")
        return scatter("mul")(x, model.index.to("ipu"), -1, out, arguments[1])

    with pytest.raises(poptorch.Error, match=message):
        infer(forward, SRC, index=INDEX)


HANDLED = (
    "PopTorch handles torch_cluster::grid, torch_scatter::scatter_max, torch_scatter::scatter_min, "
    "torch_scatter::scatter_mul, torch_spline_conv::spline_basis, torch_spline_conv::spline_weighting and no other "
    "operations from outside torch; write it with operations of torch, or as poptorch.custom_op"
)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda m, x: torch.ops.torch_scatter.gather_coo(x, x), "torch_scatter::gather_coo"),
        (lambda m, x: torch.ops.simulator_ops.same(x), "simulator_ops::same"),
    ],
    ids=["kernel for the CPU alone", "shape rule without a handler"],
)
def test_operations_without_a_handler_are_refused_by_name(function, name):
    with pytest.raises(poptorch.Error) as refused:
        infer(function, SRC)
    assert refused.value.message == f"Couldn't find a registered operation for node {name}: {HANDLED}"


def test_an_operation_that_consists_of_torchs_operations_is_traced():
    assert torch.equal(infer(lambda m, x: torch.ops.simulator_ops.double(x), SRC), 2 * SRC)


def test_an_operation_on_constants_is_computed_on_the_host():
    assert torch.equal(infer(lambda m, x: x + torch.ops.simulator_ops.same(torch.ones(6)), SRC), SRC + 1)


def test_an_operation_whose_parts_are_hidden_is_not_simulated():
    message = "simulator_ops::parts has a CompositeExplicitAutograd kernel, whose parts the simulator cannot see"
    with pytest.raises(NotImplementedError, match=message):
        infer(lambda m, x: torch.ops.simulator_ops.parts(x), SRC)


def test_an_operations_own_error_is_left_alone():
    with pytest.raises(RuntimeError, match="^the kernel's own error$"):
        infer(lambda m, x: torch.ops.simulator_ops.broken(x), SRC)
