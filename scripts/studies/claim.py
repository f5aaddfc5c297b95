"""The main study: is a defense more robust if the noise is strong where the classifier pays attention?

The study runs five defenses at equal standard accuracy under five protocols, on digits. It goes on where it stopped,
and writes results/tables/claim.md, claim.csv and results/figures/claim.png. Every cell of the table is a run with the
overrides that the table shows. A finished cell is archived in results/measured/, so that the same command goes on where
it stopped; `--protocols` limits the cells of this start, and the report is written when all cells are there.

The reference is the released code's method with the noise times of its ImageNet scripts (t_l = .4, t_s = .2) and 20
network evaluations. At its CIFAR-10 times the defenses could not be matched, because each is right on 99 % of the clean
digits. The noise times of the other defenses are set by bisection, so that their standard accuracy equals that of the
reference. The bisection uses clean test images that no run uses.
"""

import json
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import outputs
import pandas as pd
from cells import audited, by_seed, finished, image_scores, scores, side_by_side
from claim_report import DATA, PICTURE, TEXT, draw, write
from rich import box
from rich.console import Console
from rich.table import Table

from dp.evaluation.draws import fresh_samples
from dp.output import record, report
from dp.output.console import console as run_console
from dp.output.row_table import rule_name
from dp.runs import compose
from dp.runs.build import build
from dp.runs.errors import command
from dp.runs.keys import run_key
from dp.runs.machine import workers_of
from dp.statistics.intervals import mcnemar, paired

ROOT = Path(__file__).parents[2]
TIMES = ROOT / "results" / "measured" / "claim-times.json"
SCALED, CONVERGED = "+experiment=digits/scaled", "+experiment=digits/strict"
PROTOCOLS = {
    "official": 1.0,
    "paper": 0.9,
    "lee_kim": 0.8,
    "diffhammer": 1.8,
    "strict": 22.0,
}  # relative times
AT_ONCE = workers_of(compose.composed())
SAMPLES, LOW, HIGH, HALVINGS = 3, 0.1, 0.7, 6  # calibration: samples of each image; range of times, to .005
console = Console(width=150, highlight=False)


class Defense(NamedTuple):
    """A defense of the study."""

    name: str
    overrides: tuple[str, ...]
    times: tuple[str, ...]  # the keys that are set to t and t / 2; the reference has none
    masked: bool  # True if its mask depends on the input: strict then attacks the mask too
    cost: float  # the relative time of a run, roughly


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
    """The overrides of a defense with the strong noise at time t and the weak noise at t / 2."""
    values = (t, t / 2)[: len(defense.times)]
    return (*defense.overrides, *(f"purifier.{k}={v:.4g}" for k, v in zip(defense.times, values, strict=True)))


def standard(overrides: tuple[str, ...]) -> float:
    """The share of right single samples, on clean test images that no run of the study uses."""
    used = set(build(compose.composed(SCALED)).subset.ids.tolist())
    evaluation = build(compose.composed(*overrides, "protocol.images=512"))
    images, model = evaluation.subset, evaluation.arms["defended"].scored
    others = [k for k, i in enumerate(images.ids.tolist()) if i not in used]
    x, ids = images.x[others].to(evaluation.device), images.ids[others].tolist()
    logits = fresh_samples(model, x, ids, 0, "calibrate", SAMPLES, evaluation.lanes, rng=evaluation.rng)
    return float((logits.argmax(dim=2) == images.y[others].unsqueeze(1)).float().mean())


