"""Published certified accuracies: form, what no certificate can exceed, and the lines that dp certify prints."""

import csv
from itertools import groupby
from statistics import NormalDist

import pytest

from dp.certification.published import FILE, published_lines

with FILE.open(newline="") as text:
    ROWS = list(csv.DictReader(text))


def test_every_row_names_its_source_and_second_hand_ones_are_flagged():
    assert ROWS
    for row in ROWS:
        assert row["certificate"] in ("none", "one_shot")
        assert row["dataset"] in ("cifar10", "imagenet")
        assert row["source"]
        assert 0 <= float(row["certified"]) <= 100
        assert row["flag"] == ("unverified" if "board.yml" in row["source"] else "")
        assert row["note"] or not row["flag"]


@pytest.mark.parametrize("dataset", ["cifar10", "imagenet"])
def test_cohens_rows_fall_to_zero_at_the_cap(dataset):
    """With N = 100000 and alpha = .001 no radius exceeds sigma Phi^-1(.001^(1/N)), and below it no table has 0."""
    rows = [row for row in ROWS if (row["method"], row["dataset"]) == ("cohen", dataset)]
    assert len({row["sigma"] for row in rows}) >= 3
    for sigma, part in groupby(rows, lambda row: row["sigma"]):
        cap = float(sigma) * NormalDist().inv_cdf(0.001 ** (1 / 100_000))
        found = [(float(row["radius"]), float(row["certified"])) for row in part]
        assert found == sorted(found, key=lambda each: (each[0], -each[1]))
        assert [value for _, value in found] == sorted((value for _, value in found), reverse=True)
        assert all((value == 0) == (radius > cap) for radius, value in found)


def test_lines_of_a_dataset_and_sigma():
    source = "locuslab/smoothing 78a4d949: analysis/markdown/vary_noise_cifar10"
    first, second = published_lines("cifar10", 0.25)
    name = f"Cohen et al. 2019, ResNet-110, trained with noise, sigma 0.25, {source}"
    assert first == f"published ({name}): 60 at 0.25, 43 at 0.5, 27 at 0.75, 0 at 1"
    assert second.startswith("published (Carlini et al. 2022, sokcertifiedrobustness/")
    assert "): 79.3 at 0.25, 36.4 at 1; unverified: read in a leaderboard, not in the paper" in second
    assert [line.partition(": ")[0] for line in published_lines("cifar10", 0.3)] == [second.partition(": ")[0]]
    assert any("71 at 0.5" in line for line in published_lines("imagenet", 1.0))
    assert published_lines("digits", 0.25) == []
