"""The main study: is a defense more robust if the noise is strong where the classifier pays attention?

Five defenses at equal standard accuracy under five protocols, on digits. It runs them all, or goes on where it stopped,
and writes results/tables/claim.md, claim.csv and results/figures/claim.png. Every cell is a run with the overrides that
the table shows. Under an hour on two cores.

The reference is the released code's method with the noise times of its ImageNet scripts (t_l = .4, t_s = .2) and 20
network evaluations. At its CIFAR-10 times every defense is right on all but 1 % of the clean digits, and there would be
nothing to match. Bisection sets the noise times of the other defenses to the reference's standard accuracy, on clean
test images that no cell uses.
"""

import json
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import outputs
import pandas as pd
from cells import finished, image_scores, scores, side_by_side
from claim_report import DATA, PICTURE, TEXT, draw, write
from rich import box
from rich.console import Console
from rich.table import Table

from dp.evaluation.draws import fresh_samples
from dp.output import record, report
from dp.output.console import console as run_console
from dp.runs import compose
from dp.runs.build import build
from dp.runs.errors import command
from dp.runs.keys import run_key
from dp.runs.machine import workers_of
from dp.statistics.intervals import mcnemar, paired

ROOT = Path(__file__).parents[2]
TIMES = ROOT / "results" / "runs" / "claim-times.json"
SCALED = "+experiment=digits/scaled"
PROTOCOLS = {"official": 1.0, "paper": 0.9, "lee_kim": 0.8, "diffhammer": 1.8, "strict": 5.6}  # and a cell's time
AT_ONCE = workers_of(compose.composed())
SAMPLES, LOW, HIGH, HALVINGS = 3, 0.1, 0.7, 6  # calibration: samples of each image; range of times, to .005
console = Console(width=150, highlight=False)


class Defense(NamedTuple):
    name: str
    overrides: tuple[str, ...]
    times: tuple[str, ...]  # keys that are set to t and t / 2; the reference has none
    masked: bool  # True if its mask depends on the input; strict then attacks the mask too
    cost: float  # a cell's time, roughly, against that of the others


DEFENSES = (
    Defense("uniform DiffPure", ("purifier=diffpure", "purifier.eta=1.0"), ("t",), False, 0.6),
    Defense("hetero, strong inside (Eq. 5)", ("purifier=hetero",), ("t_l", "t_s"), True, 1.0),
    Defense(
        "hetero, strong outside (Eq. 8)", ("purifier=hetero", "purifier.eq8_literal=true"), ("t_l", "t_s"), True, 1.0
    ),
    Defense("hetero, random mask", ("purifier=hetero_random",), ("t_l", "t_s"), False, 0.9),
    Defense(
        "hetero_official",
        ("purifier=hetero_official", "purifier.n=50", "purifier.t_l=0.4", "purifier.t_s=0.2"),
        (),
        True,
        2.2,
    ),
)
REFERENCE, UNIFORM, INSIDE, OUTSIDE, RANDOM = DEFENSES[4], *DEFENSES[:4]
CONTRASTS = ((INSIDE, UNIFORM), (INSIDE, RANDOM), (INSIDE, OUTSIDE), (OUTSIDE, UNIFORM), (REFERENCE, UNIFORM))


def at(defense: Defense, t: float) -> tuple[str, ...]:
    """The defense's overrides at strong noise time t, weak noise at half of it."""
    values = (t, t / 2)[: len(defense.times)]
    return (*defense.overrides, *(f"purifier.{k}={v:.4g}" for k, v in zip(defense.times, values, strict=True)))


def standard(overrides: tuple[str, ...]) -> float:
    """Share of right single samples on the clean test images that no cell uses."""
    used = set(build(compose.composed(SCALED)).subset.ids.tolist())
    evaluation = build(compose.composed(*overrides, "protocol.images=512"))
    images, model = evaluation.subset, evaluation.arms["defended"].scored
    others = [k for k, i in enumerate(images.ids.tolist()) if i not in used]
    x, ids = images.x[others].to(evaluation.device), images.ids[others].tolist()
    logits = fresh_samples(model, x, ids, 0, "calibrate", SAMPLES, evaluation.lanes)
    return float((logits.argmax(dim=2) == images.y[others].unsqueeze(1)).float().mean())


