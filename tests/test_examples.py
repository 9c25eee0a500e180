"""The ten worked examples with their numbers, the page that shows them, and the main example.

The numbers here are written out a second time, apart from the page, so that neither can drift.
"""

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.func import grad, hessian, jacfwd, jacrev, vjp

import matcalc_ext as mc

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "worked_examples.md"
EXACT = {"rtol": 0, "atol": 0}  # the numbers are binary fractions: nothing is rounded
JACOBIANS = pytest.mark.parametrize("jacobian", [jacrev, jacfwd])
DTYPE = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


def tensor(values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype)


def exact(got, expected):
    torch.testing.assert_close(got, torch.tensor(expected, dtype=got.dtype), **EXACT)


A = [[1, 2], [3, 4], [5, 6]]
X = [0.5, 1]


@JACOBIANS
@DTYPE
def test_1_jacobian_of_a_matrix_times_a_vector(jacobian, dtype):
    exact(jacobian(mc.matmul, argnums=1)(tensor(A, dtype), tensor(X, dtype)), A)


@DTYPE
def test_2_one_row_gives_a_gradient_in_the_shape_of_x(dtype):
    w, x = tensor([3, -1, 2], dtype), tensor([0.5, 1, 2], dtype)
    exact(grad(mc.matmul, argnums=1)(w, x), [3, -1, 2])
    x.requires_grad_()
    mc.matmul(w, x).backward()
    exact(x.grad, [3, -1, 2])


@JACOBIANS
@DTYPE
def test_3_row_vector_times_a_matrix(jacobian, dtype):
    x, w = tensor([0.5, 1, 2], dtype), tensor(A, dtype)
    exact(jacobian(mc.matmul, argnums=0)(x, w), [[1, 3, 5], [2, 4, 6]])


@JACOBIANS
@DTYPE
def test_4_bilinear(jacobian, dtype):
    y, a, x = tensor([1, 2, 3], dtype), tensor(A, dtype), tensor(X, dtype)
    exact(mc.bilinear(y, a, x), 39)
    dy, da, dx = jacobian(mc.bilinear, argnums=(0, 1, 2))(y, a, x)
    exact(dx, [22, 28])
    exact(dy, [2.5, 5.5, 8.5])
    exact(da, [[0.5, 1], [1, 2], [1.5, 3]])
    (yy, yx), (xy, xx) = hessian(lambda y, x: mc.bilinear(y, a, x), argnums=(0, 1))(y, x)
    exact(yx, A)
    exact(xy, [[1, 3, 5], [2, 4, 6]])
    assert not yy.any()
    assert not xx.any()


@JACOBIANS
@DTYPE
def test_5_quadratic(jacobian, dtype):
    x, b, s = tensor(X, dtype), tensor([[1, 2], [3, 4]], dtype), tensor([[2, 1], [1, 3]], dtype)
    exact(mc.quadratic(x, b), 6.75)
    dx, db = jacobian(mc.quadratic, argnums=(0, 1))(x, b)
    exact(dx, [6, 10.5])
    exact(db, [[0.25, 0.5], [0.5, 1]])
    exact(hessian(mc.quadratic)(x, b), [[2, 5], [5, 8]])
    for symmetric in (False, True):
        exact(mc.quadratic(x, s, symmetric=symmetric), 4.5)
        exact(jacobian(lambda x: mc.quadratic(x, s, symmetric=symmetric))(x), [4, 7])  # noqa: B023


@JACOBIANS
@DTYPE
def test_6_matrix_product_by_its_matrix_has_three_dimensions(jacobian, dtype):
    got = jacobian(mc.matmul, argnums=0)(tensor(A, dtype), tensor(X, dtype))
    zero = [0, 0]
    exact(got, [[X, zero, zero], [zero, X, zero], [zero, zero, X]])


@DTYPE
def test_7_vector_jacobian_product(dtype):
    x = tensor(X, dtype)
    _, pullback = vjp(lambda a: mc.matmul(a, x), tensor(A, dtype))
    exact(pullback(tensor([1, 2, 3], dtype))[0], [[0.5, 1], [1, 2], [1.5, 3]])
    a = tensor([[1, 2], [3, 4]], dtype).requires_grad_()
    mc.matmul(a, x).backward(tensor([1, 1], dtype))
    exact(a.grad, [[0.5, 1], [0.5, 1]])


@pytest.mark.parametrize("route", ["matmul", "linear"])
@DTYPE
def test_8_loss_backward(route, dtype):
    x = tensor([[1, 2]], dtype).requires_grad_()
    w = tensor([[0.5, -0.5], [1.5, -1]], dtype).requires_grad_()
    b = tensor([[0.1, -0.1]], dtype).requires_grad_()
    z = mc.matmul(x, w) + b if route == "matmul" else mc.linear(x, w.mT, b[0])
    torch.testing.assert_close(z, tensor([[3.6, -2.6]], dtype))  # 0.1 is no binary fraction
    z.sum().backward()
    exact(x.grad, [[0, 0.5]])
    exact(w.grad, [[1, 1], [2, 2]])
    exact(b.grad, [[1, 1]])
    exact(mc.matmul(x.detach().mT, torch.ones(1, 2, dtype=dtype)), [[1, 1], [2, 2]])


