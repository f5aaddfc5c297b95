"""The cells of the study canvas_claim.py: networks, defenses, attacks, the order of the cells, and what they cost.

A cell is a defense under an attack with one seed. Its images are attacked in parts of 32, and each part is archived
when it ends.
"""

import functools
import importlib.util
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cells
from convergence import Budget, converged, factors

from dp.output import record
from dp.runs import compose
from dp.runs.keys import run_key
from dp.weights.needed import missing

IMAGES, PART, SEEDS, VOTES = 128, 32, (2024, 2025, 2026), 20
SECONDS = {"canvas": (0.0125, 0.0058), "digits": (0.0027, 0.0014)}  # of a core: a sample with and without gradient
MINUTES = {"classifier": 3, "denoiser": 30}  # of a core: a training


class World(NamedTuple):
    """Networks and images. `times`: of uniform noise; the others are matched to the one at `REFERENCE`.

    `training`: the words of the commands that make weights which the package does not have, by what they train.
    """

    name: str
    overrides: tuple[str, ...]
    times: tuple[float, ...]
    training: tuple[tuple[str, tuple[str, ...]], ...] = ()


class Row(NamedTuple):
    """A defense. `ratio`: t_l / t_s where its times are matched. `masked`: its mask depends on the input.

    `nfe`: network evaluations of a purification.
    """

    name: str
    overrides: tuple[str, ...]
    ratio: int | None = None
    masked: bool = False
    nfe: int = 4


class Attack(NamedTuple):
    """An attack. `gradients`, `values`: the samples that it asks for, for one image, if none is broken early."""

    name: str
    overrides: tuple[str, ...]
    gradients: int
    values: int = 0
    images: int = IMAGES


class Part(NamedTuple):
    """A run to be made: the first `images` of a cell, of which the first `before` are archived."""

    world: World
    row: Row
    attack: Attack
    seed: int
    images: int
    before: int

    @property
    def name(self) -> str:
        """What it is, in words."""
        cell = f"{self.world.name}: {self.row.name}, {self.attack.name}, seed {self.seed}"
        return f"{cell}, images {self.before} to {self.images}"

    @property
    def minutes(self) -> float:
        """Its cost on one core."""
        gradient, value = SECONDS[self.world.name.partition(",")[0]]
        asked = gradient * self.attack.gradients + value * (self.attack.values + 3 * VOTES)  # clean, attacked, null
        return (self.images - self.before) * (self.row.nfe + 2) / 6 * asked / 60  # the classifier counts as two


def network(group: str, seed: int) -> tuple[str, ...]:
    """Overrides that put the network of another training in place of the embedded one."""
    net = f"{group}.net"
    return (f"{net}.file=canvas_{group}_{seed}.safetensors", f"{net}.sha256=null", f"+{net}.url=nowhere")


def pair(seed: int) -> World:
    """The world of a pair of networks that the embedded ones' recipes make with another seed."""
    groups = ("classifier", "denoiser")
    common = ("dataset=canvas", f"training.seed={seed}", "training.embedded=false")
    made = tuple((group, (*common, f"model={group}", *network(group, seed))) for group in groups)
    overrides = ("dataset=canvas", *(word for group in groups for word in network(group, seed)))
    return World(f"canvas, networks of seed {seed}", overrides, TIMES, made)


def tied(p: float) -> World:
    """The world of images whose photographs are tied to their classes with probability p."""
    own = ("dataset=canvas", f"dataset.p={p:g}", f"classifier=canvas_p{100 * p:.0f}")
    return World(f"canvas, p = {p:g}", own, TIMES, (("classifier", (*own, "model=classifier")),))


def uniform(t: float) -> Row:
    """Uniform noise to time t."""
    own = ("purifier=diffpure", "purifier.steps=4", "purifier.eta=1.0", f"purifier.t={t:g}")
    return Row(f"uniform, t = {t:g}", own)


def regional(name: str, ratio: int, *more: str, purifier: str = "hetero", jump: int = 0) -> Row:
    """Strong and weak noise in regions of the image."""
    grid = ("purifier.steps=4", "+purifier.strong_steps=2", f"purifier.jump={jump}")
    title = f"{name}, ratio {ratio}" + (f", jump {jump}" if jump else "")
    return Row(title, (f"purifier={purifier}", *grid, *more), ratio, purifier == "hetero", 6 if jump else 4)


