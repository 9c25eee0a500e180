"""Forms with a matrix of its own for each item: csrc/cuda/form.cu.

`launches` tells which kernels ran: form_small up to 32 x 32; form_tiles, and form_finish where a
matrix is cut into several tiles; form_outer for the gradient of a large matrix.
"""

from itertools import product

import pytest
import torch
from emulated import ORDERS, emulated  # noqa: F401
from reference import FLOATING, assert_near, draw, offset, plain_bilinear, sliced, to_double
from test_forms_isa import by_columns, by_rows, lower_only, padded, times

EACH_DTYPE = pytest.mark.parametrize("dtype", FLOATING, ids=str)
LOW = (torch.bfloat16, torch.float16)
SMALL, SINGLE = {"form_small"}, {"form_tiles"}
SEVERAL = {"form_tiles", "form_finish", "form_outer"}


def aligned(A):
    """Part of a matrix of NaNs, whose rows begin at multiples of 16 bytes."""
    wide = A.new_full((*A.shape[:-1], (A.shape[-1] + 23) // 8 * 8), torch.nan)
    wide[..., 8 : 8 + A.shape[-1]] = A
    return wide[..., 8 : 8 + A.shape[-1]]


def aligned_columns(A):
    return aligned(A.mT).mT


LAYOUTS = (by_rows, by_columns, padded, aligned, aligned_columns, sliced, offset)
EACH_LAYOUT = pytest.mark.parametrize("layout", LAYOUTS)


def compare(results, terms):
    for name, got, expected, bound in results:
        assert got is not None, name
        assert_near(got, expected, bound, terms, name)


def bilinear_results(ops, y, A, x, g):
    """Everything that a form can be asked for, in every combination: name, result, expected, bound.

    The gradients of an operand that is broadcast are sums over forms, and another kernel's.
    """

    def plain(y, A, x, g):
        p, q = times(A, x).conj(), times(A.mT, y).conj()
        g = g.unsqueeze(-1)
        dA = (g * y.conj()).unsqueeze(-1) * x.conj().unsqueeze(-2)
        return plain_bilinear(y, A, x), p, q, g * p, dA, g * q

    wide = [to_double(t) for t in (y, A, x, g)]
    values, bounds = plain(*wide), plain(*(t.abs() for t in wide))

    def result(what, name, got, which):
        return (f"{name} of {what}", got, values[which], bounds[which])

    yield result("bilinear", "value", ops.bilinear(y, A, x), 0)
    for needs in ((True, False), (False, True), (True, True)):
        what = f"bilinear_products {needs}"
        out = ops._bilinear_products(y, A, x, *needs)
        for i, name in enumerate(("value", "p", "q")):
            if i == 0 or needs[i - 1]:
                yield result(what, name, out[i], i)
    for needs in product((False, True), repeat=3):
        what = f"bilinear_backward {needs}"
        out = ops.bilinear_backward(g, y, A, x, *needs)
        for i, name in enumerate(("dy", "dA", "dx")):
            if needs[i]:
                yield result(what, name, out[i], 3 + i)
            else:
                assert out[i] is None


def check_bilinear(ops, y, A, x, g):
    compare(bilinear_results(ops, y, A, x, g), A.shape[-1] + A.shape[-2])


def quadratic_results(ops, x, A, g, symmetric):
    def plain(x, A, g):
        p = times(A + A.mT, x).conj()
        g = g.unsqueeze(-1)
        dA = (g * x.conj()).unsqueeze(-1) * x.conj().unsqueeze(-2)
        return plain_bilinear(x, A, x), p, g * p, dA

    wide = [to_double(t) for t in (x, A, g)]
    if symmetric:
        lower = wide[1].tril()
        wide[1] = lower + lower.tril(-1).mT
    values, bounds = plain(*wide), plain(*(t.abs() for t in wide))
    alpha, p = ops._quadratic_products(x, A, symmetric=symmetric)
    both = ops.quadratic_backward(g, x, A, symmetric, True, True)
    results = (
        ("value", ops.quadratic(x, A, symmetric=symmetric), 0),
        ("value beside p", alpha, 0),
        ("p", p, 1),
        ("dx", both[0], 2),
        ("dA", both[1], 3),
        ("dx alone", ops.quadratic_backward(g, x, A, symmetric, True, False)[0], 2),
        ("dA alone", ops.quadratic_backward(g, x, A, symmetric, False, True)[1], 3),
    )
    for name, got, which in results:
        yield name, got, values[which], bounds[which]


def check_quadratic(ops, x, A, g, symmetric):
    compare(quadratic_results(ops, x, A, g, symmetric), 2 * A.shape[-1])


def kernels(gpu):
    return {name for name, _, _ in gpu.launches()}


def operands(dtype, b, m, n):
    return tuple(draw(shape, dtype) for shape in ((b, m), (b, m, n), (b, n), (b,)))


# --------------------------------------------------------------------------------------------
# Sizes, dtypes and layouts

SMALL_SHAPES = ((3, 1, 1), (5, 2, 2), (2, 7, 3), (2, 2, 7), (3, 16, 16), (2, 31, 32), (1, 32, 31))
SINGLE_SHAPES = ((2, 33, 32), (2, 1, 33), (2, 64, 65), (1, 65, 64), (2, 40, 2), (1, 129, 64))
# From so many rows and columns on, a square matrix is cut into several tiles.
SEVERAL_FROM = {
    torch.float64: 182,
    torch.float32: 257,
    torch.bfloat16: 363,
    torch.float16: 363,
    torch.complex128: 129,
    torch.complex64: 182,
}
# Every dtype in its plain layouts; every layout in one dtype of each size.
LARGE = [
    *((dtype, layout) for dtype in FLOATING for layout in (by_rows, by_columns)),
    *((dtype, layout) for dtype in (torch.float32, torch.bfloat16) for layout in LAYOUTS[2:]),
    (torch.complex64, sliced),
]
EACH_LARGE = pytest.mark.parametrize(
    ("dtype", "layout"), LARGE, ids=lambda value: getattr(value, "__name__", str(value))
)


@EACH_DTYPE
@EACH_LAYOUT
def test_bilinear_up_to_32(emulated, dtype, layout):  # noqa: F811
    for b, m, n in SMALL_SHAPES:
        y, A, x, g = operands(dtype, b, m, n)
        check_bilinear(emulated.ops, y, layout(A), x, g)
    assert kernels(emulated) == SMALL


@EACH_DTYPE
@EACH_LAYOUT
def test_bilinear_of_one_tile(emulated, dtype, layout):  # noqa: F811
    for b, m, n in SINGLE_SHAPES:
        y, A, x, g = operands(dtype, b, m, n)
        check_bilinear(emulated.ops, y, layout(A), x, g)
    assert kernels(emulated) == SINGLE | {"form_outer"}


@EACH_LARGE
def test_bilinear_of_several_tiles(emulated, dtype, layout):  # noqa: F811
    n = SEVERAL_FROM[dtype]
    y, A, x, g = operands(dtype, 1, n + 3, n)
    check_bilinear(emulated.ops, y, layout(A), x, g)
    assert kernels(emulated) == SEVERAL
    # Along the contiguous dimension; that is one tile where A lies by columns.
    y, A, x, g = operands(dtype, 2, 40, 600)
    check_bilinear(emulated.ops, y, layout(A), x, g)
    assert kernels(emulated) <= SEVERAL


EACH_KIND = pytest.mark.parametrize("symmetric", (False, True), ids=("general", "symmetric"))


@EACH_DTYPE
@EACH_LAYOUT
@EACH_KIND
def test_quadratic(emulated, dtype, layout, symmetric):  # noqa: F811
    for n in (1, 2, 7, 31, 32, 33, 65):
        x, A, g = draw((2, n), dtype), draw((2, n, n), dtype), draw((2,), dtype)
        A = layout(lower_only(A) if symmetric else A)
        check_quadratic(emulated.ops, x, A, g, symmetric)
        assert kernels(emulated) == (SMALL if n <= 32 else SINGLE | {"form_outer"})


@EACH_LARGE
@EACH_KIND
def test_large_quadratic(emulated, dtype, layout, symmetric):  # noqa: F811
    """The largest matrix that is one tile, and the smallest that is cut."""
    n = SEVERAL_FROM[dtype]
    for size, expected in ((n - 1, SINGLE | {"form_outer"}), (n, SEVERAL)):
        x, A, g = draw((1, size), dtype), draw((1, size, size), dtype), draw((1,), dtype)
        A = layout(lower_only(A) if symmetric else A)
        check_quadratic(emulated.ops, x, A, g, symmetric)
        assert kernels(emulated) == expected


def test_symmetric_of_many_tiles(emulated):  # noqa: F811
    """Tiles beside the diagonal, on it and beyond it, in both directions."""
    for layout in (by_rows, by_columns):
        x, A, g = (draw(shape, torch.float32) for shape in ((1, 1050), (1, 1050, 1050), (1,)))
        check_quadratic(emulated.ops, x, layout(lower_only(A)), g, symmetric=True)
        assert kernels(emulated) == SEVERAL


def test_which_kernels_run(emulated):  # noqa: F811
    """One launch where no sum goes through working memory, and da of a small matrix in the same."""
    ops = emulated.ops
    for (b, m, n), expected in {
        (3, 32, 32): ["form_small"],
        (3, 33, 32): ["form_tiles"],
        (1, 256, 256): ["form_tiles"],
        (1, 257, 256): ["form_tiles", "form_finish", "form_outer"],
        (1, 4, 600): ["form_tiles", "form_finish", "form_outer"],
    }.items():
        y, A, x, g = operands(torch.float32, b, m, n)
        emulated.launches()
        ops.bilinear_backward(g, y, A, x, True, True, True)
        assert [name for name, _, _ in emulated.launches()] == expected
        ops.bilinear_backward(g, y, A, x, False, True, False)
        assert [name for name, _, _ in emulated.launches()] == [
            "form_small" if max(m, n) <= 32 else "form_outer"
        ]
        ops._bilinear_products(y, A, x, True, True)
        assert [name for name, _, _ in emulated.launches()] == expected[:2]


def test_blocks_are_shared_out(emulated):  # noqa: F811
    """One large matrix, many small ones and a few long ones all make many blocks or few threads."""
    emulated.set_device(9, 0, 132)
    y, A, x, _ = operands(torch.float32, 1, 1024, 1024)
    emulated.ops.bilinear(y, A, x)
    assert emulated.launches()[0] == ("form_tiles", 64, 256)
    y, A, x, _ = operands(torch.float32, 4096, 16, 16)
    emulated.ops.bilinear(y, A, x)
    assert emulated.launches() == [("form_small", 512, 128)]
    y, A, x, _ = operands(torch.float32, 8, 300, 20)
    emulated.ops.bilinear(y, A, x)
    assert emulated.launches() == [("form_tiles", 8, 256)]
    y, A, x, _ = operands(torch.float32, 2200, 1, 40)
    emulated.ops.bilinear(y, A, x)
    assert emulated.launches() == [("form_tiles", 550, 128)]


@EACH_DTYPE
def test_tall_and_narrow(emulated, dtype):  # noqa: F811
    """More rows than have their part of y in shared memory at a time."""
    for m, n in ((3000, 5), (5, 1500)):
        y, A, x, g = operands(dtype, 1, m, n)
        check_bilinear(emulated.ops, y, A, x, g)


# --------------------------------------------------------------------------------------------
# Strides and batches


@EACH_DTYPE
@pytest.mark.parametrize(("m", "n"), ((17, 23), (17, 40), (5, 530)))
def test_strided_and_broadcast_vectors(emulated, dtype, m, n):  # noqa: F811
    y, A, x = draw((3, 1, m), dtype), draw((3, 2, m, n), dtype), draw((n,), dtype)
    y, x, g = sliced(y).expand(3, 2, m), sliced(x).expand(3, 2, n), draw((3, 2), dtype)
    assert y.stride()[-1] == 2
    check_bilinear(emulated.ops, y, A, x, g)
    check_bilinear(emulated.ops, y, A, x, draw((1,), dtype).expand(3, 2))
    check_bilinear(emulated.ops, y, A.transpose(0, 1).contiguous().transpose(0, 1), x, g)
    assert kernels(emulated) <= SMALL | SEVERAL


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.complex64), ids=str)
@pytest.mark.parametrize(("m", "n"), ((3, 5), (33, 40), (5, 520)))
def test_many_batch_dimensions(emulated, dtype, m, n):  # noqa: F811
    """More than the kernels hold after merging, with every operand in an order of its own."""
    batch = (2, 1, 2, 2, 2, 2)
    y = draw((*batch, m), dtype).transpose(0, 5).contiguous().transpose(0, 5)
    A = draw((*batch, m, n), dtype).transpose(2, 4).contiguous().transpose(2, 4)
    x = draw((2, 1, 1, 2, 1, 2, n), dtype).expand(*batch, n)
    g = draw(batch, dtype).transpose(3, 0).contiguous().transpose(3, 0)
    check_bilinear(emulated.ops, y, A, x, g)
    assert "fill_table" in kernels(emulated)
    if m == 33:
        A = A[..., :33]
        check_quadratic(emulated.ops, y, lower_only(A), g, symmetric=True)


