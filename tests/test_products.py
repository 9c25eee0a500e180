"""What the forward pass of a form keeps for the backward pass: A x and Aᵀ y, made in one pass.

From some size on the gradients of the vectors come from there; the values, the gradients and their
own derivatives are the same as without.
"""

import pytest
import torch
from reference import (
    BY_NAME,
    FLOATING,
    arguments,
    assert_near,
    check_gradients,
    check_value,
    draw,
    here,
    plain_bilinear,
    symmetrised,
    terms_of,
    to_double,
    transposed,
)
from torch.profiler import ProfilerActivity, profile

import matcalc_ext
from matcalc_ext.ops import _function

pytestmark = pytest.mark.usefixtures("on_each_device", "kept_alike")
ops = torch.ops.matcalc_ext
EACH_DTYPE = pytest.mark.parametrize("dtype", FLOATING, ids=str)
# A matrix of its own for every item, one for all, and broadcasts: items that share a vector too
# keep the product of the fewer vectors, others nothing.
BILINEAR = {
    "one": ((190,), (190, 210), (210,)),
    "per item": ((3, 100), (3, 100, 130), (3, 130)),
    "many small": ((300, 11), (300, 11, 13), (300, 13)),
    "shared": ((40, 33), (33, 70), (40, 70)),
    "two batch dimensions": ((5, 6, 33), (33, 70), (5, 6, 70)),
    "broadcast y": ((100,), (4, 100, 130), (4, 130)),
    "all pairs, p": ((19, 1, 40), (40, 50), (8, 50)),
    "all pairs, q": ((2, 5, 1, 150), (150, 60), (2, 1, 9, 60)),
    "all pairs, labels": ((2, 1, 5, 1, 60), (3, 1, 1, 60, 70), (2, 1, 1, 7, 70)),
    "one x": ((30, 40), (40, 50), (50,)),
    "one y": ((200,), (200, 190), (2, 3, 190)),
}
KEEPING = [name for name in BILINEAR if name != "broadcast y"]
QUADRATIC = {
    "one": ((200,), (200, 200)),
    "per item": ((3, 110), (3, 110, 110)),
    "shared": ((40, 61), (61, 61)),
}


@pytest.fixture
def kept_alike(monkeypatch):
    """From the same size on as on the CPU, so that the shapes here serve every device."""
    monkeypatch.setattr(_function, "_KEEP_FROM_CUDA", _function._KEEP_FROM)


def ops_called(step):
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as record:
        step()
    return {event.key for event in record.key_averages()}


@EACH_DTYPE
@pytest.mark.parametrize("family", BILINEAR)
def test_bilinear(family, dtype):
    args = arguments(BILINEAR[family], dtype)
    leaves = [t.clone().requires_grad_() for t in args]
    called = ops_called(lambda: matcalc_ext.bilinear(*leaves).abs().sum().backward())
    assert ("matcalc_ext::_bilinear_products" in called) == (family in KEEPING)
    assert ("matcalc_ext::_bilinear_products_backward" in called) == (family in KEEPING)
    check_value(BY_NAME["bilinear"], *leaves)
    check_gradients(BY_NAME["bilinear"], *args)
    check_value(BY_NAME["bilinear"], args[0], transposed(args[1]).requires_grad_(), args[2])


@EACH_DTYPE
@pytest.mark.parametrize("family", QUADRATIC)
@pytest.mark.parametrize("symmetric", [False, True], ids=["general", "symmetric"])
def test_quadratic(family, symmetric, dtype):
    op = BY_NAME["quadratic_symmetric" if symmetric else "quadratic"]
    x, A = arguments(QUADRATIC[family], dtype)
    A = symmetrised(A)
    leaf = x.clone().requires_grad_()
    called = ops_called(lambda: op.ours(leaf, A).abs().sum().backward())
    assert "matcalc_ext::_quadratic_products_backward" in called
    check_value(op, leaf, A)
    check_gradients(op, x, A)