TIMES, REFERENCE = (0.05, 0.1, 0.15, 0.2), 1
FIRST = World("canvas", ("dataset=canvas",), TIMES)
PAIRS, TIED = (pair(1), pair(2)), (tied(0.5), tied(0.9))
DIGITS = World("digits", ("dataset=digits",), (0.3, 0.4, 0.5, 0.6))
WORLDS = (FIRST, *PAIRS, *TIED, DIGITS)

OUT = "purifier.eq8_literal=true"
INSIDE, OUTSIDE = (tuple(regional(name, r, *w) for r in (2, 4)) for name, w in (("inside", ()), ("outside", (OUT,))))
RANDOM = regional("random, as many as inside", 2, purifier="hetero_random")
RANDOM_OUT = regional("random, as many as outside", 2, OUT, purifier="hetero_random")
BOXES = (
    regional("inside the true box", 2, purifier="hetero_box"),
    regional("outside the true box", 2, OUT, purifier="hetero_box"),
)
OFFICIAL = Row("hetero_official", ("purifier=hetero_official",), None, True, 10)
JUMPS = (regional("inside", 2, jump=3), regional("outside", 2, OUT, jump=3))

PGD = ("attack=pgd_eot", "attack.iterations=40", "attack.eot=16")
THROUGH = ("attack.attack.iterations=40", "attack.attack.eot=16")
PLAIN = Attack("PGD", PGD, 640)
CONFINED = tuple(Attack(f"PGD {w} the box", (*PGD, f"threat_model={w}_box"), 640) for w in ("inside", "outside"))
THROUGH_MASK = tuple(
    Attack(f"PGD through the mask, {m.replace('_', ' ')}", (f"attack=through_mask_{m}", *THROUGH), 640)
    for m in ("soft", "straight_through")
)
DECISION = Attack("decision", ("attack=decision",), 0, 5600, 64)
BUDGETS = (Budget(), Budget(eot=2), Budget(2), Budget(eot=4), Budget(2, 2), Budget(eot=8), Budget(2, 4))


def strict(masked: bool, budget: Budget, images: int = IMAGES) -> Attack:
    """`strict` with a multiple of its budget; with the attacks on the mask where it depends on the input."""
    own = ("protocol=strict", "attack=strict_mask" if masked else "attack=strict")
    more = _factors(own, budget)
    steps, values = (40, 1000) if masked else (34, 700)  # of the quick budget
    name = "strict" if images == IMAGES else f"strict, {budget.name}"
    return Attack(name, (*own, *more), 4 * steps * budget.cost, values * budget.iterations, images)


@functools.cache
def _factors(own: tuple[str, ...], budget: Budget) -> tuple[str, ...]:
    return tuple(factors(compose.composed("dataset=canvas", *own)["attack"], budget, "attack"))


def rows_of(world: World) -> tuple[Row, ...]:
    """The rows of a world, the reference first."""
    reference, others = uniform(world.times[REFERENCE]), [uniform(t) for t in world.times]
    boxes = BOXES if world is not DIGITS else ()
    found = (reference, INSIDE[0], OUTSIDE[0], RANDOM, *boxes, INSIDE[1], OUTSIDE[1])
    if world in (FIRST, DIGITS):
        found += (OFFICIAL, *(row for row in others if row != reference))
    return found + ((RANDOM_OUT, *JUMPS) if world is FIRST else ())


def enemies() -> tuple[Row, ...]:
    """The rows that every attack is tried on."""
    return (rows_of(FIRST)[0], INSIDE[0], OUTSIDE[0], RANDOM, INSIDE[1], OUTSIDE[1])


