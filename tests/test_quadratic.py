import pytest
import torch
from reference import (
    FLOATING,
    LAYOUTS,
    arguments,
    check_gradients,
    check_value,
    current_device,
    draw,
    gradients,
    here,
    plain_bilinear,
    quadratic,
    quadratic_symmetric,
)

import matcalc_ext

pytestmark = pytest.mark.usefixtures("on_each_device")

SHAPES = (
    *(((n,), (n, n)) for n in (1, 2, 7, 16, 33, 64, 65, 131)),
    ((6, 17), (6, 17, 17)),
    ((6, 17), (17, 17)),
    ((17,), (6, 17, 17)),
    ((4, 1, 9), (5, 9, 9)),
    ((4, 1, 9), (1, 9, 9)),
    ((2, 1, 3, 9), (4, 1, 9, 9)),
    ((40, 1, 33), (25, 33, 33)),
    ((5, 1, 135), (17, 135, 135)),
    ((3, 1, 2, 1, 130), (3, 1, 6, 130, 130)),
    ((1, 3, 5, 17), (18, 1, 1, 17, 17)),
    ((2, 1, 3, 1, 9), (4, 1, 5, 9, 9)),
    *(((rows, 150), (150, 150)) for rows in (1, 3, 8, 9)),
    ((2, 1, 130), (4, 130, 130)),
    # Few vectors of a large matrix, one after the other.
    ((4, 515), (515, 515)),
    ((2, 1, 514), (2, 514, 514)),
    ((2, 1, 514), (1, 2, 514, 514)),
    ((8, 260), (260, 260)),
)
EMPTY = (
    ((0,), (0, 0)),
    ((0, 3), (3, 3)),
    ((2, 0), (2, 0, 0)),
    ((3,), (0, 3, 3)),
    ((2, 1, 3), (0, 3, 3)),
)


def from_lower(A):
    """The symmetric matrix that the lower triangle gives."""
    return A.tril() + A.tril(-1).mT


def symmetric(x, A):
    return matcalc_ext.quadratic(x, A, symmetric=True)


def lower_plain(x, A):
    return plain_bilinear(x, from_lower(A), x)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_value_and_gradients(shapes, dtype):
    args = arguments(shapes, dtype)
    check_value(quadratic, *args)
    check_gradients(quadratic, *args)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_symmetric_reads_the_lower_triangle_only(shapes, dtype):
    """Whatever stands in the upper one; and dA = g x xᵀ is full and symmetric."""
    x, A = arguments(shapes, dtype)
    full = from_lower(A)
    other_upper = A.tril() + torch.full_like(A, 3e4).triu(1)
    g = draw(quadratic.plain(x, A).shape, dtype)
    for matrix in (other_upper, full):
        assert torch.equal(symmetric(x, matrix), symmetric(x, full))
        dx, dA = gradients(symmetric, (x, matrix), g)
        dx_full, dA_full = gradients(quadratic.ours, (x, full), g)
        tolerance = 200 * torch.finfo(dtype).eps
        scale = 1 + dx_full.abs().max().item()
        torch.testing.assert_close(dx, dx_full, rtol=tolerance, atol=tolerance * scale)
        torch.testing.assert_close(dA, dA_full)


@pytest.mark.parametrize("shapes", [s for s in SHAPES if s[1][-1] > 1], ids=str)
def test_symmetric_never_touches_the_upper_triangle(shapes):
    """Not even to multiply it by zero: NaN there stays there."""
    x, A = arguments(shapes)
    upper = torch.ones_like(A).triu(1).bool()
    poisoned = A.masked_fill(upper, float("nan"))
    g = draw(quadratic.plain(x, A).shape)
    torch.testing.assert_close(symmetric(x, poisoned), lower_plain(x, A))
    dx, dA = gradients(symmetric, (x, poisoned), g)
    expected_dx, _ = gradients(lower_plain, (x, A), g)
    torch.testing.assert_close(dx, expected_dx)
    assert dA.isfinite().all()
    torch.testing.assert_close(dA, dA.mT)


