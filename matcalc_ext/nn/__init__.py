"""Modules and functions in the place of those of `torch.nn`, and `swap`, which puts them there."""

from . import functional as functional
from .modules import Bilinear as Bilinear
from .modules import Linear as Linear
from .modules import Quadratic as Quadratic
from .swap import Swap as Swap
from .swap import swap as swap

__all__ = ["Bilinear", "Linear", "Quadratic", "Swap", "functional", "swap"]
