"""The peers beside torch: the same work as one writes it in numpy, opt_einsum, JAX and numba.

Each takes its copies of the inputs once, before any timing. What a library cannot do, or what no
one would use it for, it leaves out: numpy and numba know no derivatives, and the kernels for numba
stand here.
"""

import operator
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, Protocol

import torch
from torch import Tensor

from .expressions import Einsum
from .measure import Call, forward_backward

Arrays = Any


class Library(Protocol):
    """A peer beside torch."""

    name: str
    version: str
    spins: bool  # whether its threads stay busy for long after its last call
    foreign: bool  # whether its arrays are its own, so that torch does not know its memory

    def call(self, work: Einsum, inputs: Sequence[Tensor], grad: Tensor | None) -> Call | None:
        """The forward pass, or with `grad` the training step; None where it is not for that."""


def available(threads: int) -> list[Library]:
    """Those that are installed, each on so many threads."""
    makers: dict[str, Callable[[int], Library]] = {
        "numpy": Numpy,
        "opt_einsum": OptEinsum,
        "jax": Jax,
        "numba": Numba,
    }
    return [make(threads) for name, make in makers.items() if find_spec(name)]


def _with_bias(work: Einsum, value: Arrays, inputs: Sequence[Arrays]) -> Arrays:
    return value if work.bias is None else value + inputs[work.bias]


# How numpy is used for each: its products call a BLAS, its einsum mostly does not.
_NUMPY: dict[str, Callable[..., Arrays]] = {
    "ij,jk->ik": operator.matmul,
    "bij,bjk->bik": operator.matmul,
    "ij,j->i": operator.matmul,
    "i,ij->j": operator.matmul,
    "i,j->ij": lambda y, x: y[:, None] * x,
    "bi,oi->bo": lambda x, W: x @ W.T,
    "i,ij,j->": lambda y, A, x: y @ (A @ x),
    "bi,bij,bj->b": lambda y, A, x: ((A @ x[:, :, None])[:, :, 0] * y).sum(-1),
    "bi,ij,bj->b": lambda y, A, x: ((y @ A) * x).sum(-1),
    "bsi,ij,btj->bst": lambda y, A, x: y @ A @ x.transpose(0, 2, 1),
    "bi,oij,bj->bo": lambda x1, W, x2: ((x1 @ W) * x2).sum(-1).T,
}


class Numpy:
    """Forward alone: its user derives the rest by hand."""

    name, foreign, spins = "numpy", True, True

    def __init__(self, threads: int) -> None:
        self.version = version("numpy")
        # The limit holds as long as the object.
        self.limit: Any = None
        if find_spec("threadpoolctl"):
            threadpoolctl: Any = import_module("threadpoolctl")
            self.limit = threadpoolctl.threadpool_limits(limits=threads, user_api="blas")

    def call(self, work: Einsum, inputs: Sequence[Tensor], grad: Tensor | None) -> Call | None:
        if grad is not None or inputs[0].dtype in (torch.bfloat16, torch.float16):
            return None
        arrays = [t.detach().numpy() for t in inputs]
        operands = [arrays[i] for i in work.operands]
        function = _NUMPY[work.spec]
        return lambda: _with_bias(work, function(*operands), arrays)


class OptEinsum:
    """Products of three: it chooses the order, and torch does the rest."""

    name, foreign, spins = "opt_einsum", False, False

    def __init__(self, threads: int) -> None:
        del threads  # torch's
        self.opt_einsum: Any = import_module("opt_einsum")
        self.version = version("opt_einsum")

    def call(self, work: Einsum, inputs: Sequence[Tensor], grad: Tensor | None) -> Call | None:
        if len(work.operands) < 3:
            return None
        shapes = [inputs[i].shape for i in work.operands]
        contract = self.opt_einsum.contract_expression(work.spec, *shapes)

        def function(*inputs: Tensor) -> Tensor:
            value: Tensor = contract(*(inputs[i] for i in work.operands))
            return value if work.bias is None else value + inputs[work.bias]

        if grad is not None:
            return forward_backward(function, inputs, grad)
        return lambda: function(*inputs)


