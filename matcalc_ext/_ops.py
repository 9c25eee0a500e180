"""Loads the compiled module, and says what every op returns for tensors that hold no data.

The rules here are those of csrc/ops, with the same texts. They serve torch.compile, torch.export,
tensors on the meta device and the vmap rules, which need the shape of one sample.
"""

import importlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

try:
    # First by this call: where there is no _C, `from . import` would blame a circular import.
    importlib.import_module("matcalc_ext._C")
    from . import _C as _C
except ImportError as error:
    raise ImportError(
        f"matcalc_ext: its compiled module _C cannot be loaded: {error}. It has to be built for "
        "this Python and this torch: in the source tree run `pip install --no-build-isolation -e .`"
    ) from error

Shape = Sequence[int]

FLOATING = (
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.complex64,
    torch.complex128,
)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def entry(name: str) -> Any:
    """The op `name` below autograd, autocast and transforms, as the dispatcher's own callable.

    That spares the Python frame of torch's wrapper.
    """
    overload = getattr(torch.ops.matcalc_ext, f"_{name}").default
    return getattr(overload, "_op", overload)


# --------------------------------------------------------------------------------------------
# Shapes


def check_operands(op: str, integers: bool = False, **operands: Tensor | None) -> None:
    """One supported dtype and one device for all operands."""
    (first_name, first), *rest = [(n, t) for n, t in operands.items() if t is not None]
    for name, tensor in rest:
        if tensor.dtype != first.dtype:
            raise RuntimeError(
                f"{op}: {first_name} is {_name(first.dtype)} and {name} is {_name(tensor.dtype)}, "
                "expected one dtype for all operands"
            )
        if tensor.device != first.device:
            raise RuntimeError(
                f"{op}: {first_name} is on {first.device} and {name} is on {tensor.device}, "
                "expected one device for all operands"
            )
    if first.dtype not in FLOATING and not (integers and first.dtype in INTEGERS):
        more = ", or int64, int32, int16, int8 or uint8" if integers else ""
        raise RuntimeError(
            f"{op}: {first_name} is {_name(first.dtype)}, expected float64, float32, bfloat16, "
            f"float16, complex64 or complex128{more}"
        )


def check_bool(op: str, name: str, value: object) -> None:
    """A flag is True or False, nothing that only counts as one of them."""
    # By identity, which is what torch.compile can follow.
    if value is not False and value is not True:
        raise TypeError(f"{op}: {name} is a {type(value).__name__}, expected a bool")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check_min_dim(op: str, name: str, shape: Shape, least: int) -> None:
    if len(shape) < least:
        plural = "" if len(shape) == 1 else "s"
        raise RuntimeError(
            f"{op}: {name} has {len(shape)} dimension{plural}, expected at least {least}"
        )


def check_grad_shape(op: str, grad: Tensor, expected: Shape) -> None:
    """The gradient of an output has its shape."""
    if len(grad.shape) != len(expected) or any(
        have != want for have, want in zip(grad.shape, expected, strict=True)
    ):
        raise RuntimeError(
            f"{op}: grad has shape {list(grad.shape)}, expected the output's shape {list(expected)}"
        )


def _is_true(condition: Any) -> bool:
    """False where a graph for any size cannot tell: then the sizes are taken to be alike."""
    if isinstance(condition, bool):
        return condition
    from torch.fx.experimental.symbolic_shapes import guard_or_false  # noqa: PLC0415 (0.4 s)

    return guard_or_false(condition)


def broadcast_batch(op: str, *operands: tuple[str, Shape, int]) -> list[int]:
    """The broadcast batch dimensions of (name, shape, how many last dimensions are not batch)."""
    rank = max(len(shape) - own for _, shape, own in operands)
    batch: list[int] = [1] * rank
    source: list[tuple[str, Shape]] = [("", ())] * rank
    for name, shape, own in operands:
        own_batch = shape[: len(shape) - own]
        for d, size in enumerate(own_batch, start=rank - len(own_batch)):
            if _is_true(size == 1) or _is_true(size == batch[d]):
                continue
            if source[d][0]:
                raise RuntimeError(
                    f"{op}: the batch dimensions of {source[d][0]} {list(source[d][1])} and {name} "
                    f"{list(shape)} do not broadcast: sizes {batch[d]} and {size} meet"
                )
            batch[d] = size
            source[d] = (name, shape)
    return batch


