"""Bad input: every error names the op, the argument, what was expected and what came.

Each row is a call and the words its message must hold, beside the name of the op.
"""

import contextlib
import gc
import itertools
import re
import weakref

import numpy as np
import pytest
import torch
from reference import current_device, here

import matcalc_ext as mc

pytestmark = pytest.mark.usefixtures("on_each_device")

OPS = {
    "matmul": (mc.matmul, {"a": (4, 3), "b": (3, 5)}),
    "linear": (mc.linear, {"input": (4, 3), "weight": (5, 3), "bias": (5,)}),
    "bilinear": (mc.bilinear, {"y": (2, 3), "A": (3, 4), "x": (2, 4)}),
    "quadratic": (mc.quadratic, {"x": (2, 3), "A": (3, 3)}),
    "nn_bilinear": (
        mc.nn_bilinear,
        {"input1": (2, 3), "input2": (2, 4), "weight": (5, 3, 4), "bias": (5,)},
    ),
}
EVERY_ARGUMENT = [(op, name) for op, (_, shapes) in OPS.items() for name in shapes]
OP = pytest.mark.parametrize("op", list(OPS))
OP_AND_ARGUMENT = pytest.mark.parametrize(("op", "name"), EVERY_ARGUMENT)
GRADIENTS = pytest.mark.parametrize("wanted", [False, True], ids=["plain", "gradients"])


def arguments(op, shapes=None, dtype=torch.float64):
    shapes = {**OPS[op][1], **(shapes or {})}
    return {name: here(torch.ones(shape, dtype=dtype)) for name, shape in shapes.items()}


def fails(op, given, *words, error=(RuntimeError, TypeError, ValueError)):
    """The message begins with the op and holds every word, whole; a tuple of words is a choice."""
    with pytest.raises(error) as caught:
        OPS[op][0](**given)
    message = str(caught.value)
    first = message.splitlines()[0]
    assert first.startswith(f"{op}: "), message
    for word in words:
        choice = word if isinstance(word, tuple) else (word,)
        found = (re.search(rf"(?<!\w){re.escape(str(one))}(?!\w)", message) for one in choice)
        assert any(found), f"{word!r} is not in: {message}"
    return message


@OP
def test_the_arguments_of_these_tests_are_good(op):
    function = OPS[op][0]
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64):
        assert function(**arguments(op, dtype=dtype)).dtype == dtype


