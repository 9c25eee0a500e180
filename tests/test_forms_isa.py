"""The per-item forms (a matrix of its own for each batch item) under each instruction set."""

import pytest
import torch
from reference import FLOATING, assert_near, draw, plain_bilinear, sliced, to_double

import matcalc_ext

# Around the widths of every vector register and of the row groups, tiles and chunks.
SIZES = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 257)
SHAPES = (
    *((2 if n <= 100 else 1, n, n) for n in SIZES),
    (3, 1, 100),
    (3, 100, 1),
    (2, 5, 65),
    (2, 33, 7),
    (1, 300, 450),  # more than one block
    (2, 3, 9001),  # more than one block of columns
)
SQUARES = (*SIZES, 600)  # 600: more than one block of rows


def by_rows(A):
    return A.contiguous()


def by_columns(A):
    return A.mT.contiguous().mT


def padded(A):
    wide = A.new_full((*A.shape[:-1], A.shape[-1] + 3), torch.nan)
    wide[..., : A.shape[-1]] = A
    return wide[..., : A.shape[-1]]


LAYOUTS = (by_rows, by_columns, padded, sliced)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def bilinear_all(y, A, x, g):
    """The value, and the gradients of y and x together and one at a time."""
    backward = torch.ops.matcalc_ext.bilinear_backward
    dy, _, dx = backward(g, y, A, x, True, False, True)
    return (
        matcalc_ext.bilinear(y, A, x),
        dy,
        dx,
        backward(g, y, A, x, True, False, False)[0],
        backward(g, y, A, x, False, False, True)[2],
    )


def quadratic_all(x, A, g, symmetric):
    dx, _ = torch.ops.matcalc_ext.quadratic_backward(g, x, A, symmetric, True, False)
    return matcalc_ext.quadratic(x, A, symmetric=symmetric), dx


def lower_only(A):
    """Not a number in every place that a symmetric form must not read."""
    upper = torch.ones(A.shape[-2:], dtype=torch.bool).triu(1)
    return A.masked_fill(upper, torch.nan)


def times(A, x):
    return (A @ x.unsqueeze(-1)).squeeze(-1)


def check_bilinear(y, A, x, g):
    terms = A.shape[-1] + A.shape[-2]
    wide = [to_double(t) for t in (y, A, x, g)]

    def plain(y, A, x, g):
        dy, dx = g.unsqueeze(-1) * times(A, x).conj(), g.unsqueeze(-1) * times(A.mT, y).conj()
        return plain_bilinear(y, A, x), dy, dx, dy, dx

    names = ("value", "dy", "dx", "dy alone", "dx alone")
    for name, got, expected, bound in zip(
        names, bilinear_all(y, A, x, g), plain(*wide), plain(*(t.abs() for t in wide)), strict=True
    ):
        assert_near(got, expected, bound, terms, name)


