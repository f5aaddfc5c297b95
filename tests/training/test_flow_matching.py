"""Flow matching: the loss of Gaussian data in closed form, and the judge."""

import csv

import pytest
import torch
from torch import Tensor, nn

from dp.classifiers import Classifier
from dp.diffusion.flow import Flow
from dp.subset import Subset
from dp.training.tasks.flow_matching import FlowMatching

HIGH = 0.8


class Gain(nn.Module):
    """v(z, t) = gain z, and the exact velocity of N(0, std^2) where gain is None."""

    def __init__(self, gain: float | None, std: float = 0.5):
        super().__init__()
        self.scale, self.gain, self.std = nn.Parameter(torch.ones(())), gain, std

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        if self.gain is not None:
            return self.scale * self.gain * z
        sigma = (1 - t.view(-1, 1, 1, 1)) * HIGH
        return self.scale * -HIGH * sigma / (self.std**2 + sigma**2) * z


class Bright(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(dim=(1, 2, 3)) - 0.5
        return torch.stack([-mean, mean], dim=1)


def data(n: int = 4096, std: float = 0.5) -> Subset:
    x = (std * torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(0)) + 1) / 2
    return Subset(torch.arange(n), x, (x.mean(dim=(1, 2, 3)) > 0.5).long())


def task(gain: float | None) -> FlowMatching:
    given = {"judged": [0.0, 0.6], "steps": 3}
    return FlowMatching(Flow(Gain(gain), HIGH), data(), **given, classifier=Classifier(Bright()))


@pytest.mark.parametrize("gain", [0.0, -0.5])
@pytest.mark.parametrize("t", [0.1, 0.7])
def test_the_loss_of_gaussian_data(gain, t):
    """v + high n = gain x + (gain sigma + high) n with sigma = (1 - t) high."""
    made = task(gain)
    x, _, n = made.draw(4096, torch.Generator().manual_seed(1))
    expected = gain**2 * 0.5**2 + (gain * (1 - t) * HIGH + HIGH) ** 2
    assert made.loss(x, torch.full((4096,), t), n).item() == pytest.approx(expected, rel=0.03)


def test_the_exact_velocity_has_the_least_loss():
    made = task(None)
    made.net.requires_grad_()
    made.loss(*made.draw(8192, torch.Generator().manual_seed(1))).backward()
    assert made.net.scale.grad is not None
    assert abs(made.net.scale.grad.item()) < 0.01


def test_times_are_uniform():
    _, t, n = task(0.0).draw(8192, torch.Generator().manual_seed(1))
    assert t.shape == (8192,)
    assert 0 <= t.min() < 0.01 < 0.99 < t.max() < 1
    assert t.mean().item() == pytest.approx(0.5, abs=0.01)
    assert n.std().item() == pytest.approx(1, abs=0.01)


def test_the_judge_tells_accuracies_and_the_error(tmp_path):
    """A velocity of zero leaves the noisy image, so both accuracies agree and the error is that of the noise."""
    made = task(0.0)
    test = data(256, std=0.1)
    figures = made.judge(test, tmp_path, seed=0)
    with (tmp_path / "judge.csv").open() as file:
        rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    assert [row["t"] for row in rows] == [0.0, 0.6]
    for row, sigma in zip(rows, (0.4, 0.16), strict=True):
        assert row["pixel_sigma"] == pytest.approx(sigma)
        assert row["noisy"] == row["purified"] == pytest.approx(figures[f"accuracy/t={row['t']:g}"], rel=1e-4)
    assert rows[1]["error"] == pytest.approx(0.16**2, rel=0.05)
    assert rows[0]["noisy"] < rows[1]["noisy"] < 100
    assert {path.name for path in tmp_path.glob("*.png")} == {"purified_0.png", "purified_0.6.png"}
