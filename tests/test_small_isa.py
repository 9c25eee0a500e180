"""Small products and batches of them under each instruction set: csrc/cpu/small.cpp."""

import pytest
from reference import (
    FLOATING,
    arguments,
    check_value,
    conjugated,
    draw,
    linear,
    matmul,
    offset,
    sliced,
    transposed,
)

# Groups of 8, 4 and fewer rows; registers of 2 to 16 columns; on both sides of the limits.
ROWS = (1, 2, 3, 4, 5, 8, 9, 15, 32, 33)
COLS = (1, 2, 3, 4, 8, 9, 16, 17, 32, 33)
EACH_DTYPE = pytest.mark.parametrize("dtype", FLOATING, ids=str)


@EACH_DTYPE
@pytest.mark.parametrize("depth", (1, 2, 8, 17, 32))
def test_sizes(isa, depth, dtype):
    for rows in ROWS:
        for cols in COLS:
            a, b = arguments(((3, rows, depth), (3, depth, cols)), dtype)
            check_value(matmul, a, b)
            check_value(matmul, transposed(a), transposed(b))


@EACH_DTYPE
@pytest.mark.parametrize(
    "shape", ((4, 4, 4), (3, 7, 5), (1, 8, 8), (8, 8, 1), (9, 12, 20)), ids=str
)
def test_layouts(isa, shape, dtype):
    m, k, n = shape
    a, b = arguments(((2, 3, m, k), (2, 3, k, n)), dtype)
    for left in (a, transposed(a), sliced(a), offset(a), conjugated(a)):
        for right in (b, transposed(b), sliced(b), offset(b), conjugated(b)):
            check_value(matmul, left, right)


@EACH_DTYPE
@pytest.mark.parametrize("depth", (1, 4, 17))
def test_bias(isa, depth, dtype):
    """Contiguous, which the kernel adds, or with a step, which it leaves to another path."""
    for rows in ROWS:
        for cols in COLS:
            x, weight, bias = arguments(((rows, depth), (cols, depth), (cols,)), dtype)
            check_value(linear, x, weight, bias)
            check_value(linear, x.expand(3, rows, depth), weight, sliced(bias))


@EACH_DTYPE
def test_batches(isa, dtype):
    """Shared by several threads, in several dimensions, and repeated along some."""
    a, b = arguments(((7, 900, 4, 4), (900, 4, 4)), dtype)
    check_value(matmul, a, b)
    check_value(matmul, a[:, ::2], b[1::2].mT)
    check_value(matmul, a.transpose(0, 1), b[:, None])
    check_value(matmul, a[:1, :, :1], b)
    check_value(matmul, draw((2000, 16, 16), dtype), draw((2000, 16, 16), dtype))
    check_value(matmul, draw((40, 50, 16, 12), dtype), draw((50, 12, 16), dtype))
