"""AutoAttack (Croce and Hein 2020): `fixed`, a union of our own attacks, or `upstream`, the package as it is."""

import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dp.attacks.apgd import APGD
from dp.attacks.base import Attack
from dp.attacks.square import Square
from dp.attacks.union import Union
from dp.defense.interface import Defense
from dp.rng import Streams
from dp.threat_models.ball import ThreatModel


def autoattack(
    mode: str,
    suite: str,
    iterations: int | None,
    eot: int | None,
    queries: int | None = None,
    confirm: int = 20,
    targets: int = 9,
    seed: int | None = None,
) -> Attack:
    """`suite`: `rand` for defenses that draw noise, `standard` for those that do not; the package's `version`.

    `fixed`: APGD-CE and APGD-T over `targets` classes, in `standard` also Square of `queries`. All decisions go by
    means over `eot` samples; `confirm` fresh samples choose the strongest point, which is never the clean image. FAB is
    left out: it minimizes a norm, and its bookkeeping asks whether single samples are right. `upstream`: see
    `Upstream`.
    """
    if mode not in ("fixed", "upstream") or suite not in ("standard", "rand"):
        raise ValueError(f"need mode fixed or upstream and suite standard or rand, got {mode!r} and {suite!r}")
    if mode == "upstream":
        return Upstream(suite, iterations, eot, queries, seed)
    if iterations is None or eot is None or (suite == "standard" and queries is None):
        raise ValueError(f"need iterations, eot and queries with mode=fixed, got {iterations}, {eot}, {queries}")
    if seed is not None:
        raise ValueError(f"need seed=null with mode=fixed, whose noise comes from protocol.seeds, got seed={seed}")
    attacks: dict[str, Attack] = {
        "apgd_ce": APGD(iterations, eot, "ce", confirm=confirm),
        "apgd_t": APGD(iterations, eot, "targeted", targets=targets, confirm=confirm),
    }
    if suite == "standard":
        assert queries is not None
        attacks["square"] = Square(queries, eot)
    return Union(attacks, confirm)


ITERATIONS, QUERIES, TARGETS = 100, 5000, 9  # the package's own; classes that APGD-T and FAB-T aim at
APART = 2**40  # a sample number that the package, which counts up from 0, never reaches


class State(NamedTuple):
    """Where the package stands: its images."""

    x_adv: Tensor  # (B,C,H,W)


