"""The command line: what info shows, and that check finds what is wrong."""

import platform
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import matcalc_ext
from matcalc_ext import _C, check
from matcalc_ext.__main__ import main

MATMUL = next(op for op in check.OPS if op.name == "matmul")


def test_info(capsys):
    assert main(["info"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["matcalc_ext"].startswith(matcalc_ext.__version__)
    assert torch.__version__ in lines["torch"]
    assert platform.python_version() in lines["Python"]
    assert "gcc" in lines["compiler"] or "clang" in lines["compiler"]
    assert lines["CPU"].startswith(f"{', '.join(_C.cpu_isas())}; in use: {_C.cpu_isa()}")
    assert lines["threads"].startswith(str(torch.get_num_threads()))
    built = _C.build_info()["cuda"]
    assert lines["CUDA"].startswith("no: ") == (not built)
    assert ("torch finds no GPU" in lines["CUDA"]) == (built and not torch.cuda.is_available())


@pytest.mark.parametrize("isa", _C.cpu_isas())
def test_info_names_the_forced_instruction_set(isa, monkeypatch):
    monkeypatch.setenv("MATCALC_CPU_ISA", isa)
    command = [sys.executable, "-m", "matcalc_ext", "info"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f"in use: {isa} (MATCALC_CPU_ISA={isa})" in output


def test_info_says_that_the_forced_instruction_set_is_not_there(monkeypatch):
    monkeypatch.setenv("MATCALC_CPU_ISA", "avx1024")
    command = [sys.executable, "-m", "matcalc_ext", "info"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert 'no op can run: environment variable MATCALC_CPU_ISA names "avx1024"' in output
    assert "\nthreads " in output


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [(["chekc"], "invalid choice: 'chekc'"), ([], "required: command"), (["info", "x"], "x")],
)
def test_bad_command(arguments, complaint, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "usage: python -m matcalc_ext" in error
    assert complaint in error


@pytest.mark.slow
def test_check_passes_here():
    command = [sys.executable, "-m", "matcalc_ext", "check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    total = len(list(check.checks()))
    assert f"{total} of {total} checks passed" in result.stdout


def test_checks_cover_everything():
    names = {c.name for c in check.checks()}
    for isa in _C.cpu_isas():
        for dtype in ("float64", "float32", "bfloat16", "float16", "complex128", "complex64"):
            for op in check.OPS:
                for what in check.COMPARISONS:
                    assert f"{isa} {dtype} {op.name}: {what}" in names
        for op in check.OPS:
            assert f"{isa} float64 {op.name}: gradgradcheck" in names


def wrong_value(a, b):
    return MATMUL.ours(a, b) * (1 + 1e-9)


def wrong_element(a, b):
    c = MATMUL.ours(a, b)
    return c + torch.zeros_like(c).index_put_((torch.tensor(1), torch.tensor(1)), c.new_ones(()))


def not_a_number(a, b):
    return MATMUL.ours(a, b) * torch.nan


def wrong_dtype(a, b):
    return MATMUL.ours(a, b).float()


def wrong_gradient(a, b):
    return MATMUL.ours(a, b - (b - b.detach()) / 2)


def wrong_second_derivative(a, b):
    return MATMUL.ours(a, b) + ((a - a.detach()) ** 2).sum()


def raises(a, b):
    raise ValueError("no such kernel")


@pytest.mark.parametrize(
    ("ours", "what", "complaint"),
    [
        (wrong_value, "value", "elements are wrong"),
        (wrong_element, "value", "at [1, 1] got"),
        (not_a_number, "value", "got nan"),
        (wrong_dtype, "value", "got torch.float32"),
        (wrong_gradient, "gradient", "output 1"),
        (wrong_gradient, "forward derivative", "elements are wrong"),
        (wrong_gradient, "gradcheck", "Jacobian mismatch"),
        (wrong_second_derivative, "second derivative", "output 0"),
        (wrong_second_derivative, "gradgradcheck", "Jacobian mismatch"),
        (raises, "value", "raised ValueError: no such kernel"),
    ],
)
def test_check_finds_what_is_wrong(ours, what, complaint, monkeypatch, capsys):
    monkeypatch.setattr(check, "OPS", [replace(MATMUL, ours=ours)])
    monkeypatch.setattr(check, "DTYPES", [torch.float64])
    before = _C.cpu_isa()
    assert main(["check"]) == 1
    assert _C.cpu_isa() == before
    output = capsys.readouterr().out
    (line,) = (
        s for s in output.splitlines() if s.startswith(f"FAILED {before} float64 matmul: {what}:")
    )
    assert complaint in line
    assert "something is wrong on this machine" in output
