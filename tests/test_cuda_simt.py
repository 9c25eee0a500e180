"""The product on the ordinary arithmetic units of a GPU: csrc/cuda/simt.cu and splits.cu.

On a device of compute capability 7.5 no path with tensor cores is taken. `launches` tells which
kernel ran, where a test is about one of them.
"""

import pytest
import torch
from emulated import ORDERS, emulated  # noqa: F401
from emulated_ops import EmulatedOps
from reference import (
    FLOATING,
    LAYOUTS,
    arguments,
    assert_near,
    bilinear,
    check_value,
    draw,
    linear,
    matmul,
    nn_bilinear,
    offset,
    permuted,
    plain_bilinear,
    quadratic,
    sliced,
    terms_of,
    to_double,
    transposed,
)

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
EACH_DTYPE = pytest.mark.parametrize("dtype", FLOATING, ids=str)
EACH_ORDER = pytest.mark.parametrize("order", ORDERS)


class Gpu(EmulatedOps):
    capability = (7, 5)

    def __init__(self, handle):
        super().__init__(handle)
        self.set(4)

    def kernels(self):
        return set(super().kernels())

    def check(self, op, *args):
        """The value; and that it came from here, and from which kernels."""
        kernels = self.kernels_of_value(op, *args)
        assert any(name.startswith("simt") for name in kernels), kernels
        return kernels

    def check_backward(self, call, plain, *args):
        """Every gradient is there."""

        def all_of_them(*given):
            got = call(*given)
            assert all(t is not None for t in got)
            return got

        return super().check_backward(all_of_them, plain, *args)


@pytest.fixture
def gpu(emulated):  # noqa: F811
    return Gpu(emulated)


# --------------------------------------------------------------------------------------------
# Tiles and layouts


@EACH_DTYPE
@pytest.mark.parametrize(
    ("m", "n", "k"),
    ((2, 2, 2), (3, 5, 7), (17, 9, 15), (16, 32, 8), (15, 33, 31), (65, 63, 9), (64, 64, 16)),
)
def test_sizes(gpu, m, n, k, dtype):
    gpu.check(matmul, *arguments(((m, k), (k, n)), dtype))


# Each kernel with a shape for which it is the best, on as many multiprocessors.
KERNELS = {
    "simt_plain_large": (1, (256, 20), (20, 260)),
    "simt_plain_middle": (4, (68, 36), (36, 132)),
    "simt_wide": (1, (127, 19), (19, 257)),
    "simt_middle": (4, (65, 19), (19, 67)),
    "simt_small": (1, (30, 17, 19), (30, 19, 31)),
}


@EACH_ORDER
@pytest.mark.parametrize("name", KERNELS)
def test_each_kernel(gpu, name, order):
    multiprocessors, a, b = KERNELS[name]
    gpu.set(multiprocessors, order)
    assert gpu.check(matmul, *arguments((a, b), torch.float32)) == {name}


@EACH_ORDER
@pytest.mark.parametrize("dtype", (torch.float64, torch.complex64, torch.complex128), ids=str)
@pytest.mark.parametrize("name", ("simt_middle", "simt_small"))
def test_each_kernel_of_larger_elements(gpu, name, dtype, order):
    multiprocessors, a, b = KERNELS[name]
    gpu.set(multiprocessors, order)
    assert gpu.check(matmul, *arguments((a, b), dtype)) == {name}


@pytest.mark.parametrize("name", ("simt_plain_large", "simt_plain_middle"))
@pytest.mark.parametrize("layout_a", (torch.clone, transposed), ids=("rows", "columns"))
@pytest.mark.parametrize("layout_b", (torch.clone, transposed), ids=("rows", "columns"))
def test_plain_layouts(gpu, name, layout_a, layout_b):
    multiprocessors, *shapes = KERNELS[name]
    gpu.set(multiprocessors)
    a, b = arguments(shapes, torch.float32)
    assert gpu.check(matmul, layout_a(a), layout_b(b)) == {name}
    # Parts of longer rows and columns. What lies side by side is read four at a time; sizes across
    # are free, and so is the depth where neither operand lies along it.
    k = 19 if layout_a is transposed and layout_b is torch.clone else 20
    if layout_a is torch.clone:
        a = draw((250, 24), torch.float32)[1:248, :k]
    else:
        a = transposed(draw((252, 24), torch.float32))[4:248, 1 : k + 1]
    if layout_b is torch.clone:
        b = draw((24, 264), torch.float32)[1 : k + 1, 4:]
    else:
        b = transposed(draw((24, 262), torch.float32))[:k, 1:260]
    (kernel,) = gpu.check(matmul, a, b)
    assert "plain" in kernel


