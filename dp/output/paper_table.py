"""A table of the paper: the published rows, and beside each the runs that repeat it, with every known difference.

`lines` are the facts; `shown` and `notes` make text of them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from dp.output.beside import own_mark, shown_rules
from dp.output.published import IMAGES, RUNS, can_be_mean, plus_minus, published_values
from dp.output.report import audit_word, caveat_lines, gradient_words
from dp.output.row_table import count_of, rule_name, version_name

SIDES = ("standard", "robust")
HEAD = ["defense", "attack", "standard, published", "robust, published", "measured on", "images x seeds", "rule"]
HEAD += ["standard", "robust", "95 % of robust", "difference", "protocol", "gradient", "audit", "notes"]
Find = Callable[[Mapping[str, str]], tuple[dict | None, str]]  # of a cell: a summary, and what is missing


class Line(NamedTuple):
    """A published row beside one run by one decision rule, or alone.

    `cell`: the line of cells.csv, None if no run is there. `differences`: why the two cannot be compared, in words.
    """

    row: dict
    cell: dict | None = None
    summary: dict | None = None
    rule: str = ""
    differences: tuple[str, ...] = ()


class Missing(NamedTuple):
    """A run that is missing in part or whole, and the command that makes it."""

    row: dict
    cell: dict
    what: str


def lines(
    rows: Sequence[dict], cells: Sequence[dict], stand_ins: Mapping[tuple[str, str], str], find: Find
) -> tuple[list[Line], list[Missing]]:
    """The lines of one table, and what is missing.

    `rows`: its published rows; `cells`: all lines of cells.csv; `stand_ins`: {(table, dataset): what stands for what}.
    """
    found, missing = [], []
    for row in rows:
        own, held = [cell for cell in cells if _is_of(cell, row)], []
        for cell in own:
            summary, what = find(cell)
            if what:
                missing.append(Missing(row, cell, what))
            if summary is not None:
                reasons = tuple(differences(row, cell, summary, stand_ins))
                held += [Line(row, cell, summary, rule, reasons) for rule in rules(row, summary)]
        found += held or [Line(row)]
    return found, missing


def _is_of(cell: Mapping[str, str], row: Mapping[str, str]) -> bool:
    return all(cell[key] == row[key] for key in ("table", "method", "setting", "attack"))


def rules(row: Mapping[str, str], summary: dict) -> list[str]:
    """The decision rules of a run that are shown: under `strict` its own, else those beside a published row."""
    config = summary["config"]
    if config["choices"]["protocol"] == "strict":
        return list(config["protocol"]["report"])
    samples = summary["robust"]["vote"]["draws"]
    return [rule for rule in shown_rules(row["method"], samples) if rule in summary["robust"]]


def differences(
    row: Mapping[str, str], cell: Mapping[str, str], summary: dict, stand_ins: Mapping[tuple[str, str], str]
) -> list[str]:
    """Why a run and a published row cannot be compared without care, one sentence each."""
    config, figure = summary["config"], summary["robust"]["single"]
    told = [f"{stand_ins[row['table'], cell['stand_in']]}"] if cell["stand_in"] else []
    told += [cell["note"]] if cell["note"] else []
    images, seeds = figure["n"], len(summary["per_seed"])
    if (images, seeds) != (IMAGES, RUNS):
        counts = f"{count_of(images, 'image')} and {count_of(seeds, 'seed')} for {IMAGES} and {RUNS}"
        told.append(f"{counts} (deviation 54: number of runs)")
    told += _budget(row, config["attack"])
    if cell["stand_in"]:
        told += _values(row, config["purifier"])
    exact = all(tuple(modes) == () for modes in summary["caveats"]["gradients"])
    if exact and row["group"] == "AP" and row["attack"] != "bpda_eot":
        told.append("the exact gradient for a surrogate's (deviation 32: full gradient or surrogate)")
    return told + ([] if cell["stand_in"] else caveat_lines(config, summary["caveats"]))


def _budget(row: Mapping[str, str], attack: Mapping[str, Any]) -> list[str]:
    """How the iterations and samples in a gradient of the attack, or of a suite's attacks, differ from the published
    ones, in at most one sentence.
    """
    told = [(name, _counts(row, each)) for name, each in _parts(attack).items()]
    words = [f"{name}: {counts}" if name else counts for name, counts in told if counts]
    return [f"{'; '.join(words)} (deviation 35: iterations of each attack)"] if words else []


def _parts(attack: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The attacks of a suite by name; a single attack, which may stand in a wrapper, has no name."""
    if isinstance(attack.get("attacks"), dict):
        return {name: inner for name, each in attack["attacks"].items() for inner in _parts(each).values()}
    return {"": attack["attack"] if isinstance(attack.get("attack"), dict) else attack}


