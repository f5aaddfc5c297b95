"""DiffAttack: its term against its definition and against central differences; without it, APGD."""

import functools

import pytest
import torch

from dp.attacks.apgd import APGD
from dp.attacks.diffattack import Deviating, deviation, diffattack
from dp.attacks.union import Union
from dp.classifiers import Classifier
from dp.defense.defended import Defended
from dp.diffusion.sampling import to_pm1
from dp.objectives import with_margin
from dp.purifiers import none
from dp.rng import Streams
from dp.runs.build import build
from dp.runs.compose import make
from dp.threat_models.ball import ThreatModel
from tests.attacks.test_apgd import Net, seeded
from tests.attacks.test_attacks import assert_rows_stand_alone, run_attack
from tests.defense.test_gradients import wide
from tests.helpers.compose import composed


def test_the_term_is_the_expectation_over_the_forward_process_up_to_a_constant():
    """Forward processes drawn step by step, conditioned on their end by hand: d = 1 pixel, two states below the top.

    The constant is the bridge's variance sigma^2 (1 - sigma^2 / sigma_T^2) over (1 + sigma^2).
    """
    g, sigmas, samples = seeded(0), (2.0, 1.0, 0.5), 400_000
    x, w = torch.tensor(0.3, dtype=torch.float64), torch.tensor(1.4, dtype=torch.float64)  # w: the noise at the top
    clean = to_pm1(x)
    z = [clean + w, clean + 0.2, clean - 0.3]
    n = torch.randn(2, samples, generator=g, dtype=torch.float64)
    mid = w / 4 + (1 - 1 / 4) ** 0.5 * n[0]  # sigma 1 given 2
    low = mid / 4 + 0.5 * (1 - 1 / 4) ** 0.5 * n[1]  # sigma .5 given 1: the process is Markov
    drawn = ((z[1] - clean - mid) ** 2).mean() / 2 + ((z[2] - clean - low) ** 2).mean() / 1.25
    constant = 0.75 / 2 + 0.25 * (1 - 0.25 / 4) / 1.25
    states = [(sigma, value.view(1, 1, 1, 1)) for sigma, value in zip(sigmas, z, strict=True)]
    assert 3 * deviation(x.view(1, 1, 1, 1), states).item() == pytest.approx((drawn - constant).item(), abs=5e-3)


def test_the_term_is_zero_on_the_way_there_and_without_states():
    x, n = torch.rand(2, 3, 4, 4, generator=seeded(0)), torch.randn(2, 3, 4, 4, generator=seeded(1))
    bridge = [(sigma, to_pm1(x) + sigma**2 / 2 * n) for sigma in (2.0, 1.0, 0.5)]
    torch.testing.assert_close(deviation(x, bridge), torch.zeros(2))
    assert torch.equal(deviation(x, []), torch.zeros(2))
    again = [*bridge, (1.0, to_pm1(x) + n), (0.5, to_pm1(x) + n / 4)]  # a second round, with noise of its own
    torch.testing.assert_close(deviation(x, again), torch.zeros(2))
    assert (deviation(x, [*bridge, (0.25, to_pm1(x) + n)]) > 0.1).all()


def test_states_of_another_size_are_compared_at_theirs():
    x = torch.full((2, 1, 4, 4), 0.3)
    states = [(sigma, torch.full((2, 1, 8, 8), -0.4 + d)) for sigma, d in ((1.0, 0.0), (0.5, 0.5))]
    torch.testing.assert_close(deviation(x, states), torch.full((2,), 0.25 / 1.25 / 2))


@pytest.mark.parametrize("loss", ["ce", "dlr"])
@pytest.mark.parametrize("purifier", ["diffpure", "hetero", "diffpure_sde"])
def test_gradient_equals_central_differences(purifier, loss):
    """Float64, frozen noise; the weight is such that the term makes a good part of the gradient."""
    model, x, y, ids = wide(build(composed(f"purifier={purifier}", "protocol.images=2")))
    along, given = functools.partial(deviation, weight=30.0), (Streams(ids, 3, "frozen"), 2, with_margin(loss))
    values, gradient = model.loss_gradient(x, y, *given, along)
    plain, without = model.loss_gradient(x, y, *given)
    assert (values[:, 0] > plain[:, 0]).all()
    assert torch.equal(values[:, 1], plain[:, 1])
    assert (gradient - without).norm() > 0.1 * without.norm()
    v = gradient / gradient.norm() + 0.1 * torch.randn(x.shape, generator=seeded(0), dtype=torch.float64)
    slope, errors = (gradient * v).sum().item(), []
    for h in (1e-4, 1e-5, 1e-6):
        up, down = (model.loss_gradient(x + s * h * v, y, *given, along)[0][:, 0].sum().item() for s in (1, -1))
        errors.append(abs((up - down) / (2 * h) - slope) / abs(slope))
    assert min(errors) < 1e-6


@pytest.mark.parametrize("purifier", ["diffpure", "none"])
def test_without_the_term_it_is_apgd_bit_for_bit(purifier, images):
    """By weight 0, or because a purifier has no states."""
    model = build(composed(f"purifier={purifier}", "protocol.images=2")).arms["defended"].scored
    threat, weight = ThreatModel("linf", 0.1), 0.0 if purifier == "diffpure" else 1.0
    plain = Union({loss: APGD(3, 2, loss, confirm=3) for loss in ("ce", "dlr")}, 3)
    expected = run_attack(plain, model, images.x, images.y, threat)
    attack = diffattack(3, 2, weight, confirm=3)
    assert torch.equal(run_attack(attack, model, images.x, images.y, threat), expected)
    assert attack.phase_ends == plain.phase_ends


def test_the_term_rises_under_the_attack(images):
    """On fresh samples, above the random start's and above what APGD reaches."""
    model = build(composed("purifier=diffpure", "protocol.images=2")).arms["defended"].scored
    threat, rng = ThreatModel("linf", 0.1), Streams(range(len(images.x)), 1, "fresh")

    def term(x_adv):
        seen = []
        with torch.no_grad():
            for k in range(8):
                states = []
                model.purify(
                    x_adv, rng.draw(k), on_step=lambda i, sigma, z, x0, states=states: states.append((sigma, z))
                )
                seen.append(deviation(x_adv, states))
        return torch.stack(seen).mean()

    reached = {
        weight: term(run_attack(Deviating(8, 4, confirm=4, weight=weight), model, images.x, images.y, threat))
        for weight in (0.0, 100.0)
    }
    assert reached[100.0] > 1.05 * reached[0.0]
    assert reached[100.0] > 1.05 * term(threat.noise(images.x, rng.draw(99)))


def test_rows_do_not_depend_on_order():
    model = Defended(none.purify, None, Classifier(Net(64, 6)))
    x, y, threat = torch.rand(16, 1, 8, 8, generator=seeded(3)), torch.arange(16) % 6, ThreatModel("linf", 0.1)
    assert_rows_stand_alone(diffattack(2, 1, confirm=2), model, x, y, threat)


@pytest.mark.parametrize("bad", [{"weight": -1.0}, {"loss": "targeted"}, {"eot": 0}])
def test_rejects(bad):
    with pytest.raises(ValueError, match=r"^need "):
        Deviating(**{"iterations": 1, "eot": 1, **bad})


def test_the_yaml_holds_the_papers_values():
    attack = make(composed("dataset=cifar10", "attack=diffattack")["attack"])
    assert attack == Union({loss: Deviating(100, 20, loss, weight=1.0) for loss in ("ce", "dlr")}, 20)
    assert attack.says("all of it").count("DiffAttack, 1 x deviation on the way plus ") == 2
