"""Configurations composed as run.py composes them, with budgets of seconds."""

from pathlib import Path

import run

CONF = Path(__file__).parents[2] / "conf"
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
SMALL = {"iterations": 2, "steps": 2, "eot": 2, "queries": 5, "directions": 4, "targets": 2, "confirm": 3}


def small_budget(attack: str) -> list[str]:
    """Overrides that make every part of an attack small."""

    def of(node: dict, path: str) -> list[str]:
        found = [f"{path}.{k}={v}" for k, v in SMALL.items() if k in node and isinstance(node[k], int | None)]
        for key, value in node.items():
            found += of(value, f"{path}.{key}") if isinstance(value, dict) else []
        return found

    return of(composed(f"attack={attack}")["attack"], "attack")
