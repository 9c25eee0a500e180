"""Modules: everything but the computation is torch.nn's, and the computation agrees with it.

The reference of a value or a gradient is plain torch in float64.
"""

import copy
import io
import pickle
import warnings
from typing import NamedTuple

import pytest
import torch
from reference import draw, here
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

import matcalc_ext as mc

pytestmark = pytest.mark.usefixtures("on_each_device")

EPS_FACTOR = 64  # times the dtype's epsilon; the numbers here are of order one, the sums short


class Kind(NamedTuple):
    theirs: type
    ours: type
    sizes: tuple[int, ...]  # arguments of the constructor
    inputs: tuple[int, ...]  # last dimension of each input


KINDS = [
    pytest.param(Kind(nn.Linear, mc.nn.Linear, (7, 5), (7,)), id="linear"),
    pytest.param(Kind(nn.Bilinear, mc.nn.Bilinear, (7, 6, 5), (7, 6)), id="bilinear"),
]
BIAS = pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
KIND = pytest.mark.parametrize("kind", KINDS)
LOW_AND_HIGH = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def make(kind, cls, bias=True, seed=0, **where):
    torch.manual_seed(seed)
    return here(cls(*kind.sizes, bias=bias, **where))


def inputs_of(kind, lead=(4,), dtype=torch.float64, seed=1):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(*lead, size) for size in kind.inputs]
    return [
        here(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))
        for shape in shapes
    ]


def close(got, expected, dtype=None):
    """Within a few roundings of the dtype that `got` was computed in."""
    eps = torch.finfo(dtype or got.dtype).eps
    assert got.shape == expected.shape
    scale = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
    torch.testing.assert_close(
        got.detach().to(expected.dtype), expected.detach(), rtol=0, atol=EPS_FACTOR * eps * scale
    )


def run(module, inputs):
    """Output, and the gradients of a sum weighted unevenly, in inputs and parameters."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    output = module(*leaves)
    weights = here(torch.linspace(0.5, 1.5, output.numel(), dtype=torch.float64).to(output.dtype))
    module.zero_grad()
    (output * weights.view_as(output)).sum().backward()
    return output, [*(x.grad for x in leaves), *(p.grad for p in module.parameters())]


def agree(ours, theirs, inputs):
    """The same values and gradients as torch's module has in float64."""
    got, got_gradients = run(ours, inputs)
    reference = copy.deepcopy(theirs).double()
    expected, expected_gradients = run(reference, [x.double() for x in inputs])
    close(got, expected)
    assert len(got_gradients) == len(expected_gradients)
    for mine, other in zip(got_gradients, expected_gradients, strict=True):
        close(mine, other)


@KIND
@BIAS
@pytest.mark.parametrize("dtype", LOW_AND_HIGH, ids=str)
def test_starts_bit_for_bit_as_torch(kind, bias, dtype):
    theirs = make(kind, kind.theirs, bias, dtype=dtype)
    after = torch.get_rng_state()
    ours = make(kind, kind.ours, bias, dtype=dtype)
    assert torch.equal(torch.get_rng_state(), after)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for name, value in theirs.state_dict().items():
        mine = ours.state_dict()[name]
        assert mine.dtype == value.dtype == dtype
        assert torch.equal(mine, value), name


@KIND
@BIAS
@pytest.mark.parametrize("lead", [(), (1,), (4,), (2, 3), (2, 1, 3), (0,), (2, 0)], ids=str)
def test_values_and_gradients(kind, bias, lead):
    ours = make(kind, kind.ours, bias, dtype=torch.float64)
    agree(ours, make(kind, kind.theirs, bias, dtype=torch.float64), inputs_of(kind, lead))


@KIND
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_moved_to_another_dtype(kind, dtype):
    ours = make(kind, kind.ours, dtype=torch.float64).to(dtype)
    theirs = make(kind, kind.theirs, dtype=torch.float64).to(dtype)
    assert all(p.dtype == dtype for p in ours.parameters())
    agree(ours, theirs, inputs_of(kind, dtype=dtype))


def test_half_and_float_methods():
    layer = here(mc.nn.Linear(7, 5)).half()
    x = here(torch.ones(3, 7, dtype=torch.float16))
    assert layer(x).dtype == torch.float16
    assert layer.float()(x.float()).dtype == torch.float32


@pytest.mark.parametrize("change", ["double", "resize"])
def test_a_bias_that_is_another_by_the_backward_pass(change):
    """Its values are not read there, so that it may change; torch.nn.Linear lets it, too."""
    layer = here(mc.nn.Linear(3, 4))
    out = layer(here(torch.ones(2, 3)))
    if change == "double":
        layer.double()
        out.sum().backward()
        assert layer.bias.grad.tolist() == [2, 2, 2, 2]
    else:
        layer.bias.data = here(torch.zeros(7))
        weight = layer.weight
        assert torch.equal(torch.autograd.grad(out.sum(), weight)[0], torch.full_like(weight, 2))


