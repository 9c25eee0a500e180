"""Products of a matrix with few vectors, sums and outer products under each instruction set."""

import pytest
import torch
from reference import (
    BY_NAME,
    FLOATING,
    arguments,
    assert_near,
    check_value,
    conjugated,
    draw,
    gradients,
    sliced,
    to_double,
    transposed,
)

import matcalc_ext
from matcalc_ext import _C

# Rows and columns around registers, groups of rows, blocks of rows and the columns taken at once.
SHAPES = (
    *((m, n) for m in (1, 3, 4, 5, 8, 9, 17) for n in (2, 7, 16, 33, 63, 64, 65)),
    (40, 5),
    (513, 3),
    (1030, 70),
    (3, 4099),
    (2, 16390),
)
COUNTS = (1, 2, 3, 4, 5, 7, 8, 9)


def by_rows(A):
    return A.contiguous()


def padded(A):
    wide = A.new_full((*A.shape[:-1], A.shape[-1] + 3), torch.nan)
    wide[..., : A.shape[-1]] = A
    return wide[..., : A.shape[-1]]


LAYOUTS = (by_rows, transposed, padded, sliced, conjugated)
EACH_DTYPE = pytest.mark.parametrize("dtype", FLOATING, ids=str)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("layout", LAYOUTS)
@EACH_DTYPE
def test_one_vector(isa, dtype, layout):
    for m, n in SHAPES:
        A, x, y = layout(draw((m, n), dtype)), draw((n,), dtype), draw((m,), dtype)
        check_value(BY_NAME["matmul"], A, x)
        check_value(BY_NAME["matmul"], y, A)
        check_value(BY_NAME["matmul"], A, sliced(x))
        check_value(BY_NAME["matmul"], conjugated(y), A)


@pytest.mark.parametrize("layout", LAYOUTS)
@EACH_DTYPE
def test_few_vectors(isa, dtype, layout):
    for count in COUNTS:
        for m, n in ((9, 20), (17, 65), (70, 530)):
            A, X, Y = layout(draw((m, n), dtype)), draw((n, count), dtype), draw((count, m), dtype)
            check_value(BY_NAME["matmul"], A, X)
            check_value(BY_NAME["matmul"], A, transposed(X))
            check_value(BY_NAME["matmul"], Y, A)
            check_value(BY_NAME["matmul"], sliced(Y), A)


