"""nn.swap: what it replaces, what it leaves, and that nothing else about the model changes."""

import copy
import logging
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.utils._python_dispatch import TorchDispatchMode

import matcalc_ext as mc


class Ops(TorchDispatchMode):
    """Records the names of the ops that are called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func).rpartition(".")[0])
        return func(*args, **(kwargs or {}))


def ops_of(model, *inputs):
    with Ops() as ops:
        model(*inputs)
    return ops.names


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def same_training(theirs, ours, *inputs):
    """Outputs and the gradients of every parameter agree."""
    outputs = []
    for model in (theirs, ours):
        model.zero_grad()
        output = model(*inputs)
        output.square().sum().backward()
        outputs.append(output)
    close(outputs[1], outputs[0])
    expected = dict(theirs.named_parameters())
    got = dict(ours.named_parameters())
    assert list(got) == list(expected)
    for name, parameter in expected.items():
        close(got[name].grad, parameter.grad)


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Sequential(nn.Linear(8, 4)))
        self.heads = nn.ModuleDict({"pair": nn.Bilinear(4, 4, 3)})
        self.rest = nn.ModuleList([nn.Linear(3, 3, bias=False), nn.LayerNorm(3)])

    def forward(self, x, y):
        z = self.heads["pair"](self.body(x), self.body(y))
        for layer in self.rest:
            z = layer(z)
        return z


def nested():
    torch.manual_seed(0)
    return Nested().double()


def inputs(*shape, count=1):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


def test_nested_model():
    theirs = nested()
    ours = copy.deepcopy(theirs)
    assert mc.nn.swap(ours) is ours
    assert type(ours.body[0]) is type(ours.body[2][0]) is type(ours.rest[0]) is mc.nn.Linear
    assert type(ours.heads["pair"]) is mc.nn.Bilinear
    assert type(ours.rest[1]) is nn.LayerNorm
    assert type(ours) is Nested
    same_training(theirs, ours, *inputs(5, 6, count=2))


def test_the_swapped_model_calls_these_kernels_and_no_others():
    x, y = inputs(5, 6, count=2)
    theirs = nested()
    names = ops_of(theirs, x, y)
    assert not any(name.startswith("matcalc_ext") for name in names)
    names = ops_of(mc.nn.swap(theirs), x, y)
    assert names.count("matcalc_ext._linear") == 5
    assert names.count("matcalc_ext._nn_bilinear") == 1
    assert not {"aten.addmm", "aten.mm", "aten.linear", "aten._trilinear"} & set(names)


def test_parameters_modules_and_state_dict_stay_the_same_objects():
    model = nested()
    parameters = dict(model.named_parameters())
    modules = dict(model.named_modules())
    state = {name: value.data_ptr() for name, value in model.state_dict().items()}
    mc.nn.swap(model)
    assert dict(model.named_parameters()).keys() == parameters.keys()
    assert all(p is parameters[name] for name, p in model.named_parameters())
    assert all(m is modules[name] for name, m in model.named_modules())
    assert {name: value.data_ptr() for name, value in model.state_dict().items()} == state


def test_an_optimizer_made_before_goes_on():
    theirs = nested()
    ours = copy.deepcopy(theirs)
    x, y = inputs(5, 6, count=2)
    optimizers = [torch.optim.Adam(model.parameters(), lr=1e-2) for model in (theirs, ours)]
    for step in range(6):
        if step == 3:
            mc.nn.swap(ours)
        for model, optimizer in zip((theirs, ours), optimizers, strict=True):
            optimizer.zero_grad()
            model(x, y).square().mean().backward()
            optimizer.step()
    before = nested().body[0].weight
    assert not torch.equal(ours.body[0].weight, before)
    close(ours.body[0].weight, theirs.body[0].weight)


def test_state_dict_loads_both_ways():
    theirs = nested()
    ours = mc.nn.swap(nested())
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.mul_(1.5)
    assert ours.load_state_dict(theirs.state_dict()).missing_keys == []
    x, y = inputs(5, 6, count=2)
    close(ours(x, y), theirs(x, y))
    back = nested()
    back.load_state_dict(ours.state_dict())
    assert torch.equal(back(x, y), theirs(x, y))


def test_pickle_and_deepcopy_of_a_swapped_model():
    model = mc.nn.swap(nested())
    x, y = inputs(5, 6, count=2)
    for duplicate in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(duplicate.body[0]) is mc.nn.Linear
        assert torch.equal(duplicate(x, y), model(x, y))


def test_tied_parameters_stay_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(9, 6)
            self.first = nn.Linear(6, 9, bias=False)
            self.second = nn.Linear(6, 9)
            self.first.weight = self.embed.weight
            self.second.weight = self.embed.weight

        def forward(self, x):
            e = self.embed(x)
            return self.first(e) + self.second(e)

    torch.manual_seed(0)
    theirs = Tied().double()
    ours = mc.nn.swap(copy.deepcopy(theirs))
    assert ours.first.weight is ours.second.weight is ours.embed.weight
    assert type(ours.first) is type(ours.second) is mc.nn.Linear
    same_training(theirs, ours, torch.tensor([0, 3, 8]))


def test_a_module_in_two_places_stays_one_module():
    shared = nn.Linear(6, 6).double()
    model = nn.Sequential(shared, nn.Tanh(), nn.ModuleDict({"again": shared})["again"])
    report = []
    mc.nn.swap(model, report=report)
    assert model[0] is model[2] is shared
    assert type(shared) is mc.nn.Linear
    assert [entry.names for entry in report] == [("0", "2")]


@pytest.mark.parametrize(
    "root", [nn.Linear(6, 4), nn.Bilinear(6, 5, 4)], ids=["linear", "bilinear"]
)
def test_the_model_itself_is_replaced(root):
    weight = root.weight
    kind = type(root)
    report = []
    assert mc.nn.swap(root, report=report) is root
    assert type(root) is {nn.Linear: mc.nn.Linear, nn.Bilinear: mc.nn.Bilinear}[kind]
    assert root.weight is weight
    assert report[0].names == ("",)
    assert str(report[0]).startswith("(the model itself)")


def test_a_second_swap_finds_nothing():
    model = mc.nn.swap(nested())
    report = []
    mc.nn.swap(model, report=report)
    assert report == []


class Scaled(nn.Linear):
    def forward(self, input):
        return 2 * super().forward(input)


def test_subclasses_are_left_and_reported():
    lazy = nn.LazyLinear(4)
    parametrized = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    own = nn.Linear(4, 4)
    own.forward = lambda input: input
    model = nn.Sequential(Scaled(6, 6), lazy, parametrized, own, nn.Linear(4, 2))
    classes = [type(layer) for layer in model]
    report = []
    mc.nn.swap(model, report=report)
    assert [type(layer) for layer in model] == [*classes[:4], mc.nn.Linear]
    assert [entry.replaced for entry in report] == [False] * 4 + [True]
    assert [entry.names for entry in report] == [("0",), ("1",), ("2",), ("3",), ("4",)]
    assert "subclass" in report[0].reason
    assert "forward of its own" in report[3].reason
    assert "Scaled]: left as it is: a subclass" in str(report[0])
    x = torch.randn(3, 6)
    expected = 2 * nn.functional.linear(x, model[0].weight, model[0].bias)
    torch.testing.assert_close(model[0](x), expected)
    assert model(x).shape == (3, 2)
    # Once it has seen an input, a lazy module is a plain one.
    mc.nn.swap(model)
    assert type(lazy) is mc.nn.Linear
    assert model(x).shape == (3, 2)


class DoubledWeight(torch.Tensor):
    """A weight as quantisation libraries make them: it says itself what F.linear does with it."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        result = super().__torch_function__(func, types, args, kwargs)
        return 2 * result if func is nn.functional.linear else result


