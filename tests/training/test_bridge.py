"""The diffusion bridge of ADBM: its ends, its relation to the paper's state, its attack, and the judge."""

import csv

import pytest
import torch
from torch import Tensor, nn

from dp.classifiers import Classifier
from dp.diffusion.denoisers import Denoiser, Gaussian
from dp.subset import Subset
from dp.training.tasks.bridge import JUDGED, Bridge

GIVEN = {"times": [0.1, 0.2], "first": 0.001, "radius": 0.1, "attack_steps": 3}


class Shrink(Denoiser):
    """D(z; sigma) = gain z, and a record of the states that it was asked for."""

    def __init__(self, gain: float = 1.0):
        super().__init__(nn.Identity())
        self.net = nn.Linear(1, 1)  # a task asks for its device
        self.gain, self.seen = nn.Parameter(torch.tensor(gain)), []

    def denoise(self, z: Tensor, sigma: float | Tensor, label: Tensor | None = None) -> Tensor:
        self.seen.append(z.detach())
        return self.gain * z


class Bright(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        mean = 10 * (x.mean(dim=(1, 2, 3)) - 0.5)
        return torch.stack([-mean, mean], dim=1)


def data(n: int = 64, std: float = 0.05) -> Subset:
    x = 0.5 + std * torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return Subset(torch.arange(n), x, (x.mean(dim=(1, 2, 3)) > 0.5).long())


def task(denoiser: Denoiser, **given) -> Bridge:
    return Bridge(denoiser, data(), **{**GIVEN, **given}, classifier=Classifier(Bright()), plain=Gaussian())


def test_times_are_uniform_below_an_end_that_is_uniform():
    made = task(Shrink())
    x, y, sigma, end, n, start = made.draw(4000, torch.Generator().manual_seed(1))
    low, high, first = (made.denoiser.sigma(t) for t in (0.1, 0.2, 0.001))
    assert first <= sigma.min() < 1.2 * first + 0.01
    assert low <= end.min() < 1.01 * low
    assert 0.99 * high < end.max() <= high
    assert bool((sigma <= end).all())
    assert sigma.median().item() == pytest.approx(made.denoiser.sigma(0.075), rel=0.1)
    assert start.abs().max().item() == pytest.approx(0.2, abs=1e-3)  # [-1,1] is twice as wide
    assert torch.equal(y, (x.mean(dim=(1, 2, 3)) > 0).long())
    assert n.std().item() == pytest.approx(1, abs=0.02)


def test_the_bridge_runs_from_the_attacked_to_the_clean_image():
    """At sigma = sigma_T its state is the noised attacked image. In the paper's state its shift is
    d aT (1 - a) / ((1 - aT) sqrt a), with a = 1 / (1 + sigma^2).
    """
    shrink = Shrink()
    made = task(shrink, attack_steps=0)
    x, y, _, end, n, start = made.draw(16, torch.Generator().manual_seed(1))
    made.loss(x, y, end, end, n, start)
    torch.testing.assert_close(shrink.seen[-1], x + start + end * n)
    sigma = 0.5 * end
    made.loss(x, y, sigma, end, n, start)
    a, a_end = 1 / (1 + sigma**2), 1 / (1 + end**2)
    state = a.sqrt() * x + (1 - a).sqrt() * n + start * a_end * (1 - a) / ((1 - a_end) * a.sqrt())
    torch.testing.assert_close(shrink.seen[-1] * a.sqrt(), state)


def test_the_loss_is_the_papers_error_of_the_predicted_noise():
    """Its target is n + d sqrt(1 / a - 1) aT / (1 - aT), the network's output (z - D) / sigma."""
    made = task(Shrink(0.8), attack_steps=0)
    x, y, sigma, end, n, start = made.draw(16, torch.Generator().manual_seed(1))
    loss, z = made.loss(x, y, sigma, end, n, start), made.denoiser.seen[-1]
    a, a_end = 1 / (1 + sigma**2), 1 / (1 + end**2)
    target = n + start * (1 / a - 1).sqrt() * a_end / (1 - a_end)
    torch.testing.assert_close(loss, ((z - 0.8 * z) / sigma - target).square().mean(), rtol=1e-4, atol=1e-6)


def test_the_attack_raises_the_loss_of_the_classifier_within_its_ball():
    """The identity as denoiser, so that the best attack moves all pixels against the label by the whole radius."""
    made = task(Shrink())
    x, y, sigma, end, n, start = made.draw(64, torch.Generator().manual_seed(1))
    share = (sigma / end) ** 2
    d = made.attack(made.denoiser, x + sigma * n, sigma, share, x, y, start)
    sign = torch.where(y == 1, -1.0, 1.0).view(-1, 1, 1, 1)
    torch.testing.assert_close(d, (0.2 * sign).expand_as(d))  # no pixel is near the end of the range
    assert not d.requires_grad
    made.loss(x, y, sigma, end, n, start).backward()
    assert made.denoiser.gain.grad is not None


def test_attacked_images_stay_images():
    made, x = task(Shrink()), torch.ones(2, 1, 4, 4)
    one = torch.ones(1, 1, 1, 1)
    d = made.attack(made.denoiser, x, one, one, x, torch.tensor([0, 1]), torch.zeros_like(x))
    assert torch.equal(d[0], torch.zeros_like(d[0]))
    torch.testing.assert_close(d[1], torch.full_like(d[1], -0.2))


def test_the_judge_compares_both_denoisers(tmp_path):
    """A denoiser that knows the mean exactly has the error of the data; one that returns z has that of z."""
    made = task(Shrink(0.0))
    figures = made.judge(data(256), tmp_path, seed=0)
    with (tmp_path / "judge.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["denoiser"] for row in rows] == ["bridge"] * len(JUDGED) + ["plain"] * len(JUDGED)
    variance = (2 * data(256).x - 1).square().mean().item()
    for row, t in zip(rows[: len(JUDGED)], JUDGED, strict=True):
        assert float(row["sigma"]) == pytest.approx(made.denoiser.sigma(t), rel=1e-4)
        assert float(row["error_clean"]) == pytest.approx(variance, rel=1e-4)
        assert float(row["error_attacked"]) == pytest.approx(variance, rel=1e-4)
    for row in rows[len(JUDGED) :]:
        assert float(row["attacked"]) < float(row["clean"])
        figure = figures[f"plain/attacked/sigma={float(row['sigma']):.4g}"]
        assert float(row["attacked"]) == pytest.approx(figure, rel=1e-4)
    assert len([*tmp_path.glob("*.png")]) == 2 * len(JUDGED)


@pytest.mark.parametrize(
    "wrong", [{"times": [0.2, 0.1]}, {"times": [0.1]}, {"first": 0.0}, {"first": 0.1}, {"radius": 0.0}]
)
def test_wrong_values(wrong):
    with pytest.raises(ValueError, match=r"need 0 < first < times\[0\] <= times\[1\] <= 1"):
        task(Shrink(), **wrong)
