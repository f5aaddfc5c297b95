"""Are our APGD and Square as strong as those of pyautoattack? Five seeds of each, on the undefended digits classifier.

Random decisions differ, so that no image can be compared with itself. The study compares means, and on how many images
two runs differ. It takes about ten minutes of one core, and writes results/measured/package_attacks.json and
results/tables/package_attacks.md.
"""

import logging
import sys
from collections.abc import Sequence
from itertools import combinations, product
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import outputs
import torch
from cells import markdown
from torch import Tensor

from dp.attacks.base import Attack
from dp.defense.interface import Defense
from dp.output.console import console
from dp.rng import Streams
from dp.runs import compose
from dp.runs.build import build
from dp.runs.errors import command
from dp.statistics.intervals import mcnemar
from dp.subset import Subset
from dp.threat_models.ball import ThreatModel

RESULTS = Path(__file__).parents[2] / "results"
MEASURED, TABLE = RESULTS / "measured" / "package_attacks.json", RESULTS / "tables" / "package_attacks.md"
SEEDS = (0, 1, 2, 3, 4)
COLUMNS = ["attack", "robust, ours", "robust, package", "spread of the package"]
COLUMNS += ["two seeds of the package differ", "ours and the package differ", "least McNemar p", "p within the package"]


class Case(NamedTuple):
    """An attack of both codes: its name there, its settings here, and eps times 255."""

    there: Literal["apgd-ce", "apgd-t", "square"]
    here: tuple[str, ...]
    eps: int


QUERIES = 300
QUICK = ("attack.eot=1", "attack.rescale=true", f"attack.iterations={QUERIES}")  # few queries: stretched schedule
ONE = ("attack.eot=1", "attack.confirm=1")
CASES = {
    "APGD-CE, 16/255": Case("apgd-ce", ("attack=apgd_ce", "attack.iterations=100", *ONE), 16),
    "APGD-T, 16/255": Case("apgd-t", ("attack=apgd_t", "attack.iterations=100", *ONE), 16),
    f"Square, 20/255, {QUERIES} queries, `reach_edges=false`": Case(
        "square", ("attack=square", *QUICK, "attack.reach_edges=false"), 20
    ),
    f"Square, 20/255, {QUERIES} queries, `reach_edges=true`": Case("square", ("attack=square", *QUICK), 20),
}


def ours(attack: Attack, model: Defense, subset: Subset, threat: ThreatModel, seed: int) -> Tensor:
    """The images that our attack finds, (B,C,H,W)."""
    rng = Streams(subset.ids, seed, "package_attacks")
    state = attack.start(model, subset.x, subset.y, threat, rng.draw(0))
    for i in range(attack.steps):
        state = attack.step(model, state, subset.x, subset.y, threat, rng.draw(1 + i))
    return state.x_adv


def theirs(
    name: Literal["apgd-ce", "apgd-t", "square"],
    classifier: torch.nn.Module,
    subset: Subset,
    threat: ThreatModel,
    seed: int,
) -> Tensor:
    """The images that the package finds, (B,C,H,W). It takes 100 iterations of APGD, as ours."""
    from pyautoattack import AutoAttack

    logging.getLogger("auto-attack").addHandler(logging.NullHandler())  # its warnings are not for the terminal
    made = AutoAttack(
        classifier, norm="Linf", eps=threat.eps, version="custom", attacks=[name], seed=seed, device="cpu"
    )
    made.apgd.n_restarts, made.apgd_targeted.n_target_classes, made.square.n_queries = 1, 9, QUERIES  # as in `standard`
    made.square.rescale_schedule = True
    return made.run_standard_evaluation(subset.x, subset.y, batch_size=len(subset.x))[0]


def measure(name: str, case: Case, images: int) -> list[dict]:
    """One entry for each code and seed: for each image 1 where the classifier is right on it, attacked, else 0."""
    given = ("dataset=digits", "purifier=none", f"protocol.images={images}", f"threat_model.eps={case.eps}/255")
    evaluation = build(compose.composed(*given, *case.here, "device=cpu"))
    arm, subset, entries = evaluation.arms["defended"], evaluation.subset, []
    for code, seed in product(("ours", "package"), SEEDS):
        threat = evaluation.threat
        if code == "ours":
            x_adv = ours(arm.attack, arm.attacked, subset, threat, seed)
        else:
            x_adv = theirs(case.there, arm.scored.classifier, subset, threat, seed)
        assert threat.distance(x_adv, subset.x).max() <= threat.eps * (1 + 1e-6)
        with torch.no_grad():
            right = arm.scored.classifier(x_adv).argmax(1) == subset.y
        bits = "".join(map(str, right.int().tolist()))
        entries.append({"attack": name, "code": code, "seed": seed, "right": bits})
        console.print(f"{name}, {code}, seed {seed}: {100 * right.double().mean():.2f} % robust")
    return entries


def verdicts(measured: Sequence[dict], name: str, code: str) -> list[np.ndarray]:
    """For each seed the (n,) 0s and 1s of an attack of one code."""
    return [np.array(list(map(int, e["right"]))) for e in measured if (e["attack"], e["code"]) == (name, code)]


def line(measured: Sequence[dict], name: str) -> list[str]:
    """A line of the table, under `COLUMNS`, in percent and points but for the p values."""
    own, package = verdicts(measured, name, "ours"), verdicts(measured, name, "package")
    among, across = list(combinations(package, 2)), list(product(own, package))
    means = [100 * float(np.mean(v)) for v in package]
    differ = [100 * float(np.mean(a != b)) for a, b in among]
    numbers = [100 * np.mean(own), np.mean(means), max(means) - min(means)]
    numbers += [max(differ), np.mean([100 * np.mean(a != b) for a, b in across])]
    p = [min(mcnemar(a, b) for a, b in pairs) for pairs in (across, among)]
    return [name, *(f"{number:.2f}" for number in numbers), *(f"{least:.3f}" for least in p)]


def text(measured: Sequence[dict]) -> str:
    """The table in Markdown, with what it shows."""
    images = len(measured[0]["right"])
    words = f"# Our attacks and those of pyautoattack 0.2.0\n\n`python scripts/studies/package_attacks.py`: {images} "
    words += (
        f"images of digits, no purifier, linf, {len(SEEDS)} seeds of each code. *Robust* is the mean over seeds, in "
    )
    words += (
        "percent. *Spread* is the largest difference between two seeds, in points. *Differ*: on how many images two "
    )
    words += (
        "runs do, in percent, at most between two seeds of the package, and on average between ours and the package. "
    )
    words += "The p values are the least ones over all pairs of runs, not corrected for their number.\n\n"
    return words + markdown(
        "Attacks", COLUMNS, [line(measured, name) for name in dict.fromkeys(e["attack"] for e in measured)]
    )


def main() -> int:
    """The command. Returns 0 when the table is written."""
    parser = outputs.parser(__doc__)
    parser.add_argument("--images", type=outputs.at_least_one, default=512, help="test images (default 512)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    measured = [entry for name, case in CASES.items() for entry in measure(name, case, args.images)]
    outputs.write_measured(MEASURED, measured, TABLE, text(measured), args.write)
    return 0


if __name__ == "__main__":
    sys.exit(command(main))
