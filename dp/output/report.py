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

from dp.attacks.base import Attack
from dp.evaluation.judge import Judge
from dp.threat_models.ball import parse_eps

PUBLISHED = Path(__file__).parents[2] / "results" / "published"
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
    """Value, 95 % interval and standard deviation over seeds, as text."""
    if figure is None:
        return "-", "", ""
    low, high = figure["wilson95"]
    return (
        f"{figure['value']:.1f}",
        f"{low:.1f} - {high:.1f}",
        "" if figure["seed_std"] is None else f"{figure['seed_std']:.2f}",
    )


def rule_name(rule: str, draws: int) -> str:
    """The decision rule in words."""
    words = {
        "single": "single draw",
        "average": "average of {}",
        "vote": "vote of {}",
        "mean_logits": "mean logits of {}",
        "mean_softmax": "mean softmax of {}",
        "worst": "worst of {}",
    }
    return words[rule].format(draws)


def lost_when(judge: Judge) -> str:
    """When a judge calls an image lost, in words."""
    rules = {"any": "any is wrong", "all": "all are wrong", "vote": "their vote is", "mean_logits": "their mean is"}
    asks = f"{judge.draws} draws" + (f", and {judge.screen} others before" if judge.screen else "")
    return f"{asks}: lost if {rules[judge.rule]}"


def judge_line(judge: Judge, attack: Attack) -> str:
    """How a judge looks on at an attack, in words."""
    after = "left alone then" if judge.retire else "attacked on"
    chosen = "else the attack's own draws choose" if attack.selection_samples > 0 else "else its worst point stands"
    what = "the verdict itself (in-loop)" if judge.in_loop else f"{chosen}, fresh draws score"
    every = "every iteration" if judge.every == 1 else f"every {judge.every} iterations"
    return f"judged {every} by {lost_when(judge)}, and {after}; {what}"


def headline(summary: dict) -> tuple[str, str, str]:
    """The protocol's own rule and the names of its robust and null figures: in-loop ones, where it judges so."""
    protocol = summary["config"]["protocol"]
    in_loop = bool(protocol["judge"]) and protocol["judge"]["in_loop"] and "seen" in summary
    return protocol["report"][0], "seen" if in_loop else "robust", "null_seen" if in_loop else "null"


