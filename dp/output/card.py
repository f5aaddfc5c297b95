"""The result card of a finished run: its facts as plain data, in one file that can be handed on and checked.

The fields of RobustBench's model_info files have RobustBench's names and spelling (accuracies as text, in percent).
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, cast

from dp.output import shapes
from dp.output.published import published_rows
from dp.output.report import headline
from dp.output.run_files import Audited, CaveatData, Figure, Plugins, Protocol, Threat
from dp.output.run_files import Named as Dataset
from dp.statistics.metrics import RULES

CARD, TEXT = "card.json", "card.md"
FORMAT = 1
FIGURES = ("standard", "robust", "null", "undefended_standard", "undefended", "seen", "null_seen")
FREE = ("link", "authors", "venue", "additional_data")  # what a person may fill in; nothing depends on it
AGAIN = "write it again with dp board card FOLDER"


class CardConfig(TypedDict):
    """The part of a configuration that a check relies on."""

    choices: dict[str, str | None]
    key_ignores: list[str]
    plugins: Plugins
    dataset: Dataset
    classifier: dict
    denoiser: dict
    purifier: dict
    attack: dict
    threat_model: Threat
    protocol: Protocol
    dtype: str


class ImagesFile(TypedDict):
    """The file of attacked images beside a card."""

    name: str
    bytes: int
    sha256: str
    url: str | None  # where it lies, if it is too large for the repository


class Images(TypedDict):
    """The images of a run. `right`: of each, the right samples of its attacked images over all seeds, of `samples`."""

    ids: list[int]
    right: list[int]
    samples: int
    file: ImagesFile | None


class Named(TypedDict):
    """An option and its version."""

    name: str
    version: int


class Attacked(TypedDict):
    """The attack, its radius, and what it differentiates."""

    attack: Named
    norm: str
    eps: str
    gradients: list[list[str]]
    nfe: int


class Scored(TypedDict):
    """The defense, and how many samples of it score an image."""

    purifier: Named
    classifier: str
    denoiser: str | None
    samples: int
    nfe: int


class Weights(TypedDict):
    """A file of weights or data, and the SHA-256 of what is on disk, or of what its address serves."""

    file: str
    sha256: str | None


class Code(TypedDict):
    """What made the rows."""

    sha256: str | None
    commit: str | None
    dirty: bool | None
    versions: dict[str, str]


class Card(TypedDict):
    """card.json: first RobustBench's fields, then ours."""

    link: str | None
    name: str
    authors: str | None
    venue: str | None
    additional_data: bool | None
    number_forward_passes: int  # of the denoiser and the classifier, for one decision
    dataset: str
    architecture: str | None
    eps: str
    clean_acc: str
    reported: str | None  # the published robust accuracy of the same configuration, if there is one
    autoattack_acc: str | None  # of a run whose attack is AutoAttack
    unreliable: bool | None  # the audit failed; null: not audited
    format: int
    key: str
    protocol: Named
    attacked: Attacked
    scored: Scored
    rule: str  # the protocol's first decision rule
    in_loop: bool  # it decides during the attack
    figures: dict[str, dict[str, Figure]]
    seeds: list[int]
    images: Images
    audit: Audited | None
    weights: list[Weights]
    code: Code
    command: str | None
    device: str | None
    seconds: float
    caveats: CaveatData
    config: CardConfig


