"""Graphs that torch records of our ops: they can be differentiated, and run with other sizes."""

import pickle

import pytest
import torch
from reference import OPS, arguments, draw, gradients
from torch._dynamo import compiled_autograd
from torch.fx.experimental.proxy_tensor import make_fx

import matcalc_ext
from matcalc_ext.ops import _function

EACH_OP = pytest.mark.parametrize("op", OPS, ids=str)


def targets(graph):
    return {
        node.target.name().removeprefix("matcalc_ext::")
        for node in graph.graph.nodes
        if node.op == "call_function" and "matcalc_ext" in str(node.target)
    }


@pytest.mark.parametrize("keeps", [False, True], ids=["plain", "keeps_products"])
@pytest.mark.parametrize("mode", ["real", "symbolic"])
@EACH_OP
def test_a_graph_of_make_fx_has_derivatives(op, mode, keeps, monkeypatch):
    """Also where forward would keep products for backward: both stay out of the graph."""
    if keeps:
        monkeypatch.setattr(_function, "_KEEP_FROM", 0)
    args = arguments(next(iter(op.families.values())))
    graph = make_fx(lambda *t: op.ours(*t), tracing_mode=mode)(*args)
    assert targets(graph) == {op.name.removesuffix("_symmetric")}
    grad = draw(op.plain(*args).shape)
    for got, expected in zip(
        gradients(graph, args, grad), gradients(op.plain, args, grad), strict=True
    ):
        torch.testing.assert_close(got, expected)


@EACH_OP
def test_a_graph_made_before_dispatch_has_derivatives(op):
    """Beside another term, whose graph would hide that one of ours is missing."""
    args = arguments(next(iter(op.families.values())), requires_grad=True)

    def with_more(function):
        return lambda *t: function(*t).sum() + sum((one**2).sum() for one in t)

    graph = make_fx(with_more(op.ours), pre_dispatch=True)(*args)
    assert targets(graph) == {op.name.removesuffix("_symmetric")}
    got = torch.autograd.grad(graph(*args), args)
    for one, expected in zip(
        got, torch.autograd.grad(with_more(op.plain)(*args), args), strict=True
    ):
        torch.testing.assert_close(one, expected)


@pytest.mark.parametrize("before_dispatch", [False, True], ids=["after", "before_dispatch"])
@pytest.mark.parametrize("keeps", [False, True], ids=["plain", "keeps_products"])
@EACH_OP
def test_a_graph_of_a_gradient_has_derivatives(op, keeps, before_dispatch, monkeypatch):
    if keeps:
        monkeypatch.setattr(_function, "_KEEP_FROM", 0)
    args = arguments(next(iter(op.families.values())))
    grad = draw(op.plain(*args).shape)

    def first(function):
        def gradient(x, *rest):
            x = x.detach().requires_grad_()
            return torch.autograd.grad(function(x, *rest), x, grad, create_graph=True)[0]

        return gradient

    leaves = [t.clone().requires_grad_() for t in args]
    graph = make_fx(first(op.ours), pre_dispatch=before_dispatch)(*leaves)
    assert not any(name.startswith("_") for name in targets(graph))
    torch.testing.assert_close(graph(*args), first(op.plain)(*args))


