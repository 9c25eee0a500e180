"""The instruction sets that the host lacks, emulated: the tests of the kernels, once more."""

import os
import subprocess
import sys

import pytest
from emulated import ROOT

from matcalc_ext import _C

MISSING = [isa for isa in ("avx512", "avx512_bf16", "amx_bf16") if isa not in _C.cpu_isas()]
# The emulation is written for AVX2.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not MISSING, reason="the host has them all"),
    pytest.mark.skipif("avx2" not in _C.cpu_isas(), reason="the host has no AVX2"),
]


@pytest.mark.parametrize(
    "tests",
    (
        "test_instruction_sets.py",
        "test_forms_isa.py",
        "test_small_isa.py",
        "test_vectors_isa.py",
        "test_integers_isa.py",
        "test_random_operands.py::test_value_and_gradients",  # of which every call draws its own
    ),
)
def test_kernels(tests):
    command = [sys.executable, "-m", "pytest", "-p", "emulated_cpu", "-p", "no:cacheprovider"]
    chosen = [] if "::" in tests else ["-k", " or ".join(MISSING)]
    done = subprocess.run(
        [*command, "-q", *chosen, f"tests/{tests}"],
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": "tests", "MATCALC_CPU_ISA": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert " passed" in done.stdout
