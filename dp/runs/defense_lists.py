"""The lists of docs/defenses.md: every defense, its values with sources, and what was measured."""

import csv
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml

from dp.contracts.declared import exceptions, honest_gradient
from dp.evaluation.dry import dry_nfe
from dp.files.cache import ASSETS
from dp.runs import build, compose
from dp.runs.by_dataset import ROOT
from dp.runs.defense_entries import ENTRIES, Entry
from dp.runs.help import options
from dp.runs.targets import RESERVED

MEASURED = ROOT / "results" / "tables" / "defenses.csv"  # scripts/studies/defenses.py writes it
LEFT_OUT = {"_target_", "_partial_", "denoiser", "net", "clamp", *RESERVED}  # no values of a method, or equal for all
SETUP = "digits, 128 images, 3 seeds"  # of the study
LINE = re.compile(r"( *)([\w]+):[^#]*(?:# (.*))?")  # of a yaml: indent, key, comment
BRACKETED, CITED = re.compile(r"\(deviation (\d+): [^)]*\)"), re.compile(r"(?<!\[)\bdeviation (\d+)")


def lists() -> dict[str, Callable[[], str]]:
    """What makes the text of each generated block of docs/defenses.md, by the block's name."""
    blocks = {f"defense {one.option}": functools.partial(block, one) for one in ENTRIES}
    return {"defenses": lambda: head(ENTRIES), **blocks}


def head(entries: Sequence[Entry]) -> str:
    """The table of all defenses."""
    columns = ("method", "option", "paper", "NFE on digits", "exact gradient", "honest gradient", "authors' attack")
    first, *rows = ["| " + " | ".join(line) + " |\n" for line in (columns, *map(_line, entries))]
    return "".join([first, "|---" * len(columns) + "|\n", *rows])


def _line(one: Entry) -> tuple[str, ...]:
    """The cells of a defense. Its network evaluations on digits are counted by running it once."""
    config = compose.composed(*one.words, "dataset=digits")
    image = compose.make(config["dataset"]["loader"]).select(slice(0, 1))
    nfe, reasons = dry_nfe(build.defense(config, "cpu"), image), exceptions(config["purifier"])
    exact = f"no: {reasons['gradient']}" if "gradient" in reasons else "yes"
    honest = ", ".join(f"`{mode}`" for mode in (honest_gradient(config["purifier"]) or "full", *one.beside))
    authors = [f"`{' '.join(one.authors)}`"] if one.authors else []
    remark = [f"({one.remark})" if authors else one.remark] if one.remark else []
    link = f"[{one.section}](#{re.sub(r'[^a-z0-9_ -]', '', one.section.lower()).replace(' ', '-')})"
    return link, f"`{one.words[-1]}`", one.paper, str(nfe), exact, honest, " ".join([*authors, *remark])


def block(one: Entry) -> str:
    """The values of a defense by dataset, its gradient modes, the sources, and what was measured, as a list."""
    path = options(one.group)[one.option]
    nodes, of = {d: _node(one.words, one.group, d) for d in one.datasets}, _parent(path)
    base = {d: _node((f"{one.group}={of}",), one.group, d) for d in one.datasets} if of else {}
    values, theirs = ({d: flat(node, LEFT_OUT) for d, node in them.items()} for them in (nodes, base))
    said = comments(path.read_text())
    keys = [k for k in values["digits"] if k in said or not of or any(values[d][k] != theirs[d][k] for d in values)]
    varying = [k for k in keys if len({str(values[d][k]) for d in values}) > 1]
    lines = [f"`{one.option}`, {_listed(ds)}: {words}" for ds, words in _by_dataset(values, varying)] if varying else []
    if not of or nodes["digits"].get("gradients") != base["digits"].get("gradients"):
        lines += _modes(nodes)
    lines += _networks(nodes)
    origin = f" (the others as `{of}`)" if of else ""
    heads = (f"`{k}`" if k in varying else f"`{k}` = {shown(values['digits'][k])}" for k in keys)
    told = [f"{head}: {said[k]}" if k in said else head for k, head in zip(keys, heads, strict=True)]
    lines.append(f"`{one.option}`, sources{origin}:<br>" + "<br>".join(told))
    lines += measured(one, MEASURED)
    return "".join(f"- {line}\n" for line in lines)


