"""How the ops are split over devices: what they do with DTensors.

Every op is a sum of products over named dimensions, its derivatives too, so that one rule serves
all. Along each dimension of the mesh, one dimension of the op is sharded, or none:

    operands and results that run along it    sharded there
    results that are summed over it           a partial sum on each device
    all others                                replicated

Which one is for the placements of the operands to say: the one for which the fewest bytes have to
be moved. Then each device calls the op on what it has.

The rules are registered when `torch.distributed.tensor` is imported, which takes half as long as
torch itself, and which most programs do without.
"""

import math
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _ops

# The dimensions of a tensor by name: batch dimensions by their distance to the last one of them, so
# that they match where they broadcast. None: of size 1, and thus repeated along the dimension of
# that name; or not to be sharded.
Labels = list[int | str | None]
Shape = Sequence[int]


class Placed(NamedTuple):
    """Of a DTensor, what the rules are about."""

    shape: torch.Size
    placements: tuple[Any, ...]  # one for each dimension of the mesh


class Term(NamedTuple):
    """A result: its dimensions, the operands that it is made of, and its shape."""

    labels: Labels
    factors: tuple[str, ...]
    shape: Shape


class Equation(NamedTuple):
    """The operands of an op and its results, None where one is not wanted."""

    operands: dict[str, Labels]
    results: list[Term | None]


def _labels(shape: Shape, *own: str | None) -> Labels:
    """Of a tensor whose last dimensions are its `own`, those before them batch dimensions."""
    names = (*range(len(shape) - len(own) - 1, -1, -1), *own)
    return [None if size == 1 else name for name, size in zip(names, shape, strict=True)]


def _gradient(wanted: bool, operand: Placed, labels: Labels, *factors: str) -> Term | None:
    return Term(labels, factors, operand.shape) if wanted else None


def _matmul(a: Placed, b: Placed) -> tuple[dict[str, Labels], Labels, Shape]:
    shape = _ops.matmul_shape("matmul", a.shape, b.shape)
    own_a, own_b = ("m", "k")[-len(a.shape) :], ("k", "n")[: len(b.shape)]
    own = (*own_a[:-1], *own_b[1:])
    return (
        {"a": _labels(a.shape, *own_a), "b": _labels(b.shape, *own_b)},
        _labels(shape, *own),
        shape,
    )


def matmul(a: Placed, b: Placed) -> Equation:
    """Y = A B."""
    operands, y, shape = _matmul(a, b)
    return Equation(operands, [Term(y, ("a", "b"), shape)])


def matmul_backward(
    grad: Placed, a: Placed, b: Placed, need_a: bool = True, need_b: bool = True
) -> Equation:
    """dA = g Bᴴ, dB = Aᴴ g."""
    operands, y, _ = _matmul(a, b)
    return Equation(
        {"grad": y, **operands},
        [
            _gradient(need_a, a, operands["a"], "grad", "b"),
            _gradient(need_b, b, operands["b"], "grad", "a"),
        ],
    )


def _linear(
    input: Placed, weight: Placed, bias: Placed | None
) -> tuple[dict[str, Labels], Labels, Shape]:
    shape = _ops.linear_shape(
        "linear", input.shape, weight.shape, None if bias is None else bias.shape
    )
    out = ("o",)[: len(weight.shape) - 1]
    operands = {"input": _labels(input.shape, "i"), "weight": _labels(weight.shape, *out, "i")}
    if bias is not None:
        operands["bias"] = _labels(bias.shape, *("o",)[: len(bias.shape)])
    return operands, _labels(shape, *out), shape


def linear(input: Placed, weight: Placed, bias: Placed | None = None) -> Equation:
    """Z = X Wᵀ + b."""
    operands, z, shape = _linear(input, weight, bias)
    return Equation(operands, [Term(z, ("input", "weight"), shape)])


def linear_backward(
    grad: Placed,
    input: Placed,
    weight: Placed,
    bias: Placed | None,
    need_input: bool = True,
    need_weight: bool = True,
    need_bias: bool = True,
) -> Equation:
    """dX = g W, dW = gᵀ X, db = Σ g."""
    operands, z, _ = _linear(input, weight, bias)
    return Equation(
        {"grad": z, **operands},
        [
            _gradient(need_input, input, operands["input"], "grad", "weight"),
            _gradient(need_weight, weight, operands["weight"], "grad", "input"),
            None if bias is None else _gradient(need_bias, bias, operands["bias"], "grad"),
        ],
    )


