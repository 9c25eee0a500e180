"""What is CUDA's own: streams, devices, graphs, memory, TF32, sizes of a real GPU.

The values at small sizes are tested on the device axis (see conftest.py) with those of the CPU.
"""

import threading

import pytest
import reference
import torch
from conftest import HAS_CUDA
from reference import (
    BY_NAME,
    FLOATING,
    OPS,
    arguments,
    assert_near,
    check_gradients,
    check_value,
    draw,
    gradients,
    to_double,
    transposed,
)

import matcalc_ext

pytestmark = pytest.mark.skipif(
    not HAS_CUDA, reason="torch sees no CUDA device here, or this build has no CUDA kernels"
)
EACH_OP = pytest.mark.parametrize("op", OPS, ids=str)
GIB = 2**30
LONG = 500_000_000  # clock cycles, about a quarter of a second

# One shape for each op that is large enough for partial sums in working memory.
SPLIT = {
    "matmul": ((33, 9000), (9000, 17)),
    "linear": ((9, 9000), (65, 9000), (65,)),
    "bilinear": ((1500,), (1500, 2100), (2100,)),
    "quadratic": ((1900,), (1900, 1900)),
    "quadratic_symmetric": ((1900,), (1900, 1900)),
    "nn_bilinear": ((40, 120), (40, 130), (33, 120, 130), (33,)),
}
# Tiles in the middle and at the edges, aligned and not, many items, long sums.
LARGE = {
    "matmul": (
        ((1024, 1024), (1024, 1024)),
        ((1000, 777), (777, 513)),
        ((1281, 129), (129, 1031)),
        ((7, 300, 260), (7, 260, 310)),
        ((5, 1, 200, 72), (3, 72, 136)),
        ((129, 8200), (8200, 65)),
        ((512, 8192), (8192, 256)),
        ((6, 320, 192), (6, 192, 384)),
        ((2500, 1300), (1300,)),
        ((1300,), (1300, 2500)),
        ((9, 700), (700, 9)),
        ((3000, 40, 33), (3000, 33, 20)),
        ((100_003,), (100_003,)),
    ),
    "linear": (((3000, 520), (700, 520), (700,)), ((4, 33, 255), (1000, 255), (1000,))),
    "bilinear": (
        ((4097,), (4097, 4099), (4099,)),
        ((5000, 16), (5000, 16, 16), (5000, 16)),
        ((700, 64), (700, 64, 64), (700, 64)),
        ((33, 210), (33, 210, 190), (33, 190)),
        ((900, 300), (300, 280), (900, 280)),
        ((6, 70, 1, 130), (130, 140), (6, 1, 90, 140)),
    ),
    "quadratic": (
        ((3001,), (3001, 3001)),
        ((4000, 24), (4000, 24, 24)),
        ((40, 200), (40, 200, 200)),
        ((1000, 257), (257, 257)),
    ),
    "nn_bilinear": (
        ((500, 120), (500, 130), (65, 120, 130), (65,)),
        ((256, 128), (256, 128), (64, 128, 128), (64,)),
        ((1000, 64), (1000, 72), (1, 64, 72), None),
    ),
}
LARGE["quadratic_symmetric"] = LARGE["quadratic"]
LARGE_CASES = [
    (BY_NAME[name], shapes) for name, all_shapes in LARGE.items() for shapes in all_shapes
]


@pytest.fixture(autouse=True)
def _on_cuda():
    reference.use_device("cuda")
    yield
    reference.use_device("cpu")


def step(op, args, grad):
    """The value and all gradients."""
    return [t for t in (op.ours(*args), *gradients(op.ours, args, grad)) if t is not None]


def with_grad(op, shapes, dtype=torch.float32):
    args = arguments(shapes, dtype)
    return args, draw(op.plain(*args).shape, dtype)