def matched() -> dict[str, dict]:
    """{defense: overrides, standard} at the reference's standard accuracy; computed once for this code and these
    configurations.
    """
    asked = [SAMPLES, LOW, HIGH, HALVINGS, run_key(compose.composed(SCALED))]
    asked += [record.code_hash(), *(run_key(compose.composed(*defense.overrides)) for defense in DEFENSES)]
    if TIMES.exists() and json.loads(TIMES.read_text())["asked"] == asked:
        return json.loads(TIMES.read_text())["defenses"]
    ((_, target),) = side_by_side(standard, {REFERENCE.name: (REFERENCE.overrides,)}, 1)
    console.print(f"calibration: {REFERENCE.name} is right on {100 * target:.2f} % of clean images")
    found = {REFERENCE.name: {"overrides": list(REFERENCE.overrides), "standard": 100 * target}}
    others = {defense.name: (defense, target) for defense in DEFENSES if defense.times}
    ended = dict(side_by_side(bisected, others, AT_ONCE))
    found |= {name: ended[name] for name in others}
    TIMES.parent.mkdir(parents=True, exist_ok=True)
    record.write_atomic(TIMES, json.dumps({"asked": asked, "defenses": found}, indent=1).encode())
    return found


def bisected(defense: Defense, target: float) -> dict:
    """The defense's overrides with the time at which its standard accuracy is the target, and what it is there."""
    low, high, began = LOW, HIGH, time.monotonic()
    for k in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if standard(at(defense, middle)) > target else (low, middle)
        left = (time.monotonic() - began) / (k + 1) * (HALVINGS - k)  # the last is asked once more
        run_console.print(f"t between {low:.3f} and {high:.3f}, {report.clock(left)} to go")
    chosen = at(defense, (low + high) / 2)
    return {"overrides": list(chosen), "standard": 100 * standard(chosen)}


def cell(defense: Defense, overrides: tuple[str, ...], protocol: str) -> tuple[str, ...]:
    """The run's overrides. Under strict a mask that depends on the input is attacked too, and the run is audited."""
    mask = ("attack=strict_mask",) if defense.masked else ()
    return (SCALED, f"protocol={protocol}", *overrides, *((*mask, "audit=true") if protocol == "strict" else ()))


def evaluated(cells: dict[tuple[str, str], tuple[str, ...]], began: float) -> dict[tuple[str, str], tuple[dict, Path]]:
    """The summaries and folders of all cells, as many at a time as there are cores, the longest first."""
    costs = {(p, d.name): PROTOCOLS[p] * d.cost for p in PROTOCOLS for d in DEFENSES}
    names = {": ".join(key): key for key in sorted(cells, key=lambda key: -costs[key])}
    ended: dict[tuple[str, str], tuple[dict, Path]] = {}
    for name, (summary, folder) in side_by_side(finished, {n: (cells[k], 1) for n, k in names.items()}, AT_ONCE):
        ended[names[name]] = (summary, folder)
        pace = sum(found["seconds"] for found, _ in ended.values()) / sum(costs[key] for key in ended) / AT_ONCE
        left = pace * sum(cost for key, cost in costs.items() if key not in ended)
        rule, robust, _ = report.headline(summary)
        console.rule(
            f"{len(ended)}/{len(cells)}: {name}: {summary[robust][rule]['value']:.1f} % robust; "
            f"{report.clock(time.monotonic() - began)} so far, {report.clock(left)} to go"
        )
    return ended


