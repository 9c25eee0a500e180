"""The benchmarks: what they compare is the same work, and what they write can be read."""

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

BENCH = Path(__file__).parents[1] / "bench"
TABLES = ("products", "vectors", "forms", "batches", "nn_bilinear", "overhead")


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("gpu")


def cases(gpu, table):
    """At a sixty-fourth of the sizes, on the CPU."""
    return gpu.TABLES[table](gpu.Bench("cpu", l2=1, divide=64))


def clock(function, repeats):
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    return time.perf_counter() - start


@pytest.mark.parametrize("table", TABLES)
def test_ours_and_the_peers_do_the_same_work(gpu, table):
    assert list(gpu.TABLES) == list(TABLES)
    for case in cases(gpu, table):
        peers = list(case.peers)
        errors = gpu.check(case)  # raises where ours is wrong
        assert list(errors) == ["ours", *peers]
        assert list(case.peers) == peers, f"{case.group}, {case.name}: {errors}"


def test_a_wrong_result_is_found(gpu):
    case = next(cases(gpu, "vectors"))
    right = case.ours
    case.ours = lambda: right() * 1.001
    with pytest.raises(AssertionError, match=r"A x float32, forward, n = 64: off by 0\.001"):
        gpu.check(case)


def test_a_peer_that_is_wrong_or_fails_is_left_out(gpu):
    case = next(cases(gpu, "vectors"))
    right = case.ours
    case.peers["wrong"] = lambda: right() * torch.nan
    case.peers["fails"] = lambda: torch.ones(2) @ torch.ones(3)
    assert gpu.check(case)["wrong"] == float("inf")
    assert list(case.peers) == ["torch.matmul"]


def test_calls_go_through_all_sets_of_inputs(gpu):
    case = next(cases(gpu, "vectors"))
    first, second, third = (case.ours() for _ in range(3))
    assert torch.equal(first, third)
    assert not torch.equal(first, second)


def test_files(gpu, tmp_path):
    rows = [gpu.measure(case, 2, clock, 1e-4) for case in cases(gpu, "overhead")]
    rows[0].more["GB/s"] = 1.5
    where = {"device": "none"}
    gpu.print_rows(rows, Console(quiet=True))
    gpu.write_json(tmp_path / "new" / "rows.json", where, rows)
    gpu.plot(tmp_path / "new" / "rows.png", "overhead", where, rows)
    content = json.loads((tmp_path / "new" / "rows.json").read_text())
    assert content["environment"] == where
    assert [row["case"] for row in content["rows"]] == [row.case for row in rows]
    assert (tmp_path / "new" / "rows.png").read_bytes().startswith(b"\x89PNG")


def test_without_a_gpu_one_sentence():
    command = [sys.executable, str(BENCH / "gpu.py")]
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(BENCH.parent)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=hidden)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == "bench/gpu.py: torch sees no CUDA GPU here; bench/cpu.py times the CPU.\n"