def card_of(
    summary: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    key: str,
    command: str | None,
    weights: Sequence[Weights],
) -> Card:
    """The card of a finished run from its summary and its rows.

    `key`: the name of its folder. `command`: repeats the run, None if only Python can. `weights`: the files that it
    needs.
    """
    config, caveats = summary["config"], summary["caveats"]
    rule, robust, _ = headline(summary)  # pyright: ignore[reportArgumentType]
    facts = {
        **_robustbench(summary, rule, robust),
        "format": FORMAT,
        "key": key,
        "protocol": _named(config, "protocol"),
        "attacked": _attacked(config, caveats),
        "scored": _scored(config, caveats, summary["robust"]["vote"]["draws"]),
        "rule": rule,
        "in_loop": robust == "seen",
        "figures": {
            name: {each: summary[name][each] for each in RULES if each in summary[name]}
            for name in FIGURES
            if name in summary
        },
        "seeds": sorted({row["seed"] for row in rows}),
        "images": images_of(rows),
        "audit": summary["audited"] or None,
        "weights": list(weights),
        "code": {
            "sha256": summary.get("code"),
            "commit": summary.get("commit"),
            "dirty": summary.get("dirty"),
            "versions": summary.get("versions", {}),
        },
        "command": command,
        "device": summary.get("device"),
        "seconds": summary["seconds"],
        "caveats": caveats,
        "config": config,
    }
    return cast(Card, facts)


def _robustbench(summary: Mapping[str, Any], rule: str, robust: str) -> dict[str, Any]:
    """The fields of RobustBench. `rule`, `robust`: see `headline`."""
    config, audit = summary["config"], summary["audited"] or None
    choices, published = config["choices"], [row["robust"] for row in published_rows(config) if row["robust"]]
    samples = 1 if rule in ("single", "average") else summary["robust"][rule]["draws"]
    return {
        **dict.fromkeys(FREE),
        "name": choices["purifier"],
        "number_forward_passes": samples * (summary["caveats"]["nfe"] + 1),
        "dataset": config["dataset"]["name"],
        "architecture": choices["classifier"],
        "eps": str(config["threat_model"]["eps"]),
        "clean_acc": f"{summary['standard'][rule]['value']:.2f}",
        "reported": published[0] if published else None,
        "autoattack_acc": f"{summary[robust][rule]['value']:.2f}"
        if choices["attack"].startswith("autoattack")
        else None,
        "unreliable": None if audit is None else audit["FAIL"] > 0,
    }


def _attacked(config: Mapping[str, Any], caveats: Mapping[str, Any]) -> Attacked:
    threat = config["threat_model"]
    return {
        "attack": _named(config, "attack"),
        "norm": threat["norm"],
        "eps": str(threat["eps"]),
        "gradients": caveats["gradients"],
        "nfe": caveats["attack_nfe"],
    }


def _scored(config: Mapping[str, Any], caveats: Mapping[str, Any], samples: int) -> Scored:
    choices = config["choices"]
    return {
        "purifier": _named(config, "purifier"),
        "classifier": choices["classifier"],
        "denoiser": choices.get("denoiser"),
        "samples": samples,
        "nfe": caveats["nfe"],
    }


def images_of(rows: Sequence[Mapping[str, Any]]) -> Images:
    """The ids of a run's images, and how many samples of each attacked image are right over all seeds."""
    right: dict[int, int] = {}
    samples: dict[int, int] = {}
    for row in rows:
        if row["arm"] == "defended":
            right[row["id"]] = right.get(row["id"], 0) + sum(c == row["label"] for c in row["adv"])
            samples[row["id"]] = samples.get(row["id"], 0) + len(row["adv"])
    ids = sorted(right)
    return {"ids": ids, "right": [right[i] for i in ids], "samples": max(samples.values(), default=0), "file": None}


def _named(config: Mapping[str, Any], group: str) -> Named:
    version = config.get(group, {}).get("version", 1)
    return {"name": config["choices"][group], "version": version if isinstance(version, int) else 1}


def written(card: Card) -> bytes:
    """card.json: one line for each field."""
    lines = (f" {json.dumps(name)}: {json.dumps(value)}" for name, value in card.items())
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def read_card(path: Path) -> Card:
    """The card in a file. Raises ValueError in one line for what is no card, or one of another format."""
    if not path.is_file():
        raise ValueError(f"need the file of a card, card.json, got {path}: {AGAIN}")
    card = shapes.read_json(path, Card, AGAIN)
    if card["format"] != FORMAT:
        raise ValueError(f"need a card of format {FORMAT} in {path}, got {card['format']}: {AGAIN}")
    return card
