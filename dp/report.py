"""What a person sees of a run: the table row, the published row beside it, the table of a sweep. Returns text and
tables, prints nothing.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from dp.threat import parse_eps

PUBLISHED = Path(__file__).parents[1] / "results" / "published"
ROWS = (
    ("standard", "standard accuracy"),
    ("robust", "robust accuracy"),
    ("null", "null control: random noise"),
    ("undefended_standard", "undefended, clean"),
    ("undefended", "undefended, attacked"),
)


NOT_BALLS = {  # what is said beside a row under such a threat model
    "flow": "pixels move, by halves of the image's side; no l_p ball, not for an l_p column",
    "perceptual": "the classifier's own features with equal weights, not VGG16-LPIPS: the bound is on another scale "
    "than published ones, the figure not comparable; no l_p ball, not for an l_p column",
}


def cells(figure: dict | None) -> tuple[str, str, str]:
    """Value, Wilson 95 % interval and standard deviation over seeds, as text."""
    if figure is None:
        return "-", "", ""
    low, high = figure["wilson95"]
    return (
        f"{figure['value']:.1f}",
        f"{low:.1f} - {high:.1f}",
        "" if figure["seed_std"] is None else f"{figure['seed_std']:.2f}",
    )


def row_table(summary: dict) -> Table:
    """The table row of one run, every figure in percent."""
    choices, votes, n = (
        summary["config"]["choices"],
        summary["robust"]["vote"]["draws"],
        summary["robust"]["single"]["n"],
    )
    threat = summary["config"]["threat_model"]
    table = Table(
        title=f"{choices['dataset']} / {choices['purifier']} / {choices['attack']}, {threat['norm']} {threat['eps']}",
        caption=f"percent of {n} images, mean of {len(summary['per_seed'])} seeds",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("accuracy")
    for rule in ("single draw", f"vote of {votes}"):
        for name in (rule, "Wilson 95 %", "seed std"):
            table.add_column(name, justify="right", no_wrap=True)
    for name, label in ROWS:
        if name in summary:
            figures = [*cells(summary[name]["single"]), *cells(summary[name]["vote"])]
            table.add_row(label, *figures, style="bold" if name == "robust" else None)
    return table


def published_lines(rows: Sequence[dict]) -> list[str]:
    """The papers' figures as they print them, with what is doubtful about them."""
    return [
        f"published ({row['source']}, {row['printed']} {row['setting']}".rstrip()
        + f"): standard {_pm(row, 'standard')}, robust {_pm(row, 'robust')}"
        + (f"; {row['flag']}: {row['note']}" if row["flag"] else "")
        for row in rows
    ]


def _pm(row: dict, name: str) -> str:
    spread = row[f"{name}_std"]
    return (row[name] or "-") + (f"±{spread}" if spread else "")


def published_rows(config: dict, method: str | None, folder: Path = PUBLISHED) -> list[dict]:
    """The papers' rows for this method, dataset, classifier, attack and threat model; most configurations have none."""
    choices, threat = config["choices"], config["threat_model"]
    found = []
    for path in sorted(folder.glob("table*.csv")):
        with path.open(newline="") as file:
            found += [
                row
                for row in csv.DictReader(file)
                if row["method"] == method
                and row["dataset"] == config["dataset"]["name"]
                and row["classifier"] == config["classifier"].get("name", choices["classifier"])
                and not row["setting"].startswith("blocks")  # Table 7 varies the mask's blocks
                and choices["attack"].startswith(row["attack"])
                and row["norm"] == threat["norm"]
                and abs(parse_eps(row["eps"]) - parse_eps(threat["eps"])) < 1e-9
            ]
    return found


def warnings(summary: dict) -> list[str]:
    """What weakens this evaluation, in words."""
    said = []
    config = summary["config"]
    norm = config["threat_model"]["norm"]
    if norm in NOT_BALLS:
        said.append(f"{norm}: {NOT_BALLS[norm]}")
    if summary["gradient"] == "surrogate":
        said.append(
            f"attacked is not what is scored: the gradient is the surrogate's, {config['purifier'].get('surrogate')}"
        )
    if summary["gradient"] == "adjoint":
        said.append("gradient: the continuous adjoint's, which is not the scored defence's")
    if summary["gradient"] == "approximate":
        said.append("gradient: approximate (straight-through clamp)")
    if (
        "null" in summary
        and summary["robust"]["vote"]["value"] >= summary["null"]["vote"]["value"]
        and config["choices"]["attack"] != "none"
    ):
        said.append("the attack does not beat random noise of the same size (vote)")
    said.append(f"vote ties: {summary['ties']}, settled by {config['protocol']['ties']}; unaudited")
    return said


def sweep_table(runs: Sequence[dict], title: str) -> Table:
    """One line per cell of a sweep: its overrides, then its figures (single draw with interval, vote) or its error."""
    table, failed = Table(title=title, box=box.SIMPLE_HEAD), []
    shared = set.intersection(*(set(run["overrides"].split()) for run in runs)) if len(runs) > 1 else set()
    for name in ("cell", "standard", "", "robust", "", "standard, vote", "robust, vote", "NFE"):
        table.add_column(name, justify="left" if name == "cell" else "right")
    for run in runs:
        s, name = run["summary"], " ".join(o for o in run["overrides"].split() if o not in shared)
        if s is None:
            table.add_row(Text(name), "-")
            failed.append(f"{name} failed: {run['error']}")
            continue
        votes = [cells(s[side]["vote"])[0] for side in ("standard", "robust")]
        table.add_row(
            Text(name),
            *cells(s["standard"]["single"])[:2],
            *cells(s["robust"]["single"])[:2],
            *votes,
            str(s["nfe"]),
        )
    table.caption = Text("\n".join(["percent; intervals: Wilson 95 %", *failed]))
    return table


def sweep_frame(runs: Sequence[dict]) -> pd.DataFrame:
    """The same as data, with the folder of every cell and the error of those that failed."""
    lines = []
    for run in runs:
        line = {"overrides": run["overrides"], "folder": run["folder"], "error": run["error"]}
        for name in ("standard", "robust") if run["summary"] else ():
            for rule in ("single", "vote"):
                figure = run["summary"][name][rule]
                low, high = figure["wilson95"]
                line |= {f"{name}_{rule}": figure["value"], f"{name}_{rule}_lo": low, f"{name}_{rule}_hi": high}
        lines.append(line | ({"nfe": run["summary"]["nfe"]} if run["summary"] else {}))
    return pd.DataFrame(lines)


def clock(seconds: float) -> str:
    """`7 s`, `3 min 20 s`, `2 h 05 min`."""
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    return f"{s // 60} min {s % 60:02d} s" if s < 3600 else f"{s // 3600} h {s % 3600 // 60:02d} min"
