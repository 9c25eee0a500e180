"""Compiles every CUDA source with warnings as errors, and shows what each kernel takes.

No GPU is needed for it, and no CUDA build of torch: only nvcc, and the headers of any torch. A
kernel that spills registers, or keeps a stack frame, fails: both are memory traffic that nobody
wrote. The C++ sources that differ in a build with CUDA are checked too.

    python tools/cuda_compile.py [--jobs N]
"""

import argparse
import re
import shlex
import subprocess
import sys
import sysconfig
from collections import defaultdict
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from cuda_build import TORCH_TARGET_DEFINE, CudaBuild, Unavailable, find_nvcc, nvcc_version
from ninja import ninja_syntax
from rich.console import Console
from rich.markup import escape
from rich.table import Table

FOLDER = Path("build/cuda-compile")
ARCHITECTURES = ("7.5", "8.0", "9.0a")
STRICT = ["-Werror", "all-warnings", "-Xptxas", "-v,-warn-spills"]
# Kernels that hand registers from warp to warp: what they begin with has to be what they hand on,
# or the warps that take more wait for ever.
EXACT_REGISTERS = {"wgmma_gemm": {"9.0a": 168}}
SERIALIZED = "wgmma.mma_async instructions are serialized"  # says ptxas, and goes on


@dataclass
class Usage:
    """What ptxas says of one function: registers of a thread, and bytes."""

    registers: int = 0
    shared: int = 0
    stack: int = 0
    spilled: int = 0


def host_command(packages: list[Path]) -> str:
    """Reads a C++ source as the compiler does for a build with CUDA, and makes nothing of it."""
    includes = [path / "include" for path in packages] + [Path(sysconfig.get_path("include"))]
    return shlex.join(
        [
            *("g++", "-std=c++20", "-fsyntax-only", "-Wall", "-Wextra", "-Werror"),
            *("-DMATCALC_CUDA", TORCH_TARGET_DEFINE),
            *(word for path in includes for word in ("-isystem", str(path))),
        ]
    )


def write_ninja(nvcc: Path, torch: Path, pybind11: Path) -> dict[tuple[str, str], Path]:
    """Writes the build file; the log of each source and architecture."""
    logs = {}
    FOLDER.mkdir(parents=True, exist_ok=True)
    with open(FOLDER / "build.ninja", "w") as file:
        ninja = ninja_syntax.Writer(file, width=10_000)
        ninja.variable("builddir", str(FOLDER))
        command = f"{host_command([pybind11, torch])} -MMD -MF $out.d -MT $out $in && touch $out"
        ninja.rule("host", command, "g++ $in", depfile="$out.d", deps="gcc")
        for path in sorted(Path("csrc").rglob("*.cpp")):
            if "MATCALC_CUDA" in path.read_text():
                ninja.build(str(FOLDER / f"{path.name}.checked"), "host", str(path))
        for architecture in ARCHITECTURES:
            build = CudaBuild(nvcc, "", [architecture])
            command = shlex.join([*build.command(torch), *STRICT])
            rule = "nvcc_" + re.sub(r"\W", "_", architecture)
            # Of a failure without the statistics and spills, which the table shows.
            ninja.rule(
                rule,
                f"{command} $code -MD -MF $out.d -c $in -o $out > $out.log 2>&1 || "
                "{ grep -v -e 'ptxas info' -e 'bytes s' $out.log; exit 1; }",
                f"nvcc {architecture} $in",
                depfile="$out.d",
                deps="gcc",
            )
            for source in build.sources():
                target = FOLDER / f"{Path(source).name}.{architecture}.o"
                code = {"code": shlex.join(build.code_flags(source))}
                ninja.build(str(target), rule, source, variables=code)
                logs[source, architecture] = Path(f"{target}.log")
    return logs


def read_log(text: str) -> dict[str, Usage]:
    """What ptxas says with -v, by mangled name."""
    usage: dict[str, Usage] = defaultdict(Usage)
    entry = function = ""
    for line in text.splitlines():
        if found := re.search(r"Compiling entry function '(\S+)'", line):
            entry = found[1]
        elif found := re.search(r"Function properties for (\S+)", line):
            function = found[1]
        elif found := re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line
        ):
            usage[function].stack = int(found[1])
            usage[function].spilled = int(found[2]) + int(found[3])
        elif found := re.search(r"Used (\d+) registers", line):
            usage[entry].registers = int(found[1])
            shared = re.search(r"(\d+) bytes smem", line)
            usage[entry].shared = int(shared[1]) if shared else 0
    return usage