def line(name: str, protocol: str, given: tuple[str, ...], summary: dict) -> dict:
    """A cell as data, percent."""
    rule, robust, null = report.headline(summary)
    figures = {"standard": summary["standard"][rule], "robust": summary[robust][rule], "null": summary[null].get(rule)}
    found: dict = {"protocol": protocol, "defense": name}
    found["rule"] = report.rule_name(rule, summary[robust][rule]["draws"]) + (", in-loop" if robust == "seen" else "")
    second = summary["config"]["protocol"]["report"][1]
    found["second_rule"] = report.rule_name(second, summary[robust][second]["draws"])
    found["second"] = summary[robust][second]["value"]
    found["average"] = summary["robust"]["average"][
        "value"
    ]  # of fresh samples, whatever the in-loop evaluation decided
    for column, figure in figures.items():
        figure = figure or summary["null"][rule]
        low, high = figure["wilson95"]
        found |= {column: figure["value"], f"{column}_low": low, f"{column}_high": high}
        found[f"{column}_seed_std"] = figure["seed_std"]
    found |= {
        "gradient": report.gradient_words(summary["caveats"]),
        "undefended": summary["undefended"][rule]["value"],
        "nfe": summary["caveats"]["nfe"],
    }
    found |= {"attack_nfe": summary["caveats"]["attack_nfe"], "seconds": summary["seconds"]}
    found |= {"audit": report.audit_word(summary["audited"]), "warnings": report.audit_lines(summary["audited"])}
    return found | {"command": "python run.py " + " ".join(given)}


def gain(first: pd.DataFrame, second: pd.DataFrame) -> tuple[float, float, float]:
    """second minus first in points, and its paired 95 % interval over images, each with its mean over seeds."""
    difference, low, high = paired(first.mean(axis=1).to_numpy(), second.mean(axis=1).to_numpy())
    return 100 * difference, 100 * low, 100 * high


def contrast(first: pd.DataFrame, second: pd.DataFrame) -> dict:
    """`gain`, and McNemar's p on the first seed if the rule gives whole decisions."""
    difference, low, high = gain(first, second)
    a, b = first.iloc[:, 0].to_numpy(), second.iloc[:, 0].to_numpy()
    p = mcnemar(a, b) if np.isin(np.concatenate([a, b]), (0, 1)).all() else None
    return {"difference": difference, "low": low, "high": high, "p": p}


def main() -> int:
    args = outputs.parser(__doc__).parse_args()
    times, began = matched(), time.monotonic()
    cells = {(p, d.name): cell(d, tuple(times[d.name]["overrides"]), p) for p in PROTOCOLS for d in DEFENSES}
    ended = evaluated(cells, began)
    found = {key: scores(*ended[key]) for key in cells}
    averages = {key: image_scores(ended[key][1], "adv", "average") for key in cells}
    lines = [line(name, protocol, given, ended[protocol, name][0]) for (protocol, name), given in cells.items()]
    contrasts = [
        contrast(found[protocol, b.name], found[protocol, a.name])
        | {"average": gain(averages[protocol, b.name], averages[protocol, a.name])}
        | {"protocol": protocol, "first": a.name, "second": b.name}
        for protocol in PROTOCOLS
        for a, b in CONTRASTS
    ]
    cleans = {d: image_scores(ended["strict", d.name][1], "clean", "average") for d in DEFENSES}
    compared = [(f"clean images: {a.name} minus {b.name}", gain(cleans[b], cleans[a])) for a, b in CONTRASTS]
    for name, one, other in ((d.name, averages["official", d.name], averages["strict", d.name]) for d in DEFENSES):
        compared.append((f"{name}: attacked under strict minus attacked under official", gain(one, other)))
    some = next(iter(found.values()))
    paths = [outputs.target(path, args.write) for path in (TEXT, DATA, PICTURE)]
    write(paths[0], paths[1], lines, contrasts, compared, times, *some.shape)
    draw(paths[2], lines, contrasts)
    for protocol in PROTOCOLS:
        shown = Table("", "standard", "robust", "95 %", "null", title=protocol, box=box.SIMPLE_HEAD)
        for r in (r for r in lines if r["protocol"] == protocol):
            values = [f"{r[name]:.1f}" for name in ("standard", "robust", "null")]
            shown.add_row(r["defense"], *values[:2], f"{r['robust_low']:.1f} - {r['robust_high']:.1f}", values[2])
        console.print(shown)
    console.print(", ".join(map(str, paths)))
    return 0


if __name__ == "__main__":
    sys.exit(command(main))