def matched() -> dict[str, dict]:
    """The overrides and the standard accuracy of each defense, matched to the reference's, by name.

    They are computed once for these configurations.
    """
    identity = [SAMPLES, LOW, HIGH, HALVINGS, run_key(compose.composed(SCALED))]
    identity += [run_key(compose.composed(*defense.overrides)) for defense in DEFENSES]
    if TIMES.exists() and json.loads(TIMES.read_text())["asked"] == identity:
        return json.loads(TIMES.read_text())["defenses"]
    ((_, target),) = side_by_side(standard, {REFERENCE.name: (REFERENCE.overrides,)}, 1)
    console.print(f"calibration: {REFERENCE.name} is right on {100 * target:.2f} % of clean images")
    result = {REFERENCE.name: {"overrides": list(REFERENCE.overrides), "standard": 100 * target}}
    others = {defense.name: (defense, target) for defense in DEFENSES if defense.times}
    ended = dict(side_by_side(bisected, others, AT_ONCE))
    result |= {name: ended[name] for name in others}
    TIMES.parent.mkdir(parents=True, exist_ok=True)
    record.write_atomic(TIMES, json.dumps({"asked": identity, "defenses": result}, indent=1).encode())
    return result


def bisected(defense: Defense, target: float) -> dict:
    """The overrides of a defense whose standard accuracy is the target, and the accuracy that they reach."""
    low, high, start_time = LOW, HIGH, time.monotonic()
    for k in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if standard(at(defense, middle)) > target else (low, middle)
        left = (time.monotonic() - start_time) / (k + 1) * (HALVINGS - k)  # one more evaluation follows the last
        run_console.print(f"t between {low:.3f} and {high:.3f}, {report.clock(left)} to go")
    chosen = at(defense, (low + high) / 2)
    return {"overrides": list(chosen), "standard": 100 * standard(chosen)}


def cell(defense: Defense, overrides: tuple[str, ...], protocol: str) -> tuple[str, ...]:
    """The overrides of a run. `strict` has its converged budget, and attacks a mask that depends on the input too."""
    if protocol == "strict":
        return ("+experiment=digits/strict_mask" if defense.masked else CONVERGED, *overrides, "audit=false")
    return (SCALED, f"protocol={protocol}", *overrides, "audit=false")


def made(protocol: str, defense: str, overrides: tuple[str, ...]) -> tuple[dict, Path]:
    """The summary and the folder of one cell. Of the dearest one each seed is archived when it ends."""
    if protocol != "strict":
        return finished(overrides, 1)
    if defense == REFERENCE.name:
        by_seed(overrides, 1)
    return audited(overrides, 1)


def evaluated(
    cells: dict[tuple[str, str], tuple[str, ...]], start_time: float
) -> dict[tuple[str, str], tuple[dict, Path]]:
    """The summaries and folders of all runs; those of strict have the whole audit.

    The longest start first, and as many run at a time as there are cores.
    """
    costs = {(p, d.name): PROTOCOLS[p] * d.cost for p in PROTOCOLS for d in DEFENSES if (p, d.name) in cells}
    names = {": ".join(key): key for key in sorted(cells, key=lambda key: -costs[key])}
    ended: dict[tuple[str, str], tuple[dict, Path]] = {}
    for name, (summary, folder) in side_by_side(made, {n: (*names[n], cells[names[n]]) for n in names}, AT_ONCE):
        ended[names[name]] = (summary, folder)
        pace = sum(one["seconds"] for one, _ in ended.values()) / sum(costs[key] for key in ended) / AT_ONCE
        left = pace * sum(cost for key, cost in costs.items() if key not in ended)
        rule, robust, _ = report.headline(summary)
        console.rule(
            f"{len(ended)}/{len(cells)}: {name}: {summary[robust][rule]['value']:.1f} % robust; "
            f"{report.clock(time.monotonic() - start_time)} so far, {report.clock(left)} to go"
        )
    return ended


