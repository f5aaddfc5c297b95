"""Results that papers published, for the same configuration as a run."""

import csv
import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from dp.threat_models.ball import parse_eps

PUBLISHED = Path(__file__).parents[2] / "results" / "published"
IMAGES, RUNS = 512, 3  # the paper's: means of three runs over 512 images
TIMES = {"t*": "t", "t_l": "t_l", "t_s": "t_s"}  # what a published setting names, and the purifier's key


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
    ]


def _has_setting(setting: str, purifier: dict) -> bool:
    """Whether a purifier has the noise times that tell apart the rows of one method, such as `t*=.2`, if it has any."""
    named = re.findall(r"(t\*|t_l|t_s)=([\d.]+)", setting)
    return all(abs(float(value) - purifier.get(TIMES[name], float(value))) < 1e-9 for name, value in named)


def all_rows(folder: Path = PUBLISHED) -> list[dict]:
    """Every row of the published tables, in the order of the paper."""
    return [row for path in sorted(folder.glob("table*.csv")) for row in read_csv(path)]


def own_rules(folder: Path = PUBLISHED) -> dict[str, str]:
    """{method: the decision rule of its own paper or code}, of those that are known."""
    return {line["method"]: line["rule"] for path in folder.glob("rules.csv") for line in read_csv(path)}


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
