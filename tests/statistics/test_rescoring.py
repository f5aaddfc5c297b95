"""The exact test of two scorings: against closed forms and enumeration, and by simulated honest and forged entries."""

import functools
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from dp.board.check import REFUSED, SCORED
from dp.output import archived
from dp.statistics.intervals import mcnemar
from dp.statistics.rescoring import chance

ROOT = Path(__file__).parents[2]
IMAGES, SEEDS, SAMPLES = 128, 3, 20
ROW = "digits-diffpure-strict-linf-fbed583802"  # uniform purification of the main study, in results/measured
LEVEL = REFUSED / len(SCORED)


def test_one_image_is_fishers_exact_test():
    for a, b in ((9, 3), (12, 4), (7, 13)):
        wanted = stats.fisher_exact([[a, 20 - a], [b, 20 - b]]).pvalue
        assert chance(np.array([a]), np.array([b]), 20) == pytest.approx(wanted)


def test_single_samples_are_mcnemars_test():
    first, second = np.array([1] * 9 + [0] * 3 + [1] * 8), np.array([0] * 9 + [1] * 3 + [1] * 8)
    assert chance(first, second, 1) == pytest.approx(mcnemar(first, second))


def test_a_few_images_by_enumeration():
    """All ways to divide the six samples of each image between the scorings are equally likely."""
    first, second = np.array([3, 2, 0]), np.array([1, 1, 1])
    pools = [[1] * f + [0] * (6 - f) for f in first + second]
    halves = [[sum(pool[k] for k in chosen) for chosen in itertools.combinations(range(6), 3)] for pool in pools]
    sums = np.array([sum(ways) for ways in itertools.product(*halves)])
    wanted = 2 * min((sums >= first.sum()).mean(), (sums <= first.sum()).mean())
    assert chance(first, second, 3) == pytest.approx(min(1, wanted))


def test_images_on_which_all_samples_agree_do_not_count():
    first, second = np.array([5, 7]), np.array([2, 9])
    more = [np.concatenate([side, [20] * 50, [0] * 50]) for side in (first, second)]
    assert chance(*more, 20) == pytest.approx(chance(first, second, 20))
    assert chance(np.full(40, 20), np.full(40, 20), 20) == 1


def test_samples_without_noise_are_one_decision():
    """One image at the boundary may have another class on another machine, with all of its samples."""
    stated = np.full(200, 20)
    other = stated.copy()
    other[3] = 0
    assert chance(stated, other, 20) == 1


def test_counts_that_do_not_fit():
    for first, second in (([21], [0]), ([-1], [0]), ([1, 2], [1])):
        with pytest.raises(ValueError, match="need"):
            chance(np.array(first), np.array(second), 20)


@functools.cache
def chances() -> dict[str, np.ndarray]:
    """The chance that a sample is right, of each image and seed, by condition: those of one archived row of
    protocol strict, 128 images x 3 seeds x 20 samples. A sample of each kind is halved and added, so that no chance is
    0 or 1.
    """
    held = archived.arrays(ROOT / "results" / "measured" / ROW)
    assert held["defended.adv"].shape == (SEEDS, IMAGES, SAMPLES)
    labels = held["labels"][None, :, None]
    sides = {"robust": "defended.adv", "standard": "defended.clean", "null": "null.adv"}
    right = {name: (held[side] == labels).sum(dim=2).flatten().numpy() for name, side in sides.items()}
    return {name: (n + 0.5) / (SAMPLES + 1) for name, n in right.items()}


def refused(rng: np.random.Generator, raised: float = 0.0) -> tuple[bool, float]:
    """Whether the second scoring refuses an entry, and the p-value of its first condition.

    `raised`: points by which right samples were added to the stated ones. The undefended classifier has no noise, so
    that its two conditions agree.
    """
    p = []
    for name, q in chances().items():
        stated, fresh = rng.binomial(SAMPLES, q), rng.binomial(SAMPLES, q)
        if name == "robust":
            room = np.repeat(np.arange(len(q)), SAMPLES - stated)
            add = round(raised / 100 * len(q) * SAMPLES)
            stated = stated + np.bincount(rng.permutation(room)[:add], minlength=len(q))
        p.append(chance(stated, fresh, SAMPLES))
    return min(p) <= LEVEL, p[0]


def quoted(pattern: str) -> list[int]:
    """The numbers in a sentence of docs/board.md."""
    found = re.search(pattern, " ".join((ROOT / "docs" / "board.md").read_text().split()))
    assert found is not None
    return [int(number) for number in found.groups()]


def test_honest_entries_are_hardly_ever_refused():
    """1,000 simulated honest re-scorings: at most 1 % are refused. The p-value itself keeps its level."""
    rng = np.random.default_rng(0)
    found = [refused(rng) for _ in range(1000)]
    wrong = sum(refusal for refusal, _ in found)
    assert [wrong, 1000] == quoted(r"(\d+) of (\d+) simulated honest entries fail")
    assert wrong <= 10
    assert np.mean([p <= 0.05 for _, p in found]) == pytest.approx(0.05, abs=0.02)


def test_a_raised_number_is_found():
    """By 3, 2 and 1 points, on 128 images x 3 seeds x 20 samples."""
    found = []
    for points in (3, 2, 1):
        rng = np.random.default_rng(1)
        found.append(sum(refused(rng, points)[0] for _ in range(100)))
    assert found == quoted(r"3 points too high is found in (\d+) % of cases, 2 points in (\d+) %, 1 point in (\d+) %")
    assert found[0] >= 90


def test_the_samples_of_an_image_are_not_taken_for_independent():
    """Of two entries with equal totals, the one whose images are hardly random may differ by less: a test that pools
    the samples would call both differences chance.
    """
    random, settled = np.full(40, 10), np.array([20, 0] * 20)
    fewer = settled - np.array([1, 0] * 20)
    assert random.sum() == settled.sum()
    assert random.sum() - 20 == fewer.sum()
    pooled = stats.fisher_exact([[400, 400], [380, 420]]).pvalue
    assert pooled > 0.3
    assert chance(random, random - np.array([1, 0] * 20), 20) > 0.3
    assert chance(settled, fewer, 20) < 1e-5
