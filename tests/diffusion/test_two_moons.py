"""PGD and APGD where the optimum can be looked up: a network on two moons, whose inputs are two pixels."""

import math

import pytest
import torch

from dp.attacks.apgd import APGD
from dp.attacks.pgd_eot import PGD
from dp.classifiers import Classifier
from dp.defense.defended import Defended
from dp.objectives import margin
from dp.purifiers import none
from dp.threat_models.ball import ThreatModel
from tests.attacks.test_attacks import run_attack

EPS = 0.12
CLOSE = 0.05  # what steps of eps / 16 leave on the rim of the ball; the margins reach from -10 to 5
FINE = 0.002  # what the spacing of the grid can hide
ATTACKS = {"pgd": (lambda n: PGD(40, 1, restarts=n), 10), "apgd": (lambda n: APGD(40, 1, restarts=n), 6)}


@pytest.fixture(scope="module")
def moons():
    """A network trained on two moons scaled to [0,1]^2, and 30 of its points as images (30,1,1,2)."""
    from sklearn.datasets import make_moons

    points, y = make_moons(200, noise=0.1, random_state=0)
    x = torch.tensor((points - points.min(0)) / (points.max(0) - points.min(0)), dtype=torch.float32).view(-1, 1, 1, 2)
    y = torch.tensor(y)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(2, 24), torch.nn.Tanh(), torch.nn.Linear(24, 24), torch.nn.Tanh(),
            torch.nn.Linear(24, 2),
        )  # fmt: skip
    parameters, speeds = list(net.parameters()), [torch.zeros_like(p) for p in net.parameters()]
    for _ in range(400):  # gradient descent with momentum
        slopes = torch.autograd.grad(torch.nn.functional.cross_entropy(net(x), y), parameters)
        with torch.no_grad():
            for p, v, g in zip(parameters, speeds, slopes, strict=True):
                p -= 0.3 * v.mul_(0.9).add_(g)
    return Defended(none.purify, None, Classifier(net)), x[:30], y[:30]


def grid_optimum(model, x, y, threat):
    """The largest margin over a fine grid of the ball, its rim included, cut by the box: (B,)."""
    if threat.norm == "linf":
        side = torch.linspace(-threat.eps, threat.eps, 201)
        delta = torch.cartesian_prod(side, side)  # (201*201,2)
    else:
        radius, angle = torch.linspace(0, threat.eps, 81), 2 * math.pi * torch.arange(720) / 720
        delta = (radius.view(-1, 1, 1) * torch.stack([angle.cos(), angle.sin()], dim=1)).view(-1, 2)
    with torch.no_grad():
        points = [(one + delta.view(-1, 1, 1, 2)).clamp(0, 1) for one in x]
        found = [margin(model.classifier(p), k.expand(len(p))).max() for p, k in zip(points, y, strict=True)]
    return torch.stack(found)


@pytest.fixture(scope="module", params=["linf", "l2"])
def looked_up(request, moons):
    threat = ThreatModel(request.param, EPS)
    return threat, grid_optimum(*moons, threat)


@pytest.mark.parametrize("name", ATTACKS)
def test_restarts_reach_the_grids_optimum(moons, looked_up, name):
    """Of two classes the margin rises with the cross-entropy that both attacks climb. From some starts all points reach
    what the grid holds, and none goes beyond; from one start a few end on a lower hill, so this is no single slope.
    """
    (model, x, y), (threat, optimum), (attack, restarts) = moons, looked_up, ATTACKS[name]
    flipped = (optimum > 0) & (margin(model.classifier(x), y) < 0)
    assert 3 <= flipped.sum() <= len(x) - 3  # the ball crosses the boundary for some points alone
    one, some = (margin(model.classifier(run_attack(attack(n), model, x, y, threat)), y) for n in (1, restarts))
    assert (some > optimum - CLOSE).all()
    assert (some < optimum + FINE).all()
    assert torch.equal(some > 0, optimum > 0)
    assert 1 <= (one < optimum - 6 * CLOSE).sum() <= len(x) // 3
