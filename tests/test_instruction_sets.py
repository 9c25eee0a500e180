"""Every op on every instruction set of the host, at sizes around the kernels' tiles and blocks."""

import pytest
import torch
from reference import (
    FLOATING,
    arguments,
    bilinear,
    check_gradients,
    check_value,
    linear,
    matmul,
    nn_bilinear,
    quadratic,
    quadratic_symmetric,
)

import matcalc_ext
from matcalc_ext import _C

# Register tiles are 6 or 8 rows by 2 or 3 vectors of 2 to 16 elements; depth goes in blocks of 384.
MATMUL = (
    *(((m, 7), (7, n)) for m, n in ((5, 15), (6, 16), (7, 17), (8, 47), (9, 48), (13, 49))),
    *(((3, k), (k, 33)) for k in (383, 384, 385, 769)),
    ((40, 385), (385, 50)),
    ((64, 384), (384, 700)),
)
CASES = (
    *((matmul, shapes) for shapes in MATMUL),
    (matmul, ((4, 9, 17), (4, 17, 49))),
    (linear, ((9, 17), (49, 17), (49,))),
    (linear, ((1, 129), (50, 129), (50,))),
    (bilinear, ((33,), (33, 49), (49,))),
    (bilinear, ((5, 33), (5, 33, 49), (5, 49))),
    (bilinear, ((9, 33), (33, 49), (9, 49))),
    (quadratic, ((49,), (49, 49))),
    (quadratic, ((9, 49), (49, 49))),
    (quadratic_symmetric, ((49,), (49, 49))),
    (quadratic_symmetric, ((9, 49), (49, 49))),
    (nn_bilinear, ((9, 17), (9, 33), (18, 17, 33), (18,))),
    (nn_bilinear, ((9, 17), (9, 33), (3, 17, 33), (3,))),
    # Sums over two dimensions, whose inner one holds whole pairs of bfloat16 numbers.
    (nn_bilinear, ((70, 24), (70, 40), (16, 24, 40), (16,))),
    (nn_bilinear, ((300, 30), (300, 50), (9, 30, 50), (9,))),
    (matmul, ((3, 1, 10, 18), (2, 18, 50))),
    # Whole steps of AMX's tiles, by each of the ways.
    *((matmul, ((70, 64), (64, n))) for n in (200, 1060)),
    (nn_bilinear, ((70, 32), (70, 64), (40, 32, 64), (40,))),
    (nn_bilinear, ((33, 96), (33, 96), (70, 96, 96), (70,))),
)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize(("op", "shapes"), CASES, ids=lambda part: str(part).replace(" ", ""))
def test_value_and_gradients(isa, op, shapes, dtype):
    assert _C.cpu_isa() == isa
    args = arguments(shapes, dtype)
    check_value(op, *args)
    check_gradients(op, *args)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("m", (7, 33, 70))
