"""Score the saved attacked images of a finished run again: with fresh draws, with its own (--own), or by other
defences (--against, or overrides such as purifier=diffpure): a transfer matrix. Exit code 1 where draws that should
agree do not.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from rich import box
from rich.console import Console
from rich.table import Table
from told import told

import run
from dp.evaluation.evaluate import Evaluation
from dp.evaluation.rows import Row
from dp.output import record, report
from dp.output import rescore as again
from dp.output.progress import Bar
from dp.spelling import near_matches
from dp.statistics import metrics

DEFENCE = ("classifier", "denoiser", "purifier")


class Defence(NamedTuple):
    name: str
    evaluation: Evaluation
    nfe: int  # of one purification


def defence(name: str, config: dict) -> Defence:
    """The scored defence of a configuration, whatever attacks it."""
    attack = run.composed("attack=none")["attack"]
    config = {**config, "attack": attack, "choices": {**config["choices"], "attack": "none"}}
    config["threat_model"] = {**config["threat_model"], "grad": "full"}
    run.prepare(config)
    evaluation = run.build(config)
    return Defence(
        name, evaluation, run.dry_nfe(evaluation.arms["defended"].scored, evaluation.subset.select(slice(0, 1)))
    )


def changed(config: dict, overrides: Sequence[str]) -> dict:
    """The configuration of a run with another defence: groups first, then single keys."""
    parts = [override.partition("=")[::2] for override in overrides]
    strange = [key for key, _ in parts if key.split(".")[0] not in DEFENCE]
    if strange:
        raise ValueError(f"need overrides of {', '.join(DEFENCE)} and their keys, got {strange[0]}")
    groups = {key: value for key, value in parts if key in DEFENCE}
    if groups:
        choices = {group: config["choices"][group] for group in ("dataset", *DEFENCE)} | groups
        plain = run.composed(*(f"{group}={option}" for group, option in choices.items()))
        config = {**config, **{g: plain[g] for g in groups}, "choices": {**config["choices"], **groups}}
    for key, value in parts:
        if key not in groups:
            config = _with(
                config, key.split("."), OverridesParser.create().parse_override(f"{key}={value}").value(), key
            )
    return config


def _with(node: dict, path: Sequence[str], value: object, key: str) -> dict:
    if not isinstance(node, dict) or path[0] not in node:
        raise ValueError(f"unknown key {key}{near_matches(path[0], node if isinstance(node, dict) else ())}")
    return {**node, path[0]: value if len(path) == 1 else _with(node[path[0]], path[1:], value, key)}


def scored(by: Defence, kept: again.Saved, stage: str, bar: Callable[[str, int], None]) -> list[Row]:
    model = by.evaluation.arms["undefended" if kept.arm == "undefended" else "defended"].scored
    what = f"{by.name}, {kept.arm}, seed {kept.seed}"
    return again.score(model, by.evaluation, kept, stage, lambda images: bar(what, images * (by.nfe + 1)))


class Work:
    """Adds up what `Bar` shows."""

    def __init__(self, bar: Bar):
        self.bar, self.done = bar, 0

    def __call__(self, what: str, more: int) -> None:
        self.done += more
        self.bar(self.done, what)


def compare(folder: Path, summary: dict, own: bool, bits: int | None, console: Console) -> bool:
    """The run's own figures beside those of the same images scored again; whether they agree."""
    config, rule = summary["config"], summary["config"]["protocol"]["report"][0]
    by, kept = defence(config["choices"]["purifier"], config), again.saved(folder)
    known, agree = config["protocol"]["known_draws"] and not own, True
    times = 1 if bits is None else 2
    total = times * sum(len(k.rows) for k in kept) * (by.nfe + 1)
    before: dict[str, list[Row]] = {}
    after: dict[str, list[Row]] = {}
    rounded: dict[str, list[Row]] = {}
    with Bar(console, total) as bar:
        work = Work(bar)
        for k in kept:
            stage = again.STAGES[k.arm] if own else again.FRESH
            before.setdefault(k.arm, []).extend(k.rows)
            after.setdefault(k.arm, []).extend(scored(by, k, stage, work))
            if bits is not None:
                rounded.setdefault(k.arm, []).extend(scored(by, again.eight_bits(k), stage, work))
    table = Table(box=box.SIMPLE_HEAD, title=f"{folder.name}: {'its own' if own else 'fresh'} draws")
    for name in ("arm", "images x seeds", f"run, {report.rule_name(rule, by.evaluation.votes)}", "scored again"):
        table.add_column(name, justify="left" if name == "arm" else "right")
    for name in ("right draws, run - again", "rows that differ", "verdict"):
        table.add_column(name, justify="right")
    for arm in before:
        same = again.unequal(before[arm], after[arm])
        apart = again.difference(before[arm], after[arm])
        good = same == 0 if own else apart.agree
        verdict = "the attacker knew the run's draws" if known else "agrees" if good else "DIFFERS"
        agree &= good or known
        table.add_row(arm, *_cells(before[arm], after[arm], rule), _apart(apart), str(same), verdict)
    for arm in rounded:
        apart, moved = again.difference(after[arm], rounded[arm]), again.unequal(after[arm], rounded[arm])
        cells = _cells(after[arm], rounded[arm], rule)
        table.add_row(f"{arm}: as floats, then in {bits} bits", *cells, f"{apart.value:+.2f}", str(moved), "")
    console.print(table)
    return agree