def same(one, two):
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def poison():
    """Not a number in the memory that the next results are made in."""
    blocks = [torch.full((size,), torch.nan, device="cuda") for size in (2**10, 2**18, 2**24)]
    del blocks


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize(("op", "shapes"), LARGE_CASES, ids=lambda part: str(part).replace(" ", ""))
def test_large(op, shapes, dtype):
    args = arguments(shapes, dtype)
    poison()
    check_value(op, *args)
    check_gradients(op, *args)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_large_transposed(dtype):
    """Each of the ways that the operands of a product can lie."""
    for m, k, n in ((512, 384, 640), (301, 203, 407)):
        a, b = draw((m, k), dtype), draw((k, n), dtype)
        for left in (a, transposed(a)):
            for right in (b, transposed(b)):
                poison()
                check_value(BY_NAME["matmul"], left, right)
    A, y, x = draw((1500, 1700), dtype), draw((1500,), dtype), draw((1700,), dtype)
    check_value(BY_NAME["bilinear"], y, transposed(A), x)
    check_gradients(BY_NAME["bilinear"], y, transposed(A), x)


# --------------------------------------------------------------------------------------------
# The same bits


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@EACH_OP
def test_same_bits_on_every_run(op, dtype):
    for shapes in (SPLIT[op.name], LARGE[op.name][1]):
        args, grad = with_grad(op, shapes, dtype)
        expected = step(op, args, grad)
        assert all(t.isfinite().all() for t in expected)
        for _ in range(4):
            poison()
            assert same(step(op, args, grad), expected)


# --------------------------------------------------------------------------------------------
# Streams


@EACH_OP
def test_works_on_the_current_stream(op):
    """After what was asked of that stream before, and not before it."""
    args, grad = with_grad(op, SPLIT[op.name])
    expected = step(op, args, grad)
    late = [torch.full_like(t, torch.nan) for t in args]
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(LONG)
        for slow, tensor in zip(late, args, strict=True):
            slow.copy_(tensor)
        got = step(op, late, grad)
        done = stream.record_event()
    done.synchronize()
    assert same(got, expected)


@EACH_OP
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")  # that it is a prototype
def test_does_not_wait_for_the_gpu(op):
    """Neither by torch nor beside it: the GPU is still at the work from before the call."""
    args, grad = with_grad(op, SPLIT[op.name])
    expected = step(op, args, grad)
    step(op, args, grad)  # once more, so that there is memory for the results of the third
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(LONG)
        got = step(op, args, grad)
        still_busy = not torch.cuda.current_stream().query()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert still_busy
    assert same(got, expected)


@EACH_OP
def test_two_streams_at_once(op):
    """Working memory of one stream is not that of the other."""
    cases = [with_grad(op, SPLIT[op.name]) for _ in range(2)]
    expected = [step(op, *case) for case in cases]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in cases]
    got = [[], []]
    for _ in range(20):
        for results, case, stream in zip(got, cases, streams, strict=True):
            with torch.cuda.stream(stream):
                results.append(step(op, *case))
    torch.cuda.synchronize()
    for results, right in zip(got, expected, strict=True):
        assert all(same(result, right) for result in results)


@EACH_OP
def test_threads(op):
    args, grad = with_grad(op, SPLIT[op.name])
    expected = step(op, args, grad)
    torch.cuda.synchronize()
    wrong = []

    def work():
        with torch.cuda.stream(torch.cuda.Stream()):
            results = [step(op, args, grad) for _ in range(10)]
            torch.cuda.current_stream().synchronize()
            wrong.extend(result for result in results if not same(result, expected))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@EACH_OP
def test_captured_in_a_graph(op):
    """The value and the gradients of new numbers in the same places."""
    args, grad = with_grad(op, SPLIT[op.name])
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step(op, args, grad)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = step(op, args, grad)
    for _ in range(2):
        fresh, fresh_grad = with_grad(op, SPLIT[op.name])
        expected = step(op, fresh, fresh_grad)
        for old, new in zip((*args, grad), (*fresh, fresh_grad), strict=True):
            old.copy_(new)
        graph.replay()
        torch.cuda.synchronize()
        assert same(got, expected)


# --------------------------------------------------------------------------------------------
# Devices


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is no second GPU")
@EACH_OP
def test_tensors_on_a_device_that_is_not_current(op):
    args, grad = with_grad(op, SPLIT[op.name])
    expected = step(op, args, grad)
    there = torch.device("cuda", 1)
    with torch.cuda.device(0):
        got = step(op, [t.to(there) for t in args], grad.to(there))
        assert torch.cuda.current_device() == 0
    assert all(t.device == there for t in got)
    for one, two in zip(got, expected, strict=True):
        torch.testing.assert_close(one.to(two.device), two)