# Shapes. Each row: op, the shapes that differ from the good ones, words of the message.
SHAPES = [
    ("matmul", {"a": (4, 2)}, "a", "b", 2, 3),
    ("matmul", {"b": (2, 5)}, "a", "b", 2, 3),
    ("matmul", {"a": (2,)}, "a", "b", 2, 3),
    ("matmul", {"b": (2,)}, "a", "b", 2, 3),
    ("matmul", {"a": (3,), "b": (2,)}, "a", "b", 2, 3),
    ("matmul", {"a": (0,), "b": (3, 5)}, "a", "b", 0, 3),
    ("matmul", {"a": (2, 4, 3), "b": (6, 3, 5)}, "a", "b", "batch", 2, 6),
    ("matmul", {"a": (2, 1, 4, 3), "b": (6, 1, 3, 5)}, "a", "b", "batch", 2, 6),
    ("matmul", {"a": (0, 4, 3), "b": (6, 3, 5)}, "a", "b", "batch", 0, 6),
    ("matmul", {"a": ()}, "a", "0", "at least 1"),
    ("matmul", {"b": ()}, "b", "0", "at least 1"),
    ("linear", {"input": (4, 2)}, "input", "weight", 2, 3),
    ("linear", {"input": (2,)}, "input", "weight", 2, 3),
    ("linear", {"weight": (5, 2)}, "input", "weight", 2, 3),
    ("linear", {"input": ()}, "input", "0", "at least 1"),
    ("linear", {"weight": ()}, "weight", "[]", "(out, in)"),
    ("linear", {"weight": (2, 5, 3)}, "weight", "[2, 5, 3]", "(out, in)"),
    ("linear", {"bias": (4,)}, "bias", "[4]", "[5]"),
    ("linear", {"bias": (5, 5)}, "bias", "[5, 5]", "[5]"),
    ("linear", {"bias": (0,)}, "bias", "[0]", "[5]"),
    ("bilinear", {"y": (2, 5)}, "y", "A", 5, 3, "rows"),
    ("bilinear", {"x": (2, 5)}, "x", "A", 5, 4, "columns"),
    ("bilinear", {"A": (4, 3)}, "y", "A", 3, 4),
    ("bilinear", {"y": ()}, "y", "0", "at least 1"),
    ("bilinear", {"x": ()}, "x", "0", "at least 1"),
    ("bilinear", {"A": (3,)}, "A", "1", "at least 2"),
    ("bilinear", {"A": ()}, "A", "0", "at least 2"),
    ("bilinear", {"y": (6, 3)}, "y", "x", "batch", 2, 6),
    ("bilinear", {"A": (6, 3, 4)}, "y", "A", "batch", 2, 6),
    ("bilinear", {"x": (6, 4), "A": (2, 3, 4), "y": (3,)}, "A", "x", "batch", 2, 6),
    ("quadratic", {"A": (3, 4)}, "A", 3, 4, "square"),
    ("quadratic", {"A": (2, 4, 3)}, "A", 3, 4, "square"),
    ("quadratic", {"x": (2, 4)}, "x", "A", 4, 3),
    ("quadratic", {"x": ()}, "x", "0", "at least 1"),
    ("quadratic", {"A": (3,)}, "A", "1", "at least 2"),
    ("quadratic", {"A": (6, 3, 3)}, "x", "A", "batch", 2, 6),
    ("nn_bilinear", {"input1": (2, 5)}, "input1", "weight", 5, 3),
    ("nn_bilinear", {"input2": (2, 5)}, "input2", "weight", 5, 4),
    ("nn_bilinear", {"input1": ()}, "input1", "0", "at least 1"),
    ("nn_bilinear", {"input2": ()}, "input2", "0", "at least 1"),
    ("nn_bilinear", {"input1": (6, 3)}, "input1", "input2", 2, 6),
    ("nn_bilinear", {"input1": (1, 3)}, "input1", "input2", 1, 2),
    ("nn_bilinear", {"input1": (3,)}, "input1", "input2"),
    ("nn_bilinear", {"input1": (2, 1, 3), "input2": (2, 4, 4)}, "input1", "input2", 1, 4),
    ("nn_bilinear", {"weight": (3, 4)}, "weight", "3"),
    ("nn_bilinear", {"weight": (2, 5, 3, 4)}, "weight", "3"),
    ("nn_bilinear", {"bias": (4,)}, "bias", 4, 5),
    ("nn_bilinear", {"bias": (5, 5)}, "bias", 5),
]


@GRADIENTS
@pytest.mark.parametrize("row", SHAPES, ids=lambda row: f"{row[0]}-{row[1]}")
def test_shapes(row, wanted):
    op, shapes, *words = row
    given = arguments(op, shapes)
    for tensor in given.values():
        tensor.requires_grad_(wanted)
    fails(op, given, *words)


def test_the_symmetric_quadratic_checks_alike():
    for shapes in ({"A": (3, 4)}, {"x": (2, 4)}, {"A": (6, 3, 3)}):
        given = arguments("quadratic", shapes)
        with pytest.raises(RuntimeError, match=r"^quadratic: "):
            mc.quadratic(**given, symmetric=True)


# Dtypes.
@GRADIENTS
@OP_AND_ARGUMENT
def test_mixed_dtypes(op, name, wanted):
    given = arguments(op)
    given[name] = given[name].float()
    for tensor in given.values():
        tensor.requires_grad_(wanted)
    fails(op, given, name, "float32", "float64")


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.uint8, torch.bool], ids=str)
@pytest.mark.parametrize("op", [op for op in OPS if op != "matmul"])
def test_whole_numbers_in_forms(op, dtype):
    first = next(iter(OPS[op][1]))
    fails(op, arguments(op, dtype=dtype), first, str(dtype).removeprefix("torch."), "expected")


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental:UserWarning")
@pytest.mark.parametrize(
    "dtype",
    [torch.bool, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex32, torch.uint16],
    ids=str,
)
@OP
def test_dtypes_without_kernels(op, dtype):
    first = next(iter(OPS[op][1]))
    given = {name: here(torch.zeros(shape, dtype=dtype)) for name, shape in OPS[op][1].items()}
    fails(op, given, first, "expected", "float64")


