"""The emulation of CUDA by itself: what it must compute, and above all what it must refuse."""

import math

import pytest
import torch
from emulated import ORDERS, emulated  # noqa: F401

ALL = range(64)


@pytest.fixture(params=ORDERS)
def ordered(request, emulated):  # noqa: F811
    """The emulation in every order of the threads."""
    emulated.set_order(request.param)
    return emulated


def refuses(emulated, name, text, **launch):  # noqa: F811
    with pytest.raises(RuntimeError, match=text):
        emulated.run_basic(name, **launch)
    # An error leaves nothing behind.
    assert emulated.run_basic("reverse", threads=100) == list(range(99, -1, -1))


# --------------------------------------------------------------------------------------------
# Launches


def test_every_thread_of_every_block_runs_once(ordered):
    expected = [block * 10000 + thread for block in range(3) for thread in range(45)]
    assert ordered.run_basic("index", threads=45, blocks=3) == expected
    assert ordered.run_basic("sizes", threads=2, blocks=3) == [30002] * 6


def test_launches_are_logged(emulated):  # noqa: F811
    assert emulated.launches() == []
    emulated.run_basic("index", threads=45, blocks=3)
    emulated.run_basic("reverse")
    assert emulated.launches() == [("index", 3, 45), ("reverse", 1, 64)]
    assert emulated.launches() == []


@pytest.mark.parametrize("threads", [0, 1025])
def test_blocks_have_1_to_1024_threads(emulated, threads):  # noqa: F811
    refuses(emulated, "index", f"kernel index is launched with {threads} threads", threads=threads)


DEVICES = {(7, 0): 96, (7, 5): 64, (8, 0): 163, (8, 6): 99, (8, 9): 99, (9, 0): 227, (12, 0): 99}


@pytest.mark.parametrize(("capability", "kib"), DEVICES.items())
def test_shared_memory_is_the_devices(emulated, capability, kib):  # noqa: F811
    emulated.set_device(*capability, multiprocessors=7)
    assert emulated.run_basic("capability") == [capability[0] * 100 + capability[1] * 10 + 7]
    assert emulated.run_basic("shared_limit") == [kib * 1024]
    emulated.run_basic("index", shared=kib * 1024)
    refuses(emulated, "index", f"this device has {kib * 1024}", shared=kib * 1024 + 1)


def test_tf32_follows_the_switch(emulated):  # noqa: F811
    assert emulated.run_basic("tf32") == [0]
    emulated.set_tf32(True)
    assert emulated.run_basic("tf32") == [1]


# --------------------------------------------------------------------------------------------
# Barriers


@pytest.mark.parametrize("threads", [1, 32, 45, 1024])
def test_barrier(ordered, threads):
    backwards = list(range(threads - 1, -1, -1))
    assert ordered.run_basic("reverse", threads, blocks=2) == backwards * 2
    turned = [(thread + 50) % threads for thread in range(threads)]
    assert ordered.run_basic("many_barriers", threads) == turned


RACY = ["reverse_without_barrier", "reverse_with_warp_barriers", "reuse_without_barrier"]


@pytest.mark.parametrize("kernel", RACY)
def test_missing_barrier_shows(ordered, kernel):
    assert ordered.run_basic(kernel, threads=128) != list(range(127, -1, -1))


@pytest.mark.parametrize("kernel", RACY)
def test_missing_barrier_shows_otherwise_in_each_order(emulated, kernel):  # noqa: F811
    results = []
    for order in ORDERS:
        emulated.set_order(order)
        results.append(repr(emulated.run_basic(kernel, threads=128, blocks=4)))
        assert results[-1] == repr(emulated.run_basic(kernel, threads=128, blocks=4))
    assert len(set(results)) == 3


def test_votes_of_a_block(ordered):
    assert ordered.run_basic("block_or", 45) == [1] * 45
    assert ordered.run_basic("block_or", 3) == [0] * 3
    assert ordered.run_basic("block_and", 45) == [0] * 45
    assert ordered.run_basic("block_and", 3) == [1] * 3
    assert ordered.run_basic("block_and_of_all", 45) == [1] * 45
    assert ordered.run_basic("block_count", 45) == [15 * 10000 + 1] * 45


def test_ended_threads_are_not_waited_for(ordered):
    expected = [0x55555555 + 0.032 if thread % 2 == 0 else 1 for thread in ALL]
    assert ordered.run_basic("half_ended") == pytest.approx(expected, abs=1e-6)
    assert ordered.run_basic("ended_while_waited_for", 45) == [2] * 44 + [1]


def test_named_barriers(ordered):
    assert ordered.run_basic("named_barriers", 64) == [*range(31, -1, -1), *range(63, 31, -1)]


def test_wait_until(ordered):
    assert ordered.run_basic("ring_with_two_counts", 45) == [0] + [21] * 44


WAITS = {"ring_with_one_count": [0] + [21] * 44, "notify_too_early": [7] * 45}


@pytest.mark.parametrize(("kernel", "right"), WAITS.items())
def test_wrong_wait_shows(emulated, kernel, right):  # noqa: F811
    results = []
    for order in ORDERS:
        emulated.set_order(order)
        results.append(emulated.run_basic(kernel, 45) == right)
    assert not all(results)


def test_divergent_barrier_is_an_error(ordered):
    text = (
        "kernel lost_lane, block 0: no thread can go on: threads 0, 1, 3-63 at __syncthreads; "
        "thread 2 at __syncwarp of lanes 0x00000005"
    )
    refuses(ordered, "lost_lane", text)


