"""Measure how often the 95 % intervals contain the truth, on synthetic predictions with a known truth.

The study writes results/tables/coverage.md. It takes some minutes on one core.
"""

import sys
from pathlib import Path

import numpy as np
import outputs
from scipy import optimize, special, stats

from dp.statistics.curves import worst_curve
from dp.statistics.intervals import interval, paired

TABLE = Path(__file__).parents[2] / "results" / "tables" / "coverage.md"
IMAGES, REPLICATES = 512, 2000
TRUTHS = (0.005, 0.02, 0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95, 0.98, 0.995)
# a + b of the beta distribution of the images' chances: most near 0 or 1; even; nearly equal
SPREADS = (0.3, 2.0, 20.0)
RULES = ("single", "average", "vote", "worst")
FEW = (16, 64, 128)  # numbers of images of a paired comparison
DIFFERENCES = (0.0, 0.05, 0.2)
SHARE = 4  # a paired comparison has fewer replicates by this factor, because its bootstrap is slow
FIRST = 0.6  # the mean chance of the first defense of a pair


def truth(rule: str, mean: float, spread: float, samples: int) -> float:
    """The expected score if the chance of a right sample of an image is from Beta(mean spread, (1 - mean) spread)."""
    a, b = mean * spread, (1 - mean) * spread
    if rule == "worst":
        return float(np.exp(special.betaln(a + samples, b) - special.betaln(a, b)))
    if rule == "vote":
        right = np.arange(samples + 1)
        return float(stats.betabinom.pmf(right, samples, a, b) @ vote_scores(right, samples))
    return mean


def vote_scores(right: np.ndarray, samples: int) -> np.ndarray:
    """1 if a vote between two classes is right, else 0. A tie is wrong, as if the lowest class were the wrong one."""
    return (2 * right > samples).astype(float)


def coverage(
    rule: str, p: float, spread: float, samples: int, seeds: int, subset: int, replicates: int
) -> float | None:
    """The share of `replicates` whose interval contains p, for scores averaged over `seeds` on the same images.

    None if no beta distribution of this spread has the truth p. `worst` is the unbiased estimate for `subset` of the
    samples.
    """
    try:
        mean = optimize.root_scalar(lambda m: truth(rule, m, spread, subset) - p, bracket=(1e-9, 1 - 1e-9)).root
    except ValueError:
        return None
    rng = np.random.default_rng([samples, subset, seeds, *(round(1000 * v) for v in (p, spread))])
    count = np.arange(samples + 1)
    by_count = {
        "vote": vote_scores(count, samples),
        "worst": worst_curve(np.tri(samples + 1, samples, -1))[:, subset - 1],
    }
    score = by_count.get(rule, count / samples)  # by the number of right samples
    covered = 0
    for _ in range(replicates):
        chance = rng.beta(mean * spread, (1 - mean) * spread, size=IMAGES)
        right = rng.binomial(samples, chance, size=(seeds, IMAGES))
        low, high = interval(score[right].mean(axis=0))
        covered += low <= p <= high
    return covered / replicates


def cases() -> list[tuple[str, str, int, int]]:
    """The cases of the table: (name, rule, samples, samples of the decision)."""
    result = [("single", "single", 1, 1)]
    for samples in (10, 20):
        result += [(f"{rule} of {samples}", rule, samples, samples) for rule in RULES[1:]]
    return [*result, ("worst of 5, from 20", "worst", 20, 5)]


def paired_coverage(samples: int, spread: float, images: int, difference: float, replicates: int) -> float:
    """The share of `replicates` whose paired interval contains the true difference of two averages of `samples`.

    The second defense reduces every image's chance to be wrong by the same share.
    """
    rng = np.random.default_rng([samples, images, *(round(1000 * v) for v in (spread, difference))])
    covered = 0
    for _ in range(replicates):
        first = rng.beta(FIRST * spread, (1 - FIRST) * spread, size=images)
        second = first + difference * (1 - first) / (1 - FIRST)
        scores = (rng.binomial(samples, chance) / samples for chance in (first, second))
        _, low, high = paired(*scores)
        covered += low <= difference <= high
    return covered / replicates


def paired_table(replicates: int) -> str:
    """The section on paired differences."""
    lines = ["| rule | beta a + b | images | " + " | ".join(f"{100 * d:g} points" for d in DIFFERENCES) + " |"]
    lines.append("|" + "---|" * (3 + len(DIFFERENCES)))
    for samples, name in ((1, "single"), (20, "average of 20")):
        for spread in SPREADS:
            for images in FEW:
                coverages = [paired_coverage(samples, spread, images, d, replicates) for d in DIFFERENCES]
                shares = [f"{100 * share:.1f}" for share in coverages]
                lines.append("| " + " | ".join([name, f"{spread:g}", str(images), *shares]) + " |")
                print(lines[-1], flush=True)
    text = (
        f"\n## Paired differences\n\nThe same, in {replicates} replicates, for the difference of two defenses on the "
        "same images (`paired`: a percentile bootstrap), by the true difference. The first is right with a chance of "
        f"{FIRST:g} on average, the second takes the same share of every image's chance to be wrong away; samples are "
        "independent.\n\n"
    )
    return text + "\n".join(lines) + "\n"


def main() -> int:
    """The command. Returns 0 when the table is written."""
    parser = outputs.parser(__doc__)
    parser.add_argument("--replicates", type=outputs.replicates, default=REPLICATES)
    args = parser.parse_args()
    replicates = args.replicates
    head = ["rule", "beta a + b", "seeds", *(f"{100 * p:g} %" for p in TRUTHS)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    inside, outside = [], []
    for name, rule, samples, subset in cases():
        for spread in SPREADS:
            for seeds in (1, 3):
                shares = [coverage(rule, p, spread, samples, seeds, subset, replicates) for p in TRUTHS]
                for p, share in zip(TRUTHS, shares, strict=True):
                    if share is not None:
                        (inside if 0.05 <= p <= 0.95 else outside).append(share)
                cells = ["-" if share is None else f"{100 * share:.1f}" for share in shares]
                lines.append("| " + " | ".join([name, f"{spread:g}", str(seeds), *cells]) + " |")
                print(lines[-1], flush=True)
    note = (
        f"`python scripts/studies/interval_coverage.py`: percent of {replicates} synthetic replicates of {IMAGES} "
        "images whose 95 % interval (`dp/statistics/intervals.py`, `interval`) holds the truth, by the truth. Samples "
        "of an image are right with a chance of its own, from a beta distribution with a + b as shown; seeds share the "
        f"images and their chances. Truths from 5 to 95 %: {100 * min(inside):.1f} to {100 * max(inside):.1f}; beyond: "
        f"{100 * min(outside):.1f} to {100 * max(outside):.1f}.\n\n"
    )
    path = outputs.target(TABLE, args.write)
    path.write_text(
        "# Coverage of the intervals\n\n" + note + "\n".join(lines) + "\n" + paired_table(replicates // SHARE)
    )
    print(note.strip())
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