INTEGERS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8]
SHAPE_PAIRS = [((3,), (3,)), ((4, 3), (3,)), ((3,), (3, 5)), ((4, 3), (3, 5))]


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize(
    "shapes", [*SHAPE_PAIRS, ((2, 1, 4, 3), (6, 3, 5)), ((4, 0), (0, 5))], ids=str
)
def test_integer_matmul_is_torchs(dtype, shapes):
    generator = torch.Generator().manual_seed(0)
    info = torch.iinfo(dtype)
    # The whole range of the dtype, so that products and sums wrap around.
    a, b = (
        torch.randint(info.min, info.max, shape, generator=generator, dtype=dtype)
        for shape in shapes
    )
    expected = torch.matmul(a, b)  # on the CPU: torch has no such product for CUDA
    a, b = here(a), here(b)
    got = mc.matmul(a, b)
    assert got.dtype == dtype
    assert torch.equal(got.cpu(), expected)
    transposed = mc.matmul(a.mT.contiguous().mT if a.dim() > 1 else a, b)
    assert torch.equal(transposed.cpu(), expected)


# Layouts and kinds of tensors.
def sparse_coo(tensor):
    return tensor.to_sparse()


def sparse_csr(tensor):
    return tensor.to_sparse_csr() if tensor.dim() > 1 else tensor.to_sparse()


def mkldnn(tensor):
    return tensor.float().cpu().to_mkldnn()


def quantized(tensor):
    return torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.quint8)


def nested_strided(tensor):
    return torch.nested.nested_tensor([tensor, tensor])


def nested_jagged(tensor):
    if tensor.dim() == 1:
        tensor = tensor[None]
    return torch.nested.nested_tensor([tensor, tensor[:1]], layout=torch.jagged)


