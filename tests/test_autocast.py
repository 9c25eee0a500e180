"""Autocast: the ops do what torch.matmul does."""

import pytest
import torch
from reference import BY_NAME, OPS, arguments, current_device, draw, here
from torch.autograd import gradcheck

import matcalc_ext

pytestmark = pytest.mark.usefixtures("on_each_device")

LOW = (torch.bfloat16, torch.float16)
EACH_OP = pytest.mark.parametrize("op", OPS, ids=str)
EACH_LOW = pytest.mark.parametrize("low", LOW, ids=str)
DIRECT = {
    "matmul": torch.ops.matcalc_ext.matmul,
    "linear": torch.ops.matcalc_ext.linear,
    "bilinear": torch.ops.matcalc_ext.bilinear,
    "quadratic": torch.ops.matcalc_ext.quadratic,
    "nn_bilinear": torch.ops.matcalc_ext.nn_bilinear,
}


def autocast(dtype=None, enabled=True):
    """A region for the device of the test."""
    return torch.autocast(current_device().type, dtype, enabled)


def shapes_of(op):
    return list(op.families.values())[1]


@EACH_LOW
@EACH_OP
def test_float32_is_lowered(op, low):
    args = arguments(shapes_of(op), torch.float32)
    with autocast(low):
        out = op.ours(*args)
    assert out.dtype == low
    expected = op.ours(*(t.to(low) for t in args))
    if op.name != "quadratic_symmetric":  # which makes its matrix before the op
        assert torch.equal(out, expected)
    torch.testing.assert_close(out, expected)


@EACH_LOW
@pytest.mark.parametrize("bias", [False, True])
def test_the_quadratic_layer_is_lowered_with_its_bias(bias, low):
    layer = here(matcalc_ext.nn.Quadratic(7, 3, bias=bias))
    x = draw((5, 7), torch.float32)
    with autocast(low):
        out = layer(x)
    assert out.dtype == low
    torch.testing.assert_close(out.float(), layer(x), rtol=0.05, atol=0.05)
    out.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in layer.parameters())


@EACH_LOW
@pytest.mark.parametrize("name", DIRECT)
def test_direct_calls_are_lowered_too(name, low):
    args = arguments(shapes_of(BY_NAME[name]), torch.float32, requires_grad=True)
    with autocast(low):
        direct, public = DIRECT[name](*args), BY_NAME[name].ours(*args)
        with torch.no_grad():
            assert torch.equal(DIRECT[name](*args), direct)
    assert direct.dtype == low
    assert torch.equal(direct, public)
    for one, two in zip(
        torch.autograd.grad(direct.sum(), args),
        torch.autograd.grad(public.sum(), args),
        strict=True,
    ):
        assert one.dtype == torch.float32
        assert torch.equal(one, two)


DTYPES = (
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.complex64,
    torch.int64,
)


@EACH_LOW
@pytest.mark.parametrize("first", DTYPES, ids=str)
@pytest.mark.parametrize("second", DTYPES, ids=str)
def test_every_pair_of_dtypes_does_as_in_torch(first, second, low):
    """Which it lowers, which it leaves, and which mixtures it refuses."""
    a, b = here(torch.ones(2, 3).to(first)), here(torch.ones(3, 2).to(second))

    def outcome(function, *args):
        try:
            with autocast(low):
                return function(*args).dtype
        except RuntimeError:
            return "refused"

    if first == second == torch.int64:  # only matmul takes them, and torch's for CUDA does not
        assert outcome(matcalc_ext.matmul, a, b) == torch.int64
    else:
        assert outcome(matcalc_ext.matmul, a, b) == outcome(torch.matmul, a, b)
        assert outcome(matcalc_ext.linear, a, b.mT) == outcome(torch.nn.functional.linear, a, b.mT)


@EACH_OP
def test_float64_and_complex_are_left(op):
    for dtype in (torch.float64, torch.complex128):
        args = arguments(shapes_of(op), dtype, requires_grad=True)
        with autocast(torch.bfloat16):
            assert op.ours(*args).dtype == dtype
            assert gradcheck(op.ours, args)


@EACH_OP
def test_gradients_come_back_in_the_dtype_of_the_leaves(op):
    """Backward outside of the region, as torch wants it, and inside of it: the same numbers."""
    args = arguments(shapes_of(op), torch.float32, requires_grad=True)
    with autocast(torch.bfloat16):
        out = op.ours(*args)
        inside = torch.autograd.grad(out.sum(), args, retain_graph=True)
    outside = torch.autograd.grad(out.sum(), args)
    expected = torch.autograd.grad(op.plain(*(t.bfloat16().double() for t in args)).sum(), args)
    for one, two, three in zip(inside, outside, expected, strict=True):
        assert one.dtype == two.dtype == torch.float32
        assert torch.equal(one, two)
        torch.testing.assert_close(
            two, three, rtol=2e-2, atol=2e-2 * (1 + three.abs().max().item())
        )


