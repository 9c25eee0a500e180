"""Products of whole numbers under each instruction set: csrc/cpu/integer.cpp."""

import itertools

import pytest
import torch
from reference import offset, sliced, transposed

import matcalc_ext
from matcalc_ext import _C

EACH_DTYPE = pytest.mark.parametrize(
    "dtype", (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8), ids=str
)


def plain(t):
    return t


LAYOUTS = (plain, transposed, sliced, offset)


@pytest.fixture(params=(1, 3))
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def draw(shape, dtype):
    """Over the whole range, so that sums wrap."""
    info = torch.iinfo(dtype)
    return torch.randint(info.min, info.max, shape, dtype=dtype)


def product(a, b):
    """Sums in 64 bits, of which those of fewer bits are the remainders."""
    return torch.matmul(a.long(), b.long()).to(a.dtype)


def check(a, b):
    assert torch.equal(matcalc_ext.matmul(a, b), product(a, b))


@EACH_DTYPE
@pytest.mark.parametrize("depth", (0, 1, 2, 3, 63, 64, 257))
def test_sizes(isa, depth, dtype):
    """Rows and columns around the tile's; few of either, which are not packed."""
    for m in (1, 2, 3, 5, 6, 7, 8, 9, 17):
        for n in (1, 2, 3, 8, 15, 16, 17, 31, 33, 65, 97):
            a, b = draw((m, depth), dtype), draw((depth, n), dtype)
            check(a, b)
            check(transposed(a), transposed(b))


@EACH_DTYPE
@pytest.mark.parametrize(
    "shape",
    ((7, 70, 40), (40, 70, 2), (2, 70, 40), (1, 70, 1), (200, 1, 60), (50, 300, 20)),
    ids=str,
)
def test_layouts(isa, shape, dtype):
    m, k, n = shape
    a, b = draw((2, 3, m, k), dtype), draw((2, 3, k, n), dtype)
    expected = product(a, b)
    for left, right in itertools.product(LAYOUTS, LAYOUTS):
        got = matcalc_ext.matmul(left(a), right(b))
        assert got.dtype == dtype
        assert torch.equal(got, expected)
        assert torch.equal(matcalc_ext.matmul(left(a)[0, 0], right(b)[0, 0]), expected[0, 0])


@EACH_DTYPE
def test_several_blocks(isa, threads, dtype):
    """Of rows, of columns and of the depth, whose sums wait in C."""
    a, b = draw((270, 530), dtype), draw((530, 550), dtype)
    expected = product(a, b)
    assert torch.equal(matcalc_ext.matmul(a, b), expected)
    assert torch.equal(matcalc_ext.matmul(transposed(a), transposed(b)), expected)


@EACH_DTYPE
def test_long_vectors(isa, threads, dtype):
    """Longer than the pieces of 16 KiB that are taken at a time."""
    vector = draw((35003,), dtype)
    check(vector, draw((35003,), dtype))
    check(vector, sliced(vector))
    check(sliced(vector), vector)
    for layout in LAYOUTS:
        check(layout(draw((5, 35003), dtype)), vector)
        check(layout(draw((5, 35003), dtype)), draw((35003, 3), dtype))
        check(draw((3, 5), dtype), layout(draw((5, 35003), dtype)))
        check(draw((2, 70), dtype), layout(draw((70, 35003), dtype)))


@EACH_DTYPE
def test_batches(isa, threads, dtype):
    """Shared by several threads, in several dimensions, and repeated along some."""
    a, b = draw((7, 90, 4, 5), dtype), draw((90, 5, 4), dtype)
    check(a, b)
    check(a[:, ::2], transposed(b[1::2]))
    check(a.transpose(0, 1), b[:, None])
    check(a[:1, :, :1], b)
    check(a[0, 0], b)
    check(a.transpose(1, 2), b[0])
    check(draw((3, 90, 80), dtype), draw((3, 80, 100), dtype))


@EACH_DTYPE
def test_expanded_operands(isa, dtype):
    row, column = draw((70,), dtype), draw((90, 1), dtype)
    check(row.expand(40, 70), draw((70, 30), dtype))
    check(column.expand(90, 70), row.expand(20, 70).mT)
    check(column.expand(90, 70), row[:1].expand(70))
    check(draw((40, 100), dtype).unfold(1, 70, 3), draw((70, 20), dtype))


@pytest.mark.parametrize("dtype", (torch.int64, torch.int8), ids=str)
def test_a_sum_of_more_terms_than_31_bits_count(dtype):
    terms = 2**31 + 3
    a, b = (torch.tensor([x], dtype=dtype).expand(terms) for x in (3, 5))
    assert matcalc_ext.matmul(a, b).item() == torch.tensor(15 * terms).to(dtype).item()


@pytest.mark.parametrize(
    ("left", "right"),
    (
        ((3_000_000,), (3_000_000,)),
        ((3, 1_000_000), (1_000_000, 20)),
        ((20, 3), (3, 1_000_000)),
    ),
    ids=str,
)
def test_working_memory_does_not_grow_with_the_sizes(left, right):
    before = _C.cpu_scratch_bytes()
    for layout in (plain, transposed):
        check(layout(draw(left, torch.int8)), layout(draw(right, torch.int8)))
    assert _C.cpu_scratch_bytes() - before < torch.get_num_threads() << 20
