"""AutoAttack (Croce and Hein 2020): `fixed`, a union of our own attacks, or `upstream`, the package as it is."""

import logging
import sys
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from dp.attacks.apgd import APGD
from dp.attacks.base import Attack
from dp.attacks.square import Square
from dp.attacks.union import Union
from dp.defense.interface import Model
from dp.rng import Streams
from dp.threat_models.ball import ThreatModel


def autoattack(
    mode: str,
    version: str,
    iterations: int | None,
    eot: int | None,
    queries: int | None = None,
    confirm: int = 20,
    targets: int = 9,
    seed: int | None = None,
) -> Attack:
    """`version`: `rand` for defences that draw noise, `standard` for those that do not.

    `fixed`: APGD-CE and APGD-T over `targets` classes, in `standard` also Square of `queries`; decided on means over
    `eot` draws, the strongest point kept by `confirm` fresh ones, never the clean image. FAB is left out: it minimises
    a norm, and its bookkeeping asks whether single draws are right. `upstream`: see `Upstream`.
    """
    if mode not in ("fixed", "upstream") or version not in ("standard", "rand"):
        raise ValueError(f"need mode fixed or upstream and version standard or rand, got {mode!r} and {version!r}")
    if mode == "upstream":
        return Upstream(version, iterations, eot, queries, seed)
    if iterations is None or eot is None or (version == "standard" and queries is None):
        raise ValueError(f"need iterations, eot and queries with mode=fixed, got {iterations}, {eot}, {queries}")
    if seed is not None:
        raise ValueError(f"need seed=null with mode=fixed, whose noise comes from protocol.seeds, got seed={seed}")
    parts: dict[str, Attack] = {
        "apgd_ce": APGD(iterations, eot, "ce", confirm=confirm),
        "apgd_t": APGD(iterations, eot, "targeted", targets=targets, confirm=confirm),
    }
    if version == "standard":
        assert queries is not None
        parts["square"] = Square(queries, eot)
    return Union(parts, confirm)


class State(NamedTuple):
    x_adv: Tensor  # (B,C,H,W)


@dataclass(frozen=True)
class Upstream:
    """pyautoattack on the whole batch as one step, with its own decisions: on single draws, and with the clean image
    where no single draw was wrong (evaluation.md section 2 lists what follows from that).

    `iterations`, `draws`, `queries`: None leaves the package's own (100; 1, or 20 in `rand`; 5000); `draws` are APGD's
    EOT. `seed`: the package's; None takes one from the streams, so that every run seed has its own. Rows depend on
    which images share a batch.
    """

    version: str
    iterations: int | None = None
    draws: int | None = None
    queries: int | None = None
    seed: int | None = None
    select: str = "best"
    steps: int = 1
    batch_bound: ClassVar[bool] = True
    criterion: ClassVar[str] = "a mean gradient but single draws' verdicts, of"

    def __post_init__(self):
        counts = [n for n in (self.iterations, self.draws, self.queries) if n is not None]
        if self.version not in ("standard", "rand") or min(counts, default=1) < 1 or self.steps != 1:
            found = f"{self.version!r}, {counts}, {self.steps}"
            raise ValueError(f"need version standard or rand, counts >= 1 and one step, got {found}")

    @property
    def eot(self) -> int:
        return self.draws or (20 if self.version == "rand" else 1)

    @property
    def candidates(self) -> int:
        """Points that it looks at, for the null control: APGD's two runs, in `standard` nine for APGD-T, and Square."""
        n = self.iterations or 100
        return 2 * n if self.version == "rand" else 10 * n + (self.queries or 5000)

    def says(self, through: str) -> str:
        n, queries = (
            self.iterations or 100,
            "" if self.version == "rand" else f", Square {self.queries or 5000} queries",
        )
        what = f"AutoAttack as the package runs it, version {self.version}: APGD {n} iterations{queries}"
        return f"{what}, single draws decide, through {through}; images that it does not flag come back clean"

    def start(self, model: Model, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> State:
        return State(x)

    def step(self, model: Model, state: State, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> State:
        classes = model.logits(x[:1], rng.select([0]).draw(2**40), 1).shape[2]  # a draw far beyond the package's
        if self.version == "standard" and classes < 10:
            raise ValueError(f"need 10 classes for version=standard, got {classes}: use rand, or mode=fixed")
        tracer, devices = sys.gettrace(), [x.device] if x.device.type == "cuda" else []
        with torch.random.fork_rng(devices):  # the package seeds torch's global generators ...
            try:
                x = x.contiguous()  # some of its views need that
                x_adv, _ = self._package(_Forward(model, rng), x, threat, rng).run_standard_evaluation(
                    x, y, batch_size=len(x)
                )
            finally:
                sys.settrace(tracer)  # ... and takes off whatever traces: a debugger, a measurement of coverage
        return State(threat.project(x_adv, x))

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
            if self.draws is not None:
                part.eot_iter = self.draws
        if self.iterations is not None:
            package.fab.n_iter = self.iterations
        if self.queries is not None:
            package.square.n_queries = self.queries
        return package


class _Forward(nn.Module):
    """Images to logits, a fresh draw for each row of each call: the package says neither which images it asks about nor
    in which order, so the noise comes from one generator per batch, the first image's.
    """

    def __init__(self, model: Model, rng: Streams):
        super().__init__()
        self.model = model
        self.rng, self.asked = rng, 0

    def forward(self, x: Tensor) -> Tensor:
        rng = self.rng.select([0] * len(x)).draw(range(self.asked, self.asked + len(x)))
        self.asked += len(x)
        return self.model.logits(x, rng, 1)[0].clone()  # Square writes into what it gets
