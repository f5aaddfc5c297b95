"""The shapes of a run's JSON files, and whether its rows are complete."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from dp.evaluation.rows import Row

VERDICTS = "verdicts.safetensors"  # of an archived run


class Figure(TypedDict):
    """One accuracy, see `metrics.accuracy`."""

    value: float  # percent
    seed_std: float | None
    wilson95: tuple[float, float]
    n: int
    draws: int


class Finding(TypedDict):
    """What one check of the audit found."""

    check: str
    value: Any
    threshold: Any
    verdict: str


class Audited(TypedDict):
    """What a summary keeps of an audit."""

    checks: int
    FAIL: int
    WARN: int
    findings: list[Finding]


class AuditFile(TypedDict):
    """audit.json."""

    code: str
    entry: Audited


class Named(TypedDict):
    """A dataset's node."""

    name: str


class Threat(TypedDict):
    """A threat model's node."""

    norm: str
    eps: float | str
    grad: str


class Judge(TypedDict):
    """The in-loop evaluation in a protocol's node."""

    in_loop: bool
    draws: NotRequired[int]
    screen: NotRequired[int | None]


class Protocol(TypedDict):
    """A protocol's node."""

    report: list[str]
    judge: Judge | None
    ties: NotRequired[str]
    votes: NotRequired[int]
    known_draws: NotRequired[bool]
    version: NotRequired[int]


class Plugins(TypedDict):
    """What came from outside of conf/."""

    folders: list[str]


class Config(TypedDict):
    """The part of a composed configuration that the readers of a summary rely on."""

    choices: dict[str, str | None]
    dataset: Named
    classifier: dict
    purifier: dict
    threat_model: Threat
    protocol: Protocol
    attack: NotRequired[dict]
    plugins: NotRequired[Plugins]
    key_ignores: NotRequired[list[str]]
    device: NotRequired[str]
    memory: NotRequired[str]
    window: NotRequired[int]


class Change(TypedDict):
    """See `dp.evaluation.caveats.Change`."""

    key: str
    value: Any
    reference: Any


class Difference(TypedDict):
    """See `dp.evaluation.caveats.Difference`."""

    key: str
    attacked: Any
    scored: Any


class ShortSteps(TypedDict):
    """See `dp.evaluation.caveats.ShortSteps`."""

    attack: str
    reach: float
    needed: float


class Fact(TypedDict):
    """What a purifier tells of itself."""

    name: str
    value: float


class Stronger(TypedDict):
    """A preset with a larger budget of the protocol."""

    experiment: str
    least: float
    most: float


class Spent(TypedDict):
    """See `dp.evaluation.caveats.Spent`."""

    budget: int
    spent: float
    iterations: int


class CaveatData(TypedDict):
    """See `dp.evaluation.caveats.Caveats`."""

    gradients: list[list[str]]
    straight_through: bool
    differences: NotRequired[list[Difference]]
    departures: NotRequired[list[Change]]
    scaled: NotRequired[list[Change]]
    short_steps: NotRequired[list[ShortSteps]]
    no_surrogate: NotRequired[bool]
    masks_spared: NotRequired[list[str]]
    criterion: NotRequired[str]
    attack_samples: NotRequired[int]
    batch_bound: NotRequired[bool]
    facts: NotRequired[list[Fact]]
    exceptions: NotRequired[list[str]]
    stronger: NotRequired[list[Stronger]]
    budget: NotRequired[list[Spent]]
    nfe: int
    attack_nfe: int


class Summary(TypedDict):
    """summary.json."""

    format: int
    standard: dict[str, Figure]
    robust: dict[str, Figure]
    null: dict[str, Figure]
    undefended: dict[str, Figure]
    undefended_standard: NotRequired[dict[str, Figure]]
    seen: NotRequired[dict[str, Figure]]
    null_seen: NotRequired[dict[str, Figure]]
    per_seed: dict[str, dict]
    ties: NotRequired[int]
    seconds: float
    unrepeatable: NotRequired[list[str]]
    device: NotRequired[str]
    config: Config
    code: NotRequired[str]
    caveats: CaveatData
    audited: Audited | Literal[False] | None  # older runs have false


class Start(TypedDict):
    """start.json."""

    code: str
    config: dict


class Timing(TypedDict):
    """A line of timing-*.jsonl."""

    seconds: float
    unrepeatable: NotRequired[list[str]]


def without_figure(summary: dict) -> str | None:
    """A rule of the protocol's that a summary has no figure of, in words, or None."""
    protocol = summary["config"]["protocol"]
    for name in ("standard", "robust", "undefended", "null"):
        for rule in {*protocol["report"], "single", "vote"}:
            if rule not in summary[name]:
                return f"no {name}.{rule}"
    in_loop = bool(protocol["judge"]) and protocol["judge"]["in_loop"] and "seen" in summary
    return f"no seen.{protocol['report'][0]}" if in_loop and protocol["report"][0] not in summary["seen"] else None


def incomplete(rows: Sequence[Row], summary: dict) -> str | None:
    """What is wrong with the rows of a finished run, in words, or None.

    Every condition must have a row for each image and each seed, with as many samples as the others.
    """
    images, seeds = summary["robust"]["single"]["n"], sorted(map(int, summary["per_seed"]))
    for arm in ("defended", "undefended", "null"):
        its = [row for row in rows if row["arm"] == arm]
        keys = {(row["seed"], row["id"]) for row in its}
        ids = {i for _, i in keys}
        if len(its) != images * len(seeds) or len(ids) != images or keys != {(s, i) for s in seeds for i in ids}:
            return f"{len(its)} rows of {arm} instead of {images} images x {len(seeds)} seeds"
        for side in ("clean", "adv", "seen"):
            if len({len(row[side]) for row in its}) > 1:
                return f"unequal numbers of {side} samples in the rows of {arm}"
    return None


def is_archived(folder: Path) -> bool:
    """True for the copy of a run that `dp archive` made. It keeps no images."""
    return (folder / VERDICTS).exists() and not any(folder.glob("rows-*.jsonl"))
