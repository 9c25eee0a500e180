"""Builds the extension module matcalc_ext._C with ninja; all other facts stand in pyproject.toml.

torch is only located, never imported: its headers and libraries are all that is needed here.
"""

import os
import platform
import re
import shlex
import subprocess
import sys
import sysconfig
from functools import cache
from glob import glob
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

sys.path.insert(0, os.path.abspath("tools"))  # setuptools runs this file in its own folder
import cuda_build

CXX = shlex.split(os.environ.get("CXX", "g++"))
CXXFLAGS = ["-O3", "-std=c++20", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
AVX2 = "-mavx2 -mfma -mf16c"
AVX512 = f"{AVX2} -mavx512f -mavx512bw -mavx512vl -mavx512dq -mprefer-vector-width=512"
# A file with the word in its name is compiled for that instruction set, and is called only where
# the processor has it. Elsewhere than on x86 such a file compiles to nothing.
ISA_FLAGS = {
    "avx2": AVX2,
    "avx512": AVX512,
    "avx512bf16": "-mavx512bf16",
    "amxbf16": f"{AVX512} -mavx512bf16 -mamx-tile -mamx-bf16",
}
X86 = platform.machine().lower() in ("x86_64", "amd64", "i686")


def stop(sentence):
    raise SystemExit(f"matcalc_ext: {sentence}")


def locate(package, minimum=(0,)):
    """The folder of an installed package; stops where it is missing or too old."""
    spec = find_spec(package)
    found = version(package) if spec else "none (pip's build isolation hides what is installed)"
    if not spec or tuple(map(int, re.findall(r"\d+", found)[: len(minimum)])) < minimum:
        wanted = f"{package}>={'.'.join(map(str, minimum))}" if any(minimum) else package
        stop(
            f"this build needs {wanted} and sees {found}: type `pip install 'torch>=2.10' "
            "'setuptools>=77' ninja pybind11`, then `pip install --no-build-isolation .`."
        )
    return Path(spec.origin).parent


def check_compiler():
    command = [*CXX, "-std=c++20", "-fsyntax-only", "-x", "c++", "-"]
    try:
        source = b"#include <concepts>\nstatic_assert(std::integral<int>);\n"
        works = not subprocess.run(
            command, check=False, input=source, capture_output=True
        ).returncode
    except OSError:
        works = False
    if not works:
        stop(
            f"`{shlex.join(CXX)}` does not compile C++20: install GCC 11 or Clang 14 or newer, and "
            "name it if it is not g++, as in `CXX=clang++ pip install --no-build-isolation .`."
        )


@cache
def cuda_half():
    """How the CUDA kernels are built here (None: not at all), and a sentence that says why."""
    try:
        return cuda_build.plan(torch)
    except ValueError as mistake:
        stop(mistake)


class NinjaBuild(build_ext):
    """Compiles with ninja, so that a second build compiles only what changed."""

    def finalize_options(self):
        super().finalize_options()
        # Fixed, where an editable install would start anew in a temporary folder each time.
        self.build_temp = f"build/{sysconfig.get_config_var('SOABI')}-torch-{version('torch')}"

    def build_extension(self, ext):
        from ninja import ninja_syntax

        # pybind11's own first: torch before 2.13 has a copy that refuses TORCH_TARGET_VERSION.
        includes = [pybind11 / "include", torch / "include", sysconfig.get_path("include")]
        flags = [*CXXFLAGS, *(part for path in includes for part in ("-isystem", str(path)))]
        flags.append(cuda_build.TORCH_TARGET_DEFINE)
        flags.append(f'-DMATCALC_VERSION="{self.distribution.get_version()}"')
        libraries = [f"-L{torch / 'lib'}", "-ltorch_cpu"]
        cuda, sentence = cuda_half()
        print(f"matcalc_ext: {sentence}", flush=True)
        if cuda:
            flags.append("-DMATCALC_CUDA")
            libraries += cuda.libraries(torch)
        flags += shlex.split(os.environ.get("CXXFLAGS", ""))  # last, so that the caller's win
        libraries += shlex.split(os.environ.get("LDFLAGS", ""))

        folder, target = Path(self.build_temp), Path(self.get_ext_fullpath(ext.name))
        folder.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(folder / "build.ninja", "w") as file:
            ninja = ninja_syntax.Writer(file, width=10_000)
            ninja.variable("builddir", str(folder))
            compiling = f"{shlex.join([*CXX, *flags])} $isa -MMD -MF $out.d -c $in -o $out"
            linking = f"{shlex.join(CXX)} -shared $in {shlex.join(libraries)} -o $out"
            ninja.rule("compile", compiling, "compile $in", depfile="$out.d", deps="gcc")
            ninja.rule("link", linking, "link $out")
            objects = []
            for source in ext.sources:
                isa = " ".join(ISA_FLAGS[word] for word in ISA_FLAGS if X86 and word in source)
                objects += ninja.build(
                    f"{folder / source}.o", "compile", source, variables={"isa": isa}
                )
            if cuda:
                compiling = f"{shlex.join(cuda.command(torch))} $code -MD -MF $out.d -c $in -o $out"
                ninja.rule("nvcc", compiling, "nvcc $in", depfile="$out.d", deps="gcc")
            for source in cuda.sources() if cuda else []:
                code = {"code": shlex.join(cuda.code_flags(source))}
                objects += ninja.build(f"{folder / source}.o", "nvcc", source, variables=code)
            ninja.build(str(target), "link", objects)
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count())
        command = [sys.executable, "-m", "ninja", "-f", str(folder / "build.ninja"), "-j", jobs]
        if subprocess.run(command, check=False).returncode:
            stop("the compiler failed; its first error stands above (`pip -v` shows all of it).")


torch = locate("torch", cuda_build.TORCH_TARGET)
pybind11 = locate("pybind11")
locate("ninja")
locate("setuptools", (77,))  # the first to read a licence as pyproject.toml writes it
if {"build_ext", "bdist_wheel", "editable_wheel"} & set(sys.argv):
    check_compiler()
    cuda_half()
setup(
    ext_modules=[Extension("matcalc_ext._C", sorted(glob("csrc/**/*.cpp", recursive=True)))],
    cmdclass={"build_ext": NinjaBuild},
)
