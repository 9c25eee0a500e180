"""DTensors: every op, its gradients and theirs on four processes, against the same on one.

The processes are started once and run all checks; the tests below read what came of each.
"""

import itertools
import os
import random
import subprocess
import sys
import time
import traceback

import pytest
import torch
from reference import BY_NAME, DOUBLE, OPS
from test_products import BILINEAR, QUADRATIC
from torch import nn

import matcalc_ext

if not torch.distributed.is_available():
    pytest.skip("this torch has no torch.distributed", allow_module_level=True)

from torch import distributed
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

DEVICES = 4
LIMIT = 300  # seconds


def _placements(shape, mesh, rng, *, partial=False):
    """Any, by dimension of the mesh; `partial`: sums over the devices among them."""
    choices = [Replicate(), *(Shard(d) for d in range(len(shape)))]
    return [rng.choice(choices + [Partial()] * partial) for _ in range(mesh.ndim)]


def _distributed(tensor, mesh, placements):
    """`tensor`, the same on each device, with these placements."""
    share, where = tensor, list(placements)
    for dim, placement in enumerate(placements):
        if placement.is_partial():
            share = share * (mesh.get_local_rank(dim) + 1) / sum(range(1, mesh.size(dim) + 1))
            where[dim] = Replicate()
    local = distribute_tensor(share, mesh, where, src_data_rank=None).to_local()
    size, stride = tensor.shape, tensor.stride()
    return DTensor.from_local(local, mesh, placements, run_check=False, shape=size, stride=stride)


def _check(op, shapes, mesh, rng, dtype=torch.float64, again=False):
    """Value and gradients, and with `again` the gradients' own, from random placements."""
    generator = torch.Generator().manual_seed(rng.randrange(1 << 30))
    plain = [
        None
        if shape is None
        else torch.randn(shape, dtype=dtype, generator=generator).requires_grad_()
        for shape in shapes
    ]
    placed = [
        None
        if t is None
        else _distributed(
            t.detach(), mesh, _placements(t.shape, mesh, rng, partial=rng.random() < 0.2)
        )
        .detach()
        .requires_grad_()
        for t in plain
    ]
    where = [None if t is None else t.placements for t in placed]
    wanted = [i for i, t in enumerate(plain) if t is not None and rng.random() < 0.8] or [0]
    leaves, expected_leaves = [placed[i] for i in wanted], [plain[i] for i in wanted]
    expected = op.plain(*plain)
    got = op.ours(*placed)
    grad = torch.randn(expected.shape, dtype=dtype, generator=generator)
    placed_grad = _distributed(grad, mesh, _placements(grad.shape, mesh, rng))
    grads = torch.autograd.grad(got, leaves, placed_grad, create_graph=again)
    expected_grads = torch.autograd.grad(expected, expected_leaves, grad, create_graph=again)
    results = [(got, expected), *zip(grads, expected_grads, strict=True)]
    if again and any(g.requires_grad for g in expected_grads):
        ours = sum((g.full_tensor().abs() ** 2).sum() for g in grads)
        theirs = sum((g.abs() ** 2).sum() for g in expected_grads)
        results += zip(
            torch.autograd.grad(ours, leaves, allow_unused=True, materialize_grads=True),
            torch.autograd.grad(theirs, expected_leaves, allow_unused=True, materialize_grads=True),
            strict=True,
        )
    for one, two in results:
        torch.testing.assert_close(
            one.full_tensor().detach(),
            two.detach(),
            rtol=1e-10,
            atol=1e-10,
            msg=lambda text: f"{op.name} {shapes} placed {where}: {text}",
        )


def _each_op(mesh, rng):
    for op in OPS:
        for shapes, dtype in itertools.product(op.families.values(), DOUBLE):
            _check(op, shapes, mesh, rng, dtype)


def _second_derivatives(mesh, rng):
    for op in OPS:
        for shapes in op.families.values():
            _check(op, shapes, mesh, rng, again=True)


def _kept_products(mesh, rng):
    """Sizes from which the forward pass keeps products for the backward pass."""
    for shapes in [*BILINEAR.values(), *QUADRATIC.values()]:
        _check(BY_NAME["bilinear" if len(shapes) == 3 else "quadratic"], shapes, mesh, rng)


def _nothing_is_moved(mesh, rng):
    """What is split alike is multiplied where it lies."""
    row, column, whole = Shard(0), Shard(1), Replicate()
    cases = [
        # batch, then tensor parallel by columns and by rows, then nothing to split
        ((row, whole, whole), row),
        ((whole, row, row), column),
        ((column, column, whole), Partial()),
        ((whole, whole, whole), whole),
    ]
    shapes = (8, 8), (12, 8), (12,)
    for places, expected in cases:
        tensors = [
            _distributed(torch.randn(shape), mesh, [place] * mesh.ndim)
            for shape, place in zip(shapes, places, strict=True)
        ]
        with CommDebugMode() as moved:
            out = matcalc_ext.linear(*tensors)
        assert moved.get_total_counts() == 0, (places, moved.get_comm_counts())
        assert out.placements == (expected,) * mesh.ndim, (places, out.placements)


def _without_gradients(mesh, rng):

    x, W = torch.randn(8, 6), torch.randn(4, 6)
    X, V = (_distributed(t, mesh, [Shard(0)] * mesh.ndim) for t in (x, W))
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            for got in (matcalc_ext.linear(X, V), torch.ops.matcalc_ext.linear(X, weight=V)):
                torch.testing.assert_close(got.full_tensor(), x @ W.T)


