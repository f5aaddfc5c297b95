"""A run beside the published rows of its configuration: by the paper's own rule, by others, and the differences."""

from collections.abc import Sequence

from rich import box
from rich.table import Table

from dp.output.published import own_rules, plus_minus, published_rows
from dp.output.row_table import rule_name

SHOWN = ("single", "vote")  # beside the rule of the row's own paper
MASKS = "mask_soft"  # the gradient mode of a purifier whose mask can be attacked


def beside_published(summary: dict) -> tuple[list[Table], list[str]]:
    """A table for each published row of the run's configuration, and a line that names the honest protocol.

    Both are empty for a configuration without a published row. Percent; a difference is measured less published.
    """
    rows = published_rows(summary["config"])
    return [_table(summary, row) for row in rows], honest_line(summary["config"])


def shown_rules(method: str, samples: int) -> list[str]:
    """The decision rules that are shown beside a published row: the first is that of the row's own paper, if known.

    `samples`: the number of samples by which the run decides.
    """
    if samples == 1:
        return ["single"]
    own = own_rules().get(method)
    return list(dict.fromkeys([*([own[0]] if own else []), *SHOWN]))


def own_mark(method: str, rule: str, samples: int) -> str:
    """` *` for the decision rule of a row's own paper; the same rule over another number of samples names the paper's;
    empty for another rule.
    """
    own, its = own_rules().get(method, ("", 0))
    if rule != own:
        return ""
    return " *" if samples == its or rule == "single" else f" * (its own: {its})"


def honest_line(config: dict) -> list[str]:
    """One line about `protocol=strict` for a run with published rows under another protocol; else none."""
    if config["choices"]["protocol"] == "strict" or not published_rows(config):
        return []
    masks = config["purifier"].get("gradients", {}).get(MASKS) is not None
    words = ["protocol=strict", *(["attack=strict_mask"] if masks else [])]
    what = "exact gradients, the worst case over attacks, fresh samples"
    without = f"the same command without attack={config['choices']['attack']} and with {' '.join(words)}"
    return [f"this protocol serves the comparison with the published row; the honest one is strict ({what}): {without}"]


def _table(summary: dict, row: dict) -> Table:
    """The published row, and below it the run by each of the `shown_rules`."""
    table = Table(
        title=f"beside {row['source']}, {row['printed']} {row['setting']}".rstrip(),
        caption="* the paper's own rule; ± over seeds; diff.: measured less published, in points; 95 % of robust",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("rule", no_wrap=True)
    for name in ("standard", "diff.", "robust", "diff.", "95 %"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_row("published", plus_minus(row, "standard"), "", plus_minus(row, "robust"), "", "")
    samples = summary["robust"]["vote"]["draws"]
    for rule in shown_rules(row["method"], samples):
        if rule in summary["robust"] and rule in summary["standard"]:
            mark = own_mark(row["method"], rule, samples)
            table.add_row(rule_name(rule, samples) + mark, *_cells(summary, row, rule))
    return table


def _cells(summary: dict, row: dict, rule: str) -> Sequence[str]:
    found = []
    for side in ("standard", "robust"):
        figure = summary[side][rule]
        spread = "" if figure["seed_std"] is None else f"±{figure['seed_std']:.2f}"
        found += [f"{figure['value']:.2f}{spread}", f"{figure['value'] - float(row[side]):+.2f}" if row[side] else ""]
    low, high = summary["robust"][rule]["wilson95"]
    return [*found, f"{low:.1f} - {high:.1f}"]