@EACH_OP
def test_mixed_devices(op):
    good = arguments(SPLIT[op.name])
    name = op.name.removesuffix("_symmetric")
    for moved in range(len(good)):
        args = [t.cpu() if i == moved else t for i, t in enumerate(good)]
        for wanted in (False, True):
            leaves = [t.detach().requires_grad_(wanted) for t in args]
            with pytest.raises(RuntimeError) as caught:
                op.ours(*leaves)
            message = str(caught.value)
            assert message.startswith(f"{name}: "), message
            assert "cuda:0" in message, message
            assert "cpu" in message, message
            assert "expected one device" in message, message


# --------------------------------------------------------------------------------------------
# Memory


@EACH_OP
def test_memory_comes_from_torch_and_goes_back(op):
    args, grad = with_grad(op, SPLIT[op.name])
    step(op, args, grad)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    # What was asked for: the blocks of torch's allocator may be larger.
    asked = "requested_bytes.all."
    start = torch.cuda.memory_stats()[asked + "current"]
    results = step(op, args, grad)
    stats = torch.cuda.memory_stats()
    size = sum(t.numel() * t.element_size() for t in results)
    assert stats[asked + "current"] - start <= size
    assert stats[asked + "peak"] - start <= size + 64 * 2**20
    del results
    assert torch.cuda.memory_allocated() == before


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_the_bilinear_layer_needs_no_more_than_its_results(dtype):
    """No product of a batch by both inputs, which would be 256 MiB here and more."""
    b, i, j, o = 4096, 128, 128, 64
    args, grad = with_grad(BY_NAME["nn_bilinear"], ((b, i), (b, j), (o, i, j), (o,)), dtype)
    step(BY_NAME["nn_bilinear"], args, grad)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    results = step(BY_NAME["nn_bilinear"], args, grad)
    size = sum(t.numel() * t.element_size() for t in results)
    assert torch.cuda.max_memory_allocated() - before <= size + 64 * 2**20


def needs(gib):
    if torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() < gib * GIB:
        pytest.skip(f"this takes {gib} GiB of GPU memory")


def rows_of_zeros(m, n, *rows):
    """More than 2³¹ numbers, which are zero but for some rows."""
    A = torch.zeros(m, n, dtype=torch.bfloat16, device="cuda")
    assert A.numel() > 2**31
    for row in rows:
        A[row] = draw((n,), torch.bfloat16)
    return A


def check_rows(got, expected, bound, terms, *rows):
    for row in rows:
        assert_near(got[row], expected(row), bound(row), terms, f"row {row}")


