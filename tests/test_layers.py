"""The layers of the house, held by reading include and import lines.

1. Micro-kernels (csrc/cpu/isa) see pointers and integers: no torch, container, allocation, throw.
2. Drivers see no more of torch than its thread pool (csrc/cpu, through parallel.h alone) or its
   streams and allocator (csrc/cuda, through runtime.cu alone).
3. Only csrc/ops, and library.cpp which registers it, see tensors; cpu/ and cuda/ know neither
   each other nor csrc/ops.
4. Python imports go one way: _ops <- {_flops, _sharding, ops}, ops <- {derivatives, nn}, and
   these <- benchmark.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CPP_SUFFIXES = {".cpp", ".h", ".inc", ".cu", ".cuh"}

KERNEL_HEADERS = {
    *("algorithm", "bit", "cfloat", "climits", "cmath", "complex", "concepts", "cstddef"),
    *("cstdint", "cstring", "limits", "type_traits", "utility"),
    *("arm_neon.h", "immintrin.h"),
}
KERNEL_WORDS = r"\b(throw|new|malloc|calloc|aligned_alloc|std::(?:vector|string|map|unique_ptr))\b"
# The one file of each device's drivers that knows torch, and what it knows.
TORCH_IN_DRIVERS = {"cpu/parallel.h", "cuda/runtime.cu"}
C_FUNCTIONS = "torch/csrc/stable/c/shim.h"
SHARED = r"(kernels|numbers|offsets)\.h$"  # what the device folders have in common

# What each part of matcalc_ext may import of matcalc_ext; the parts not named here, __init__ and
# the command line, stand above all of them.
PYTHON_LAYERS = {
    "_ops": {"_C"},
    "_flops": {"_ops"},
    "_sharding": {"_ops"},
    "ops": {"_C", "_ops", "ops"},
    "derivatives": {"_ops", "ops"},
    "nn": {"_ops", "ops", "nn"},
    "benchmark": {"_C", "ops", "nn", "benchmark"},
}


def without_comments(text):
    return re.sub(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', "", text, flags=re.DOTALL)


def cpp_violations(csrc):
    """Every broken rule among the C++ and CUDA sources, as `file: what`."""
    for path in sorted(p for p in csrc.rglob("*") if p.suffix in CPP_SUFFIXES):
        name = path.relative_to(csrc).as_posix()
        layer = name.rpartition("/")[0]
        text = path.read_text()
        system = re.findall(r"^\s*#\s*include\s*<([^>]+)>", text, re.MULTILINE)
        quoted = re.findall(r'^\s*#\s*include\s*"([^"]+)"', text, re.MULTILINE)
        torch = {h for h in [*system, *quoted] if re.match(r"(torch|ATen|c10|caffe2)/", h)}
        own = {Path(path.parent, h).resolve() for h in quoted if h not in torch}
        own = {p.relative_to(csrc.resolve()).as_posix() for p in own}

        if layer == "cpu/isa":
            for header in sorted(set(system) - KERNEL_HEADERS):
                yield f"{name}: a micro-kernel includes <{header}>"
            for header in sorted(own):
                if not header.startswith("cpu/isa/") and not re.match(SHARED, header):
                    yield f"{name}: a micro-kernel includes {header}"
            for word in re.findall(KERNEL_WORDS, without_comments(text)):
                yield f"{name}: a micro-kernel uses {word}"
        if layer.startswith(("cpu", "cuda")):
            for header in sorted(torch - ({C_FUNCTIONS} if name in TORCH_IN_DRIVERS else set())):
                yield f"{name}: a driver includes {header}"
        if layer != "ops" and name != "library.cpp":
            for header in sorted(h for h in torch if not h.startswith("torch/csrc/stable/c/")):
                yield f"{name}: includes {header}, and tensors belong to csrc/ops"
        allowed = {  # the files of csrc that the layer may include
            "": rf"{SHARED}|cpu/[^/]*\.h$|cuda/[^/]*\.h$|ops/",
            "ops": r"kernels\.h$|ops/",
            "cpu": rf"{SHARED}|cpu/",
            "cuda": rf"{SHARED}|cuda/",
        }[layer.partition("/")[0]]
        for header in sorted(own):
            if not re.match(SHARED if re.match(SHARED, name) else allowed, header):
                yield f"{name}: includes {header}"


def imported_parts(tree, package):
    """The parts of matcalc_ext that a module inside `package` (a tuple of names) imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("matcalc_ext"):
                yield [*name.split("."), "__init__"][1]


def python_violations(package):
    """Every broken rule among the Python sources, as `file: what`."""
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        allowed = PYTHON_LAYERS.get(parts[0])
        if allowed is None:
            continue
        imported = set(imported_parts(ast.parse(path.read_text()), ("matcalc_ext", *parts[:-1])))
        for part in sorted(imported - allowed):
            yield f"{'/'.join(parts)}.py: imports {part}"