def _errors(mesh, rng):

    x, W = torch.randn(8, 6), torch.randn(4, 6)
    X = _distributed(x, mesh, [Replicate()] * mesh.ndim)
    for arguments, message in (
        ((X, W), "linear: weight is a Tensor, expected a DTensor"),
        ((X, _distributed(W[:, :5], mesh, [Replicate()] * mesh.ndim)), "weight has 5 columns"),
    ):
        with pytest.raises(RuntimeError, match=message):
            matcalc_ext.linear(*arguments)


class _Scorer(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.score = nn.Bilinear(8, 8, 4)

    def forward(self, x):
        h = self.down(self.up(x).relu())
        return self.score(h, x)


def _scorers():
    torch.manual_seed(0)
    model = _Scorer().double()
    torch.manual_seed(0)
    swapped = matcalc_ext.nn.swap(_Scorer().double())
    return model, swapped


def _parallel_training(mesh, rng):
    """By columns and by rows; on two dimensions of the mesh, fully sharded along the other."""
    model, swapped = _scorers()
    styles = {"up": ColwiseParallel(), "down": RowwiseParallel()}
    parallelize_module(swapped, mesh["tensors"], styles)
    _compare_training(model, swapped, mesh if mesh.ndim > 1 else None)


def _fully_sharded(mesh, rng):
    _compare_training(*_scorers(), mesh)


def _compare_training(model, swapped, mesh):
    """The gradients of plain torch and, fully sharded along a mesh's first dimension, ours."""
    parts, part = 1, 0
    if mesh is not None:
        fully_shard(swapped, mesh=mesh[mesh.mesh_dim_names[0]])
        parts, part = mesh.size(0), mesh.get_local_rank(0)
    x = torch.randn(8, 8, dtype=torch.float64)
    # Each part of the mesh has a part of the batch, and gradients are averages.
    (model(x) ** 2).sum().div(parts).backward()
    (swapped(x.chunk(parts)[part]) ** 2).sum().backward()
    for one, two in zip(swapped.parameters(), model.parameters(), strict=True):
        got = one.grad.full_tensor() if hasattr(one.grad, "full_tensor") else one.grad
        torch.testing.assert_close(got, two.grad, rtol=1e-10, atol=1e-10)


def _compiled(mesh, rng):

    x, W = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((8, 6), (4, 6)))
    places = ([Shard(0)] * mesh.ndim, [Replicate()] * mesh.ndim)
    leaves = [
        _distributed(t.detach(), mesh, p).requires_grad_()
        for t, p in zip((x, W), places, strict=True)
    ]
    run = torch.compile(lambda x, W: matcalc_ext.linear(x, W).sin(), backend="aot_eager")
    out = run(*leaves)
    expected = (x @ W.T).sin()
    torch.testing.assert_close(out.full_tensor(), expected)
    grads = torch.autograd.grad(out.full_tensor().sum(), leaves)
    for one, two in zip(grads, torch.autograd.grad(expected.sum(), (x, W)), strict=True):
        torch.testing.assert_close(one.full_tensor(), two)


CHECKS = (
    _each_op,
    _second_derivatives,
    _kept_products,
    _nothing_is_moved,
    _without_gradients,
    _errors,
    _parallel_training,
    _fully_sharded,
    _compiled,
)
MESHES = ((DEVICES,), (2, DEVICES // 2))


def _process(rank, store, results):
    """Runs every check on every mesh, and says what failed."""
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # whatever the host's name resolves to
    distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=DEVICES
    )
    for mesh_shape, check in itertools.product(MESHES, CHECKS):
        names = ("batches", "tensors")[-len(mesh_shape) :]
        mesh = distributed.init_device_mesh("cpu", mesh_shape, mesh_dim_names=names)
        torch.manual_seed(0)
        try:
            check(mesh, random.Random(0))
            failure = None
        except Exception:
            failure = traceback.format_exc()
        results.put((mesh_shape, check.__name__, failure))
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What each process says of each check."""
    store = tmp_path_factory.mktemp("distributed") / "store"
    context = torch.multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    processes = torch.multiprocessing.spawn(
        _process, (str(store), results), nprocs=DEVICES, join=False, daemon=True
    )
    deadline = time.monotonic() + LIMIT
    found = {}
    for _ in range(DEVICES * len(MESHES) * len(CHECKS)):
        while results.empty():
            processes.join(0.1)  # raises if one has died
            assert time.monotonic() < deadline, f"after {LIMIT} s there is this much: {found}"
        mesh, check, failure = results.get()
        found.setdefault((mesh, check), []).append(failure)
    while not processes.join(1):
        assert time.monotonic() < deadline, "all checks are done, and the processes go on"
    return found


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.strip("_"))
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_on_several_devices(outcomes, mesh, check):
    failures = outcomes[mesh, check.__name__]
    assert failures == [None] * DEVICES, next(failure for failure in failures if failure)


IMPORTS = ["import matcalc_ext", "import torch.distributed.tensor"]
ONE_DEVICE = """
import sys, torch
from torch.distributed.tensor import Shard, distribute_tensor
mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
x, A = torch.ones(3, 2), torch.eye(2)
args = [distribute_tensor(t, mesh, [Shard(0)]) for t in (x, A, x)]
assert matcalc_ext.bilinear(*args).full_tensor().tolist() == [2, 2, 2]
torch.distributed.destroy_process_group()
"""


@pytest.mark.parametrize("first", [0, 1])
def test_whichever_is_imported_first(first, monkeypatch):
    environment = {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 0}
    one, two = IMPORTS[first], IMPORTS[1 - first]
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value))
    # As a program may, to see whether it is installed.
    without = """
import importlib.util, sys
assert importlib.util.find_spec("torch.distributed.tensor") is not None
assert "torch.distributed.tensor" not in sys.modules
"""
    code = f"{one}\n{without if first == 0 else ''}\n{two}\n{ONE_DEVICE}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