def line(name: str, protocol: str, given: tuple[str, ...], summary: dict) -> dict:
    """One run as data, figures in percent. `given`: its overrides."""
    rule, robust, null = report.headline(summary)
    figures = {"standard": summary["standard"][rule], "robust": summary[robust][rule], "null": summary[null].get(rule)}
    data: dict = {"protocol": protocol, "defense": name}
    data["rule"] = rule_name(rule, summary[robust][rule]["draws"]) + (", in-loop" if robust == "seen" else "")
    second = summary["config"]["protocol"]["report"][1]
    data["second_rule"] = rule_name(second, summary[robust][second]["draws"])
    data["second"] = summary[robust][second]["value"]
    data["average"] = summary["robust"]["average"]["value"]  # of fresh samples, even if the protocol decides in-loop
    for column, figure in figures.items():
        figure = figure or summary["null"][rule]
        low, high = figure["wilson95"]
        data |= {column: figure["value"], f"{column}_low": low, f"{column}_high": high}
        data[f"{column}_seed_std"] = figure["seed_std"]
    data |= {
        "gradient": report.gradient_words(summary["caveats"]),
        "undefended": summary["undefended"][rule]["value"],
        "nfe": summary["caveats"]["nfe"],
    }
    data |= {"attack_nfe": summary["caveats"]["attack_nfe"], "seconds": summary["seconds"]}
    data |= {"audit": report.audit_word(summary["audited"]), "warnings": report.audit_lines(summary["audited"])}
    return data | {"command": "python run.py " + " ".join(given)}


def gain(first: pd.DataFrame, second: pd.DataFrame) -> tuple[float, float, float]:
    """second minus first in points, with its paired 95 % interval over images. Scores are means over seeds."""
    difference, low, high = paired(first.mean(axis=1).to_numpy(), second.mean(axis=1).to_numpy())
    return 100 * difference, 100 * low, 100 * high


def contrast(first: pd.DataFrame, second: pd.DataFrame) -> dict:
    """The `gain` as data, with McNemar's p on the first seed if every score is 0 or 1."""
    difference, low, high = gain(first, second)
    a, b = first.iloc[:, 0].to_numpy(), second.iloc[:, 0].to_numpy()
    p = mcnemar(a, b) if np.isin(np.concatenate([a, b]), (0, 1)).all() else None
    return {"difference": difference, "low": low, "high": high, "p": p}


def main() -> int:
    """The command. Returns 0 when the tables and the figure are written."""
    parser = outputs.parser(__doc__)
    parser.add_argument("--protocols", nargs="+", choices=PROTOCOLS, default=list(PROTOCOLS), help="only these cells")
    args = parser.parse_args()
    times, start_time = matched(), time.monotonic()
    cells = {(p, d.name): cell(d, tuple(times[d.name]["overrides"]), p) for p in args.protocols for d in DEFENSES}
    ended = evaluated(cells, start_time)
    if len(args.protocols) < len(PROTOCOLS):
        console.print("these cells are archived; the report needs all protocols")
        return 0
    by_cell = {key: scores(*ended[key]) for key in cells}
    averages = {key: image_scores(ended[key][1], "adv", "average") for key in cells}
    lines = [line(name, protocol, given, ended[protocol, name][0]) for (protocol, name), given in cells.items()]
    contrasts = [
        contrast(by_cell[protocol, b.name], by_cell[protocol, a.name])
        | {"average": gain(averages[protocol, b.name], averages[protocol, a.name])}
        | {"protocol": protocol, "first": a.name, "second": b.name}
        for protocol in PROTOCOLS
        for a, b in CONTRASTS
    ]
    cleans = {d: image_scores(ended["strict", d.name][1], "clean", "average") for d in DEFENSES}
    compared = [(f"clean images: {a.name} minus {b.name}", gain(cleans[b], cleans[a])) for a, b in CONTRASTS]
    for name, one, other in ((d.name, averages["official", d.name], averages["strict", d.name]) for d in DEFENSES):
        compared.append((f"{name}: attacked under strict minus attacked under official", gain(one, other)))
    first = next(iter(by_cell.values()))
    paths = [outputs.target(path, args.write) for path in (TEXT, DATA, PICTURE)]
    write(paths[0], paths[1], lines, contrasts, compared, times, *first.shape)
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
