"""The warpgroup gemm of Hopper, run under the emulation: its numbers, its tiles and its maps.

The emulation reads matrix descriptors and swizzles as the PTX ISA describes them. It lets copies
and products happen as late as they may, and fails where something is used or overwritten before it
has been waited for. Every test says which kernel it means and looks whether it ran.
"""

import subprocess
from pathlib import Path

import pytest
import torch
from emulated import CXX, ORDERS, emulated  # noqa: F401
from reference import assert_near, draw, plain_linear, to_double, transposed

LOW = (torch.bfloat16, torch.float16)
NAMES = {torch.bfloat16: "bf16", torch.float16: "f16"}
EACH = pytest.mark.parametrize("dtype", LOW, ids=NAMES.get)
MAJORS = [(a, b) for a in ("rows", "columns") for b in ("rows", "columns")]
EACH_MAJOR = pytest.mark.parametrize("majors", MAJORS, ids="-".join)
NAN, INF = float("nan"), float("inf")


@pytest.fixture
def hopper(emulated):  # noqa: F811
    """Three multiprocessors, each of which computes several tiles."""
    emulated.set_device(9, 0, multiprocessors=3)
    return emulated


def kernels(emulated):  # noqa: F811
    return [name for name, _, _ in emulated.launches()]


def is_wgmma(name):
    return name.startswith("wgmma")


