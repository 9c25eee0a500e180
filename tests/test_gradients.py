"""Derivatives of every order, by finite differences and against plain torch, in eager autograd."""

import pytest
import torch
from reference import (
    BY_NAME,
    DOUBLE,
    FAMILIES,
    FAMILY_IDS,
    OPS,
    arguments,
    draw,
    gradients,
    here,
    symmetrised,
)
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from matcalc_ext import derivatives

pytestmark = pytest.mark.usefixtures("on_each_device")

ops = torch.ops.matcalc_ext
EACH_FAMILY = pytest.mark.parametrize(("op", "family"), FAMILIES, ids=FAMILY_IDS)
EACH_OP = pytest.mark.parametrize("op", OPS, ids=str)
EACH_DOUBLE = pytest.mark.parametrize("dtype", DOUBLE, ids=str)
# Every op once with shapes that broadcast, where the op broadcasts.
BROADCAST = [
    (BY_NAME["matmul"], "broadcast"),
    (BY_NAME["linear"], "batched"),
    (BY_NAME["bilinear"], "outer"),
    (BY_NAME["quadratic"], "outer"),
    (BY_NAME["quadratic_symmetric"], "outer"),
    (BY_NAME["nn_bilinear"], "matrix"),
]
EACH_ONCE = pytest.mark.parametrize(
    ("op", "family"), BROADCAST, ids=[str(op) for op, _ in BROADCAST]
)


@EACH_DOUBLE
@EACH_FAMILY
def test_gradcheck(op, family, dtype):
    args = arguments(op.families[family], dtype, requires_grad=True)
    assert gradcheck(
        op.ours,
        args,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
        check_undefined_grad=True,
    )


@EACH_DOUBLE
@EACH_FAMILY
def test_gradgradcheck(op, family, dtype):
    args = arguments(op.families[family], dtype, requires_grad=True)
    assert gradgradcheck(
        op.ours, args, check_fwd_over_rev=True, check_rev_over_rev=True, check_batched_grad=True
    )


DIRECT = {
    "matmul": ops.matmul,
    "linear": ops.linear,
    "bilinear": ops.bilinear,
    "quadratic": ops.quadratic,
    "nn_bilinear": ops.nn_bilinear,
}


@pytest.mark.parametrize("name", DIRECT)
def test_direct_calls_of_the_dispatcher_ops(name):
    """What torch.compile puts into its graphs has the same derivatives."""
    for shapes in BY_NAME[name].families.values():
        args = arguments(shapes, requires_grad=True)
        assert gradcheck(DIRECT[name], args, check_forward_ad=True, check_batched_grad=True)
        assert gradgradcheck(DIRECT[name], args, check_fwd_over_rev=True)


# The backward ops are ops like any other, for every choice of gradients.
BACKWARD = {
    "matmul": lambda needs, g, a, b: ops.matmul_backward(g, a, b, *needs),
    "linear": lambda needs, g, x, w, b: ops.linear_backward(g, x, w, b, *needs),
    "bilinear": lambda needs, g, y, A, x: ops.bilinear_backward(g, y, A, x, *needs),
    "quadratic": lambda needs, g, x, A: ops.quadratic_backward(g, x, A, False, *needs),
    # What stands in the place of dA in the next derivative is a general matrix all the same.
    "quadratic_symmetric": lambda needs, g, x, A: ops.quadratic_backward(
        g, x, symmetrised(A), True, *needs
    ),
    "nn_bilinear": lambda needs, g, x1, x2, w, b: ops.nn_bilinear_backward(g, x1, x2, w, *needs),
}
BACKWARD_CASES = [
    (op, family, needs)
    for op, family in BROADCAST
    if op.name in BACKWARD
    for count in [len(op.families[family])]
    for needs in [tuple(bool(mask >> i & 1) for i in range(count)) for mask in range(1, 1 << count)]
]


@pytest.mark.parametrize(
    ("op", "family", "needs"),
    BACKWARD_CASES,
    ids=[f"{op}-{''.join('01'[n] for n in needs)}" for op, _, needs in BACKWARD_CASES],
)
def test_backward_ops_with_each_choice_of_gradients(op, family, needs):
    args = arguments(op.families[family], requires_grad=True)
    grad = draw(op.plain(*args).shape, requires_grad=True)

    def wanted(grad, *args):
        got = BACKWARD[op.name](needs, grad, *args)
        assert tuple(t is not None for t in got) == needs
        return tuple(t for t in got if t is not None)

    inputs = (grad, *args)
    assert gradcheck(wanted, inputs, check_forward_ad=True)
    if sum(needs) == len(needs):
        assert gradgradcheck(wanted, inputs, check_fwd_over_rev=True)