def test_what_is_not_aligned_is_read_element_by_element(gpu):
    a, b = arguments(((68, 36), (36, 132)), torch.float32)
    for layout in (offset, sliced):
        assert gpu.check(matmul, layout(a), b) == {"simt_middle"}
        assert gpu.check(matmul, a, layout(b)) == {"simt_middle"}
    assert gpu.check(matmul, a[:, :35], b[:35]) == {"simt_middle"}
    assert gpu.check(matmul, transposed(draw((66, 36), torch.float32)), b) == {"simt_middle"}


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.complex64), ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_layouts(gpu, layout, dtype):
    a, b = arguments(((3, 19, 23), (3, 23, 17)), dtype)
    for args in ((layout(a), b), (a, layout(b)), (layout(a), layout(b))):
        gpu.check(matmul, *args)


# --------------------------------------------------------------------------------------------
# Batches


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.complex128), ids=str)
@pytest.mark.parametrize(
    "shapes",
    (
        ((5, 7, 3), (5, 3, 9)),
        ((5, 1, 7, 3), (4, 3, 9)),
        ((2, 1, 3, 8, 4), (2, 4, 1, 4, 8)),
        ((1, 33, 5), (6, 5, 34)),
    ),
    ids=str,
)
def test_batches(gpu, shapes, dtype):
    gpu.check(matmul, *arguments(shapes, dtype))
    gpu.check_matmul_backward(*arguments(shapes, dtype))


@EACH_ORDER
def test_blocks_take_several_tiles(gpu, order):
    """One multiprocessor gets 64 blocks at most."""
    gpu.set(1, order)
    gpu.check(matmul, *arguments(((300, 3, 5), (300, 5, 2)), torch.float32))
    gpu.set(1, order)
    a, b = arguments(((70, 33, 4), (70, 4, 36)), torch.float64)
    gpu.handle.launches()
    check_value(gpu.op(matmul), a, b)
    ((_, blocks, _),) = gpu.handle.launches()
    assert blocks == 64


def test_many_dimensions(gpu):
    """More than kernels take as sizes and strides: by tables."""
    a, b = permuted(draw((2, 3, 2, 2, 3, 4, 5))), permuted(draw((2, 3, 2, 2, 3, 5, 2)))
    assert "fill_table" in gpu.check(matmul, a, b)
    assert "fill_table" in gpu.check_matmul_backward(a, b)
    b = permuted(draw((2, 1, 2, 1, 3, 5, 2)))
    gpu.check(matmul, a, b)
    gpu.check_matmul_backward(a, b)


# --------------------------------------------------------------------------------------------
# A scale operand, folded matrices, operands that are absent


@EACH_DTYPE
@pytest.mark.parametrize(
    "shapes",
    (
        ((9, 7), (9, 5), (17, 7, 5), (17,)),
        ((2, 3, 8), (2, 3, 4), (9, 8, 4), (9,)),
        ((33, 3), (33, 2), (65, 3, 2), (65,)),
    ),
    ids=str,
)
def test_nn_bilinear(gpu, shapes, dtype):
    args = arguments(shapes, dtype)
    gpu.check(nn_bilinear, *args)
    gpu.check(nn_bilinear, *args[:3], None)
    backward = gpu.ops.nn_bilinear_backward
    kernels = gpu.check_backward(
        lambda g, x1, x2, w, bias: backward(g, x1, x2, w, True, True, True, True),
        nn_bilinear.plain,
        *args,
    )
    assert any(name.startswith("simt") for name in kernels)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_nn_bilinear_layouts(gpu, layout):
    for dtype in (torch.float32, torch.complex64):
        args = [layout(t) for t in arguments(((9, 7), (9, 5), (17, 7, 5), (17,)), dtype)]
        gpu.check(nn_bilinear, *args)