def test_columns_of_a_wider_matrix(isa, m, dtype):
    """A's rows are neighbours in memory, and several panels of them are packed together."""
    wide, b = arguments(((800, 90), (800, 50)), dtype)
    check_value(matmul, wide[:, 5 : 5 + m].mT, b)
    check_value(matmul, wide[:31, 5 : 5 + m].mT, b[:31])


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("apart", (4096, 65536))
def test_columns_of_rows_that_collide(isa, apart, dtype):
    """The rows lie so many bytes apart, for which caches have few places."""
    columns, b = arguments(((140, 70), (140, 90)), dtype)
    held = columns.new_zeros(140, apart // columns.element_size())
    wide = held[:, 5:75].copy_(columns)
    for n in (3, 33, 90):
        check_value(matmul, wide.mT, b[:, :n])
    check_value(matmul, wide[:, :7].mT, b)


def layouts(matrix):
    """The same numbers with neighbours along the rows, along the columns and nowhere."""
    apart = matrix.new_zeros(2 * matrix.shape[0], 3 * matrix.shape[1])[::2, ::3]
    views = (matrix, matrix.mT.contiguous().mT, apart.copy_(matrix))
    # A view of the conjugate numbers, of which packing undoes the conjugation.
    return views + tuple(view.conj().resolve_conj().conj() for view in views if matrix.is_complex())


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize(("m", "n"), ((21, 110), (4, 48), (530, 5)))
def test_layouts_of_both_operands(isa, m, n, dtype):
    a, b = arguments(((m, 70), (70, n)), dtype)
    for left in layouts(a):
        for right in layouts(b):
            check_value(matmul, left, right)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_groups_of_columns_and_blocks_of_rows(isa, dtype):
    """A is packed once for several blocks of columns, 512 rows at a time."""
    a, b = arguments(((40, 530), (40, 1500)), dtype)
    check_value(matmul, a.mT, b)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_more_rows_than_are_summed_at_a_time(isa, dtype):
    """2048 of an A in place and 512 of one that is packed, over several blocks of depth."""
    a, b = arguments(((2100, 2752), (2752, 20)), dtype)
    check_value(matmul, a, b)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize(
    ("m", "k", "wide"), ((30, 40, 100), (30, 40, 3000), (20, 40, 4096), (70, 400, 150))
)
def test_rows_of_a_wide_matrix(isa, m, k, wide, dtype):
    """B's rows are near to or far from each other, or fall on each other in the cache."""
    a, b = arguments(((m, k), (k, wide)), dtype)
    check_value(matmul, a, b[:, :77])


@pytest.mark.parametrize("m", (5, 8, 9))
def test_few_rows_by_a_matrix_from_memory(isa, m, threads):
    a, b = arguments(((m, 1500), (1500, 5600)), torch.float32)
    value = check_value(matmul, a, b)
    threads(1)
    assert torch.equal(matcalc_ext.matmul(a, b), value)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("op", (quadratic, quadratic_symmetric), ids=str)
def test_folds_of_several_panels(isa, op, dtype):
    """Parts of a triangle lie on either side of a panel's diagonal."""
    x, matrix = arguments(((9, 130), (130, 130)), dtype)
    for view in layouts(matrix)[:3]:
        check_value(op, x, view)
        check_gradients(op, x, view)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.complex64), ids=str)
@pytest.mark.parametrize(
    ("op", "shapes"),
    (
        (matmul, ((200, 500), (500, 150))),
        (matmul, ((3, 100, 90), (3, 90, 120))),
        (bilinear, ((400,), (400, 300), (300,))),
        (quadratic, ((100, 128), (128, 128))),
        (nn_bilinear, ((40, 30), (40, 50), (20, 30, 50), (20,))),
    ),
    ids=lambda part: str(part).replace(" ", ""),
)
def test_same_bits_for_any_number_of_threads(isa, threads, op, shapes, dtype):
    args = arguments(shapes, dtype, requires_grad=True)
    results = []
    for count in (1, 2, 4):
        threads(count)
        value = op.ours(*args)
        results.append((value, *torch.autograd.grad(value, args, torch.ones_like(value))))
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert torch.equal(one, two)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_same_bits_however_the_rows_are_split(isa, dtype):
    """From nine rows on (13 by a matrix of 32 MiB), a row's result is the same among any number."""
    backward = torch.ops.matcalc_ext.linear_backward
    for k in (1, 3, 9, 33, 130):
        for out in (1, 2, 4, 5, 17, 33, 70):
            x, weight, bias, grad = arguments(((72, k), (out, k), (out,), (72, out)), dtype)
            square = weight[:, :1].mT @ weight[:, :1] + weight[:1].mT @ weight[:1]

            def ways(x, grad, weight=weight, bias=bias, square=square):
                return (
                    matcalc_ext.linear(x, weight, bias),
                    matcalc_ext.matmul(x, weight.mT.contiguous()),
                    matcalc_ext.matmul(weight, x.mT).mT,
                    backward(grad, x, weight, bias, True, False, False)[0],
                    matcalc_ext.quadratic(x, square),
                    matcalc_ext.bilinear(grad, weight, x),
                )

            whole = ways(x, grad)
            for rows in (9, 24, 36):
                parts = [ways(x[i : i + rows], grad[i : i + rows]) for i in range(0, 72, rows)]
                for one, many in zip(whole, zip(*parts, strict=True), strict=True):
                    assert torch.equal(one, torch.cat(many))


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
def test_nan_and_infinity_stay_where_they_are(isa, dtype):
    """A tile's unused rows and columns do not carry a NaN into the used ones, nor stop one."""
    a, b = arguments(((13, 21), (21, 50)), dtype)
    a[3, 5], a[7, 2], b[4, 49] = torch.nan, torch.inf, -torch.inf
    got, expected = matcalc_ext.matmul(a, b), torch.matmul(a, b)
    assert torch.equal(got.isnan(), expected.isnan())
    assert torch.equal(got.isposinf(), expected.isposinf())
    assert torch.equal(got.isneginf(), expected.isneginf())


