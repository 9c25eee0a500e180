"""torch.func on every op: all transforms and their nestings, eager and compiled.

Every number is compared with plain torch under the same transform, or with a closed form.
"""

import itertools
import os
import subprocess
import sys

import pytest
import torch
from reference import BY_NAME, DOUBLE, OPS, arguments, draw, here
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils._pytree import tree_leaves

import matcalc_ext

pytestmark = pytest.mark.usefixtures("on_each_device")

ops = torch.ops.matcalc_ext
CASES = [
    (BY_NAME["matmul"], "matrix_matrix"),
    (BY_NAME["matmul"], "broadcast"),
    (BY_NAME["matmul"], "vector_batch"),
    (BY_NAME["linear"], "matrix"),
    (BY_NAME["linear"], "two_vectors"),
    (BY_NAME["bilinear"], "one"),
    (BY_NAME["bilinear"], "outer"),
    (BY_NAME["quadratic"], "one"),
    (BY_NAME["quadratic"], "outer"),
    (BY_NAME["quadratic_symmetric"], "outer"),
    (BY_NAME["nn_bilinear"], "matrix"),
]
EACH = pytest.mark.parametrize(("op", "family"), CASES, ids=[f"{op}-{f}" for op, f in CASES])
EACH_OP = pytest.mark.parametrize("op", OPS, ids=str)


def assert_same(got, expected):
    got, expected = tree_leaves(got), tree_leaves(expected)
    assert len(got) == len(expected)
    for one, two in zip(got, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9 * (1 + two.abs().max().item()))


def loss(function):
    """A function of all arguments whose derivatives of every order are alive."""

    def scalar(*args):
        return (function(*args) ** 3).sum() * args[0].sum() + function(*args).sin().sum()

    return scalar


def every(args):
    return tuple(range(len(args)))


def along(function, args):
    return jvp(function, args, tuple(t.cos() for t in args))[1]