def test_waits_in_vain_are_errors(ordered):
    refuses(ordered, "wait_for_nothing", "threads 0-3, 5-63 ended; thread 4 at wait_until")
    refuses(ordered, "named_barrier_of_too_many", "threads 0-63 at a named barrier")


def test_different_barriers_do_not_meet(ordered):
    refuses(ordered, "two_barriers", "kernel two_barriers, .*at __syncthreads.*, where others are")


# --------------------------------------------------------------------------------------------
# Warps


def test_ballots(ordered):
    thirds = [sum(1 << i for i in range(32) if (warp * 32 + i) % 3 == 0) for warp in range(2)]
    assert ordered.run_basic("ballot") == [thirds[thread // 32] for thread in ALL]
    assert ordered.run_basic("ballot", 45)[32:] == [thirds[1] & 0x1FFF] * 13
    assert ordered.run_basic("any") == [thread // 32 for thread in ALL]
    assert ordered.run_basic("all") == [1 - thread // 32 for thread in ALL]
    halves = [0xAAAA if thread % 32 < 16 else 0x11110000 for thread in ALL]
    assert ordered.run_basic("half_ballots") == halves


SHUFFLES = {
    "shuffle": lambda lane: 5,
    "shuffle_in_eights": lambda lane: lane // 8 * 8 + 3,
    "shuffle_xor": lambda lane: lane ^ 9,
    "shuffle_xor_in_fours": lambda lane: lane ^ 5 if lane % 8 >= 4 else lane,
    "shuffle_down": lambda lane: lane + 3 if lane < 29 else lane,
    "shuffle_down_in_eights": lambda lane: lane + 3 if lane % 8 < 5 else lane,
    "shuffle_up": lambda lane: lane - 3 if lane >= 3 else lane,
    "shuffle_up_in_eights": lambda lane: lane - 3 if lane % 8 >= 3 else lane,
}


@pytest.mark.parametrize(("kernel", "source"), SHUFFLES.items())
def test_shuffles(ordered, kernel, source):
    factor = 0.5 if kernel == "shuffle_in_eights" else 1
    expected = [factor * (thread // 32 * 32 + source(thread % 32)) for thread in ALL]
    assert ordered.run_basic(kernel) == expected


def test_exchanges(ordered):
    assert ordered.run_basic("sum_of_warp") == [496] * 32 + [496 + 1024] * 32
    fragments = [313 + 640 * (thread // 32) for thread in ALL]
    assert ordered.run_basic("exchange_fragments") == fragments


def test_lane_that_has_ended_shows_nan(ordered):
    got = ordered.run_basic("shuffle_from_ended", 32)
    assert got[7] == 0
    assert all(math.isnan(value) for lane, value in enumerate(got) if lane != 7)


def test_wrong_collectives_are_errors(ordered):
    refuses(ordered, "two_collectives", "kernel two_collectives, block 0, thread .* where other")
    refuses(ordered, "outside_of_mask", "lanes 0x00000001, which lane .* is not among")


# --------------------------------------------------------------------------------------------
# Memory


def test_shared_memory_is_poisoned_before_each_block(ordered):
    for kernel in ("read_poison", "read_float_poison", "write_then_read_poison"):
        assert all(math.isnan(value) for value in ordered.run_basic(kernel, blocks=3))


def test_writes_past_the_end_are_errors(emulated):  # noqa: F811
    text = "kernel write_behind_shared, block 0 has written past its 64 bytes of shared memory"
    refuses(emulated, "write_behind_shared", text, shared=64)
    text = "kernel write_behind_workspace has written past the end of working memory"
    refuses(emulated, "write_behind_workspace", text)


def test_working_memory_is_aligned_and_poisoned(emulated):  # noqa: F811
    assert math.isnan(emulated.run_basic("read_workspace")[0])


def test_addresses_of_shared_memory(emulated):  # noqa: F811
    assert emulated.run_basic("shared_addresses") == [8 * thread for thread in ALL]
    refuses(emulated, "address_of_local", "the address of what is not in shared memory")


UNDEFINED = {
    "read_misaligned": "is not aligned to 16 bytes",
    "read_null": "use of a null pointer",
    "shift_too_far": "shift out of bounds",
    "divide_by_zero": "division by zero",
    "sum_too_large": "overflow of a signed sum",
    "index_too_large": "index out of bounds",
}


@pytest.mark.parametrize(("kernel", "text"), UNDEFINED.items())
def test_undefined_behaviour_is_an_error(ordered, kernel, text):
    refuses(ordered, kernel, f"kernel {kernel}, block 0, thread .*: .*{text}.* at .*basics.cpp:")


def test_aligned_vectors_are_read(ordered):
    assert ordered.run_basic("read_aligned") == [0] * 64


# --------------------------------------------------------------------------------------------
# The rest


def test_numbers_and_atomics(ordered):
    assert ordered.run_basic("numbers", 1) == [1]
    assert ordered.run_basic("add_atomically", 45) == [135] * 45


def test_errors_come_out_as_they_are(ordered):
    with pytest.raises(IndexError, match="thread 3 has thrown"):  # std::out_of_range
        ordered.run_basic("throw_in_thread_3")
    refuses(
        ordered, "fail_in_thread_3", "kernel fail_in_thread_3, block 0, thread 3: thread 3 does"
    )


def test_ops_run_emulated_kernels(ordered):
    a, b = torch.randn(3, 5), torch.randn(5, 4)
    got = ordered.ops.matmul(a, b)
    assert ordered.launches()
    torch.testing.assert_close(got, (a.double() @ b.double()).float())