@KIND
def test_inputs_that_are_not_contiguous(kind):
    wide = [torch.cat([x, x], -1).mT for x in inputs_of(kind, (6, 6))]
    views = [x.mT[::2, 1:4, :size] for x, size in zip(wide, kind.inputs, strict=True)]
    assert not any(view.is_contiguous() for view in views)
    ours = make(kind, kind.ours, dtype=torch.float64)
    theirs = make(kind, kind.theirs, dtype=torch.float64)
    close(ours(*views), theirs(*views))


@KIND
@BIAS
def test_text_is_torchs(kind, bias):
    assert repr(make(kind, kind.ours, bias)) == repr(make(kind, kind.theirs, bias))


@KIND
@BIAS
def test_state_dict_loads_both_ways(kind, bias):
    inputs = inputs_of(kind)
    for source, target in [(kind.theirs, kind.ours), (kind.ours, kind.theirs)]:
        trained = make(kind, source, bias, seed=3, dtype=torch.float64)
        fresh = make(kind, target, bias, seed=4, dtype=torch.float64)
        assert not torch.equal(fresh.weight, trained.weight)
        fresh.load_state_dict(trained.state_dict())
        assert torch.equal(fresh.weight, trained.weight)
        close(fresh(*inputs), trained(*inputs))


def copies(module):
    saved = io.BytesIO()
    torch.save(module, saved)
    saved.seek(0)
    yield copy.deepcopy(module)
    yield pickle.loads(pickle.dumps(module))
    yield torch.load(saved, weights_only=False)


@pytest.mark.parametrize("name", ["Linear", "Bilinear", "Quadratic"])
def test_copies(name):
    sizes = {"Linear": (7, 5), "Bilinear": (7, 7, 5), "Quadratic": (7, 5)}[name]
    layer = here(getattr(mc.nn, name)(*sizes))
    inputs = [draw((4, 7), torch.float32)] * (2 if name == "Bilinear" else 1)
    for duplicate in copies(layer):
        assert type(duplicate) is type(layer)
        assert duplicate.weight is not layer.weight
        assert torch.equal(duplicate(*inputs), layer(*inputs))
        assert repr(duplicate) == repr(layer)


@pytest.mark.parametrize("name", ["Linear", "Bilinear", "Quadratic"])
def test_meta_device_and_skip_init(name):
    sizes = {"Linear": (7, 5), "Bilinear": (7, 7, 5), "Quadratic": (7, 5)}[name]
    cls = getattr(mc.nn, name)
    shapes = [(4, 7)] * (2 if name == "Bilinear" else 1)
    meta = cls(*sizes, device="meta")
    output = meta(*(torch.empty(shape, device="meta") for shape in shapes))
    assert output.device.type == "meta"
    assert output.shape == (4, 5)
    empty = nn.utils.skip_init(cls, *sizes)
    assert empty.weight.device.type == "cpu"
    real = meta.to_empty(device="cpu")
    torch.manual_seed(0)
    real.reset_parameters()
    torch.manual_seed(0)
    empty.reset_parameters()
    torch.manual_seed(0)
    direct = cls(*sizes)
    assert torch.equal(real.weight, direct.weight)
    assert torch.equal(empty.weight, direct.weight)
    inputs = [torch.ones(shape) for shape in shapes]
    assert torch.equal(real(*inputs), direct(*inputs))


