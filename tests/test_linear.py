import pytest
import torch
from reference import (
    FLOATING,
    LAYOUTS,
    arguments,
    check_gradients,
    check_value,
    draw,
    gradients,
    here,
    linear,
)

pytestmark = pytest.mark.usefixtures("on_each_device")

SHAPES = (
    *(((b, k), (n, k), (n,)) for b, k, n in ((1, 1, 1), (5, 7, 3), (17, 65, 33), (64, 64, 64))),
    ((131,), (70, 131), (70,)),
    ((131,), (131,), ()),
    ((9, 131), (131,), (1,)),
    ((3, 1, 5, 17), (9, 17), (9,)),
    ((6, 17), (9, 17), None),
    ((6, 17), (9, 17), (1,)),
    ((6, 17), (9, 17), (1, 1)),
    ((6, 17), (1, 17), (1,)),
)
EMPTY = (
    ((0, 3), (2, 3), (2,)),
    ((4, 3), (0, 3), (0,)),
    ((4, 0), (2, 0), (2,)),
    ((0,), (2, 0), None),
    ((2, 0, 3), (5, 3), (5,)),
)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_value_and_gradients(shapes, dtype):
    args = arguments(shapes, dtype)
    check_value(linear, *args)
    check_gradients(linear, *args)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.complex128), ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_layouts(layout, dtype):
    for shapes in (((19, 34), (21, 34), (21,)), ((2, 3, 7), (5, 7), (5,))):
        args = arguments(shapes, dtype)
        for i in range(3):
            views = [layout(t) if i == j else t for j, t in enumerate(args)]
            check_value(linear, *views)
            check_gradients(linear, *views)
        check_gradients(linear, *map(layout, args))


def test_expanded_operands():
    check_gradients(linear, draw((1, 7)).expand(5, 7), draw((3, 7)), draw((1,)).expand(3))
    check_gradients(linear, draw((5, 7)), draw((1, 7)).expand(3, 7), draw((3,)))


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("shapes", EMPTY, ids=str)
def test_empty(shapes, dtype):
    """A sum over nothing is zero: what is left is the bias, and gradients of zeros."""
    args = arguments(shapes, dtype)
    out = check_value(linear, *args)
    bias = args[2]
    assert torch.equal(out, torch.zeros_like(out) if bias is None else bias.expand_as(out))
    check_gradients(linear, *args)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_equals_torch_nn_functional_linear(dtype):
    for shapes in (((5, 7), (3, 7), (3,)), ((7,), (3, 7), None), ((2, 4, 7), (3, 7), (3,))):
        args = arguments(shapes, dtype)
        tolerance = 40 * torch.finfo(dtype).eps
        torch.testing.assert_close(
            linear.ours(*args),
            torch.nn.functional.linear(*args),
            rtol=tolerance,
            atol=tolerance,
        )


def test_nan_and_infinity():
    x, weight, bias = draw((4, 5)), draw((6, 5)), draw((6,))
    x[1, 2], weight[3, 1], weight[:, 2], bias[4] = float("inf"), float("nan"), 0, -float("inf")
    got, expected = linear.ours(x, weight, bias), torch.nn.functional.linear(x, weight, bias)
    torch.testing.assert_close(got, expected, equal_nan=True)


def test_the_worked_example():
    """L = Σ z, z = x W + b: dL/dx = [[0, 0.5]], dL/dW = xᵀ dL/dz, dL/db = [[1, 1]]."""
    x = here(torch.tensor([[1.0, 2.0]]))
    W, b = here(torch.tensor([[0.5, -0.5], [1.5, -1.0]])), here(torch.tensor([0.1, -0.1]))
    z = linear.ours(x, W.mT, b)
    torch.testing.assert_close(z, here(torch.tensor([[3.6, -2.6]])))
    dx, dW, db = gradients(linear.ours, (x, W.mT, b), torch.ones_like(z))
    assert dx.tolist() == [[0.0, 0.5]]
    assert dW.mT.tolist() == [[1.0, 1.0], [2.0, 2.0]]
    assert db.tolist() == [1.0, 1.0]