@contextmanager
def _processors(count: int) -> Iterator[None]:
    """Lets the threads that start meanwhile see so many processors."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(sorted(before)[:count]))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Jax:
    """Compiled by XLA: jit of the einsum and of its reverse derivative."""

    name, foreign, spins = "JAX", True, False

    def __init__(self, threads: int) -> None:
        jax: Any = import_module("jax")
        self.jax, self.version = jax, version("jax")
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_enable_x64", True)
        with _processors(threads):  # its pool has a thread for each processor that it sees
            jax.block_until_ready(jax.numpy.zeros(()))

    def _array(self, tensor: Tensor) -> Arrays:
        tensor = tensor.detach()
        if tensor.dtype == torch.bfloat16:
            return self.jax.numpy.asarray(tensor.float().numpy()).astype("bfloat16")
        return self.jax.numpy.asarray(tensor.numpy())

    def call(self, work: Einsum, inputs: Sequence[Tensor], grad: Tensor | None) -> Call | None:
        jax = self.jax
        arrays = [self._array(t) for t in inputs]

        def function(*arrays: Arrays) -> Arrays:
            value = jax.numpy.einsum(work.spec, *(arrays[i] for i in work.operands))
            return _with_bias(work, value, arrays)

        if grad is None:
            forward = jax.jit(function)
            return lambda: jax.block_until_ready(forward(*arrays))

        wanted = [i for i, t in enumerate(inputs) if t.requires_grad]
        # torch's gradient of a complex tensor is the conjugate of what vjp gives, for a conjugate
        # cotangent.
        cotangent = self._array(grad.conj().resolve_conj())

        def step(cotangent: Arrays, *arrays: Arrays) -> Arrays:
            def of_wanted(*chosen: Arrays) -> Arrays:
                every = list(arrays)
                for i, array in zip(wanted, chosen, strict=True):
                    every[i] = array
                return function(*every)

            value, pull_back = jax.vjp(of_wanted, *(arrays[i] for i in wanted))
            return (value, *map(jax.numpy.conj, pull_back(cotangent)))

        compiled = jax.jit(step)
        return lambda: jax.block_until_ready(compiled(cotangent, *arrays))


class Numba:
    """Loops by hand for the forms in float32, one pass over the matrix for value and gradients."""

    name, foreign, spins = "numba", True, False

    def __init__(self, threads: int) -> None:
        numba: Any = import_module("numba")
        np: Any = import_module("numpy")
        self.version = version("numba")
        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
        torch.set_num_threads(threads)  # numba's start has set OpenMP's number, which is torch's
        compiled = numba.njit(parallel=True, fastmath=True)
        prange = numba.prange

        def form(y: Arrays, A: Arrays, x: Arrays) -> Arrays:
            value = np.float32(0)
            for i in prange(A.shape[0]):
                row = np.float32(0)
                for j in range(A.shape[1]):
                    row += A[i, j] * x[j]
                value += y[i] * row
            return value

        def form_step(y: Arrays, A: Arrays, x: Arrays, g: Arrays, dA: Arrays) -> Arrays:
            value, dy, dx = np.float32(0), np.empty_like(y), np.zeros_like(x)
            for i in prange(A.shape[0]):
                row = np.float32(0)
                for j in range(A.shape[1]):
                    row += A[i, j] * x[j]
                dx += (g * y[i]) * A[i]  # numba sums what the threads have
                dy[i] = g * row
                value += y[i] * row
                if dA.shape[0] > 0:
                    for j in range(A.shape[1]):
                        dA[i, j] = (g * y[i]) * x[j]
            return value, dy, dx

        def items(y: Arrays, A: Arrays, x: Arrays) -> Arrays:
            values = np.zeros(A.shape[0], A.dtype)
            for b in prange(A.shape[0]):
                for i in range(A.shape[1]):
                    row = np.float32(0)
                    for j in range(A.shape[2]):
                        row += A[b, i, j] * x[b, j]
                    values[b] += y[b, i] * row
            return values

        def items_step(y: Arrays, A: Arrays, x: Arrays, g: Arrays, dA: Arrays) -> Arrays:
            values, dy, dx = np.zeros(A.shape[0], A.dtype), np.empty_like(y), np.zeros_like(x)
            for b in prange(A.shape[0]):
                for i in range(A.shape[1]):
                    row, weight = np.float32(0), g[b] * y[b, i]
                    for j in range(A.shape[2]):
                        row += A[b, i, j] * x[b, j]
                        dx[b, j] += weight * A[b, i, j]
                    dy[b, i] = g[b] * row
                    values[b] += y[b, i] * row
                    if dA.shape[0] > 0:
                        for j in range(A.shape[2]):
                            dA[b, i, j] = weight * x[b, j]
            return values, dy, dx

        self.empty_like = np.empty_like
        self.kernels = {
            "i,ij,j->": (compiled(form), compiled(form_step)),
            "bi,bij,bj->b": (compiled(items), compiled(items_step)),
        }

    def call(self, work: Einsum, inputs: Sequence[Tensor], grad: Tensor | None) -> Call | None:
        if work.spec not in self.kernels or inputs[0].dtype != torch.float32:
            return None
        forward, step = self.kernels[work.spec]
        arrays = [t.detach().numpy() for t in inputs]
        y, A, x = (arrays[i] for i in work.operands)
        if grad is None:
            return lambda: forward(y, A, x)
        g = grad.numpy() if grad.dim() else grad.numpy()[()]
        matrix = inputs[work.operands[1]]

        def run() -> Arrays:
            dA = self.empty_like(A) if matrix.requires_grad else A[:0]
            value, dy, dx = step(y, A, x, g, dA)
            gradients = {work.operands[0]: dy, work.operands[1]: dA}
            twice = work.operands[2] in gradients
            gradients[work.operands[2]] = dy + dx if twice else dx
            return (value, *(gradients[i] for i, t in enumerate(inputs) if t.requires_grad))

        return run