def measured(one: Entry, table: Path) -> list[str]:
    """What the study measured of a defense, a line for each row. `table`: the csv of the study, if it is there."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    if table.exists():
        with table.open(newline="") as file:
            found = {(row["method"], row["side"]): row for row in csv.DictReader(file)}
    if not any((name, side) in found for name in one.rows for side in ("strict", "authors")):
        return [f"{SETUP}: not measured yet"]
    several = len(one.rows) > 1
    return [f"{SETUP}{f', {name}' if several else ''}: {_figures(one, name, found)}" for name in one.rows]


def _figures(one: Entry, name: str, found: Mapping[tuple[str, str], dict[str, str]]) -> str:
    """The measured figures of a row, in percent; robust ones are the average of 20 samples, with their interval."""
    ours, theirs = found.get((name, "strict")), found.get((name, "authors"))
    some = ours or theirs
    if some is None:
        return "not measured yet"
    standard = f"standard {_percent(some, 'standard_average')} %"
    honest = f"robust under `strict` {_robust(ours)}" if ours else "under `strict` not measured yet"
    parts, alone = [standard, honest], found.get((name, "decision"))
    if theirs is not None:
        parts.append(f"robust under the authors' attack {_robust(theirs)}")
    elif one.authors and name == one.rows[0]:
        parts.append("under the authors' attack not measured yet")
    if alone is not None:
        parts.append(f"robust by decisions alone, on 32 images and one seed, {_robust(alone)}")
    return "; ".join(parts)


def _robust(row: Mapping[str, str]) -> str:
    """`97.1 % (93.9 to 98.7), worst of 10 samples 93.7 %, audit: 5 WARN`. The audit is told of if it does not pass."""
    interval = f"{_percent(row, 'low')} to {_percent(row, 'high')}"
    words = row["audit"].partition("checks, ")[2]  # of `audited: 18 checks, 0 FAIL, 5 WARN`
    faults = ", ".join(part for part in words.split(", ") if part and not part.startswith("0 "))
    told = f", audit: {faults}" if faults else ""
    return f"{_percent(row, 'average')} % ({interval}), worst of 10 samples {_percent(row, 'worst')} %{told}"


def _percent(row: Mapping[str, str], key: str) -> str:
    return f"{float(row[key]):.1f}"


def comments(text: str) -> dict[str, str]:
    """The comment behind each key of a yaml, by dotted key. Deviations are links."""
    found, above = {}, []
    for line in text.splitlines():
        match = LINE.fullmatch(line)
        if match is None:
            continue
        depth, key, comment = len(match[1]) // 2, match[2], match[3]
        above = [*above[:depth], key]
        if comment:
            link = r"[deviation \1](deviations.md#deviation-\1)"
            found[".".join(above)] = CITED.sub(link, BRACKETED.sub(f"({link})", comment))
    return found


def flat(node: Mapping[str, Any], left_out: set[str]) -> dict[str, Any]:
    """The values of a node by dotted key."""
    found = {}
    for key, value in node.items():
        if key in left_out:
            continue
        inner = flat(value, left_out) if isinstance(value, dict) else None
        found |= {key: value} if inner is None else {f"{key}.{k}": v for k, v in inner.items()}
    return found


def shown(value: Any) -> str:
    """A value as a yaml has it. Equal neighbors of a list are counted: 4 x [30, 30]."""
    if isinstance(value, list):
        runs = [(shown(item), len(list(group))) for item, group in groupby(value)]
        if any(isinstance(item, list) for item in value):
            return ", ".join(f"{count} x {item}" if count > 1 else item for item, count in runs)
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else "null" if value is None else str(value)


@functools.cache
def _node(words: tuple[str, ...], group: str, dataset: str) -> dict:
    """The composed node of a group."""
    return compose.composed(*words, f"dataset={dataset}")[group]


def _parent(path: Path) -> str | None:
    """The option of the same group that a yaml takes its values from."""
    names = (yaml.safe_load(path.read_text()) or {}).get("defaults") or []
    return next((name for name in names if isinstance(name, str) and (path.parent / f"{name}.yaml").is_file()), None)


def _by_dataset(values: Mapping[str, dict], keys: Sequence[str]) -> list[tuple[list[str], str]]:
    """Datasets with the same values of these keys, and the values."""
    found: dict[str, list[str]] = {}
    for dataset, of in values.items():
        found.setdefault(", ".join(f"`{key}` {shown(of[key])}" for key in keys), []).append(dataset)
    return [(datasets, words) for words, datasets in found.items()]


def _modes(nodes: Mapping[str, dict]) -> list[str]:
    """A line about the gradient modes that a method has besides the common ones; none if it has none."""
    told = []
    for name in nodes["digits"].get("gradients") or {}:
        values = {d: flat(node["gradients"][name], {"_partial_", "per_dataset"}) for d, node in nodes.items()}
        groups = _by_dataset(values, list(values["digits"]))
        words = "; ".join(f"{words} on {_listed(ds)}" if len(groups) > 1 else words for ds, words in groups)
        told.append(f"`{name}` ({words})".replace("`_target_` ", ""))
    return [f"gradient modes: {', '.join(told)}"] if told else []


def _networks(nodes: Mapping[str, dict]) -> list[str]:
    """A line about the networks and the weights that a method has of its own; none if it has none."""
    told = []
    for dataset, node in nodes.items():
        net = node.get("net")
        if isinstance(net, dict) and "file" in net:
            embedded = " (embedded)" if (ASSETS / net["file"]).exists() else ""
            told.append(f"`{net['net']['_target_'].rpartition('.')[2]}`, `{net['file']}` on {dataset}{embedded}")
    return [f"weights of its own: {'; '.join(told)}"] if told else []


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