def matmul_shape(op: str, a: Shape, b: Shape) -> list[int]:
    """(..., m, k) and (..., k, n), or (k,) in the place of either."""
    _check_min_dim(op, "a", a, 1)
    _check_min_dim(op, "b", b, 1)
    own_a, own_b = min(len(a), 2), min(len(b), 2)
    if a[-1] != b[-own_b]:
        raise RuntimeError(
            f"{op}: a has {a[-1]} entries in its last dimension, b has {b[-own_b]} "
            f"{'rows' if own_b == 2 else 'entries'} (shapes {list(a)} and {list(b)})"
        )
    out = broadcast_batch(op, ("a", a, own_a), ("b", b, own_b))
    if own_a == 2:
        out.append(a[-2])
    if own_b == 2:
        out.append(b[-1])
    return out


def linear_shape(op: str, input: Shape, weight: Shape, bias: Shape | None) -> list[int]:
    """(..., in), (out, in) or (in,), and (out,) or one element."""
    _check_min_dim(op, "input", input, 1)
    if len(weight) not in (1, 2):
        raise RuntimeError(f"{op}: weight has shape {list(weight)}, expected (out, in) or (in,)")
    if input[-1] != weight[-1]:
        raise RuntimeError(
            f"{op}: input has {input[-1]} entries in its last dimension, weight has {weight[-1]} "
            f"{'entries' if len(weight) == 1 else 'columns'} (shapes {list(input)} and "
            f"{list(weight)})"
        )
    out = [*weight[:-1]]
    rows = out[0] if out else 1
    if bias is not None and not (
        (len(bias) == 1 and bias[0] == rows) or all(size == 1 for size in bias)
    ):
        raise RuntimeError(
            f"{op}: bias has shape {list(bias)}, expected [{rows}], the rows of weight, or one "
            "element"
        )
    return [*input[:-1], *out]


def bilinear_shape(op: str, y: Shape, A: Shape, x: Shape) -> list[int]:
    """(..., m), (..., m, n) and (..., n)."""
    _check_min_dim(op, "y", y, 1)
    _check_min_dim(op, "A", A, 2)
    _check_min_dim(op, "x", x, 1)
    if y[-1] != A[-2]:
        raise RuntimeError(f"{op}: y has {y[-1]} entries in its last dimension, A has {A[-2]} rows")
    if x[-1] != A[-1]:
        raise RuntimeError(
            f"{op}: x has {x[-1]} entries in its last dimension, A has {A[-1]} columns"
        )
    return broadcast_batch(op, ("y", y, 1), ("A", A, 2), ("x", x, 1))


def quadratic_shape(op: str, x: Shape, A: Shape) -> list[int]:
    """(..., n) and (..., n, n)."""
    _check_min_dim(op, "x", x, 1)
    _check_min_dim(op, "A", A, 2)
    if A[-2] != A[-1]:
        raise RuntimeError(
            f"{op}: A has {A[-2]} rows and {A[-1]} columns, expected a square matrix"
        )
    if x[-1] != A[-1]:
        raise RuntimeError(
            f"{op}: x has {x[-1]} entries in its last dimension, A has {A[-1]} rows and columns"
        )
    return broadcast_batch(op, ("x", x, 1), ("A", A, 2))


def nn_bilinear_shape(
    op: str, input1: Shape, input2: Shape, weight: Shape, bias: Shape | None
) -> list[int]:
    """(..., in1), (..., in2), (out, in1, in2) and (out,)."""
    _check_min_dim(op, "input1", input1, 1)
    _check_min_dim(op, "input2", input2, 1)
    if len(weight) != 3:
        raise RuntimeError(f"{op}: weight has shape {list(weight)}, expected (out, in1, in2)")
    if len(input1) != len(input2) or any(
        one != two for one, two in zip(input1[:-1], input2[:-1], strict=True)
    ):
        raise RuntimeError(
            f"{op}: input1 has shape {list(input1)} and input2 has shape {list(input2)}, expected "
            "the same leading dimensions"
        )
    for name, have, takes in (
        ("input1", input1[-1], weight[1]),
        ("input2", input2[-1], weight[2]),
    ):
        if have != takes:
            raise RuntimeError(
                f"{op}: {name} has {have} entries in its last dimension, weight {list(weight)} "
                f"takes {takes}"
            )
    if bias is not None and (len(bias) != 1 or bias[0] != weight[0]):
        raise RuntimeError(
            f"{op}: bias has shape {list(bias)}, expected [{weight[0]}], the first of weight's "
            "dimensions"
        )
    return [*input1[:-1], weight[0]]