@KIND
@BIAS
def test_compiled(kind, bias):
    torch._dynamo.reset()
    ours = make(kind, kind.ours, bias, dtype=torch.float64)
    theirs = make(kind, kind.theirs, bias, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.compile's own, of its tracing
        compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
        got, got_gradients = run(compiled, inputs_of(kind))
    expected, expected_gradients = run(theirs, inputs_of(kind))
    close(got, expected)
    for mine, other in zip(got_gradients, expected_gradients, strict=True):
        close(mine, other)


@pytest.mark.parametrize("symmetric", [False, True])
def test_compiled_quadratic(symmetric):
    torch._dynamo.reset()
    layer = here(mc.nn.Quadratic(7, 5, symmetric=symmetric, dtype=torch.float64))
    reference = EinsumForms(layer)
    x = draw((4, 7))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
        got, got_gradients = run(compiled, [x])
    expected, expected_gradients = run(reference, [x])
    close(got, expected)
    for mine, other in zip(got_gradients, expected_gradients, strict=True):
        close(mine, other)


@pytest.mark.parametrize(
    "parametrization",
    [
        nn.utils.parametrizations.spectral_norm,
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.orthogonal,
    ],
    ids=lambda p: p.__name__,
)
def test_parametrizations_of_linear(parametrization):
    pair = []
    for cls in (nn.Linear, mc.nn.Linear):
        torch.manual_seed(0)
        pair.append(here(parametrization(cls(7, 7, dtype=torch.float64)).eval()))
    theirs, ours = pair
    x = draw((4, 7))
    (expected, expected_gradients), (got, got_gradients) = run(theirs, [x]), run(ours, [x])
    close(got, expected)
    for mine, other in zip(got_gradients, expected_gradients, strict=True):
        close(mine, other)


def test_pruning_and_frozen_weights():
    torch.manual_seed(0)
    layer = here(mc.nn.Linear(7, 5))
    prune.l1_unstructured(layer, "weight", amount=0.5)
    x = draw((4, 7), torch.float32)
    close(layer(x), F.linear(x.double(), layer.weight.double(), layer.bias.double()))
    assert (layer.weight == 0).sum() >= 17
    frozen = here(mc.nn.Linear(7, 5)).requires_grad_(False)
    frozen.bias.requires_grad_(True)
    frozen(x).sum().backward()
    assert frozen.weight.grad is None
    assert frozen.bias.grad.tolist() == [4.0] * 5


def test_ensemble_by_functional_call_and_vmap():
    torch.manual_seed(0)
    members = [here(mc.nn.Linear(7, 5, dtype=torch.float64)) for _ in range(3)]
    params, buffers = torch.func.stack_module_state(members)
    x = draw((4, 7))

    def call(p, b):
        return torch.func.functional_call(members[0], (p, b), (x,))

    got = torch.vmap(call)(params, buffers)
    for i, member in enumerate(members):
        close(got[i], F.linear(x, member.weight, member.bias))


def test_training_takes_the_steps_of_torch():
    def model(module):
        torch.manual_seed(0)
        layers = [module.Linear(6, 8), nn.Tanh(), module.Linear(8, 4)]
        return here(nn.Sequential(*layers).double()), here(module.Bilinear(4, 4, 2).double())

    torch.manual_seed(1)
    x, y = draw((2, 32, 6)).unbind()
    target = draw((32, 2))
    curves = []
    for module in (nn, mc.nn):
        body, head = model(module)
        optimizer = torch.optim.Adam([*body.parameters(), *head.parameters()], lr=1e-2)
        curve = []
        for _ in range(12):
            optimizer.zero_grad()
            loss = F.mse_loss(head(body(x), body(y)), target)
            loss.backward()
            optimizer.step()
            curve.append(loss.item())
        curves.append(curve)
    assert curves[0][-1] < curves[0][0]
    assert curves[1] == pytest.approx(curves[0], rel=1e-10)


class EinsumForms(nn.Module):
    """nn.Quadratic in plain torch, with parameters of its own."""

    def __init__(self, like):
        super().__init__()
        self.weight = nn.Parameter(like.weight.detach().double().clone())
        bias = like.bias
        self.bias = None if bias is None else nn.Parameter(bias.detach().double().clone())

    def forward(self, x):
        z = torch.einsum("...i,oij,...j->...o", x, self.weight, x)
        return z if self.bias is None else z + self.bias


@BIAS
@pytest.mark.parametrize("symmetric", [False, True], ids=["general", "symmetric"])
@pytest.mark.parametrize("lead", [(), (4,), (2, 3), (0,)], ids=str)
@pytest.mark.parametrize("out", [1, 5])
def test_quadratic_values_and_gradients(bias, symmetric, lead, out):
    torch.manual_seed(0)
    layer = here(mc.nn.Quadratic(7, out, bias=bias, symmetric=symmetric, dtype=torch.float64))
    x = draw((*lead, 7))
    # The weight starts symmetric where it is read as symmetric, so einsum reads the same matrix.
    agree(layer, EinsumForms(layer), [x])


@pytest.mark.parametrize("symmetric", [False, True], ids=["general", "symmetric"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_quadratic_in_other_dtypes(symmetric, dtype):
    torch.manual_seed(0)
    layer = here(mc.nn.Quadratic(7, 5, symmetric=symmetric).to(dtype))
    agree(layer, EinsumForms(layer), [draw((4, 7), dtype)])


def test_quadratic_starts_as_documented():
    n, m = 40, 30
    torch.manual_seed(0)
    general = mc.nn.Quadratic(n, m)
    torch.manual_seed(0)
    symmetric = mc.nn.Quadratic(n, m, symmetric=True)
    assert 0.99 / n < general.weight.abs().max() <= 1 / n
    assert 0.8 / n**0.5 < general.bias.abs().max() <= 1 / n**0.5
    assert torch.equal(symmetric.weight, symmetric.weight.mT)
    assert torch.equal(symmetric.weight, (general.weight + general.weight.mT) / 2)
    assert torch.equal(symmetric.bias, general.bias)
    x = draw((4096, n), torch.float32)
    assert 0.2 < here(general)(x).var() < 0.5  # 1/3, as of nn.Linear
    again = copy.deepcopy(general)
    torch.manual_seed(0)
    again.reset_parameters()
    assert torch.equal(again.weight, general.weight)


def test_symmetric_quadratic_reads_the_lower_triangle_and_keeps_its_gradient_symmetric():
    layer = here(mc.nn.Quadratic(7, 5, symmetric=True, dtype=torch.float64))
    x = draw((4, 7))
    before = layer(x)
    before.square().sum().backward()
    close(layer.weight.grad, layer.weight.grad.mT)
    with torch.no_grad():
        layer.weight[:, here(torch.ones(7, 7)).triu(1).bool()] = torch.nan
    assert torch.equal(layer(x), before)


def test_quadratic_learns_with_sgd_as_einsum_does():
    torch.manual_seed(0)
    layer = here(mc.nn.Quadratic(6, 3, symmetric=True, dtype=torch.float64))
    reference = EinsumForms(layer)
    x = draw((64, 6))
    target = draw((64, 3))
    curves = []
    for model in (layer, reference):
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
        curve = []
        for _ in range(12):
            optimizer.zero_grad()
            loss = F.mse_loss(model(x), target)
            loss.backward()
            optimizer.step()
            curve.append(loss.item())
        curves.append(curve)
    assert curves[0][-1] < curves[0][0]
    assert curves[0] == pytest.approx(curves[1], rel=1e-10)
    close(layer.weight, layer.weight.mT)


@pytest.mark.parametrize("symmetric", [False, True])
def test_quadratic_second_derivative(symmetric):
    layer = here(mc.nn.Quadratic(4, 2, symmetric=symmetric, dtype=torch.float64))
    x = draw((4,))
    weight = layer.weight.detach()
    close(torch.func.hessian(layer)(x).detach(), weight + weight.mT)


def test_quadratic_text_and_bad_sizes():
    assert repr(mc.nn.Quadratic(7, 5, bias=False, symmetric=True)) == (
        "Quadratic(in_features=7, out_features=5, bias=False, symmetric=True)"
    )
    assert mc.nn.Quadratic(7).out_features == 1
    assert here(mc.nn.Quadratic(7))(here(torch.ones(3, 7))).shape == (3, 1)
    assert list(mc.nn.Quadratic(7, bias=False).state_dict()) == ["weight"]
    assert mc.nn.Quadratic(7, 0)(torch.ones(3, 7)).shape == (3, 0)
    for sizes, message in (
        ((0,), "in_features is 0, expected at least 1"),
        ((-1,), "in_features is -1, expected at least 1"),
        ((3, -1), "out_features is -1, expected at least 0"),
    ):
        with pytest.raises(ValueError, match=f"^Quadratic: {message}$"):
            mc.nn.Quadratic(*sizes)
    for sizes, message in (
        (("3",), "in_features is a str, expected an int"),
        ((3.5,), "in_features is a float, expected an int"),
        ((3, None), "out_features is a NoneType, expected an int"),
    ):
        with pytest.raises(TypeError, match=f"^Quadratic: {message}$"):
            mc.nn.Quadratic(*sizes)


def test_functional_is_that_of_torch():
    generator = torch.Generator().manual_seed(0)

    def rand(*shape):
        return here(torch.randn(shape, generator=generator, dtype=torch.float64))

    x, y, weight, forms = rand(2, 3, 7), rand(2, 3, 6), rand(5, 7), rand(5, 7, 6)
    bias = rand(5)
    close(mc.nn.functional.linear(x, weight, bias), F.linear(x, weight, bias))
    close(mc.nn.functional.linear(x, weight), F.linear(x, weight))
    close(mc.nn.functional.linear(x, weight[0]), F.linear(x, weight[0]))
    close(mc.nn.functional.linear(input=x, weight=weight, bias=bias), F.linear(x, weight, bias))
    close(mc.nn.functional.bilinear(x, y, forms, bias), F.bilinear(x, y, forms, bias))
    close(mc.nn.functional.bilinear(x, y, forms), F.bilinear(x, y, forms))
    got = mc.nn.functional.bilinear(input1=x[0, 0], input2=y[0, 0], weight=forms, bias=None)
    close(got, F.bilinear(x[0, 0], y[0, 0], forms))
