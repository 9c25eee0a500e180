import pytest
import torch
from reference import (
    FLOATING,
    LAYOUTS,
    arguments,
    check_gradients,
    check_value,
    draw,
    nn_bilinear,
)

pytestmark = pytest.mark.usefixtures("on_each_device")

SHAPES = (
    ((1, 1), (1, 1), (1, 1, 1), (1,)),
    ((5, 7), (5, 3), (4, 7, 3), (4,)),
    ((9, 17), (9, 19), (33, 17, 19), (33,)),
    ((33, 16), (33, 16), (16, 16, 16), (16,)),
    ((7,), (3,), (4, 7, 3), (4,)),
    ((7,), (3,), (20, 7, 3), None),
    ((2, 3, 7), (2, 3, 5), (4, 7, 5), (4,)),
    ((2, 3, 7), (2, 3, 5), (17, 7, 5), None),
    ((5, 65), (5, 67), (1, 65, 67), (1,)),
    ((1, 65), (1, 67), (2, 65, 67), None),
    ((150, 70), (150, 130), (17, 70, 130), (17,)),
    ((2, 40, 3), (2, 40, 1500), (17, 3, 1500), None),
)
EMPTY = (
    ((0, 3), (0, 2), (4, 3, 2), (4,)),
    ((5, 3), (5, 2), (0, 3, 2), (0,)),
    ((5, 0), (5, 2), (4, 0, 2), (4,)),
    ((5, 3), (5, 0), (20, 3, 0), (20,)),
    ((5, 0), (5, 0), (4, 0, 0), None),
)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_value_and_gradients(shapes, dtype):
    args = arguments(shapes, dtype)
    check_value(nn_bilinear, *args)
    check_gradients(nn_bilinear, *args)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.complex128), ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_layouts(layout, dtype):
    for shapes in (
        ((9, 5), (9, 7), (3, 5, 7), (3,)),
        ((2, 3, 5), (2, 3, 7), (19, 5, 7), (19,)),
    ):
        args = arguments(shapes, dtype)
        for i in range(4):
            views = [layout(t) if i == j else t for j, t in enumerate(args)]
            check_value(nn_bilinear, *views)
            check_gradients(nn_bilinear, *views)
        check_gradients(nn_bilinear, *map(layout, args))


@pytest.mark.parametrize("out", (3, 20))
def test_expanded_operands(out):
    args = draw((1, 5)).expand(4, 5), draw((4, 1)).expand(4, 7), draw((5, 7)).expand(out, 5, 7)
    check_gradients(nn_bilinear, *args, draw((1,)).expand(out))


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_gradients_of_a_row_do_not_depend_on_the_others(dtype):
    x1, x2, weight, _ = arguments(((150, 70), (150, 130), (17, 70, 130), None), dtype)
    grad = draw((150, 17), dtype)
    backward = torch.ops.matcalc_ext.nn_bilinear_backward
    want = backward(grad, x1, x2, weight, True, True, False, False)
    for rows in (slice(0, 40), slice(40, 49), slice(49, 150)):
        got = backward(grad[rows], x1[rows], x2[rows], weight, True, True, False, False)
        assert torch.equal(got[0], want[0][rows])
        assert torch.equal(got[1], want[1][rows])


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("shapes", EMPTY, ids=str)
def test_empty(shapes, dtype):
    """A sum over nothing is zero: what is left is the bias."""
    args = arguments(shapes, dtype)
    out = check_value(nn_bilinear, *args)
    bias = args[3]
    assert torch.equal(out, torch.zeros_like(out) if bias is None else bias.expand_as(out))
    check_gradients(nn_bilinear, *args)


@pytest.mark.parametrize("dtype", (torch.float64, torch.float32), ids=str)
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_equals_torch_nn_functional_bilinear(shapes, dtype):
    args = arguments(shapes, dtype)
    expected = torch.nn.functional.bilinear(*args)
    tolerance = 20 * torch.finfo(dtype).eps * args[2][0].numel()
    torch.testing.assert_close(nn_bilinear.ours(*args), expected, rtol=tolerance, atol=tolerance)


def test_nan_and_infinity():
    for out in (3, 20):  # one product per output, and all in one
        for special in (float("nan"), float("inf")):
            x1, x2, weight, bias = arguments(((4, 5), (4, 7), (out, 5, 7), (out,)))
            weight[2, 1, 3], x1[0, 1], bias[1] = special, 0, special
            got = nn_bilinear.ours(x1, x2, weight, bias)
            expected = torch.nn.functional.bilinear(x1, x2, weight, bias)
            torch.testing.assert_close(got, expected, equal_nan=True)