def stages(budget: Budget | None) -> Iterator[tuple[World, Sequence[Row], Sequence[Attack], int]]:
    """What is measured, the most important first: rows under attacks with one seed. `budget`: of `strict`, if known."""
    rows, hard = rows_of(FIRST), enemies()
    masked = [row for row in hard if row.masked]
    for seed in SEEDS:
        yield FIRST, rows[:6], (PLAIN,), seed
    yield FIRST, rows[6:12], (PLAIN,), SEEDS[0]
    yield FIRST, (*hard, *BOXES), CONFINED, SEEDS[0]
    yield FIRST, masked, THROUGH_MASK, SEEDS[0]
    for one in BUDGETS:
        yield FIRST, hard[:1], (strict(False, one, 64),), SEEDS[0]
        yield FIRST, hard[1:2], (strict(True, one, 64),), SEEDS[0]
    unions = [] if budget is None else [(row, strict(row.masked, budget)) for row in hard]
    for row, union in unions:
        yield FIRST, (row,), (union,), SEEDS[0]
    for world in (*PAIRS, *TIED, DIGITS):
        yield world, rows_of(world), (PLAIN,), SEEDS[0]
    yield FIRST, rows[12:], (PLAIN,), SEEDS[0]
    yield FIRST, hard, (DECISION,), SEEDS[0]
    for seed in SEEDS[1:]:
        yield FIRST, rows[6:], (PLAIN,), seed
        yield FIRST, (*hard, *BOXES), CONFINED, seed
        yield FIRST, masked, THROUGH_MASK, seed
        for row, union in unions:
            yield FIRST, (row,), (union,), seed


def overrides(world: World, row: Row, attack: Attack, t: float | None) -> tuple[str, ...]:
    """The overrides of a cell's run, but for seed and images. `t`: the time of the strong noise, if it is matched."""
    protocol = (f"protocol.votes={VOTES}", "audit=false")
    return (*world.overrides, *attack.overrides, *row.overrides, *at(row, t), *protocol)


def seeded(given: tuple[str, ...], seed: int) -> tuple[str, ...]:
    """The overrides of a cell's run with its seed."""
    return (*given, f"protocol.seeds=[{seed}]")


def at(row: Row, t: float | None) -> tuple[str, ...]:
    """The overrides that set the times of a matched row, t_l = t."""
    return () if row.ratio is None or t is None else (f"purifier.t_l={t:.4g}", f"purifier.t_s={t / row.ratio:.4g}")


@functools.cache
def _composed(given: tuple[str, ...]) -> dict:
    return compose.composed(*given)


def key(given: tuple[str, ...], seed: int, images: int) -> str:
    """The key of the run of a cell with its seed and its first `images`, without composing it again."""
    config = _composed(given)
    dataset = config["dataset"] | {"loader": config["dataset"]["loader"] | {"images": images}}
    protocol = config["protocol"] | {"images": images, "seeds": [seed]}
    return run_key(config | {"dataset": dataset, "protocol": protocol})


def held(given: tuple[str, ...], seed: int, images: int = IMAGES) -> int:
    """How many of a cell's images are archived."""
    measured = cells.RESULTS / "measured"
    parts = range(images, 0, -PART)
    return next((n for n in parts if (measured / key(given, seed, n) / record.SUMMARY).exists()), 0)


@functools.cache
def lacking(world: World) -> tuple[str, ...]:
    """What a world needs and is not here: the commands that make it."""
    words = (f"python scripts/train.py {' '.join(words)}" for _, words in world.training)
    absent = missing({k: _composed(world.overrides)[k] for k in ("classifier", "denoiser")})
    wheels = any(word.startswith("dataset.p=") for word in world.overrides)
    extra = () if not wheels or importlib.util.find_spec("mlxtend") else ("pip install -e '.[canvas]'",)
    return (*extra, *words) if absent else extra


def chosen_budget(lines: list[dict]) -> Budget | None:
    """The cheapest budget of `strict` whose doubling takes under two points from uniform and from inside."""
    return converged(lines, BUDGETS, sorted({one["defense"] for one in lines}))


def parts(times: dict[str, dict[str, float]], budget: Budget | None) -> list[Part]:
    """The parts that are not archived, the most important first. `times`: of the matched rows that are calibrated."""
    found, seen = [], set()
    for world, rows, attacks, seed in stages(budget):
        stage = []
        for row in rows:
            for attack in attacks:
                t, done = times.get(world.name, {}).get(row.name), 0
                if row.ratio is None or t is not None:
                    done = held(overrides(world, row, attack, t), seed, attack.images)
                stage += [Part(world, row, attack, seed, n + PART, n) for n in range(done, attack.images, PART)]
        found += [part for part in sorted(stage, key=lambda part: part.images) if part not in seen]
        seen |= {*stage}
    return found