# Each takes a function and its arguments.
TRANSFORMS = {
    "grad": lambda f, args: grad(loss(f), every(args))(*args),
    "vjp": lambda f, args: vjp(f, *args)[1](f(*args).cos()),
    "jvp": lambda f, args: jvp(f, args, tuple(t.cos() for t in args)),
    "jacrev": lambda f, args: jacrev(f, every(args))(*args),
    "jacfwd": lambda f, args: jacfwd(f, every(args))(*args),
    "hessian": lambda f, args: hessian(loss(f), every(args))(*args),
    "grad of grad": lambda f, args: grad(
        lambda *a: sum((g**2).sum() for g in grad(loss(f), every(a))(*a)), every(args)
    )(*args),
    "jacrev of jacrev": lambda f, args: jacrev(jacrev(f, every(args)), every(args))(*args),
    "jacrev of jacfwd": lambda f, args: jacrev(jacfwd(f, every(args)), every(args))(*args),
    "jacfwd of jacfwd": lambda f, args: jacfwd(jacfwd(f, every(args)), every(args))(*args),
    "jvp of grad": lambda f, args: along(lambda *a: grad(loss(f), every(a))(*a), args),
    "grad of jvp": lambda f, args: grad(lambda *a: along(loss(f), a), every(args))(*args),
    "jvp of jvp of jvp": lambda f, args: along(
        lambda *a: along(lambda *b: along(loss(f), b), a), args
    ),
    "grad of grad of grad": lambda f, args: grad(
        lambda *a: (grad(lambda *b: (grad(loss(f))(*b) ** 2).sum(), len(a) - 1)(*a) ** 2).sum()
    )(*args),
    "vmap of hessian": lambda f, args: vmap(
        hessian(loss(f)), in_dims=(0, *[None] * (len(args) - 1))
    )(torch.stack([args[0], args[0] + 1]), *args[1:]),
    "vmap of grad": lambda f, args: vmap(lambda *a: grad(loss(f), every(a))(*a))(
        *(torch.stack([t, t - 1, t.cos()]) for t in args)
    ),
    "vmap of jvp of grad": lambda f, args: vmap(
        lambda *a: along(lambda *b: grad(loss(f), every(b))(*b), a)
    )(*(torch.stack([t, t - 1]) for t in args)),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@EACH
def test_transform(op, family, transform):
    args = arguments(op.families[family])
    assert_same(TRANSFORMS[transform](op.ours, args), TRANSFORMS[transform](op.plain, args))


DIRECT = {
    "matmul": ops.matmul,
    "linear": ops.linear,
    "bilinear": ops.bilinear,
    "quadratic": ops.quadratic,
    "nn_bilinear": ops.nn_bilinear,
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", DIRECT)
def test_transform_of_the_dispatcher_op(name, transform):
    op = BY_NAME[name]
    args = arguments(list(op.families.values())[1])
    assert_same(TRANSFORMS[transform](DIRECT[name], args), TRANSFORMS[transform](op.plain, args))


# --------------------------------------------------------------------------------------------
# vmap


def sample(in_dims, args, i):
    return [t if d is None else t.select(d, i) for t, d in zip(args, in_dims, strict=True)]


def looped(function, in_dims, args):
    """What vmap means."""
    size = next(t.shape[d] for t, d in zip(args, in_dims, strict=True) if d is not None)
    return torch.stack([function(*sample(in_dims, args, i)) for i in range(size)])


def batched_arguments(shapes, in_dims, dtype=torch.float64, size=3):
    """Arguments with a dimension of `size` put in at in_dims; -1 counts as last."""
    batched = []
    for shape, dim in zip(shapes, in_dims, strict=True):
        if shape is None or dim is None:
            batched.append(draw(shape, dtype))
            continue
        at = dim if dim >= 0 else len(shape)
        batched.append(draw((*shape[:at], size, *shape[at:]), dtype))
    return batched


def all_in_dims(shapes):
    """First, last, or none, for each argument; at least one that is not none."""
    choices = [(None,) if s is None else (0, -1, None) if s else (0, None) for s in shapes]
    return [dims for dims in itertools.product(*choices) if any(d is not None for d in dims)]


VMAP_CASES = [(op, family) for op in OPS for family in op.families]


@pytest.mark.parametrize(
    ("op", "family"), VMAP_CASES, ids=[f"{op}-{family}" for op, family in VMAP_CASES]
)
def test_vmap_over_every_choice_of_arguments(op, family):
    shapes = op.families[family]
    for in_dims in all_in_dims(shapes):
        args = batched_arguments(shapes, in_dims)
        got = vmap(op.ours, in_dims)(*args)
        expected = looped(op.plain, in_dims, args)
        assert got.shape == expected.shape, in_dims
        torch.testing.assert_close(got, expected, msg=lambda m, d=in_dims: f"in_dims {d}: {m}")


@pytest.mark.parametrize("dtype", DOUBLE, ids=str)
@pytest.mark.parametrize(
    ("op", "family"), VMAP_CASES, ids=[f"{op}-{family}" for op, family in VMAP_CASES]
)
def test_gradients_per_sample(op, family, dtype):
    """vmap over the backward rule: an argument that all samples share has a gradient for each."""
    shapes = op.families[family]

    def per_sample(function, wanted, grad, *args):
        def of(*tensors):
            full = list(args)
            for i, t in zip(wanted, tensors, strict=True):
                full[i] = t
            return function(*full)

        return vjp(of, *(args[i] for i in wanted))[1](grad)

    every = [i for i, shape in enumerate(shapes) if shape is not None]
    dims = all_in_dims(shapes)
    for n, in_dims in enumerate(dims if dtype == torch.float64 else dims[:: 1 + len(dims) // 4]):
        args = batched_arguments(shapes, in_dims, dtype, size=2)
        out = op.plain(*sample(in_dims, args, 0))
        g_dim = (0, None)[n % 2]
        g = draw((2, *out.shape) if g_dim == 0 else out.shape, dtype)
        all_dims, all_args = (g_dim, *in_dims), [g, *args]
        for wanted in (every, [every[n % len(every)]]):
            got = vmap(lambda *a, w=wanted: per_sample(op.ours, w, *a), all_dims)(*all_args)
            for i, one in enumerate(got):
                expected = looped(
                    lambda *a, w=wanted, i=i: per_sample(op.plain, w, *a)[i], all_dims, all_args
                )
                torch.testing.assert_close(
                    one, expected, msg=lambda m, d=in_dims, i=i: f"in_dims {d}, gradient {i}: {m}"
                )


@EACH_OP
def test_vmap_in_vmap(op):
    shapes = list(op.families.values())[1]
    args = [draw((2, 3, *shape)) for shape in shapes]
    got = vmap(vmap(op.ours))(*args)
    flat = [t.flatten(0, 1) for t in args]
    expected = looped(op.plain, (0,) * len(args), flat).unflatten(0, (2, 3))
    torch.testing.assert_close(got, expected)
    # The inner one along the second half of the arguments only.
    half = [0 if i >= len(args) // 2 else None for i in range(len(args))]
    args = [draw((2, 3, *s) if h == 0 else (2, *s)) for s, h in zip(shapes, half, strict=True)]
    got = vmap(vmap(op.ours, tuple(half)))(*args)
    expected = torch.stack([looped(op.plain, half, [t[i] for t in args]) for i in range(2)])
    torch.testing.assert_close(got, expected)


@EACH_OP
def test_out_dims_and_chunks(op):
    shapes = list(op.families.values())[1]
    args = [draw((5, *shape)) for shape in shapes]
    expected = looped(op.plain, (0,) * len(args), args)
    torch.testing.assert_close(vmap(op.ours, chunk_size=2)(*args), expected)
    torch.testing.assert_close(vmap(op.ours, out_dims=-1)(*args), expected.movedim(0, -1))


def test_vmap_refuses_what_one_sample_would():
    with pytest.raises(RuntimeError, match="matmul: a has 0 dimensions, expected at least 1"):
        vmap(matcalc_ext.matmul)(torch.ones(3), torch.ones(3, 2))
    with pytest.raises(RuntimeError, match=r"bilinear: A has 1 dimension, expected at least 2"):
        vmap(matcalc_ext.bilinear)(torch.ones(3, 2), torch.ones(3, 2), torch.ones(3, 2))
    with pytest.raises(RuntimeError, match="quadratic: A has 3 rows and 2 columns"):
        vmap(matcalc_ext.quadratic)(torch.ones(4, 2), torch.ones(4, 3, 2))
    with pytest.raises(RuntimeError, match="expected the same leading dimensions"):
        vmap(matcalc_ext.nn_bilinear, (0, 0, None))(
            torch.ones(4, 2), torch.ones(4, 5, 3), torch.ones(2, 2, 3)
        )
    with pytest.raises(RuntimeError, match=r"linear: bias has shape \[3\], expected \[2\]"):
        vmap(matcalc_ext.linear)(torch.ones(4, 3), torch.ones(4, 2, 3), torch.ones(4, 3))


@pytest.mark.parametrize(
    ("shapes", "in_dims"),
    [
        (((0, 4, 3), (0, 5, 3), (0, 5)), (0, 0, 0)),
        (((6, 2), (6, 0, 2), (6, 0)), (0, 0, 0)),
        (((6, 4, 2), (0, 2), (6, 0)), (0, None, 0)),
        (((4, 3), (0, 5, 3), (5,)), (None, 0, None)),
    ],
    ids=str,
)
def test_vmap_of_linear_without_samples_or_outputs(shapes, in_dims):
    args = arguments(shapes, requires_grad=True)
    got = vmap(matcalc_ext.linear, in_dims)(*args)
    expected = vmap(torch.nn.functional.linear, in_dims)(*args)
    assert got.shape == expected.shape
    for got_grad, t in zip(torch.autograd.grad(got.sum(), args), args, strict=True):
        assert torch.equal(got_grad, torch.zeros_like(t))
    loss = grad_of_all(matcalc_ext.linear)
    assert [t.shape for t in vmap(loss, in_dims)(*args)] == [
        t.shape for t in vmap(grad_of_all(torch.nn.functional.linear), in_dims)(*args)
    ]


def grad_of_all(function):
    return grad(lambda *t: (function(*t) ** 2).sum(), (0, 1, 2))


# --------------------------------------------------------------------------------------------
# The rest


def test_a_function_of_vjp_outlives_the_transform():
    """What the backward pass saved are wrappers of a transform that is over."""
    A, x = draw((3, 4)), draw((4,))
    for function in (matcalc_ext.matmul, torch.matmul):
        _, pull = vjp(function, A, x)
        g = draw((3,), requires_grad=True)
        dA, dx = pull(g)
        torch.testing.assert_close(dA.detach(), torch.outer(g.detach(), x))
        (second,) = torch.autograd.grad((dA**2).sum() + (dx**2).sum(), g)
        expected = 2 * g.detach() * (x @ x) + 2 * A @ (A.mT @ g.detach())
        torch.testing.assert_close(second, expected)


def test_a_tensor_that_leaked_out_of_a_transform():
    leaked = []
    x = draw((3,), requires_grad=True)
    A = draw((2, 3))
    grad(lambda x: (leaked.append(x), x.sum())[1])(x)
    matcalc_ext.matmul(A, leaked[0]).sum().backward()
    torch.testing.assert_close(x.grad, A.sum(0))


def test_autograd_functional_with_vectorize():
    """torch's older functions batch gradients by a vmap of their own."""
    y, A, x = arguments(((2,), (2, 3), (3,)))
    loss_of = lambda f: lambda y, A, x: f(y, A, x) ** 3  # noqa: E731
    for outer in ("reverse-mode", "forward-mode"):
        got = torch.autograd.functional.hessian(
            loss_of(matcalc_ext.bilinear), (y, A, x), vectorize=True, outer_jacobian_strategy=outer
        )
        expected = torch.autograd.functional.hessian(loss_of(BY_NAME["bilinear"].plain), (y, A, x))
        assert_same(got, expected)


@EACH_OP
def test_batched_gradients_are_differentiable(op):
    """`is_grads_batched` with `create_graph`, through the ops and their backward ops."""
    args = arguments(list(op.families.values())[1], requires_grad=True)

    def third(function):
        out = function(*args) ** 2
        units = here(torch.eye(out.numel(), dtype=out.dtype)).reshape(-1, *out.shape)
        jacobian = torch.autograd.grad(out, args, units, is_grads_batched=True, create_graph=True)
        total = sum((row**3).sum() for row in jacobian)
        first = torch.autograd.grad(total, args, create_graph=True)
        scales = here(torch.tensor([1.0, 2.0], dtype=out.dtype))
        second = torch.autograd.grad(
            sum((t**2).sum() for t in first),
            args,
            scales.requires_grad_(),
            is_grads_batched=True,
            create_graph=True,
        )
        last = torch.autograd.grad(sum((t**2).sum() for t in second), [*args, scales])
        return [*jacobian, *second, *last]

    assert_same(third(op.ours), third(op.plain))


def test_functional_call_of_an_ensemble():
    """One model per sample of parameters: the batch is in the weights."""
    models = [here(torch.nn.Bilinear(3, 4, 5, dtype=torch.float64)) for _ in range(6)]
    stacked = [torch.stack([getattr(m, n).detach() for m in models]) for n in ("weight", "bias")]
    x1, x2 = draw((7, 3)), draw((7, 4))
    got = vmap(matcalc_ext.nn_bilinear, (None, None, 0, 0))(x1, x2, *stacked)
    expected = torch.stack([m(x1, x2) for m in models]).detach()
    torch.testing.assert_close(got, expected)


# --------------------------------------------------------------------------------------------
# Compiled. torch itself cannot trace two levels of forward mode, nor, before 2.13, how it makes the
# basis of several Jacobians, of plain torch either.

NOT_COMPILED = {"jacfwd of jacfwd", "jvp of jvp of jvp", "vmap of hessian"}
if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 13):
    NOT_COMPILED |= {"jacfwd", "hessian", "jacrev of jacfwd", "jacrev of jacrev"}
COMPILED = [name for name in TRANSFORMS if name not in NOT_COMPILED]


@pytest.mark.parametrize("transform", ["grad", "jvp", "vmap of grad", "jvp of grad"])
@pytest.mark.parametrize("name", DIRECT)
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_transform(name, transform):
    op = BY_NAME[name]
    args = arguments(list(op.families.values())[1])
    run = torch.compile(
        lambda *a: TRANSFORMS[transform](op.ours, a), fullgraph=True, backend="aot_eager"
    )
    assert_same(run(*args), TRANSFORMS[transform](op.plain, args))


@pytest.mark.parametrize("transform", COMPILED)
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_transforms_of_the_bilinear_form(transform):
    args = arguments(((2,), (2, 3), (3,)))
    run = torch.compile(
        lambda *a: TRANSFORMS[transform](matcalc_ext.bilinear, a),
        fullgraph=True,
        backend="aot_eager",
    )
    expected = TRANSFORMS[transform](BY_NAME["bilinear"].plain, args)
    assert_same(run(*args), expected)


@pytest.mark.parametrize("transform", ["jacfwd of jacfwd", "vmap of hessian"])
def test_what_cannot_be_compiled_is_right_or_an_error(transform):
    """Never a wrong number: where torch cannot trace plain torch, it does not trace us either.

    In a process of its own, because a trace that failed leaves torch in the middle of a transform.
    """
    program = f"""
import torch
from reference import BY_NAME, arguments
from test_transforms import TRANSFORMS, assert_same
torch.manual_seed(0)
op, args, transform = BY_NAME["bilinear"], arguments(((2,), (2, 3), (3,))), {transform!r}
expected = TRANSFORMS[transform](op.plain, args)
run = torch.compile(lambda *a: TRANSFORMS[transform](op.ours, a), backend="aot_eager")
try:
    got = run(*args)
except RuntimeError as error:  # of torch's, whose kind depends on its version
    assert "fake tensor" in str(error) or "at::_make_dual" in str(error)
    print("refused")
else:
    assert_same(got, expected)
    print("right")
"""
    tests = os.path.dirname(__file__)
    path = os.pathsep.join([tests, os.path.dirname(tests), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ("refused", "right")


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_gradient_is_the_closed_form():
    """Not against another of torch's traces: α = xᵀAx, its gradient and its Hessian by hand."""
    x, A = arguments(((4,), (4, 4)))
    compiled = lambda f: torch.compile(f, fullgraph=True, backend="aot_eager")  # noqa: E731
    torch.testing.assert_close(compiled(grad(matcalc_ext.quadratic))(x, A), (A + A.mT) @ x)
    torch.testing.assert_close(
        compiled(grad(matcalc_ext.quadratic, argnums=1))(x, A), torch.outer(x, x)
    )
    torch.testing.assert_close(compiled(hessian(matcalc_ext.quadratic))(x, A), A + A.mT)
