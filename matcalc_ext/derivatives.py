"""First and second derivatives of the four maps in closed form.

A Jacobian has the shape `output.shape + input.shape`, as `torch.func.jacrev` returns it; the
gradient of a scalar has the shape of what it is taken with respect to. The functions of forms take
one y, A and x each: `torch.func.vmap` carries them over batches, and `torch.autograd` through them.

Sources: Barnes, *Matrix Differentiation*; Petersen and Pedersen, *The Matrix Cookbook*, sections
2.4 and 4; mathematics StackExchange, question 312077.
"""

import torch
from torch import Tensor

from . import _ops
from .ops.bilinear import apply_bilinear_backward
from .ops.matmul import matmul
from .ops.quadratic import apply_quadratic_backward

__all__ = [
    "bilinear_gradients",
    "bilinear_hessian",
    "matrix_vector_jacobian_matrix",
    "matrix_vector_jacobian_vector",
    "matrix_vector_vjp_matrix",
    "quadratic_gradients",
    "quadratic_hessian",
    "quadratic_hvp",
    "vector_matrix_jacobian_matrix",
    "vector_matrix_jacobian_vector",
]


def _check(function: str, integers: bool = True, **expected: tuple[Tensor, int]) -> None:
    """Each argument is a tensor of the number of dimensions that is said with it, all alike.

    `integers`: whether they may be whole numbers, which the backward ops do not take.
    """
    for name, (tensor, dims) in expected.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"{function}: {name} is a {type(tensor).__name__}, expected a torch.Tensor"
            )
        if tensor.dim() != dims:
            raise RuntimeError(
                f"{function}: {name} has shape {list(tensor.shape)}, expected {dims} "
                f"dimension{'' if dims == 1 else 's'}"
            )
    tensors = {name: tensor for name, (tensor, _) in expected.items()}
    _ops.check_operands(function, integers, **tensors)


def _check_size(
    function: str, name: str, vector: Tensor, A: Tensor, dim: int, matrix: str = "A"
) -> None:
    """The vector is as long as that dimension of the matrix."""
    if vector.shape[0] != A.shape[dim]:
        raise RuntimeError(
            f"{function}: {name} has {vector.shape[0]} entries, {matrix} has {A.shape[dim]} "
            f"{'rows' if dim == 0 else 'columns'}"
        )


def _check_square(function: str, A: Tensor) -> None:
    if A.shape[0] != A.shape[1]:
        raise RuntimeError(
            f"{function}: A has {A.shape[0]} rows and {A.shape[1]} columns, expected a square "
            "matrix"
        )


def _one(like: Tensor) -> Tensor:
    """The upstream gradient that makes a gradient the derivative itself."""
    return like.new_ones(())


def _derivative(grad: Tensor | None) -> Tensor:
    """The derivative that torch's gradient is the conjugate of."""
    assert grad is not None
    return grad.conj().resolve_conj()


def _outer(y: Tensor, x: Tensor) -> Tensor:
    return matmul(y.unsqueeze(1), x.unsqueeze(0))


def matrix_vector_jacobian_vector(A: Tensor, x: Tensor) -> Tensor:
    """∂(A x)/∂x = A.

    Args:
        A: (m, n).
        x: (n,), which the Jacobian does not depend on.

    Dtypes: both of one dtype, float64, float32, bfloat16, float16, complex64, complex128, int64,
    int32, int16, int8 or uint8.

    Returns:
        (m, n): a copy of A. For m = 1, y = wᵀx, this is w itself as one row.

    Raises:
        RuntimeError: x does not fit the columns of A; the dtypes or devices differ.
        TypeError: an argument is not a tensor.

    Example:
        >>> A = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
        >>> derivatives.matrix_vector_jacobian_vector(A, torch.tensor([0.5, 1.0]))
        tensor([[1., 2.],
                [3., 4.],
                [5., 6.]])
    """
    name = "matrix_vector_jacobian_vector"
    _check(name, A=(A, 2), x=(x, 1))
    _check_size(name, "x", x, A, 1)
    return A.clone()


def matrix_vector_jacobian_matrix(A: Tensor, x: Tensor) -> Tensor:
    """∂(A x)/∂A: entry [i, j, k] is ∂yᵢ/∂A_jk = δᵢⱼ xₖ, so slice i is zero but for row i, xᵀ.

    Args:
        A: (m, n), of which only the shape counts.
        x: (n,).

    Dtypes: both of one dtype, float64, float32, bfloat16, float16, complex64, complex128, int64,
    int32, int16, int8 or uint8.

    Returns:
        (m, m, n). It holds m copies of x; `matrix_vector_vjp_matrix` does without it.

    Raises:
        RuntimeError: x does not fit the columns of A; the dtypes or devices differ.
        TypeError: an argument is not a tensor.

    Example:
        >>> A = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> derivatives.matrix_vector_jacobian_matrix(A, torch.tensor([0.5, 1.0]))
        tensor([[[0.5000, 1.0000],
                 [0.0000, 0.0000]],
        <BLANKLINE>
                [[0.0000, 0.0000],
                 [0.5000, 1.0000]]])
    """
    name = "matrix_vector_jacobian_matrix"
    _check(name, A=(A, 2), x=(x, 1))
    _check_size(name, "x", x, A, 1)
    m = A.shape[0]
    return torch.diag_embed(x.unsqueeze(1).expand(-1, m), dim1=0, dim2=1).contiguous()