@EACH_DOUBLE
@EACH_ONCE
def test_third_derivatives(op, family, dtype):
    """Against plain torch: the gradient of a gradient of a gradient, all of them mixed."""
    args = arguments(op.families[family], dtype)

    def third(function):
        leaves = [t.detach().requires_grad_() for t in args]
        total = (function(*leaves) ** 3).abs().sum()
        for power in (3, 2):
            grads = torch.autograd.grad(total, leaves, create_graph=True)
            total = sum((grad**power).abs().sum() for grad in grads)
        return torch.autograd.grad(total, leaves)

    for got, expected in zip(third(op.ours), third(op.plain), strict=True):
        torch.testing.assert_close(
            got, expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item()
        )


@EACH_ONCE
def test_forward_mode_of_autograd(op, family):
    args = arguments(op.families[family])
    tangents = [torch.randn_like(t) for t in args]
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(*pair) for pair in zip(args, tangents, strict=True)]
        got = forward_ad.unpack_dual(op.ours(*duals)).tangent
        expected = forward_ad.unpack_dual(op.plain(*duals)).tangent
    torch.testing.assert_close(got, expected)


class Calls(TorchDispatchMode):
    """Notes the calls of our ops and what they return."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.namespace == "matcalc_ext":
            self.calls.append((func._schema.name.removeprefix("matcalc_ext::_"), out))
        return out


@EACH_OP
def test_only_the_gradients_asked_for_are_computed(op):
    shapes = next(iter(op.families.values()))
    for wanted in range(len(shapes)):
        args = [t.requires_grad_(i == wanted) for i, t in enumerate(arguments(shapes))]
        out = op.ours(*args)
        with Calls() as noted:
            out.sum().backward()
        (name, grads) = noted.calls[0]
        assert len(noted.calls) == 1
        assert name == f"{op.name.removesuffix('_symmetric')}_backward"
        assert [grad is not None for grad in grads] == [i == wanted for i in range(len(shapes))]
        assert [t.grad is not None for t in args] == [i == wanted for i in range(len(shapes))]


LARGE = {
    "matmul": ((1024, 5), (5, 512)),
    "linear": ((4, 256, 3), (512, 3), (512,)),
    "bilinear": ((2048, 256), (256, 256), (2048, 256)),
    "quadratic": ((2048, 256), (256, 256)),
    "nn_bilinear": ((2, 128), (2, 128), (32, 128, 128), (32,)),
}


@pytest.mark.parametrize("create_graph", [False, True])
@EACH_OP
def test_of_large_gradients_those_that_grad_wants_are_computed(op, create_graph):
    """torch.autograd.grad for one argument, a leaf or not, where all of them require gradients."""
    args = arguments(LARGE[op.name.removesuffix("_symmetric")], requires_grad=True)
    for inner in (args, [t * 1 for t in args]):
        out = op.ours(*inner)
        grad = draw(out.shape)
        everything = torch.autograd.grad(out, inner, grad, retain_graph=True)
        for wanted, expected in enumerate(everything):
            with Calls() as noted:
                (got,) = torch.autograd.grad(
                    out, inner[wanted], grad, retain_graph=True, create_graph=create_graph
                )
            (_, grads) = noted.calls[0]
            assert len(noted.calls) == 1
            assert [g is not None for g in grads] == [i == wanted for i in range(len(args))]
            torch.testing.assert_close(got, expected)
            assert got.requires_grad == create_graph
        for leaf in args:
            leaf.grad = None
        out.backward(grad)
        for leaf, expected in zip(args, everything, strict=True):
            torch.testing.assert_close(leaf.grad, expected)


def saved_storage(function, *args):
    """The bytes that a call keeps for its backward pass, and its result."""
    kept = {}

    def note(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        out = function(*args)
    return sum(kept.values()), out


# Which arguments a gradient of each reads; of a bias none.
READS = {
    "matmul": ({1}, {0}),
    "linear": ({1}, {0}, set()),
    "bilinear": ({1, 2}, {0, 2}, {0, 1}),
    "quadratic": ({0, 1}, {0}),
    "nn_bilinear": ({1, 2}, {0, 2}, {0, 1}, set()),
}


@EACH_OP
def test_what_no_gradient_reads_is_not_kept(op):
    """A frozen weight's input, say; and such an operand may be changed before the backward pass."""
    reads = READS[op.name.removesuffix("_symmetric")]
    shapes = LARGE[op.name.removesuffix("_symmetric")]
    for wanted, read in enumerate(reads):
        args = [t.requires_grad_(i == wanted) for i, t in enumerate(arguments(shapes))]
        kept, out = saved_storage(op.ours, *args)
        is_form = op.name == "bilinear" or "quadratic" in op.name
        products = 2 * args[0].untyped_storage().nbytes() if is_form else 0
        operands = sum(args[i].untyped_storage().nbytes() for i in read)
        assert operands <= kept <= operands + 8 * len(args) + products
        grad = draw(out.shape)
        expected = gradients(op.plain, args, grad)[wanted]
        with torch.no_grad():
            for i, t in enumerate(args):
                if i not in read:
                    t.add_(1)
        torch.testing.assert_close(torch.autograd.grad(out, args[wanted], grad)[0], expected)