@EACH_OP
def test_second_derivatives(op):
    args = arguments(shapes_of(op), torch.float32, requires_grad=True)

    def second(function, cast):
        out = function(*(cast(t) for t in args)).float()
        first = torch.autograd.grad((out**2).sum(), args, create_graph=True)
        return torch.autograd.grad(sum((g.float() ** 2).sum() for g in first), args)

    with autocast(torch.bfloat16):
        got = second(op.ours, lambda t: t)
    expected = second(op.plain, lambda t: t.bfloat16().double())
    for one, two in zip(got, expected, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, two, rtol=0.1, atol=0.05 * (1 + two.abs().max().item()))


@EACH_OP
def test_a_forward_outside_is_differentiated_as_it_was(op):
    """Backward and double backward inside of the region of a float32 forward stay float32."""
    args = arguments(shapes_of(op), torch.float32, requires_grad=True)
    # Twice, so that the first derivatives depend on every argument, a bias among them.
    loss = (op.ours(*args) ** 2).sum()

    def derivatives():
        first = torch.autograd.grad(loss, args, create_graph=True)
        total = sum((grad**2).sum() for grad in first)
        return *first, *torch.autograd.grad(total, args, retain_graph=True)

    expected = derivatives()
    with autocast(torch.bfloat16):
        got = derivatives()
    for one, two in zip(got, expected, strict=True):
        assert torch.equal(one, two)


@EACH_OP
def test_transforms_inside_of_the_region(op):
    args = arguments(shapes_of(op), torch.float32)
    loss = lambda *a: op.ours(*a).float().sum()  # noqa: E731
    every = tuple(range(len(args)))
    leaves = [t.clone().requires_grad_() for t in args]
    with autocast(torch.bfloat16):
        got = torch.func.grad(loss, every)(*args)
        _, tangent = torch.func.jvp(op.ours, args, args)
        batched = torch.func.vmap(op.ours)(*(torch.stack([t, t]) for t in args))
        out = op.ours(*args)
        expected = torch.autograd.grad(loss(*leaves), leaves)
    assert tangent.dtype == batched.dtype == out.dtype == torch.bfloat16
    for one, two in zip(got, expected, strict=True):
        assert torch.equal(one, two)
    torch.testing.assert_close(batched, torch.stack([out, out]))


def test_disabled_regions_and_other_devices():
    a, b = draw((2, 3), torch.float32), draw((3, 2), torch.float32)
    with autocast(torch.bfloat16):
        with autocast(enabled=False):
            assert matcalc_ext.matmul(a, b).dtype == torch.float32
        assert matcalc_ext.matmul(a, b).dtype == torch.bfloat16
        # A device that autocast does not know:
        on_meta = matcalc_ext.matmul(a.to("meta"), b.to("meta"))
        assert on_meta.dtype == torch.matmul(a.to("meta"), b.to("meta")).dtype


def test_autocast_of_another_device_leaves_these_tensors():
    a, b = draw((2, 3), torch.float32), draw((3, 2), torch.float32)
    other = "cuda" if current_device().type == "cpu" else "cpu"
    torch.set_autocast_enabled(other, True)
    try:
        assert matcalc_ext.matmul(a, b).dtype == torch.matmul(a, b).dtype == torch.float32
    finally:
        torch.set_autocast_enabled(other, False)


@EACH_LOW
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled(low):
    """A region around a compiled call, and one inside of it."""
    args = arguments(((2, 3), (4, 3), (4,)), torch.float32, requires_grad=True)

    def inside(*args):
        with autocast(low):
            return matcalc_ext.linear(*args)

    expected = inside(*args)
    grads = torch.autograd.grad(expected.sum(), args)
    around = torch.compile(matcalc_ext.linear, fullgraph=True, backend="aot_eager")
    with autocast(low):
        outs = [around(*args)]
    outs.append(torch.compile(inside, fullgraph=True, backend="aot_eager")(*args))
    for out in outs:
        assert out.dtype == low
        assert torch.equal(out, expected)
        for one, two in zip(torch.autograd.grad(out.sum(), args), grads, strict=True):
            assert one.dtype == torch.float32
            torch.testing.assert_close(one, two)
