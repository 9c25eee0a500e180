"""The ops: for each its `torch.autograd.Function`, its formulas and its public function."""

from .bilinear import bilinear as bilinear
from .linear import linear as linear
from .matmul import matmul as matmul
from .nn_bilinear import nn_bilinear as nn_bilinear
from .quadratic import quadratic as quadratic

__all__ = ["bilinear", "linear", "matmul", "nn_bilinear", "quadratic"]
