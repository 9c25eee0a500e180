import pytest
import torch
from reference import (
    FLOATING,
    LAYOUTS,
    arguments,
    bilinear,
    check_gradients,
    check_value,
    draw,
    gradients,
    here,
)

pytestmark = pytest.mark.usefixtures("on_each_device")

SHAPES = (
    *(((m,), (m, n), (n,)) for m, n in ((1, 1), (5, 7), (16, 16), (33, 65), (131, 70), (1, 300))),
    ((300,), (300, 1), (1,)),
    ((6, 9), (6, 9, 17), (6, 17)),
    ((6, 9), (9, 17), (6, 17)),
    ((9,), (6, 9, 17), (6, 17)),
    ((6, 9), (6, 9, 17), (17,)),
    ((9,), (6, 9, 17), (17,)),
    ((6, 9), (9, 17), (17,)),
    ((4, 1, 9), (9, 17), (5, 17)),
    ((4, 1, 9), (5, 9, 17), (17,)),
    ((2, 1, 3, 9), (4, 1, 9, 17), (1, 1, 3, 17)),
    ((40, 1, 33), (18, 33, 65), (40, 1, 65)),
    ((3, 1, 2, 1, 70), (3, 1, 6, 70, 130), (2, 1, 130)),
    ((1, 3, 5, 17), (18, 1, 1, 17, 9), (3, 5, 9)),
    ((2, 1, 3, 1, 9), (4, 1, 5, 9, 17), (2, 1, 3, 1, 17)),
)
EMPTY = (
    ((0,), (0, 3), (3,)),
    ((3,), (3, 0), (0,)),
    ((0,), (0, 0), (0,)),
    ((0, 3), (3, 4), (4,)),
    ((0, 3), (1, 3, 4), (4,)),
    ((2, 0), (2, 0, 4), (4,)),
    ((2, 1, 3), (0, 3, 4), (4,)),
)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_value_and_gradients(shapes, dtype):
    args = arguments(shapes, dtype)
    check_value(bilinear, *args)
    check_gradients(bilinear, *args)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.complex128), ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_layouts(layout, dtype):
    for shapes in (
        ((19,), (19, 34), (34,)),
        ((3, 5), (3, 5, 7), (3, 7)),
        ((4, 5), (5, 7), (4, 7)),
        ((2, 3, 1, 5), (20, 5, 7), (2, 3, 1, 7)),
    ):
        args = arguments(shapes, dtype)
        for i in range(3):
            views = [layout(t) if i == j else t for j, t in enumerate(args)]
            check_value(bilinear, *views)
            check_gradients(bilinear, *views)
        check_gradients(bilinear, *map(layout, args))


def test_expanded_operands():
    check_gradients(bilinear, draw((1,)).expand(5), draw((1, 7)).expand(5, 7), draw((7,)))
    check_gradients(bilinear, draw((3, 5)), draw((5, 7)).expand(3, 5, 7), draw((1, 7)).expand(3, 7))
    check_gradients(bilinear, draw((2, 5)), draw((2, 1, 1)).expand(2, 5, 7), draw((2, 7)))


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("shapes", EMPTY, ids=str)
def test_empty(shapes, dtype):
    args = arguments(shapes, dtype)
    out = check_value(bilinear, *args)
    assert torch.equal(out, torch.zeros_like(out))
    check_gradients(bilinear, *args)


@pytest.mark.parametrize("shapes", [((0, 64), (64, 1), (0, 1)), ((0, 4), (4, 5), (0, 5))], ids=str)
def test_no_items_of_expanded_vectors(shapes):
    """A batch of no items has the strides of a vector that several items share."""
    y, A, x = arguments(shapes)
    for views in (
        (y, A, draw((1, x.shape[1])).expand(x.shape)),
        (draw((1, y.shape[1])).expand(y.shape), A, x),
        (y, A, draw(x.shape[::-1]).mT),
        (draw(y.shape[::-1]).mT, A, x),
    ):
        check_gradients(bilinear, *views)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_gradients_are_the_closed_forms(dtype):
    """dy = A x, dA = y xᵀ, dx = Aᵀ y, number for number on small integers."""
    y, A, x = (
        here(torch.arange(1, n + 1).to(dtype).reshape(s))
        for n, s in ((3, (3,)), (6, (3, 2)), (2, (2,)))
    )
    dy, dA, dx = gradients(bilinear.ours, (y, A, x), here(torch.ones((), dtype=dtype)))
    assert dy.tolist() == [5, 11, 17]
    assert dA.tolist() == [[1, 2], [2, 4], [3, 6]]
    assert dx.tolist() == [22, 28]
    assert bilinear.ours(y, A, x) == 78


def test_complex_gradients_are_conjugated_as_torch_does():
    y, A, x = arguments(((3,), (3, 2), (2,)), torch.complex128)
    g = here(torch.tensor(2 - 1j, dtype=torch.complex128))
    dy, dA, dx = gradients(bilinear.ours, (y, A, x), g)
    torch.testing.assert_close(dy, g * (A @ x).conj())
    torch.testing.assert_close(dA, g * torch.outer(y, x).conj())
    torch.testing.assert_close(dx, g * (A.mT @ y).conj())


def test_one_vector_as_both():
    x, A = draw((5,), requires_grad=True), draw((5, 5))
    (got,) = torch.autograd.grad(bilinear.ours(x, A, x), x)
    torch.testing.assert_close(got, (A + A.mT) @ x.detach())


def test_nan_and_infinity():
    """They come out where they do in torch: 0 times infinity is not 0, wherever the 0 stands."""
    for at in (0, 6, 16):
        for special in (float("nan"), float("inf")):
            y, A, x = arguments(((17,), (17, 17), (17,)))
            A[at, at] = special
            assert not bilinear.ours(y, A, x).isfinite()
            y[at] = 0
            assert bilinear.ours(y, A, x).isnan()
            one = here(torch.ones((), dtype=torch.float64))
            dy, dA, dx = gradients(bilinear.ours, (y, A, x), one)
            assert not dy[at].isfinite()
            assert dy.isfinite().sum() == 16
            assert dx[at].isnan()
            assert dx.isfinite().sum() == 16
            assert dA.isfinite().all()


def test_low_precision_is_rounded_once():
    """256 + 1 + ... + 1 in bfloat16: sums in bfloat16 would stay at 256."""
    y = here(torch.cat([torch.tensor([256.0]), torch.ones(256)]).bfloat16())
    ones = here(torch.ones(1, dtype=torch.bfloat16))
    assert bilinear.ours(y, ones.expand(257, 1), ones).item() == 512
    assert bilinear.ours(ones, ones.expand(1, 257), y).item() == 512