# --------------------------------------------------------------------------------------------
# Fake (meta) kernels: fresh contiguous results, as the real ones return


NAMES: list[str] = []  # of all ops, without the "_"


def registered(name: str) -> list[str]:
    """The names the op has: with a "_" below autograd, and without; some have the first only."""
    return [full for full in (name, f"_{name}") if hasattr(torch.ops.matcalc_ext, full)]


def _fake(name: str) -> Callable[[Callable[..., Any]], None]:
    """Registers the decorated function for the op under each of its names."""

    def register(kernel: Callable[..., Any]) -> None:
        NAMES.append(name)
        for full in registered(name):
            torch.library.register_fake(f"matcalc_ext::{full}", kernel)

    return register


def _empty_if(wanted: bool, like: Tensor, shape: Shape | None = None) -> Tensor | None:
    return like.new_empty(like.shape if shape is None else shape) if wanted else None


@_fake("matmul")
def _(a: Tensor, b: Tensor) -> Tensor:
    check_operands("matmul", integers=True, a=a, b=b)
    return a.new_empty(matmul_shape("matmul", a.shape, b.shape))


@_fake("matmul_backward")
def _(
    grad: Tensor, a: Tensor, b: Tensor, need_a: bool = True, need_b: bool = True
) -> tuple[Tensor | None, ...]:
    op = "matmul_backward"
    check_operands(op, a=a, b=b, grad=grad)
    check_grad_shape(op, grad, matmul_shape(op, a.shape, b.shape))
    return _empty_if(need_a, a), _empty_if(need_b, b)


