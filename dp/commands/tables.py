"""dp tables: write measured and published results to results/tables/, as markdown and CSV.

It reads results/measured/ and results/published/, and runs nothing.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from dp.output import record
from dp.output.console import console
from dp.output.published import PUBLISHED, published_rows
from dp.output.report import audit_word, clock, gradient_words
from dp.output.row_table import rule_name, version_name
from dp.runs.errors import DONE, command

MEASURED, TABLES = Path("results/measured"), Path("results/tables")
ORDER = ["dataset", "threat", "attack", "purifier", "images", "settings", "protocol", "rule"]
SETTINGS = ("t", "t_l", "t_s", "tau", "jump", "steps", "n", "eta")  # hyperparameters that distinguish runs
PRINTED = ["table", "printed", "setting", "classifier", "norm", "eps", "attack", "standard", "robust", "flag", "note"]


def measured(folder: Path = MEASURED) -> pd.DataFrame:
    """One line for each run below `folder` and each decision rule, in percent. Raises ValueError if there is no run."""
    lines = []
    for path in sorted(folder.glob(f"*/{record.SUMMARY}")):
        summary = record.read_summary(path.parent)
        assert summary is not None, "its file exists"
        lines += [line(summary, path.parent.name, side, rule) for side, rule in reported(summary)]
    if not lines:
        raise ValueError(f"need archived runs in {folder}, got none: dp archive results/runs/<key>")
    return pd.DataFrame(lines).sort_values(ORDER, ignore_index=True)


def reported(summary: dict) -> Iterator[tuple[str, str]]:
    """The (side, rule) of every robust figure: each of the protocol's rules, then the first one by in-loop samples."""
    protocol = summary["config"]["protocol"]
    for rule in protocol["report"]:
        yield "robust", rule
    if protocol["judge"] and "seen" in summary:
        yield "seen", protocol["report"][0]


def line(summary: dict, key: str, side: str, rule: str) -> dict:
    """One line of the table. `side`: `robust`, by fresh samples, or `seen`, by in-loop samples."""
    config, choices, caveats = summary["config"], summary["config"]["choices"], summary["caveats"]
    cells = {
        "dataset": choices["dataset"],
        "purifier": version_name(config, "purifier"),
        "settings": settings(config["purifier"]),
        "attack": version_name(config, "attack")
        + "".join(f", budget {b['budget']}" for b in caveats.get("budget", [])),
        "threat": f"{config['threat_model']['norm']} {config['threat_model']['eps']}",
        "gradient": gradient_words(caveats, config["dtype"]),
        "protocol": version_name(config, "protocol"),
        "rule": rule_name(rule, summary[side][rule]["draws"]) + (", in-loop" if side == "seen" else ""),
        "images": summary["robust"][rule]["n"],
        "seeds": len(summary["per_seed"]),
    }
    null = summary.get("null_seen", {}).get(rule) if side == "seen" else None
    figures = {
        "standard": summary["standard"][rule],
        "robust": summary[side][rule],
        "null": null or summary["null"][rule],
        "undefended": summary["undefended"][rule],
    }
    for name, figure in figures.items():
        cells[name] = figure["value"]
        if name in ("standard", "robust"):
            cells[f"{name} 95 %"] = "{:.1f}-{:.1f}".format(*figure["wilson95"])
            cells[f"{name} seed_std"] = figure["seed_std"]
    rows = published_rows(config)
    cells["published"] = "; ".join(f"{r['standard']}/{r['robust'] or '-'} {r['flag']}".strip() for r in rows)
    seconds, audited = clock(summary["seconds"]), audit_word(summary["audited"])
    return {**cells, "NFE": caveats["nfe"], "time": seconds, "audited": audited, "key": key}


def settings(purifier: dict) -> str:
    """The hyperparameters that distinguish runs of one purifier, as text."""
    return " ".join(f"{k}={purifier[k]}" for k in SETTINGS if purifier.get(k) is not None)


def published(folder: Path = PUBLISHED) -> pd.DataFrame:
    """The published rows, as the papers print them."""
    paths = sorted(folder.glob("table*.csv"))
    rows = pd.concat([pd.read_csv(path, dtype=str, keep_default_na=False) for path in paths])
    for name in ("standard", "robust"):
        std = rows[f"{name}_std"]
        rows[name] = rows[name] + std.where(std == "", "±" + std)
    return pd.DataFrame(rows, columns=PRINTED)


def markdown(frame: pd.DataFrame) -> str:
    """A GitHub table. Numbers have one decimal."""
    text = frame.map(lambda v: f"{v:.1f}" if isinstance(v, float) else str(v))
    lines = ["| " + " | ".join(cells) + " |" for cells in [list(frame.columns), *text.to_numpy().tolist()]]
    lines.insert(1, "|" + "---|" * len(frame.columns))
    return "\n".join(lines) + "\n"


def write() -> int:
    """Write all tables, and print the measured one."""
    rows = measured()
    TABLES.mkdir(parents=True, exist_ok=True)
    rows.to_csv(TABLES / "measured.csv", index=False, float_format="%.2f")
    note = "Percent. Intervals: Wilson 95 % over images. seed_std: standard deviation over seeds, no interval.\n\n"
    (TABLES / "measured.md").write_text("# Measured\n\n" + note + markdown(rows))
    if PUBLISHED.is_dir():  # it is in the repository and not in an installed wheel
        (TABLES / "published.md").write_text("# Published, as printed\n\n" + markdown(published()))
    console.print(rows.drop(columns=["key", "published"]).to_string(index=False, float_format="%.1f"))
    return DONE


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns 0 if the tables are written, 2 after a user's error."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(argv)
    return command(write)
