"""The command line: `python -m matcalc_ext info`, `check` and `bench`."""

import argparse
import os
import platform
import sys
from collections.abc import Sequence

import torch

from . import _C, __version__, check
from .benchmark import cpu as bench


def info() -> int:
    """Prints what this installation is and what it found on this machine."""
    built = _C.build_info()
    forced = os.environ.get("MATCALC_CPU_ISA")
    reason = f"MATCALC_CPU_ISA={forced}" if forced else "the fastest"
    try:
        in_use = f"in use: {_C.cpu_isa()} ({reason})"
    except RuntimeError as error:
        in_use = f"no op can run: {error}"
    facts = {
        "matcalc_ext": f"{__version__} in {os.path.dirname(__file__)}",
        "torch": f"{torch.__version__} (built for {built['torch_target']} and later)",
        "Python": f"{platform.python_version()} on {platform.platform()}",
        "compiler": built["compiler"],
        "CPU": f"{', '.join(_C.cpu_isas())}; {in_use}",
        "threads": f"{torch.get_num_threads()} (torch.set_num_threads)",
        "CUDA": cuda(),
    }
    for name, fact in facts.items():
        print(f"{name:12} {fact}")
    return 0


def cuda() -> str:
    """Whether CUDA's kernels are there and can run, or why not."""
    if not _C.build_info()["cuda"]:
        return (
            "no: built without CUDA kernels (they are built where nvcc is found and torch is a "
            "build for CUDA)"
        )
    if not torch.cuda.is_available():
        return "built, but torch finds no GPU"
    gpus = []
    for i in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(i)
        gpus.append(f"{torch.cuda.get_device_name(i)} ({major}.{minor})")
    return f"{', '.join(gpus)}; torch built for CUDA {torch.version.cuda}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m matcalc_ext", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    commands.add_parser("info", help="show versions, instruction sets, threads and CUDA")
    commands.add_parser("check", help="test every op and every derivative on this CPU")
    bench.add_arguments(
        commands.add_parser("bench", help="time the ops against torch and others on this machine")
    )
    parsed = parser.parse_args(arguments)
    if parsed.command == "bench":
        return bench.run(parsed)
    return info() if parsed.command == "info" else int(check.run() > 0)


if __name__ == "__main__":
    sys.exit(main())