def test_cpp_layers():
    assert list(cpp_violations(ROOT / "csrc")) == []


def test_python_layers():
    assert list(python_violations(ROOT / "matcalc_ext")) == []


def test_every_layer_was_read():
    for folder in ("csrc/cpu", "csrc/cpu/isa", "csrc/cuda", "csrc/ops"):
        assert any(p.suffix in CPP_SUFFIXES for p in Path(ROOT, folder).iterdir()), folder
    for part in PYTHON_LAYERS:
        assert list(Path(ROOT, "matcalc_ext").glob(f"{part}.py")) or list(
            Path(ROOT, "matcalc_ext", part).glob("*.py")
        ), part


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("cpu/isa/a.h", "#include <vector>\n", "includes <vector>"),
        ("cpu/isa/a.inc", "# include <torch/library.h>\n", "includes <torch/library.h>"),
        ("cpu/isa/a.cpp", "void f() { throw 1; }\n", "uses throw"),
        ("cpu/isa/a.cpp", "auto* p = new int;\n", "uses new"),
        ("cpu/isa/a.cpp", '#include "../parallel.h"\n', "includes cpu/parallel.h"),
        ("cpu/a.cpp", "#include <torch/csrc/stable/c/shim.h>\n", "a driver includes"),
        ("cpu/a.cpp", '#include "torch/csrc/stable/tensor.h"\n', "tensors belong to csrc/ops"),
        ("cpu/parallel.h", "#include <ATen/Parallel.h>\n", "a driver includes"),
        ("cpu/a.cpp", '#include "../cuda/launch.h"\n', "includes cuda/launch.h"),
        ("cpu/a.cpp", '#include "../ops/errors.h"\n', "includes ops/errors.h"),
        ("cuda/a.cu", '#include "../cpu/parallel.h"\n', "includes cpu/parallel.h"),
        ("cuda/a.cu", "#include <torch/csrc/stable/c/shim.h>\n", "a driver includes"),
        ("cuda/a.cu", "#include <torch/csrc/stable/tensor.h>\n", "tensors belong to csrc/ops"),
        ("ops/a.cpp", '#include "../cpu/dispatch.h"\n', "includes cpu/dispatch.h"),
        ("kernels.h", '#include "cpu/dispatch.h"\n', "includes cpu/dispatch.h"),
        ("kernels.h", "#include <c10/core/Scalar.h>\n", "tensors belong to csrc/ops"),
    ],
)
def test_cpp_violation_is_seen(tmp_path, name, text, complaint):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    assert any(complaint in line for line in cpp_violations(tmp_path))


def test_comments_are_not_read_as_code(tmp_path):
    path = tmp_path / "cpu/isa/a.h"
    path.parent.mkdir(parents=True)
    path.write_text("// may throw\n/* a new\n throw */ inline void f(int renewed) {}\n")
    assert list(cpp_violations(tmp_path)) == []


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("_ops.py", "from .ops import matmul\n", "imports ops"),
        ("_ops.py", "from . import ops\n", "imports ops"),
        ("_ops.py", "def f():\n    import matcalc_ext.nn\n", "imports nn"),
        ("ops/matmul.py", "from ..nn import functional\n", "imports nn"),
        ("ops/matmul.py", "from .. import derivatives\n", "imports derivatives"),
        ("ops/matmul.py", "import matcalc_ext\n", "imports __init__"),
        ("ops/__init__.py", "from ..derivatives import hessian\n", "imports derivatives"),
        ("nn/modules.py", "from ..derivatives import hessian\n", "imports derivatives"),
        ("nn/modules.py", "from matcalc_ext.check import main\n", "imports check"),
        ("derivatives.py", "from .nn.functional import bilinear\n", "imports nn"),
        ("nn/swap.py", "from ..benchmark import report\n", "imports benchmark"),
        ("benchmark/cpu.py", "from .. import _ops\n", "imports _ops"),
    ],
)
def test_python_violation_is_seen(tmp_path, name, text, complaint):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    assert [f"{name}: {complaint}"] == list(python_violations(tmp_path))


def test_allowed_imports_pass(tmp_path):
    for name, text in {
        "_ops.py": "from . import _C\nimport torch\n",
        "ops/matmul.py": "from .. import _ops\nfrom .._ops import load\nfrom . import _function\n",
        "nn/modules.py": "from ..ops.matmul import matmul\nfrom . import functional\n",
        "derivatives.py": "from .ops import matmul\n",
        "__init__.py": "from .nn import Linear\n",
    }.items():
        Path(tmp_path, name).parent.mkdir(exist_ok=True)
        Path(tmp_path, name).write_text(text)
    assert list(python_violations(tmp_path)) == []