def demangle(names: list[str]) -> list[str]:
    result = subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
    )
    return [shorten(name) for name in result.stdout.splitlines()]


def shorten(name: str) -> str:
    """The kernel and its template arguments, without namespaces and parameters."""
    name = re.sub(r"\(anonymous namespace\)::|\bmatcalc::(cuda::)?", "", name)
    name = re.sub(r"\(bool\)([01])", lambda found: ("false", "true")[int(found[1])], name)
    name = re.sub(r"\((?:unsigned )?(?:int|long)\)(?=-?\d)", "", name)
    name = name.replace("__nv_bfloat16", "bfloat16").replace("__half", "half")
    depth = 0
    for at in range(len(name) - 1, -1, -1):  # from the end, to the bracket of the parameters
        depth += {")": 1, "(": -1}.get(name[at], 0)
        if name[at] == "(" and depth == 0:
            name = name[:at]
            break
    return name.removeprefix("void ").strip()


def is_wrong(kernel: str, architecture: str, usage: Usage) -> bool:
    exact = EXACT_REGISTERS.get(kernel.partition("<")[0], {}).get(architecture, usage.registers)
    return usage.spilled > 0 or usage.stack > 0 or usage.registers != exact


def show(usages: dict[str, dict[str, dict[str, Usage]]], console: Console) -> list[str]:
    """Prints the table, by source, kernel and architecture; the names of what is wrong in it."""
    wrong = []
    header = " / ".join(ARCHITECTURES)
    columns = ("registers", "shared", "stack", "spilled")
    table = Table("kernel", *(f"{column}\n{header}" for column in columns))
    for source, kernels in usages.items():
        table.add_section()
        table.add_row(f"[bold]{source}")
        for kernel, by_architecture in sorted(kernels.items()):
            rows = [by_architecture.get(name) for name in ARCHITECTURES]
            bad = any(is_wrong(kernel, name, row) for name, row in by_architecture.items())
            table.add_row(
                escape(kernel),
                *(
                    " / ".join("-" if row is None else str(getattr(row, column)) for row in rows)
                    for column in columns
                ),
                style="red" if bad else "",
            )
            if bad:
                wrong.append(f"{source}: {kernel}")
    console.print(table)
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description="Compile the CUDA sources, without a GPU.")
    parser.add_argument("--jobs", type=int, default=2)
    jobs = parser.parse_args().jobs
    try:
        nvcc = find_nvcc()
        version = nvcc_version(nvcc)
    except Unavailable as reason:
        sys.exit(f"cuda-compile: {reason}; install the CUDA toolkit, or set CUDA_HOME to it.")
    # Found, not imported: only their headers are needed.
    specs = [find_spec(name) for name in ("torch", "pybind11")]
    folders = [Path(spec.origin).parent for spec in specs if spec is not None and spec.origin]
    if len(folders) < len(specs):
        sys.exit("cuda-compile: this needs torch and pybind11; `make env` installs them.")
    logs = write_ninja(nvcc, *folders)
    command = [sys.executable, "-m", "ninja", "-f", str(FOLDER / "build.ninja")]
    failed = subprocess.run([*command, "-j", str(jobs), "-k", "0"], check=False).returncode != 0

    usages: dict[str, dict[str, dict[str, Usage]]] = {}
    for (source, architecture), log in sorted(logs.items()):
        usage = read_log(log.read_text()) if log.exists() else {}
        for kernel, row in zip(demangle(list(usage)), usage.values(), strict=True):
            usages.setdefault(source, {}).setdefault(kernel, {})[architecture] = row
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    console.print(f"nvcc {version}; all but registers in bytes; shared without what a launch adds")
    wrong = show(usages, console)
    if wrong:
        console.print(
            "[red]These kernels spill registers, have a stack frame, or do not take exactly the "
            "registers that they hand on:"
        )
        console.print(escape("\n".join(wrong)), soft_wrap=True, highlight=False)
    elif failed:
        console.print("[red]A source did not compile without a warning: see above the table.")
    for (source, architecture), log in logs.items():
        if log.exists() and SERIALIZED in log.read_text():
            console.print(f"[red]{source}, {architecture}: {SERIALIZED}")
            failed = True
    if not wrong and not failed:
        kernels = sum(len(of_source) for of_source in usages.values())
        console.print(f"{kernels} kernels in {len(usages)} files, no spill and no stack frame.")
    return int(failed or bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
