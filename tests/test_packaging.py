"""What is built and shipped, and what is said where it cannot be built or loaded."""

import importlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import torch

import matcalc_ext

ROOT = Path(__file__).parents[1]
SITE_PACKAGES = Path(sysconfig.get_path("purelib"))
EXT_SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
HOOK = "import setuptools.build_meta as b, sys; getattr(b, sys.argv[1])(*sys.argv[2:])"
SMALL_SOURCE = """
#include "version.h"
const char* matcalc_version() { return VERSION; }
"""


def run(*command, cwd, **environment):
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **environment}
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )


def copy_tree(target, *names):
    """A copy of parts of the source tree, without what was built in it."""
    ignore = shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info")
    for name in names:
        if Path(ROOT, name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=ignore)
        else:
            shutil.copy(ROOT / name, target / name)
    return target


@pytest.fixture
def source(tmp_path):
    """A source tree with one small C++ file in the place of the whole library."""
    target = copy_tree(
        tmp_path, "setup.py", "pyproject.toml", "README.md", "LICENSE", "matcalc_ext", "tools"
    )
    Path(target, "csrc").mkdir()
    Path(target, "csrc/library.cpp").write_text(SMALL_SOURCE)
    Path(target, "csrc/version.h").write_text("#define VERSION MATCALC_VERSION\n")
    return target


@pytest.fixture
def packages(tmp_path_factory):
    """Links installed packages into a folder, for a Python that sees no other packages."""
    folder = tmp_path_factory.mktemp("packages")

    def link(*names):
        for name in ("_distutils_hack", *names):  # setuptools does not start without that
            for path in (SITE_PACKAGES / name, *SITE_PACKAGES.glob(f"{name}-*.dist-info")):
                (folder / path.name).symlink_to(path)
        return folder

    return link


