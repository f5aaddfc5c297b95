"""Targeted PGD and APGD: the optimum on a linear model, and the classes that are aimed at."""

import pytest
import torch

from dp.attacks.apgd import APGD
from dp.attacks.diffattack import Deviating
from dp.attacks.pgd_eot import PGD
from dp.attacks.target import targets_of
from dp.classifiers import Classifier
from dp.defense.defended import Defended
from dp.purifiers import none
from dp.rng import Streams
from dp.runs.keys import run_key
from dp.threat_models.ball import ThreatModel
from tests.attacks.test_apgd import jitter
from tests.attacks.test_attacks import assert_rows_stand_alone, run_attack
from tests.helpers.compose import composed

EPS = 0.05


class Scores(torch.nn.Module):
    """Logits W x of K classes."""

    def __init__(self, classes: int = 5):
        super().__init__()
        self.w = torch.nn.Parameter(torch.randn(classes, 64, generator=torch.Generator().manual_seed(0)))

    def forward(self, x):
        return x.flatten(1) @ self.w.T


def model(purify=none.purify) -> Defended:
    return Defended(purify, None, Classifier(Scores()), draws_per_call=2)


def images(count: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    x = 0.3 + 0.4 * torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return x, Scores()(x).argmax(1)


def aimed(attack, defense, x, y, seed=0) -> torch.Tensor:
    """(B,) the classes that an attack with these streams aims at."""
    rng = Streams(range(len(x)), seed, "attack").draw(0)
    return targets_of(attack.target, defense, x, y, rng, attack.eot)[:, 0]


ATTACKS = {
    "pgd": lambda target: PGD(60, 1, step_size=0.01, target=target),
    "pgd last": lambda target: PGD(60, 1, step_size=0.002, select="last", target=target),
    "apgd ce": lambda target: APGD(60, 1, confirm=1, target=target),
    "apgd dlr": lambda target: APGD(60, 1, "targeted", confirm=1, target=target),
}


@pytest.mark.parametrize("target", ["random", "least_likely"])
@pytest.mark.parametrize("name", ["pgd", "pgd last"])
def test_the_loss_of_the_target_is_minimized(name, target):
    """To the optimum over the ball, which the iteration x + eps sign(-gradient) of the convex loss finds."""
    x, y = images()
    attack, defense = ATTACKS[name](target), model()
    goal = aimed(attack, defense, x, y)
    x_adv = run_attack(attack, defense, x, y, ThreatModel("linf", EPS))
    found = torch.nn.functional.cross_entropy(defense.classifier(x_adv), goal, reduction="none")
    weights = Scores().w.detach()
    best = x.clone()
    for _ in range(20):
        leaf = best.clone().requires_grad_()
        (g,) = torch.autograd.grad(torch.nn.functional.cross_entropy(leaf.flatten(1) @ weights.T, goal).mul(6), leaf)
        best = x - EPS * g.sign()
    optimum = torch.nn.functional.cross_entropy(best.flatten(1) @ weights.T, goal, reduction="none")
    torch.testing.assert_close(found, optimum, rtol=0.02, atol=0.02)
    plain = run_attack(PGD(60, 1, step_size=0.01), defense, x, y, ThreatModel("linf", EPS))
    assert (found <= torch.nn.functional.cross_entropy(defense.classifier(plain), goal, reduction="none") + 1e-4).all()


def test_two_classes_have_the_optimum_of_the_untargeted_attack():
    """The other class is the only target: x + eps sign(w_t - w_y), also by APGD on both losses that have a target."""
    x, _ = images()
    for name in ("pgd", "apgd ce"):
        defense = Defended(none.purify, None, Classifier(Scores(2)))
        labels = Scores(2)(x).argmax(1)
        w = Scores(2).w.detach()
        way = (w[1 - labels] - w[labels]).sign().view(-1, 1, 8, 8)
        x_adv = run_attack(ATTACKS[name]("random"), defense, x, labels, ThreatModel("linf", EPS))
        torch.testing.assert_close(x_adv, x + EPS * way, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["apgd ce", "apgd dlr"])
def test_apgd_raises_the_target_above_what_the_untargeted_attack_reaches(name):
    """The returned point is chosen by misclassification; the point of largest loss of its run is the target's."""
    x, y = images()
    attack, defense, threat = ATTACKS[name]("least_likely"), model(), ThreatModel("linf", EPS)
    goal, rng = aimed(attack, defense, x, y), Streams(range(len(x)), 0, "attack")
    state = attack.start(defense, x, y, threat, rng.draw(0))
    assert torch.equal(state.targets[:, 0], goal)
    for i in range(attack.steps):
        state = attack.step(defense, state, x, y, threat, rng.draw(1 + i))
    plain = run_attack(APGD(60, 1, confirm=1), defense, x, y, threat)
    gap = {}
    for what, points in (("targeted", state.top_x), ("plain", plain), ("clean", x)):
        logits = defense.classifier(points)
        gap[what] = (logits.gather(1, goal[:, None]) - logits.gather(1, y[:, None]))[:, 0]
    assert (gap["targeted"] > gap["clean"] + 1).all()
    assert gap["targeted"].mean() > gap["plain"].mean()


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_a_drawn_target_is_never_the_label_and_uniform_over_the_others(classes):
    y = torch.arange(4000) % classes
    defense = Defended(none.purify, None, Classifier(Scores(classes)))
    target = aimed(PGD(1, 1, target="random"), defense, torch.rand(4000, 1, 8, 8), y)
    assert (target != y).all()
    assert target.min() == 0
    assert target.max() == classes - 1
    share = torch.bincount((target - y) % classes, minlength=classes)[1:] / 4000
    assert (share - 1 / (classes - 1)).abs().max() < 0.04  # five standard deviations of the binomial
    other = aimed(PGD(1, 1, target="random"), defense, torch.rand(4000, 1, 8, 8), y, seed=1)
    assert (other != target).any() or classes == 2


def test_the_least_likely_class_is_that_of_the_mean_probability():
    """Over the defense's samples, not of one of them; the label is left out even where it is the least likely."""
    x, y = images()
    defense, attack = model(jitter), PGD(1, 7, target="least_likely")
    rng = Streams(range(len(x)), 0, "attack").draw(0)
    likely = defense.logits(x, rng.draw(1), 7).softmax(2).mean(0)
    assert torch.equal(aimed(attack, defense, x, y), likely.argmin(1))
    second = likely.scatter(1, likely.argmin(1, keepdim=True), torch.inf).argmin(1)
    assert torch.equal(aimed(attack, defense, x, likely.argmin(1)), second)


@pytest.mark.parametrize("target", ["random", "least_likely"])
def test_rows_do_not_depend_on_batch_mates(target):
    torch.manual_seed(0)
    x, y = images(5)
    for attack in (PGD(4, 2, restarts=2, target=target), APGD(3, 2, confirm=2, target=target)):
        assert_rows_stand_alone(attack, model(jitter), x, y, ThreatModel("linf", EPS))


def test_without_a_target_keys_stay():
    """The option is hashed only where it is set; and what has no target is refused in one line."""
    for attack in ("pgd_eot", "apgd_ce"):
        config = composed(f"attack={attack}")
        older = {**config, "attack": {k: v for k, v in config["attack"].items() if k != "target"}}
        assert run_key(older) == run_key(config)
        assert run_key(composed(f"attack={attack}", "attack.target=random")) != run_key(config)
    for make in (PGD, APGD):
        with pytest.raises(ValueError, match="need target random or least_likely"):
            make(1, 1, target="likely")
    with pytest.raises(ValueError, match="need loss ce or targeted for a target"):
        APGD(1, 1, "dlr", target="random")
    with pytest.raises(ValueError, match="a loss without targets"):
        Deviating(1, 1, target="random")
    assert APGD(4, 1, "targeted", targets=3, target="random").steps == 5
