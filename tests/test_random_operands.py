"""Every op on operands that nobody thought of: shapes, broadcasting and strides drawn at random.

The same examples each time; MATCALC_EXAMPLES=2000 tries more of them, drawn anew, and
MATCALC_EXAMPLES=250 the first of the same.
"""

import os
from dataclasses import replace

import pytest
import torch
from emulated import emulated  # noqa: F401
from emulated_ops import EmulatedOps
from reference import FLOATING, OPS, check_gradients, check_value, draw, symmetrised

from matcalc_ext import _C

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies

EXAMPLES = int(os.environ.get("MATCALC_EXAMPLES", "0"))
BATCH = st.lists(st.sampled_from((1, 2, 3, 4, 5, 12)), max_size=4)
SIZE = st.sampled_from((1, 2, 3, 5, 8, 9, 17, 33, 66))
MOST_ELEMENTS = 1 << 19  # of the largest product, each times each of its operands


@st.composite
def broadcast(draw_from, batch, own):
    """A shape whose batch dimensions broadcast to `batch`, and then its own."""
    dropped = draw_from(st.integers(0, len(batch)))
    kept = [size if draw_from(st.booleans()) else 1 for size in batch[dropped:]]
    return (*kept, *own)


@st.composite
def shapes_of(draw_from, name):
    batch, k, m, n, out = (draw_from(part) for part in (BATCH, SIZE, SIZE, SIZE, SIZE))
    hypothesis.assume(torch.Size(batch).numel() * k * m * n <= MOST_ELEMENTS)

    def operand(*own):
        return draw_from(broadcast(batch, own))

    if name == "matmul":
        left = operand(m, k) if draw_from(st.booleans()) else (k,)
        return left, operand(k, n) if draw_from(st.booleans()) else (k,)
    if name == "linear":
        return (*batch, k), (n, k), (n,) if draw_from(st.booleans()) else None
    if name == "bilinear":
        return operand(m), operand(m, n), operand(n)
    if name == "nn_bilinear":
        hypothesis.assume(torch.Size(batch).numel() * out * m * n <= MOST_ELEMENTS)
        bias = (out,) if draw_from(st.booleans()) else None
        return (*batch, m), (*batch, n), (out, m, n), bias
    return operand(n), operand(n, n)


@st.composite
def strided(draw_from, shape, dtype):
    """Dimensions in any order in memory, with gaps between or repeated."""
    order = draw_from(st.permutations(range(len(shape))))
    steps = [draw_from(st.sampled_from((0, 1, 1, 1, 2))) for _ in shape]
    sizes = [1 if step == 0 else size * step for size, step in zip(shape, steps, strict=True)]
    stored = draw([sizes[d] for d in order], dtype)
    view = stored.permute([order.index(d) for d in range(len(shape))])
    every = tuple(slice(None, None, max(step, 1)) for step in steps)
    return view[every].expand(shape)


@st.composite
def calls(draw_from):
    op = draw_from(st.sampled_from(OPS))
    dtype = draw_from(st.sampled_from(FLOATING))
    torch.manual_seed(draw_from(st.integers(0, 1000)))
    name = op.name.removesuffix("_symmetric")
    return op, [s and draw_from(strided(s, dtype)) for s in draw_from(shapes_of(name))]


def examples(count):
    return hypothesis.settings(
        max_examples=EXAMPLES or count,
        derandomize=count >= EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )


@pytest.mark.usefixtures("on_each_device")
@examples(1500)
@hypothesis.given(calls(), st.sampled_from(_C.cpu_isas()))
def test_value_and_gradients(call, isa):
    op, args = call
    _C.set_cpu_isa(isa)
    try:
        check_value(op, *args)
        check_gradients(op, *args)
    finally:
        _C.set_cpu_isa("")


@examples(500)
@hypothesis.given(calls(), st.sampled_from(((7, 5), (8, 0), (9, 0))))
def test_kernels_of_an_emulated_gpu(emulated, call, capability):  # noqa: F811
    op, args = call
    gpu = EmulatedOps(emulated)
    gpu.capability = capability
    gpu.set(4)
    name = op.name.removesuffix("_symmetric")
    value, gradients = getattr(gpu.ops, name), getattr(gpu.ops, f"{name}_backward")

    def backward(grad, *given):
        if name == "nn_bilinear":
            return gradients(grad, *given[:3], True, True, True, given[3] is not None)
        if name == "linear":
            return gradients(grad, *given, True, True, given[2] is not None)
        if op.name == "quadratic_symmetric":
            return gradients(grad, given[0], symmetrised(given[1]), True)
        return gradients(grad, *given)

    def forward(*given):
        if op.name == "quadratic_symmetric":
            return value(given[0], symmetrised(given[1]), symmetric=True)
        return value(*given)

    check_value(replace(op, ours=forward), *args)
    gpu.check_backward(backward, op.plain, *args)