def _counts(row: Mapping[str, str], attack: Mapping[str, Any]) -> str:
    names = (("iterations", "iterations"), ("eot", "samples in a gradient"))
    pairs = [(attack.get(key), row[key], words) for key, words in names if row[key] and attack.get(key) is not None]
    return " and ".join(f"{mine} {words} for {theirs}" for mine, theirs, words in pairs if str(mine) != theirs)


def _values(row: Mapping[str, str], purifier: Mapping[str, Any]) -> list[str]:
    """How the main settings of a purifier differ from the published ones, in at most one sentence."""
    pairs = [(key, purifier.get(key, value), value) for key, value in published_values(row).items()]
    told = [f"{key} {mine} for {theirs}" for key, mine, theirs in pairs if mine != theirs]
    return [f"settings of the stand-in: {', '.join(told)}"] if told else []


def frame(found: Sequence[Line]) -> pd.DataFrame:
    """The facts of a table, one line each, figures in percent and differences (measured less published) in points."""
    facts = pd.DataFrame([_facts(line) for line in found])
    return facts.astype({name: "Int64" for name in ("images", "seeds") if name in facts})


def _facts(line: Line) -> dict:
    row = line.row
    facts: dict[str, Any] = {key: row[key] for key in ("table", "group", "printed", "setting", "attack")}
    for side in SIDES:
        facts[f"published {side}"], facts[f"published {side} std"] = row[side], row[f"{side}_std"]
        facts[f"{side} can be a mean"] = can_be_mean(row[side]) if row[side] and row["group"] == "AP" else None
    facts["flag"] = row["flag"]
    if line.summary is None or line.cell is None:
        return facts
    config, samples = line.summary["config"], line.summary["robust"][line.rule]["draws"]
    facts |= {"measured on": config["dataset"]["name"], "rule": rule_name(line.rule, samples)}
    facts |= {"images": line.summary["robust"][line.rule]["n"], "seeds": len(line.summary["per_seed"])}
    for side in SIDES:
        figure = line.summary[side][line.rule]
        facts |= {side: round(figure["value"], 4), f"{side} seed std": _rounded(figure["seed_std"])}
        facts |= dict(zip((f"{side} low", f"{side} high"), map(_rounded, figure["wilson95"]), strict=True))
        comparable = row[side] and not line.cell["stand_in"]
        facts[f"{side} difference"] = round(figure["value"] - float(row[side]), 4) if comparable else None
    facts |= {"measured by": version_name(config, "attack")}
    facts |= {"protocol": version_name(config, "protocol"), "gradient": gradient_words(line.summary["caveats"])}
    facts |= {"audit": audit_word(line.summary["audited"]), "differences": "; ".join(line.differences)}
    return facts | {"command": command(line.cell)}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def command(cell: Mapping[str, str]) -> str:
    """The command of a cell, or why there is none."""
    return f"dp run {cell['command']}" if cell["command"] else "none"


def shown(found: Sequence[Line]) -> tuple[pd.DataFrame, list[str]]:
    """The table for people, all text, and its notes in the order of their numbers. A published row is printed once."""
    notes: dict[str, int] = {}
    texts, before = [], None
    for line in found:
        first, before = line.row is not before, line.row
        told = [*([line.row["note"]] if first and line.row["flag"] else []), *line.differences]
        numbers = " ".join(str(notes.setdefault(note, len(notes) + 1)) for note in told)
        texts.append([*_published_cells(line.row, first), *_measured_cells(line), numbers])
    return pd.DataFrame(texts, columns=HEAD), list(notes)


def _published_cells(row: Mapping[str, str], first: bool) -> list[str]:
    if not first:
        return ["", "", "", ""]
    name = f"{row['printed']} {row['setting']}".strip()
    marks = ["" if row["group"] != "AP" or not row[s] or can_be_mean(row[s]) else " †" for s in SIDES]
    return [name, row["attack"], *(plus_minus(dict(row), s) + mark for s, mark in zip(SIDES, marks, strict=True))]


def _measured_cells(line: Line) -> list[str]:
    if line.summary is None or line.cell is None:
        return [""] * 10
    config, figures = line.summary["config"], [line.summary[side][line.rule] for side in SIDES]
    values = [f"{f['value']:.1f}" + ("" if f["seed_std"] is None else f" ± {f['seed_std']:.2f}") for f in figures]
    low, high = figures[1]["wilson95"]
    comparable = line.row["robust"] and not line.cell["stand_in"]
    difference = f"{figures[1]['value'] - float(line.row['robust']):+.1f}" if comparable else ""
    samples = figures[1]["draws"]
    rule = rule_name(line.rule, samples) + own_mark(line.row["method"], line.rule, samples)
    told = [version_name(config, "protocol"), gradient_words(line.summary["caveats"])]
    audit, size = audit_word(line.summary["audited"]), f"{figures[1]['n']} x {len(line.summary['per_seed'])}"
    return [config["dataset"]["name"], size, rule, *values, f"{low:.1f} - {high:.1f}", difference, *told, audit]