def test_9_feed_forward_block():
    h = 6
    torch.manual_seed(0)
    up, down = mc.nn.Linear(h, 4 * h).double(), mc.nn.Linear(4 * h, h).double()
    x = torch.randn(2, 3, h, dtype=torch.float64, requires_grad=True)
    z = up(x)
    a = torch.tanh(z)
    y = down(a)
    y.sum().backward()
    # Both maps by hand, from the output to the input, in plain torch.
    dy = torch.ones(2, 3, h, dtype=torch.float64)
    da = dy @ down.weight
    dz = da * (1 - a**2)
    close = torch.testing.assert_close
    close(down.weight.grad, (dy.flatten(0, 1).mT @ a.flatten(0, 1)).detach())
    close(down.bias.grad, dy.sum((0, 1)))
    close(up.weight.grad, (dz.flatten(0, 1).mT @ x.flatten(0, 1)).detach())
    close(up.bias.grad, dz.sum((0, 1)).detach())
    close(x.grad, (dz @ up.weight).detach())


@pytest.mark.parametrize("derivative", [grad, jacfwd], ids=["reverse", "forward"])
@DTYPE
def test_10_chain_rule(derivative, dtype):
    a = tensor(A, dtype)

    def parts(z):
        one = torch.ones_like(z)
        return torch.stack([z, z * z, one]), z * a, torch.stack([one, z])

    z = tensor(2.0, dtype)
    # 4z⁴ + 5z³ + 7z² + 5z and its derivative at 2
    exact(mc.bilinear(*parts(z)), 142)
    exact(derivative(lambda z: mc.bilinear(*parts(z)))(z), 221)
    # [1, z] [[1, 2], [3, 4]] [1, z] is 4z² + 5z + 1.
    b = tensor([[1, 2], [3, 4]], dtype)
    exact(derivative(lambda z: mc.quadratic(parts(z)[2], b))(z), 21)


def sections():
    """Title and code of every section of the page, the introduction first."""
    for part in re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE):
        blocks = re.findall(r"^```python\n(.*?)^```", part, flags=re.MULTILINE | re.DOTALL)
        yield part.partition("\n")[0], "\n".join(blocks)


def test_the_page_has_the_ten_examples():
    titles = [title for title, _ in sections()]
    assert [title.partition(".")[0] for title in titles[1:]] == [str(n) for n in range(1, 11)]


def test_every_block_of_the_page_holds():
    names = {}
    for title, code in sections():
        assert code, f"no code under {title!r}"
        if title[0].isdigit():
            assert "assert " in code, f"nothing is checked under {title!r}"
        exec(compile(code, f"{PAGE.name}: {title}", "exec"), names)


def documented():
    """Everything public that has a text of its own."""
    for module in (mc, mc.nn, mc.nn.functional, mc.derivatives):
        yield pytest.param(module, id=module.__name__)
        for name in module.__all__:
            value = getattr(module, name)
            if callable(value):
                yield pytest.param(value, id=f"{module.__name__}.{name}")


@pytest.mark.parametrize("thing", list(documented()))
def test_examples_in_the_texts(thing):
    finder = doctest.DocTestFinder(recurse=False)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    names = {
        "torch": torch,
        "matcalc_ext": mc,
        "derivatives": mc.derivatives,
        "model": torch.nn.Linear(2, 3),
        **{"y": torch.ones(3), "A": torch.ones(3, 2), "x": torch.ones(2)},
    }
    (test,) = finder.find(thing, thing.__name__, globs=names)
    report = []
    failed, tried = runner.run(test, out=report.append)
    assert not failed, "".join(report)
    assert tried or not callable(thing) or thing is mc.nn.Swap, "there is no example"


def digits(folder, *options):
    plot = folder / "made" / "digits.png"
    package = str(Path(mc.__file__).parent.parent)  # the one that is under test
    environment = {**os.environ, "COLUMNS": "160", "PYTHONPATH": package}
    command = [sys.executable, str(ROOT / "examples" / "digits.py"), "--quick", "--threads", "1"]
    done = subprocess.run(
        [*command, "--output", str(plot), *options],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done, plot


def test_digits_runs_and_both_versions_learn_the_same(tmp_path):
    done, plot = digits(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    for model in ("classifier", "verification", "discriminant"):
        rows = [line for line in done.stdout.splitlines() if model in line and "%" in line]
        assert len(rows) == 1, done.stdout
        accuracies = [float(number) for number in re.findall(r"([\d.]+)%", rows[0])]
        assert len(accuracies) == 2
        assert abs(accuracies[0] - accuracies[1]) <= 1
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert str(plot) in done.stdout


def test_digits_says_so_when_the_versions_disagree(tmp_path):
    done, _ = digits(tmp_path, "--loss-tolerance", "-1")
    assert done.returncode == 1
    assert "FAILED classifier: the loss curves differ by" in done.stdout
