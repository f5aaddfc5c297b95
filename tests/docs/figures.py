"""The figures that the findings quote, and where each comes from: comments of a page, read and recomputed.

A comment `<!-- runs ... -->` names measured runs by what their configurations hold (`absent`: a key that they lack). A
comment `<!-- figures ... -->` under a paragraph, list or table has a line `QUOTED = SOURCE` for each figure of it:

    RUN side.rule [low|high]          a figure of one run; sides: standard, robust, null, undefended, seen, ...
    RUN - RUN side.rule [low|high]    a paired difference in points, and the ends of its 95 % interval
    RUN lost-to-noise                 standard accuracy less the null control, by the protocol's own rule
    least of A; B ... | most of A; B  the smallest or largest of several sources
    table FILE | KEY | KEY : C [N]    the N-th number of column C in the row of results/tables/FILE that begins so
    adjoint METHOD END DT COLUMN      a cell of results/measured/adjoint.csv, float64
    given WHY | unfiled WHY           a parameter, or a figure that no file holds
"""

import csv
import json
import re
from functools import cache
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from dp.statistics.intervals import interval, paired, wilson

ROOT = Path(__file__).parents[2]
MEASURED, TABLES = ROOT / "results" / "measured", ROOT / "results" / "tables"
SIDES = {
    "standard": "defended.clean",
    "robust": "defended.adv",
    "null": "null.adv",
    "undefended_standard": "undefended.clean",
    "undefended": "undefended.adv",
    "seen": "defended.seen",
    "null_seen": "null.seen",
}
FIGURE = re.compile(r"(?<![\w.=/-])[-+]?(?:\d*\.\d+|\d+(?= %| points))(?![\w.]*\w)")
COMMENT = re.compile(r"<!-- figures\n(.*?)-->", re.DOTALL)


def blocks(page: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """(text, its lines of (quoted, source)): the text since the last comment of figures, and what that comment says."""
    found, at = [], 0
    page = re.sub(r"<!-- runs\n.*?-->", lambda m: " " * len(m.group()), page, flags=re.DOTALL)
    for comment in COMMENT.finditer(page):
        lines = [tuple(part.strip() for part in line.split("=", 1)) for line in comment.group(1).strip().splitlines()]
        found.append((page[at : comment.start()], lines))
        at = comment.end()
    return [*found, (page[at:], [])]


def quoted(text: str) -> set[str]:
    """The figures of a text: numbers with decimals, and whole numbers of percent or points; code, formulas, links and
    headings left out.
    """
    text = re.sub(r"`[^`]*`|\]\([^)]*\)|^#.*$", " ", text, flags=re.MULTILINE)
    return set(FIGURE.findall(text))


@cache
def runs(page: str) -> dict[str, Path]:
    """{name: folder} of the page's runs. Raises AssertionError where a name fits no run or several."""
    named = {}
    kept = {path.parent: leaves(json.loads(path.read_text())["config"]) for path in MEASURED.glob("*/summary.json")}
    for line in re.findall(r"<!-- runs\n(.*?)-->", page, re.DOTALL)[0].strip().splitlines():
        name, _, wanted = line.partition(": ")
        pairs = [condition.split("=", 1) for condition in wanted.split()]
        fits = [folder for folder, config in kept.items() if all(holds(config, *pair) for pair in pairs)]
        assert len(fits) == 1, f"{name}: {len(fits)} measured runs have {wanted}"
        named[name] = fits[0]
    return named


def leaves(node: object, name: str = "") -> dict[str, str]:
    """{dotted name: text without blanks} of a configuration."""
    if not isinstance(node, dict):
        return {name: str(node).replace(" ", "")}
    return {k: v for key, value in node.items() for k, v in leaves(value, f"{name}.{key}").items()}


def holds(config: dict[str, str], key: str, value: str) -> bool:
    if value == "absent":
        return not any(name.endswith(f".{key}") for name in config)
    return any(name.endswith(f".{key}") and found == value for name, found in config.items())


def right(folder: Path, side: str, rule: str) -> np.ndarray:
    """(images,) how right each image is, its mean over seeds, from the classes of every sample."""
    found = load_file(folder / "verdicts.safetensors")
    classes, labels = found[SIDES[side]], found["labels"]
    hits = classes == labels[:, None]  # (seeds, images, samples)
    if rule == "vote":
        ties = json.loads((folder / "summary.json").read_text())["config"]["protocol"]["ties"]
        counts = (classes[..., None] == np.arange(classes.max() + 1)).sum(axis=2)
        tied = (counts == counts.max(axis=2, keepdims=True)).sum(axis=2) > 1
        assert ties == "lowest" or not tied.any(), f"{folder.name}: classes alone do not settle its ties"
        scores = counts.argmax(axis=2) == labels
    else:
        scores = {"single": hits[..., 0], "average": hits.mean(axis=2), "worst": hits.all(axis=2)}[rule]
    return scores.mean(axis=0)


def one(folder: Path, side: str, rule: str) -> tuple[float, float, float]:
    """Value and interval in percent, of the summary, once its verdicts have borne it out."""
    figure = json.loads((folder / "summary.json").read_text())[side][rule]
    try:
        scores = right(folder, side, rule)
    except AssertionError:  # a vote with ties that logits have settled: only its bounds can be told
        found = load_file(folder / "verdicts.safetensors")
        share = (found[SIDES[side]] == found["labels"][:, None]).mean(axis=2)
        assert 100 * (share > 0.5).mean() <= figure["value"] <= 100 * (share > 0).mean()
        return figure["value"], *figure["wilson95"]
    ends = interval(scores), wilson(float(scores.mean()), len(scores))  # older runs have the second, which is wider
    assert np.isclose(figure["value"], 100 * scores.mean()), folder
    assert any(np.allclose(figure["wilson95"], [100 * end for end in pair]) for pair in ends), folder
    return figure["value"], *figure["wilson95"]


@cache
def table(name: str) -> list[list[str]]:
    lines = (TABLES / name).read_text().splitlines()
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines if line.startswith("|")]