@EACH_OP
def test_higher_derivatives_where_an_operand_was_not_kept(op):
    shapes = next(iter(op.families.values()))
    for wanted in range(len(shapes)):
        args = [t.requires_grad_(i == wanted) for i, t in enumerate(arguments(shapes))]
        grad = draw(op.plain(*args).shape).requires_grad_()

        def second(function, args=args, grad=grad, wanted=wanted):
            (first,) = torch.autograd.grad(function(*args), args[wanted], grad, create_graph=True)
            inputs = [grad, args[wanted]] if first.requires_grad else []
            return torch.autograd.grad(first.square().sum(), inputs, allow_unused=True)

        for got, expected in zip(second(op.ours), second(op.plain), strict=True):
            if expected is not None:
                torch.testing.assert_close(got, expected)


@EACH_OP
def test_a_tangent_that_is_not_there_is_no_zero(op):
    """An infinity of an operand beside it leaves the derivatives alone that it is no part of."""
    shapes = next(iter(op.families.values()))
    for wanted in range(len(shapes)):
        args = arguments(shapes)
        direction = draw(args[wanted].shape)
        with forward_ad.dual_level():
            with Calls() as noted:
                dual = [
                    forward_ad.make_dual(t, direction) if i == wanted else t
                    for i, t in enumerate(args)
                ]
                tangent = forward_ad.unpack_dual(op.ours(*dual)).tangent
            expected = forward_ad.unpack_dual(op.plain(*dual)).tangent
        torch.testing.assert_close(tangent, expected)
        # The value, and one derivative.
        assert len(noted.calls) <= (3 if "quadratic" in op.name and wanted == 0 else 2)


def test_tangents_and_infinities():
    W = here(torch.tensor([[torch.inf, 1.0], [1.0, 1.0]]))
    x, b = here(torch.ones(2)), here(torch.zeros(2))
    tangent = torch.func.jvp(lambda b: BY_NAME["linear"].ours(x, W, b), (b,), (x,))[1]
    assert tangent.tolist() == [1, 1]
    tangent = torch.func.jvp(lambda y: BY_NAME["bilinear"].ours(y, W, x), (x,), (x,))[1]
    assert tangent.item() == torch.inf


@pytest.mark.parametrize("rows", [(), (1,), (4,)], ids=str)
@pytest.mark.parametrize("name", ["linear", "nn_bilinear"])
def test_the_tangent_of_a_bias_stays_the_callers(name, rows):
    """What is done in place to the output must not reach it."""
    *others, bias = arguments(
        {
            "linear": ((*rows, 3), (5, 3), (5,)),
            "nn_bilinear": ((*rows, 3), (*rows, 2), (5, 3, 2), (5,)),
        }[name]
    )
    direction = torch.ones_like(bias)
    tangent = torch.func.jvp(
        lambda b: BY_NAME[name].ours(*others, b).mul_(3) + b, (bias,), (direction,)
    )[1]
    assert torch.equal(direction, torch.ones_like(bias))
    assert torch.equal(tangent, torch.full_like(tangent, 4))