def _bilinear(y: Placed, A: Placed, x: Placed) -> tuple[dict[str, Labels], Labels, list[int]]:
    shape = _ops.bilinear_shape("bilinear", y.shape, A.shape, x.shape)
    operands = {
        "y": _labels(y.shape, "m"),
        "A": _labels(A.shape, "m", "n"),
        "x": _labels(x.shape, "n"),
    }
    return operands, _labels(shape), shape


def bilinear(y: Placed, A: Placed, x: Placed) -> Equation:
    """α = yᵀ A x."""
    operands, alpha, shape = _bilinear(y, A, x)
    return Equation(operands, [Term(alpha, ("y", "A", "x"), shape)])


def bilinear_backward(
    grad: Placed,
    y: Placed,
    A: Placed,
    x: Placed,
    need_y: bool = True,
    need_A: bool = True,
    need_x: bool = True,
) -> Equation:
    """dy = g A x, dA = g y xᵀ, dx = g Aᵀ y."""
    return bilinear_products_backward(grad, y, A, x, None, None, need_y, need_A, need_x)


def bilinear_products(
    y: Placed, A: Placed, x: Placed, need_p: bool = True, need_q: bool = True
) -> Equation:
    """α, p = A x and q = Aᵀ y."""
    operands, alpha, shape = _bilinear(y, A, x)
    p = [*_ops.product_batch(A.shape, x.shape, shape), A.shape[-2]]
    q = [*_ops.product_batch(A.shape, y.shape, shape), A.shape[-1]]
    return Equation(
        operands,
        [
            Term(alpha, ("y", "A", "x"), shape),
            Term(_labels(p, "m"), ("A", "x"), p) if need_p else None,
            Term(_labels(q, "n"), ("A", "y"), q) if need_q else None,
        ],
    )


def bilinear_products_backward(
    grad: Placed,
    y: Placed,
    A: Placed,
    x: Placed,
    p: Placed | None,
    q: Placed | None,
    need_y: bool = True,
    need_A: bool = True,
    need_x: bool = True,
) -> Equation:
    """dy = g p, dA = g y xᵀ, dx = g q."""
    operands, alpha, _ = _bilinear(y, A, x)
    products = {
        name: _labels(product.shape, own)
        for name, product, own in (("p", p, "m"), ("q", q, "n"))
        if product is not None
    }
    return Equation(
        {"grad": alpha, **operands, **products},
        [
            _gradient(need_y, y, operands["y"], "grad", *(("A", "x") if p is None else ("p",))),
            _gradient(need_A, A, operands["A"], "grad", "y", "x"),
            _gradient(need_x, x, operands["x"], "grad", *(("A", "y") if q is None else ("q",))),
        ],
    )


def _quadratic(x: Placed, A: Placed) -> tuple[dict[str, Labels], Labels, list[int]]:
    """Along its entries x runs twice, as the rows and as the columns of A: they stay together."""
    shape = _ops.quadratic_shape("quadratic", x.shape, A.shape)
    return {"x": _labels(x.shape, None), "A": _labels(A.shape, None, None)}, _labels(shape), shape


def quadratic(x: Placed, A: Placed, *, symmetric: bool = False) -> Equation:
    """α = xᵀ A x."""
    operands, alpha, shape = _quadratic(x, A)
    return Equation(operands, [Term(alpha, ("x", "A"), shape)])


def quadratic_backward(
    grad: Placed,
    x: Placed,
    A: Placed,
    symmetric: bool = False,
    need_x: bool = True,
    need_A: bool = True,
) -> Equation:
    """dx = g (A + Aᵀ) x, dA = g x xᵀ."""
    return quadratic_products_backward(grad, x, A, None, symmetric, need_x, need_A)


def quadratic_products(x: Placed, A: Placed, *, symmetric: bool = False) -> Equation:
    """α and p = (A + Aᵀ) x."""
    operands, alpha, shape = _quadratic(x, A)
    p = [*shape, A.shape[-1]]
    return Equation(
        operands, [Term(alpha, ("x", "A"), shape), Term(_labels(p, None), ("x", "A"), p)]
    )


def quadratic_products_backward(
    grad: Placed,
    x: Placed,
    A: Placed,
    p: Placed | None,
    symmetric: bool = False,
    need_x: bool = True,
    need_A: bool = True,
) -> Equation:
    """dx = g p, dA = g x xᵀ."""
    operands, alpha, _ = _quadratic(x, A)
    product = {} if p is None else {"p": _labels(p.shape, None)}
    return Equation(
        {"grad": alpha, **operands, **product},
        [
            _gradient(need_x, x, operands["x"], "grad", *(("A", "x") if p is None else ("p",))),
            _gradient(need_A, A, operands["A"], "grad", "x"),
        ],
    )


