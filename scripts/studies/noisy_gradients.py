"""What helps an attack whose gradient is noisy? Remedies of the field side by side, at equal network evaluations.

The study attacks two defenses on digits with PGD and with APGD, each plainly and with one remedy. Every variant spends
as many network evaluations per image as the plain attack. 20 fresh samples score each image, and the table shows the
paired difference to the plain attack with its 95 % interval over images. It writes results/tables/noisy_gradients.csv
and .md. A finished cell is kept in results/runs/noisy-gradients/, so that the same command goes on where it stopped.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import outputs
import pandas as pd
import torch
from cells import markdown
from rich.console import Console
from torch import Tensor

from dp.attacks.apgd import APGD, gaps
from dp.attacks.base import Attack
from dp.attacks.pgd_eot import PGD
from dp.defense.defended import Defended
from dp.defense.interface import Defense
from dp.defense.wrapper import Wrapped
from dp.evaluation.draws import fresh_samples
from dp.objectives import cross_entropy
from dp.output import record, report
from dp.rng import Streams
from dp.runs import compose
from dp.runs.build import build
from dp.runs.errors import command
from dp.statistics.intervals import paired
from dp.subset import Subset
from dp.threat_models.ball import ThreatModel

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "results" / "runs" / "noisy-gradients"
TABLE = ROOT / "results" / "tables" / "noisy_gradients.csv"
TEXT = TABLE.with_suffix(".md")
DEFENSES = {
    "uniform DiffPure": ("purifier=diffpure", "purifier.eta=1.0"),
    "hetero, strong inside (Eq. 5)": ("purifier=hetero",),
}
ITERATIONS, EOT, VOTES, CONFIRM = 40, 8, 20, 10
BLIND = 20  # iterations of the transfer attack: a gradient of the classifier alone costs 1 of NFE + 1 evaluations
DECAY, MEMORY = 1.0, 0.75  # of momentum (Dong et al. 2018), and of the mean over iterations
console = Console(width=150, highlight=False)


class Mirror(Streams):
    """The same streams with the sign of every normal number turned."""

    def __init__(self, rng: Streams):
        self._begin(rng.keys, rng.calls, rng.touched, rng.version)

    def draw(self, k: Any) -> "Mirror":
        """The k-th copy, its sign turned too."""
        return Mirror(super().draw(k))

    def select(self, index: Any) -> "Mirror":
        """The streams of these images, their sign turned too."""
        return Mirror(super().select(index))

    def randn_like(self, z: Tensor) -> Tensor:
        """Unit Gaussian noise, turned."""
        return -super().randn_like(z)


class Antithetic(Wrapped):
    """Half of the samples of a gradient have the noise of the other half with its sign turned."""

    def __init__(self, model: Defended):
        super().__init__(model)

        def mirrored(x: Tensor, denoiser: Any, classifier: Any, rng: Streams, **options: Any) -> Tensor:
            return model.purifier(x, denoiser, classifier, Mirror(rng), **options)

        self.other = Defended(mirrored, model.denoiser, model.classifier, model.draws_per_call)

    def loss_gradient(self, x, y, rng, samples, loss=cross_entropy, auxiliary=None):
        """The mean over both halves."""
        pairs = [m.loss_gradient(x, y, rng, samples // 2, loss, auxiliary) for m in (self.model, self.other)]
        return tuple((a + b) / 2 for a, b in zip(*pairs, strict=True))


class Remembered(Wrapped):
    """Each gradient is answered with a mean of it and those before: g <- memory g + weight gradient / |gradient|_1."""

    def __init__(self, model: Defense, memory: float, weight: float):
        super().__init__(model)
        self.memory, self.weight, self.g = memory, weight, None

    def loss_gradient(self, x, y, rng, samples, loss=cross_entropy, auxiliary=None):
        """The values as they are, and the mean gradient."""
        values, grad = self.model.loss_gradient(x, y, rng, samples, loss, auxiliary)
        unit = grad / grad.abs().mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-30)
        self.g = self.weight * unit + (0 if self.g is None else self.memory * self.g)
        return values, self.g


class Remedy(NamedTuple):
    """A change to an attack that costs no network evaluation."""

    around: Callable[[Defended], Defense] = lambda model: model
    iterations: int = ITERATIONS
    eot: int = EOT
    late: bool = False  # few samples in the first three quarters of the iterations, and many in the last
    common: bool = False  # the same noise for all points between two checkpoints of APGD
    warm: bool = False  # start from the image of a transfer attack


REMEDIES = {
    "plain": Remedy(),
    "80 iterations, EOT 4": Remedy(iterations=80, eot=4),
    "20 iterations, EOT 16": Remedy(iterations=20, eot=16),
    "10 iterations, EOT 32": Remedy(iterations=10, eot=32),
    "EOT 4, then 20": Remedy(late=True),
    "momentum": Remedy(around=lambda model: Remembered(model, DECAY, 1.0)),
    "mean gradient over iterations": Remedy(around=lambda model: Remembered(model, MEMORY, 1 - MEMORY)),
    "common noise in a phase": Remedy(common=True),
    "antithetic noise": Remedy(around=Antithetic),
    "warm start from transfer": Remedy(warm=True),
}
BASES: dict[str, Callable[[int, int], Attack]] = {
    "PGD": lambda iterations, eot: PGD(iterations, eot, select="last"),
    "APGD-CE": lambda iterations, eot: APGD(iterations, eot, "ce", confirm=CONFIRM),
}


def attacked(base: str, remedy: Remedy, model: Defended, images: Subset, threat: ThreatModel, rng: Streams) -> Tensor:
    """The attacked images (B,C,H,W) of one batch."""
    x, y, asked = images.x, images.y, remedy.around(model)
    few, many = (BASES[base](remedy.iterations, n) for n in (EOT // 2, 5 * EOT // 2))
    attack = BASES[base](remedy.iterations, remedy.eot)
    state = attack.start(asked, x, y, threat, rng.draw(0))
    if remedy.warm:
        first, blind = PGD(BLIND, 1, select="last"), model.gradient_mode("blind")
        start = first.start(blind, x, y, threat, rng.draw(2**40 - 1))
        for i in range(BLIND):
            start = first.step(blind, start, x, y, threat, rng.draw(2**40 + i))
        points = {name: start.x_adv for name in ("x_adv", "x", "chosen", "before", "top_x", "hard_x")}
        state = state._replace(**{name: point for name, point in points.items() if name in state._fields})
    starts = [0, *(k for k, gap in enumerate(gaps(remedy.iterations)) if gap)]  # of APGD's phases
    for i in range(attack.steps):
        phase = max(k for k in starts if k <= i)
        if remedy.late:
            attack = few if i < 3 * remedy.iterations // 4 else many
        state = attack.step(asked, state, x, y, threat, rng.draw(1 + (phase if remedy.common else i)))
    return threat.admit(state, x)[0]


def cell(defense: str, base: str, name: str, images: int, seed: int) -> pd.Series:
    """The share of right samples of each attacked image, by id."""
    evaluation = build(compose.composed(*DEFENSES[defense], f"protocol.images={images}"))
    model, threat, subset = evaluation.arms["defended"].scored, evaluation.threat, evaluation.subset
    width, found, begun = evaluation.lanes, [], time.monotonic()
    for first in range(0, images, width):
        batch = subset.select(slice(first, first + width))
        rng = Streams(batch.ids.tolist(), seed, "attack")
        x_adv = attacked(base, REMEDIES[name], model, batch, threat, rng)
        found.append(fresh_samples(model, x_adv, batch.ids.tolist(), seed, "adv", VOTES, width, rng=evaluation.rng))
        left = (time.monotonic() - begun) * (images / (first + len(batch.ids)) - 1)
        console.print(f"  {first + len(batch.ids)} of {images} images, {report.clock(left)} to go")
    right = (torch.cat(found).argmax(dim=2) == subset.y.unsqueeze(1)).float().mean(dim=1)
    return pd.Series(right.tolist(), index=subset.ids.tolist())


def kept(defense: str, base: str, name: str, images: int, seed: int) -> pd.Series:
    """The cell from the file that an earlier start wrote, or computed now and written."""
    slug = "".join(c if c.isalnum() else "-" for c in f"{defense} {base} {name} {images} {seed}")
    path = KEPT / f"{slug}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        scores = cell(defense, base, name, images, seed)
        record.write_atomic(path, json.dumps({str(k): v for k, v in scores.items()}).encode())
    return pd.Series({int(k): v for k, v in json.loads(path.read_text()).items()})


def main() -> int:
    """The command. Returns 0 when the tables are written."""
    parser = outputs.parser(__doc__)
    parser.add_argument("--images", type=outputs.at_least_one, default=64, help="images (64)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds; their scores are averaged (0)")
    args = parser.parse_args()
    cells = [
        (defense, base, name)
        for defense in DEFENSES
        for base in BASES
        for name in REMEDIES
        if (base, name) not in (("PGD", "common noise in a phase"), ("APGD-CE", "momentum"))
    ]
    console.print(f"{len(cells)} cells of {args.images} images, {len(args.seeds)} seeds; one to three minutes each")
    lines, plain = [], pd.Series(dtype=float)
    for k, (defense, base, name) in enumerate(cells):
        scores = pd.concat([kept(defense, base, name, args.images, s) for s in args.seeds], axis=1).mean(axis=1)
        plain = scores if name == "plain" else plain
        difference, low, high = paired(plain.to_numpy(), scores.to_numpy())
        line = {"defense": defense, "attack": base, "variant": name, "robust": 100 * scores.mean()}
        lines.append(line | {"difference": 100 * difference, "low": 100 * low, "high": 100 * high})
        shown = f"{line['robust']:.1f} % robust, {100 * difference:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
        console.print(f"{k + 1}/{len(cells)}: {defense}, {base}, {name}: {shown}")
    table, text = outputs.target(TABLE, args.write), outputs.target(TEXT, args.write)
    pd.DataFrame(lines).to_csv(table, index=False, float_format="%.3f")
    record.write_atomic(text, markdown_of(lines, args.images, len(args.seeds)).encode())
    console.print(f"{table}, {text}")
    return 0


def markdown_of(lines: list[dict], images: int, seeds: int) -> str:
    """The lines as a table for people."""
    title = f"Remedies for noisy gradients at equal network evaluations, {images} digits, seeds: {seeds}"
    columns = ["defense", "attack", "variant", "robust, average of 20", "difference to plain", "95 %"]
    texts = [[one["defense"], one["attack"], one["variant"], f"{one['robust']:.1f}"] for one in lines]
    for text, one in zip(texts, lines, strict=True):
        plain = one["variant"] == "plain"
        text += ["", ""] if plain else [f"{one['difference']:+.1f}", f"{one['low']:+.1f} to {one['high']:+.1f}"]
    note = (
        f"The plain attack has {ITERATIONS} iterations of EOT {EOT}. Negative: the variant leaves less accuracy, so it "
    )
    note += (
        f"helps. Momentum has the decay {DECAY:g} (Dong et al. 2018). The mean gradient over iterations is momentum "
    )
    note += f"with the decay {MEMORY:g}, which `strict` has in its PGD."
    return markdown(title, columns, texts) + f"\n{note}\n"


if __name__ == "__main__":
    sys.exit(command(main))