def check_quadratic(x, A, g, symmetric):
    wide = [to_double(t) for t in (x, A, g)]
    if symmetric:
        lower = wide[1].tril()
        wide[1] = lower + lower.tril(-1).mT

    def plain(x, A, g):
        return plain_bilinear(x, A, x), g.unsqueeze(-1) * times(A + A.mT, x).conj()

    for name, got, expected, bound in zip(
        ("value", "dx"),
        quadratic_all(x, A, g, symmetric),
        plain(*wide),
        plain(*(t.abs() for t in wide)),
        strict=True,
    ):
        assert_near(got, expected, bound, 2 * A.shape[-1], name)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_bilinear(isa, dtype, layout):
    for b, m, n in SHAPES:
        y, A, x, g = (draw(shape, dtype) for shape in ((b, m), (b, m, n), (b, n), (b,)))
        check_bilinear(y, layout(A), x, g)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("symmetric", [False, True], ids=["general", "symmetric"])
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_quadratic(isa, dtype, symmetric, layout):
    for n in SQUARES:
        b = 2 if n <= 100 else 1
        x, A, g = (draw(shape, dtype) for shape in ((b, n), (b, n, n), (b,)))
        check_quadratic(x, layout(lower_only(A) if symmetric else A), g, symmetric)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_all_gradients_of_small_forms(isa, dtype, layout):
    """Around the sizes that are kept in registers, whose outputs one pass makes all together."""
    backward = torch.ops.matcalc_ext.bilinear_backward
    for m, n in ((1, 1), (2, 3), (7, 4), (8, 8), (13, 16), (16, 9), (33, 17), (64, 32), (65, 33)):
        y, A, x, g = (draw(s, dtype) for s in ((4, 3, m), (4, 3, m, n), (4, 3, n), (4, 3)))
        A = layout(A)
        wide = [to_double(t).conj() for t in (y, A, x)]
        wide.append(to_double(g))

        def plain(y, A, x, g):
            g = g.unsqueeze(-1)
            return (
                g * times(A, x),
                g.unsqueeze(-1) * y.unsqueeze(-1) * x.unsqueeze(-2),
                g * times(A.mT, y),
            )

        expected, bounds = plain(*wide), plain(*(t.abs() for t in wide))
        stepping = A.transpose(0, 1).clone(memory_format=torch.contiguous_format).transpose(0, 1)
        for args in ((y, A, x), (sliced(y), A, sliced(x)), (y, stepping, x)):
            got = backward(g, *args, True, True, True)
            for name, one, two, bound in zip("yAx", got, expected, bounds, strict=True):
                assert_near(one, two, bound, m + n, f"d{name} of {m} x {n}")


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_strided_vectors_and_broadcast_batch(isa, dtype):
    y, A, x, g = (draw(s, dtype) for s in ((3, 1, 17), (3, 2, 17, 33), (33,), (3, 2)))
    y, x = sliced(y), sliced(x)
    # One gradient per item, from y and x as views that repeat.
    check_bilinear(y.expand(3, 2, 17), A, x.expand(3, 2, 33), g)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_bits_for_any_number_of_threads(isa, threads, dtype, layout):
    """One large item is shared out by blocks, many small ones by items."""
    for b, m, n in ((1, 600, 500), (3, 500, 600), (400, 16, 16), (1, 20, 9001)):
        y, A, x, g = (draw(shape, dtype) for shape in ((b, m), (b, m, n), (b, n), (b,)))
        A = layout(A)
        results = []
        for count in (1, 2, 3):
            threads(count)
            out = bilinear_all(y, A, x, g)
            if m == n:
                out += quadratic_all(x, A, g, False) + quadratic_all(x, A, g, True)
            results.append(out)
        for other in results[1:]:
            assert all(map(torch.equal, results[0], other)), (b, m, n)


@pytest.mark.parametrize("symmetric", [False, True], ids=["general", "symmetric"])
def test_same_bits_in_a_batch_and_alone(isa, symmetric):
    for n in (16, 100, 700):
        x, A, g = draw((9, n), torch.float32), draw((9, n, n), torch.float32), torch.ones(9)
        together = quadratic_all(x, A, g, symmetric)
        alone = [quadratic_all(x[i], A[i], g[i], symmetric) for i in range(9)]
        for whole, parts in zip(together, zip(*alone, strict=True), strict=True):
            assert torch.equal(whole, torch.stack(parts)), n


@pytest.mark.parametrize("special", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("symmetric", [False, True], ids=["general", "symmetric"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_special_numbers_go_where_plain_arithmetic_takes_them(isa, dtype, symmetric, special):
    """A vector register's unused lanes, being zeros, must not turn an infinity into a NaN."""

    def kinds(t):
        return torch.where(t.isnan(), 2.0, torch.where(t.isinf(), t.sign().double(), 0.0))

    for n in (1, 5, 16, 19, 70):
        A, x = torch.rand(n, n).double() + 0.5, torch.rand(n).double() + 0.5
        for where in range(0, n, 3):
            for in_vector in (False, True):
                B, z = A.clone(), x.clone()
                if in_vector:
                    z[where] = special
                else:
                    B[n - 1, where] = special
                full = B.tril() + B.tril(-1).mT if symmetric else B
                value, dx = quadratic_all(
                    z.to(dtype), B.to(dtype), torch.ones((), dtype=dtype), symmetric
                )
                assert kinds(value.double()) == kinds(z @ (full @ z)), (n, where)
                assert torch.equal(kinds(dx.double()), kinds(full @ z + full.mT @ z)), (n, where)
