"""The tasks of purifiers with networks of their own, on networks whose loss is known."""

import math

import pytest
import torch
from torch import Tensor, nn

from dp.attacks.pgd_eot import PGD
from dp.classifiers import Classifier
from dp.nets.masked_conv import MaskedConvNet
from dp.purifiers.pixeldefend import PixelDefend
from dp.rng import Streams
from dp.subset import Subset
from dp.threat_models.ball import ThreatModel
from dp.training.noise import Drawn
from dp.training.tasks.classifying_purified import ClassifyingPurified
from dp.training.tasks.levels import Levels
from dp.training.tasks.restoring import Restoring
from tests.helpers.claimed import claim_module, claimed_gpu

DRAWS = torch.Generator


class Linear(nn.Module):
    """Logits +-sum of w x over the image."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.linspace(-1, 1, 16).view(1, 1, 4, 4))
        self.tap = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        score = (self.w * self.tap(x)).flatten(1).sum(1)
        return torch.stack([score, -score], dim=1)


class Half(nn.Module):
    """In place of a purifier: the result is the input plus a shift, and counts in the left half of the image."""

    def __init__(self):
        super().__init__()
        self.net = nn.Conv2d(1, 1, 1)  # only its device is asked for
        self.given: list[Tensor] = []

    def practice(self, x: Tensor, rng: Drawn) -> tuple[Tensor, ...]:
        return (0.1 * torch.ones_like(rng.uniform_like(x)),)

    def attempt(self, x: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        self.given.append(x)
        left = (torch.arange(x.shape[3]) < 2).expand(len(x), 1, 4, 4)
        return torch.where(left, x + shift, x + 10), left

    def forward(self, x: Tensor, denoiser: None, classifier: Classifier, rng: Streams) -> Tensor:
        return x


def data(n: int = 64) -> Subset:
    x = 0.3 + 0.4 * torch.rand(n, 1, 4, 4, generator=DRAWS().manual_seed(0))
    return Subset(torch.arange(n), x, torch.arange(n) % 2)


THREAT = ThreatModel(norm="linf", eps=0.1)
PGD4, FGSM = PGD(iterations=4, eot=1, select="last"), PGD(iterations=1, eot=1, random_start=False, select="last")


def task(**given) -> Restoring:
    networks = {"classifier": Classifier(Linear(), taps=["tap"]), "threat": THREAT, "judge_attack": PGD4}
    return Restoring(Half(), data(), **networks, **given)


def test_the_error_counts_where_the_result_does():
    batch = (clean := task()).draw(32, DRAWS().manual_seed(0))
    assert clean.loss(*batch).item() == pytest.approx(0.1)
    assert torch.equal(clean.purifier.given[0], batch[0])


@pytest.mark.parametrize("attack", [FGSM, PGD4], ids=["fgsm", "pgd"])
def test_attacked_inputs_are_the_corner_of_the_ball_of_a_linear_classifier(attack):
    """Up the cross entropy of class 0 is against the sign of w; the target stays the clean image."""
    attacked = task(attack=attack, share=0.5)
    x, y, chosen, *rest = batch = attacked.draw(1000, DRAWS().manual_seed(0))
    assert chosen.float().mean().item() == pytest.approx(0.5, abs=0.05)
    loss = attacked.loss(*batch).item()
    corner = x - 0.1 * Linear().w.detach().sign() * (1 - 2 * y.view(-1, 1, 1, 1))
    given = attacked.purifier.given[0]
    torch.testing.assert_close(given[chosen], corner[chosen])
    assert torch.equal(given[~chosen], x[~chosen])
    shift = (given - x + 0.1)[..., :2].abs().mean().item()
    assert loss == pytest.approx(shift, rel=1e-5)
    assert len(rest) == 2


def test_the_classifiers_losses_are_added_with_their_weights():
    plain, both = task(), task(cross_entropy=0.5, features=2.0)
    x, y, *_ = batch = plain.draw(32, DRAWS().manual_seed(0))
    x_hat, left = plain.purifier.attempt(x, batch[4])
    entropy = nn.functional.cross_entropy(plain.classifier(x_hat.clamp(0, 1)), y)
    mixed = torch.where(left, x_hat, x)  # what does not count is taken from the image
    features = (mixed - x).abs().mean() / x.mean()
    wanted = 0.1 + 0.5 * entropy.item() + 2 * features.item()
    assert both.loss(*batch).item() == pytest.approx(wanted, rel=1e-5)


def test_the_judge_writes_what_the_attack_does_to_an_idle_purifier(tmp_path):
    figures = task().judge(data(32), tmp_path, 0)
    assert figures["error_after/clean"] == 0
    assert figures["error_after/attacked"] == figures["error_before/attacked"] == pytest.approx(0.1, rel=0.02)
    assert figures["accuracy_after/noise"] == figures["accuracy_before/noise"]
    assert figures["accuracy_after/attacked"] <= figures["accuracy_after/clean"]
    assert (tmp_path / "judge.csv").read_text().count("\n") == 4
    assert (tmp_path / "purified.png").exists()


def test_the_judge_of_a_network_on_a_gpu_gives_it_images_on_the_gpu(tmp_path):
    judged = task()
    expected = judged.judge(data(), tmp_path, seed=0)
    for network in (judged.net, judged.classifier):
        claim_module(network)
    with claimed_gpu():
        assert judged.judge(data(), tmp_path, seed=0) == expected


def test_a_bad_share():
    with pytest.raises(ValueError, match="need 0 <= share <= 1"):
        task(share=2.0)


def test_equal_logits_cost_the_logarithm_of_the_levels(tmp_path):
    net = MaskedConvNet(1, 33, 4, 1)
    nn.init.zeros_(net.logits.weight)
    nn.init.zeros_(net.logits.bias)  # pyright: ignore[reportArgumentType]
    levels = Levels(PixelDefend(net, reach=1), data())
    (x,) = batch = levels.draw(8, DRAWS().manual_seed(0))
    assert x.shape == (8, 1, 4, 4)
    assert levels.loss(*batch).item() == pytest.approx(math.log(33))
    figures = levels.judge(data(16), tmp_path, 0)
    assert figures == pytest.approx({"nats/clean": math.log(33), "nats/noise": math.log(33)})
    assert (tmp_path / "judge.csv").read_text().count("\n") == 3


def test_a_network_that_knows_the_level_costs_nothing():
    net = MaskedConvNet(1, 33, 4, 1)
    nn.init.zeros_(net.logits.weight)
    net.logits.bias.data = torch.where(torch.arange(33) == 16, 100.0, 0.0)  # pyright: ignore[reportOptionalMemberAccess]
    half = Subset(torch.arange(4), torch.full((4, 1, 4, 4), 0.5), torch.zeros(4, dtype=torch.long))
    levels = Levels(PixelDefend(net, reach=1), half)
    assert levels.loss(*levels.draw(4, DRAWS().manual_seed(0))).item() == pytest.approx(0, abs=1e-6)


def test_a_classifier_of_purified_images_sees_no_others(tmp_path):
    """The purifier inverts the image: of a classifier that learned this, the plain images are the odd ones."""

    def flipped(x: Tensor, generator: torch.Generator) -> Tensor:
        return 1 - x

    purified = ClassifyingPurified(Classifier(Linear()), data(), purify=flipped)
    x, y = purified.draw(64, DRAWS().manual_seed(0))
    assert torch.equal(x.sort(dim=0).values, (1 - data().x).sort(dim=0).values)
    labels = purified.classifier(1 - data().x).argmax(1)
    figures = purified.judge(data()._replace(y=labels), tmp_path, 0)
    assert figures["accuracy/purified"] == 100
    assert figures["accuracy/as they are"] < 50
    assert y.shape == (64,)