def cell(source: str) -> float:
    where, _, which = source.rpartition(" : ")
    name, *keys = [part.strip() for part in where.split(" | ")]
    column, *nth = map(int, which.split())
    fits = [
        row
        for row in table(name)
        if row[: len(keys) - 1] == keys[:-1] and len(row) > column and row[len(keys) - 1].startswith(keys[-1])
    ]
    assert len(fits) == 1, f"{len(fits)} rows of {name} begin with {keys}"
    return float(re.findall(r"[-+]?\d*\.?\d+(?:e[-+]\d+)?", fits[0][column])[nth[0] if nth else 0])


def adjoint(method: str, end: str, dt: str, column: str) -> float:
    with (MEASURED / "adjoint.csv").open() as file:
        rows = list(csv.DictReader(file))
    fits = [
        r
        for r in rows
        if r["method"] == method
        and r["dtype"] == "float64"
        and float(r["end"]) == float(end)
        and float(r["dt"]) == float(dt)
    ]
    assert len(fits) == 1, f"{len(fits)} rows for {method} {end} {dt}"
    return 100 * (1 - float(fits[0]["equal_signs"])) if column == "wrong_signs" else float(fits[0][column])


def value(source: str, named: dict[str, Path]) -> float | None:
    """What the source says; None for one that is no file."""
    first, _, rest = source.partition(" ")
    if first in ("given", "unfiled"):
        assert rest, "say why"
        return None
    if first in ("least", "most"):
        values = [value(part.strip(), named) for part in rest.removeprefix("of ").split(";")]
        assert len(values) > 1
        return min(values) if first == "least" else max(values)  # pyright: ignore[reportArgumentType, reportCallIssue]
    if first == "table":
        return cell(rest)
    if first == "adjoint":
        return adjoint(*rest.split())
    words = source.split()
    end = {"low": 1, "high": 2}.get(words[-1], 0)
    words = words[:-1] if end else words
    if words[1:] == ["lost-to-noise"]:
        config = json.loads((named[first] / "summary.json").read_text())["config"]
        judge, rule = config["protocol"]["judge"], config["protocol"]["report"][0]
        null = "null_seen" if judge and judge["in_loop"] else "null"
        return one(named[first], "standard", rule)[0] - one(named[first], null, rule)[0]
    side, rule = words[-1].split(".")
    if words[1] == "-":
        return 100 * paired(right(named[words[2]], side, rule), right(named[first], side, rule))[end]
    return one(named[first], side, rule)[end]


def agrees(text: str, found: float) -> bool:
    """Whether a quoted figure is the found one, rounded to as many decimals as it is quoted with."""
    decimals = len(text.partition(".")[2])
    return abs(float(text) - found) <= 0.5 * 10**-decimals + 1e-6