def test_the_last_block_is_not_full(emulated):  # noqa: F811
    """Items that share blocks, in numbers that leave some of the last block's threads without."""
    for b, m, n in ((1, 5, 5), (9, 5, 5), (37, 3, 3), (37, 40, 6), (19, 33, 33), (50, 1, 40)):
        emulated.set_device(8, 0, 1)
        y, A, x, g = operands(torch.float32, b, m, n)
        check_bilinear(emulated.ops, y, A, x, g)
        if m == n:
            check_quadratic(emulated.ops, x, lower_only(A), g, symmetric=True)


@EACH_DTYPE
def test_items_that_begin_anywhere(emulated, dtype):  # noqa: F811
    """The first matrix and every row are aligned to 16 bytes; the next matrix is not."""
    y, A, x, g = operands(dtype, 2, 40, 48)
    apart = A.new_empty(2, 40 * 48 + 1).as_strided(A.shape, (40 * 48 + 1, 48, 1)).copy_(A)
    check_bilinear(emulated.ops, y, apart, x, g)


# --------------------------------------------------------------------------------------------
# Same bits

BIT_SHAPES = ((5, 3, 3), (3, 32, 32), (20, 33, 33), (1, 300, 20), (1, 7, 1100), (1, 260, 260))


def everything(ops, y, A, x, g):
    results = [got for _, got, _, _ in bilinear_results(ops, y, A, x, g)]
    if y.shape == x.shape:
        for symmetric in (False, True):
            results += [got for _, got, _, _ in quadratic_results(ops, x, A, g, symmetric)]
    return results


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.complex64), ids=str)
@pytest.mark.parametrize("shape", BIT_SHAPES, ids=str)
def test_same_bits_in_any_order_on_any_device(emulated, dtype, shape):  # noqa: F811
    y, A, x, g = operands(dtype, *shape)
    expected = everything(emulated.ops, y, A, x, g)
    for order, multiprocessors in zip(ORDERS, (1, 4, 132), strict=True):
        emulated.set_order(order)
        emulated.set_device(9, 0, multiprocessors)
        assert all(map(torch.equal, everything(emulated.ops, y, A, x, g), expected)), order


