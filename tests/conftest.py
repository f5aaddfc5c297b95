"""Fixtures that all tests share."""

import pytest
import torch

import run
from dp.subset import Subset
from tests.helpers.compose import TINY, composed


@pytest.fixture(scope="session")
def config() -> dict:
    return composed(*TINY)


@pytest.fixture(scope="session")
def images() -> Subset:
    """Six test images, in the memory format that runs use."""
    return run.build(composed("protocol.images=6")).subset


@pytest.fixture(autouse=True)
def _one_thread():
    """Sums in the last bit depend on the threads; runs use one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