def _cells(first: Sequence[Row], second: Sequence[Row], rule: str) -> list[str]:
    values = [sum(metrics.score(row, "adv", rule) for row in rows) / len(rows) for rows in (first, second)]
    return [str(len(first)), *(f"{100 * value:.1f}" for value in values)]


def _apart(apart: again.Difference) -> str:
    return f"{apart.value:+.2f} (sd by chance {apart.std:.2f})"


def transfer(folders: Sequence[Path], summaries: Sequence[dict], overrides: Sequence[str], console: Console) -> None:
    """Robust accuracy of every run's attacked images under every run's defence, and under that of the overrides."""
    config = summaries[0]["config"]
    names = {s["config"]["dataset"]["name"] for s in summaries}
    if len(names) > 1:
        raise ValueError(f"need runs on one dataset, got {', '.join(sorted(names))}")
    configs = {_name(f, s): s["config"] for f, s in zip(folders, summaries, strict=True)}
    configs |= {" ".join(overrides): changed(config, overrides)} if overrides else {}
    votes, ties, rule = (config["protocol"][key] for key in ("votes", "ties", "report"))
    columns = [defence(name, c) for name, c in configs.items()]
    columns = [c._replace(evaluation=replace(c.evaluation, votes=votes, ties=ties)) for c in columns]
    kept = {_name(f, s): [k for k in again.saved(f) if k.arm == "defended"] for f, s in zip(folders, summaries, strict=True)}  # fmt: skip  # noqa: E501
    table = Table(box=box.SIMPLE_HEAD, title=f"robust accuracy, percent [95 %], {report.rule_name(rule[0], votes)}")
    for name in ("attacked, down / scored, across", *configs):
        table.add_column(name, justify="right" if name in configs else "left")
    total = sum(len(k.rows) for one in kept.values() for k in one) * sum(c.nfe + 1 for c in columns)
    with Bar(console, total) as bar:
        work = Work(bar)
        for name, one in kept.items():
            rows = [[row for k in one for row in scored(by, k, again.FRESH, work)] for by in columns]
            figures = [metrics.summarise(found, votes)["robust"][rule[0]] for found in rows]
            table.add_row(name, *("{} [{}]".format(*report.cells(figure)[:2]) for figure in figures))
    console.print(table)


def _name(folder: Path, summary: dict) -> str:
    choices = summary["config"]["choices"]
    return f"{choices['purifier']}, {choices['attack']} ({folder.name[-10:]})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run, results/runs/<key>")
    parser.add_argument(
        "overrides", nargs="*", default=[], help="another defence: purifier=..., classifier.net.file=..."
    )
    parser.add_argument("--own", action="store_true", help="the run's own draws: every class must be equal")
    parser.add_argument("--against", nargs="+", default=[], metavar="RUN", help="the defences of other runs, too")
    parser.add_argument("--bits", type=int, choices=[8], help="also as an 8-bit file would hold the images")
    args = parser.parse_intermixed_args()
    overrides = [*args.overrides, *(given for given in args.against if "=" in given)]
    folders = [args.run, *(Path(given) for given in args.against if "=" not in given)]
    console = Console(soft_wrap=True, markup=False, highlight=False, width=None if sys.stdout.isatty() else 160)
    torch.set_num_threads(1)  # as in a run: a sum's last bits depend on it
    return told(lambda: rescore(folders, overrides, args.own, args.bits, console), "interrupted; nothing is kept")


def rescore(folders: list[Path], overrides: list[str], own: bool, bits: int | None, console: Console) -> int:
    """The run beside its images scored again, or the transfer matrix; 1 where draws that should agree differ."""
    if (own or bits) and (overrides or len(folders) > 1):
        raise ValueError("need --own and --bits without other defences, got both")
    summaries = [again.finished(folder) for folder in folders]
    for folder, summary in zip(folders, summaries, strict=True):
        if summary["code"] != record.code_hash():
            console.print(f"note: the code has changed since {folder.name}")
    if not overrides and len(folders) == 1:
        return 0 if compare(folders[0], summaries[0], own, bits, console) else 1
    transfer(folders, summaries, overrides, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
