"""Results that papers published, for the same configuration as a run."""

import csv
from collections.abc import Sequence
from pathlib import Path

from dp.threat_models.ball import parse_eps

PUBLISHED = Path(__file__).parents[2] / "results" / "published"


def published_rows(config: dict, folder: Path = PUBLISHED) -> list[dict]:
    """The published rows for the method, dataset, classifier, attack and threat model of a configuration.

    `folder` holds the tables, table*.csv, and attacks.csv, which lists the attack options that each published attack
    stands for. Most configurations have no published row, and none where a region confines the perturbation.
    """
    choices, threat = config["choices"], config["threat_model"]
    if threat.get("region"):
        return []
    attacks = {
        (line["group"], line["attack"])
        for path in folder.glob("attacks.csv")
        for line in _lines(path)
        if line["option"] == choices["attack"]
    }
    return [
        row
        for path in sorted(folder.glob("table*.csv"))
        for row in _lines(path)
        if row["method"] == config["purifier"].get("published")
        and row["dataset"] == config["dataset"]["name"]
        and row["classifier"] == config["classifier"].get("published", choices["classifier"])
        and row["table"] != "7"  # it varies the mask's blocks
        and (row["group"], row["attack"]) in attacks
        and row["norm"] == threat["norm"]
        and abs(parse_eps(row["eps"]) - parse_eps(threat["eps"])) < 1e-9
    ]


def _lines(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def published_lines(rows: Sequence[dict]) -> list[str]:
    """One line of text for each published row: its figures as printed, and why they are doubtful if they are."""
    return [
        f"published ({row['source']}, {row['printed']} {row['setting']}".rstrip()
        + f"): standard {_plus_minus(row, 'standard')}, robust {_plus_minus(row, 'robust')}"
        + (f"; {row['flag']}: {row['note']}" if row["flag"] else "")
        for row in rows
    ]


def _plus_minus(row: dict, name: str) -> str:
    spread = row[f"{name}_std"]
    return (row[name] or "-") + (f"±{spread}" if spread else "")
