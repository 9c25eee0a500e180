"""What is built and shipped, and what is said where it cannot be built or loaded."""

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
        tmp_path, "setup.py", "pyproject.toml", "README.md", "LICENSE", "matcalc_ext"
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


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist, and the wheel that was built from it; unoptimised, to save time."""
    target = copy_tree(
        tmp_path_factory.mktemp("source"),
        *("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"),
        *("csrc", "matcalc_ext", "tests"),
    )
    result = run(sys.executable, "-m", "build", "--no-isolation", cwd=target, CXXFLAGS="-O0")
    assert result.returncode == 0, result.stdout + result.stderr
    (sdist,), (wheel,) = Path(target, "dist").glob("*.tar.gz"), Path(target, "dist").glob("*.whl")
    return sdist, wheel


def sources(folder):
    return {
        path.relative_to(ROOT).as_posix()
        for path in Path(ROOT, folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".so"
    }


@pytest.mark.slow
def test_sdist_has_all_sources(built):
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert sources("csrc") | sources("matcalc_ext") <= names
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
