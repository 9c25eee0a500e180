"""The benchmarks: what they compare is the same work, and what they write can be read."""

import importlib
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

import matcalc_ext
from matcalc_ext import _C
from matcalc_ext.__main__ import main
from matcalc_ext.benchmark import cpu, expressions, libraries, plots, report
from matcalc_ext.benchmark.cases import TABLES, CaseMaker
from matcalc_ext.benchmark.measure import Effort, check, error_of, measure, time_in_turn, wall_clock
from matcalc_ext.benchmark.memory import peak_of

BENCH = Path(__file__).parents[1] / "bench"
GPU_TABLES = ("products", "vectors", "forms", "batches", "nn_bilinear", "overhead")
INSTALLED = libraries.available(1)
ROOFS = {"float32": 1e12, "float64": 5e11, "read": 1e10, "copy": 1e10}
SHORT = Effort(rounds=2, least=1e-4)


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("gpu")


def plan_of(table, group, name):
    (found,) = (p for p in TABLES[table](True) if (p.group, p.name) == (group, name))
    return found


def vector_case(**changes):
    maker = CaseMaker(divide=64, **changes)
    return maker.make(plan_of("vectors", "A x float32", "n = 4096, forward"))


def rows_of(table, group):
    maker = CaseMaker(divide=64)
    plans = [plan for plan in TABLES[table](True) if plan.group == group]
    return [measure(maker.make(plan), wall_clock, SHORT, ROOFS, peak_of) for plan in plans]


# --------------------------------------------------------------------------------------------
# The cases


@pytest.mark.parametrize("table", TABLES)
def test_ours_and_the_peers_do_the_same_work(table):
    maker = CaseMaker(divide=16, libraries=INSTALLED)
    plans = {(plan.group, plan.name): plan for plan in TABLES[table](True)}
    assert {(plan.group, plan.name) for plan in TABLES[table](False)} <= set(plans)
    # A library compiles each case: one of each dtype and kind is enough for them.
    asked = set()
    for plan in plans.values():
        kind = (plan.work, plan.dtype, plan.out is None, plan.fixed)
        maker = replace(maker, libraries=() if kind in asked else INSTALLED)
        asked.add(kind)
        case = maker.make(plan)
        errors, left_out = check(case)  # raises where ours is wrong
        assert left_out == {}
        assert list(errors) == ["ours", *case.peers]


@pytest.mark.parametrize("table", GPU_TABLES)
def test_on_a_gpu_too(gpu, table):
    assert list(gpu.TABLES) == list(GPU_TABLES)
    maker = CaseMaker(cache=1, divide=64)
    for plan in gpu.TABLES[table]():
        _, left_out = check(maker.make(plan))
        assert left_out == {}


@pytest.mark.parametrize("library", INSTALLED, ids=lambda library: library.name)
def test_each_library_is_asked(library):
    plans = [plan for table in TABLES.values() for plan in table(False)]
    cases = [CaseMaker(divide=64, libraries=[library]).make(plan) for plan in plans]
    having = [case for case in cases if library.name in case.peers]
    assert len(having) >= 10
    for case in having:
        assert (library.name in case.foreign) == library.foreign
        assert (library.name in case.apart) == library.spins


def test_numpy_is_there_and_the_others_may_be():
    assert "numpy" in [library.name for library in INSTALLED]
    assert {library.name for library in INSTALLED} <= {"numpy", "opt_einsum", "JAX", "numba"}


def test_a_wrong_result_is_found():
    case = vector_case()
    right = case.ours
    case.ours = lambda: right() * 1.001
    with pytest.raises(AssertionError, match=r"A x float32, n = 4096, forward: off by 0\.001"):
        check(case)


def test_a_peer_that_is_wrong_or_fails_is_left_out():
    case = vector_case()
    right = case.ours
    case.peers["wrong"] = lambda: right() * torch.nan
    case.peers["fails"] = lambda: torch.ones(2) @ torch.ones(3)
    row = measure(case, wall_clock, SHORT, ROOFS, peak_of)
    assert row.left_out["wrong"] == "off by inf"
    assert "inconsistent tensor size" in row.left_out["fails"]
    assert list(row.peers) == ["torch.matmul"]