@EACH_DTYPE
def test_rows_that_collide(isa, dtype):
    """They lie a multiple of 4 KiB apart, for which more vectors are taken at a time."""
    A = draw((140, 4096 // dtype.itemsize), dtype)
    for count in (5, 7, 8, 9):
        check_value(BY_NAME["matmul"], draw((count, 140), dtype), A)


@pytest.mark.parametrize(("dtype", "count"), ((torch.float32, 12), (torch.complex64, 8)), ids=str)
def test_matrix_that_comes_from_memory(isa, dtype, count):
    A = draw((520, (32 << 20) // dtype.itemsize // 512), dtype)
    check_value(BY_NAME["matmul"], draw((count, 520), dtype), A)


@EACH_DTYPE
def test_dot_products(isa, dtype):
    for n in (2, 15, 100, 4097, 16385, 40000):
        x, y = draw((n,), dtype), draw((n,), dtype)
        for one in (x, sliced(x), conjugated(x)):
            for two in (y, sliced(y), conjugated(y)):
                check_value(BY_NAME["matmul"], one, two)


@EACH_DTYPE
def test_a_dot_product_of_each_item(isa, dtype):
    """Eight at a time; each has the bits that it has alone."""
    for depth in (1, 5, 16, 33, 100, 513, 4100):
        for batch in ((13,), (3, 9), (270,)):
            x, y = draw((*batch, depth), dtype), draw((*batch, depth), dtype)
            for one, two in ((x, y), (x, conjugated(y)), (x[..., :1, :], y)):
                check_value(BY_NAME["matmul"], one[..., None, :], two[..., None])
            together = matcalc_ext.matmul(x[..., None, :], y[..., None]).reshape(-1)
            for i in (0, 7, batch[-1] - 1):
                alone = matcalc_ext.matmul(x.reshape(-1, depth)[i], y.reshape(-1, depth)[i])
                assert torch.equal(together[i], alone)


@EACH_DTYPE
def test_linear_with_few_rows(isa, dtype):
    for rows in (1, 2, 8):
        for size in (1, 70):
            X, weight, bias = arguments(((rows, 130), (40, 130), (40,)), dtype)
            check_value(BY_NAME["linear"], X, weight, bias)
            check_value(BY_NAME["linear"], X, transposed(weight), sliced(bias))
            check_value(BY_NAME["linear"], X, conjugated(weight), conjugated(bias))
            few = arguments(((size, 130), (rows, 130), (rows,)), dtype)
            check_value(BY_NAME["linear"], *few)


@EACH_DTYPE
def test_batches(isa, dtype):
    for m, n in ((1, 5), (16, 16), (33, 70), (600, 20)):
        A, x, y = draw((2, 3, m, n), dtype), draw((2, 3, n, 1), dtype), draw((3, 1, m), dtype)
        check_value(BY_NAME["matmul"], A, x)
        check_value(BY_NAME["matmul"], y, A)
        check_value(BY_NAME["matmul"], A.permute(1, 0, 2, 3), x.permute(1, 0, 2, 3))
        # The rows of one matrix in two dimensions that are not one.
        check_value(BY_NAME["matmul"], sliced(A[:, :, 0]), x[0, 0])


@EACH_DTYPE
def test_outer_products(isa, dtype):
    """The gradient of a matrix that met a vector: of A y x^T, and of many such."""
    for m, n in ((1, 3), (7, 1), (16, 17), (130, 4100), (4100, 20)):
        for shapes in (((m, n), (n,)), ((3, m, n), (3, n, 1)), ((m,), (m, n))):
            args = arguments(shapes, dtype)
            grad = draw(torch.matmul(*map(to_double, args)).shape, dtype)
            which = 0 if len(shapes[0]) > 1 else 1
            wide = [to_double(t) for t in args]
            assert_near(
                gradients(matcalc_ext.matmul, args, grad)[which],
                gradients(torch.matmul, wide, to_double(grad))[which],
                gradients(torch.matmul, [t.abs() for t in wide], to_double(grad).abs())[which],
                2,
            )


@EACH_DTYPE
def test_numbers_times_vectors(isa, dtype):
    """A sum of one term in every item: of a batch all at once, where C is one row or number."""
    for m, n in ((1, 1), (1, 7), (7, 1), (1, 5000), (3, 20)):
        for b in (3, 300 if m * n < 100 else 2):
            one, two = draw((b, m, 1), dtype), draw((b, 1, n), dtype)
            check_value(BY_NAME["matmul"], one, two)
            check_value(BY_NAME["matmul"], sliced(one), sliced(two))
            check_value(BY_NAME["matmul"], conjugated(one), two)
            check_value(BY_NAME["matmul"], one, conjugated(two))
            check_value(BY_NAME["matmul"], one[:1], two)


@EACH_DTYPE
def test_numbers_times_columns(isa, dtype):
    """A matrix that is transposed on the way: each item's vector is one of its columns."""
    for m, n in ((3, 20), (17, 300), (1, 40), (70, 16), (5, 4200)):
        numbers, columns = draw((m, 1, 1), dtype), draw((n, m), dtype).mT.unsqueeze(1)
        check_value(BY_NAME["matmul"], numbers, columns)
        check_value(BY_NAME["matmul"], numbers, conjugated(columns))
        check_value(BY_NAME["matmul"], numbers[:1], columns)


@EACH_DTYPE
def test_sums(isa, dtype):
    """The gradient of a bias is a sum of rows; that of one number for all a sum of everything."""
    for rows, cols in ((3, 2), (40, 33), (1500, 70), (5, 20000)):
        for bias in (cols, 1):
            X, weight, b = arguments(((rows, 2), (cols, 2), (bias,)), dtype)
            grad = draw((rows, cols), dtype)
            for g in (grad, transposed(grad)):
                got = gradients(matcalc_ext.linear, (X, weight, b), g)[2]
                wide = to_double(grad)
                one, two = (
                    t.sum(0) if bias > 1 else t.sum().reshape(1) for t in (wide, wide.abs())
                )
                assert_near(got, one, two, rows * (cols if bias == 1 else 1))


@EACH_DTYPE
def test_same_bits_for_any_number_of_threads(isa, threads, dtype):
    """A large matrix is shared out by outputs and by blocks of the depth, small ones by items."""
    pairs = [
        ((700, 900), (900,)),
        ((900,), (900, 700)),
        ((900, 700), (700, 3)),
        ((3, 900), (900, 700)),
        ((6, 40000), (40000,)),
        ((40000,), (40000, 3)),
        ((70000,), (70000,)),
        ((3, 300, 500), (3, 500, 1)),
        ((300, 1, 16), (300, 16, 40)),
    ]
    for shapes in pairs:
        args = arguments(shapes, dtype)
        grad = draw(torch.matmul(*map(to_double, args)).shape, dtype)
        results = []
        for count in (1, 2, 4):
            threads(count)
            results.append([matcalc_ext.matmul(*args), *gradients(matcalc_ext.matmul, args, grad)])
        for other in results[1:]:
            assert all(map(torch.equal, results[0], other)), shapes


@EACH_DTYPE
def test_same_bits_in_a_batch_and_alone(isa, dtype):
    for m, n in ((5, 40), (70, 900), (900, 70)):
        A, x, y = draw((9, m, n), dtype), draw((9, n, 1), dtype), draw((9, 1, m), dtype)
        for one, two in ((A, x), (y, A)):
            together = matcalc_ext.matmul(one, two)
            alone = [matcalc_ext.matmul(one[i], two[i]) for i in range(9)]
            assert torch.equal(together, torch.stack(alone)), (m, n)


@pytest.mark.parametrize("special", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_special_numbers_stay_where_they_are(isa, dtype, special):
    """A register's unused lanes, being zeros, must not turn an infinity into a NaN of another."""

    def kinds(t):
        return torch.where(t.isnan(), 2.0, torch.where(t.isinf(), t.sign().double(), 0.0))

    for n in (2, 5, 16, 19, 70):
        A, x = torch.rand(n, n).double() + 0.5, torch.rand(3, n).double() + 0.5
        for where in range(0, n, 3):
            for in_vector in (False, True):
                B, z = A.clone(), x.clone()
                (z[1] if in_vector else B[n - 1])[where] = special
                for count in (1, 3):
                    few = z[1] if count == 1 else z
                    for matrix in (B, B.mT):
                        got = matcalc_ext.matmul(few.to(dtype), matrix.to(dtype))
                        assert torch.equal(kinds(got.double()), kinds(few @ matrix)), (n, where)


@pytest.mark.slow
def test_working_memory_of_few_rows_by_a_large_matrix_is_bounded():
    """The sums of blocks of the depth are 22 MiB for all outputs; whole numbers are exact."""
    x = torch.randint(-2, 3, (12, 24000)).to(torch.bfloat16)
    matrix = torch.randint(-2, 3, (24000, 10000), dtype=torch.int8).to(torch.bfloat16)
    before = _C.cpu_scratch_bytes()
    got = matcalc_ext.matmul(x, matrix)
    assert _C.cpu_scratch_bytes() - before < (17 << 20) + (torch.get_num_threads() << 18)
    assert torch.equal(got, (x.float() @ matrix.float()).to(torch.bfloat16))
