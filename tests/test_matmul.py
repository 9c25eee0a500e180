import itertools

import pytest
import torch
from reference import (
    DOUBLE,
    FLOATING,
    LAYOUTS,
    arguments,
    assert_fresh,
    check_gradients,
    check_value,
    draw,
    here,
    matmul,
)

pytestmark = pytest.mark.usefixtures("on_each_device")

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
SHAPES = (
    *(((m, k), (k, n)) for m, k, n in ((1, 1, 1), (5, 7, 3), (17, 33, 65), (70, 131, 67))),
    *(((s, s), (s, s)) for s in (15, 16, 31, 32, 63, 64)),
    ((131,), (131,)),
    ((131,), (131, 70)),
    ((70, 131), (131,)),
    ((1, 300), (300, 1)),
    ((300, 1), (1, 300)),
    ((3, 9, 17), (3, 17, 5)),
    ((4, 1, 9, 17), (2, 17, 5)),
    ((6, 9, 17), (17, 5)),
    ((9, 17), (6, 17, 5)),
    ((17,), (6, 17, 5)),
    ((6, 9, 17), (17,)),
    # Items that share an operand, and lie apart in the result.
    ((3, 4, 21, 70), (4, 70, 40)),
    ((3, 2, 8, 19), (2, 19, 33)),
    ((4, 70, 21), (3, 4, 21, 40)),
    ((30, 70), (3, 4, 70, 40)),
)
EMPTY = (
    ((0, 3), (3, 2)),
    ((2, 3), (3, 0)),
    ((2, 0), (0, 3)),
    ((0,), (0,)),
    ((0,), (0, 4)),
    ((4, 0), (0,)),
    ((0, 2, 3), (3, 4)),
    ((0, 2, 3), (1, 3, 4)),
    ((3, 2, 0), (0, 4)),
    ((0, 0), (0, 0)),
)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_value_and_gradients(shapes, dtype):
    args = arguments(shapes, dtype)
    check_value(matmul, *args)
    check_gradients(matmul, *args)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.complex128), ids=str)
@pytest.mark.parametrize(
    "layouts",
    list(itertools.product(LAYOUTS, LAYOUTS)),
    ids=lambda pair: "-".join(layout.__name__ for layout in pair),
)
def test_layouts(layouts, dtype):
    for shapes in (((19, 34), (34, 21)), ((3, 5, 7), (3, 7, 4))):
        args = arguments(shapes, dtype)
        views = [layout(t) for layout, t in zip(layouts, args, strict=True)]
        for view, t in zip(views, args, strict=True):
            assert torch.equal(view, t)
        check_value(matmul, *views)
        check_gradients(matmul, *views)


@pytest.mark.parametrize("dtype", DOUBLE, ids=str)
def test_expanded_operands(dtype):
    row, column = draw((7,), dtype), draw((5, 1), dtype)
    check_value(matmul, row.expand(4, 7), draw((7, 3), dtype))
    check_value(matmul, column.expand(5, 7), row.expand(2, 7).mT)
    check_gradients(matmul, draw((1, 5, 7), dtype).expand(6, 5, 7), draw((7, 3), dtype))


def test_operands_that_overlap_in_memory():
    """A view whose rows share elements, as torch.Tensor.unfold makes them."""
    windows = draw((40,)).unfold(0, 8, 3)
    check_value(matmul, windows, draw((8, 5)))
    check_value(matmul, windows.mT, windows)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("shapes", EMPTY, ids=str)
def test_empty(shapes, dtype):
    args = arguments(shapes, dtype)
    out = check_value(matmul, *args)
    assert torch.equal(out, torch.zeros_like(out))
    check_gradients(matmul, *args)


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_integers_wrap_as_in_torch(dtype):
    info = torch.iinfo(dtype)
    for shapes in (((3, 5), (5, 4)), ((5,), (5,)), ((2, 1, 3, 5), (4, 5, 2)), ((2, 0), (0, 3))):
        a, b = (torch.randint(info.min, info.max, s, dtype=dtype) for s in shapes)
        expected = torch.matmul(a, b)  # on the CPU: torch has no such product for CUDA
        assert torch.equal(matmul.ours(here(a), here(b)).cpu(), expected)


@pytest.mark.parametrize("dtype", (torch.float64, torch.float32, torch.bfloat16), ids=str)
def test_nan_and_infinity(dtype):
    """They come out where they do in torch, 0 times infinity being no 0.

    The product is torch's in float64: its own in bfloat16, on AMX, spreads a NaN over rows of an
    odd length.
    """
    for special in (float("nan"), float("inf"), -float("inf")):
        for m, k, n in ((3, 4, 5), (33, 65, 34)):
            a, b = draw((m, k), dtype), draw((k, n), dtype)
            a[1, 2] = special
            b[2, 3] = 0
            b[0, 1] = special
            got, expected = matmul.ours(a, b), torch.matmul(a.double(), b.double()).to(dtype)
            assert torch.equal(got.isnan(), expected.isnan())
            infinite = expected.isinf()
            assert torch.equal(got.isinf(), infinite)
            assert torch.equal(got[infinite], expected[infinite])


def test_one_argument_twice():
    a = draw((9, 9), requires_grad=True)
    (got,) = torch.autograd.grad(matmul.ours(a, a).sum(), a)
    (expected,) = torch.autograd.grad((a @ a).sum(), a)
    torch.testing.assert_close(got, expected)


def test_the_output_is_fresh_even_for_one():
    a, b = here(torch.ones(1, 1)), here(torch.ones(1, 1))
    out = matmul.ours(a, b)
    assert_fresh(out, (a, b))
    out.zero_()
    assert a.item() == b.item() == 1


def test_low_precision_is_rounded_once():
    """256 + 1 + ... + 1 in bfloat16: sums in bfloat16 would stay at 256."""
    a = here(torch.cat([torch.tensor([256.0]), torch.ones(256)]).bfloat16())
    assert matmul.ours(a, here(torch.ones(257, dtype=torch.bfloat16))).item() == 512
