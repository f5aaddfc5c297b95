"""dp rescore: score the saved attacked images of a finished run again.

It uses fresh samples, or the run's own samples (--own), or other defenses (--against, or overrides such as
purifier=diffpure), which gives a transfer matrix. The exit code is 1 if results differ that should agree.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from dp.commands.options import parser, wide_console
from dp.evaluation.dry import dry_nfe
from dp.evaluation.evaluate import Evaluation
from dp.evaluation.rows import Row
from dp.output import rescore as again
from dp.output.progress import Bar
from dp.output.row_table import cells, rule_name
from dp.runs import compose
from dp.runs.build import build
from dp.runs.errors import DONE, command
from dp.runs.keys import OLDER
from dp.runs.pipeline import fetch_missing
from dp.runs.sources import sources_hash
from dp.runs.words import value_of
from dp.spelling import near_matches
from dp.statistics import metrics

DIFFERS = 1  # exit code
DEFENSE = ("classifier", "denoiser", "purifier")  # the groups that make up a defense
Rows = dict[str, list[Row]]  # by condition


class Scorer(NamedTuple):
    """A defense that scores images, with its name."""

    name: str
    evaluation: Evaluation
    nfe: int  # network evaluations of one purification


class Work:
    """The sum of the work done, for a bar. Call it with a line of text and the additional work."""

    def __init__(self, bar: Bar):
        self.bar, self.done = bar, 0

    def __call__(self, what: str, more: int) -> None:
        self.done += more
        self.bar(self.done, what)


def scorer(name: str, config: dict) -> Scorer:
    """The scored defense of a configuration, without its attack."""
    attack = compose.composed("attack=none")["attack"]
    older = OLDER | {"scored_dtype": config["dtype"]}  # which was that of both defenses
    config = {**older, **config, "attack": attack, "choices": {**config["choices"], "attack": "none"}}
    config["threat_model"] = {**config["threat_model"], "grad": "full"}
    fetch_missing(config)
    evaluation = build(config)
    first = evaluation.subset.select(slice(0, 1))
    return Scorer(name, evaluation, dry_nfe(evaluation.arms["defended"].scored, first))


def changed(config: dict, overrides: Sequence[str], config_dirs: Sequence[str | Path] = ()) -> dict:
    """The configuration of a run with another defense. Overrides of groups are applied first, then those of keys.

    `config_dirs`: folders of plug-ins, beside those of the run. Raises ValueError for an override of anything but the
    defense, and for an unknown key.
    """
    parts = [override.partition("=")[::2] for override in overrides]
    refused = [key for key, _ in parts if key.split(".")[0] not in DEFENSE]
    if refused:
        raise ValueError(f"need overrides of {', '.join(DEFENSE)} and their keys, got {refused[0]}")
    groups = {key: value for key, value in parts if key in DEFENSE}
    if groups:
        folders = [*dict.fromkeys([*config["plugins"]["folders"], *map(str, config_dirs)])]
        choices = {group: config["choices"][group] for group in ("dataset", *DEFENSE)} | groups
        plain = compose.composed(*(f"{group}={option}" for group, option in choices.items()), config_dirs=folders)
        config = {**config, **{g: plain[g] for g in (*groups, "plugins")}}
        config["choices"] = {**config["choices"], **groups}
    for (key, _), override in zip(parts, overrides, strict=True):
        if key not in groups:
            config = _with(config, key.split("."), value_of(override), key)
    return config


def _with(node: object, path: Sequence[str], value: object, key: str) -> dict:
    if not isinstance(node, dict) or path[0] not in node:
        raise ValueError(f"unknown key {key}{near_matches(path[0], node if isinstance(node, dict) else ())}")
    return {**node, path[0]: value if len(path) == 1 else _with(node[path[0]], path[1:], value, key)}


def rescored(by: Scorer, saved: again.Saved, stage: str, work: Callable[[str, int], None]) -> list[Row]:
    """The rows of saved images, scored by a defense with the noise of `stage`."""
    model = by.evaluation.arms["undefended" if saved.arm == "undefended" else "defended"].scored
    what = f"{by.name}, {saved.arm}, seed {saved.seed}"
    return again.score(model, by.evaluation, saved, stage, lambda images: work(what, images * (by.nfe + 1)))


def compare(folder: Path, summary: dict, own: bool, bits: int | None, console: Console) -> bool:
    """Print the figures of a run beside those of the same images scored again. Returns True if they agree."""
    config = summary["config"]
    by, groups = scorer(config["choices"]["purifier"], config), again.saved(folder)
    before: Rows = {}
    after: Rows = {}
    rounded: Rows = {}
    times = 1 if bits is None else 2
    with Bar(console, times * sum(len(saved.rows) for saved in groups) * (by.nfe + 1)) as bar:
        work = Work(bar)
        for saved in groups:
            stage = again.STAGES[saved.arm] if own else again.FRESH
            before.setdefault(saved.arm, []).extend(saved.rows)
            after.setdefault(saved.arm, []).extend(rescored(by, saved, stage, work))
            if bits is not None:
                rounded.setdefault(saved.arm, []).extend(rescored(by, again.eight_bits(saved), stage, work))
    rule, known = config["protocol"]["report"][0], config["protocol"]["known_draws"] and not own
    table = _headed(f"{folder.name}: {'its own' if own else 'fresh'} samples", rule_name(rule, by.evaluation.votes))
    agree = True
    for arm in before:
        unequal, gap = again.unequal(before[arm], after[arm]), again.difference(before[arm], after[arm])
        equal = unequal == 0 if own else gap.agree
        agree &= equal or known
        answer = "the attacker knew the run's samples" if known else "agrees" if equal else "DIFFERS"
        chance = f"{gap.value:+.2f} (chance: sd {gap.std:.2f})"
        table.add_row(arm, *_cells(before[arm], after[arm], rule), chance, str(unequal), answer)
    for arm in rounded:
        unequal, gap = again.unequal(after[arm], rounded[arm]), again.difference(after[arm], rounded[arm])
        cells = _cells(after[arm], rounded[arm], rule)
        table.add_row(f"{arm}: floats, then rounded to {bits} bits", *cells, f"{gap.value:+.2f}", str(unequal), "")
    console.print(table)
    return agree


def _headed(title: str, rule: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=title)
    for name in ("condition", "images x seeds", f"run, {rule}", "scored again"):
        table.add_column(name, justify="left" if name == "condition" else "right")
    for name in ("right samples, run - again", "rows that differ", "result"):
        table.add_column(name, justify="right")
    return table


def _cells(first: Sequence[Row], second: Sequence[Row], rule: str) -> list[str]:
    values = [sum(metrics.score(row, "adv", rule) for row in rows) / len(rows) for rows in (first, second)]
    return [str(len(first)), *(f"{100 * value:.1f}" for value in values)]


def transfer(folders: Sequence[Path], summaries: Sequence[dict], others: dict[str, dict], console: Console) -> None:
    """Print the robust accuracy of every run's attacked images under every run's defense and under the `others`,
    configurations by name.
    """
    config = summaries[0]["config"]
    datasets = {s["config"]["dataset"]["name"] for s in summaries}
    if len(datasets) > 1:
        raise ValueError(f"need runs on one dataset, got {', '.join(sorted(datasets))}")
    names = [_name(folder, summary) for folder, summary in zip(folders, summaries, strict=True)]
    configs = dict(zip(names, (s["config"] for s in summaries), strict=True)) | others
    votes, ties, rule = config["protocol"]["votes"], config["protocol"]["ties"], config["protocol"]["report"][0]
    columns = [scorer(name, c) for name, c in configs.items()]
    columns = [c._replace(evaluation=replace(c.evaluation, votes=votes, ties=ties)) for c in columns]
    groups = {
        name: [saved for saved in again.saved(folder) if saved.arm == "defended"]
        for name, folder in zip(names, folders, strict=True)
    }
    table = Table(box=box.SIMPLE_HEAD, title=f"robust accuracy, percent [95 %], {rule_name(rule, votes)}")
    for name in ("attacked, down / scored, across", *configs):
        table.add_column(name, justify="right" if name in configs else "left")
    images = sum(len(saved.rows) for group in groups.values() for saved in group)
    with Bar(console, images * sum(c.nfe + 1 for c in columns)) as bar:
        work = Work(bar)
        for name, group in groups.items():
            rows = [[row for saved in group for row in rescored(by, saved, again.FRESH, work)] for by in columns]
            figures = [metrics.summarize(r, votes)["robust"][rule] for r in rows]
            table.add_row(name, *("{} [{}]".format(*cells(figure)[:2]) for figure in figures))
    console.print(table)


def _name(folder: Path, summary: dict) -> str:
    choices = summary["config"]["choices"]
    return f"{choices['purifier']}, {choices['attack']} ({folder.name[-10:]})"


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns 0 if results agree, 1 if they differ, 2 after a user's error, 130 if interrupted."""
    arguments = parser(__doc__, "the folder of a finished run, results/runs/<key>, then another defense: purifier=...")
    arguments.add_argument("--own", action="store_true", help="use the run's own samples: every class must be equal")
    arguments.add_argument("--against", nargs="+", default=[], metavar="RUN", help="also the defenses of other runs")
    arguments.add_argument("--bits", type=int, choices=[8], help="also score the images rounded as in an 8-bit file")
    args = arguments.parse_intermixed_args(argv)
    torch.set_num_threads(1)  # as in a run, because the last bits of a sum depend on it

    def rescore() -> int:
        words = [*args.overrides, *args.against]
        folders, overrides = [Path(w) for w in words if "=" not in w], [w for w in words if "=" in w]
        if not folders:
            raise ValueError("need the folder of a finished run, results/runs/<key>, got none")
        return scored_again(folders, overrides, args.config_dirs, args.own, args.bits, wide_console())

    return command(rescore, "interrupted; nothing is saved")


def scored_again(
    folders: list[Path], overrides: list[str], config_dirs: list[str], own: bool, bits: int | None, console: Console
) -> int:
    """Compare a run with its images scored again, or print the transfer matrix of several runs or defenses.

    Returns 0, or 1 if results differ that should agree. Raises ValueError for options that do not fit together.
    """
    if (own or bits) and (overrides or len(folders) > 1):
        raise ValueError("need --own and --bits without other defenses, got both")
    summaries = [again.finished(folder) for folder in folders]
    for folder, summary in zip(folders, summaries, strict=True):
        compose.with_plugins(summary["config"], summary["config"]["plugins"]["folders"])
        if summary["code"] != sources_hash(summary["config"]):
            console.print(f"note: the code has changed since {folder.name}")
    if not overrides and len(folders) == 1:
        return DONE if compare(folders[0], summaries[0], own, bits, console) else DIFFERS
    config = summaries[0]["config"]
    others = {" ".join(overrides): changed(config, overrides, config_dirs)} if overrides else {}
    transfer(folders, summaries, others, console)
    return DONE
