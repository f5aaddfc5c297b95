"""The table of a row: accuracies in percent with their intervals, and columns for each decision rule."""

import itertools
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

ROWS = (
    ("standard", "standard accuracy"),
    ("robust", "robust accuracy"),
    ("null", "null control: random noise"),
    ("undefended_standard", "undefended, clean"),
    ("undefended", "undefended, attacked"),
)
RULES = {
    "single": "single sample",
    "average": "average of {}",
    "vote": "vote of {}",
    "mean_logits": "mean logits of {}",
    "mean_softmax": "mean softmax of {}",
    "worst": "worst of {}",
}
LABEL = 20  # columns for the labels of a table that is too wide


def count_of(n: int, what: str) -> str:
    """A count with its noun: `1 image`, `2 images`."""
    return f"{n} {what}" + ("" if n == 1 else "s")


def rule_name(rule: str, samples: int) -> str:
    """A decision rule in words. `samples`: the number of samples that it decides by."""
    return RULES[rule].format(samples)


def cells(figure: dict | None) -> tuple[str, str, str]:
    """The value, the 95 % interval and the standard deviation over seeds of a figure, as text."""
    if figure is None:
        return "-", "", ""
    low, high = figure["wilson95"]
    spread = "" if figure["seed_std"] is None else f"{figure['seed_std']:.2f}"
    return f"{figure['value']:.1f}", f"{low:.1f} - {high:.1f}", spread


def row_table(summary: dict, rules: Sequence[str] | None = None) -> Table:
    """The table of one run, every figure in percent, with columns for each of the protocol's decision rules.

    The first rule is the protocol's own. `rules`: those of them that are shown.
    """
    config, choices = summary["config"], summary["config"]["choices"]
    judge, all_rules = config["protocol"]["judge"], config["protocol"]["report"]
    samples, n = summary["robust"]["vote"]["draws"], summary["robust"]["single"]["n"]
    seeds, rules = count_of(len(summary["per_seed"]), "seed"), rules or all_rules
    purifier, attack, protocol = (version_name(config, group) for group in ("purifier", "attack", "protocol"))
    what = f"{choices['dataset']} / {purifier} / {attack}, {threat_words(config)}"
    table = Table(
        title=f"{what}, protocol {protocol}",
        caption=f"percent of {count_of(n, 'image')}, mean of {seeds}; intervals: Wilson, over images",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("accuracy", no_wrap=True)
    for rule in rules:
        for name in (rule_name(rule, samples), "95 %", "seed std"):
            table.add_column(name, justify="right", no_wrap=True)
    for name, label, bold in _labels(judge):
        if name in summary:
            figures = [cell for rule in rules for cell in cells(summary[name].get(rule))]
            table.add_row(label, *figures, style="bold" if bold else None)
    return table


def _labels(judge: dict | None) -> list[tuple[str, str, bool]]:
    """The rows of the table: the key in a summary, the label, and whether it is the row's own number."""
    in_loop = bool(judge) and judge["in_loop"]
    when = "decided in-loop" if in_loop else "by the in-loop samples"
    if judge:
        counts = [judge["screen"], judge["draws"]] if judge.get("screen") else [judge["draws"]]
        when += f" ({', then '.join(map(str, counts))} samples)"
    labels = (*ROWS, ("seen", f"robust, {when}"), ("null_seen", f"null control, {when}"))
    return [(name, label, name == ("seen" if in_loop else "robust")) for name, label in labels]


def row_tables(summary: dict, console: Console) -> list[Table]:
    """The table of one run, in parts with as many decision rules as the console is wide for, at least one.

    If not even one fits, the labels are wrapped.
    """
    rules, unbounded = summary["config"]["protocol"]["report"], console.options.update(width=10_000)

    def parts(size: int) -> list[Table]:
        return [row_table(summary, rules[k : k + size]) for k in range(0, len(rules), size)]

    def fits(tables: list[Table]) -> bool:
        return all(Measurement.get(console, unbounded, each).maximum <= console.width for each in tables)

    tables = next((tables for size in range(len(rules), 0, -1) if fits(tables := parts(size))), parts(1))
    if not fits(tables):
        for each in tables:
            each.columns[0].no_wrap, each.columns[0].min_width = False, LABEL
    for first, second in itertools.pairwise(tables):
        first.caption, second.title = None, None
    return tables


def threat_words(config: dict) -> str:
    """The threat model's norm and eps, with the option's name if the perturbation is confined to a region."""
    threat = config["threat_model"]
    words = f"{threat['norm']} {threat['eps']}"
    return f"{words}, {config['choices']['threat_model']}" if threat.get("region") else words


def version_name(config: dict, group: str) -> str:
    """The name of the chosen option, with its version if its numbers have changed."""
    version = config[group].get("version", 1)  # of rows before `suite`, AutoAttack's is text
    moved = isinstance(version, int) and version > 1
    return config["choices"][group] + (f" (version {version})" if moved else "")
