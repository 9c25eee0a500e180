"""The registered ops: torch's own checks, fake kernels, the meta device, compiled graphs."""

import copy
import itertools

import pytest
import torch
from reference import (
    BY_NAME,
    FAMILIES,
    FLOATING,
    arguments,
    assert_fresh,
    current_device,
    draw,
    here,
)
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import matcalc_ext

pytestmark = [
    pytest.mark.usefixtures("on_each_device"),
    # torch 2.15's opcheck looks at the .grad of whatever it is given.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]

ops = torch.ops.matcalc_ext
# Each op with arguments: the forward ops in each family, the backward ops for each choice.
FORWARD = {
    "matmul": lambda *args: (args, {}),
    "linear": lambda *args: (args, {}),
    "bilinear": lambda *args: (args, {}),
    "quadratic": lambda *args: (args, {}),
    "quadratic_symmetric": lambda *args: (args, {"symmetric": True}),
    "nn_bilinear": lambda *args: (args, {}),
}
BACKWARD = {
    "matmul": lambda needs, *args: (*args, *needs),
    "linear": lambda needs, *args: (*args, *needs),
    "bilinear": lambda needs, *args: (*args, *needs),
    "quadratic": lambda needs, *args: (*args, False, *needs),
    "quadratic_symmetric": lambda needs, *args: (*args, True, *needs),
    "nn_bilinear": lambda needs, *args: (*args[:4], *needs),
}


def overload(name):
    return getattr(ops, name.replace("_symmetric", "")).default


def backward_overload(name):
    return getattr(ops, name.replace("_symmetric", "") + "_backward").default


@pytest.mark.parametrize("dtype", (torch.float64, torch.complex128), ids=str)
@pytest.mark.parametrize("name", FORWARD)
def test_opcheck(name, dtype):
    for shapes in list(BY_NAME[name].families.values())[:5]:
        args, kwargs = FORWARD[name](*arguments(shapes, dtype, requires_grad=True))
        torch.library.opcheck(overload(name), args, kwargs)


MASKS = [
    (name, needs)
    for name in BACKWARD
    for needs in itertools.product((True, False), repeat=4 if name == "nn_bilinear" else 2)
    if name in ("matmul", "quadratic", "quadratic_symmetric", "nn_bilinear")
] + [
    (name, needs)
    for name in ("linear", "bilinear")
    for needs in itertools.product((True, False), repeat=3)
]


@pytest.mark.parametrize(
    ("name", "needs"), MASKS, ids=[f"{n}-{''.join('01'[x] for x in needs)}" for n, needs in MASKS]
)
def test_opcheck_of_the_backward_ops(name, needs):
    shapes = list(BY_NAME[name].families.values())[1]
    for requires_grad in (True, False):
        args = arguments(shapes, requires_grad=requires_grad)
        grad = draw(BY_NAME[name].plain(*args).shape, requires_grad=requires_grad)
        torch.library.opcheck(
            backward_overload(name),
            BACKWARD[name](needs, grad, *args),
            test_utils=(
                "test_schema",
                "test_autograd_registration",
                "test_faketensor",
                # A graph without an output has nothing to trace.
                *(("test_aot_dispatch_dynamic",) if any(needs) and requires_grad else ()),
            ),
        )


INNER = {
    **{f"_{name}": (name, lambda g, *args: args) for name in FORWARD if "symm" not in name},
    "_matmul_backward": ("matmul", lambda g, *args: (g, *args, True, True)),
    "_linear_backward": ("linear", lambda g, *args: (g, *args, True, True, args[2] is not None)),
    "_bilinear_backward": ("bilinear", lambda g, *args: (g, *args, True, True, True)),
    "_quadratic_backward": ("quadratic", lambda g, *args: (g, *args, False, True, True)),
    "_nn_bilinear_backward": (
        "nn_bilinear",
        lambda g, *args: (g, *args[:3], True, True, True, True),
    ),
    "_bilinear_products": ("bilinear", lambda g, *args: (*args, True, True)),
    "_bilinear_products_backward": (
        "bilinear",
        lambda g, *args: (g, *args, *ops._bilinear_products(*args, True, True)[1:], *[True] * 3),
    ),
    "_quadratic_products": ("quadratic", lambda g, *args: args),
    "_quadratic_products_backward": (
        "quadratic",
        lambda g, *args: (g, *args, ops._quadratic_products(*args)[1], False, True, True),
    ),
}


def test_every_registered_op_is_checked():
    names = {f"_{name}" for name in matcalc_ext._ops.NAMES}
    assert set(INNER) == names
    public = {name for name in matcalc_ext._ops.NAMES if hasattr(ops, name)}
    assert public == {n.removesuffix("_symmetric") for n in FORWARD} | {
        f"{n.removesuffix('_symmetric')}_backward" for n in BACKWARD
    }


@pytest.mark.parametrize("name", INNER)
def test_opcheck_of_the_names_below_autograd(name):
    """They have no derivatives: a gradient stops there."""
    public, make = INNER[name]
    for shapes in list(BY_NAME[public].families.values())[:5]:
        args = arguments(shapes)
        g = draw(BY_NAME[public].plain(*args).shape)
        torch.library.opcheck(getattr(ops, name).default, make(g, *args))


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("name", FORWARD)
def test_the_meta_device_knows_every_shape(name, dtype):
    """Values and gradients on meta have the shapes, strides and dtypes of the real ones."""
    op = BY_NAME[name]
    for shapes in op.families.values():
        real = arguments(shapes, dtype, requires_grad=True)
        meta = [None if t is None else t.detach().to("meta").requires_grad_() for t in real]
        outs = [op.ours(*real), op.ours(*meta)]
        grads = [
            torch.autograd.grad(out, [t for t in leaves if t is not None], torch.ones_like(out))
            for out, leaves in zip(outs, (real, meta), strict=True)
        ]
        for one, two in zip([outs[0], *grads[0]], [outs[1], *grads[1]], strict=True):
            assert two.device.type == "meta"
            assert (one.shape, one.stride(), one.dtype) == (two.shape, two.stride(), two.dtype)


def test_the_meta_device_mixes_with_no_other():
    real = here(torch.ones(())).device  # with its index
    for a, b in ((real, "meta"), ("meta", real)):
        with pytest.raises(RuntimeError, match=f"matmul: a is on {a} and b is on {b}"):
            matcalc_ext.matmul(torch.ones(2, 3, device=a), torch.ones(3, 2, device=b))


# Each call is wrong; the fake kernel must say of it what the real one says.
WRONG = [
    (ops.matmul, ((2, 3), (4, 2)), {}),
    (ops.matmul, ((3,), (4,)), {}),
    (ops.matmul, ((), (3,)), {}),
    (ops.matmul, ((2, 2, 3), (3, 3, 2)), {}),
    (ops.linear, ((2, 3), (4, 2)), {}),
    (ops.linear, ((2, 3), (3, 4, 3)), {}),
    (ops.linear, ((2, 3), (2,)), {}),
    (ops.linear, ((2, 3), (4, 3), (3,)), {}),
    (ops.bilinear, ((2,), (3, 2), (2,)), {}),
    (ops.bilinear, ((3,), (3, 2), (3,)), {}),
    (ops.bilinear, ((3,), (3,), (3,)), {}),
    (ops.bilinear, ((2, 3), (3, 3, 2), (2,)), {}),
    (ops.quadratic, ((3,), (3, 2)), {}),
    (ops.quadratic, ((2,), (3, 3)), {"symmetric": True}),
    (ops.quadratic, ((2, 3), (3, 3, 3)), {}),
    (ops.nn_bilinear, ((2, 3), (3, 4), (5, 3, 4)), {}),
    (ops.nn_bilinear, ((2, 3), (2, 4), (5, 4, 3)), {}),
    (ops.nn_bilinear, ((2, 3), (2, 4), (5, 3, 3)), {}),
    (ops.nn_bilinear, ((2, 3), (2, 4), (3, 4)), {}),
    (ops.nn_bilinear, ((2, 3), (2, 4), (5, 3, 4), (4,)), {}),
]


@pytest.mark.parametrize(
    ("op", "shapes", "kwargs"), WRONG, ids=[f"{op}-{s}".split(".")[1] for op, s, _ in WRONG]
)
def test_fake_errors_are_the_real_ones(op, shapes, kwargs):
    messages = []
    for device in (current_device(), "meta"):
        with pytest.raises(RuntimeError) as caught:
            op(*(torch.ones(s, device=device) for s in shapes), **kwargs)
        messages.append(str(caught.value).splitlines()[0])
    assert messages[0] == messages[1]
    assert messages[0].startswith(f"{op.default._schema.name.split('::')[1]}: ")


@pytest.mark.parametrize("kind", ["real", "meta"])
@pytest.mark.parametrize("name", FORWARD)
def test_wrong_dtypes_and_gradients(name, kind):
    """As above for the dtypes and, for the backward ops, the gradient's shape."""
    device = current_device() if kind == "real" else kind
    shapes = list(BY_NAME[name].families.values())[1]
    args = [t.to(device) for t in arguments(shapes)]
    short = name.replace("_symmetric", "")
    with pytest.raises(
        RuntimeError, match=rf"^{short}: \w+ is float64 and \w+ is float32, expected one"
    ):
        overload(name)(*FORWARD[name](*args[:-1], args[-1].float())[0])
    with pytest.raises(RuntimeError, match=rf"^{short}: \w+ is bool, expected float64"):
        overload(name)(*FORWARD[name](*(t.bool() for t in args))[0])
    if name != "matmul":
        with pytest.raises(RuntimeError, match=rf"^{short}: \w+ is int64, expected float64"):
            overload(name)(*FORWARD[name](*(t.long() for t in args))[0])
    grad = torch.ones(7, 7, 7, dtype=torch.float64, device=device)
    needs = (True,) * (4 if name == "nn_bilinear" else len(shapes))
    with pytest.raises(
        RuntimeError, match=rf"^{short}_backward: grad has shape \[7, 7, 7\], expected the output's"
    ):
        backward_overload(name)(*BACKWARD[name](needs, grad, *args))


def test_symbolic_sizes():
    """One graph serves every size: no fake kernel turns a size into a number."""
    for op, family in FAMILIES:
        shapes = op.families[family]
        mode = FakeTensorMode(shape_env=ShapeEnv())
        args = [
            None if shape is None else mode.from_tensor(draw(shape), static_shapes=False)
            for shape in shapes
        ]
        out = op.ours(*args)
        expected = op.plain(*arguments(shapes))
        for size, number in zip(out.shape, expected.shape, strict=True):
            assert int(size) == number
            assert isinstance(size, torch.SymInt) == (number != 1)


@pytest.mark.parametrize("name", FORWARD)
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_forward_and_backward(name):
    """Against plain torch, with sizes that change from call to call."""
    op = BY_NAME[name]
    compiled = torch.compile(op.ours, fullgraph=True, dynamic=True, backend="aot_eager")
    family = {"quadratic": "batched", "quadratic_symmetric": "batched", "bilinear": "batched"}
    shapes = op.families[family.get(name, "matrix_matrix" if name == "matmul" else "matrix")]
    for scale in (2, 3):
        args = arguments([tuple(scale * s for s in shape) for shape in shapes], requires_grad=True)
        got, expected = compiled(*args), op.plain(*args)
        torch.testing.assert_close(got, expected)
        grad = torch.randn_like(got)
        for one, two in zip(
            torch.autograd.grad(got, args, grad),
            torch.autograd.grad(expected, args, grad),
            strict=True,
        ):
            torch.testing.assert_close(one, two)


@pytest.mark.usefixtures("fresh_compiler")
def test_each_op_is_one_node_of_a_graph():
    graphs = []

    def note(module, _):
        graphs.append(module)
        return module

    def model(x, W, b, A):
        return matcalc_ext.quadratic(matcalc_ext.linear(x, W, b), A)

    args = arguments(((5, 3), (4, 3), (4,), (4, 4)))
    torch.compile(model, backend=note, fullgraph=True)(*args)
    (graph,) = graphs
    called = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    assert called == [ops.linear, ops.quadratic]


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_autograd():
    """The backward pass itself compiled: the rules are traced too."""
    y, A, x = arguments(((3,), (3, 4), (4,)), requires_grad=True)

    def step(y, A, x):
        matcalc_ext.bilinear(y, A, x).backward()

    with torch._dynamo.config.patch(compiled_autograd=True):
        torch.compile(step, backend="aot_eager")(y, A, x)
    torch.testing.assert_close(y.grad, A.detach() @ x.detach())
    torch.testing.assert_close(A.grad, torch.outer(y.detach(), x.detach()))
    torch.testing.assert_close(x.grad, A.detach().mT @ y.detach())


def test_exported_program():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.A = torch.nn.Parameter(draw((4, 4)))

        def forward(self, x):
            return matcalc_ext.quadratic(x, self.A)

    model, x = Model(), draw((5, 4))
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    longer = draw((9, 4))
    torch.testing.assert_close(program.module()(longer), model(longer))


@pytest.mark.parametrize("name", FORWARD)
def test_results_are_fresh(name):
    """Of both kinds of op, even where a formula gives an argument itself: 1 x = x."""
    op = BY_NAME[name]
    for shapes in op.families.values():
        ones = [None if s is None else here(torch.ones(s, dtype=torch.float64)) for s in shapes]
        out = overload(name)(*FORWARD[name](*ones)[0])
        assert_fresh(out, ones)
        grad = torch.ones_like(out)
        needs = (True,) * (3 if name == "nn_bilinear" else len(shapes))
        needs = tuple(n and t is not None for n, t in zip(needs, ones, strict=False))
        if name == "nn_bilinear":
            needs = (*needs, True)
        grads = [
            g for g in backward_overload(name)(*BACKWARD[name](needs, grad, *ones)) if g is not None
        ]
        for i, g in enumerate(grads):
            assert_fresh(g, [grad, *ones, *grads[:i]])


def test_deepcopy_and_pickle_of_a_function_keep_it():
    """The public functions are plain functions: modules that hold them can be copied."""
    assert copy.deepcopy(matcalc_ext.matmul) is matcalc_ext.matmul