def test_matmul_past_31_bits():
    needs(16)
    m, k = 2**16 + 8, 2**15 + 8
    rows = (0, 1, m // 2, 2**16, m - 1)
    A = rows_of_zeros(m, k, *rows)
    for n in (1, 24):
        b = draw((k, n), torch.bfloat16)
        got = matcalc_ext.matmul(A, b[:, 0] if n == 1 else b).reshape(m, n)
        check_rows(
            got,
            lambda row, b=b: to_double(A[row]) @ to_double(b),
            lambda row, b=b: to_double(A[row]).abs() @ to_double(b).abs(),
            k,
            *rows,
        )
        assert got.count_nonzero() <= len(rows) * n
    # The other way round: the matrix is written, as the gradient of A is.
    x, y = draw((m, 8), torch.bfloat16), draw((8, k), torch.bfloat16)
    got = matcalc_ext.matmul(x, y)
    check_rows(
        got,
        lambda row: to_double(x[row]) @ to_double(y),
        lambda row: to_double(x[row]).abs() @ to_double(y).abs(),
        8,
        *rows,
    )


def test_bilinear_past_31_bits():
    needs(24)
    m, n = 2**16 + 8, 2**15 + 8
    rows = (0, 1, m // 2, 2**16, m - 1)
    A = rows_of_zeros(m, n, *rows).requires_grad_()
    y, x = draw((m,), torch.bfloat16), draw((n,), torch.bfloat16)
    y.requires_grad_()
    x.requires_grad_()
    alpha = matcalc_ext.bilinear(y, A, x)
    dy, dA, dx = torch.autograd.grad(alpha, (y, A, x))
    some, v, w = to_double(A[list(rows)]), to_double(y)[list(rows)], to_double(x)
    size = v.abs() @ some.abs()
    assert_near(alpha.detach(), v @ some @ w, size @ w.abs(), m + n, "value")
    assert_near(dx, v @ some, size, m, "dx")
    assert_near(dy[list(rows)], some @ w, some.abs() @ w.abs(), n, "dy")
    check_rows(
        dA,
        lambda row: to_double(y)[row] * w,
        lambda row: to_double(y)[row].abs() * w.abs(),
        1,
        *rows,
    )


# --------------------------------------------------------------------------------------------
# TF32


@pytest.fixture
def tf32():
    """torch's own switch."""
    before = torch.backends.cuda.matmul.fp32_precision

    def allow(allowed):
        torch.backends.cuda.matmul.fp32_precision = "tf32" if allowed else "ieee"

    yield allow
    torch.backends.cuda.matmul.fp32_precision = before


def test_tf32_where_torch_allows_it(tf32):
    """1 + 2⁻¹² is a float32 and no TF32."""
    a = torch.full((256, 256), 1 + 2.0**-12, device="cuda")
    b = torch.eye(256, device="cuda")
    tf32(False)
    assert torch.equal(matcalc_ext.matmul(a, b), a)
    assert torch.equal(torch.matmul(a, b), a)
    tf32(True)
    hardware = torch.cuda.get_device_capability()[0] >= 8
    assert torch.equal(matcalc_ext.matmul(a, b), torch.ones_like(a) if hardware else a)
    tf32(False)
    assert torch.equal(matcalc_ext.matmul(a, b), a)


def test_tf32_is_as_near_as_its_precision(tf32):
    tf32(True)
    for shapes in (((512, 300), (300, 700)), ((3, 129, 4100), (3, 4100, 65))):
        a, b = arguments(shapes, torch.float32)
        got = to_double(matcalc_ext.matmul(a, b))
        a, b = to_double(a), to_double(b)
        # 10 bits after the leading one, cut off in both operands at the worst.
        assert bool(((got - a @ b).abs() <= 2 * 2.0**-10 * 1.01 * (a.abs() @ b.abs())).all())


def test_tf32_leaves_float64_alone(tf32):
    tf32(True)
    args = arguments(((256, 256), (256, 256)), torch.float64)
    check_value(BY_NAME["matmul"], *args)


# --------------------------------------------------------------------------------------------
# Autocast


def test_autocast_as_torch():
    """float16 unless another dtype is asked for."""
    a, b = arguments(((65, 70), (70, 33)), torch.float32)
    for dtype in (None, torch.bfloat16, torch.float16):
        with torch.autocast("cuda", dtype):
            got, expected = matcalc_ext.matmul(a, b), torch.matmul(a, b)
        assert got.dtype == expected.dtype == (dtype or torch.float16)
        bound = to_double(a).abs() @ to_double(b).abs()
        lowered = to_double(a.to(got.dtype)) @ to_double(b.to(got.dtype))
        assert_near(got, lowered, bound, 70)


# --------------------------------------------------------------------------------------------
# Which kernels run: the right numbers would come from slower ones too


def kernels_of(function):
    function()
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities, acc_events=True) as seen:
        function()
        torch.cuda.synchronize()
    names = [event.name for event in seen.events()]
    if not names:
        pytest.skip("torch's profiler sees no kernels on this machine")
    return " ".join(names)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("columns", [1536, 3072])  # tiles of 128 columns, and of 256
def test_hopper_multiplies_by_warpgroups(dtype, columns):
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("this GPU is no Hopper")
    a, b = arguments(((768, 64), (64, columns)), dtype)
    assert "wgmma_gemm" in kernels_of(lambda: matcalc_ext.matmul(a, b))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_tensor_cores_multiply(dtype):
    if torch.cuda.get_device_capability()[0] < 8:
        pytest.skip("this GPU is older than the instructions")
    a, b = arguments(((512, 512), (512, 512)), dtype)
    assert "mma_gemm" in kernels_of(lambda: matcalc_ext.matmul(a, b))
