"""Whole rows and summaries made by hand."""

from dp.evaluation.rows import Row
from dp.output import record


def whole_row(arm: str, seed: int, i: int, **more) -> Row:
    """A row of an image of class 1 that is seen right when clean, and as class 2 when attacked."""
    clean = {f"clean{end}": None if arm == "null" else 1 for end in ("_vote", "_mean_logits", "_mean_softmax")}
    adv = {f"adv{end}": 2 for end in ("_vote", "_mean_logits", "_mean_softmax")}
    samples = {"clean": [] if arm == "null" else [1, 1], "adv": [2, 2], "seen": []}
    rest = {"ties": 0, "looks": 0, "lost_at": None, "iterations": 2, "distance": 0.5, "nfe": 3}
    return Row(**{"arm": arm, "seed": seed, "id": i, "label": 1, **clean, **adv, **samples, **rest, **more})  # type: ignore[typeddict-item]


def figure(value: float, draws: int) -> dict:
    return {"value": value, "seed_std": 1.5, "wilson95": [value - 2, value + 2], "n": 2, "draws": draws}


def figures(value: float) -> dict:
    return {"single": figure(value, 1), "vote": figure(value + 1, 5)}


def whole_summary(in_loop: bool = False) -> dict:
    """The summary of a finished run of two images and two seeds."""
    choices = {"dataset": "digits", "purifier": "diffpure", "attack": "pgd_eot", "protocol": "default"}
    config = {
        "choices": {**choices, "classifier": "digits", "threat_model": "linf"},
        "dataset": {"name": "digits"},
        "dtype": "float32",
        "classifier": {},
        "attack": {},
        "purifier": {"t": 0.1, "steps": 5, "clamp": "plain"},
        "threat_model": {"norm": "linf", "eps": "32/255", "grad": "full"},
        "protocol": {"report": ["single", "vote"], "judge": {"in_loop": True} if in_loop else None},
    }
    caveats = {"gradients": [[]], "straight_through": False, "nfe": 8, "attack_nfe": 8}
    values = {"standard": 99.0, "robust": 60.0, "null": 98.0, "undefended": 1.0}
    seen = {"seen": {"single": figure(50.0, 10)}} if in_loop else {}
    return {
        "format": record.FORMAT,
        **{name: figures(value) for name, value in values.items()},
        **seen,
        "per_seed": {"1": {}, "2": {}},
        "config": config,
        "caveats": caveats,
        "seconds": 75.0,
        "audited": None,
    }
