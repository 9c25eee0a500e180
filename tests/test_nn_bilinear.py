import pytest
import torch
from reference import (
    FLOATING,
    LAYOUTS,
    arguments,
    assert_near,
    check_gradients,
    check_value,
    current_device,
    draw,
    gradients,
    nn_bilinear,
    terms_of,
    to_double,
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
    ((1300, 20), (1300, 16), (9, 20, 16), (9,)),
    ((30, 70), (30, 5), (10, 70, 5), (10,)),
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


@pytest.mark.parametrize(("in1", "in2"), ((2, 7), (7, 2)))
@pytest.mark.parametrize("out", (3, 20))
def test_a_repeated_row_and_a_bias(in1, in2, out):
    weight, bias = draw((out, in1, in2)), draw((out,))
    x1, x2 = draw((4, in1)), draw((4, in2))
    check_value(nn_bilinear, x1[:1].expand(4, in1), x2, weight, bias)
    check_value(nn_bilinear, x1, x2[:1].expand(4, in2), weight, bias)


@pytest.mark.parametrize("out", (3, 20))
def test_expanded_operands(out):
    args = draw((1, 5)).expand(4, 5), draw((4, 1)).expand(4, 7), draw((5, 7)).expand(out, 5, 7)
    check_gradients(nn_bilinear, *args, draw((1,)).expand(out))


def test_many_rows_in_any_order():
    """Rows are taken some at a time along the outermost of the dimensions that they are made of."""
    x1, x2 = draw((3, 700, 17)), draw((700, 3, 16)).transpose(0, 1)
    weight, bias = draw((9, 17, 16)), draw((9,))
    check_value(nn_bilinear, x1, x2, weight, bias)
    check_value(nn_bilinear, x1.transpose(0, 1), x2.transpose(0, 1), weight, bias)
    check_value(nn_bilinear, x1[:, :, None], x2[:, :, None], weight, None)
    check_gradients(nn_bilinear, x1, x2, weight, bias)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize(("in1", "in2"), ((40, 50), (70, 16), (16, 70), (30, 20), (0, 5), (5, 0)))
def test_each_gradient_alone(in1, in2, dtype):
    """It may be made in another way than together with the others."""
    args = arguments(((33, in1), (33, in2), (12, in1, in2), (12,)), dtype)
    grad = draw((33, 12), dtype)
    wide = [to_double(t) for t in args]
    expected = gradients(nn_bilinear.plain, wide, to_double(grad))
    bounds = gradients(nn_bilinear.plain, [t.abs() for t in wide], to_double(grad).abs())
    for i in range(4):
        needs = [i == j for j in range(4)]
        got = torch.ops.matcalc_ext.nn_bilinear_backward(grad, *args[:3], *needs)
        assert [one is not None for one in got] == needs
        assert_near(got[i], expected[i], bounds[i], terms_of(args), f"gradient of argument {i}")


# One product, a product per output and the ways between.
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize(
    ("in1", "in2", "out"),
    ((70, 130, 17), (9, 12, 20), (16, 16, 20), (64, 64, 130), (5, 7, 3), (6, 90, 9), (90, 6, 9)),
)
def test_a_row_does_not_depend_on_the_others(in1, in2, out, dtype):
    if current_device().type != "cpu":
        pytest.skip("on a GPU the rows choose the kernel, and how a sum is split")
    x1, x2, weight, bias = arguments(((600, in1), (600, in2), (out, in1, in2), (out,)), dtype)
    grad = draw((600, out), dtype)
    backward = torch.ops.matcalc_ext.nn_bilinear_backward

    def results(rows):
        x1_rows, x2_rows = x1[rows], x2[rows]
        grads = backward(grad[rows], x1_rows, x2_rows, weight, True, True, False, False)
        return nn_bilinear.ours(x1_rows, x2_rows, weight, bias), *grads[:2]

    whole = results(slice(None))
    for rows in (slice(0, 40), slice(40, 49), slice(49, 600)):
        for one, many in zip(results(rows), whole, strict=True):
            assert torch.equal(one, many[rows])


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