def test_a_result_of_another_shape_is_wrong():
    assert error_of(torch.ones(2), torch.ones(1, 2)) == float("inf")
    assert error_of((torch.ones(2), torch.zeros(3)), (torch.ones(2), torch.ones(3))) == 1


def test_a_single_number_is_compared_with_sums_that_do_not_cancel():
    value, grad = torch.tensor(1e-9), torch.tensor([3.0, 4.0])
    off = (value + 1e-6, grad * 1.5)
    assert error_of(off, (value, grad)) > 900
    assert error_of(off, (value, grad), (torch.tensor(100.0), grad)) == 0.5
    assert error_of(value + 1, value, torch.tensor(100.0)) == pytest.approx(0.1)
    plan = next(plan for plan in TABLES["forms"](False) if plan.group == "bilinear float32")
    case = CaseMaker(divide=16).make(plan)
    assert case.squares is not None
    size = case.squares().sqrt()
    case.tolerance, ours = 1e-3, case.ours
    case.ours = lambda: ours() + 0.9e-3 * size
    assert check(case)[0]["ours"] == pytest.approx(0.9e-3, rel=1e-2)


def test_the_libraries_leave_torch_its_number_of_threads():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        libraries.available(1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_calls_go_through_all_sets_of_inputs():
    case = vector_case(cache=1)
    first, second, third = (case.ours() for _ in range(3))
    assert torch.equal(first, third)
    assert not torch.equal(first, second)


# --------------------------------------------------------------------------------------------
# Measuring


def test_turns(monkeypatch):
    """Each of three in each round, after as long untimed; slow ones are called once."""
    monkeypatch.setattr("time.sleep", lambda seconds: calls.append(("sleep", seconds)))
    calls = []
    seconds = {"fast": 0.0625, "middle": 0.125, "slow": 8.0}

    def clock(function, repeats):
        calls.append((function, repeats))
        return seconds[function] * repeats

    effort = Effort(rounds=3, least=1.0, settle=0.1)
    assert time_in_turn(list(seconds), clock, effort) == [[0.0625] * 3, [0.125] * 3, [8.0] * 3]
    fast, middle = [("fast", 2), ("fast", 16)], [("middle", 1), ("middle", 8)]
    assert calls[5:] == [*fast, *middle, ("sleep", 0.1), ("slow", 1)] * 3
    few = time_in_turn(list(seconds), clock, replace(effort, rounds=100, most=40))
    assert [len(rounds) for rounds in few] == [3] * 3
    more = time_in_turn(["fast", "middle"], clock, replace(effort, rounds=100, most=40))
    assert [len(rounds) for rounds in more] == [18] * 2


def test_a_peer_that_disturbs_is_timed_after_the_others():
    order = []
    case = vector_case()

    def call(name, function):
        return lambda: (order.append(name), function())[1]

    case.peers = {"loud": call("loud", case.ours), "torch": call("torch", case.ours)}
    case.foreign = case.apart = frozenset({"loud"})
    case.ours = call("ours", case.ours)
    row = measure(case, wall_clock, SHORT, ROOFS, peak_of)
    timed = order[order.index("loud") + 1 :]  # after the check
    first = timed.index("loud")
    assert set(timed[:first]) == {"ours", "torch"}
    assert set(timed[first:-1]) == {"loud"}
    assert row.best == "torch"  # of torch's ways
    assert row.of_all <= row.ratio
    assert set(row.peaks) == {"ours", "torch"}


def test_the_peak_is_what_is_held_at_once():
    a = torch.randn(256, 256)
    assert peak_of(lambda: a @ a) == a.nbytes
    assert peak_of(lambda: (a @ a) @ a) == 2 * a.nbytes
    assert peak_of(lambda: matcalc_ext.matmul(a, a)) == a.nbytes


def test_the_machine_s_limits():
    roofs = _C.cpu_roofs()
    assert set(roofs) - {"bfloat16"} == {"float32", "float64", "read", "copy"}
    assert ("bfloat16" in roofs) == _C.cpu_isa().endswith("bf16")
    assert all(1e8 < roof < 1e15 for roof in roofs.values())
    assert roofs["float32"] > roofs["float64"]


def test_a_bfloat16_product_without_its_instruction_has_the_limit_of_float32():
    plan = plan_of("products", "matmul bfloat16", "n = 256, forward")
    case = CaseMaker(divide=64).make(plan)
    assert measure(case, wall_clock, SHORT, ROOFS, peak_of).roof == "float32"
    row = measure(case, wall_clock, SHORT, {**ROOFS, "bfloat16": 2e12}, peak_of)
    assert row.roof == "bfloat16"
    assert row.share == pytest.approx(2 * 256**3 / row.ours / 2e12)


def test_kept_working_memory_is_counted():
    a = torch.randn(600, 600)
    matcalc_ext.matmul(a, a)
    assert 100_000 < _C.cpu_scratch_bytes() < 1 << 30


# --------------------------------------------------------------------------------------------
# What is shown and kept


def test_files(tmp_path):
    rows = rows_of("vectors", "A x float32")
    rows[0].left_out["numpy"] = "no such dtype"
    where = {"device": "none", "read roof": "1 GB/s"}
    report.print_rows(rows, Console(quiet=True))
    report.write_json(tmp_path / "new" / "rows.json", where, rows)
    report.write_markdown(tmp_path / "new" / "rows.md", where, rows, "What it means.")
    plots.plot_ratios(tmp_path / "new" / "rows.png", "overhead", where, rows)
    plots.plot_groups(tmp_path / "new" / "groups.png", "overhead", where, rows)
    assert plots.plot_shares(tmp_path / "new" / "roofs.png", "overhead", where, rows)
    assert report.read_json(tmp_path / "new" / "rows.json") == (where, rows)
    text = (tmp_path / "new" / "rows.md").read_text()
    assert text.startswith("# rows\n\nWhat it means.\n\ndevice: none, read roof: 1 GB/s\n")
    assert "\n\n## A x float32\n\n| " in text
    assert "| n = 4096, forward " in text
    assert "numpy: no such dtype" in text
    for name in ("rows.png", "groups.png", "roofs.png"):
        assert (tmp_path / "new" / name).read_bytes().startswith(b"\x89PNG")


def test_without_limits_there_is_nothing_to_draw_against(tmp_path):
    rows = rows_of("calls", "call, matmul")
    assert not plots.plot_shares(tmp_path / "roofs.png", "", {}, rows)
    assert not (tmp_path / "roofs.png").exists()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1.5e-6, "1.5 µs"), (9.996e-4, "1 ms"), (0.25, "250 ms"), (0.9999, "1 s"), (12.0, "12 s")],
)
def test_durations(seconds, text):
    row = replace(rows_of("calls", "call, matmul")[0], ours=seconds)
    (table,) = report.tables_of([row], report.box.SIMPLE).values()
    assert list(table.columns[1].cells) == [text]


