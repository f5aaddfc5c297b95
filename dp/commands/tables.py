"""dp tables: write the paper's tables with what is measured beside them, to results/tables/.

  dp tables                              from the archived runs
  dp tables --runs results/runs          from your own runs too; --out FOLDER writes elsewhere

For each of Tables 1 to 8 it writes Markdown, LaTeX (booktabs) and CSV: the published rows, the runs that repeat them,
by the paper's own rule and others, and notes on all that makes the two incomparable. It says which runs are missing,
and the command that makes each. measured.* has every run, published.md the rows as printed, reevaluations.md what
others measured. It reads results/published/ and runs nothing.
"""

import argparse
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from dp.output import paper_table, record
from dp.output.console import console
from dp.output.published import PUBLISHED, all_rows, published_rows, read_csv
from dp.output.report import audit_word, clock, gradient_words
from dp.output.row_table import rule_name, threat_words, version_name
from dp.output.table_text import latex, markdown
from dp.runs.cells import find
from dp.runs.errors import DONE, command
from dp.runs.repeat import changes_of

MEASURED, TABLES = Path("results/measured"), Path("results/tables")
ORDER = ["dataset", "threat", "attack", "purifier", "images", "settings", "protocol", "rule"]
SETTINGS = ("t", "t_l", "t_s", "tau", "jump", "steps", "n", "eta", "taps")  # hyperparameters that distinguish runs
PRINTED = ["table", "printed", "setting", "classifier", "norm", "eps", "attack", "standard", "robust", "flag", "note"]


def measured(folders: Sequence[Path] = (MEASURED,)) -> pd.DataFrame:
    """One line for each run below `folders` and each decision rule, in percent. A run in several of them is read in the
    first. Raises ValueError if there is no run.
    """
    found = {p.parent.name: p.parent for folder in reversed(folders) for p in folder.glob(f"*/{record.SUMMARY}")}
    lines = []
    for key, path in sorted(found.items()):
        summary = record.read_summary(path)
        assert summary is not None, "its file exists"
        lines += [line(summary, key, side, rule) for side, rule in reported(summary)]
    if not lines:
        where = ", ".join(map(str, folders))
        raise ValueError(f"need archived runs in {where}, got none: dp archive results/runs/<key>")
    return pd.DataFrame(lines).sort_values(ORDER, ignore_index=True)


def reported(summary: dict) -> Iterator[tuple[str, str]]:
    """The (side, rule) of every robust figure: each of the protocol's rules, then the first one by in-loop samples."""
    protocol = summary["config"]["protocol"]
    for rule in protocol["report"]:
        yield "robust", rule
    if protocol["judge"] and protocol["report"][0] in summary.get("seen", {}):
        yield "seen", protocol["report"][0]