@pytest.mark.parametrize("op", (quadratic, quadratic_symmetric), ids=str)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.complex128), ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_layouts(layout, dtype, op):
    for shapes in (
        ((19,), (19, 19)),
        ((3, 5), (3, 5, 5)),
        ((4, 5), (5, 5)),
        ((2, 3, 1, 5), (20, 5, 5)),
    ):
        x, A = arguments(shapes, dtype)
        if op is quadratic_symmetric:  # exactly symmetric, so that op and reference see one matrix
            A = from_lower(A)
        for views in ((layout(x), A), (x, layout(A)), (layout(x), layout(A))):
            check_value(op, *views)
            check_gradients(op, *views)


MANY_SUMS = (
    *((((300, 483), (483, 483)), dtype) for dtype in FLOATING),
    (((2, 260, 1, 131), (9, 131, 131)), torch.float32),
    (((2, 260, 1, 131), (9, 131, 131)), torch.bfloat16),
)


@pytest.mark.parametrize(("shapes", "dtype"), MANY_SUMS, ids=str)
def test_large_gradients_of_a_shared_matrix_are_mirrored(shapes, dtype):
    """Some rows at a time, each up to the diagonal."""
    for op in (quadratic, quadratic_symmetric):
        args = arguments(shapes, dtype)
        x, A = (args[0], from_lower(args[1])) if op is quadratic_symmetric else args
        check_gradients(op, x, A)
        dA = gradients(op.ours, (x, A), draw(op.plain(x, A).shape, dtype))[1]
        if current_device().type == "cpu":
            rows, columns = torch.tril_indices(*dA.shape[-2:], offset=-dA.shape[-1] // 2)
            assert torch.equal(dA[..., rows, columns], dA[..., columns, rows])


def test_expanded_operands():
    check_gradients(quadratic, draw((1,)).expand(5), draw((1, 5)).expand(5, 5))
    check_gradients(quadratic, draw((1, 5)).expand(3, 5), draw((5, 5)).expand(3, 5, 5))
    x, A = draw((1, 1, 5)).expand(4, 1, 5), draw((20, 5, 5))
    check_gradients(quadratic, x, A)
    check_gradients(quadratic, x, A[:1].expand(20, 5, 5))
    check_gradients(quadratic, x.expand(4, 20, 5), A)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("shapes", EMPTY, ids=str)
def test_empty(shapes, dtype):
    for op in (quadratic, quadratic_symmetric):
        args = arguments(shapes, dtype)
        out = check_value(op, *args)
        assert torch.equal(out, torch.zeros_like(out))
        check_gradients(op, *args)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_gradients_are_the_closed_forms(dtype):
    """dx = (A + Aᵀ) x and dA = x xᵀ, number for number on small integers."""
    x, A = (here(torch.tensor(t).to(dtype)) for t in ([1, 2], [[1, 2], [3, 4]]))
    dx, dA = gradients(quadratic.ours, (x, A), here(torch.ones((), dtype=dtype)))
    assert quadratic.ours(x, A) == 27
    assert dx.tolist() == [12, 21]
    assert dA.tolist() == [[1, 2], [2, 4]]


def test_nan_and_infinity():
    for special in (float("nan"), float("inf")):
        x, A = arguments(((17,), (17, 17)))
        A[6, 3] = special
        assert not quadratic.ours(x, A).isfinite()
        x[3] = 0
        assert quadratic.ours(x, A).isnan()
        one = here(torch.ones((), dtype=torch.float64))
        dx, dA = gradients(quadratic.ours, (x, A), one)
        assert [i for i, v in enumerate(dx.tolist()) if v != v or abs(v) == float("inf")] == [3, 6]
        assert dA.isfinite().all()


def test_directions_of_a_symmetric_matrix_are_general_matrices():
    """α moves by xᵀ Ȧ x and dx by (Ȧ + Ȧᵀ) x, all of Ȧ read, as dA = x xᵀ says."""
    x, A, direction = arguments(((5,), (5, 5), (5, 5)))
    gradient = torch.func.grad(symmetric, argnums=(0, 1))
    for wrong_upper in (from_lower(A), A.tril()):
        _, tangent = torch.func.jvp(lambda A: symmetric(x, A), (wrong_upper,), (direction,))
        torch.testing.assert_close(tangent, x @ direction @ x)
        _, (dx, dA) = torch.func.jvp(lambda A: gradient(x, A), (wrong_upper,), (direction,))
        torch.testing.assert_close(dx, (direction + direction.mT) @ x)
        assert torch.equal(dA, torch.zeros_like(A))
