"""Matrix products and bilinear and quadratic forms for PyTorch, with every derivative.

Computed by hand-written kernels.

>>> import matcalc_ext
>>> alpha = matcalc_ext.bilinear(y, A, x)  # yᵀ A x; backward, forward mode, vmap, any order
>>> model = matcalc_ext.nn.swap(model)  # its Linear and Bilinear layers by ours
"""

from importlib.metadata import PackageNotFoundError, version

from . import _flops as _flops
from . import _ops as _ops  # first of all: it loads the ops, or says why it cannot
from . import _sharding as _sharding
from . import derivatives as derivatives
from . import nn as nn
from .ops import bilinear as bilinear
from .ops import linear as linear
from .ops import matmul as matmul
from .ops import nn_bilinear as nn_bilinear
from .ops import quadratic as quadratic

try:
    __version__ = version("matcalc_ext")
except PackageNotFoundError:  # a source tree that was built in place and not installed
    __version__ = _ops._C.build_info()["version"]

__all__ = [
    "__version__",
    "bilinear",
    "derivatives",
    "linear",
    "matmul",
    "nn",
    "nn_bilinear",
    "quadratic",
]