@pytest.mark.parametrize("create_graph", [False, True])
@EACH_ONCE
def test_batched_gradients_in_a_dual_level(op, family, create_graph):
    args = arguments(op.families[family])
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(t.requires_grad_(), draw(t.shape)) for t in args]

        def jacobian(function):
            out = function(*duals) ** 2
            units = here(torch.eye(out.numel(), dtype=out.dtype)).reshape(-1, *out.shape)
            return torch.autograd.grad(
                out, duals, units, is_grads_batched=True, create_graph=create_graph
            )

        for got, expected in zip(jacobian(op.ours), jacobian(op.plain), strict=True):
            torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("name", ["linear", "nn_bilinear"])
def test_batched_gradients_without_an_output(name):
    shapes = {
        "linear": ((5, 3), (0, 3), (0,)),
        "nn_bilinear": ((5, 3), (5, 2), (0, 3, 2), (0,)),
    }[name]
    args = arguments(shapes, requires_grad=True)
    out = BY_NAME[name].ours(*args)
    grads = torch.autograd.grad(out, args, draw((4, *out.shape)), is_grads_batched=True)
    for grad, t in zip(grads, args, strict=True):
        assert torch.equal(grad, torch.zeros_like(t).expand(4, *t.shape))


@EACH_OP
def test_without_a_gradient_there_is_no_graph(op):
    args = arguments(next(iter(op.families.values())), requires_grad=True)
    assert op.ours(*args).requires_grad
    with torch.no_grad():
        assert not op.ours(*args).requires_grad
    with torch.inference_mode():
        assert op.ours(*args).is_inference()
    assert not op.ours(*(t.detach() for t in args)).requires_grad


@EACH_OP
def test_a_tensor_changed_in_place_is_noticed(op):
    args = arguments(next(iter(op.families.values())), requires_grad=True)
    out = op.ours(*args)
    with torch.no_grad():
        args[0].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@EACH_OP
def test_backward_twice_needs_retain_graph(op):
    args = arguments(next(iter(op.families.values())), requires_grad=True)
    out = op.ours(*args).sum()
    first = torch.autograd.grad(out, args, retain_graph=True)
    second = torch.autograd.grad(out, args)
    for one, two in zip(first, second, strict=True):
        assert torch.equal(one, two)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(out, args)


@EACH_OP
def test_an_upstream_gradient_that_is_expanded(op):
    """`out.sum()` sends back one number with strides of 0."""
    args = arguments(list(op.families.values())[1])
    out = op.plain(*args)
    ones = out.new_ones(()).expand(out.shape)
    got = gradients(op.ours, args, ones)
    expected = gradients(op.plain, args, ones.contiguous())
    for one, two in zip(got, expected, strict=True):
        torch.testing.assert_close(one, two)


# --------------------------------------------------------------------------------------------
# Closed forms


def values(dtype):
    return arguments(((3,), (3, 4), (4,), (4, 4), (4,)), dtype)


def jacobian(function, *args, wrt=0):
    """By forward mode along each unit vector, for complex arguments too."""

    def moved(x):
        return function(*args[:wrt], x, *args[wrt + 1 :])

    x = args[wrt]
    units = torch.eye(x.numel(), dtype=x.dtype, device=x.device).reshape(-1, *x.shape)
    columns = torch.func.vmap(lambda unit: torch.func.jvp(moved, (x,), (unit,))[1])(units)
    return columns.movedim(0, -1).reshape(*columns.shape[1:], *x.shape)


@EACH_DOUBLE
def test_jacobians_of_the_linear_maps(dtype):
    y, A, x, *_ = values(dtype)
    matmul = BY_NAME["matmul"].plain
    for got, expected in (
        (derivatives.matrix_vector_jacobian_vector(A, x), jacobian(matmul, A, x, wrt=1)),
        (derivatives.matrix_vector_jacobian_matrix(A, x), jacobian(matmul, A, x, wrt=0)),
        (derivatives.vector_matrix_jacobian_vector(y, A), jacobian(matmul, y, A, wrt=0)),
        (derivatives.vector_matrix_jacobian_matrix(y, A), jacobian(matmul, y, A, wrt=1)),
    ):
        torch.testing.assert_close(got, expected)
        assert got.is_contiguous()
    full = derivatives.matrix_vector_jacobian_matrix(A, x)
    torch.testing.assert_close(
        derivatives.matrix_vector_vjp_matrix(y, A, x), torch.einsum("i,ijk->jk", y, full)
    )


