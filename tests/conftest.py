"""Shared by the tests: configurations composed as run.py composes them, and the embedded networks."""

from pathlib import Path

import pytest
import torch

import run
from dp.datasets import Subset

CONF = Path(__file__).parents[1] / "conf"
TINY = [  # seconds instead of minutes
    "protocol.images=4",
    "protocol.seeds=[5,6]",
    "protocol.votes=3",
    "attack.iterations=2",
    "attack.eot=2",
    "dataset.lanes=4",
    "dataset.draws_per_call=2",
]


composed = run.composed
SMALL = {"iterations": 2, "steps": 2, "eot": 2, "queries": 5, "samples": 4, "targets": 2, "confirm": 3}


def small_budget(attack: str) -> list[str]:
    """Overrides that make every part of an attack small."""

    def of(node: dict, path: str) -> list[str]:
        found = [f"{path}.{k}={v}" for k, v in SMALL.items() if k in node and isinstance(node[k], int | None)]
        for key, value in node.items():
            found += of(value, f"{path}.{key}") if isinstance(value, dict) else []
        return found

    return of(composed(f"attack={attack}")["attack"], "attack")


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