def row_table(summary: dict) -> Table:
    """The table row of one run, every figure in percent; columns are the protocol's rules, the first is its own."""
    config, choices = summary["config"], summary["config"]["choices"]
    threat, rules, judge = config["threat_model"], config["protocol"]["report"], config["protocol"]["judge"]
    draws, n = summary["robust"]["vote"]["draws"], summary["robust"]["single"]["n"]
    table = Table(
        title=f"{choices['dataset']} / {choices['purifier']} / {choices['attack']}, {threat['norm']} {threat['eps']}, "
        f"protocol {choices['protocol']}",
        caption=f"percent of {n} images, mean of {len(summary['per_seed'])} seeds; intervals: Wilson, over images",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("accuracy")
    for rule in rules:
        for name in (rule_name(rule, draws), "95 %", "seed std"):
            table.add_column(name, justify="right", no_wrap=True)
    in_loop = bool(judge) and judge["in_loop"]
    when = "judged during the attack" if in_loop else "by the judge's draws"
    if judge:
        asked = [judge["screen"], judge["draws"]] if judge.get("screen") else [judge["draws"]]
        when += f" ({', then '.join(map(str, asked))} draws)"
    for name, label in (*ROWS, ("seen", f"robust, {when}"), ("null_seen", f"null control, {when}")):
        if name in summary:
            figures = [cell for rule in rules for cell in cells(summary[name].get(rule))]
            table.add_row(label, *figures, style="bold" if name == ("seen" if in_loop else "robust") else None)
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


def scaled_line(scaled: Sequence[str]) -> str:
    """What a protocol has on digits in place of its own numbers."""
    return f"scaled to digits, beside CIFAR-10's own: {'; '.join(scaled).replace(' instead of ', ' for ')}"


def warnings(summary: dict) -> list[str]:
    """What weakens this evaluation, in words."""
    config, choices = summary["config"], summary["config"]["choices"]
    rule, robust, null = headline(summary)
    said = [f"attacked is not what is scored: {difference}" for difference in summary["differences"]]
    said += [f"protocol {choices['protocol']} is not run as it is defined: {what}" for what in summary["departures"]]
    said += [scaled_line(summary["scaled"])] if summary["scaled"] else []
    said += summary["weaknesses"]
    if summary["batch_bound"]:
        said.append("rows depend on which images share a batch: order, shards and lanes may change them")
    norm = config["threat_model"]["norm"]
    if norm in NOT_BALLS:
        said.append(f"{norm}: {NOT_BALLS[norm]}")
    if (
        choices["attack"] != "none"
        and null in summary
        and summary[robust][rule]["value"] >= summary[null][rule]["value"]
    ):
        said.append(f"the attack does not beat random noise of the same size ({rule})")
    said.append(
        f"vote ties: {summary['ties']}, settled by {config['protocol']['ties']}; {audit_word(summary['audited'])}"
    )
    return [*audit_lines(summary["audited"]), *said]


def audit_word(audited: dict | None) -> str:
    """How a run was audited, in a few words; `audited` as in its summary."""
    if not audited:
        return "unaudited"
    return f"audited: {audited['checks']} checks, {audited['FAIL']} FAIL, {audited['WARN']} WARN"


def audit_lines(audited: dict | None) -> list[str]:
    """What an audit holds against a run, the gravest first."""
    found = [f for verdict in ("FAIL", "WARN") for f in (audited or {}).get("findings", []) if f["verdict"] == verdict]
    words = {"FAIL": "AUDIT FAILED, do not trust this row", "WARN": "audit warns"}
    return [f"{words[f['verdict']]}: {f['check']}: {f['value']} (need {f['threshold']})" for f in found]


def sweep_table(runs: Sequence[dict], title: str) -> Table:
    """One line per cell of a sweep: its overrides, then its figures by its protocol's rules, or its error."""
    table, failed = Table(title=title, box=box.SIMPLE_HEAD), []
    shared = set.intersection(*(set(run["overrides"].split()) for run in runs)) if len(runs) > 1 else set()
    for name in ("cell", "standard", "", "robust", "", "standard, 2nd rule", "robust, 2nd rule", "NFE"):
        table.add_column(name, justify="left" if name == "cell" else "right")
    for run in runs:
        s, name = run["summary"], " ".join(o for o in run["overrides"].split() if o not in shared)
        if s is None:
            table.add_row(Text(name), "-")
            failed.append(f"{name} failed: {run['error']}")
            continue
        rule, robust, _ = headline(s)
        second = s["config"]["protocol"]["report"][1:2]
        more = [cells(s[side].get(second[0]))[0] if second else "-" for side in ("standard", robust)]
        table.add_row(
            Text(name),
            *cells(s["standard"][rule])[:2],
            *cells(s[robust][rule])[:2],
            *more,
            str(s["nfe"]),
        )
    table.caption = Text("\n".join(["percent; intervals: 95 %", *failed]))
    return table


def sweep_frame(runs: Sequence[dict]) -> pd.DataFrame:
    """The same as data, with the folder of every cell and the error of those that failed."""
    lines = []
    for run in runs:
        line = {"overrides": run["overrides"], "folder": run["folder"], "error": run["error"]}
        for name in ("standard", "robust", "seen") if run["summary"] else ():
            for rule, figure in run["summary"].get(name, {}).items():
                low, high = figure["wilson95"]
                line |= {f"{name}_{rule}": figure["value"], f"{name}_{rule}_lo": low, f"{name}_{rule}_hi": high}
        if run["summary"]:
            rule, robust, _ = headline(run["summary"])
            line |= {"rule": rule, "in_loop": robust == "seen", "nfe": run["summary"]["nfe"]}
        lines.append(line)
    return pd.DataFrame(lines)


def clock(seconds: float) -> str:
    """`7 s`, `3 min 20 s`, `2 h 05 min`."""
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    return f"{s // 60} min {s % 60:02d} s" if s < 3600 else f"{s // 3600} h {s % 3600 // 60:02d} min"