@pytest.mark.parametrize("shape", [(70, 5), (7, 10, 5), (66, 1), (3, 5)], ids=str)
@EACH_DOUBLE
def test_gradient_of_the_matrix_of_a_hessian_vector_product(shape, dtype):
    """x pᵀ + p xᵀ, of many items from one product and its transposed, and its own derivatives."""
    x, v, A = (draw(s, dtype) for s in (shape, shape, (shape[-1], shape[-1])))
    weights = draw(A.shape, dtype)

    def derivatives_of(function, again):
        leaves = [t.clone().requires_grad_() for t in (x, A)]
        (dx,) = torch.autograd.grad(function(*leaves).sum().abs(), leaves[0], create_graph=True)
        grads = torch.autograd.grad((dx * v).abs().square().sum(), leaves, create_graph=again)
        if not again:
            return grads
        return torch.autograd.grad((grads[1] * weights).abs().square().sum(), leaves)

    op = BY_NAME["quadratic"]
    for again in (False, True):
        ours, plain = (
            [t.detach() for t in derivatives_of(function, again)]
            for function in (op.ours, op.plain)
        )
        torch.testing.assert_close(ours, plain)


@EACH_DOUBLE
def test_derivatives_of_the_forms(dtype):
    y, A, x, Q, v = values(dtype)
    form = BY_NAME["bilinear"].plain
    for wrt, got in enumerate(derivatives.bilinear_gradients(y, A, x)):
        torch.testing.assert_close(got, jacobian(form, y, A, x, wrt=wrt))
        assert not got.is_conj()
    split = torch.cat([y, x])
    joined = jacobian(lambda z: jacobian(lambda z: form(z[:3], A, z[3:]), z), split)
    torch.testing.assert_close(derivatives.bilinear_hessian(A), joined)

    square = BY_NAME["quadratic"].plain
    for wrt, got in enumerate(derivatives.quadratic_gradients(x, Q)):
        torch.testing.assert_close(got, jacobian(square, x, Q, wrt=wrt))
    hessian = jacobian(lambda x: jacobian(square, x, Q), x)
    torch.testing.assert_close(derivatives.quadratic_hessian(Q), hessian)
    torch.testing.assert_close(derivatives.quadratic_hvp(Q, v), hessian @ v)

    lower = Q.tril() + Q.tril(-1).mT
    dx, dS = derivatives.quadratic_gradients(x, Q, symmetric=True)
    torch.testing.assert_close(dx, 2 * lower @ x)
    torch.testing.assert_close(dS, torch.outer(x, x))


def test_closed_forms_carry_batches_and_gradients():
    A, v = draw((5, 4, 4)), draw((5, 4))
    torch.testing.assert_close(
        torch.func.vmap(derivatives.quadratic_hvp)(A, v),
        ((A + A.mT) @ v.unsqueeze(-1)).squeeze(-1),
    )
    assert gradcheck(derivatives.quadratic_hvp, (draw((3, 3), requires_grad=True), draw((3,))))
    assert gradcheck(
        derivatives.bilinear_gradients, arguments(((2,), (2, 3), (3,)), requires_grad=True)
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: derivatives.quadratic_hvp(torch.ones(3, 4), torch.ones(4)),
            "3 rows and 4 columns",
        ),
        (
            lambda: derivatives.quadratic_hvp(torch.ones(4, 4), torch.ones(3)),
            "v has 3 entries, A has 4",
        ),
        (lambda: derivatives.quadratic_hessian(torch.ones(4)), r"A has shape \[4\], expected 2"),
        (lambda: derivatives.bilinear_hessian([[1.0]]), "A is a list, expected a torch.Tensor"),
        (
            lambda: derivatives.vector_matrix_jacobian_vector(torch.ones(2), torch.ones(3, 2)),
            "x has 2 entries, W has 3 rows",
        ),
        (
            lambda: derivatives.bilinear_gradients(torch.ones(2), torch.ones(2, 3), torch.ones(2)),
            "x has 2 entries, A has 3 columns",
        ),
        (
            lambda: derivatives.matrix_vector_vjp_matrix(
                torch.ones(2), torch.ones(2, 3), torch.ones(3, dtype=torch.float64)
            ),
            "matrix_vector_vjp_matrix: v is float32 and x is float64, expected one dtype",
        ),
        (
            lambda: derivatives.matrix_vector_jacobian_matrix(
                torch.ones(2, 3, device="meta"), torch.ones(3)
            ),
            "A is on meta and x is on cpu, expected one device",
        ),
    ],
)
def test_closed_forms_refuse_what_does_not_fit(call, message):
    with pytest.raises((RuntimeError, TypeError), match=message):
        call()