@EACH_DTYPE
@pytest.mark.parametrize(
    "shapes",
    (((9, 17), (17, 19), (9, 19)), ((65, 8), (8, 9), (65, 9)), ((4, 1, 6), (6, 7), (3, 7))),
    ids=str,
)
def test_bilinear_with_one_matrix(gpu, shapes, dtype):
    """Its intermediate result is float32 beside 16-bit operands."""
    gpu.check(bilinear, *arguments(shapes, dtype))
    kernels = gpu.check_backward(
        lambda *args: gpu.ops.bilinear_backward(*args, True, True, True),
        plain_bilinear,
        *arguments(shapes, dtype),
    )
    assert any(name.startswith("simt") for name in kernels)


@EACH_DTYPE
@pytest.mark.parametrize(("batch", "n"), ((2, 3), (9, 17), (33, 8), (5, 65), (65, 33)))
@pytest.mark.parametrize("layout", (torch.clone, transposed), ids=("rows", "columns"))
def test_quadratic_with_one_matrix(gpu, batch, n, layout, dtype):
    x, A = arguments(((batch, n), (n, n)), dtype)
    args = x, layout(A)
    gpu.check(quadratic, *args)
    gpu.check_backward(
        lambda g, x, A: gpu.ops.quadratic_backward(g, x, A, False, True, True),
        quadratic.plain,
        *args,
    )


@EACH_DTYPE
@pytest.mark.parametrize(("batch", "n"), ((2, 3), (9, 17), (33, 8), (5, 65), (65, 33)))
@pytest.mark.parametrize("layout", (torch.clone, transposed), ids=("rows", "columns"))
def test_symmetric_never_touches_the_upper_triangle(gpu, batch, n, layout, dtype):
    x, A = arguments(((batch, n), (n, n)), dtype)
    upper = torch.ones(n, n).triu(1).bool()
    poisoned = layout(A.masked_fill(upper, float("nan")))
    A = A.tril() + A.tril(-1).mT
    wide, magnitude = to_double(x), to_double(A).abs()
    gpu.kernels()
    assert_near(
        gpu.ops.quadratic(x, poisoned, symmetric=True),
        plain_bilinear(wide, to_double(A), wide),
        plain_bilinear(wide.abs(), magnitude, wide.abs()),
        terms_of((x, A)),
    )
    assert any(name.startswith("simt") for name in gpu.kernels())
    gpu.check_backward(
        lambda g, x, _: gpu.ops.quadratic_backward(g, x, poisoned, True, True, True),
        quadratic.plain,
        x,
        A,
    )


@EACH_DTYPE
def test_several_matrices_for_one_vector(gpu, dtype):
    """Folds whose sums run over a batch too."""
    shapes = ((2, 1, 9), (3, 9, 9))
    gpu.check_backward(
        lambda g, x, A: gpu.ops.quadratic_backward(g, x, A, False, True, True),
        quadratic.plain,
        *arguments(shapes, dtype),
    )


@EACH_DTYPE
@pytest.mark.parametrize("sizes", ((5, 7), (0, 3), (0, 65)), ids=str)
def test_empty_depth(gpu, sizes, dtype):
    """What is left is the bias, or zero: a sum over nothing."""
    rows, out = sizes
    x, weight, bias = draw((rows or 2, 0), dtype), draw((out, 0), dtype), draw((out,), dtype)
    got = gpu.ops.linear(x, weight, bias)
    assert torch.equal(got, bias.expand(x.shape[0], out))
    assert torch.equal(gpu.ops.linear(x, weight), torch.zeros_like(got))
    assert torch.equal(gpu.ops.matmul(x, weight.mT), torch.zeros_like(got))
    got = gpu.ops.nn_bilinear(x, draw((x.shape[0], 4), dtype), draw((out, 0, 4), dtype), bias)
    assert torch.equal(got, bias.expand(x.shape[0], out))


# --------------------------------------------------------------------------------------------
# Parts of the depth


