"""Maximum likelihood by persistent chains: on a Gaussian energy, whose fit is known."""

import csv

import pytest
import torch
from torch import Tensor, nn

from dp.classifiers import Classifier
from dp.purifiers.langevin import Langevin
from dp.subset import Subset
from dp.training.tasks.persistent_chains import PersistentChains

NOISE, STEPS = 0.3, 5


class Bowl(nn.Module):
    """The energy rate / 2 |z|^2, in float32."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(rate))

    def forward(self, z: Tensor) -> Tensor:
        return self.rate / 2 * z.square().sum(dim=(1, 2, 3))


class Bright(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(dim=(1, 2, 3)) - 0.5
        return torch.stack([-mean, mean], dim=1)


def task(rate: float = 0.1, n: int = 64, std: float = 0.5, **given) -> PersistentChains:
    """On images whose pixels are N(0, std^2) in [-1,1]."""
    x = std * torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    subset = Subset(torch.arange(n), (x + 1) / 2, (x.mean(dim=(1, 2, 3)) > 0).long())
    own = Langevin(Bowl(rate), steps=2, noise=NOISE)
    kept = {"chain_steps": STEPS, "data_noise": 0.0, "judged": [2, 6], **given}
    return PersistentChains(own, subset, **kept, classifier=Classifier(Bright()))


def test_a_batch_moves_its_chains_and_no_other():
    made = task()
    before, (x, chains, noise) = made.bank.clone(), made.draw(16, torch.Generator().manual_seed(1))
    assert len(set(chains.tolist())) == 16
    assert noise.shape == (16, STEPS, 1, 4, 4)
    loss = made.loss(x, chains, noise)
    z = before[chains]
    for k in range(STEPS):
        z = 0.9 * z + NOISE * noise[:, k]
    torch.testing.assert_close(made.bank[chains], z)
    others = torch.tensor([k for k in range(64) if k not in chains.tolist()])
    assert torch.equal(made.bank[others], before[others])
    low, high = (0.05 * images.square().sum(dim=(1, 2, 3)).mean() for images in (x, z))
    torch.testing.assert_close(loss, (low - high) * 2 / NOISE**2)


def test_the_gradient_takes_the_chains_for_constants():
    """d/d rate of the loss is half the difference of the mean squares, times 2 / noise^2."""
    made = task()
    x, chains, noise = made.draw(16, torch.Generator().manual_seed(1))
    made.loss(x, chains, noise).backward()
    squares = [images.square().sum(dim=(1, 2, 3)).mean() for images in (x, made.bank[chains])]
    torch.testing.assert_close(made.net.rate.grad, (squares[0] - squares[1]) / NOISE**2)


def test_images_get_the_noise_of_a_step():
    made = task(n=4096, data_noise=0.4)
    x, _, _ = made.draw(4096, torch.Generator().manual_seed(1))
    assert x.std().item() == pytest.approx((0.5**2 + 0.4**2) ** 0.5, rel=0.02)


def test_a_gaussian_energy_learns_the_variance_of_its_data():
    """The chain's stationary variance noise^2 / (1 - (1 - rate)^2) becomes that of the data."""
    made, generator = task(rate=0.6, n=512), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(made.net.parameters(), lr=0.02)
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / 300)
        optimizer.zero_grad()
        made.loss(*made.draw(64, generator)).backward()
        optimizer.step()
    expected = 1 - (1 - NOISE**2 / made.x.var().item()) ** 0.5
    assert made.net.rate.item() == pytest.approx(expected, rel=0.05)  # .2; it began at .6


def test_the_state_is_the_bank_of_chains():
    made, other = task(), task(seed=1)
    assert not torch.equal(made.bank, other.bank)
    made.loss(*made.draw(16, torch.Generator().manual_seed(1)))
    other.restore(made.state())
    batches = [one.draw(16, torch.Generator().manual_seed(2)) for one in (made, other)]
    assert torch.equal(made.loss(*batches[0]), other.loss(*batches[1]))
    assert torch.equal(made.bank, other.bank)
    assert made.state()["bank"].shape == (64, 1, 4, 4)


def test_the_judge_follows_the_gradient_beside_the_noise(tmp_path):
    """The gradient is rate |z|, and the spread of z after k steps from the test images is known."""
    made = task()
    figures = made.judge(made_test(), tmp_path, seed=0)
    with (tmp_path / "judge.csv").open() as file:
        rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    assert [row["steps"] for row in rows] == [2, 6]
    for row in rows:
        k, rest = row["steps"], 0.9 ** (2 * row["steps"])
        spread = rest * 0.2**2 + NOISE**2 * (1 - rest) / (1 - 0.81)  # of z after k steps
        assert row["gradient"] == pytest.approx(0.1 * (16 * spread) ** 0.5, rel=0.05)
        assert row["noise"] == pytest.approx(4 * NOISE)
        assert row["accuracy"] == pytest.approx(figures[f"accuracy/steps={k:g}"], abs=1e-3)
    assert rows[0]["accuracy"] > rows[1]["accuracy"] > 50  # noise hides the side of the mean
    assert {path.name for path in tmp_path.glob("*.png")} == {"purified.png", "chains.png"}
    assert made.purifier.steps == 2


def made_test() -> Subset:
    x = (0.2 * torch.randn(256, 1, 4, 4, generator=torch.Generator().manual_seed(5))).clamp(-1, 1)
    return Subset(torch.arange(256), (x + 1) / 2, (x.mean(dim=(1, 2, 3)) > 0).long())


def test_wrong_values():
    for wrong in ({"chain_steps": 0}, {"data_noise": -0.1}):
        with pytest.raises(ValueError, match="need chain_steps >= 1 and data_noise >= 0"):
            task(**wrong)
    with pytest.raises(ValueError, match="a batch of at most 64"):
        task().draw(65, torch.Generator())