@EACH_DTYPE
@pytest.mark.parametrize("family", BILINEAR)
def test_products_of_the_op(family, dtype):
    """They are the gradients for g = 1, in float32 beside the 16-bit dtypes.

    In bfloat16 those that items share stay so, as operands of further products.
    """
    y, A, x = arguments(BILINEAR[family], dtype)
    wide = [to_double(t) for t in (y, A, x)]
    batch = torch.broadcast_shapes(y.shape[:-1], A.shape[:-2], x.shape[:-1])

    def own(product):
        """With a 1 for each batch dimension that it lacks."""
        return product.reshape(*[1] * (len(batch) + 1 - product.dim()), *product.shape)

    def plain(y, A, x):
        p, q = A @ x.unsqueeze(-1), A.mT @ y.unsqueeze(-1)
        return plain_bilinear(y, A, x), own(p.squeeze(-1).conj()), own(q.squeeze(-1).conj())

    expected, bounds = plain(*wide), plain(*(t.abs() for t in wide))
    for need_p, need_q in ((True, True), (True, False), (False, True)):
        got = ops._bilinear_products(y, A, x, need_p, need_q)
        assert (got[1] is not None, got[2] is not None) == (need_p, need_q)
        for one, two, bound in zip(got, expected, bounds, strict=True):
            if one is not None:
                stays = one is got[0] or (dtype == torch.bfloat16 and one.shape[:-1] != batch)
                assert one.dtype == (dtype if stays or dtype.itemsize > 2 else torch.float32)
                assert_near(one, two, bound, terms_of((y, A, x)), family)


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
def test_empty(shape):
    b, m, n = shape
    y, A, x = (here(torch.ones(s)) for s in ((b, m), (b, m, n), (b, n)))
    alpha, p, q = ops._bilinear_products(y, A, x, True, True)
    assert torch.equal(alpha, y.new_zeros(b))
    assert torch.equal(p, y.new_zeros(b, m))
    assert torch.equal(q, y.new_zeros(b, n))


@pytest.mark.parametrize("family", KEEPING)
def test_second_derivatives_do_not_use_them(family):
    args = [t.requires_grad_() for t in arguments(BILINEAR[family])]

    def second(function):
        grads = torch.autograd.grad((function(*args) ** 2).sum(), args, create_graph=True)
        return torch.autograd.grad(sum((g**2).sum() for g in grads), args)

    for got, expected in zip(second(matcalc_ext.bilinear), second(plain_bilinear), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize("family", KEEPING)
def test_batched_gradients(family):
    args = [t.requires_grad_() for t in arguments(BILINEAR[family])]
    alpha = matcalc_ext.bilinear(*args)
    g = draw((2, *alpha.shape))
    got = torch.autograd.grad(alpha, args, g, is_grads_batched=True, retain_graph=True)
    for i in range(2):
        for one, many in zip(
            torch.autograd.grad(alpha, args, g[i], retain_graph=True), got, strict=True
        ):
            torch.testing.assert_close(many[i], one)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("family", KEEPING)
def test_compiled(family):
    args = [t.requires_grad_() for t in arguments(BILINEAR[family])]
    run = torch.compile(lambda *a: (matcalc_ext.bilinear(*a) ** 2).sum(), backend="aot_eager")
    got = torch.autograd.grad(run(*args), args)
    expected = torch.autograd.grad((plain_bilinear(*args) ** 2).sum(), args)
    for one, two in zip(got, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)


def test_a_matrix_changed_in_between_is_noticed():
    y, A, x = [t.requires_grad_() for t in arguments(BILINEAR["one"])]
    alpha = matcalc_ext.bilinear(y, A, x)
    with torch.no_grad():
        A.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        alpha.backward()


@pytest.mark.parametrize(
    ("p", "message"),
    [
        (torch.ones(2, 4), r"p has shape \[2, 4\], expected the product of shape \[2, 3\]"),
        (torch.ones(2, 3, dtype=torch.float32), "expected the product"),
    ],
)
def test_a_product_that_does_not_fit(p, message):
    y, A, x, g = draw((2, 3)), draw((2, 3, 4)), draw((2, 4)), draw((2,))
    p = here(p.to(torch.float64) if p.shape[-1] == 4 else p)
    with pytest.raises(RuntimeError, match=message):
        ops._bilinear_products_backward(g, y, A, x, p, None, True, False, False)
    with pytest.raises(RuntimeError, match="neither p nor q"):
        ops._bilinear_products(y, A, x, False, False)
