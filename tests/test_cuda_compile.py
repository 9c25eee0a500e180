"""The table of `make cuda-compile`: read from what ptxas says, and failing where it must."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

TOOLS = Path(__file__).parents[1] / "tools"
LOG = """
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z3oneIfEvPT_' for 'sm_80'
ptxas info    : Function properties for _Z3oneIfEvPT_
    1168 bytes stack frame, 1488 bytes spill stores, 1508 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 1168 bytes cumulative stack size, 4096 bytes \
smem, 364 bytes cmem[0]
ptxas info    : Compiling entry function '_Z3twov' for 'sm_80'
ptxas info    : Function properties for _Z3twov
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 22 registers, used 0 barriers, 364 bytes cmem[0]
ptxas info    : Function properties for _Z6calledv
    16 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
"""


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module("cuda_compile")


def test_what_ptxas_says(tool):
    usage = tool.read_log(LOG)
    assert usage == {
        "_Z3oneIfEvPT_": tool.Usage(registers=64, shared=4096, stack=1168, spilled=2996),
        "_Z3twov": tool.Usage(registers=22),
        "_Z6calledv": tool.Usage(stack=16),
    }
    assert tool.demangle(list(usage)) == ["one<float>", "two", "called"]


@pytest.mark.parametrize(
    ("name", "short"),
    [
        (
            "void matcalc::cuda::(anonymous namespace)::kernel<float, 4>(matcalc::cuda::Gemm)",
            "kernel<float, 4>",
        ),
        ("matcalc::cuda::(anonymous namespace)::fill(long*, void (*)(int))", "fill"),
        (
            "void k<(matcalc::Dtype)2, (bool)1, (bool)0, (int)-1>(float)",
            "k<(Dtype)2, true, false, -1>",
        ),
        ("void k<matcalc::Complex<double>, __nv_bfloat16>()", "k<Complex<double>, bfloat16>"),
    ],
)
def test_short_names(tool, name, short):
    assert tool.shorten(name) == short


def test_spills_and_stack_frames_are_wrong(tool):
    Usage = tool.Usage
    usages = {
        "a.cu": {
            "good": {"8.0": Usage(40), "9.0a": Usage(255, shared=4096)},
            "spills": {"8.0": Usage(40), "9.0a": Usage(255, spilled=4)},
            "stack": {"8.0": Usage(40, stack=8)},
            "wgmma_gemm<Bf16>": {"9.0a": Usage(168)},
            "wgmma_gemm<F16>": {"9.0a": Usage(160)},
        }
    }
    console = Console(width=120, record=True, quiet=True)
    names = ["a.cu: spills", "a.cu: stack", "a.cu: wgmma_gemm<F16>"]
    assert tool.show(usages, console) == names


def test_without_nvcc_one_sentence(tmp_path):
    command = [sys.executable, str(TOOLS / "cuda_compile.py")]
    environment = {"CUDA_HOME": str(tmp_path), "PATH": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        f"cuda-compile: there is no nvcc in {tmp_path}/bin; install the CUDA toolkit, or set "
        "CUDA_HOME to it.\n"
    )
