"""What the tests compare with: the ops in plain torch at double precision, and how near is near.

The bound on an element is c (k eps + u) |A||B|, where |A||B| is the same formula on the absolute
values, k the length of its sums, eps the precision of the sums (float32 for the 16-bit dtypes) and
u that of the result.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

import matcalc_ext

FLOATING = (
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.complex128,
    torch.complex64,
)
DOUBLE = (torch.float64, torch.complex128)
C = 4  # a few roundings per term: of the product, of the sum, of a complex product's parts
Shapes = tuple[tuple[int, ...] | None, ...]


def plain_bilinear(y, A, x):
    return (y.unsqueeze(-2) @ A @ x.unsqueeze(-1)).squeeze(-1).squeeze(-1)


def plain_nn_bilinear(x1, x2, weight, bias=None):
    z = torch.einsum("...i,oij,...j->...o", x1, weight, x2)
    return z if bias is None else z + bias


def plain_linear(x, weight, bias=None):
    z = x @ (weight.mT if weight.dim() == 2 else weight)
    if bias is None:
        return z
    return z + (bias.reshape(()) if bias.numel() == 1 else bias)


def symmetrised(A):
    return (A + A.mT) / 2


@dataclass(frozen=True)
class Op:
    """An op, its plain torch, and tiny shapes by family (gradcheck costs by the element)."""

    name: str
    ours: Callable[..., Tensor]
    plain: Callable[..., Tensor]
    families: dict[str, Shapes] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


matmul = Op(
    "matmul",
    matcalc_ext.matmul,
    torch.matmul,
    {
        "vector_vector": ((3,), (3,)),
        "matrix_vector": ((2, 3), (3,)),
        "vector_matrix": ((3,), (3, 2)),
        "matrix_matrix": ((2, 3), (3, 2)),
        "batched": ((2, 2, 3), (2, 3, 2)),
        "broadcast": ((2, 1, 1, 3), (2, 3, 2)),
        "shared_right": ((2, 2, 3), (3, 2)),
        "shared_left": ((2, 3), (2, 3, 1)),
        "vector_batch": ((3,), (2, 3, 2)),
        "batch_vector": ((2, 2, 3), (3,)),
    },
)
linear = Op(
    "linear",
    matcalc_ext.linear,
    plain_linear,
    {
        "vector": ((3,), (2, 3), (2,)),
        "matrix": ((2, 3), (2, 3), (2,)),
        "batched": ((2, 1, 3), (2, 3), (2,)),
        "no_bias": ((2, 3), (2, 3), None),
        "one_bias": ((2, 3), (2, 3), (1,)),
        "scalar_bias": ((2, 3), (2, 3), ()),
        "vector_weight": ((2, 3), (3,), (1,)),
        "two_vectors": ((3,), (3,), ()),
    },
)
bilinear = Op(
    "bilinear",
    matcalc_ext.bilinear,
    plain_bilinear,
    {
        "one": ((2,), (2, 3), (3,)),
        "batched": ((2, 2), (2, 2, 3), (2, 3)),
        "shared_matrix": ((3, 2), (2, 3), (3, 3)),
        "shared_y": ((2,), (2, 2, 3), (2, 3)),
        "shared_x": ((2, 2), (2, 2, 3), (3,)),
        "outer": ((2, 1, 2), (2, 3), (2, 3)),
        "many_matrices": ((2,), (2, 2, 3), (3,)),
        "broadcast": ((2, 1, 2), (1, 2, 2, 2), (2,)),
    },
)
quadratic = Op(
    "quadratic",
    matcalc_ext.quadratic,
    lambda x, A: plain_bilinear(x, A, x),
    {
        "one": ((3,), (3, 3)),
        "batched": ((2, 2), (2, 2, 2)),
        "shared_matrix": ((3, 2), (2, 2)),
        "shared_x": ((2,), (2, 2, 2)),
        "outer": ((2, 1, 2), (2, 2, 2)),
        "broadcast": ((2, 1, 2), (1, 2, 2)),
    },
)
# A symmetric form is a function of symmetric matrices: here of the symmetric part of any matrix.
quadratic_symmetric = Op(
    "quadratic_symmetric",
    lambda x, A: matcalc_ext.quadratic(x, symmetrised(A), symmetric=True),
    lambda x, A: plain_bilinear(x, symmetrised(A), x),
    quadratic.families,
)
nn_bilinear = Op(
    "nn_bilinear",
    matcalc_ext.nn_bilinear,
    plain_nn_bilinear,
    {
        "vectors": ((2,), (3,), (2, 2, 3), (2,)),
        "matrix": ((2, 2), (2, 3), (2, 2, 3), (2,)),
        "batched": ((2, 1, 2), (2, 1, 2), (2, 2, 2), (2,)),
        "no_bias": ((2, 2), (2, 2), (2, 2, 2), None),
        "one_output": ((2, 2), (2, 3), (1, 2, 3), (1,)),
    },
)
OPS = (matmul, linear, bilinear, quadratic, quadratic_symmetric, nn_bilinear)
BY_NAME = {op.name: op for op in OPS}
FAMILIES = [(op, family) for op in OPS for family in op.families]
FAMILY_IDS = [f"{op}-{family}" for op, family in FAMILIES]


# --------------------------------------------------------------------------------------------
# Arguments

_device = torch.device("cpu")


def use_device(name):
    """For tests/conftest.py, which sets it for each test on the device axis."""
    global _device  # noqa: PLW0603
    _device = torch.device(name)


def current_device():
    return _device


def here(thing):
    """A tensor, or a module, on the device of the test."""
    return thing.to(_device)


def draw(shape, dtype=torch.float64, requires_grad=False):
    """Normal numbers, the same on every device; None for None."""
    if shape is None:
        return None
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return torch.randn(shape, dtype=wide).to(dtype).to(_device).requires_grad_(requires_grad)


def arguments(shapes: Shapes, dtype=torch.float64, requires_grad=False):
    return tuple(draw(shape, dtype, requires_grad) for shape in shapes)


def transposed(t):
    return t.mT.contiguous().mT if t.dim() > 1 else t


def sliced(t):
    """Every second element of a larger tensor, in each dimension."""
    big = t.new_full([2 * s + 1 for s in t.shape], 7)
    view = big[tuple(slice(1, 2 * s + 1, 2) for s in t.shape)]
    return view.copy_(t)


def offset(t):
    """At an odd offset into its storage, where no alignment holds."""
    return t.new_empty(t.numel() + 3)[3:].view(t.shape).copy_(t)


def permuted(t):
    """The dimensions in memory in the opposite order."""
    return t.permute(*range(t.dim())[::-1]).contiguous().permute(*range(t.dim())[::-1])


def conjugated(t):
    """A view with the conjugate bit, equal to t."""
    return t.conj().resolve_conj().conj() if t.is_complex() else t


def negated(t):
    """A view with the negative bit, equal to t: the imaginary part of a conjugate view."""
    if t.is_complex():
        return t
    wide = torch.float64 if t.dtype == torch.float64 else torch.float32
    view = torch.complex(torch.zeros_like(t, dtype=wide), -t.to(wide)).conj().imag
    return view if view.dtype == t.dtype else t


LAYOUTS = (transposed, sliced, offset, permuted, conjugated, negated)


# --------------------------------------------------------------------------------------------
# Comparing


def to_double(t):
    if t is None:
        return None
    return t.detach().to(torch.complex128 if t.is_complex() else torch.float64)


def assert_near(got, expected, bound, terms, what=""):
    """Every element of `got` within c (k eps + u) bound of `expected`, which is in double."""
    assert got.shape == expected.shape, f"{what}: shape {got.shape}, expected {expected.shape}"
    if got.numel() == 0:
        return
    low = got.dtype in (torch.bfloat16, torch.float16)
    eps = torch.finfo(torch.float32 if low else got.dtype).eps
    tolerance = C * (max(terms, 1) * eps + torch.finfo(got.dtype).eps) * bound
    # Below the smallest normal number precision goes, and eps times a small bound means nothing.
    tolerance = tolerance + torch.finfo(got.dtype).tiny
    error = (to_double(got) - expected).abs()
    excess = torch.where(error.isnan(), torch.inf, error - tolerance)
    if bool((excess > 0).any()):
        at = tuple(int(i) for i in torch.unravel_index(excess.argmax(), excess.shape))
        raise AssertionError(
            f"{what}: worst at {list(at)}: got {got[at].item()}, expected {expected[at].item()}, "
            f"off by {error[at].item():.3g}, allowed {tolerance[at].item():.3g} "
            f"({int((excess > 0).sum())} of {got.numel()} elements are too far)"
        )


def terms_of(args):
    """At least the length of every sum in the value and the gradients of an op."""
    shapes = [t.shape for t in args if t is not None]
    batch = max(t.numel() // max(1, t.shape[-1:].numel()) for t in args if t is not None)
    return sum(sum(shape) for shape in shapes) + batch


def assert_fresh(out, args):
    """A result is contiguous and shares no memory with an argument."""
    assert out.is_contiguous()
    assert not out.is_conj()
    assert not out.is_neg()
    storages = {t.untyped_storage().data_ptr() for t in args if t is not None and t.numel()}
    assert out.numel() == 0 or out.untyped_storage().data_ptr() not in storages


def check_value(op, *args):
    """The value of the op against plain torch in double."""
    out = op.ours(*args)
    wide = [to_double(t) for t in args]
    bound = op.plain(*(None if t is None else t.abs() for t in wide))
    assert out.dtype == next(t.dtype for t in args if t is not None)
    assert_near(out, op.plain(*wide), bound, terms_of(args), f"{op}")
    assert_fresh(out, args)
    return out


def gradients(function, args, grad):
    leaves = [None if t is None else t.detach().requires_grad_() for t in args]
    out = function(*leaves)
    wanted = [t for t in leaves if t is not None]
    grads = iter(torch.autograd.grad(out, wanted, grad))
    return [None if t is None else next(grads) for t in leaves]


def check_gradients(op, *args):
    """All first derivatives of the op against those of plain torch in double."""
    wide = [to_double(t) for t in args]
    grad = draw(op.plain(*wide).shape, args[0].dtype)
    got = gradients(op.ours, args, grad)
    expected = gradients(op.plain, wide, to_double(grad))
    positive = [None if t is None else t.abs() for t in wide]
    bounds = gradients(op.plain, positive, to_double(grad).abs())
    for i, (one, two, bound) in enumerate(zip(got, expected, bounds, strict=True)):
        if one is not None:
            assert_near(one, two, bound, terms_of(args), f"{op}, gradient of argument {i}")
            assert_fresh(one, [*args, grad])