class WrappedWeight(torch.Tensor):
    """The same, below autograd."""

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        result = super().__torch_dispatch__(func, types, args, kwargs)
        return result.as_subclass(cls) if func is torch.ops.aten.detach.default else result


class Named(torch.Tensor):
    """A tensor like others."""


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state:UserWarning")
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda w: w.as_subclass(DoubledWeight), "its weight is a DoubledWeight, which has a"),
        (lambda w: w.as_subclass(WrappedWeight), "its weight is a WrappedWeight, which has a"),
        (lambda w: w.to_sparse_csr(), "its weight is a sparse csr tensor"),
        (lambda w: w.to(torch.float8_e4m3fn), "its weight is float8_e4m3fn"),
        (lambda w: w.as_subclass(Named), ""),
        (lambda w: w.to("meta"), ""),
    ],
    ids=("function", "dispatch", "sparse", "float8", "subclass", "meta"),
)
def test_weights_that_no_kernel_reads(make, reason):
    layer = nn.Linear(4, 3)
    layer.weight = nn.Parameter(make(layer.weight.detach()), requires_grad=False)
    report = []
    mc.nn.swap(layer, report=report)
    assert report[0].replaced == (not reason)
    assert report[0].reason.startswith(reason)
    assert type(layer) is (nn.Linear if reason else mc.nn.Linear)