class Form(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.A = torch.nn.Parameter(torch.randn(6, 8))

    def forward(self, y, x):
        return matcalc_ext.bilinear(y, self.A, x)


class Layers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = matcalc_ext.nn.Linear(6, 6)
        self.bilinear = matcalc_ext.nn.Bilinear(6, 8, 5)
        self.quadratic = matcalc_ext.nn.Quadratic(5, 3)

    def forward(self, y, x):
        return self.quadratic(self.bilinear(self.linear(y), x))


@pytest.mark.parametrize("module", [Form, Layers])
def test_export_for_any_number_of_rows(module):
    """Small and large batches, between which forward begins to keep products in eager mode."""
    model, rows = module(), torch.export.Dim("rows")
    shapes = ({0: rows}, {0: rows})
    program = torch.export.export(
        model, (torch.randn(4, 6), torch.randn(4, 8)), dynamic_shapes=shapes
    )
    for count in (2, 3000):
        args = torch.randn(count, 6), torch.randn(count, 8)
        torch.testing.assert_close(program.module()(*args), model(*args))


# What torch's own pytree says of its own use.
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
def test_export_taken_apart_has_derivatives():
    model = Layers()
    args = torch.randn(4, 6), torch.randn(4, 8)
    apart = torch.export.export(model, args).run_decompositions().module()
    torch.testing.assert_close(apart(*args), model(*args))
    apart(*args).sum().backward()
    model(*args).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(apart.get_parameter(name).grad, parameter.grad)


@torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)
def test_sizes_known_at_run_time_only_broadcast(fresh_compiler):
    x, A = torch.randn(2, 3), torch.randn(3, 3)

    def every_batched_op(mask):
        one = torch.ones(mask.nonzero().shape[0], 1, 1)
        return (
            matcalc_ext.matmul(one * x, A),
            matcalc_ext.bilinear(one * x, A, x),
            matcalc_ext.quadratic(one * x, A),
        )

    compiled = torch.compile(every_batched_op, backend="aot_eager", fullgraph=True)
    mask = torch.tensor([1, 0, 2, 3])
    for got, expected in zip(compiled(mask), every_batched_op(mask), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace")
@EACH_OP
def test_a_traced_function_has_derivatives(op):
    args = arguments(next(iter(op.families.values())))
    with torch.no_grad():
        traced = torch.jit.trace(lambda *t: op.ours(*t), tuple(args))
    grad = draw(op.plain(*args).shape)
    for got, expected in zip(
        gradients(traced, args, grad), gradients(op.plain, args, grad), strict=True
    ):
        torch.testing.assert_close(got, expected)


class Scorer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.score = torch.nn.Linear(6, 5), torch.nn.Bilinear(5, 6, 3)
        self.energy = matcalc_ext.nn.Quadratic(3, 2, symmetric=True)

    def forward(self, x):
        return self.energy(self.score(self.embed(x).relu(), x))


def test_symbolic_trace_of_a_model():
    model = matcalc_ext.nn.swap(Scorer().double())
    traced = torch.fx.symbolic_trace(model)
    ops = [node.target for node in traced.graph.nodes if "matcalc_ext" in str(node.target)]
    names = torch.ops.matcalc_ext
    assert ops == [names.linear, names.nn_bilinear, names.quadratic]
    x = draw((4, 6))
    for copy in (traced, pickle.loads(pickle.dumps(traced))):
        torch.testing.assert_close(copy(x), model(x))
        got, expected = (
            torch.autograd.grad(m(x).square().sum(), m.parameters()) for m in (copy, model)
        )
        for one, two in zip(got, expected, strict=True):
            torch.testing.assert_close(one, two)


# torch.fx reads a function's parameters from its signature.
OF_SO_MANY = {
    2: lambda op: lambda a, b: op(a, b),
    3: lambda op: lambda a, b, c: op(a, b, c),
    4: lambda op: lambda a, b, c, d: op(a, b, c, d),
}


@EACH_OP
def test_symbolic_trace_of_a_function(op):
    families = op.families.values()
    traced = torch.fx.symbolic_trace(OF_SO_MANY[len(next(iter(families)))](op.ours))
    for shapes in families:
        args = arguments(shapes)
        torch.testing.assert_close(traced(*args), op.plain(*args))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's
@pytest.mark.parametrize("keeps", [False, True], ids=["plain", "keeps_products"])
@pytest.mark.usefixtures("fresh_compiler")
@EACH_OP
def test_compiled_autograd_takes_the_whole_backward_pass(op, keeps, monkeypatch):
    if keeps:
        monkeypatch.setattr(_function, "_KEEP_FROM", 0)
    args = arguments(next(iter(op.families.values())))
    grad = draw(op.plain(*args).shape)
    leaves = [t.clone().requires_grad_() for t in args]
    output = op.ours(*leaves)
    with compiled_autograd._enable(torch.compile(backend="aot_eager", fullgraph=True)):
        output.backward(grad)
    for leaf, expected in zip(leaves, gradients(op.plain, args, grad), strict=True):
        torch.testing.assert_close(leaf.grad, expected)