@EACH_DTYPE
def test_split_depth(gpu, dtype):
    assert "add_splits" in gpu.check(matmul, *arguments(((9, 3001), (3001, 14)), dtype))
    args = arguments(((12, 3000), (16, 3000), (16,)), dtype)
    assert "add_splits" in gpu.check(linear, *args)
    args = arguments(((8, 60), (8, 50), (12, 60, 50), (12,)), dtype)
    assert "add_splits" in gpu.check(nn_bilinear, *args)


def test_split_depth_of_a_batch(gpu):
    gpu.set(16)
    a, b = arguments(((3, 7, 1400), (3, 1400, 9)), torch.float32)
    assert "add_splits" in gpu.check(matmul, a, b)
    # The gradient of b is summed over the batch.
    a, b = arguments(((60, 40, 8), (8, 12)), torch.float32)
    assert "add_splits" in gpu.check_matmul_backward(a, b)


def test_split_depth_with_a_factor(gpu):
    """A fold, a scale operand and the 2 of 2 g A x."""
    x, A = arguments(((4, 600), (600, 600)), torch.float32)
    kernels = gpu.check_backward(
        lambda g, x, A: gpu.ops.quadratic_backward(g, x, A, True, True, True),
        quadratic.plain,
        x,
        A + A.mT,
    )
    assert "add_splits" in kernels


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.complex128), ids=str)
def test_same_bits_in_every_order(gpu, dtype):
    args = [
        arguments(((9, 3001), (3001, 14)), dtype),
        arguments(((65, 40), (40, 67)), dtype),
        arguments(((7, 9, 11), (7, 11, 5)), dtype),
    ]
    results = []
    for order in ORDERS:
        gpu.set(4, order)
        results.append([gpu.ops.matmul(*pair) for pair in args])
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


# --------------------------------------------------------------------------------------------
# Numbers


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize(
    "shapes",
    (((17, 9), (9, 15)), ((65, 40), (40, 66)), ((30, 5, 6), (30, 6, 7)), ((5, 2000), (2000, 6))),
    ids=str,
)
def test_integers_wrap(gpu, shapes, dtype):
    limits = torch.iinfo(dtype)
    args = [torch.randint(limits.min, limits.max, shape, dtype=dtype) for shape in shapes]
    for layout in (torch.clone, transposed):
        a, b = map(layout, args)
        got = gpu.ops.matmul(a, b)
        assert torch.equal(got, torch.matmul(*args))
    assert any(name.startswith("simt") for name in gpu.kernels())


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_integers_without_depth(gpu, dtype):
    got = gpu.ops.matmul(torch.ones(3, 0, dtype=dtype), torch.ones(0, 70, dtype=dtype))
    assert torch.equal(got, torch.zeros(3, 70, dtype=dtype))
    assert gpu.kernels() <= {"simt_small", "simt_middle"}


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16), ids=str)
@pytest.mark.parametrize("special", (float("nan"), float("inf"), -float("inf")))
@pytest.mark.parametrize(("m", "n", "k"), ((68, 36, 20), (33, 31, 11), (9, 14, 1500)))
def test_nan_and_infinity_stay_where_they_belong(gpu, m, n, k, special, dtype):
    """In the last row and column, beside which there is padding, and at the end of the depth."""
    a, b = arguments(((m, k), (k, n)), dtype)
    a[m - 1, k - 1] = special
    b[0, n - 1] = special
    b[k - 1, 0] = 0
    got = gpu.ops.matmul(a, b)
    expected = torch.matmul(to_double(a), to_double(b))
    torch.testing.assert_close(to_double(got), expected, rtol=0.05, atol=1, equal_nan=True)
    assert got[: m - 1, : n - 1].isfinite().all()


def test_infinity_times_zero_in_a_fold(gpu):
    x = torch.zeros(4, 9)
    A = torch.zeros(9, 9)
    A[8, 0] = float("inf")
    dx, _ = gpu.ops.quadratic_backward(torch.ones(4), x, A, False, True, False)
    assert dx[:, [0, 8]].isnan().all()
    assert (dx[:, 1:8] == 0).all()
