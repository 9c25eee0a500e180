"""The CUDA half of the build: whether it can be built here, for which GPUs, and by which commands.

For setup.py, and for cuda_compile.py, which compiles the same files where torch has no CUDA. Which
GPU is present, if any, is never asked: the machine that builds need not be the one that computes.
"""

import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from glob import glob
from pathlib import Path

TORCH_TARGET = (2, 10)  # the oldest torch the extension runs on: its stable ABI is what we use
TORCH_TARGET_DEFINE = "-DTORCH_TARGET_VERSION=0x{:02x}{:02x}{:012x}".format(*TORCH_TARGET, 0)

FLAGS = [
    *("-std=c++20", "-O3", "-DMATCALC_CUDA"),
    "-DUSE_CUDA",  # of torch's headers: declares what torch's C interface has for CUDA
    "--expt-relaxed-constexpr",  # constexpr functions, std::max among them, serve kernels too
    # The compiler of the host's half does not know `#pragma unroll`.
    *("-Xcompiler", "-fPIC,-fvisibility=hidden,-Wall,-Wextra,-Wno-unknown-pragmas"),
]
# Turing, the two Amperes and Hopper; later GPUs compile the PTX when the library is loaded.
DEFAULT_ARCHITECTURES = "7.5 8.0 8.6 9.0+PTX"
# A file with this word in its name is written in instructions that exist on 9.0a alone.
HOPPER_ONLY, HOPPER_ARCHITECTURE = "wgmma", "9.0a"


class Unavailable(Exception):
    """The CUDA half cannot be built here; the text says why, as a part of a sentence."""


def output_of(*command: str | Path) -> str:
    words = [str(part) for part in command]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    return result.stdout if result.returncode == 0 else ""


def torch_cuda_version(torch: Path) -> str | None:
    """What the torch in this folder was built for, as in '13.0'; it is read, not imported."""
    text = Path(torch, "version.py").read_text()
    found = re.search(r"^cuda\b[^=\n]*=\s*['\"]([\d.]+)['\"]", text, re.MULTILINE)
    return found and found[1]


def find_nvcc() -> Path:
    home = os.environ.get("CUDA_HOME")
    found = shutil.which("nvcc", path=str(Path(home, "bin")) if home else None)
    if not found:
        raise Unavailable(f"there is no nvcc in {home}/bin" if home else "there is no nvcc on PATH")
    return Path(found)


def nvcc_version(nvcc: Path) -> str:
    found = re.search(r"release ([\d.]+)", output_of(nvcc, "--version"))
    if not found:
        raise Unavailable(f"`{nvcc} --version` does not name a release")
    return found[1]


def known_architectures(nvcc: Path) -> list[str]:
    """As in ['7.5', '8.0', ...], from the oldest to the newest; 12.0 is written compute_120."""
    found = re.findall(r"^compute_(\d+)$", output_of(nvcc, "--list-gpu-arch"), re.MULTILINE)
    return [f"{number // 10}.{number % 10}" for number in sorted(map(int, found))]


def parse_architectures(text: str, known: list[str]) -> list[str]:
    """A list as in TORCH_CUDA_ARCH_LIST ("8.0;9.0a+PTX"), or what nvcc knows of the default."""
    if not text.strip():
        default = DEFAULT_ARCHITECTURES.split()
        return [name for name in default if name.removesuffix("+PTX") in known]
    asked = re.split(r"[\s;,]+", text.strip(" \t\n;,"))
    for name in asked:
        number = re.fullmatch(r"(\d+\.\d)[af]?(\+PTX)?", name)
        if not number:
            raise ValueError(
                f"TORCH_CUDA_ARCH_LIST holds {name!r}, expected numbers such as in `8.0 9.0+PTX`."
            )
        if number[1] not in known:
            raise ValueError(
                f"TORCH_CUDA_ARCH_LIST asks for {name}, and nvcc knows {' '.join(known)}."
            )
    return list(dict.fromkeys(asked))