def bedded(t, pad=8):
    """Rows, or columns of a transposed matrix, at multiples of 16 bytes, in a sea of NaNs."""
    transpose = t.stride(-1) != 1
    t = t.mT if transpose else t
    rows, cols = t.shape[-2:]
    big = t.new_full((*t.shape[:-2], rows + 2, -(-cols // 8) * 8 + pad + 8), NAN)
    view = big[..., 1 : rows + 1, 8 : 8 + cols].copy_(t)
    return view.mT if transpose else view


def laid(a, b, majors):
    return (
        bedded(transposed(a) if majors[0] == "columns" else a),
        bedded(transposed(b) if majors[1] == "columns" else b),
    )


def check_matmul(emulated, a, b, *names):  # noqa: F811
    """The product, and which kernels made it."""
    emulated.launches()
    got = emulated.ops.matmul(a, b)
    assert kernels(emulated) == list(names)
    wide = to_double(a), to_double(b)
    assert_near(got, wide[0] @ wide[1], wide[0].abs() @ wide[1].abs(), a.shape[-1])
    return got


def left(emulated, a, b):  # noqa: F811
    """Whether another kernel has computed the product, and rightly."""
    emulated.launches()
    got = emulated.ops.matmul(a, b)
    wide = to_double(a), to_double(b)
    assert_near(got, wide[0] @ wide[1], wide[0].abs() @ wide[1].abs(), a.shape[-1])
    names = kernels(emulated)
    return bool(names) and not any(map(is_wgmma, names))


# --------------------------------------------------------------------------------------------
# Maps


def test_maps(tmp_path):
    """Every number has one place, and descriptors and sums are what the PTX ISA says."""
    source = Path(__file__).parent / "maps" / "wgmma_layout.cpp"
    program = tmp_path / "wgmma_layout"
    subprocess.run([*CXX, "-std=c++20", "-O1", str(source), "-o", str(program)], check=True)
    done = subprocess.run([str(program)], check=True, capture_output=True, text=True)
    assert done.stdout == "", done.stdout[:2000]


# --------------------------------------------------------------------------------------------
# Tiles


@EACH
@EACH_MAJOR
def test_small_tile(hopper, dtype, majors):
    """128 x 128: one tile less a bit, one, several with tails in every dimension."""
    for m, n, k in ((64, 64, 64), (127, 72, 72), (128, 128, 128), (130, 264, 136), (257, 72, 65)):
        a, b = laid(draw((m, k), dtype), draw((k, n), dtype), majors)
        check_matmul(hopper, a, b, f"wgmma_{NAMES[dtype]}_128x128")


@EACH
@EACH_MAJOR
def test_large_tile(hopper, dtype, majors):
    """128 x 256, where the small tiles would take more rounds."""
    for m, n, k in ((384, 256, 64), (257, 250, 328), (130, 776, 72)):
        a, b = laid(draw((m, k), dtype), draw((k, n), dtype), majors)
        check_matmul(hopper, a, b, f"wgmma_{NAMES[dtype]}_128x256")


@pytest.mark.parametrize("multiprocessors", [1, 8])
def test_depths(emulated, multiprocessors):  # noqa: F811
    """The ring with fewer stages than it has, as many, and more; every tail of a stage."""
    emulated.set_device(9, 0, multiprocessors=multiprocessors)
    name = "wgmma_bf16_128x256" if multiprocessors == 1 else "wgmma_bf16_128x128"
    n = 256 if multiprocessors == 1 else 192
    for k in (64, 65, 71, 72, 127, 128, 129, 256, 257, 384, 448, 520):
        a, b = laid(draw((192, k), torch.bfloat16), draw((k, n), torch.bfloat16), MAJORS[0])
        check_matmul(emulated, a, b, name)


def test_one_block_computes_many_tiles(emulated):  # noqa: F811
    """The ring goes on from tile to tile; so do the buffers of C, after tiles of every width."""
    for multiprocessors, n, name in ((1, 392, "128x256"), (5, 264, "128x128")):
        emulated.set_device(9, 0, multiprocessors=multiprocessors)
        for order in ORDERS:
            emulated.set_order(order)
            a, b = draw((2, 200, 72), torch.bfloat16), draw((2, 72, n), torch.bfloat16)
            check_matmul(emulated, a, b, f"wgmma_bf16_{name}")


def test_more_rows_of_tiles_than_one_group(hopper):
    a, b = draw((17 * 128 + 5, 64), torch.float16), draw((64, 264), torch.float16)
    check_matmul(hopper, a, b, "wgmma_f16_128x128")


def test_grid(emulated):  # noqa: F811
    """One block for each multiprocessor, or for each tile; a warpgroup more than multiply."""
    for multiprocessors, tiles in ((1, 4), (3, 4), (4, 4), (5, 4)):
        emulated.set_device(9, 0, multiprocessors=multiprocessors)
        emulated.ops.matmul(draw((130, 64), torch.float16), draw((64, 136), torch.float16))
        ((name, blocks, threads),) = emulated.launches()
        large = name == "wgmma_f16_128x256"
        assert (blocks, threads) == (min(multiprocessors, 2 if large else tiles), 384)
        assert large == (multiprocessors in (1, 3))


@EACH
def test_orders_give_the_same_bits(emulated, dtype):  # noqa: F811
    """In every order of the threads, and on any number of multiprocessors that take one tile."""
    a, b = draw((130, 200), dtype), draw((200, 264), dtype)
    results = []
    for order in ORDERS:
        for multiprocessors in (1, 3, 7):
            emulated.set_device(9, 0, multiprocessors=multiprocessors)
            emulated.set_order(order)
            results.append(emulated.ops.matmul(a, b))
            assert all(map(is_wgmma, kernels(emulated)))
    assert all(torch.equal(results[0], other) for other in results)


# --------------------------------------------------------------------------------------------
# Batches


@EACH
def test_batches(hopper, dtype):
    name = f"wgmma_{NAMES[dtype]}_128x128"
    a, b = draw((3, 72, 80), dtype), draw((3, 80, 72), dtype)
    check_matmul(hopper, a, b, name)
    check_matmul(hopper, transposed(a), transposed(b), name)
    check_matmul(hopper, a[:, :, 8:], b[:, 8:], name)
    check_matmul(hopper, a[::2], b[::2], name)
    check_matmul(hopper, bedded(a), bedded(b), name)


def test_broadcast_batches(hopper):
    """Each dimension of the batch is a row, a column or an item, by whose it is."""
    name = "wgmma_bf16_128x128"
    a, b = draw((2, 72, 80), torch.bfloat16), draw((2, 80, 72), torch.bfloat16)
    check_matmul(hopper, a[:1].expand(2, 72, 80), b, name)
    check_matmul(hopper, a, b[1:].expand(2, 80, 72), name)
    check_matmul(hopper, a[0], b, name)
    check_matmul(hopper, a, b[0], name)
    # Two batch dimensions, each of them another operand's; then a third, of both.
    a, b = draw((2, 1, 72, 80), torch.bfloat16), draw((1, 3, 80, 72), torch.bfloat16)
    check_matmul(hopper, a, b, name)
    check_matmul(hopper, a.transpose(0, 1), b.transpose(0, 1), name)
    a, b = draw((2, 2, 1, 72, 64), torch.bfloat16), draw((2, 1, 3, 64, 72), torch.bfloat16)
    check_matmul(hopper, a, b, name)


def test_heads(hopper):
    """Attention's (batch, length, heads, size), of which two batch dimensions are made."""
    q, k = (draw((2, 72, 3, 64), torch.bfloat16).transpose(1, 2) for _ in range(2))
    scores = check_matmul(hopper, q, k.mT, "wgmma_bf16_128x128")
    check_matmul(hopper, scores, k, "wgmma_bf16_128x128")
    # Two heads of q to one of k: (batch, length, heads of k, 2, size).
    q = draw((2, 72, 3, 2, 64), torch.bfloat16).permute(0, 2, 3, 1, 4)
    check_matmul(hopper, q, k.mT.unsqueeze(2), "wgmma_bf16_128x128")


def test_rows_in_two_dimensions(hopper):
    """A bias still runs along the columns; the rows of a gradient are summed over, and are not."""
    x = draw((72, 2, 80), torch.bfloat16).transpose(0, 1)
    weight, bias = draw((64, 80), torch.bfloat16), draw((64,), torch.bfloat16)
    hopper.launches()
    got = hopper.ops.linear(x, weight, bias)
    assert kernels(hopper) == ["wgmma_bf16_128x128"]
    wide = to_double(x), to_double(weight), to_double(bias)
    assert_near(got, plain_linear(*wide), plain_linear(*(t.abs() for t in wide)), 80)


def test_four_batch_dimensions_of_no_common_step(hopper):
    """More than a tensor map has: another kernel computes it."""
    a = draw((2, 2, 2, 72, 2, 64), torch.bfloat16).permute(2, 1, 0, 4, 3, 5)
    b = draw((2, 2, 2, 2, 64, 72), torch.bfloat16)
    assert left(hopper, a, b)


# --------------------------------------------------------------------------------------------
# The way to C


@EACH
@pytest.mark.parametrize("n", [64, 71, 130, 136, 250, 264])
def test_linear(hopper, dtype, n):
    """Bias along the rows of C; C written by copies (n a multiple of 8), and by threads."""
    x, weight = draw((133, 72), dtype), draw((n, 72), dtype)
    for bias in (draw((n,), dtype), draw((2 * n,), dtype)[::2], None):
        hopper.launches()
        got = hopper.ops.linear(x, weight, bias)
        assert list(map(is_wgmma, kernels(hopper))) == [True]
        wide = to_double(x), to_double(weight), None if bias is None else to_double(bias)
        bound = plain_linear(*(None if t is None else t.abs() for t in wide))
        assert_near(got, plain_linear(*wide), bound, 72)


def test_linear_backward(hopper):
    """The products of the gradients: other majors, and the sum over the batch."""
    x, weight = draw((2, 72, 80), torch.bfloat16), draw((136, 80), torch.bfloat16)
    bias, grad = draw((136,), torch.bfloat16), draw((2, 72, 136), torch.bfloat16)
    hopper.launches()
    dx, dw, db = hopper.ops.linear_backward(grad, x, weight, bias, True, True, True)
    assert sum(map(is_wgmma, kernels(hopper))) == 2
    g, x, weight = to_double(grad), to_double(x), to_double(weight)
    assert_near(dx, g @ weight, g.abs() @ weight.abs(), 136)
    g, x = g.flatten(0, 1), x.flatten(0, 1)
    assert_near(dw, g.mT @ x, g.abs().mT @ x.abs(), 144)
    assert_near(db, g.sum(0), g.abs().sum(0), 144)


def test_float32_between_two_products(hopper):
    """y A x for many y and x: A x is kept in float32."""
    y, A, x = (draw(s, torch.bfloat16) for s in ((200, 72), (72, 80), (200, 80)))
    hopper.launches()
    got = hopper.ops.bilinear(y, A, x)
    names = kernels(hopper)
    y, A, x = to_double(y), to_double(A), to_double(x)
    assert_near(got, ((y @ A) * x).sum(-1), ((y.abs() @ A.abs()) * x.abs()).sum(-1), 152)
    assert any(map(is_wgmma, names)), names


# --------------------------------------------------------------------------------------------
# Split depth


@EACH
@EACH_MAJOR
def test_splits(emulated, dtype, majors):  # noqa: F811
    """Two parts of the depth, the second shorter; then three, of large tiles."""
    emulated.set_device(9, 0, multiprocessors=4)
    name = f"wgmma_{NAMES[dtype]}"
    a, b = laid(draw((80, 2100), dtype), draw((2100, 136), dtype), majors)
    check_matmul(emulated, a, b, f"{name}_128x128", "add_splits")
    emulated.set_device(9, 0, multiprocessors=3)
    a, b = laid(draw((72, 3080), dtype), draw((3080, 72), dtype), majors)
    check_matmul(emulated, a, b, f"{name}_128x128", "add_splits")


def test_splits_with_bias_and_batches(emulated):  # noqa: F811
    emulated.set_device(9, 0, multiprocessors=4)
    x, weight = draw((72, 2048), torch.bfloat16), draw((71, 2048), torch.bfloat16)
    bias = draw((71,), torch.bfloat16)
    emulated.launches()
    got = emulated.ops.linear(x, weight, bias)
    assert kernels(emulated) == ["wgmma_bf16_128x128", "add_splits"]
    x, weight, bias = to_double(x), to_double(weight), to_double(bias)
    bound = plain_linear(x.abs(), weight.abs(), bias.abs())
    assert_near(got, plain_linear(x, weight, bias), bound, 2048)
    a, b = draw((2, 72, 2048), torch.bfloat16), draw((2, 2048, 72), torch.bfloat16)
    check_matmul(emulated, a, b, "wgmma_bf16_128x128", "add_splits")


def test_splits_give_the_same_bits(emulated):  # noqa: F811
    a, b = draw((72, 2176), torch.float16), draw((2176, 72), torch.float16)
    results = []
    for order in ORDERS:
        emulated.set_device(9, 0, multiprocessors=2)
        emulated.set_order(order)
        results.append(emulated.ops.matmul(a, b))
    assert all(torch.equal(results[0], other) for other in results)


# --------------------------------------------------------------------------------------------
# Numbers


@pytest.mark.parametrize("multiprocessors", [1, 3])
def test_nan_and_infinity_stay_in_their_rows_and_columns(emulated, multiprocessors):  # noqa: F811
    """Beside tails in every dimension, which are zeros: nothing else becomes NaN."""
    emulated.set_device(9, 0, multiprocessors=multiprocessors)
    a, b = draw((133, 75), torch.bfloat16), draw((75, 261), torch.bfloat16)
    a[132, 74], a[5, 3], b[74, 260] = INF, NAN, INF
    a, b = laid(a, b, ("rows", "columns"))
    got = emulated.ops.matmul(a, b)
    assert all(map(is_wgmma, kernels(emulated)))
    expected = to_double(a) @ to_double(b)
    assert torch.equal(got.isnan(), expected.isnan())
    assert torch.equal(got.isinf(), expected.isinf())
    finite = expected.isfinite()
    bound = (to_double(a).abs().nan_to_num(0, 0) @ to_double(b).abs().nan_to_num(0, 0))[finite]
    assert_near(got[finite], expected[finite], bound, 75)


def test_float16_overflows_to_infinity(hopper):
    a = torch.full((64, 64), 200.0, dtype=torch.float16)
    assert torch.equal(hopper.ops.matmul(a, a), torch.full_like(a, INF))


# --------------------------------------------------------------------------------------------
# What it leaves to the other paths


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 9), (10, 0), (12, 0)])
def test_other_devices(emulated, capability):  # noqa: F811
    emulated.set_device(*capability, multiprocessors=3)
    assert left(emulated, draw((64, 64), torch.bfloat16), draw((64, 64), torch.bfloat16))


