"""The tensor-core gemm, run under the emulation: its numbers, its loaders, its tiles and its maps.

Every test says which kernel it means and looks whether it ran. The emulation's ldmatrix, mma and
cp.async follow the tables of the PTX ISA; data that has not been waited for is NaN there.
"""

import shlex
import subprocess
from pathlib import Path

import pytest
import torch
from emulated import CXX, ORDERS, emulated  # noqa: F401
from reference import (
    C,
    assert_near,
    draw,
    offset,
    plain_linear,
    plain_nn_bilinear,
    sliced,
    to_double,
    transposed,
)

LOW = (torch.bfloat16, torch.float16)
NAMES = {torch.bfloat16: "bf16", torch.float16: "f16", torch.float32: "tf32", torch.float64: "f64"}
EACH = pytest.mark.parametrize("dtype", NAMES, ids=NAMES.get)
EACH_LOW = pytest.mark.parametrize("dtype", LOW, ids=NAMES.get)
TF32_EPS = 2.0**-10
NAN, INF = float("nan"), float("inf")


def kernels(emulated):  # noqa: F811
    return [name for name, _, _ in emulated.launches()]


def near(got, expected, bound, terms, tf32=False):
    """As reference.assert_near, with one rounding of each factor to TF32 allowed."""
    if tf32 and got.dtype == torch.float32:
        tolerance = C * (terms * torch.finfo(got.dtype).eps + TF32_EPS) * bound
        assert (to_double(got) - expected).abs().le(tolerance).all()
        # And it is not less than that: the product was rounded to TF32, not computed in float32.
        assert not (to_double(got) - expected).abs().le(tolerance / 1000).all()
    else:
        assert_near(got, expected, bound, terms)


def check_matmul(emulated, a, b, *names):  # noqa: F811
    """The product, and which kernels made it."""
    emulated.set_tf32(a.dtype == torch.float32)
    emulated.launches()
    got = emulated.ops.matmul(a, b)
    assert kernels(emulated) == list(names)
    wide = to_double(a), to_double(b)
    bound = wide[0].abs() @ wide[1].abs()
    near(got, wide[0] @ wide[1], bound, a.shape[-1], tf32=True)
    return got