def matrix_vector_vjp_matrix(v: Tensor, A: Tensor, x: Tensor) -> Tensor:
    """vᵀ ∂(A x)/∂A = v xᵀ: the product with the Jacobian of three dimensions, without making it.

    Args:
        v: (m,), the gradient of a loss with respect to A x.
        A: (m, n), of which only the shape counts.
        x: (n,).

    Dtypes: all of one dtype, float64, float32, bfloat16, float16, complex64, complex128, int64,
    int32, int16, int8 or uint8.

    Returns:
        (m, n).

    Raises:
        RuntimeError: v does not fit the rows of A, or x its columns; the dtypes or devices differ.
        TypeError: an argument is not a tensor.

    Example:
        >>> A = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> derivatives.matrix_vector_vjp_matrix(torch.ones(2), A, torch.tensor([0.5, 1.0]))
        tensor([[0.5000, 1.0000],
                [0.5000, 1.0000]])
    """
    name = "matrix_vector_vjp_matrix"
    _check(name, v=(v, 1), A=(A, 2), x=(x, 1))
    _check_size(name, "v", v, A, 0)
    _check_size(name, "x", x, A, 1)
    return _outer(v, x)


def vector_matrix_jacobian_vector(x: Tensor, W: Tensor) -> Tensor:
    """∂(x W)/∂x = Wᵀ, for a row vector x.

    Args:
        x: (m,), which the Jacobian does not depend on.
        W: (m, n).

    Dtypes: both of one dtype, float64, float32, bfloat16, float16, complex64, complex128, int64,
    int32, int16, int8 or uint8.

    Returns:
        (n, m): a transposed copy of W.

    Raises:
        RuntimeError: x does not fit the rows of W; the dtypes or devices differ.
        TypeError: an argument is not a tensor.

    Example:
        >>> W = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
        >>> derivatives.vector_matrix_jacobian_vector(torch.tensor([0.5, 1.0, 2.0]), W)
        tensor([[1., 3., 5.],
                [2., 4., 6.]])
    """
    name = "vector_matrix_jacobian_vector"
    _check(name, x=(x, 1), W=(W, 2))
    _check_size(name, "x", x, W, 0, "W")
    return W.mT.clone(memory_format=torch.contiguous_format)


def vector_matrix_jacobian_matrix(x: Tensor, W: Tensor) -> Tensor:
    """∂(x W)/∂W, for a row vector x: entry [i, j, k] is ∂yᵢ/∂W_jk = xⱼ δᵢₖ.

    Args:
        x: (m,).
        W: (m, n), of which only the shape counts.

    Dtypes: both of one dtype, float64, float32, bfloat16, float16, complex64, complex128, int64,
    int32, int16, int8 or uint8.

    Returns:
        (n, m, n).

    Raises:
        RuntimeError: x does not fit the rows of W; the dtypes or devices differ.
        TypeError: an argument is not a tensor.

    Example:
        >>> W = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> derivatives.vector_matrix_jacobian_matrix(torch.tensor([0.5, 1.0]), W)
        tensor([[[0.5000, 0.0000],
                 [1.0000, 0.0000]],
        <BLANKLINE>
                [[0.0000, 0.5000],
                 [0.0000, 1.0000]]])
    """
    name = "vector_matrix_jacobian_matrix"
    _check(name, x=(x, 1), W=(W, 2))
    _check_size(name, "x", x, W, 0, "W")
    n = W.shape[1]
    return torch.diag_embed(x.unsqueeze(1).expand(-1, n), dim1=0, dim2=2).contiguous()


