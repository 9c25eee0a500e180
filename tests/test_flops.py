"""The operations that torch's FlopCounterMode counts, against those of the same work in torch."""

import pytest
import torch
from reference import OPS, arguments
from torch.utils.flop_counter import FlopCounterMode

import matcalc_ext


def flops(function, shapes, fixed=()):
    """Of the value, and of the gradients of all but the `fixed` arguments."""
    args = arguments(shapes, torch.float32)
    leaves = [t for i, t in enumerate(args) if t is not None and i not in fixed]
    for leaf in leaves:
        leaf.requires_grad_()
    with FlopCounterMode(display=False) as forward:
        out = function(*args)
    with FlopCounterMode(display=False) as backward:
        torch.autograd.grad(out, leaves, torch.ones_like(out))
    return forward.get_total_flops(), backward.get_total_flops()


@pytest.mark.parametrize("fixed", [(), (0,), (1,)])
@pytest.mark.parametrize(
    ("ours", "plain", "shapes"),
    [
        (matcalc_ext.matmul, torch.matmul, ((7, 5), (5, 3))),
        (matcalc_ext.matmul, torch.matmul, ((4, 7, 5), (4, 5, 3))),
        (matcalc_ext.matmul, torch.matmul, ((4, 7, 5), (5, 3))),
        (matcalc_ext.linear, torch.nn.functional.linear, ((7, 5), (3, 5), (3,))),
        (matcalc_ext.linear, torch.nn.functional.linear, ((2, 7, 5), (3, 5), (3,))),
    ],
)
def test_products(ours, plain, shapes, fixed):
    assert flops(ours, shapes, fixed) == flops(plain, shapes, fixed)


@pytest.mark.parametrize("n", [10, 300], ids=["plain", "keeps_products"])
def test_forms(n):
    product, value = 2 * n * n, 2 * n
    shapes = (n,), (n, n), (n,)
    forward, backward = flops(matcalc_ext.bilinear, shapes)
    if n == 10:
        assert (forward, backward) == (product + value, 3 * (product + value))
    else:
        assert (forward, backward) == (2 * product + value, product + 3 * value)
    forward, backward = flops(matcalc_ext.quadratic, shapes[:2])
    assert forward == product + value
    assert backward == (2 * forward if n == 10 else forward + value)


def test_pairs():
    """The value as that of (y A) xᵀ."""
    plain, _ = flops(lambda y, A, x: y @ A @ x.mT, ((6, 40), (40, 30), (9, 30)))
    ours, _ = flops(matcalc_ext.bilinear, ((6, 1, 40), (40, 30), (9, 30)))
    assert ours == plain


@pytest.mark.parametrize("fixed", [(), (0,), (2,), (0, 1)])
def test_nn_bilinear(fixed):
    work = 2 * 5 * 4 * 3 * 2
    shapes = (5, 3), (5, 2), (4, 3, 2), (4,)
    forward, backward = flops(matcalc_ext.nn_bilinear, shapes, fixed)
    assert forward == work
    assert backward == work * ((2 not in fixed) + (fixed != (0, 1)))


@pytest.mark.parametrize("op", OPS, ids=str)
def test_every_op_is_counted(op):
    for shapes in op.families.values():
        forward, backward = flops(op.ours, shapes)
        assert forward > 0
        assert backward > 0


def test_by_module():
    model = matcalc_ext.nn.swap(torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Linear(6, 2)))
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(3, 4))
    counts = counter.get_flop_counts()
    assert [sum(counts[f"Sequential.{i}"].values()) for i in (0, 1)] == [2 * 3 * 24, 2 * 3 * 12]