def line(summary: dict, key: str, side: str, rule: str) -> dict:
    """One line of the table. `side`: `robust`, by fresh samples, or `seen`, by in-loop samples."""
    config, choices, caveats = summary["config"], summary["config"]["choices"], summary["caveats"]
    cells = {
        "dataset": choices["dataset"],
        "purifier": version_name(config, "purifier"),
        "settings": settings(config["purifier"]),
        "classifier": choices["classifier"],
        "denoiser": choices.get("denoiser", ""),
        "attack": version_name(config, "attack")
        + "".join(f", budget {b['budget']}" for b in caveats.get("budget", [])),
        "threat": threat_words(config),
        "gradient": gradient_words(caveats, config.get("dtype", "float32")),
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
    changed = " ".join(changes_of(config, tuple(config.get("plugins", {}).get("folders", ()))))
    return {**cells, "NFE": caveats["nfe"], "time": seconds, "audited": audited, "changed": changed, "key": key}


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


def reevaluated(folder: Path = PUBLISHED) -> pd.DataFrame:
    """What others measured of the same defenses, in percent, as their papers print it."""
    return pd.read_csv(folder / "reevaluations.csv", dtype=str, keep_default_na=False)


def write_paper_tables(out: Path, folders: Sequence[Path]) -> list[str]:
    """Write the paper's tables to `out` from the runs in `folders`. Returns a line for people about each."""
    cells = read_csv(PUBLISHED / "cells.csv")
    stand_ins = {(line["table"], line["stand_in"]): line["what"] for line in read_csv(PUBLISHED / "stand_ins.csv")}
    look, told = functools.cache(lambda command, folder, note: find(command, folder, note, folders)), []
    for number in sorted({row["table"] for row in all_rows()}):
        rows = [row for row in all_rows() if row["table"] == number]
        found, missing = paper_table.lines(
            rows, cells, stand_ins, lambda cell: look(cell["command"], cell["folder"], cell["note"])
        )
        frame, notes = paper_table.shown(found)
        title, path = title_of(rows), out / f"table{number}.md"
        path.write_text(text_of(title, frame, notes, missing, rows))
        path.with_suffix(".tex").write_text(latex(frame, f"{title}. {LEGEND}", f"tab:{path.stem}", notes))
        paper_table.frame(found).to_csv(path.with_suffix(".csv"), index=False)
        runs = len({line.cell["command"] for line in found if line.cell})
        told.append(f"{path}: {runs} runs beside {len(rows)} published lines; {len(missing)} cells are missing")
    return told


LEGEND = (
    "Percent. ± is the standard deviation over seeds; 95 % is an interval over images. * marks the decision rule of "
    "the row's own paper. † marks a published value that no mean of three runs over 512 images gives. A difference is "
    "measured less published, and is left out where another dataset stands in"
)


def title_of(rows: Sequence[dict]) -> str:
    """`Table 1: cifar10, wrn_28_10, linf 8/255`."""
    classifiers = ", ".join(dict.fromkeys(row["classifier"] for row in rows))
    first = rows[0]
    return f"Table {first['table']}: {first['dataset']}, {classifiers}, {first['norm']} {first['eps']}"


def text_of(title: str, frame: pd.DataFrame, notes: Sequence[str], missing: Sequence, rows: Sequence[dict]) -> str:
    """One table of the paper for people, with its notes, what is missing, and what others measured."""
    parts = [f"# {title}\n", f"{rows[0]['source']}. {LEGEND}.\n", markdown(frame)]
    parts.append("## Notes\n\n" + "".join(f"{k}. {note}\n" for k, note in enumerate(notes, 1)))
    if missing:
        absent = [[f"{m.row['printed']} {m.row['setting']}".strip(), m.row["attack"], *_where(m)] for m in missing]
        columns = ["defense", "attack", "on", "state", "command"]
        parts.append("## Missing\n\n" + markdown(pd.DataFrame(absent, columns=columns)))
    others = reevaluated()
    same = {(row["method"], row["dataset"], row["norm"]) for row in rows}
    keys = zip(others["method"], others["dataset"], others["norm"], strict=True)
    others = pd.DataFrame(others.drop(columns=["dataset", "norm"])[[key in same for key in keys]])
    if len(others):
        what = "The same defenses, measured by others; classifiers and decisions differ."
        unread = "`unverified`: not read in the source."
        parts.append(f"## Measured by others\n\n{what} {unread}\n\n" + markdown(others))
    return "\n".join(parts)


def _where(missing: paper_table.Missing) -> list[str]:
    run = paper_table.command(missing.cell)
    return [missing.cell["stand_in"] or missing.row["dataset"], missing.what, "" if run == "none" else f"`{run}`"]


def write(out: Path = TABLES, more: Sequence[Path] = ()) -> int:
    """Write all tables to `out`, and print the measured one. `more`: folders of runs beside the archived ones."""
    for folder in more:
        if not folder.is_dir():
            raise ValueError(f"need folders of runs for --runs, got {folder}, which is none: such as results/runs")
    rows = measured([MEASURED, *more])
    out.mkdir(parents=True, exist_ok=True)
    rows.to_csv(out / "measured.csv", index=False, float_format="%.2f")
    note = "Percent. Intervals: Wilson 95 % over images. seed_std: standard deviation over seeds, no interval.\n\n"
    (out / "measured.md").write_text("# Measured\n\n" + note + markdown(rows))
    console.print(rows.drop(columns=["key", "published", "changed"]).to_string(index=False, float_format="%.1f"))
    if PUBLISHED.is_dir():  # it is in the repository and not in an installed wheel
        (out / "published.md").write_text("# Published, as printed\n\n" + markdown(published()))
        (out / "reevaluations.md").write_text("# Measured by others, as printed\n\n" + markdown(reevaluated()))
        for line in write_paper_tables(out, [MEASURED, *more]):
            console.print(line)
    return DONE


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns 0 if the tables are written, 2 after a user's error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", type=Path, default=[], help="folders of runs beside results/measured")
    parser.add_argument("--out", type=Path, default=TABLES, help="where to write (results/tables)")
    args = parser.parse_args(argv)
    return command(lambda: write(args.out, args.runs))
