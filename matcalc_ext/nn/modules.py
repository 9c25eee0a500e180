"""Linear and Bilinear as in `torch.nn`, computed by the kernels of this package, and Quadratic."""

import math
import operator

import torch
from torch import Tensor

from .. import _ops
from ..ops import quadratic
from . import functional as F

__all__ = ["Bilinear", "Linear", "Quadratic"]


class Linear(torch.nn.Linear):
    r"""The affine map z = x Wᵀ + b.

    All but the computation is inherited from `torch.nn.Linear`: constructor, parameters,
    initialisation, state dictionary and text are the same, so a checkpoint of either loads into
    the other.

    Args:
        in_features: size n of the last dimension of the input.
        out_features: size m of the last dimension of the output.
        bias: whether there is a b, of shape (m,). The weight W has shape (m, n).
        device: where the parameters are made.
        dtype: of the parameters: float64, float32, bfloat16, float16, complex64 or complex128.

    Shapes:
        input (..., n), of the dtype of the parameters; output (..., m).

    Raises:
        RuntimeError: the input's last dimension is not n, or its dtype is not the weight's.

    Source: `torch.nn.Linear`; derivatives in docs/mathematics.md.

    Example:
        >>> import torch, matcalc_ext
        >>> layer = matcalc_ext.nn.Linear(20, 30)
        >>> layer(torch.randn(128, 20)).shape
        torch.Size([128, 30])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return input Wᵀ + b, of shape (..., out_features)."""
        return F.linear(input, self.weight, self.bias)


class Bilinear(torch.nn.Bilinear):
    r"""One bilinear form per output, z_o = x₁ᵀ W_o x₂ + b_o.

    All but the computation is inherited from `torch.nn.Bilinear`, as for `Linear`.

    Args:
        in1_features: size n₁ of the last dimension of the first input.
        in2_features: size n₂ of the last dimension of the second input.
        out_features: number m of forms, the size of the last dimension of the output.
        bias: whether there is a b, of shape (m,). The weight W has shape (m, n₁, n₂).
        device: where the parameters are made.
        dtype: of the parameters: float64, float32, bfloat16, float16, complex64 or complex128.

    Shapes:
        inputs (..., n₁) and (..., n₂) with the same leading dimensions; output (..., m).

    Raises:
        RuntimeError: a last dimension or the leading dimensions do not fit, or the dtypes differ.

    Source: `torch.nn.Bilinear`; derivatives in docs/mathematics.md.

    Example:
        >>> import torch, matcalc_ext
        >>> layer = matcalc_ext.nn.Bilinear(20, 30, 40)
        >>> layer(torch.randn(128, 20), torch.randn(128, 30)).shape
        torch.Size([128, 40])
    """

    def forward(self, input1: Tensor, input2: Tensor) -> Tensor:
        """Return input1ᵀ W_o input2 + b_o for every o, of shape (..., out_features)."""
        return F.bilinear(input1, input2, self.weight, self.bias)


def _size(name: str, value: int, least: int) -> int:
    try:
        size = operator.index(value)
    except TypeError:
        kind = type(value).__name__
        raise TypeError(f"Quadratic: {name} is a {kind}, expected an int") from None
    if size < least:
        raise ValueError(f"Quadratic: {name} is {size}, expected at least {least}")
    return size


class Quadratic(torch.nn.Module):
    r"""One quadratic form per output, z_o = xᵀ W_o x + b_o.

    The weight starts uniform in ±1/n and the bias in ±1/√n: for inputs of unit variance each
    output then starts with about the variance that `torch.nn.Linear` gives.

    With `symmetric=True` every W_o is taken as a symmetric matrix and only its lower triangle is
    read. Its gradient, g x xᵀ, is symmetric, so a step of an optimiser treats both triangles
    alike. The start is (U + Uᵀ)/2 of the weight U that `symmetric=False` draws under the same
    seed, which is the same function.

    Args:
        in_features: size n of the last dimension of the input.
        out_features: number m of forms, the size of the last dimension of the output.
        bias: whether there is a b, of shape (m,). The weight W has shape (m, n, n).
        symmetric: read the lower triangle of each W_o as a symmetric matrix.
        device: where the parameters are made.
        dtype: of the parameters: float64, float32, bfloat16, float16, complex64 or complex128.

    Shapes:
        input (..., n), of the dtype of the parameters; output (..., m).

    Raises:
        TypeError: a size is not an integer, or `symmetric` not a bool.
        ValueError: `in_features` is less than 1, or `out_features` less than 0.
        RuntimeError: the input's last dimension is not n, or its dtype is not the weight's.

    Source: docs/mathematics.md.

    Example:
        >>> import torch, matcalc_ext
        >>> layer = matcalc_ext.nn.Quadratic(64, 10)
        >>> layer(torch.randn(128, 64)).shape
        torch.Size([128, 10])
    """

    __constants__ = ["in_features", "out_features", "symmetric"]  # noqa: RUF012 (as in torch.nn)
    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int = 1,
        bias: bool = True,
        symmetric: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = _size("in_features", in_features, 1)
        self.out_features = _size("out_features", out_features, 0)
        _ops.check_bool("Quadratic", "symmetric", symmetric)
        self.symmetric = symmetric
        shape = (self.out_features, self.in_features, self.in_features)
        self.weight = torch.nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        if bias:
            self.bias = torch.nn.Parameter(torch.empty(shape[:1], device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weight and bias anew from the generator of `torch.manual_seed`."""
        torch.nn.init.uniform_(self.weight, -1 / self.in_features, 1 / self.in_features)
        if self.symmetric:
            with torch.no_grad():
                self.weight.copy_((self.weight + self.weight.mT) / 2)
        if self.bias is not None:
            bound = 1 / math.sqrt(self.in_features)
            torch.nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, input: Tensor) -> Tensor:
        """Return inputᵀ W_o input + b_o for every o, of shape (..., out_features)."""
        if isinstance(input, Tensor) and input.shape[-1:] != (self.in_features,):
            raise RuntimeError(
                f"Quadratic: input has shape {list(input.shape)}, expected "
                f"(..., {self.in_features}) as in_features says"
            )
        rows = torch.unsqueeze(input, -2)
        forms = quadratic(rows, self.weight, symmetric=self.symmetric)
        # Under autocast the forms have its dtype, as a bias among the operands would.
        return forms if self.bias is None else forms + self.bias.to(forms.dtype)

    def extra_repr(self) -> str:
        """Return the arguments of the constructor, as the text of a module shows them."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, symmetric={self.symmetric}"
        )
