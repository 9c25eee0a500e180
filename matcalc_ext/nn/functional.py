"""The functions of `torch.nn.functional` that these kernels compute, under the same names.

`linear(input, weight, bias=None)` is input Wᵀ + b and `bilinear(input1, input2, weight, bias=None)`
is z_o = x₁ᵀ W_o x₂ + b_o, with the signatures and shapes of `torch.nn.functional`:

    >>> import torch
    >>> import matcalc_ext.nn.functional as F
    >>> F.linear(torch.ones(3, 2), torch.tensor([[1.0, 2.0]]), torch.tensor([0.5]))
    tensor([[3.5000],
            [3.5000],
            [3.5000]])
    >>> F.bilinear(torch.ones(3, 2), torch.ones(3, 4), torch.ones(5, 2, 4)).shape
    torch.Size([3, 5])
"""

from ..ops import linear as linear
from ..ops import nn_bilinear as bilinear

__all__ = ["bilinear", "linear"]