def _nn_bilinear(
    input1: Placed, input2: Placed, weight: Placed, bias: Placed | None
) -> tuple[dict[str, Labels], Labels, Shape]:
    shape = _ops.nn_bilinear_shape(
        "nn_bilinear",
        input1.shape,
        input2.shape,
        weight.shape,
        None if bias is None else bias.shape,
    )
    operands = {
        "input1": _labels(input1.shape, "i"),
        "input2": _labels(input2.shape, "j"),
        "weight": _labels(weight.shape, "o", "i", "j"),
    }
    if bias is not None:
        operands["bias"] = _labels(bias.shape, "o")
    return operands, _labels(shape, "o"), shape


def nn_bilinear(
    input1: Placed, input2: Placed, weight: Placed, bias: Placed | None = None
) -> Equation:
    """z_o = x₁ᵀ W_o x₂ + b_o."""
    operands, z, shape = _nn_bilinear(input1, input2, weight, bias)
    return Equation(operands, [Term(z, ("input1", "input2", "weight"), shape)])


def nn_bilinear_backward(
    grad: Placed,
    input1: Placed,
    input2: Placed,
    weight: Placed,
    need_input1: bool = True,
    need_input2: bool = True,
    need_weight: bool = True,
    need_bias: bool = True,
) -> Equation:
    """dx₁ = Σ g_o W_o x₂, dx₂ = Σ g_o W_oᵀ x₁, dW_o = Σ g_o x₁ x₂ᵀ, db = Σ g."""
    operands, z, shape = _nn_bilinear(input1, input2, weight, None)
    return Equation(
        {"grad": z, **operands},
        [
            _gradient(need_input1, input1, operands["input1"], "grad", "weight", "input2"),
            _gradient(need_input2, input2, operands["input2"], "grad", "weight", "input1"),
            _gradient(need_weight, weight, operands["weight"], "grad", "input1", "input2"),
            Term(z[-1:], ("grad",), shape[-1:]) if need_bias else None,
        ],
    )


# --------------------------------------------------------------------------------------------
# Placements


class Sharding(NamedTuple):
    """The placements of operands and results along one dimension of a mesh that fit together."""

    operands: dict[str, Any]
    results: list[Any]  # None where a result is not wanted


def shardings(equation: Equation) -> list[Sharding]:
    """All of them; first the one where everything is replicated."""
    from torch.distributed.tensor import Partial, Replicate, Shard  # noqa: PLC0415 (0.6 s)

    def operand(labels: Labels, name: int | str | None) -> Any:
        return Shard(labels.index(name)) if name in labels else Replicate()

    def result(term: Term | None, name: int | str | None) -> Any:
        if term is None:
            return None
        if name in term.labels:
            return Shard(term.labels.index(name))
        summed = any(name in equation.operands[factor] for factor in term.factors)
        return Partial() if summed else Replicate()

    names = dict.fromkeys(
        name for labels in equation.operands.values() for name in labels if name is not None
    )
    return [
        Sharding(
            {key: operand(labels, name) for key, labels in equation.operands.items()},
            [result(term, name) for term in equation.results],
        )
        for name in ("", *names)  # "" is the name of no dimension
    ]


def _moved(operands: dict[str, Placed], sharding: Sharding, dim: int, devices: int) -> float:
    """The elements that a device receives, to have the operands as `sharding` wants them."""
    total = 0.0
    for name, tensor in operands.items():
        have, want = tensor.placements[dim], sharding.operands[name]
        if have == want:
            continue
        total += 1  # so that among choices that move nothing the one wins that changes nothing
        if have.is_replicate():
            continue
        size = math.prod(tensor.shape) * (devices - 1) / devices
        if have.is_partial() and want.is_replicate():
            total += 2 * size  # a reduction, whose result goes to all
        elif have.is_shard() and want.is_shard():
            total += size / devices
        else:
            total += size
    return total


class Plan(NamedTuple):
    """What is done with a call: placements, one for each dimension of the mesh."""

    operands: dict[str, list[Any]]
    results: list[tuple[list[Any], torch.Size, tuple[int, ...]] | None]  # and shape and strides
    bias: list[int]  # the dimensions of the mesh along which one device adds it