def bilinear_gradients(y: Tensor, A: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of α = yᵀ A x, in one pass over A: ∂α/∂y = A x, ∂α/∂A = y xᵀ, ∂α/∂x = Aᵀ y.

    Args:
        y: (m,).
        A: (m, n).
        x: (n,).

    Dtypes: all of one dtype, float64, float32, bfloat16, float16, complex64 or complex128.

    Returns:
        The three, in the shapes of y, A and x. Derivatives, not conjugated: for complex arguments
        `torch.autograd` returns their conjugates.

    Raises:
        RuntimeError: y does not fit the rows of A, or x its columns; the dtypes or devices differ.
        TypeError: an argument is not a tensor.

    Example:
        >>> A = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> y, x = torch.tensor([1.0, -1.0]), torch.tensor([0.5, 1.0])
        >>> dy, dA, dx = derivatives.bilinear_gradients(y, A, x)
        >>> dy, dx
        (tensor([2.5000, 5.5000]), tensor([-2., -2.]))
    """
    name = "bilinear_gradients"
    _check(name, integers=False, y=(y, 1), A=(A, 2), x=(x, 1))
    _check_size(name, "y", y, A, 0)
    _check_size(name, "x", x, A, 1)
    grads = apply_bilinear_backward(_one(A), y, A, x, True, True, True)
    dy, dA, dx = (_derivative(grad) for grad in grads)
    return dy, dA, dx


def bilinear_hessian(A: Tensor) -> Tensor:
    """The Hessian of α = yᵀ A x in (y, x): [[0, A], [Aᵀ, 0]], constant in y and x.

    Args:
        A: (m, n).

    Dtypes: float64, float32, bfloat16, float16, complex64, complex128, int64, int32, int16, int8 or
    uint8.

    Returns:
        (m + n, m + n), symmetric. Its blocks are ∂²α/∂y∂x = A and ∂²α/∂x∂y = Aᵀ.

    Raises:
        RuntimeError: A is not a matrix.
        TypeError: A is not a tensor.

    Example:
        >>> derivatives.bilinear_hessian(torch.tensor([[1.0, 2.0]]))
        tensor([[0., 1., 2.],
                [1., 0., 0.],
                [2., 0., 0.]])
    """
    _check("bilinear_hessian", A=(A, 2))
    m, n = A.shape
    top = torch.cat([A.new_zeros(m, m), A], dim=1)
    bottom = torch.cat([A.mT, A.new_zeros(n, n)], dim=1)
    return torch.cat([top, bottom], dim=0)


def quadratic_gradients(x: Tensor, A: Tensor, *, symmetric: bool = False) -> tuple[Tensor, Tensor]:
    """The gradients of α = xᵀ A x: ∂α/∂x = (A + Aᵀ) x and ∂α/∂A = x xᵀ.

    Args:
        x: (n,).
        A: (n, n).
        symmetric: A stands for the symmetric matrix that its lower triangle gives, and only that
            triangle is read: ∂α/∂x = 2 A x.

    Dtypes: both of one dtype, float64, float32, bfloat16, float16, complex64 or complex128.

    Returns:
        The two, in the shapes of x and A. Derivatives, not conjugated.

    Raises:
        RuntimeError: A is not square, or x does not fit it; the dtypes or devices differ.
        TypeError: x or A is not a tensor, or `symmetric` not a bool.

    Example:
        >>> A = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> dx, dA = derivatives.quadratic_gradients(torch.tensor([0.5, 1.0]), A)
        >>> dx
        tensor([ 6.0000, 10.5000])
    """
    name = "quadratic_gradients"
    _check(name, integers=False, x=(x, 1), A=(A, 2))
    _check_square(name, A)
    _check_size(name, "x", x, A, 1)
    _ops.check_bool(name, "symmetric", symmetric)
    grads = apply_quadratic_backward(_one(A), x, A, symmetric, True, True)
    dx, dA = (_derivative(grad) for grad in grads)
    return dx, dA


def quadratic_hessian(A: Tensor) -> Tensor:
    """The Hessian of α = xᵀ A x: A + Aᵀ, constant in x. For symmetric A it is 2 A.

    Args:
        A: (n, n).

    Dtypes: float64, float32, bfloat16, float16, complex64, complex128, int64, int32, int16, int8 or
    uint8.

    Returns:
        (n, n), symmetric.

    Raises:
        RuntimeError: A is not a square matrix.
        TypeError: A is not a tensor.

    Example:
        >>> derivatives.quadratic_hessian(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        tensor([[2., 5.],
                [5., 8.]])
    """
    name = "quadratic_hessian"
    _check(name, A=(A, 2))
    _check_square(name, A)
    return A + A.mT


def quadratic_hvp(A: Tensor, v: Tensor) -> Tensor:
    """The Hessian of α = xᵀ A x times a vector: (A + Aᵀ) v in one pass over A.

    Args:
        A: (n, n).
        v: (n,).

    Dtypes: both of one dtype, float64, float32, bfloat16, float16, complex64 or complex128.

    Returns:
        (n,).

    Raises:
        RuntimeError: A is not square, or v does not fit it; the dtypes or devices differ.
        TypeError: an argument is not a tensor.

    Example:
        >>> A = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> derivatives.quadratic_hvp(A, torch.tensor([1.0, 0.0]))
        tensor([2., 5.])
    """
    name = "quadratic_hvp"
    _check(name, integers=False, A=(A, 2), v=(v, 1))
    _check_square(name, A)
    _check_size(name, "v", v, A, 1)
    return _derivative(apply_quadratic_backward(_one(A), v, A, False, True, False)[0])