def test_comparison(capsys):
    rows = rows_of("calls", "call, matmul")
    old = [replace(row, ours=2 * row.ours, ratio=row.ratio / 2) for row in rows[:-1]]
    report.print_comparison(({"a": 1, "b": 1}, old), ({"a": 2, "b": 1}, rows), Console(width=150))
    output = capsys.readouterr().out
    assert "compared with an earlier run: a was 1 and is 2" in output
    assert rows[-1].case not in output
    lines = [line for line in output.splitlines() if "call, matmul" in line]
    assert len(lines) == len(rows) - 1
    assert all(" 2.00 " in line for line in lines)
    report.print_comparison(({}, []), ({}, rows), Console(width=150))
    assert "no row is in both runs" in capsys.readouterr().out


# --------------------------------------------------------------------------------------------
# The commands


def test_command(tmp_path, capsys):
    first, second = tmp_path / "first.json", tmp_path / "second"
    arguments = ["bench", "--only", "call, bilinear", "--rounds", "1", "--threads", "1"]
    assert main([*arguments, "--json", str(first)]) == 0
    output = capsys.readouterr().out
    assert "call, bilinear" in output
    assert "n = 16, forward + backward" in output
    assert "threads: 1" in output
    content = json.loads(first.read_text())
    assert content["environment"]["torch"] == torch.__version__
    assert [row["case"] for row in content["rows"]] == [
        "n = 16, forward",
        "n = 16, forward + backward",
    ]
    assert main([*arguments, "--out", str(second), "--compare", str(first)]) == 0
    assert "then / now" in capsys.readouterr().out
    assert {"cpu.json", "cpu.md", "groups.png", "speedup.png"} == {
        path.name for path in second.iterdir()
    }


