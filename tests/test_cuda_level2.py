"""Products whose cost is memory traffic: csrc/cuda/level2.cu, gemv.cu and outer.cu.

`launches` tells which kernel ran: by rows, by four rows that share the vector, by columns; and for
what cannot be read 16 bytes at a time the same `_by_element`.
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
    draw,
    linear,
    matmul,
    nn_bilinear,
    offset,
    plain_bilinear,
    quadratic,
    sliced,
    terms_of,
    to_double,
    transposed,
)

EACH_DTYPE = pytest.mark.parametrize("dtype", FLOATING, ids=str)
EACH_ORDER = pytest.mark.parametrize("order", ORDERS)
LEVEL2 = ("gemv_", "outer")
GEMMS = ("simt", "mma", "wgmma", "add_splits")


def padded(t):
    """Part of a matrix of NaNs; rows begin at multiples of 16 bytes, and end anywhere."""
    big = t.new_full((*t.shape[:-1], (t.shape[-1] + 23) // 8 * 8), float("nan"))
    return big[..., 8 : 8 + t.shape[-1]].copy_(t)


def padded_columns(t):
    return padded(t.mT).mT if t.dim() > 1 else padded(t)


MATRICES = {
    "rows": torch.clone,
    "columns": transposed,
    "padded rows": padded,
    "padded columns": padded_columns,
    "sliced": sliced,
    "offset": offset,
}
EACH_LAYOUT = pytest.mark.parametrize("layout", MATRICES.values(), ids=MATRICES)


class Gpu(EmulatedOps):
    capability = (9, 0)

    def terms(self, args, grad):
        return terms_of((*args, grad))

    def check(self, op, *args, others=()):
        """The value; and that all of it came from here, but for kernels whose names begin so."""
        kernels = self.kernels_of_value(op, *args)
        assert kernels
        assert all(name.startswith((*LEVEL2, *others)) for name in kernels), kernels
        return kernels


@pytest.fixture
def gpu(emulated):  # noqa: F811
    return Gpu(emulated)


# --------------------------------------------------------------------------------------------
# A matrix times a vector


@EACH_DTYPE
@EACH_LAYOUT
@pytest.mark.parametrize(
    ("m", "k"),
    ((2, 2), (1, 7), (7, 1), (7, 31), (31, 7), (33, 32), (64, 65), (129, 33), (2, 300), (300, 2)),
)
def test_sizes(gpu, m, k, layout, dtype):
    a, x = layout(draw((m, k), dtype)), draw(k, dtype)
    gpu.check(matmul, a, x)
    gpu.check(matmul, x, a.mT)


@EACH_DTYPE
@EACH_LAYOUT
def test_large(gpu, layout, dtype):
    """Sums that are cut into parts, on a device that asks for many."""
    gpu.set(64)
    for m, k in ((3, 1025), (24, 1024), (1025, 5), (16, 2048)):
        a = layout(draw((m, k), dtype))
        gpu.check(matmul, a, draw(k, dtype))
        gpu.check(matmul, draw(m, dtype), a)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.complex64), ids=str)
@EACH_LAYOUT
def test_layouts_of_the_vector(gpu, layout, dtype):
    a, x = draw((19, 300), dtype), draw((300, 1), dtype)
    # A column of a wider matrix, and one number again and again.
    columns = (layout(x), draw((300, 3), dtype)[:, 1:2], draw((1, 1), dtype).expand(300, 1))
    for column in columns:
        gpu.check(matmul, a, column)
        gpu.check(matmul, transposed(a), column)
        gpu.check(matmul, column.mT, a.mT)


# Each kernel with the multiprocessors and the size of a matrix for which it is chosen.
KERNELS = {
    "gemv_rows": (4, 32, 264),
    "gemv_four_rows": (1, 129, 264),
    "gemv_columns": (1, 264, 33),
    "gemv_rows_by_element": (4, 32, 263),
    "gemv_four_rows_by_element": (1, 129, 263),
    "gemv_columns_by_element": (1, 263, 33),
}
# The same where it forms parts of sums. Lines that do not fit in L1 are read four at a time.
PARTS = {
    "gemv_rows": (64, 1, 40001),
    "gemv_four_rows": (64, 17, 24592),
    "gemv_columns": (64, 24, 4100),
    "gemv_rows_by_element": (64, 3, 5003),
    "gemv_four_rows_by_element": (64, 17, 24601),
    "gemv_columns_by_element": (64, 23, 4100),
}


def matrix_for(name, m, k, dtype):
    a = draw((m, k), dtype)
    return transposed(a) if "columns" in name else a


@EACH_ORDER
@EACH_DTYPE
@pytest.mark.parametrize("name", KERNELS)
def test_each_kernel(gpu, name, dtype, order):
    multiprocessors, m, k = KERNELS[name]
    gpu.set(multiprocessors, order)
    if dtype == torch.complex128:  # an element of 16 bytes is a pack
        name = name.removesuffix("_by_element")
    a, x = matrix_for(name, m, k, dtype), draw(k, dtype)
    assert gpu.check(matmul, a, x) == [name]
    assert gpu.check(matmul, x, a.mT) == [name]


@EACH_ORDER
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("name", PARTS)
def test_parts_of_sums(gpu, name, dtype, order):
    multiprocessors, m, k = PARTS[name]
    gpu.set(multiprocessors, order)
    a, x = matrix_for(name, m, k, dtype), draw(k, dtype)
    kernels = gpu.check(matmul, a, x)
    assert len(kernels) == 2
    assert kernels[0] == name
    assert gpu.check(linear, x, a, draw(m, dtype)) == kernels


@EACH_DTYPE
def test_short_lines(gpu, dtype):
    """Several lines for one thread: tall matrices by rows, wide ones by columns."""
    gpu.set(1)
    for lines in (1604, 1605):
        for k in (2, 3, 4, 5, 8, 16):
            a, x = draw((lines, k), dtype), draw(k, dtype)
            assert "four_rows" in gpu.check(matmul, a, x)[0]
            assert "columns" in gpu.check(matmul, transposed(a), x)[0]
            gpu.check(linear, x, a, draw(lines, dtype))
            gpu.check(linear, x, transposed(a), draw((), dtype))


def test_order_of_threads_changes_nothing(gpu):
    a, x = arguments(((300, 1025), (1025,)), torch.float32)
    cases = [(a, x), (transposed(a), x), (x, a.mT.contiguous()), (draw(70000),) * 2]
    for args in cases:
        results = []
        for order in (*ORDERS, "ascending"):
            gpu.set(64, order)
            results.append(gpu.ops.matmul(*args))
        for result in results[1:]:
            assert torch.equal(results[0], result)


@EACH_DTYPE
def test_batches(gpu, dtype):
    for shapes in (
        ((5, 9, 16), (5, 16, 1)),
        ((40, 16, 16), (40, 16, 1)),
        ((40, 33, 7), (40, 7, 1)),
        ((3, 2, 40, 5), (3, 2, 5, 1)),
        ((3, 2, 24, 8), (1, 2, 8, 1)),
        ((2, 1, 300), (2, 300, 9)),
    ):
        a, x = arguments(shapes, dtype)
        gpu.check(matmul, a, x)
        gpu.check(matmul, transposed(a), x)
        gpu.check(matmul, a.movedim(0, 1).contiguous().movedim(1, 0), x)
        gpu.check_matmul_backward(a, x)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.complex64), ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_layouts_of_batches(gpu, layout, dtype):
    a, x = arguments(((3, 4, 17, 24), (3, 4, 24, 1)), dtype)
    for args in ((layout(a), x), (a, layout(x)), (layout(a), layout(x))):
        gpu.check(matmul, *args)
        gpu.check(matmul, *(t.mT for t in reversed(args)))


def test_many_dimensions(gpu):
    """More than kernels take as sizes and strides: by tables."""
    a = draw((3, 2, 2, 3, 2, 3, 7)).permute(5, 4, 3, 2, 1, 0, 6)
    assert "fill_table" in gpu.check(matmul, a, draw(7), others=("fill_table",))
    assert "fill_table" in gpu.check_matmul_backward(a, draw(7))


@EACH_DTYPE
def test_linear(gpu, dtype):
    """Bias and conjugates, rows and columns."""
    for x, w, bias in (((40,), (33, 40), (33,)), ((33, 40), (1, 40), (1,)), ((9, 6), (6,), ())):
        args = arguments((x, w, bias), dtype)
        gpu.check(linear, *args)
        gpu.check(linear, *args[:2], None)
        gpu.check(linear, args[0].conj(), transposed(args[1]), args[2])
        kernels = gpu.check_backward(
            lambda *args: gpu.ops.linear_backward(*args, True, True, True), linear.plain, *args
        )
        assert all(name.startswith(LEVEL2) for name in kernels), kernels


@pytest.mark.parametrize("dtype", (torch.complex64, torch.complex128), ids=str)
def test_conjugates(gpu, dtype):
    a, b = arguments(((3, 33), (3, 33)), dtype)
    for one in (a, a.conj()):
        for two in (b, b.conj()):
            gpu.check(matmul, one, two[0])
            gpu.check(matmul, two[0], one.mT)
            gpu.check(matmul, one[:, None], two[..., None])
            gpu.check(matmul, one.mT, two[:1, :1].expand(3, 1))
            gpu.check(matmul, one[:1].mT, two[:1])
    gpu.check_matmul_backward(a, b[0])


# --------------------------------------------------------------------------------------------
# Dots and sums


@EACH_DTYPE
@pytest.mark.parametrize("k", (2, 7, 16, 31, 33, 65, 129, 1025))
def test_dots(gpu, k, dtype):
    items = 33 if k < 100 else 5
    x, y = arguments(((items, 1, k), (items, k, 1)), dtype)
    (kernel,) = gpu.check(matmul, x, y)
    assert kernel.startswith("gemv_rows")
    gpu.check(matmul, x[0, 0], y[0, :, 0])
    gpu.check(matmul, x, draw((k, items), dtype).mT[..., None])
    gpu.check(matmul, draw((k, items), dtype).mT[:, None], y)
    gpu.check(matmul, padded(x), y)
    gpu.check(matmul, x, x[:1].mT)
    gpu.check_matmul_backward(x, y)


@EACH_ORDER
@pytest.mark.parametrize("dtype", (torch.float64, torch.float16, torch.complex64), ids=str)
def test_long_dot(gpu, dtype, order):
    gpu.set(4, order)
    for layout in (torch.clone, offset, sliced):
        x, y = arguments(((40001,), (40001,)), dtype)
        assert len(gpu.check(matmul, layout(x), y)) == 2
        assert len(gpu.check(matmul, x, layout(y))) == 2


SHARED_MATRIX = (
    ((33, 65), (65, 72), (33, 72)),
    ((9, 4), (4, 5), (9, 5)),
    ((40, 16), (16, 33), (40, 33)),
)


@EACH_DTYPE
@pytest.mark.parametrize("shapes", SHARED_MATRIX, ids=str)
def test_products_in_float32(gpu, shapes, dtype):
    """Beside 16-bit numbers an intermediate product is float32: dots of unlike operands."""
    args = arguments(shapes, dtype)
    assert gpu.check(bilinear, *args, others=GEMMS)[-1].startswith("gemv_rows")
    x, _, _ = args
    n = x.shape[1]
    kernels = gpu.check(quadratic, x, draw((n, n), dtype), others=GEMMS)
    assert kernels[-1].startswith("gemv_rows")
    # dy = g p and dx = g q.
    _, p, q = gpu.ops._bilinear_products(*args, True, True)
    g = draw(p.shape[:1], dtype)
    for layout in MATRICES.values():
        gpu.kernels()
        dy, _, dx = gpu.ops._bilinear_products_backward(
            g, *args, layout(p), layout(q), True, False, True
        )
        assert all(name.startswith("outer") for name in gpu.kernels())
        for got, product in ((dy, p), (dx, q)):
            expected = to_double(g)[:, None] * to_double(product)
            assert_near(got, expected, expected.abs(), 1)


@EACH_DTYPE
def test_nn_bilinear(gpu, dtype):
    """Output by output: a product, then dots with a bias into every third element."""
    for shapes in (((9, 8), (9, 16), (3, 8, 16), (3,)), ((9, 7), (9, 5), (1, 7, 5), (1,))):
        args = arguments(shapes, dtype)
        for bias in (args[3], None):
            kernels = gpu.check(nn_bilinear, *args[:3], bias, others=GEMMS)
            assert kernels[-1].startswith("gemv_rows")
    # With one input everything is memory traffic.
    for shapes in (((9, 1), (9, 16), (8, 1, 16), (8,)), ((1, 1), (1, 1), (300, 1, 1), (300,))):
        gpu.check(nn_bilinear, *arguments(shapes, dtype), others=GEMMS)


@EACH_DTYPE
def test_a_vector_that_is_not_rounded(gpu, dtype):
    """dy = A (the sum of g x): beside a 16-bit matrix a float32 vector, along rows and columns."""
    for m, n in ((40, 32), (33, 7), (7, 264)):
        y, A, x = arguments(((m,), (m, n), (6, n)), dtype)
        for matrix in (A, transposed(A), offset(A)):
            kernels = gpu.check_backward(
                lambda *args: gpu.ops.bilinear_backward(*args, True, False, False),
                plain_bilinear,
                y,
                matrix,
                x,
            )
            assert all(name.startswith(LEVEL2) for name in kernels), kernels


def sums_of(gpu, grad, bias):
    """dbias of linear, checked."""
    x, w = draw((*grad.shape[:-1], 1), grad.dtype), draw((grad.shape[-1], 1), grad.dtype)
    gpu.kernels()
    _, _, got = gpu.ops.linear_backward(grad, x, w, bias, False, False, True)
    kernels = gpu.kernels()
    assert all(name.startswith(LEVEL2) for name in kernels), kernels
    wide = to_double(grad)
    kept = () if bias.numel() == 1 else (grad.shape[-1],)
    expected = wide.reshape(-1, *kept).sum(0).reshape(bias.shape)
    bound = wide.abs().reshape(-1, *kept).sum(0).reshape(bias.shape)
    assert_near(got, expected, bound, grad.numel())
    return kernels


@EACH_DTYPE
@pytest.mark.parametrize(
    "shape", ((7, 1), (2, 31), (33, 8), (65, 33), (300, 2), (5, 3, 64)), ids=str
)
def test_sums(gpu, shape, dtype):
    grad, bias = draw(shape, dtype), draw(shape[-1], dtype)
    for layout in (*MATRICES.values(), *LAYOUTS):
        sums_of(gpu, layout(grad), bias)
        sums_of(gpu, layout(grad), bias[:1].reshape(()))
    # What sum().backward() hands on, and parts of it.
    one = draw((), dtype)
    for repeated in (one.expand(shape), grad[:1].expand(shape), grad[..., :1].expand(shape)):
        sums_of(gpu, repeated, bias)
        sums_of(gpu, repeated, bias[:1])


def test_names_of_sums(gpu):
    gpu.set(1)
    grad, bias = draw((300, 64), torch.float32), draw(64, torch.float32)
    assert sums_of(gpu, grad, bias) == ["gemv_columns"]
    assert sums_of(gpu, transposed(draw((300, 64), torch.float32)), bias) == ["gemv_four_rows"]
    gpu.set(64)
    assert sums_of(gpu, draw((4096, 64), torch.float32), bias) == ["gemv_columns"] * 2
    assert sums_of(gpu, draw((70000, 1), torch.float32), bias[:1]) == ["gemv_rows"] * 2


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.complex64), ids=str)
def test_sums_over_several_dimensions(gpu, dtype):
    """Stretches that no one stride steps through, of rows and of columns, also cut into parts."""
    for multiprocessors in (1, 64):
        gpu.set(multiprocessors)
        for shape in ((9, 70, 24), (70, 9, 24), (3, 200, 8), (2, 3, 4, 5)):
            big = draw([2 * s for s in shape], dtype)
            grad = big[tuple(slice(0, s) for s in shape)]
            sums_of(gpu, grad, draw(shape[-1], dtype))
            grad = grad.movedim(-1, 0).contiguous().movedim(0, -1)
            sums_of(gpu, grad[..., 1:, :], draw(shape[-1], dtype))
            sums_of(gpu, big[..., ::2], draw((), dtype))
            a = big[tuple(slice(0, s) for s in shape)]
            # dx[k] = sum over the rows of all matrices.
            gpu.check_matmul_backward(a, draw(shape[-1], dtype))


@pytest.mark.parametrize("rows", (1, 33))
def test_sums_of_infinities(gpu, rows):
    """A plain sum multiplies nothing: not an infinite part by zero."""
    for dtype in (torch.complex64, torch.complex128):
        for layout in (torch.clone, transposed, offset):
            grad = draw((rows, 17), dtype)
            grad.imag[0, 3] = torch.inf
            grad.real[rows - 1, 4] = -torch.inf
            bias = draw(17, dtype)
            _, _, got = gpu.ops.linear_backward(
                layout(grad), draw((rows, 1), dtype), draw((17, 1), dtype), bias, False, False, True
            )
            assert got[3].imag == torch.inf
            assert got[4].real == -torch.inf
            assert got.real.isfinite().sum() == got.imag.isfinite().sum() == 16


@pytest.mark.parametrize(
    "dtype", (torch.float64, torch.float32, torch.bfloat16, torch.float16), ids=str
)
@EACH_LAYOUT
def test_infinities_and_nans_stay_where_they_belong(gpu, layout, dtype):
    for m, k in ((33, 33), (5, 65), (65, 5)):
        a, x = draw((m, k), dtype), draw(k, dtype).abs() + 0.5
        a[1, k - 1] = torch.inf
        a[m - 1, 0] = -torch.inf
        a[2, 2] = torch.nan
        expected = torch.full((m,), 0.0)
        expected[1], expected[m - 1], expected[2] = torch.inf, -torch.inf, torch.nan
        finite = torch.ones(m, dtype=torch.bool)
        finite[[1, 2, m - 1]] = False
        for got in (gpu.ops.matmul(layout(a), x), gpu.ops.matmul(x, layout(a).mT)):
            assert got[finite].isfinite().all()
            assert torch.equal(
                got[~finite].nan_to_num(1, 2, 3), expected[~finite].to(dtype).nan_to_num(1, 2, 3)
            )
        x[k - 1] = torch.nan
        assert gpu.ops.matmul(layout(a), x).isnan().all()


# --------------------------------------------------------------------------------------------
# Outer products, scaled rows, fills


@EACH_DTYPE
@pytest.mark.parametrize(
    ("m", "n"), ((1, 1), (1, 7), (7, 1), (2, 31), (33, 32), (64, 65), (129, 8), (3, 1025), (300, 2))
)
def test_outer_products(gpu, m, n, dtype):
    x, y = arguments(((m, 1), (1, n)), dtype)
    (kernel,) = gpu.check(matmul, x, y)
    packs = 1 if dtype == torch.complex128 else 16 // dtype.itemsize
    along = n if n > 1 else m
    if m != 1 and n != 1:
        assert (kernel == "outer") == (along % packs == 0)
    for layout in MATRICES.values():
        gpu.check(matmul, layout(x), layout(y))
    gpu.check(matmul, draw((m, 3), dtype)[:, 1:2], draw((n, 5), dtype)[:, 2:3].mT)
    gpu.check_matmul_backward(draw((2, m, n), dtype), draw((2, n, 1), dtype))
    gpu.check(matmul, *arguments(((7, m, 1), (7, 1, n)), dtype))
    gpu.check(matmul, *arguments(((3, 1, m, 1), (2, 1, n)), dtype))
    gpu.check(linear, x, draw((n, 1), dtype), draw(n, dtype))
    gpu.check(linear, x, draw((n, 1), dtype), draw((), dtype))


@EACH_DTYPE
@EACH_LAYOUT
def test_scaled_outer_products(gpu, layout, dtype):
    """dA = g y x^T, with g a scale operand."""
    for m, n in ((5, 8), (33, 7), (1, 40), (40, 1)):
        y, A, x = arguments(((3, m), (m, n), (3, n)), dtype)
        # A matrix that is one for all and has a gradient for each.
        kernels = gpu.check_backward(
            lambda *args: gpu.ops.bilinear_backward(*args, False, True, False),
            plain_bilinear,
            layout(y),
            A.expand(3, m, n),
            layout(x),
            grad=draw((3, 2), dtype)[:, 1],
        )
        assert kernels in (["outer"], ["outer_by_element"])


def test_elements_of_items(gpu):
    """C has one element for each item: packs run along the items."""
    a, b = arguments(((1025, 1, 1), (1025, 1, 1)), torch.float32)
    assert gpu.check(matmul, a, b) == ["outer"]
    assert gpu.check(matmul, a[::2], b[::2]) == ["outer"]
    assert gpu.check(matmul, a[:1], b) == ["outer"]
    a, b = arguments(((3, 5, 1, 1), (5, 3, 1, 1)), torch.float32)
    gpu.check(matmul, a, b.transpose(0, 1))


def test_columns_in_stretches(gpu):
    """A contiguous result from factors that no one stride steps through."""
    x = draw((2, 6, 5, 16), torch.float32)[:, :4, :, :8]
    assert gpu.check(linear, x[..., None], draw((1, 1), torch.float32), None) == ["outer"]
    gpu.check(
        linear,
        x.permute(3, 0, 1, 2)[..., None],
        draw((1, 1), torch.float32),
        draw(1, torch.float32),
    )
    gpu.check(linear, x[..., None], draw((3, 1), torch.float32), draw(3, torch.float32))
    gpu.check_backward(
        lambda *args: gpu.ops.linear_backward(*args, None, True, True, False)[:2],
        linear.plain,
        x,
        draw((1, 8), torch.float32),
    )


@EACH_DTYPE
@pytest.mark.parametrize(("m", "n"), ((1, 1), (1, 7), (33, 8), (5, 65), (1025, 3)))
def test_no_term_at_all(gpu, m, n, dtype):
    """The bias, or zero."""
    x, weight, bias = draw((m, 0), dtype), draw((n, 0), dtype), draw((2, n), dtype)[1]
    for b in (bias, bias.repeat_interleave(2)[::2], bias[:1]):
        got = gpu.ops.linear(x, weight, b)
        assert torch.equal(got, b.expand(m, n))
    got = gpu.ops.matmul(x, weight.mT)
    assert torch.equal(got, torch.zeros(m, n, dtype=dtype))
    got = gpu.ops.matmul(x.expand(2, m, 0), weight.mT)
    assert torch.equal(got, torch.zeros(2, m, n, dtype=dtype))
    assert all(name.startswith("outer") for name in gpu.kernels())


# --------------------------------------------------------------------------------------------
# What is left to others


def test_what_is_not_taken(gpu):
    def kernels(*args):
        gpu.kernels()
        gpu.ops.matmul(*args)
        return gpu.kernels()

    for a, b in (((2, 3), (3, 2)), ((4, 2, 3), (4, 3, 2))):
        assert not any(name.startswith(LEVEL2) for name in kernels(*arguments((a, b))))
    whole = torch.ones(3, 3, dtype=torch.int32)
    assert not any(name.startswith(LEVEL2) for name in kernels(whole, whole[0]))
    # Sums over more dimensions than kernels take as sizes and strides.
    a = draw((3, 2, 2, 3, 2, 3, 7)).permute(5, 4, 3, 2, 1, 0, 6)
    sums = gpu.ops.linear_backward(
        a, draw((*a.shape[:-1], 1)), draw((7, 1)), draw(7), False, False, True
    )[2]
    assert_near(sums, a.reshape(-1, 7).sum(0), a.abs().reshape(-1, 7).sum(0), a.numel())
