"""Figures of archived runs: what `figure_data.py` gathers from results/measured/."""

from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import convergence as study
import numpy as np
import pandas as pd
import sweeps
import worklist
from cells import RESULTS

from dp.output import record
from dp.runs import compose
from dp.runs.keys import digest_of, run_key

MEASURED = RESULTS / "measured"
Point = tuple[float, float, float]  # value and the ends of its interval, in percent


def point(figure: dict) -> Point:
    """A figure of a summary as a point."""
    return (figure["value"], *figure["wilson95"])


def fig7_sweeps() -> dict[str, np.ndarray]:
    """The sweeps of `scripts/studies/sweeps.py` that are archived."""
    arrays, keys = {}, []
    for name, short in (("tau", "tau"), ("t_l, t_s", "pairs"), ("t", "t")):
        runs = {v: o for v, o in sweeps.cells()[name].items() if worklist.archived(o)}
        found = [sweeps.figures(o) for o in runs.values()]
        values = np.array(list(runs), dtype=float)
        arrays[short] = values if short == "pairs" else values[:, 0]
        arrays |= {f"{short}_{side}": np.array([f[side] for f in found]) for side in ("standard", "robust")}
        keys += [run_key(compose.composed(*o)) for o in runs.values()]
    about = "digits for CIFAR-10: linf 32/255, PGD 20 x EOT 4, exact gradient, 128 images, 3 seeds; bars: 95 %"
    return arrays | {"about": np.array(about), "runs": np.array(keys)}


def strict_runs(images: int = 1) -> list[tuple[str, dict]]:
    """(key, summary) of the archived runs on digits under `strict`, one for each defense.

    Of several it is the one with the most images and seeds, and of these the one under which robust accuracy is lowest:
    an attack with a larger budget counts.
    """
    best: dict[str, tuple[Any, str, dict]] = {}
    for path in sorted(MEASURED.glob(f"digits-*/{record.SUMMARY}")):
        summary = record.read_summary(path.parent)
        if summary is None or summary["config"]["choices"]["protocol"] != "strict":
            continue
        config, n = summary["config"], summary["robust"]["average"]["n"]
        if config["choices"]["attack"] not in ("strict", "strict_mask") or n < images:
            continue
        defense = digest_of({part: config[part] for part in ("purifier", "denoiser", "classifier")})
        rank = (-n * len(summary["per_seed"]), summary["robust"]["average"]["value"])
        best[defense] = min(best.get(defense, (rank, path.parent.name, summary)), (rank, path.parent.name, summary))
    return [(key, summary) for _, key, summary in best.values()]


def named(summary: dict) -> str:
    """The name of a defense: its purifier's, and the settings in which it differs from the default of digits."""
    config, choices = summary["config"], summary["config"]["choices"]
    default = compose.composed(f"purifier={choices['purifier']}")["purifier"]
    own = config["purifier"]
    changed = [k for k in own if k in default and own[k] != default[k] and not isinstance(own[k], dict | list)]
    words = [choices["purifier"], *(f"{k}={_short(own[k])}" for k in changed if k != "version")]
    words += [choices[part] for part in ("denoiser", "classifier") if choices[part] != choices["dataset"]]
    return ", ".join(words)


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


def samples() -> dict[str, np.ndarray]:
    """Worst-of-m and vote-of-k curves of the defenses with the most images under `strict`."""
    runs = strict_runs(images=128)
    runs.sort(key=lambda run: -run[1]["robust"]["average"]["value"])
    curves = {rule: [_curve(s["curves"]["robust"][rule]) for _, s in runs] for rule in ("worst", "vote")}
    return {"names": np.array([named(s) for _, s in runs]), "runs": np.array([key for key, _ in runs])} | {
        "about": np.array(f"digits, linf 32/255, protocol strict, {_sizes(s for _, s in runs)}; bands: 95 %"),
        **{rule: np.array(found) for rule, found in curves.items()},
    }


def _curve(curve: dict) -> np.ndarray:
    return np.stack([curve["value"], curve["wilson95_low"], curve["wilson95_high"]], axis=-1)


def _sizes(summaries: Iterable[dict]) -> str:
    sizes = {(s["robust"]["average"]["n"], len(s["per_seed"])) for s in summaries}
    return "; ".join(f"{n} images, {seeds} seed" + "s" * (seeds > 1) for n, seeds in sorted(sizes))


def standard_robust() -> dict[str, np.ndarray]:
    """Standard and robust accuracy of every defense that is archived under `strict`."""
    runs = strict_runs()
    return {
        "names": np.array([named(s) for _, s in runs]),
        "standard": np.array([point(s["standard"]["average"]) for _, s in runs]),
        "robust": np.array([point(s["robust"]["average"]) for _, s in runs]),
        "images": np.array([s["robust"]["average"]["n"] for _, s in runs]),
        "runs": np.array([key for key, _ in runs]),
        "about": np.array(f"digits, linf 32/255, protocol strict, {_sizes(s for _, s in runs)}; bars: 95 %"),
    }


def convergence() -> dict[str, np.ndarray]:
    """The cells of `scripts/studies/convergence.py`, from its table."""
    return study.curves(pd.read_csv(study.TABLE).to_dict("records"))


EPS = (
    "python run.py -m +experiment=digits/full purifier=hetero,diffpure protocol.images=128 protocol.seeds=[2024] "
    "threat_model.eps=8/255,16/255,24/255,32/255,48/255"
)


def eps() -> dict[str, np.ndarray]:
    """Accuracy over the attacker's budget: archived runs on digits that differ in `threat_model.eps` alone.

    Raises ValueError, with the command that makes the runs, where no defense has three of them.
    """
    groups: dict[str, list[tuple[float, str, dict]]] = {}
    for path in sorted(MEASURED.glob(f"digits-*/{record.SUMMARY}")):
        summary = record.read_summary(path.parent)
        if summary is None:
            continue
        config = summary["config"]
        rest = {
            k: v for k, v in config.items() if k not in ("threat_model", "choices", "dataset", *config["key_ignores"])
        }
        same = digest_of(rest | {"grad": config["threat_model"]["grad"], "norm": config["threat_model"]["norm"]})
        groups.setdefault(same, []).append((_fraction(config["threat_model"]["eps"]), path.parent.name, summary))
    found = [sorted(runs, key=lambda run: run[0]) for runs in groups.values() if len({e for e, *_ in runs}) >= 3]
    if not found:
        raise ValueError(f"need archived runs that differ in threat_model.eps alone, got none: {EPS}, then dp archive")
    arrays: dict[str, np.ndarray] = {"names": np.array([named(runs[0][2]) for runs in found])}
    for k, runs in enumerate(found):
        arrays[f"eps_{k}"] = np.array([e for e, *_ in runs])
        for side in ("robust", "null", "undefended"):
            arrays[f"{side}_{k}"] = np.array([point(s[side]["average"]) for *_, s in runs])
    about = f"digits, {_sizes(s for runs in found for *_, s in runs)}; the attack is that of the runs; bars: 95 %"
    keys = [key for runs in found for _, key, _ in runs]
    return arrays | {"about": np.array(about), "runs": np.array(keys)}


def _fraction(eps: Any) -> float:
    return float(Fraction(eps)) if isinstance(eps, str) else float(eps)
