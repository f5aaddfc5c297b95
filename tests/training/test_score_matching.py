"""Denoising score matching: losses of Gaussian data in closed form, the noise levels, and the judge."""

import csv

import pytest
import torch
from torch import Tensor, nn

from dp.classifiers import Classifier
from dp.purifiers.adp import Adp
from dp.subset import Subset
from dp.training.tasks.score_matching import ScoreMatching

GIVEN = {"high": 2.0, "low": 0.02, "levels": 9, "judged": [0.1, 0.3]}


class Pull(nn.Module):
    """net(v) = gain (0.5 - v). With gain = sigma / (std^2 + sigma^2) it is the score of N(0.5, std^2), times sigma."""

    def __init__(self, gain: float):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))

    def forward(self, v: Tensor) -> Tensor:
        return self.gain * (0.5 - v)


class Bright(nn.Module):
    """Class 1 for images whose mean is above 1/2."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(dim=(1, 2, 3)) - 0.5
        return torch.stack([-mean, mean], dim=1)


def data(n: int, std: float) -> Subset:
    """Images around 0.5; the label says which side the mean lies on."""
    x = 0.5 + std * torch.randn(n, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    return Subset(torch.arange(n), x, (x.mean(dim=(1, 2, 3)) > 0.5).long())


def task(gain: float, std: float = 0.2, n: int = 4096, **given) -> ScoreMatching:
    own = Adp(Pull(gain), pixel_sigma=0.1, steps=3, probe=1e-3, lam=0.05, bounds=[1e-5, 0.1], stop=1e-3)
    return ScoreMatching(own, data(n, std), **{**GIVEN, **given}, classifier=Classifier(Bright()))


@pytest.mark.parametrize("gain", [0.0, 1.0, 4.0])
@pytest.mark.parametrize("sigma", [0.1, 0.5])
def test_the_loss_of_gaussian_data(gain, sigma):
    """net + n = gain (0.5 - x) + (1 - gain sigma) n, so half its mean square is known."""
    made = task(gain)
    x, _, n = made.draw(16_384, torch.Generator().manual_seed(1))
    expected = 0.5 * (gain**2 * 0.2**2 + (1 - gain * sigma) ** 2)
    assert made.loss(x, torch.full((len(x), 1, 1, 1), sigma), n).item() == pytest.approx(expected, rel=0.03)


def test_the_gain_of_the_true_score_has_the_least_loss():
    gain, sigma = 0.3 / (0.2**2 + 0.3**2), torch.full((4096, 1, 1, 1), 0.3)
    made = task(gain)
    x, _, n = made.draw(4096, torch.Generator().manual_seed(1))
    made.loss(x, sigma, n).backward()
    assert made.net.gain.grad is not None
    assert abs(made.net.gain.grad.item()) < 0.01  # at twice the gain it is .13 * gain = .3


def test_the_levels_are_a_geometric_sequence_drawn_uniformly():
    made = task(1.0)
    ratio = made.sigmas[1:] / made.sigmas[:-1]
    assert made.sigmas[[0, -1]].tolist() == pytest.approx([2.0, 0.02])
    torch.testing.assert_close(ratio, torch.full_like(ratio, 0.01 ** (1 / 8)))
    _, sigma, n = made.draw(9000, torch.Generator().manual_seed(1))
    assert sigma.shape == (9000, 1, 1, 1)
    assert [(sigma == level).sum().item() for level in made.sigmas] == pytest.approx([1000] * 9, abs=120)
    assert n.std().item() == pytest.approx(1, abs=0.02)


def test_the_judge_tells_the_accuracy_before_and_after_purification(tmp_path):
    """Pulling every pixel to 0.5 changes no side, so both accuracies are those of the noise."""
    made = task(1.0)
    test = data(256, 0.2)
    figures = made.judge(test, tmp_path, seed=0)
    with (tmp_path / "judge.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["pixel_sigma"]) for row in rows] == [0.1, 0.3]
    for row in rows:
        assert float(row["purified"]) == figures[f"accuracy/sigma={row['pixel_sigma']}"]
        assert float(row["purified"]) == pytest.approx(float(row["noisy"]), abs=3)
    assert 100 > float(rows[0]["noisy"]) > float(rows[1]["noisy"]) > 55
    assert made.purifier.pixel_sigma == 0.1
    assert {path.name for path in tmp_path.glob("*.png")} == {"purified_0.1.png", "purified_0.3.png"}


@pytest.mark.parametrize("wrong", [{"high": 0.01}, {"low": 0.0}, {"levels": 1}])
def test_wrong_values(wrong):
    with pytest.raises(ValueError, match="need high > low > 0 and levels >= 2"):
        task(1.0, n=4, **wrong)