def aligned(t):
    """Rows, or columns of a transposed matrix, at multiples of 16 bytes, in a sea of NaNs."""
    step = 16 // t.element_size()
    transpose = t.stride(-1) != 1
    t = t.mT if transpose else t
    rows, cols = t.shape[-2:]
    big = t.new_full((*t.shape[:-2], rows + 2, -(-cols // step) * step + 2 * step), NAN)
    view = big[..., 1 : rows + 1, step : step + cols].copy_(t)
    return view.mT if transpose else view


# --------------------------------------------------------------------------------------------
# Maps


def test_maps(tmp_path):
    """Every number has one place in shared memory, and no access meets a bank twice."""
    source = Path(__file__).parent / "maps" / "mma_maps.cpp"
    program = tmp_path / "mma_maps"
    subprocess.run([*CXX, "-std=c++20", "-O1", str(source), "-o", str(program)], check=True)
    done = subprocess.run([str(program)], check=True, capture_output=True, text=True)
    assert done.stdout == "", shlex.quote(done.stdout[:2000])


# --------------------------------------------------------------------------------------------
# Plain operands

SIZES = ((64, 64, 64), (63, 96, 33), (129, 64, 31), (97, 127, 17), (57, 130, 128))
MORE_SIZES = ((65, 96, 65), (63, 31, 128), (33, 130, 66))  # in tiles less than half full
MAJORS = [(a, b) for a in ("rows", "columns") for b in ("rows", "columns")]


@EACH
@pytest.mark.parametrize("majors", MAJORS, ids="-".join)
def test_plain_small(emulated, dtype, majors):  # noqa: F811
    """Every layout, sizes around the tile, NaNs all around the operands."""
    for m, n, k in SIZES + (MORE_SIZES if dtype != torch.float64 else ()):
        a, b = draw((m, k), dtype), draw((k, n), dtype)
        a = aligned(transposed(a) if majors[0] == "columns" else a)
        b = aligned(transposed(b) if majors[1] == "columns" else b)
        emulated.set_device(8, 0, multiprocessors=64)
        check_matmul(emulated, a, b, f"mma_{NAMES[dtype]}_64")


@EACH
@pytest.mark.parametrize("majors", MAJORS, ids="-".join)
@pytest.mark.parametrize("cols", [128, 256])
def test_plain_large(emulated, dtype, majors, cols):  # noqa: F811
    """Tiles of 128 x 128, and of 128 x 256, which float64 does not have."""
    emulated.set_device(8, 0, multiprocessors=1)
    tile = min(cols, 128) if dtype == torch.float64 else cols
    for m, n, k in ((128, cols, 64), (97, cols - 1, 33)):
        a, b = draw((m, k), dtype), draw((k, n), dtype)
        a = aligned(transposed(a) if majors[0] == "columns" else a)
        b = aligned(transposed(b) if majors[1] == "columns" else b)
        check_matmul(emulated, a, b, f"mma_{NAMES[dtype]}_{tile}")


@pytest.mark.parametrize("tile", [64, 128, 256])
def test_depths(emulated, tile):  # noqa: F811
    """The ring with fewer tiles than stages, as many, and more; every tail of a tile."""
    emulated.set_device(8, 0, multiprocessors=64 if tile == 64 else 1)
    cols = 200 if tile == 256 else 104
    for k in (*range(9, 17), 24, 32, 40, 56, 64, 65, 96, 97, 128, 160, 161, 200):
        a, b = aligned(draw((104, k), torch.bfloat16)), aligned(draw((k, cols), torch.bfloat16))
        check_matmul(emulated, a, b, f"mma_bf16_{tile}")


@EACH
def test_batches(emulated, dtype):  # noqa: F811
    name, general = f"mma_{NAMES[dtype]}_64", f"mma_{NAMES[dtype]}_general_64"
    emulated.set_device(8, 0, multiprocessors=64)
    a, b = draw((3, 64, 48), dtype), draw((3, 48, 64), dtype)
    check_matmul(emulated, a, b, name)
    check_matmul(emulated, transposed(a), transposed(b), name)
    check_matmul(emulated, a[:, :, 8:], b[:, 8:], name)
    # A batch dimension of one operand alone is more rows, or columns, of it.
    check_matmul(emulated, a[:1].expand(2, 64, 48), b[1:], general)
    check_matmul(emulated, draw((2, 1, 64, 32), dtype), draw((1, 3, 32, 64), dtype), general)
    a = draw((33, 2, 64), dtype).transpose(0, 1)  # (2, 33, 64): one step for neither dimension
    check_matmul(emulated, a, draw((64, 64), dtype), general)


def test_tiles_in_every_order_of_threads_have_the_same_bits(emulated):  # noqa: F811
    emulated.set_device(8, 0, multiprocessors=1)
    a, b = draw((97, 200), torch.bfloat16), draw((200, 248), torch.bfloat16)
    results = []
    for order in ORDERS:
        emulated.set_order(order)
        results += [check_matmul(emulated, a, b, "mma_bf16_256")]
    assert all(torch.equal(results[0], result) for result in results)


@EACH
@pytest.mark.parametrize("order", ORDERS)
def test_orders(emulated, dtype, order):  # noqa: F811
    """A barrier or a wait that is missing shows in one of them."""
    emulated.set_order(order)
    for multiprocessors in (1, 64):
        emulated.set_device(8, 0, multiprocessors=multiprocessors)
        tile = 128 if multiprocessors == 1 else 64
        a, b = draw((104, 112), dtype), draw((112, 104), dtype)
        check_matmul(emulated, a, b, f"mma_{NAMES[dtype]}_{tile}")
        tile = 128 if multiprocessors == 1 and dtype == torch.float32 else 64
        check_matmul(emulated, offset(a), transposed(b), f"mma_{NAMES[dtype]}_general_{tile}")


# --------------------------------------------------------------------------------------------
# General operands


@EACH
@pytest.mark.parametrize("layout", (offset, sliced), ids=lambda layout: layout.__name__)
def test_general(emulated, dtype, layout):  # noqa: F811
    """What a copy of 16 bytes cannot take: odd sizes and offsets, steps in both directions."""
    emulated.set_device(8, 0, multiprocessors=64)
    name = f"mma_{NAMES[dtype]}_general_64"
    for m, n, k in ((64, 64, 33), (63, 101, 40), (113, 161, 25)):
        a, b = draw((m, k), dtype), draw((k, n), dtype)
        for views in ((layout(a), b), (a, layout(b)), (layout(a), layout(b))):
            check_matmul(emulated, *views, name)
        check_matmul(emulated, layout(a.mT.contiguous()).mT, layout(b.mT.contiguous()).mT, name)


def test_general_large(emulated):  # noqa: F811
    emulated.set_device(8, 0, multiprocessors=1)
    for m, n, k in ((128, 128, 33), (129, 127, 49)):
        a, b = draw((m, k), torch.float32), draw((k, n), torch.float32)
        for one in (offset(a), transposed(offset(a))):
            for two in (offset(b), sliced(b), offset(b.mT.contiguous()).mT):
                check_matmul(emulated, one, two, "mma_tf32_general_128")


@EACH
def test_many_dimensions(emulated, dtype):  # noqa: F811
    """Rows in so many dimensions that their places come from a table."""
    shape = (2, 2, 2, 2, 2, 3, 40)
    a = draw(tuple(reversed(shape)), dtype).permute(*reversed(range(len(shape))))
    b = draw((40, 96), dtype)
    check_matmul(emulated, a, b, "fill_table", f"mma_{NAMES[dtype]}_general_64")


@EACH_LOW
def test_chunks_of_uneven_rows(emulated, dtype):  # noqa: F811
    """Rows whose steps are not all the same, but multiples of 16 bytes: loaded by chunks."""
    big = draw((5, 20, 64), dtype)
    a = big[:, 1:14, 8:56]  # 5 x 13 rows
    got = check_matmul(emulated, a, draw((48, 64), dtype), f"mma_{NAMES[dtype]}_general_64")
    assert got.shape == (5, 13, 64)


# --------------------------------------------------------------------------------------------
# Ops


@EACH
@pytest.mark.parametrize("bias_size", [96, 1])
def test_linear(emulated, dtype, bias_size):  # noqa: F811
    emulated.set_tf32(dtype == torch.float32)
    for rows in (97, 128):
        x, w, bias = draw((rows, 40), dtype), draw((96, 40), dtype), draw((bias_size,), dtype)
        emulated.launches()
        got = emulated.ops.linear(x, w, bias)
        assert kernels(emulated) == [f"mma_{NAMES[dtype]}_64"]
        wide = [to_double(t) for t in (x, w, bias)]
        bound = plain_linear(*(t.abs() for t in wide))
        near(got, plain_linear(*wide), bound, 41, tf32=True)


@EACH_LOW
@pytest.mark.parametrize("in2", [36, 35], ids=["chunks", "numbers"])
@pytest.mark.parametrize("multiprocessors", [1, 64])
def test_nn_bilinear(emulated, dtype, in2, multiprocessors):  # noqa: F811
    """A generated operand in each of the four products."""
    emulated.set_device(8, 0, multiprocessors=multiprocessors)
    x1, x2, w, bias = (draw(s, dtype) for s in ((66, 33), (66, in2), (66, 33, in2), (66,)))
    grad = draw((66, 66), dtype)
    leaves = [to_double(t).requires_grad_() for t in (x1, x2, w, bias)]
    plain = plain_nn_bilinear(*leaves)
    positive = [to_double(t).abs().requires_grad_() for t in (x1, x2, w, bias)]
    bound = plain_nn_bilinear(*positive)
    wanted = torch.autograd.grad(plain, leaves, to_double(grad))
    bounds = torch.autograd.grad(bound, positive, to_double(grad).abs())

    emulated.launches()
    got = emulated.ops.nn_bilinear(x1, x2, w, bias)
    large = multiprocessors == 1
    assert kernels(emulated) == (
        ["mma_tf32_general_128"] if large else ["mma_tf32_general_64", "add_splits"]
    )
    near(got, plain.detach(), bound.detach(), 33 * in2 + 1)

    gradients = emulated.ops.nn_bilinear_backward(grad, x1, x2, w, True, True, True, False)
    names = kernels(emulated)
    assert sum(name.startswith("mma_tf32_general") for name in names) == 3
    assert not any("simt" in name for name in names)
    for one, two, limit in zip(gradients, wanted, bounds, strict=True):
        if one is not None:
            near(one, two, limit, 33 * in2 * 66)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=NAMES.get)
def test_nn_bilinear_wide(emulated, dtype):  # noqa: F811
    emulated.set_tf32(True)
    emulated.set_device(8, 0, multiprocessors=4)
    args = [draw(s, dtype) for s in ((66, 24), (66, 20), (64, 24, 20), (64,))]
    emulated.launches()
    got = emulated.ops.nn_bilinear(*args)
    assert kernels(emulated)[0] == f"mma_{NAMES[dtype]}_general_64"
    wide = [to_double(t) for t in args]
    near(got, plain_nn_bilinear(*wide), plain_nn_bilinear(*(t.abs() for t in wide)), 481, tf32=True)


@EACH_LOW
@pytest.mark.parametrize(
    "layout", (torch.clone, transposed, offset), ids=["rows", "columns", "odd"]
)
@pytest.mark.parametrize("symmetric", [False, True], ids=["general", "symmetric"])
def test_quadratic(emulated, dtype, symmetric, layout):  # noqa: F811
    """Folds of a matrix that all items share; what is above the diagonal is not looked at."""
    emulated.set_device(8, 0, multiprocessors=64)
    for n in (74, 96):
        x, matrix, grad = draw((97, n), dtype), draw((n, n), dtype), draw((97,), dtype)
        wide = to_double(matrix)
        if symmetric:
            wide = wide.tril() + wide.tril(-1).mT
            matrix = torch.full_like(matrix, NAN).triu(1) + matrix.tril()
        matrix = layout(matrix)
        terms = 2 * n
        emulated.launches()
        got = emulated.ops.quadratic(x, matrix, symmetric=symmetric)
        names = kernels(emulated)
        assert any(name.startswith("mma_tf32_general" if symmetric else "mma_") for name in names)
        xs, gs = to_double(x), to_double(grad)
        bound = ((xs.abs() @ wide.abs()) * xs.abs()).sum(-1)
        near(got, ((xs @ wide) * xs).sum(-1), bound, terms)

        dx, _ = emulated.ops.quadratic_backward(grad, x, matrix, symmetric, True, False)
        assert kernels(emulated) == ["mma_tf32_general_64"]
        both = wide + wide.mT
        near(dx, gs[:, None] * (xs @ both), gs[:, None].abs() * (xs.abs() @ both.abs()), terms)
        _, da = emulated.ops.quadratic_backward(grad, x, matrix, symmetric, False, True)
        assert kernels(emulated) == ["mma_tf32_general_64"]
        weighted = gs[:, None] * xs
        near(da, weighted.mT @ xs, weighted.abs().mT @ xs.abs(), terms)


@EACH
def test_fold_large(emulated, dtype):  # noqa: F811
    """The same with large tiles, and in every precision."""
    emulated.set_tf32(True)
    emulated.set_device(8, 0, multiprocessors=1)
    n = 104
    x, matrix, grad = draw((97, n), dtype), draw((n, n), dtype), draw((97,), dtype)
    emulated.launches()
    dx, _ = emulated.ops.quadratic_backward(grad, x, matrix, False, True, False)
    name = "mma_f64_general_64" if dtype == torch.float64 else "mma_tf32_general_128"
    assert kernels(emulated) == [name]
    xs, gs = to_double(x), to_double(grad)[:, None]
    both = to_double(matrix) + to_double(matrix).mT
    near(dx, gs * (xs @ both), gs.abs() * (xs.abs() @ both.abs()), 2 * n, tf32=True)


@EACH_LOW
@pytest.mark.parametrize("n", [48, 47], ids=["chunks", "numbers"])
def test_intermediates(emulated, dtype, n):  # noqa: F811
    """y A of all pairs is kept in float32 beside float16, and multiplied by a 16-bit operand."""
    emulated.set_device(8, 0, multiprocessors=64)
    y, matrix, x = draw((97, 1, 40), dtype), draw((40, n), dtype), draw((1, 98, n), dtype)
    emulated.launches()
    got = emulated.ops.bilinear(y, matrix, x)
    second = kernels(emulated)[-1]
    assert second == ("mma_tf32_general_64" if dtype == torch.float16 else "mma_bf16_64")
    wide = [to_double(t) for t in (y[:, 0], matrix, x[0])]
    plain = wide[0] @ wide[1] @ wide[2].mT
    bound = wide[0].abs() @ wide[1].abs() @ wide[2].abs().mT
    near(got, plain, bound, 40 + n)


# --------------------------------------------------------------------------------------------
# Split depth


@EACH
@pytest.mark.parametrize("shape", [(64, 64, 4096), (97, 99, 3001)], ids=["even", "odd"])
def test_splits(emulated, dtype, shape):  # noqa: F811
    """Few tiles and a deep product: parts of the depth, added in a second kernel."""
    m, n, k = shape
    k = k // 4 if dtype == torch.float64 else k
    emulated.set_device(8, 0, multiprocessors=32)
    emulated.set_tf32(True)
    x, w, bias = draw((m, k), dtype), draw((n, k), dtype), draw((n,), dtype)
    results = []
    for order in ORDERS[::2]:
        emulated.set_order(order)
        emulated.launches()
        results += [emulated.ops.linear(x, w, bias)]
        (name, blocks, _), (second, _, _) = emulated.launches()
        assert name.startswith(f"mma_{NAMES[dtype]}_")
        assert second == "add_splits"
        assert blocks > 4
    assert torch.equal(*results)
    wide = [to_double(t) for t in (x, w, bias)]
    bound = plain_linear(*(t.abs() for t in wide))
    near(results[0], plain_linear(*wide), bound, k + 1)


def test_splits_of_batches(emulated):  # noqa: F811
    emulated.set_device(8, 0, multiprocessors=64)
    a, b = draw((2, 64, 2048), torch.bfloat16), draw((2, 2048, 66), torch.bfloat16)
    check_matmul(emulated, a, b, "mma_bf16_general_64", "add_splits")
    check_matmul(emulated, a[:, :, :2000], b[:, :2000, :64], "mma_bf16_general_64", "add_splits")


# --------------------------------------------------------------------------------------------
# NaN and infinity


@EACH
@pytest.mark.parametrize(
    "layout", (torch.clone, transposed, offset), ids=["rows", "columns", "odd"]
)
def test_nan_and_infinity(emulated, dtype, layout):  # noqa: F811
    """They go where plain arithmetic puts them and nowhere else, at the tiles' edges too."""
    emulated.set_tf32(True)
    a, b = draw((104, 41), dtype), draw((41, 104), dtype)
    a[3, 5], a[103, 40], a[7, 0], a[63, 40] = NAN, INF, -INF, 0
    b[5, 9], b[40, 103], b[40, 3], b[1, 64] = INF, INF, -INF, NAN
    got = emulated.ops.matmul(layout(a), layout(b))
    assert kernels(emulated)[0].startswith("mma_")
    expected = to_double(a) @ to_double(b)
    assert torch.equal(got.isnan(), expected.isnan())
    assert torch.equal(got.isposinf(), expected.isposinf())
    assert torch.equal(got.isneginf(), expected.isneginf())
    finite = expected.isfinite()
    scale = expected[finite].abs().max()
    assert (to_double(got)[finite] - expected[finite]).abs().max() < scale / 50


def test_every_nan_survives_tf32(emulated):  # noqa: F811
    """Also one whose mantissa is all ones, and one that only has the bits that TF32 drops."""
    emulated.set_tf32(True)
    for bits in (0x7FFFFFFF, 0x7F800001, 0xFFFFFFFF - (1 << 32), 0xFF801000 - (1 << 32)):
        a, b = draw((64, 64), torch.float32), draw((64, 64), torch.float32)
        a.view(torch.int32)[9, 9] = bits
        for one in (a, offset(a)):
            got = emulated.ops.matmul(one, b)
            assert kernels(emulated)[0].startswith("mma_tf32")
            assert got[9].isnan().all()
            assert got.isnan().sum() == 64


@pytest.mark.parametrize(
    "layout", (torch.clone, transposed, offset), ids=["rows", "columns", "odd"]
)
def test_tf32_is_rounded_to_the_nearest(emulated, layout):  # noqa: F811
    """To 11 bits, ties away from zero: what is left to the tensor core is cut off."""
    emulated.set_tf32(True)
    steps = torch.tensor([0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75], dtype=torch.float64)
    a = (1 + steps * 2.0**-10).repeat(64, 8).float()  # (64, 64)
    rounded = (1 + torch.tensor([0, 0, 1, 1, 1, 1, 2, 2]).double() * 2.0**-10).repeat(64, 8)
    sign = torch.ones(64, 1)
    sign[::3] = -1
    for one, two, expected in (
        (a * sign, torch.eye(64), rounded * sign),
        (torch.eye(64), a * sign, rounded * sign),
    ):
        got = emulated.ops.matmul(layout(one), layout(two))
        assert kernels(emulated)[0].startswith("mma_tf32")
        assert torch.equal(got.double(), expected)


def test_large_numbers_of_float16_in_tf32(emulated):  # noqa: F811
    """A times S passes float16's range and comes back."""
    x1, x2 = torch.full((66, 33), 300.0).half(), torch.full((66, 36), 400.0).half()
    w = torch.full((34, 33, 36), 2.0**-14).half()
    got = emulated.ops.nn_bilinear(x1, x2, w)
    assert kernels(emulated)[0] == "mma_tf32_general_64"
    expected = 300.0 * 400.0 * 2.0**-14 * 33 * 36
    torch.testing.assert_close(
        to_double(got), torch.full((66, 34), expected).double(), rtol=2e-3, atol=0
    )


# --------------------------------------------------------------------------------------------
# Who takes which product


@pytest.mark.parametrize(
    ("capability", "dtype", "taken"),
    [
        ((7, 5), torch.bfloat16, False),
        ((7, 5), torch.float64, False),
        ((8, 0), torch.float64, True),
        ((8, 6), torch.float64, False),
        ((8, 9), torch.float64, False),
        ((9, 0), torch.float64, True),
        ((10, 0), torch.float64, True),
        ((10, 3), torch.float64, False),
        ((12, 0), torch.float64, False),
        ((8, 6), torch.bfloat16, True),
        ((12, 0), torch.float16, True),
        ((8, 0), torch.complex64, False),
        ((9, 0), torch.complex128, False),
        ((8, 0), torch.int32, False),
    ],
    ids=str,
)
def test_devices(emulated, capability, dtype, taken):  # noqa: F811
    emulated.set_device(*capability)
    emulated.set_tf32(True)
    a, b = torch.ones((64, 66)).to(dtype), torch.ones((66, 64)).to(dtype)
    got = emulated.ops.matmul(a, b)
    assert any(name.startswith("mma_") for name in kernels(emulated)) == taken
    assert torch.equal(got, torch.full((64, 64), 66).to(dtype))


@pytest.mark.parametrize("dtype", [*LOW, torch.float32], ids=NAMES.get)
def test_the_largest_tiles_fit_every_device(emulated, dtype):  # noqa: F811
    """8.6 gives a block 99 KiB of shared memory, the least of all that have these instructions."""
    emulated.set_device(8, 6, multiprocessors=1)
    a, b = draw((40, 128), dtype).mT, draw((40, 256), dtype)
    check_matmul(emulated, a, b, f"mma_{NAMES[dtype]}_256")
    emulated.set_tf32(True)
    x1, x2, w = draw((128, 16), dtype), draw((128, 16), dtype), draw((128, 16, 16), dtype)
    emulated.launches()
    emulated.ops.nn_bilinear(x1, x2, w)
    assert kernels(emulated) == ["mma_tf32_general_128"]


def test_tf32_only_where_it_is_allowed(emulated):  # noqa: F811
    a, b = draw((64, 64), torch.float32), draw((64, 64), torch.float32)
    emulated.ops.matmul(a, b)
    assert not any("mma" in name for name in kernels(emulated))
    emulated.set_tf32(True)
    emulated.ops.matmul(a, b)
    assert kernels(emulated) == ["mma_tf32_64"]


@pytest.mark.parametrize(
    ("m", "n", "k", "dtype", "taken"),
    [
        (16, 64, 64, torch.bfloat16, True),
        (8, 64, 128, torch.bfloat16, True),
        (7, 64, 128, torch.bfloat16, False),
        (15, 15, 512, torch.bfloat16, False),
        (24, 32, 512, torch.bfloat16, True),
        (31, 31, 31, torch.bfloat16, False),
        (16, 64, 64, torch.float32, True),
        (15, 64, 64, torch.float32, False),
        (32, 64, 64, torch.float64, True),
        (31, 64, 64, torch.float64, False),
        (512, 512, 3, torch.bfloat16, False),
        (512, 512, 4, torch.bfloat16, True),
    ],
    ids=str,
)
def test_small_products_are_for_others(emulated, m, n, k, dtype, taken):  # noqa: F811
    emulated.set_tf32(True)
    a, b = torch.ones((m, k), dtype=dtype), torch.ones((k, n), dtype=dtype)
    got = emulated.ops.matmul(a, b)
    assert any(name.startswith("mma_") for name in kernels(emulated)) == taken
    assert torch.equal(got, torch.full((m, n), k, dtype=dtype))


def test_hopper_leaves_here_what_its_own_kernel_does_not_take(emulated):  # noqa: F811
    emulated.set_device(9, 0, multiprocessors=4)
    a, b = draw((65, 41), torch.bfloat16), draw((41, 66), torch.bfloat16)
    check_matmul(emulated, offset(a), b, "mma_bf16_general_64")
    check_matmul(emulated, draw((97, 42)), draw((42, 128)), "mma_f64_64")