def test_flags_dtype_hooks_and_buffers_stay():
    layer = nn.Linear(6, 4).to(torch.bfloat16).eval()
    layer.weight.requires_grad_(False)
    layer.register_buffer("count", torch.zeros(()))
    layer.note = "mine"
    seen = []
    layer.register_forward_pre_hook(lambda module, args: seen.append("pre"))
    layer.register_forward_hook(lambda module, args, output: seen.append("post"))
    layer.register_full_backward_hook(lambda module, gin, gout: seen.append("backward"))
    mc.nn.swap(nn.Sequential(layer))
    assert not layer.training
    assert layer.weight.dtype == torch.bfloat16
    assert [p.requires_grad for p in layer.parameters()] == [False, True]
    assert layer.note == "mine"
    assert "count" in layer.state_dict()
    x = torch.ones(2, 6, dtype=torch.bfloat16, requires_grad=True)
    layer(x).sum().backward()
    assert seen == ["pre", "post", "backward"]
    assert layer.weight.grad is None
    assert layer.bias.grad.dtype == torch.bfloat16


def test_pruned_module_keeps_its_mask():
    layers = []
    for _ in range(2):
        torch.manual_seed(0)
        layers.append(nn.Linear(6, 4).double())
        prune.random_unstructured(layers[-1], "weight", amount=0.5)
    theirs, layer = layers
    mc.nn.swap(layer)
    assert type(layer) is mc.nn.Linear
    same_training(theirs, layer, *inputs(3, 6))


def encoder_layer(**options):
    torch.manual_seed(0)
    return nn.TransformerEncoderLayer(
        16, 4, dim_feedforward=64, dropout=0.0, batch_first=True, dtype=torch.float64, **options
    )


@pytest.mark.parametrize("norm_first", [False, True])
def test_transformer_layer(norm_first):
    theirs = encoder_layer(norm_first=norm_first)
    ours = copy.deepcopy(theirs)
    report = []
    mc.nn.swap(ours, report=report)
    assert {entry.names[0]: entry.replaced for entry in report} == {
        "self_attn.out_proj": False,  # a subclass, whose weight attention reads for itself
        "linear1": True,
        "linear2": True,
    }
    (x,) = inputs(3, 5, 16)
    same_training(theirs, ours, x)
    assert ops_of(ours, x).count("matcalc_ext._linear") == 2
    # Without gradients torch may take a fast path that reads the weights of the modules itself.
    ours.eval()
    theirs.eval()
    with torch.no_grad():
        close(ours(x), theirs(x))
    mask = torch.zeros(3, 5, dtype=torch.bool)
    mask[:, 4:] = True
    close(ours(x, src_key_padding_mask=mask), theirs(x, src_key_padding_mask=mask))


def test_whole_transformer_and_attention():
    torch.manual_seed(0)
    theirs = nn.Transformer(
        16, 4, 1, 1, dim_feedforward=32, dropout=0.0, batch_first=True, dtype=torch.float64
    )
    ours = mc.nn.swap(copy.deepcopy(theirs))
    same_training(theirs, ours, *inputs(3, 5, 16, count=2))
    attention = nn.MultiheadAttention(16, 4, batch_first=True, dtype=torch.float64)
    swapped = mc.nn.swap(copy.deepcopy(attention))
    (x,) = inputs(3, 5, 16)
    close(swapped(x, x, x)[0], attention(x, x, x)[0])


def test_compiled_after_the_swap():
    torch._dynamo.reset()
    theirs = nested()
    ours = torch.compile(mc.nn.swap(copy.deepcopy(theirs)), backend="aot_eager")
    x, y = inputs(5, 6, count=2)
    theirs(x, y).square().sum().backward()
    ours(x, y).square().sum().backward()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        close(mine.grad, other.grad)


def test_a_model_compiled_before_is_traced_again():
    torch._dynamo.reset()
    theirs = nested()
    model = copy.deepcopy(theirs)
    compiled = torch.compile(model, backend="aot_eager")
    x, y = inputs(5, 6, count=2)
    expected = theirs(x, y)
    close(compiled(x, y), expected)
    mc.nn.swap(model)
    close(compiled(x, y), expected)


def test_report_is_logged(caplog):
    with caplog.at_level(logging.INFO, logger="matcalc_ext.nn.swap"):
        mc.nn.swap(nn.Sequential(nn.Linear(6, 4), Scaled(4, 4)))
    assert [record.message for record in caplog.records] == [
        "0 [torch.nn.modules.linear.Linear]: replaced",
        f"1 [{Scaled.__module__}.Scaled]: left as it is: a subclass, not the class itself",
    ]


@pytest.mark.parametrize("model", [None, [nn.Linear(2, 2)], nn.Linear, torch.ones(2)], ids=repr)
def test_what_is_no_model(model):
    with pytest.raises(TypeError, match=r"swap: model is a \w+, expected a torch\.nn\.Module"):
        mc.nn.swap(model)