def fake_distribution(folder, name, version):
    Path(folder, f"{name}-{version}.dist-info").mkdir()
    Path(folder, f"{name}-{version}.dist-info/METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    )


def refusal(source, packages, *hook, **environment):
    """What the build says when it refuses: one line, without a traceback."""
    result = run(
        sys.executable, "-S", "-c", HOOK, *hook, cwd=source, PYTHONPATH=str(packages), **environment
    )
    assert result.returncode == 1, result.stdout + result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("matcalc_ext: ")
    return lines[0]


HOW = "`pip install 'torch>=2.10' 'setuptools>=77' ninja pybind11`"


def test_without_torch_one_sentence(source, packages):
    folder = packages("setuptools", "ninja", "pybind11")
    sentence = refusal(source, folder, "get_requires_for_build_wheel")
    assert "needs torch>=2.10 and sees none" in sentence
    assert HOW in sentence
    assert "`pip install --no-build-isolation .`" in sentence


def test_old_torch_one_sentence(source, packages):
    folder = packages("setuptools", "ninja", "pybind11")
    Path(folder, "torch").mkdir()
    Path(folder, "torch/__init__.py").touch()
    fake_distribution(folder, "torch", "2.9.1+cpu")
    sentence = refusal(source, folder, "get_requires_for_build_wheel")
    assert "needs torch>=2.10 and sees 2.9.1+cpu" in sentence
    assert HOW in sentence


@pytest.mark.parametrize("missing", ["ninja", "pybind11"])
def test_missing_build_tool_one_sentence(source, packages, missing):
    folder = packages(*{"setuptools", "torch", "ninja", "pybind11"} - {missing})
    sentence = refusal(source, folder, "get_requires_for_build_editable")
    assert f"needs {missing} and sees none" in sentence
    assert HOW in sentence


def test_old_setuptools_one_sentence(source, packages):
    folder = packages("torch", "ninja", "pybind11")
    Path(folder, "setuptools").symlink_to(SITE_PACKAGES / "setuptools")
    fake_distribution(folder, "setuptools", "65.5.0")
    sentence = refusal(source, folder, "prepare_metadata_for_build_wheel", "metadata")
    assert "needs setuptools>=77 and sees 65.5.0" in sentence


@pytest.mark.parametrize("compiler", ["false", "no-such-compiler"])
@pytest.mark.parametrize("hook", ["build_wheel", "build_editable"])
def test_without_compiler_one_sentence(source, packages, compiler, hook):
    folder = packages("torch", "setuptools", "ninja", "pybind11")
    sentence = refusal(source, folder, hook, "dist", CXX=compiler)
    assert f"`{compiler}` does not compile C++20" in sentence
    assert "CXX=clang++" in sentence


def test_old_compiler_one_sentence(source, packages, tmp_path):
    folder = packages("torch", "setuptools", "ninja", "pybind11")
    compiler = tmp_path / "old-g++"
    compiler.write_text('#!/bin/bash\nexec g++ "${@/-std=c++20/-std=c++17}"\n')
    compiler.chmod(0o755)
    sentence = refusal(source, folder, "build_wheel", "dist", CXX=str(compiler))
    assert "old-g++` does not compile C++20" in sentence


def test_compile_error_is_shown_without_traceback(source):
    Path(source, "csrc/library.cpp").write_text("int f() { return undeclared; }\n")
    result = run(sys.executable, "setup.py", "--quiet", "build_ext", "--inplace", cwd=source)
    assert result.returncode == 1
    assert "csrc/library.cpp:1:18: error:" in result.stdout
    assert result.stderr.strip().startswith("matcalc_ext: the compiler failed")
    assert "Traceback" not in result.stderr


def test_second_build_compiles_what_changed(source):
    Path(source, "csrc/other.cpp").write_text("int matcalc_other() { return 1; }\n")
    command = (sys.executable, "setup.py", "--quiet", "build_ext", "--inplace")
    first = run(*command, cwd=source)
    assert first.returncode == 0, first.stderr
    assert "compile csrc/other.cpp" in first.stdout
    assert "compile csrc/library.cpp" in first.stdout
    assert [path.name for path in Path(source, "matcalc_ext").glob("_C*.so")] == [f"_C{EXT_SUFFIX}"]

    assert "no work to do" in run(*command, cwd=source).stdout

    Path(source, "csrc/version.h").write_text('#define VERSION "changed"\n')
    third = run(*command, cwd=source).stdout
    assert "compile csrc/library.cpp" in third
    assert "compile csrc/other.cpp" not in third


# --------------------------------------------------------------------------------------------
# The CUDA half, with a torch and an nvcc that are made up

NVCC = """#!/bin/bash
case "$1" in
  --version) echo "Cuda compilation tools, release RELEASE, V0"; exit ;;
  --list-gpu-arch) printf 'compute_%s\\n' 75 80 86 90 100 120; exit ;;
esac
echo "$@" >>"$(dirname "$0")/log"
while [ $# -gt 0 ]; do
  case "$1" in
    -c) source=$2 ;;
    -o) object=$2 ;;
  esac
  shift
done
exec /usr/bin/env g++ -fPIC -MMD -MF "$object.d" -x c++ -c "$source" -o "$object"
"""


@pytest.fixture
def cuda_home(tmp_path_factory):
    """A toolkit whose nvcc is of some release and notes how it was called."""

    def make(release="13.0"):
        home = tmp_path_factory.mktemp("toolkit")
        Path(home, "bin").mkdir()
        Path(home, "bin/nvcc").write_text(NVCC.replace("RELEASE", release))
        Path(home, "bin/nvcc").chmod(0o755)
        return home

    return make


@pytest.fixture
def torch_for(packages, tmp_path_factory):
    """The folder of packages of a Python whose torch is built for this CUDA, or for none."""

    def make(cuda):
        folder = packages("setuptools", "ninja", "pybind11")
        fake_distribution(folder, "torch", "2.13.0")
        lib = Path(folder, "torch/lib")
        lib.mkdir(parents=True)
        Path(folder, "torch/__init__.py").write_text("raise ImportError('torch is only located')\n")
        Path(folder, "torch/version.py").write_text(
            f"from typing import Optional\ncuda: Optional[str] = {cuda!r}\nhip = '7.0'\n"
        )
        file = tmp_path_factory.mktemp("libraries") / "library.c"
        for name in ("libtorch_cpu.so", "libtorch_cuda.so", "libcudart.so.13"):
            file.write_text(f"int {name.partition('.')[0]}(void) {{ return 0; }}\n")
            command = ("gcc", "-shared", f"-Wl,-soname,{name}", "-o", lib / name, file)
            assert run(*command, cwd=lib).returncode == 0
        return folder

    return make


def build(source, folder, **environment):
    """The output of a build in place, in a Python that sees only the packages of `folder`."""
    environment = {"USE_CUDA": "", "TORCH_CUDA_ARCH_LIST": "", **environment}
    command = (sys.executable, "-S", "setup.py", "--quiet", "build_ext", "--inplace")
    result = run(*command, cwd=source, PYTHONPATH=str(folder), **environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture
def cuda_source(source):
    """With two CUDA sources, one of them for Hopper alone."""
    Path(source, "csrc/cuda").mkdir()
    Path(source, "csrc/cuda/one.cu").write_text(
        '#include "one.cuh"\nextern "C" int libcudart();\nextern "C" int libtorch_cuda();\n'
        "int one() { return ONE + libcudart() + libtorch_cuda(); }\n"
    )
    Path(source, "csrc/cuda/one.cuh").write_text("#define ONE 1\n")
    Path(source, "csrc/cuda/some_wgmma.cu").write_text("int some_wgmma() { return 2; }\n")
    return source


def test_cuda_half(cuda_source, torch_for, cuda_home):
    folder, home = torch_for("13.0"), cuda_home()

    def rebuild(**environment):
        Path(home, "bin/log").write_text("")
        output = build(cuda_source, folder, CUDA_HOME=str(home), **environment)
        calls = Path(home, "bin/log").read_text().splitlines()
        return output, {Path(re.search(r"-c (\S+)", c)[1]).name: c.split() for c in calls}

    def codes(call):
        return [word.removeprefix("-gencode=") for word in call if word.startswith("-gencode=")]

    output, calls = rebuild()
    says = "matcalc_ext: CPU kernels and CUDA kernels for 7.5 8.0 8.6 9.0+PTX, by nvcc 13.0"
    assert output.splitlines()[0] == says
    assert set(calls) == {"one.cu", "some_wgmma.cu"}
    assert codes(calls["one.cu"]) == [
        *(f"arch=compute_{n},code=sm_{n}" for n in (75, 80, 86, 90)),
        "arch=compute_90,code=compute_90",
    ]
    assert codes(calls["some_wgmma.cu"]) == ["arch=compute_90a,code=sm_90a"]
    for call in calls.values():
        assert {"-DMATCALC_CUDA", "-DUSE_CUDA", "-std=c++20", "-MD"} <= set(call)
        assert "-DMATCALC_NO_WGMMA" not in call
    (ninja,) = Path(cuda_source, "build").glob("*/build.ninja")
    assert re.search(r"command = \S*g\+\+ .* -DMATCALC_CUDA ", ninja.read_text())
    (library,) = Path(cuda_source, "matcalc_ext").glob("_C*.so")
    linked = run("readelf", "-d", library, cwd=cuda_source).stdout
    assert {"[libcudart.so.13]", "[libtorch_cuda.so]"} <= set(re.findall(r"\[\S+\]", linked))

    output, calls = rebuild()
    assert "no work to do" in output
    assert not calls

    Path(cuda_source, "csrc/cuda/one.cuh").write_text("#define ONE 3\n")
    assert set(rebuild()[1]) == {"one.cu"}

    output, calls = rebuild(TORCH_CUDA_ARCH_LIST="8.0;8.6+PTX")
    assert "CUDA kernels for 8.0 8.6+PTX," in output
    assert set(calls) == {"one.cu"}  # without Hopper there is nothing to be made of the other
    assert "-DMATCALC_NO_WGMMA" in calls["one.cu"]

    output, calls = rebuild(USE_CUDA="0")
    assert output.splitlines()[0] == "matcalc_ext: CPU kernels only: USE_CUDA is 0"
    assert "compile csrc/library.cpp" in output
    assert not calls
    assert "-DMATCALC_CUDA" not in ninja.read_text()


@pytest.mark.parametrize(
    ("cuda", "release", "reason"),
    [
        (None, "13.0", "this torch is built without CUDA"),
        ("12.6", "13.0", "nvcc is 13.0 and this torch is built for CUDA 12.6"),
        ("13.0", "12.8", "nvcc is 12.8 and this torch is built for CUDA 13.0"),
        ("13.0", None, "there is no nvcc in "),
    ],
)
def test_without_a_cuda_half(source, torch_for, cuda_home, tmp_path, cuda, release, reason):
    """By default the build goes on without it and says why; where it is demanded it stops."""
    folder, home = torch_for(cuda), cuda_home(release) if release else tmp_path
    said = build(source, folder, CUDA_HOME=str(home)).splitlines()[0]
    assert said.startswith(f"matcalc_ext: CPU kernels only: {reason}")
    sentence = refusal(source, folder, "build_wheel", "dist", CUDA_HOME=str(home), USE_CUDA="1")
    assert f"USE_CUDA=1 asks for the CUDA kernels, but {reason}" in sentence
    assert "a torch built for CUDA, and nvcc of the same major version" in sentence


def test_no_nvcc_on_the_path(source, torch_for, tmp_path):
    folder = torch_for("13.0")
    nowhere = {"PATH": str(tmp_path), "CUDA_HOME": "", "CXX": shutil.which("g++")}
    sentence = refusal(source, folder, "build_editable", "dist", USE_CUDA="1", **nowhere)
    assert "but there is no nvcc on PATH: " in sentence


def test_a_bad_wish_for_cuda(source, torch_for, cuda_home):
    folder, home = torch_for("13.0"), str(cuda_home())
    sentence = refusal(source, folder, "build_wheel", "dist", USE_CUDA="yes")
    assert sentence.endswith("USE_CUDA is 'yes', expected 0 or 1.")
    for wish, words in (
        ("Hopper", "holds 'Hopper', expected numbers such as in `8.0 9.0+PTX`"),
        ("7.0", "asks for 7.0, and nvcc knows 7.5 8.0 8.6 9.0 10.0 12.0"),
    ):
        sentence = refusal(
            *(source, folder, "build_wheel", "dist"), CUDA_HOME=home, TORCH_CUDA_ARCH_LIST=wish
        )
        assert f"TORCH_CUDA_ARCH_LIST {words}" in sentence


@pytest.fixture
def cuda_build(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module("cuda_build")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8.0", ["8.0"]),
        ("8.0 9.0a", ["8.0", "9.0a"]),
        ("8.0;9.0+PTX", ["8.0", "9.0+PTX"]),
        (" 7.5, 12.0a+PTX;\n", ["7.5", "12.0a+PTX"]),
        ("9.0 9.0 8.0", ["9.0", "8.0"]),
        ("", ["7.5", "8.0", "9.0+PTX"]),
        ("  ", ["7.5", "8.0", "9.0+PTX"]),
    ],
)
def test_list_of_architectures(cuda_build, text, expected):
    assert cuda_build.parse_architectures(text, ["7.5", "8.0", "9.0", "12.0"]) == expected


@pytest.mark.parametrize(
    "text", ["sm_80", "80", "8", "8.0+ptx", "Ampere", "8.0 all", "9.00", "9.0b"]
)
def test_what_is_no_architecture(cuda_build, text):
    with pytest.raises(ValueError, match="TORCH_CUDA_ARCH_LIST holds"):
        cuda_build.parse_architectures(text, ["8.0", "9.0"])


@pytest.mark.parametrize(
    ("architectures", "hopper"),
    [(["9.0"], True), (["8.0", "9.0a"], True), (["9.0+PTX"], True), (["8.9", "12.0"], False)],
)
def test_for_which_gpus_there_is_wgmma(cuda_build, architectures, hopper):
    assert cuda_build.CudaBuild(Path("nvcc"), "13.0", architectures).hopper == hopper


def test_the_cuda_version_of_torch_is_read_without_importing_it(cuda_build):
    assert cuda_build.torch_cuda_version(Path(torch.__file__).parent) == torch.version.cuda


# --------------------------------------------------------------------------------------------
# What is shipped


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist, and the wheel that was built from it; unoptimised, to save time."""
    target = copy_tree(
        tmp_path_factory.mktemp("source"),
        *("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"),
        *("csrc", "matcalc_ext", "tests", "tools"),
    )
    command = (sys.executable, "-m", "build", "--no-isolation")
    result = run(*command, cwd=target, CXXFLAGS="-O0", USE_CUDA="0")
    assert result.returncode == 0, result.stdout + result.stderr
    (sdist,), (wheel,) = Path(target, "dist").glob("*.tar.gz"), Path(target, "dist").glob("*.whl")
    return sdist, wheel


def sources(folder):
    return {
        path.relative_to(ROOT).as_posix()
        for path in Path(ROOT, folder).rglob("*")
        if path.is_file() and path.suffix not in (".so", ".pyc")
    }


@pytest.mark.slow
def test_sdist_has_all_sources(built):
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for folder in ("csrc", "matcalc_ext", "tests", "tools"):
        assert sources(folder) <= names
    assert {"csrc/cuda/contract.cu", "csrc/cuda/gemm.cuh", "tools/cuda_build.py"} <= names
    assert "tests/emulation/cuda_emulation.h" in names
    assert {"setup.py", "pyproject.toml", "LICENSE", "README.md", "PKG-INFO"} <= names
    assert {"matcalc_ext/py.typed", "matcalc_ext/_C.pyi"} <= names
    assert not any(name.endswith((".so", ".o", ".pyc")) for name in names)


@pytest.mark.slow
def test_wheel_has_the_package_alone(built):
    names = {name for name in zipfile.ZipFile(built[1]).namelist() if ".dist-info/" not in name}
    assert names == sources("matcalc_ext") | {f"matcalc_ext/_C{EXT_SUFFIX}"}
    assert {"matcalc_ext/py.typed", "matcalc_ext/_C.pyi"} <= names


@pytest.mark.slow
def test_wheel_runs_in_a_new_environment(built, tmp_path):
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "env", cwd=tmp_path)
    python = tmp_path / "env/bin/python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index")
    result = run(*pip, built[1], cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    # torch and rich are looked up here rather than installed again; nothing else comes along, for
    # the .pth file of an editable install takes effect in the environment's own folder only.
    (folder,) = Path(tmp_path, "env/lib").glob("python*/site-packages")
    Path(folder, "torch.pth").write_text(f"{SITE_PACKAGES}\n")

    result = run(python, "-W", "error", "-m", "matcalc_ext", "info", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert str(folder / "matcalc_ext") in result.stdout
    use = (
        "import torch, matcalc_ext; a = torch.eye(2, requires_grad=True);"
        "matcalc_ext.quadratic(torch.tensor([1.0, 2.0]), a).backward(); print(a.grad.tolist())"
    )
    assert run(python, "-c", use, cwd=tmp_path).stdout == "[[1.0, 2.0], [2.0, 4.0]]\n"


def test_one_version():
    (declared,) = re.findall(r'^version = "(.+)"$', Path(ROOT, "pyproject.toml").read_text(), re.M)
    assert matcalc_ext.__version__ == declared
    assert metadata.version("matcalc_ext") == declared
    assert f"## [{declared}]" in Path(ROOT, "CHANGELOG.md").read_text()


def test_readme_use_runs():
    (block,) = re.findall(r"```python\n(.*?)```", Path(ROOT, "README.md").read_text(), re.DOTALL)
    names = {}
    exec(block, names)
    assert names["scores"].shape == (8,)
    torch.testing.assert_close(names["A"].grad, names["y"].mT @ names["x"])
    torch.testing.assert_close(names["H"], 2 * torch.eye(20))
    assert {type(m) for m in names["model"]} == {matcalc_ext.nn.Linear, torch.nn.GELU}


def import_failure(folder):
    """What the failed import of the matcalc_ext in `folder` says."""
    # Without site: the finder of an editable install would supply the module that is missing here.
    path = os.pathsep.join([str(folder), str(SITE_PACKAGES)])
    result = run(sys.executable, "-S", "-c", "import matcalc_ext", cwd=folder, PYTHONPATH=path)
    assert result.returncode == 1, result.stdout
    text = result.stderr[result.stderr.index("\nImportError: ") :]
    assert "matcalc_ext" in text
    assert "pip install --no-build-isolation" in text
    return text


def test_import_without_extension_says_how_to_build(tmp_path):
    text = import_failure(copy_tree(tmp_path, "matcalc_ext"))
    assert "No module named 'matcalc_ext._C'" in text


def test_import_of_broken_extension_says_why(tmp_path):
    copy_tree(tmp_path, "matcalc_ext")
    Path(tmp_path, f"matcalc_ext/_C{EXT_SUFFIX}").write_bytes(b"\x7fELF, and no more")
    assert "file too short" in import_failure(tmp_path)
