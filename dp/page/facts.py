"""The data of a run that the page's scripts read: the columns of its images, its curves, and its text."""

from collections.abc import Mapping, Sequence
from typing import Any

from dp.output.published import published_lines, published_rows
from dp.output.report import clock, fact_lines, headline, warnings
from dp.output.row_table import ROWS, cells, rule_name, threat_words, version_name
from dp.page.source import Run

ARMS = ("defended", "undefended", "null")
FIELDS = ("seed", "id", "label", "clean_vote", "adv_vote", "distance", "iterations", "lost_at", "nfe")
CURVES = ("standard", "robust", "null")


def columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list]:
    """The rows as columns: `arm`, the classes of all samples (`clean`, `adv`), how many are right, and `FIELDS`."""
    table: dict[str, list] = {name: [row.get(name) for row in rows] for name in ("arm", *FIELDS)}
    for side in ("clean", "adv"):
        table[side] = [row[side] for row in rows]
        table[f"{side}_right"] = [sum(c == row["label"] for c in row[side]) if row[side] else None for row in rows]
    table["samples"] = [len(row["adv"]) for row in rows]
    return table


def budget_curve(rows: Sequence[Mapping[str, Any]]) -> dict[str, list] | None:
    """The share of defended images, in percent, that the in-loop evaluation had not called broken after so many
    iterations; None without an in-loop evaluation.
    """
    own = [row for row in rows if row["arm"] == "defended"]
    if not any(row["looks"] for row in own):
        return None
    ends = [row["lost_at"] for row in own if row["lost_at"] is not None]
    points = sorted({0, *ends, *(row["iterations"] for row in own)})
    return {"iterations": points, "percent": [100 * (1 - sum(e <= p for e in ends) / len(own)) for p in points]}


def curves(run: Run) -> dict[str, Any]:
    """The curves of a run: accuracy over the number of samples, with intervals, and over the iterations spent; and the
    loss, gradient norm and share of right samples over the iterations, by condition.
    """
    held = run.summary.get("curves", {})
    return {
        rule: {name: held[name][rule] for name in CURVES if name in held and rule in held[name]}
        for rule in ("worst", "vote")
    } | {"budget": budget_curve(run.rows), "attack": run.iterations}


def text(run: Run, command: str, same: bool) -> dict[str, Any]:
    """What the template of a run writes. `same`: the command still gives the key of the run."""
    summary, config, caveats = run.summary, run.summary["config"], run.summary["caveats"]
    rules, samples = config["protocol"]["report"], summary["robust"]["vote"]["draws"]
    rule, side, _ = headline(summary)
    names = [*ROWS, ("seen", "robust, by the in-loop samples"), ("null_seen", "null control, by the in-loop samples")]
    own = [(name, label) for name, label in names if name in summary]
    audited = summary["audited"] or None
    return {
        "key": run.key,
        "title": f"{version_name(config, 'purifier')}, {version_name(config, 'attack')}",
        "about": f"{config['choices']['dataset']}, {threat_words(config)}, "
        f"protocol {version_name(config, 'protocol')}, {summary['robust'][rule]['n']} images x "
        f"{len(summary['per_seed'])} seeds, {samples} samples per image",
        "command": command,
        "same": same,
        "rules": [rule_name(each, samples) for each in rules],
        "figures": [(label, name == side, [cells(summary[name].get(r)) for r in rules]) for name, label in own],
        "warnings": warnings(summary),
        "published": published_lines(published_rows(config)),
        "facts": fact_lines(config, caveats) if "facts" in caveats else [],
        "cost": f"NFE {caveats['nfe']} scored, {caveats['attack_nfe']} attacked; {clock(summary['seconds'])} of "
        f"worker time; {summary.get('device', 'device not recorded')}",
        "code": f"commit {summary.get('commit') or 'not recorded'}, code {str(summary.get('code'))[:8]}",
        "findings": audited["findings"] if audited else [],
        "audited": audited,
        "archived": not run.groups,
        "in_loop": budget_curve(run.rows) is not None,
        "has_loss": bool(run.iterations),
    }