@pytest.mark.parametrize("rows", (1, 3, 33))
@pytest.mark.parametrize("dtype", (torch.complex64, torch.complex128), ids=str)
def test_a_sum_of_infinities_multiplies_nothing(isa, dtype, rows):
    """A part of a complex number that is infinite does not meet the zero in 1 + 0i."""
    x, weight, bias = arguments(((rows, 1), (17, 1), (17,)), dtype)
    grad = torch.ones(rows, 17, dtype=dtype)
    grad.imag[0, 3], grad.real[rows - 1, 4] = torch.inf, -torch.inf
    expected = grad.sum(0)
    for layout in (grad, grad.mT.contiguous().mT, torch.stack((grad, grad), -1)[..., 0]):
        wanted = layout, x, weight, bias, False, False, True
        assert torch.equal(torch.ops.matcalc_ext.linear_backward(*wanted)[2], expected)


def test_an_infinite_entry_is_copied_alone(isa):
    """The upper triangle of a gradient is a copy of the lower one."""
    x = torch.zeros(256, 512, dtype=torch.complex64)
    x[0, 0] = x[0, 300] = 1e30
    grad, A = torch.ones(256, dtype=x.dtype), torch.zeros(512, 512, dtype=x.dtype)
    dA = torch.ops.matcalc_ext.quadratic_backward(grad, x, A, False, False, True)[1]
    assert dA[0, 300] == dA[300, 0] == torch.inf


def test_factors_that_alternate_between_neighbours(isa):
    """Rows of a generated operand, side by side: the eighth has the factor of the first."""
    x1 = arguments(((7, 8),), torch.bfloat16)[0].expand(8, 7, 8)
    x2 = arguments(((8, 8, 7),), torch.bfloat16)[0].permute(1, 2, 0)
    weight = arguments(((16, 8, 8),), torch.bfloat16)[0]
    check_value(nn_bilinear, x1, x2, weight, None)


@pytest.mark.parametrize("n", (16, 70))
def test_complex_numbers_are_moved_without_arithmetic(isa, n):
    """A real number, read as the double of the same bits, is one that a processor may flush."""
    a, b = (torch.randn(n, n).to(torch.complex64) for _ in range(2))
    expected = a.real.double() @ b.real.double()
    torch.set_flush_denormal(True)
    try:
        got = matcalc_ext.matmul(a.mT.contiguous().mT, b.mT.contiguous().mT)
        other = matcalc_ext.matmul(a, b)
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(got, other)
    assert torch.equal(got.imag, torch.zeros(n, n))
    torch.testing.assert_close(got.real.double(), expected, rtol=1e-5, atol=1e-5)


def test_an_unknown_name_is_refused():
    with pytest.raises(RuntimeError, match="avx1024"):
        _C.set_cpu_isa("avx1024")


def test_long_sums_are_of_short_ones(isa):
    """A block of the depth is summed in two halves: the error of 384 terms is that of 192."""
    a, b = (torch.randn(384, 384) for _ in range(2))
    expected = a.double() @ b.double()
    error = (matcalc_ext.matmul(a, b).double() - expected).norm() / expected.norm()
    assert error < 3e-7  # 3.5e-7 if the terms are added one after the other
