"""Fixtures for all tests, and the device axis.

A test file that says `pytestmark = pytest.mark.usefixtures("on_each_device")` runs on the CPU and,
where there is one and this build has kernels for it, on a CUDA device. Its tensors come from
reference.draw, or go through reference.here.
"""

import os

import pytest
import reference
import torch

from matcalc_ext import _C

HAS_CUDA = torch.cuda.is_available() and _C.build_info()["cuda"]


def pytest_addoption(parser):
    parser.addoption("--device", choices=["cpu", "cuda"], help="of the tests that run on each")


def pytest_configure(config):
    if config.getoption("--device") == "cuda" and not HAS_CUDA:
        raise pytest.UsageError("--device cuda: torch sees no CUDA device, or we have no kernels")


def pytest_generate_tests(metafunc):
    if "on_each_device" not in metafunc.fixturenames:
        return
    wanted = metafunc.config.getoption("--device")
    devices = [wanted] if wanted else ["cpu", *(["cuda"] if HAS_CUDA else [])]
    if devices != ["cpu"]:
        metafunc.parametrize("on_each_device", devices, indirect=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """A kernel that broke the memory rules ends one process of several, not every test after it.

    CUDA refuses all work of a process from then on. The tests that are left go to a new one.
    """
    result = yield
    if hasattr(item.config, "workerinput") and torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            os._exit(1)
    return result


@pytest.fixture
def on_each_device(request):
    """The device that reference.here and reference.draw put tensors on."""
    reference.use_device(getattr(request, "param", "cpu"))
    yield
    reference.use_device("cpu")


@pytest.fixture(autouse=True)
def _one_seed():
    """Every test draws the same numbers, alone or among others."""
    torch.manual_seed(0)


@pytest.fixture
def fresh_compiler():
    """Nothing that torch.compile learnt in another test is there in this one."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(params=_C.cpu_isas())
def isa(request):
    """Each instruction set of the host in turn."""
    _C.set_cpu_isa(request.param)
    yield request.param
    _C.set_cpu_isa("")
