"""Write results/tables/: what was measured beside what was published, as markdown and CSV. Reads files only, computes
nothing anew.
"""

import argparse
import json
import sys
from pathlib import Path

import pandas as pd

from dp.output.report import audit_word, clock, published_rows, rule_name

ROOT = Path(__file__).parents[1]
MEASURED, TABLES = ROOT / "results" / "measured", ROOT / "results" / "tables"


def measured() -> pd.DataFrame:
    """One line per run and decision rule, percent."""
    lines = []
    for path in sorted(MEASURED.glob("*/summary.json")):
        s = json.loads(path.read_text())
        config, choices = s["config"], s["config"]["choices"]
        rules = config["protocol"].get("report", ["single", "vote"])
        judge = config["protocol"].get("judge")
        for side, rule in [("robust", rule) for rule in rules] + (
            [("seen", rules[0])] if judge and "seen" in s else []
        ):
            line = {
                "dataset": choices["dataset"],
                "purifier": choices["purifier"],
                "settings": settings(config["purifier"]),
                "attack": choices["attack"],
                "threat": f"{config['threat_model']['norm']} {config['threat_model']['eps']}",
                "gradient": s["gradient"],
                "protocol": choices.get("protocol", "default"),
                "rule": rule_name(rule, s[side][rule]["draws"]) + (", by the judge" if side == "seen" else ""),
                "images": s["robust"][rule]["n"],
                "seeds": len(s["per_seed"]),
            }
            null = "null_seen" if side == "seen" else "null"
            for name, figure in (
                ("standard", s["standard"][rule]),
                ("robust", s[side][rule]),
                ("null", s.get(null, {}).get(rule, s["null"][rule])),
                ("undefended", s["undefended"][rule]),
            ):
                line[name] = figure["value"]
                if name in ("standard", "robust"):
                    line[f"{name} 95 %"] = "{:.1f}-{:.1f}".format(*figure["wilson95"])
                    line[f"{name} seed_std"] = figure["seed_std"]
            rows = published_rows(config, config["purifier"].get("published"))
            line["published"] = "; ".join(f"{r['standard']}/{r['robust'] or '-'} {r['flag']}".strip() for r in rows)
            line |= {
                "NFE": s["nfe"],
                "time": clock(s["seconds"]),
                "audited": audit_word(s["audited"]),
                "key": path.parent.name,
            }
            lines.append(line)
    frame = pd.DataFrame(lines)
    order = ["dataset", "threat", "attack", "purifier", "images", "settings", "protocol", "rule"]
    return frame if frame.empty else frame.sort_values(order, ignore_index=True)


def settings(purifier: dict) -> str:
    """The hyperparameters that tell runs of one purifier apart."""
    shown = ("t", "t_l", "t_s", "tau", "jump", "steps", "n", "eta")
    return " ".join(f"{k}={purifier[k]}" for k in shown if purifier.get(k) is not None)


def published() -> pd.DataFrame:
    paths = sorted((ROOT / "results" / "published").glob("table*.csv"))
    return pd.concat([pd.read_csv(path, dtype=str, keep_default_na=False) for path in paths])


def markdown(frame) -> str:
    """A GitHub table; numbers with one decimal."""
    text = frame.map(lambda v: f"{v:.1f}" if isinstance(v, float) else str(v))
    lines = ["| " + " | ".join(cells) + " |" for cells in [list(frame.columns), *text.to_numpy().tolist()]]
    lines.insert(1, "|" + "---|" * len(frame.columns))
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.parse_args()
    frame = measured()
    if frame.empty:
        print("error: no runs in results/measured: python scripts/archive.py results/runs/<key>", file=sys.stderr)
        return 2
    TABLES.mkdir(parents=True, exist_ok=True)
    frame.to_csv(TABLES / "measured.csv", index=False, float_format="%.2f")
    note = "Percent; intervals: Wilson 95 % over images; seed_std: deviation over seeds, no interval.\n\n"
    (TABLES / "measured.md").write_text("# Measured\n\n" + note + markdown(frame))
    theirs = published()
    columns = [
        "table",
        "printed",
        "setting",
        "classifier",
        "norm",
        "eps",
        "attack",
        "standard",
        "robust",
        "flag",
        "note",
    ]
    for spread in ("standard", "robust"):
        std = theirs[f"{spread}_std"]
        theirs[spread] = theirs[spread] + std.where(std == "", "±" + std)
    (TABLES / "published.md").write_text("# Published, as printed\n\n" + markdown(theirs[columns]))
    print(frame.drop(columns=["key", "published"]).to_string(index=False, float_format="%.1f"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