@_fake("linear")
def _(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    check_operands("linear", input=input, weight=weight, bias=bias)
    bias_shape = None if bias is None else bias.shape
    return input.new_empty(linear_shape("linear", input.shape, weight.shape, bias_shape))


@_fake("linear_backward")
def _(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    need_input: bool = True,
    need_weight: bool = True,
    need_bias: bool = True,
) -> tuple[Tensor | None, ...]:
    op = "linear_backward"
    if need_bias and bias is None:
        raise RuntimeError(f"{op}: a gradient for bias is asked for, but bias is None")
    check_operands(op, input=input, weight=weight, grad=grad, bias=bias)
    bias_shape = None if bias is None else bias.shape
    check_grad_shape(op, grad, linear_shape(op, input.shape, weight.shape, bias_shape))
    return (
        _empty_if(need_input, input),
        _empty_if(need_weight, weight),
        None if bias is None else _empty_if(need_bias, bias),
    )


@_fake("bilinear")
def _(y: Tensor, A: Tensor, x: Tensor) -> Tensor:
    check_operands("bilinear", y=y, A=A, x=x)
    return A.new_empty(bilinear_shape("bilinear", y.shape, A.shape, x.shape))


@_fake("bilinear_backward")
def _(
    grad: Tensor,
    y: Tensor,
    A: Tensor,
    x: Tensor,
    need_y: bool = True,
    need_A: bool = True,
    need_x: bool = True,
) -> tuple[Tensor | None, ...]:
    op = "bilinear_backward"
    check_operands(op, y=y, A=A, x=x, grad=grad)
    check_grad_shape(op, grad, bilinear_shape(op, y.shape, A.shape, x.shape))
    return _empty_if(need_y, y), _empty_if(need_A, A), _empty_if(need_x, x)


def _kept(like: Tensor, shape: Shape) -> Tensor:
    """A product that a forward op leaves for its backward op: float32 beside the 16-bit dtypes."""
    low = like.dtype in (torch.bfloat16, torch.float16)
    return like.new_empty(shape, dtype=torch.float32 if low else like.dtype)


def product_batch(A: Shape, vector: Shape, batch: Shape) -> list[int]:
    """1 along the dimensions of a form's batch where neither A nor the vector runs."""
    shape = broadcast_batch("", ("A", A, 2), ("vector", vector, 1))
    return [1] * (len(batch) - len(shape)) + shape


def product_items(y: Shape, A: Shape, x: Shape) -> tuple[int, int, int]:
    """How many products A x, how many Aᵀ y and how many values a batch of forms has."""
    batch = bilinear_shape("bilinear", y, A, x)
    p, q = (math.prod(product_batch(A, vector, batch)) for vector in (x, y))
    return p, q, math.prod(batch)


def _kept_product(A: Tensor, vector: Tensor, batch: Shape, entries: int) -> Tensor:
    """Stays bfloat16 where batch items have it in common: a matrix product's operand."""
    own = product_batch(A.shape, vector.shape, batch)
    shared = any(one != all_ for one, all_ in zip(own, batch, strict=True))
    if shared and A.dtype == torch.bfloat16:
        return A.new_empty([*own, entries])
    return _kept(A, [*own, entries])


@_fake("bilinear_products")
def _(
    y: Tensor, A: Tensor, x: Tensor, need_p: bool = True, need_q: bool = True
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    op = "bilinear_products"
    check_operands(op, y=y, A=A, x=x)
    batch = bilinear_shape(op, y.shape, A.shape, x.shape)
    return (
        A.new_empty(batch),
        _kept_product(A, x, batch, A.shape[-2]) if need_p else None,
        _kept_product(A, y, batch, A.shape[-1]) if need_q else None,
    )


@_fake("bilinear_products_backward")
def _(
    grad: Tensor,
    y: Tensor,
    A: Tensor,
    x: Tensor,
    p: Tensor | None,
    q: Tensor | None,
    need_y: bool = True,
    need_A: bool = True,
    need_x: bool = True,
) -> tuple[Tensor | None, ...]:
    op = "bilinear_backward"
    check_operands(op, y=y, A=A, x=x, grad=grad)
    check_grad_shape(op, grad, bilinear_shape(op, y.shape, A.shape, x.shape))
    return _empty_if(need_y, y), _empty_if(need_A, A), _empty_if(need_x, x)


@_fake("quadratic")
def _(x: Tensor, A: Tensor, *, symmetric: bool = False) -> Tensor:
    check_operands("quadratic", x=x, A=A)
    return x.new_empty(quadratic_shape("quadratic", x.shape, A.shape))


@_fake("quadratic_backward")
def _(
    grad: Tensor,
    x: Tensor,
    A: Tensor,
    symmetric: bool = False,
    need_x: bool = True,
    need_A: bool = True,
) -> tuple[Tensor | None, ...]:
    op = "quadratic_backward"
    check_operands(op, x=x, A=A, grad=grad)
    check_grad_shape(op, grad, quadratic_shape(op, x.shape, A.shape))
    return _empty_if(need_x, x), _empty_if(need_A, A)


@_fake("quadratic_products")
def _(x: Tensor, A: Tensor, *, symmetric: bool = False) -> tuple[Tensor, Tensor]:
    op = "quadratic_products"
    check_operands(op, x=x, A=A)
    batch = quadratic_shape(op, x.shape, A.shape)
    return x.new_empty(batch), _kept(x, [*batch, x.shape[-1]])


@_fake("quadratic_products_backward")
def _(
    grad: Tensor,
    x: Tensor,
    A: Tensor,
    p: Tensor | None,
    symmetric: bool = False,
    need_x: bool = True,
    need_A: bool = True,
) -> tuple[Tensor | None, ...]:
    op = "quadratic_backward"
    check_operands(op, x=x, A=A, grad=grad)
    check_grad_shape(op, grad, quadratic_shape(op, x.shape, A.shape))
    return _empty_if(need_x, x), _empty_if(need_A, A)


@_fake("nn_bilinear")
def _(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    op = "nn_bilinear"
    check_operands(op, input1=input1, input2=input2, weight=weight, bias=bias)
    bias_shape = None if bias is None else bias.shape
    return input1.new_empty(
        nn_bilinear_shape(op, input1.shape, input2.shape, weight.shape, bias_shape)
    )


@_fake("nn_bilinear_backward")
def _(
    grad: Tensor,
    input1: Tensor,
    input2: Tensor,
    weight: Tensor,
    need_input1: bool = True,
    need_input2: bool = True,
    need_weight: bool = True,
    need_bias: bool = True,
) -> tuple[Tensor | None, ...]:
    op = "nn_bilinear_backward"
    check_operands(op, input1=input1, input2=input2, weight=weight, grad=grad)
    shape = nn_bilinear_shape(op, input1.shape, input2.shape, weight.shape, None)
    check_grad_shape(op, grad, shape)
    return (
        _empty_if(need_input1, input1),
        _empty_if(need_input2, input2),
        _empty_if(need_weight, weight),
        _empty_if(need_bias, grad, weight.shape[:1]),
    )