def _plan(
    equation_of: Callable[..., Equation],
    mesh: tuple[int, ...],
    arguments: tuple[tuple[str, Any], ...],
) -> Plan:
    values = dict(arguments)
    equation = equation_of(**values)
    operands = {name: values[name] for name in equation.operands}
    choices = shardings(equation)
    chosen = [
        min(choices, key=partial(_moved, operands, dim=dim, devices=devices))
        for dim, devices in enumerate(mesh)
    ]
    return Plan(
        {name: [choice.operands[name] for choice in chosen] for name in operands},
        [
            None
            if term is None
            else (
                [choice.results[i] for choice in chosen],
                torch.Size(term.shape),
                _contiguous(term.shape),
            )
            for i, term in enumerate(equation.results)
        ],
        [
            dim
            for dim, choice in enumerate(chosen)
            if len(choice.results) == 1 and choice.results[0].is_partial()
        ],
    )


_plan_again = lru_cache(maxsize=4096)(_plan)


def _call_sharded(equation_of: Callable[..., Equation]) -> Callable[..., Any]:
    """The `__torch_dispatch__` rule of DTensor for the op of this equation."""

    def rule(cls: Any, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        names = (argument.name for argument in op._schema.arguments)
        arguments = dict(zip(names, args, strict=False), **(kwargs or {}))
        tensors: dict[str, Any] = {n: v for n, v in arguments.items() if isinstance(v, Tensor)}
        mesh = _mesh_of(cls, op.overloadpacket.__name__.removeprefix("_"), tensors)
        key = tuple(
            (name, Placed(value.shape, value.placements) if name in tensors else value)
            for name, value in arguments.items()
        )
        try:
            plan = _plan_again(equation_of, mesh.shape, key)
        except TypeError:  # sizes that are not known while a graph is traced are no keys
            plan = _plan(equation_of, mesh.shape, key)
        with torch.no_grad():
            for name, placements in plan.operands.items():
                tensor = tensors[name]
                if tensor.placements != (*placements,):
                    # Detached, for torch 2.10 does that to the result, and has no rule for it.
                    tensor = tensor.detach().redistribute(placements=placements)
                arguments[name] = tensor.to_local()
            if any(mesh.get_local_rank(dim) != 0 for dim in plan.bias) and "bias" in arguments:
                arguments["bias"] = None
            outputs = op(**arguments)
            single = isinstance(outputs, Tensor)
            results = tuple(
                None
                if result is None
                else cls.from_local(
                    local, mesh, result[0], run_check=False, shape=result[1], stride=result[2]
                )
                for result, local in zip(
                    plan.results, (outputs,) if single else outputs, strict=True
                )
            )
        return results[0] if single else results

    return rule


def _mesh_of(cls: Any, op: str, tensors: dict[str, Any]) -> Any:
    """The mesh of the operands, which are DTensors all."""
    mesh = None
    for name, value in tensors.items():
        if not isinstance(value, cls):
            raise RuntimeError(
                f"{op}: {name} is a {type(value).__name__}, expected a DTensor as the others "
                "are: distribute it with torch.distributed.tensor.distribute_tensor"
            )
        if mesh is not None and value.device_mesh != mesh:
            raise RuntimeError(
                f"{op}: {name} is on {value.device_mesh}, expected the mesh of the other operands, "
                f"{mesh}"
            )
        mesh = value.device_mesh
    return mesh


def _contiguous(shape: Shape) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


EQUATIONS: dict[str, Callable[..., Equation]] = {
    rule.__name__: rule
    for rule in (
        matmul,
        matmul_backward,
        linear,
        linear_backward,
        bilinear,
        bilinear_backward,
        bilinear_products,
        bilinear_products_backward,
        quadratic,
        quadratic_backward,
        quadratic_products,
        quadratic_products_backward,
        nn_bilinear,
        nn_bilinear_backward,
    )
}


def _register() -> None:
    """Gives DTensor the rules."""
    from torch.distributed.tensor import DTensor  # noqa: PLC0415 (0.6 s)

    for name, equation in EQUATIONS.items():
        for full in _ops.registered(name):
            torch.library.register_torch_dispatch(
                f"matcalc_ext::{full}", DTensor, _call_sharded(equation)
            )


_TENSOR = "torch.distributed.tensor"


class _WhenImported(MetaPathFinder):
    """Calls `_register` once DTensor's module has been imported, not only looked for."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name != _TENSOR:
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        specs = (finder.find_spec(name, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            sys.meta_path.remove(self)
            _register()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if _TENSOR in sys.modules:
    _register()
else:
    sys.meta_path.insert(0, _WhenImported())
