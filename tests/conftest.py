import pytest
import torch


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