@pytest.mark.filterwarnings("ignore:.*[Ss]parse.*:UserWarning")
@pytest.mark.filterwarnings("ignore:.*nested tensors.*:UserWarning")
@pytest.mark.filterwarnings("ignore:.*quantiz.*")
@pytest.mark.parametrize(
    ("make", "word"),
    [
        (sparse_coo, "sparse"),
        (sparse_csr, "sparse"),
        (mkldnn, "MKL-DNN"),
        (quantized, ("quantised", "quantized", "QUInt8", "quint8")),
        (nested_strided, "nested"),
        (nested_jagged, "nested"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
@GRADIENTS
@OP_AND_ARGUMENT
def test_tensors_that_are_not_dense(op, name, make, word, wanted):
    dtype = torch.float32 if make in (mkldnn, quantized) else torch.float64
    given = arguments(op, dtype=dtype)
    for tensor in given.values():
        tensor.requires_grad_(wanted)
    given[name] = make(given[name].detach())
    fails(op, given, name, word, "expected")


@pytest.mark.parametrize("kept", (0, 8), ids=("freed", "shrunk"))
@pytest.mark.parametrize("first", (0, 1), ids=("whole", "sliced"))
@GRADIENTS
@OP_AND_ARGUMENT
def test_tensors_whose_storage_was_freed(op, name, first, kept, wanted):
    """As FSDP does with parameters that it will gather again: no memory is read."""
    given = arguments(op)
    for tensor in given.values():
        tensor.requires_grad_(wanted)
    tensor = given[name].detach()
    given[name] = torch.cat([tensor[:1], tensor])[first:] if first else tensor
    given[name].untyped_storage().resize_(kept)
    fails(op, given, name, "no memory", "expected", list(given[name].shape))


def test_storage_that_is_freed_before_the_backward_pass():
    x = here(torch.ones(5, 4)).requires_grad_()
    weight = here(torch.ones(4, 3))
    total = mc.matmul(x, weight).sum()
    weight.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=r"^matmul_backward: b .* has no memory"):
        total.backward()


def test_an_empty_tensor_needs_no_memory():
    empty = here(torch.ones(0, 3))
    empty.untyped_storage().resize_(0)
    assert mc.matmul(empty, here(torch.ones(3, 2))).shape == (0, 2)


@OP_AND_ARGUMENT
def test_an_error_does_not_keep_the_operands(op, name):
    """Not beyond itself: no cycle holds them until the garbage collector comes."""
    for bad in ([1.0], torch.ones(1, device="meta"), torch.ones((7, 7, 7, 7)).to_sparse()):
        given = arguments(op)
        given[name] = bad
        kept = weakref.ref(next(value for key, value in given.items() if key != name))
        gc.disable()
        try:
            with contextlib.suppress(Exception):
                OPS[op][0](**given)
            del given
            assert kept() is None
        finally:
            gc.enable()


@pytest.mark.parametrize("symmetric", ("yes", None, 1, torch.tensor(True)), ids=repr)
def test_symmetric_is_a_bool(symmetric):
    with pytest.raises(TypeError, match=r"^quadratic: symmetric is a \w+, expected a bool"):
        mc.quadratic(**arguments("quadratic"), symmetric=symmetric)
    with pytest.raises(TypeError, match=r"^quadratic_gradients: symmetric is a \w+, expected"):
        mc.derivatives.quadratic_gradients(torch.ones(3), torch.ones(3, 3), symmetric=symmetric)
    with pytest.raises(TypeError, match=r"^Quadratic: symmetric is a \w+, expected a bool"):
        mc.nn.Quadratic(3, symmetric=symmetric)


@OP_AND_ARGUMENT
def test_mixed_devices(op, name):
    given = arguments(op)
    given[name] = given[name].to("meta")
    fails(op, given, name, "meta", current_device().type)


@pytest.mark.parametrize(
    "thing", [None, 1.0, [[1.0, 2.0]], "A", np.ones((3, 3)), torch.float64], ids=repr
)
@OP_AND_ARGUMENT
def test_what_is_no_tensor(op, name, thing):
    if name == "bias" and thing is None:
        return  # the one argument that may be left out
    given = arguments(op)
    given[name] = thing
    fails(op, given, name, "Tensor", type(thing).__name__, error=TypeError)


def test_too_many_dimensions():
    a = here(torch.ones((1,) * 63 + (3,)))
    assert mc.matmul(a, a.new_ones(3)).dim() == 63
    with pytest.raises(RuntimeError, match=r"matmul: .*64"):
        mc.matmul(
            a.new_ones((1,) * 62 + (4, 3)), a.new_ones((1,) * 64 + (1,)).expand(*[1] * 63, 3, 1)
        )


# The same checks from inside transforms and from the modules.
@OP
def test_inside_transforms(op):
    function = OPS[op][0]
    bad = {**arguments(op)}
    first, second = list(bad)[:2]
    bad[first] = here(torch.ones(*OPS[op][1][first][:-1], 7, dtype=torch.float64))
    for transform in (torch.func.grad, torch.func.jacfwd, torch.vmap):

        def call(tensor):
            rest = {name: value for name, value in bad.items() if name != first}
            return function(**{first: tensor}, **rest).sum()

        given = bad[first].expand(2, *bad[first].shape) if transform is torch.vmap else bad[first]
        with pytest.raises(RuntimeError) as caught:
            transform(call)(given)
        message = str(caught.value)
        assert message.startswith(f"{op}: "), message
        assert first in message, second
        assert "7" in message


def test_from_the_modules():
    with pytest.raises(RuntimeError, match=r"^linear: input has 4 entries .* 3 columns"):
        here(mc.nn.Linear(3, 5))(here(torch.ones(2, 4)))
    with pytest.raises(RuntimeError, match=r"^linear: input is float64 and weight is float32"):
        here(mc.nn.Linear(3, 5))(here(torch.ones(2, 3, dtype=torch.float64)))
    with pytest.raises(RuntimeError, match=r"^nn_bilinear: input2"):
        here(mc.nn.Bilinear(3, 4, 5))(here(torch.ones(2, 3)), here(torch.ones(2, 5)))
    layer = here(mc.nn.Quadratic(3, 5))
    for shape in ((2, 4), ()):
        with pytest.raises(
            RuntimeError, match=r"^Quadratic: input has shape .* expected \(\.\.\., 3\)"
        ):
            layer(here(torch.ones(shape)))
    with pytest.raises(TypeError, match=r"input.*Tensor.*list"):
        layer([1.0, 2.0, 3.0])


def test_a_failed_call_leaves_the_next_one_right():
    for (op, shapes, *_), _ in itertools.product(SHAPES, range(3)):
        with pytest.raises(RuntimeError):
            OPS[op][0](**arguments(op, shapes))
    assert mc.bilinear(**arguments("bilinear")).tolist() == [12, 12]


def test_derivatives_of_whole_numbers_name_their_own_arguments():
    v, A = torch.ones(3, dtype=torch.int64), torch.ones(3, 3, dtype=torch.int64)
    derivatives = mc.derivatives
    for function, given, first in (
        (derivatives.bilinear_gradients, (v, A, v), "y"),
        (derivatives.quadratic_gradients, (v, A), "x"),
        (derivatives.quadratic_hvp, (A, v), "A"),
    ):
        with pytest.raises(RuntimeError, match=f"^{function.__name__}: {first} is int64, expected"):
            function(*given)
    assert torch.equal(derivatives.quadratic_hessian(A), A + A.mT)