def test_a_wrong_case_fails_the_command(monkeypatch, capsys):
    def wrong(y, A, x):
        return matcalc_ext.bilinear(y, A, x) * 1.1

    plans = [
        replace(plan, functions={**plan.functions, "ours": wrong})
        for plan in TABLES["calls"](False)
        if "bilinear" in plan.group
    ]
    monkeypatch.setattr(cpu, "TABLES", {"calls": lambda full: iter(plans)})
    assert main(["bench", "--rounds", "1"]) == 1
    output = capsys.readouterr().out
    assert re.search(r"WRONG call, bilinear, n = 16, forward: off by 0\.\d+, allowed", output)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--threads", "0"], "--threads is 0, expected 1 or more"),
        (["--rounds", "-1"], "--rounds is -1, expected 1 or more"),
        (["--compare", "nowhere.json"], "nowhere.json cannot be read: No such file or directory"),
        (["--compare", __file__], "test_bench.py does not hold the rows of a benchmark"),
        (["--only", "no such group"], "no group's name contains 'no such group'"),
    ],
)
def test_mistakes(arguments, complaint, capsys):
    assert main(["bench", *arguments]) == 2
    assert complaint in capsys.readouterr().err


def test_drawing_needs_matplotlib(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(cpu, "find_spec", lambda name: None)
    assert main(["bench", "--out", str(tmp_path)]) == 2
    assert "`pip install matplotlib`" in capsys.readouterr().err


def test_ctrl_c_shows_what_there_is(monkeypatch, capsys):
    plans = [plan for plan in TABLES["calls"](False) if "matmul" in plan.group]

    def interrupted(*tensors):
        raise KeyboardInterrupt

    plans[1] = replace(plans[1], functions={**plans[1].functions, "ours": interrupted})
    monkeypatch.setattr(cpu, "TABLES", {"calls": lambda full: iter(plans)})
    assert main(["bench", "--rounds", "1"]) == 0
    output = capsys.readouterr().out
    assert "interrupted" in output
    assert "n = 16, forward" in output


def test_without_a_gpu_one_sentence():
    command = [sys.executable, str(BENCH / "gpu.py")]
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(BENCH.parent)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=hidden)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        "bench/gpu.py: torch sees no CUDA GPU; `python -m matcalc_ext bench` needs none.\n"
    )


def test_the_parts_of_a_call(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    lines = importlib.import_module("calls").lines()
    for call in lines.values():
        call()
    a, b = lines["matcalc_ext.matmul, forward + backward"]()
    c, d = lines["torch.matmul, forward + backward"]()
    torch.testing.assert_close((a, b), (c, d))


def test_an_einsum_is_what_it_says():
    x1, x2, weight, bias = (torch.randn(s) for s in ((3, 2), (3, 4), (5, 2, 4), (5,)))
    expected = torch.nn.functional.bilinear(x1, x2, weight, bias)
    torch.testing.assert_close(expressions.NN_BILINEAR(x1, x2, weight, bias), expected)
