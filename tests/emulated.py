"""CUDA's kernels on tensors of the CPU: the `emulated` fixture, and the build behind it.

The ops, their host code and the kernels are compiled once more as plain C++, over the emulation of
CUDA in tests/emulation, into a library of its own whose ops are torch.ops.matcalc_emulated.
"""

import fcntl
import importlib.util
import os
import shlex
import subprocess
import sys
import sysconfig
from functools import cache
from pathlib import Path

import pybind11
import pytest
import torch
from ninja import ninja_syntax

ROOT = Path(__file__).resolve().parent.parent
TAG = f"{sysconfig.get_config_var('SOABI')}-torch-{torch.__version__}"
BUILD = ROOT / "build" / f"emulation-{TAG}"
TORCH = Path(torch.__file__).parent
TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020a000000000000"
TORCH_LIBRARIES = f"-L{TORCH / 'lib'} -ltorch_cpu"
INCLUDES = [
    *("-isystem", pybind11.get_include(), "-isystem", str(TORCH / "include")),
    *("-isystem", sysconfig.get_path("include")),
]
CXX = shlex.split(os.environ.get("CXX", "g++"))
# The checks call tests/emulation/sanitizer.cpp, so that nothing is linked for them.
CHECKS = "alignment,null,shift,integer-divide-by-zero,bounds,signed-integer-overflow"
COMMON = [
    *("-std=c++20", "-O1", "-g0", "-fPIC", "-fvisibility=hidden"),
    *("-Wall", "-Wextra", "-Werror"),
]
FLAGS = [
    *COMMON,
    "-Wno-unknown-pragmas",
    *(f"-fsanitize={CHECKS}", "-fno-sanitize-recover=all"),
    *("-DMATCALC_CUDA", "-DMATCALC_CUDA_EMULATION", "-DMATCALC_NAMESPACE=matcalc_emulated"),
    TORCH_TARGET,
    f"-I{ROOT / 'tests' / 'emulation'}",
    *INCLUDES,
]


def sources() -> list[Path]:
    kernels = set((ROOT / "csrc" / "cuda").glob("*.cu")) - {ROOT / "csrc" / "cuda" / "runtime.cu"}
    return sorted(
        [
            ROOT / "csrc" / "library.cpp",
            *(ROOT / "csrc" / "ops").glob("*.cpp"),
            *(ROOT / "tests" / "emulation").glob("*.cpp"),
            *kernels,
        ]
    )


def compile_library(
    folder: Path, name: str, flags: list[str], sources: dict[Path, list[str]], libraries: str = ""
) -> tuple[Path, str]:
    """Compiles what changed, each source with its own flags: the library, and what went wrong."""
    library = folder / f"{name}.so"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process of tests may be at it
        with open(folder / "build.ninja", "w") as file:
            ninja = ninja_syntax.Writer(file, width=10_000)
            ninja.variable("builddir", str(folder))
            compiling = f"{shlex.join([*CXX, *flags])} $own -MMD -MF $out.d -x c++ -c $in -o $out"
            linking = f"{shlex.join(CXX)} -shared $in {libraries} -o $out"
            ninja.rule("compile", compiling, "compile $in", depfile="$out.d", deps="gcc")
            ninja.rule("link", linking, "link $out")
            objects = []
            for source, own in sources.items():
                output = folder / f"{source.relative_to(ROOT)}.o"
                variables = {"own": shlex.join(own)}
                objects += ninja.build(str(output), "compile", str(source), variables=variables)
            ninja.build(str(library), "link", objects)
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count())
        command = [sys.executable, "-m", "ninja", "-f", str(folder / "build.ninja"), "-j", jobs]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    return library, done.stdout + done.stderr if done.returncode else ""


def load_library(library: Path, error: str):
    if error:
        pytest.fail(f"the emulation did not compile:\n{error}", pytrace=False)
    spec = importlib.util.spec_from_file_location(library.stem, library)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def build() -> tuple[Path, str]:
    """The library of emulated ops, and what went wrong."""
    return compile_library(
        BUILD, "_emulated", FLAGS, {source: [] for source in sources()}, TORCH_LIBRARIES
    )


@cache
def load():
    return load_library(*build())


class Emulated:
    """The emulated ops, and the device that they are made to believe in."""

    def __init__(self):
        self._module = load()
        self.ops = torch.ops.matcalc_emulated

    def set_device(self, major: int, minor: int, multiprocessors: int = 4) -> None:
        """The compute capability, on which the shared memory depends."""
        self._module.set_device(major, minor, multiprocessors)

    def set_order(self, order: str) -> None:
        """In which threads that can run do run: "ascending", "descending" or "shuffled"."""
        self._module.set_order(order)

    def set_tf32(self, allowed: bool) -> None:
        self._module.set_tf32(allowed)

    def launches(self) -> list[tuple[str, int, int]]:
        """Since the last call: each kernel's name, blocks, and threads in a block."""
        return self._module.launches()

    def run_basic(self, name: str, threads: int = 64, blocks: int = 1, shared: int = 8192):
        """What a kernel of tests/emulation/basics.cpp gives: one number for each thread."""
        return self._module.run_basic(name, blocks, threads, shared)


ORDERS = ("ascending", "descending", "shuffled")


@pytest.fixture
def emulated() -> Emulated:
    """Compute capability 8.0, 4 multiprocessors, threads in ascending order, no TF32."""
    handle = Emulated()
    handle.set_device(8, 0)
    handle.set_order("ascending")
    handle.set_tf32(False)
    handle.launches()
    return handle