def test_small_and_misaligned_products(hopper):
    low = torch.bfloat16
    for m, n, k in ((63, 64, 64), (64, 63, 64), (64, 64, 63)):
        assert left(hopper, *laid(draw((m, k), low), draw((k, n), low), MAJORS[0]))
    a, b = draw((64, 65), low), draw((65, 64), low)
    assert left(hopper, a, b)  # rows of A are 130 bytes apart
    a, b = draw((64, 80), low), draw((72, 64), low)
    assert left(hopper, a[:, 4:76], b)  # A begins at 8 bytes
    assert left(hopper, draw((64, 160), low)[:, ::2], draw((80, 64), low))
    assert left(hopper, draw((1, 64), low).expand(64, 64), draw((64, 64), low))
    assert left(hopper, draw((64, 64), torch.float32), draw((64, 64), torch.float32))


def test_few_tiles_for_many_multiprocessors(emulated):  # noqa: F811
    """Tiles of mma are smaller: more multiprocessors share the work."""
    a, b = draw((256, 64), torch.bfloat16), draw((64, 256), torch.bfloat16)
    emulated.set_device(9, 0, multiprocessors=16)
    assert left(emulated, a, b)
    emulated.set_device(9, 0, multiprocessors=15)
    assert not left(emulated, a, b)