@dataclass(frozen=True)
class CudaBuild:
    """One way of compiling the CUDA sources."""

    nvcc: Path
    version: str
    architectures: list[str]

    @property
    def hopper(self) -> bool:
        return any(name.startswith("9.0") for name in self.architectures)

    def sources(self) -> list[str]:
        every = sorted(glob("csrc/cuda/*.cu"))
        return [source for source in every if self.hopper or HOPPER_ONLY not in source]

    def command(self, torch: Path) -> list[str]:
        """Compiles any of the sources, together with its code_flags."""
        command = [str(self.nvcc), *FLAGS, TORCH_TARGET_DEFINE, "-isystem", str(torch / "include")]
        if not self.hopper:
            command.append("-DMATCALC_NO_WGMMA")
        if "CXX" in os.environ:  # else nvcc takes the compiler that it is made for
            *_, compiler = (w for w in shlex.split(os.environ["CXX"]) if not w.startswith("-"))
            command += ["-ccbin", compiler]
        return command + shlex.split(
            os.environ.get("NVCCFLAGS", "")
        )  # last, so that the caller's win

    def code_flags(self, source: str) -> list[str]:
        """For machine code of each architecture, and for its PTX where that is asked for."""
        flags = []
        for name in [HOPPER_ARCHITECTURE] if HOPPER_ONLY in source else self.architectures:
            number = name.removesuffix("+PTX").replace(".", "")
            flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
            if name.endswith("+PTX"):
                flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
        return flags

    def libraries(self, torch: Path) -> list[str]:
        """What the linker needs beside torch_cpu.

        The CUDA runtime is the shared one that torch loads, so that both see one current device
        and one last error. Here it is found beside torch (the first three folders are where its
        packages have it) or in the toolkit; at run time it is there already, because importing
        matcalc_ext imports torch first, and of a loaded library the name is enough.
        """
        major = self.version.partition(".")[0]
        toolkit = self.nvcc.resolve().parents[1]
        folders = [
            *(torch / "lib", torch.parent / f"nvidia/cu{major}/lib"),
            *(torch.parent / "nvidia/cuda_runtime/lib", toolkit / "lib64", toolkit / "lib"),
        ]
        return [*(f"-L{folder}" for folder in folders), "-ltorch_cuda", f"-l:libcudart.so.{major}"]


def find_plan(torch: Path) -> CudaBuild:
    """How the CUDA half is built here; raises Unavailable, or ValueError for a bad setting."""
    if os.environ.get("USE_CUDA") == "0":
        raise Unavailable("USE_CUDA is 0")
    cuda = torch_cuda_version(torch)
    if not cuda:
        raise Unavailable("this torch is built without CUDA")
    nvcc = find_nvcc()
    version = nvcc_version(nvcc)
    if version.partition(".")[0] != cuda.partition(".")[0]:
        raise Unavailable(f"nvcc is {version} and this torch is built for CUDA {cuda}")
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
    return CudaBuild(nvcc, version, parse_architectures(asked, known_architectures(nvcc)))


def plan(torch: Path) -> tuple[CudaBuild | None, str]:
    """How the CUDA half is built here, None where it is not, and a sentence that says so.

    Raises ValueError, with a sentence too, where an environment variable asks for what cannot be.
    """
    wish = os.environ.get("USE_CUDA", "")
    if wish not in ("", "0", "1"):
        raise ValueError(f"USE_CUDA is {wish!r}, expected 0 or 1.")
    try:
        cuda = find_plan(torch)
    except Unavailable as reason:
        if wish == "1":
            raise ValueError(
                f"USE_CUDA=1 asks for the CUDA kernels, but {reason}: they need a torch built for "
                "CUDA, and nvcc of the same major version on PATH or in CUDA_HOME/bin."
            ) from reason
        return None, f"CPU kernels only: {reason}"
    names = " ".join(cuda.architectures)
    return cuda, f"CPU kernels and CUDA kernels for {names}, by nvcc {cuda.version}"
