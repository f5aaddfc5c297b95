"""Results that papers published, for the same configuration as a run."""

import csv
import json
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from dp.threat_models.ball import parse_eps

PUBLISHED = Path(__file__).parents[2] / "results" / "published"
IMAGES, RUNS = 512, 3  # the paper's: means of three runs over 512 images
TIMES = {"t*": "t", "t_l": "t_l", "t_s": "t_s"}  # what a published setting names, and the purifier's key


def published_rows(config: dict, folder: Path = PUBLISHED) -> list[dict]:
    """The published rows for the method, dataset, classifier, attack and threat model of a configuration.

    `folder` holds the tables, table*.csv; attacks.csv, which lists the attack options that each published attack stands
    for; and settings.csv, the values of a method's main settings. Most configurations have no published row, and none
    where a region confines the perturbation or such a value is another one.
    """
    choices, threat = config["choices"], config["threat_model"]
    if threat.get("region"):
        return []
    attacks = {
        (line["group"], line["attack"])
        for path in folder.glob("attacks.csv")
        for line in read_csv(path)
        if line["option"] == choices["attack"]
    }
    return [
        row
        for row in all_rows(folder)
        if row["method"] == config["purifier"].get("published")
        and row["dataset"] == config["dataset"]["name"]
        and row["classifier"] == config["classifier"].get("published", choices["classifier"])
        and row["table"] != "7"  # it varies the mask's blocks
        and (row["group"], row["attack"]) in attacks
        and row["norm"] == threat["norm"]
        and abs(parse_eps(row["eps"]) - parse_eps(threat["eps"])) < 1e-9
        and _has_setting(row["setting"], config["purifier"])
        and _has_values(row, config["purifier"], folder)
    ]


def _has_setting(setting: str, purifier: dict) -> bool:
    """Whether a purifier has the noise times that tell apart the rows of one method, such as `t*=.2`, if it has any."""
    named = re.findall(r"(t\*|t_l|t_s)=([\d.]+)", setting)
    return all(abs(float(value) - purifier.get(TIMES[name], float(value))) < 1e-9 for name, value in named)


def _has_values(row: dict, purifier: dict, folder: Path) -> bool:
    return all(purifier.get(key, value) == value for key, value in published_values(row, folder).items())


def published_values(row: Mapping[str, str], folder: Path = PUBLISHED) -> dict[str, Any]:
    """{key of the purifier: value} of the settings that a published row stands for, as far as settings.csv has them."""
    return {
        line["key"]: json.loads(line["value"])
        for path in folder.glob("settings.csv")
        for line in read_csv(path)
        if (line["method"], line["dataset"]) == (row["method"], row["dataset"]) and line["norm"] in ("", row["norm"])
    }


def all_rows(folder: Path = PUBLISHED) -> list[dict]:
    """Every row of the published tables, in the order of the paper."""
    return [row for path in sorted(folder.glob("table*.csv")) for row in read_csv(path)]


def own_rules(folder: Path = PUBLISHED) -> dict[str, tuple[str, int]]:
    """{method: the decision rule of its own paper or code, and by how many samples it decides}, of those known."""
    lines = [line for path in folder.glob("rules.csv") for line in read_csv(path)]
    return {line["method"]: (line["rule"], int(line["samples"])) for line in lines}


def read_csv(path: Path) -> list[dict]:
    """The lines of a CSV file as mappings of text."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def published_lines(rows: Sequence[dict]) -> list[str]:
    """One line of text for each published row: its figures as printed, and why they are doubtful if they are."""
    return [
        f"published ({row['source']}, {row['printed']} {row['setting']}".rstrip()
        + f"): standard {plus_minus(row, 'standard')}, robust {plus_minus(row, 'robust')}"
        + (f"; {row['flag']}: {row['note']}" if row["flag"] else "")
        for row in rows
    ]


def plus_minus(row: dict, name: str) -> str:
    """`93.16±0.21`, as printed; `-` for a figure that is not given. `name`: standard or robust."""
    spread = row[f"{name}_std"]
    return (row[name] or "-") + (f"±{spread}" if spread else "")


def can_be_mean(printed: str, images: int = IMAGES, runs: int = RUNS) -> bool:
    """Whether a percentage can be the mean of `runs` runs over `images` images: 100 k / (images x runs) for a whole k.

    `printed`: as it stands in a table. Its digits may be rounded or truncated.
    """
    value, unit = Fraction(printed), Fraction(100, images * runs)
    last = Fraction(1, 10 ** len(printed.partition(".")[2]))  # one in the last printed digit
    nearest = int(value / unit)
    return any(-last / 2 <= k * unit - value < last for k in range(nearest - 1, nearest + 3) if k >= 0)
