"""The gemm for AMX, on an emulation of its tiles and of AVX-512: every rest, stride and cut."""

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from emulated import load_library
from emulated_cpu import CPU, FOLDER, compile_cpu

from matcalc_ext import _C

pytestmark = pytest.mark.skipif(
    "avx2" not in _C.cpu_isas(), reason="the emulation is written for AVX2"
)

SIDE = 16


@cache
def amx():
    sources = [FOLDER / "module.cpp", CPU / "gemm.cpp", CPU / "packing.cpp"]
    return load_library(*compile_cpu("_amx", [*sources, CPU / "isa" / "gemm_amxbf16.cpp"]))


def bits_of(values):
    """Rounded to bfloat16, nearest even."""
    wide = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
    return ((wide + 0x7FFF + ((wide >> 16) & 1)) >> 16).astype(np.uint16)


def values_of(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def matrix(rng, rows, cols, layout):
    """Bits of a matrix in one of the layouts, amid NaNs, which no kernel may read."""
    values = bits_of(rng.standard_normal((rows, cols)))
    if layout == "transposed":
        held = np.full((cols + 2, rows + 3), 0x7FC0, np.uint16)
        view = held[1:-1, 1:-2].T
    elif layout == "strided":
        held = np.full((2 * rows + 2, 3 * cols + 1), 0x7FC0, np.uint16)
        view = held[1:-1:2, 1::3]
    else:
        held = np.full((rows + 2, cols + 3), 0x7FC0, np.uint16)
        view = held[1:-1, 1:-2]
    view[:] = values
    return view


def check(a, b, bias=None, dtype=np.float32, cut=None):
    """The product, whole or cut into parts, beside which nothing may be written."""
    (m, k), n = a.shape, b.shape[1]
    held = np.full((m + 2, n + 3), 7, dtype)
    c = held[1:-1, 1:-2]
    rows, cols = cut or ((0, m), (0, n))
    for m0, m1 in pairwise(rows):
        for n0, n1 in pairwise(cols):
            amx().multiply(a, b, c, bias, m0, m1, n0, n1, None)
    assert not amx().configured()  # released
    expected = values_of(a) @ values_of(b)
    bound = np.abs(values_of(a)) @ np.abs(values_of(b)) * (k + 2) * 2.0**-24
    if bias is not None:
        expected = expected + values_of(bias)
        bound = bound + np.abs(values_of(bias)) * 2.0**-23
    got = c if dtype == np.float32 else values_of(c)
    if dtype == np.uint16:
        bound = bound + np.abs(expected) * 2.0**-8
    assert np.all(np.abs(got - expected) <= bound)
    held[1:-1, 1:-2] = 7
    assert np.all(held == 7)
    return got


SIZES = (1, 2, 15, 16, 17, 31, 32, 33, 50)


@pytest.mark.parametrize("m", SIZES)
@pytest.mark.parametrize("n", SIZES)
def test_every_rest(m, n):
    rng = np.random.default_rng(m * 100 + n)
    for k in (1, 2, 31, 32, 33, 65):
        check(matrix(rng, m, k, "plain"), matrix(rng, k, n, "plain"))


@pytest.mark.parametrize("layout_a", ("plain", "transposed", "strided"))
@pytest.mark.parametrize("layout_b", ("plain", "transposed", "strided"))
def test_every_layout(layout_a, layout_b):
    rng = np.random.default_rng(7)
    for m, k, n in ((33, 35, 49), (16, 32, 16), (40, 64, 32), (5, 3, 7), (64, 1, 64)):
        check(matrix(rng, m, k, layout_a), matrix(rng, k, n, layout_b))


@pytest.mark.parametrize("dtype", (np.float32, np.uint16))
@pytest.mark.parametrize("with_bias", (False, True))
def test_several_blocks_of_depth_and_columns(dtype, with_bias):
    """A block holds 2048 of the depth, or up to a third more; the buffer 512 rows."""
    rng = np.random.default_rng(11)
    deep = ((20, 2740, 40), (40, 4128, 33), (530, 2740, 3))
    for m, k, n in (*deep, (20, 1100, 40), (18, 70, 1060), (530, 20, 33), (17, 513, 1025)):
        bias = bits_of(rng.standard_normal(n)) if with_bias else None
        check(matrix(rng, m, k, "plain"), matrix(rng, k, n, "transposed"), bias, dtype)


@pytest.mark.parametrize("wider", (0, 6))
@pytest.mark.parametrize("k", (32, 640, 2752))
def test_rows_in_place(k, wider):
    """Whole steps of the depth are read where they lie, but for the rest of the rows."""
    rng = np.random.default_rng(k)
    for m, n in ((32, 16), (70, 33), (70, 1060)):  # one block of columns, or several
        held = np.full((m, k + wider), 0x7FC0, np.uint16)
        held[:, :k] = bits_of(rng.standard_normal((m, k)))
        check(held[:, :k], matrix(rng, k, n, "plain"), dtype=np.uint16)


def test_rows_that_overlap():
    rng = np.random.default_rng(37)
    windows = np.lib.stride_tricks.sliding_window_view(bits_of(rng.standard_normal(200)), 64)
    for step in (1, 2, 4):
        check(windows[::step][:40], matrix(rng, 64, 33, "plain"))


def check_generated(a, s, b, m_dims):
    """(A * S) B, with A and S of m's and k's dimensions, B of k's and n."""
    m, k, n = a.shape[:m_dims], b.shape[:-1], b.shape[-1]
    c = np.zeros((*m, n), np.float32)
    amx().multiply(a, b, c, None, 0, int(np.prod(m)), 0, n, s)
    products = values_of(bits_of(values_of(a) * values_of(s))).reshape(-1, int(np.prod(k)))
    factors = values_of(b).reshape(-1, n)
    bound = np.abs(products) @ np.abs(factors) * (len(factors) + 2) * 2.0**-24
    assert np.all(np.abs(c.reshape(-1, n) - products @ factors) <= bound)


@pytest.mark.parametrize("batch", (1, 5, 32, 45))
@pytest.mark.parametrize(("outer", "inner"), ((1, 32), (3, 64), (70, 32), (7, 96)))
def test_a_generated_operand_with_one_factor_for_a_run(batch, outer, inner):
    """x1[b, i] x2[b, j] along the depth (i, j), of any number of blocks."""
    rng = np.random.default_rng(29)
    x1, x2 = matrix(rng, batch, outer, "strided"), matrix(rng, batch, inner, "plain")
    shape = (batch, outer, inner)
    a = np.broadcast_to(x2[:, None, :], shape)
    s = np.broadcast_to(x1[:, :, None], shape)
    w = bits_of(rng.standard_normal((40, outer, inner)))
    check_generated(a, s, np.moveaxis(w, 0, -1), 1)


@pytest.mark.parametrize("batch", (1, 31, 64, 75))
@pytest.mark.parametrize(("outer", "inner"), ((1, 16), (3, 48), (5, 32)))
def test_a_generated_operand_with_one_factor_for_neighbours(batch, outer, inner):
    """g[b, o] x1[b, i] in the rows (o, i), along the depth b."""
    rng = np.random.default_rng(31)
    g, x1 = matrix(rng, batch, outer, "strided"), matrix(rng, batch, inner, "plain")
    shape = (outer, inner, batch)
    a = np.broadcast_to(x1.T[None], shape)
    s = np.broadcast_to(g.T[:, None], shape)
    check_generated(a, s, matrix(rng, batch, 40, "plain"), 2)


@pytest.mark.parametrize("inner", (1, 16, 31, 40))
def test_infinity_in_a_generated_operand(inner):
    """As the factor of a run that ends amid a step of the depth: its padding stays zero."""
    a, b = bits_of(np.ones((3, inner))), bits_of(np.ones((inner, 5)))
    s = np.broadcast_to(bits_of([[1.0], [np.inf], [2.0]]), a.shape)
    c = np.zeros((3, 5), np.float32)
    amx().multiply(a, b, c, None, 0, 3, 0, 5, s)
    assert np.array_equal(c, np.full((3, 5), inner) * [[1.0], [np.inf], [2.0]])


def test_an_empty_sum_is_the_bias():
    rng = np.random.default_rng(13)
    bias = bits_of(rng.standard_normal(20))
    check(np.zeros((3, 0), np.uint16), np.zeros((0, 20), np.uint16), bias)
    check(np.zeros((3, 0), np.uint16), np.zeros((0, 20), np.uint16))


def test_the_same_bits_however_it_is_cut():
    rng = np.random.default_rng(17)
    a, b = matrix(rng, 70, 600, "plain"), matrix(rng, 600, 90, "plain")
    whole = check(a, b).copy()
    cut = check(a, b, cut=((0, 32, 33, 70), (0, 1, 48, 90)))
    assert np.array_equal(whole, cut)


def test_no_more_tiles_than_needed():
    """Rests of up to a tile leave the second row or column of tiles out."""
    rng = np.random.default_rng(19)
    amx().products()
    for m, n, tiles in ((16, 16, 1), (17, 16, 2), (16, 17, 2), (32, 32, 4), (33, 16, 3)):
        check(matrix(rng, m, 64, "plain"), matrix(rng, 64, n, "plain"))
        assert amx().products() == 2 * tiles


def test_not_a_number_and_infinity_stay_where_they_are():
    rng = np.random.default_rng(23)
    a, b = bits_of(rng.standard_normal((20, 40))), bits_of(rng.standard_normal((40, 20)))
    a[3, 5], b[7, 11] = 0x7FC0, 0x7F80  # NaN, infinity
    c = np.zeros((20, 20), np.float32)
    amx().multiply(a, b, c, None, 0, 20, 0, 20, None)
    assert np.array_equal(np.isnan(c), np.arange(20)[:, None] * np.ones(20) == 3)
    assert np.array_equal(np.isinf(c[:, 11]), np.arange(20) != 3)
    assert np.all(np.isfinite(np.delete(np.delete(c, 3, 0), 11, 1)))