@pytest.mark.parametrize("shape", BIT_SHAPES, ids=str)
def test_same_bits_in_a_batch_and_alone(emulated, shape):  # noqa: F811
    y, A, x, g = operands(torch.float32, *shape)
    together = everything(emulated.ops, y, A, x, g)
    alone = [everything(emulated.ops, y[i], A[i], x[i], g[i]) for i in range(shape[0])]
    for whole, parts in zip(together, zip(*alone, strict=True), strict=True):
        assert torch.equal(whole, torch.stack(parts))


# --------------------------------------------------------------------------------------------
# Infinities and NaNs


def kinds(t):
    t = t.double()
    return torch.where(t.isnan(), 2.0, torch.where(t.isinf(), t.sign(), 0.0))


def special_places(n):
    return range(0, n, 3) if n < 40 else (0, n // 2 + 1, n - 1)


@pytest.mark.parametrize("special", (torch.inf, -torch.inf, torch.nan))
@pytest.mark.parametrize("layout", (by_rows, by_columns, padded))
@EACH_KIND
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_special_numbers_in_a_quadratic_form(emulated, dtype, symmetric, special, layout):  # noqa: F811
    """Zeros that stand for nothing must neither make a NaN of an infinity nor hide one."""
    for n in (1, 5, 16, 19, 40, SEVERAL_FROM[dtype]):
        A, x = torch.rand(n, n).double() + 0.5, torch.rand(n).double() + 0.5
        for where, in_vector in product(special_places(n), (False, True)):
            B, z = A.clone(), x.clone()
            if in_vector:
                z[where] = special
            else:
                B[n - 1, where] = special
            full = B.tril() + B.tril(-1).mT if symmetric else B
            stored = layout((lower_only(B) if symmetric else B).to(dtype))
            alpha, p = emulated.ops._quadratic_products(z.to(dtype), stored, symmetric=symmetric)
            value = emulated.ops.quadratic(z.to(dtype), stored, symmetric=symmetric)
            assert kinds(value) == kinds(alpha) == kinds(z @ (full @ z)), (n, where, in_vector)
            assert torch.equal(kinds(p), kinds(full @ z + full.mT @ z)), (n, where, in_vector)


def test_infinity_where_a_tile_has_no_more_of_a_row(emulated):  # noqa: F811
    """Tiles of 48 x 512: some cross the diagonal in a part of their rows, or of their columns."""
    A, x = torch.rand(2500, 2500) + 0.5, torch.rand(2500) + 0.5
    x[500] = torch.inf
    for layout in (by_rows, by_columns):
        alpha = emulated.ops.quadratic(x, layout(lower_only(A)), symmetric=True)
        assert emulated.launches()[0] == ("form_tiles", 53 * 5, 256)
        assert alpha == torch.inf


@pytest.mark.parametrize("special", (torch.inf, -torch.inf, torch.nan))
@pytest.mark.parametrize("layout", (by_rows, by_columns, padded))
@pytest.mark.parametrize("dtype", (torch.float64, torch.float32, torch.bfloat16), ids=str)
def test_special_numbers_in_a_bilinear_form(emulated, dtype, special, layout):  # noqa: F811
    for m, n in ((3, 5), (19, 7), (33, 20), (5, 41), (40, 530)):
        plain = [torch.rand(shape).double() + 0.5 for shape in ((m,), (m, n), (n,))]
        for which, end in product(range(3), (False, True)):
            y, A, x = (t.clone() for t in plain)
            (y, A, x)[which].view(-1)[-1 if end else 0] = special
            low = (y.to(dtype), layout(A.to(dtype)), x.to(dtype))
            g = torch.ones((), dtype=dtype)
            alpha, p, q = emulated.ops._bilinear_products(*low, True, True)
            _, dA, _ = emulated.ops.bilinear_backward(g, *low, True, True, True)
            assert kinds(alpha) == kinds(y @ (A @ x)), (m, n, which)
            assert torch.equal(kinds(p), kinds(A @ x)), (m, n, which)
            assert torch.equal(kinds(q), kinds(y @ A)), (m, n, which)
            assert torch.equal(kinds(dA), kinds(torch.outer(y, x))), (m, n, which)


@pytest.mark.parametrize("n", (5, 40, 520))
def test_complex_products_keep_infinities(emulated, n):  # noqa: F811
    """p and q are not multiplied by a g that is not there: 1 is no neutral factor of inf + 0i."""
    y, A, x, _ = operands(torch.complex64, 1, 3, n)
    A[0, 1, 2] = torch.inf
    A[0, 1].imag.fill_(0)
    x.imag.fill_(0)
    _, p, _ = emulated.ops._bilinear_products(y, A, x, True, True)
    assert p[0, 1].real.isinf()
    assert p[0, 1].imag.isnan()  # by the products with x, whose imaginary part is a zero
    assert p[0, 0].isfinite()
    assert p[0, 2].isfinite()


# --------------------------------------------------------------------------------------------
# Precision


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("n", (16, 100, 600))
def test_low_precision_sums_in_float32(emulated, dtype, n):  # noqa: F811
    """Products leave in float32; what is rounded is rounded once."""
    y, A, x, g = operands(dtype, 1, n, n)
    alpha, p, q = emulated.ops._bilinear_products(y, A, x, True, True)
    assert p.dtype == q.dtype == torch.float32
    assert alpha.dtype == dtype
    bound = A.float().abs() @ x.float().abs().unsqueeze(-1)
    error = (p - times(A.double(), x.double())).abs()
    assert bool((error <= 4 * n * torch.finfo(torch.float32).eps * bound.squeeze(-1)).all())
    dy, _, _ = emulated.ops.bilinear_backward(g, y, A, x, True, False, True)
    assert torch.equal(dy, (g.float().unsqueeze(-1) * p).to(dtype))