@dataclass(frozen=True)
class Upstream(Attack):
    """The package pyautoattack on the whole batch as one step, with its own decisions: it judges by single samples, and
    returns the clean image where no single sample was wrong.

    `iterations`, `eot`, `queries`: None leaves the package's own values (100; 1, or 20 in `rand`; 5000); `eot`: samples
    of APGD. `seed`: the package's; None takes one from the streams, so that every run seed has its own. An image's
    result depends on the other images in its batch.
    """

    version: str
    iterations: int | None = None
    eot: int | None = None
    queries: int | None = None
    seed: int | None = None

    def __post_init__(self):
        counts = [n for n in (self.iterations, self.eot, self.queries) if n is not None]
        if self.version not in ("standard", "rand") or min(counts, default=1) < 1:
            raise ValueError(f"need version standard or rand and counts >= 1, got {self.version!r}, {counts}")

    @property
    def steps(self) -> int:
        return 1

    @property
    def samples(self) -> int:
        return self.eot or (20 if self.version == "rand" else 1)

    @property
    def batch_bound(self) -> bool:
        return True

    @property
    def criterion(self) -> str:
        return "a mean gradient but single samples' predictions, of"

    @property
    def candidates(self) -> int:
        """APGD's two runs, in `standard` nine for APGD-T, and Square."""
        n = self.iterations or ITERATIONS
        return 2 * n if self.version == "rand" else 10 * n + (self.queries or QUERIES)

    @property
    def is_ensemble(self) -> bool:
        return True

    def members(self, classes: int) -> Mapping[str, Attack]:
        """APGD on the package's losses, of which the difference of logits ratio needs 3 classes."""
        losses = ("ce", "dlr") if self.version == "rand" and classes >= 3 else ("ce",)
        return {loss: APGD(self.iterations or ITERATIONS, self.samples, loss) for loss in losses}

    def budget(self) -> dict[str, int]:
        return {"iterations": self.iterations or ITERATIONS, "eot": self.samples}

    def countable(self) -> "Asks":
        """What the package asks for an image that no part breaks: an upper bound, because it leaves broken images out.
        Every part predicts the images before and after it. A run of APGD takes a gradient at its start, too.
        """
        n = self.iterations or ITERATIONS
        run, values = (n + 1) * self.samples, 4  # its classes, two checks, its accuracy
        if self.version == "rand":
            return Asks(gradients=2 * run, values=values + 2 * 2)
        values += 5 + 2 + (2 + TARGETS)  # another check, APGD-CE, and APGD-T, which sorts the classes for each target
        values += 2 + TARGETS * (3 + n)  # FAB-T predicts each iterate, and three times around them
        values += 4 + (self.queries or QUERIES)  # Square predicts before and after it itself, and begins with a point
        return Asks(gradients=(1 + TARGETS) * run + TARGETS * n, values=values)

    def check_classes(self, classes: int) -> None:
        if classes < 3:
            raise ValueError(f"need 3 classes for the package's loss, got {classes}: use attack=apgd_ce")
        if self.version == "standard" and classes < 10:
            raise ValueError(f"need 10 classes for suite=standard, got {classes}: use rand, or mode=fixed")

    def says(self, through: str) -> str:
        n = self.iterations or ITERATIONS
        queries = "" if self.version == "rand" else f", Square {self.queries or QUERIES} queries"
        what = f"AutoAttack as the package runs it, version {self.version}: APGD {n} iterations{queries}"
        return f"{what}, single samples decide, through {through}; images that it does not flag come back clean"

    def start(self, model: Defense, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> State:
        return State(x_adv=x)

    def step(self, model: Defense, state: State, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> State:
        self.check_classes(model.logits(x[:1], rng.select([0]).draw(APART), 1).shape[2])
        tracer, devices = sys.gettrace(), [x.device] if x.device.type == "cuda" else []
        with torch.random.fork_rng(devices):  # the package seeds torch's global generators ...
            try:
                x = x.contiguous()  # some of its views need that
                x_adv, _ = self._package(_Forward(model, rng), x, threat, rng).run_standard_evaluation(
                    x, y, batch_size=len(x)
                )
            finally:
                sys.settrace(tracer)  # ... and takes off whatever traces: a debugger, a measurement of coverage
        return State(x_adv=threat.project(x_adv, x))

    def _package(self, forward: nn.Module, x: Tensor, threat: ThreatModel, rng: Streams):
        from pyautoattack import AutoAttack  # here: nothing else needs it

        logging.getLogger("auto-attack").addHandler(logging.NullHandler())  # its warnings are not for the terminal
        seed = int.from_bytes(rng.keys[0][:4], "little") if self.seed is None else self.seed
        norm, version = {"linf": "Linf", "l2": "L2"}[threat.norm], self.version
        package = AutoAttack(forward, norm=norm, eps=threat.eps, version=version, seed=seed, device=x.device)  # pyright: ignore[reportArgumentType]
        for part in (package.apgd, package.apgd_targeted):
            if self.iterations is not None:
                n = part.n_iter = part.n_iter_orig = self.iterations
                part.n_iter_2, part.n_iter_min, part.size_decr = (max(int(p * n), 1) for p in (0.22, 0.06, 0.03))
            if self.eot is not None:
                part.eot_iter = self.eot
        if self.iterations is not None:
            package.fab.n_iter = self.iterations
        if self.queries is not None:
            package.square.n_queries = self.queries
        return package


@dataclass(frozen=True)
class Asks(Attack):
    """One step that asks for so many `gradients` and `values`, of the same sample each. It moves no image."""

    gradients: int
    values: int

    @property
    def steps(self) -> int:
        return 1

    @property
    def samples(self) -> int:
        return 1

    def says(self, through: str) -> str:
        return f"{self.gradients} gradients and {self.values} values through {through}"

    def start(self, model: Defense, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> State:
        return State(x_adv=x)

    def step(self, model: Defense, state: State, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> State:
        for _ in range(self.gradients):
            model.loss_gradient(x, y, rng, 1)
        for _ in range(self.values):
            model.logits(x, rng, 1)
        return state


class _Forward(nn.Module):
    """Images to logits, a fresh sample for each row of each call. The package says neither which images it asks about
    nor in which order, so the noise comes from one generator per batch, the first image's.
    """

    def __init__(self, model: Defense, rng: Streams):
        super().__init__()
        self.model = model
        self.rng, self.asked = rng, 0

    def forward(self, x: Tensor) -> Tensor:
        rng = self.rng.select([0] * len(x)).draw(range(self.asked, self.asked + len(x)))
        self.asked += len(x)
        return self.model.logits(x, rng, 1)[0].clone()  # Square writes into what it gets
