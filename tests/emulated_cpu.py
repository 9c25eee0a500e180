"""The CPU's kernels on a processor with AVX-512 and AMX, whatever the host's: a plugin of pytest.

Compiled once more over the emulation in tests/emulation/x86, the module takes the place of
matcalc_ext._C in the process: `PYTHONPATH=tests python -m pytest -p emulated_cpu tests/...`.
"""

import importlib.abc
import importlib.util
import sys

import pytest
from emulated import (
    COMMON,
    INCLUDES,
    ROOT,
    TAG,
    TORCH_LIBRARIES,
    TORCH_TARGET,
    compile_library,
)

FOLDER = ROOT / "tests" / "emulation" / "x86"
CPU = ROOT / "csrc" / "cpu"
# What a kernel for AVX2 is compiled with, and what stands in for the rest.
HOST = ["-march=x86-64-v3"]
EMULATION = [*HOST, "-Wno-psabi", "-D__AVX512BF16__"]
for part in ("avx512", "amx"):
    EMULATION += ["-include", str(FOLDER / f"{part}_emulation.h")]


def flags_of(source):
    """A source's own flags, by the instruction set in its name, as in setup.py."""
    if "avx512" in source.name or "amxbf16" in source.name:
        return EMULATION
    return HOST if "avx2" in source.name else []


def compile_cpu(name, sources, more_flags=(), libraries=""):
    """The library of these sources and the emulation, and what went wrong."""
    flags = [*COMMON, *INCLUDES, *more_flags]
    own = {source: flags_of(source) for source in sources}
    own[FOLDER / "amx_emulation.cpp"] = EMULATION
    return compile_library(ROOT / "build" / f"emulation{name}-{TAG}", name, flags, own, libraries)


class Finder(importlib.abc.MetaPathFinder):
    """Finds matcalc_ext._C in the library."""

    def find_spec(self, name, path=None, target=None):
        """As importlib asks."""
        if name != "matcalc_ext._C":
            return None
        sources = {*(ROOT / "csrc").glob("**/*.cpp"), FOLDER / "processor.cpp"}
        sources.remove(CPU / "processor.cpp")
        defines = (TORCH_TARGET, '-DMATCALC_VERSION="emulated"')
        library, error = compile_cpu("_C", sorted(sources), defines, TORCH_LIBRARIES)
        if error:
            raise ImportError(f"the emulation did not compile:\n{error}")
        return importlib.util.spec_from_file_location(name, library)


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests():
    """Before tests/conftest.py imports the module."""
    sys.meta_path.insert(0, Finder())
