"""The audit's checks of an attack's trajectory: planted faults are found, what is sound passes."""

import dataclasses

import pytest
import torch

from dp.attacks.apgd import APGD
from dp.attacks.pgd_eot import PGD
from dp.attacks.through import Through
from dp.audit import convergence, gradients, trajectory
from dp.audit.check import Subject
from dp.defense.defended import Defended
from tests.helpers.audited import SMALL, Linear, composed_subject, findings_of, made, planted, weights


@pytest.fixture(scope="module")
def sound() -> Subject:
    return composed_subject(*SMALL)


def test_a_sound_defense_has_no_failure(sound):
    found = findings_of(sound, convergence.CHECKS)
    assert not [f for f in found.values() if f.verdict == "FAIL"]
    assert found["flags"].verdict == "PASS"
    assert len(found["loss"].curve["x"]) == 6


def test_the_loss_is_the_margin_that_a_linear_model_has():
    """PGD from the image on: every step of .02 lowers s = w . x by .02 |w|_1; the margin is max(-s, .3) - s."""
    w = weights() / 50 + 0.01
    attack = PGD(4, 1, step_size=0.02, random_start=False)
    subject = made(Linear(w), attack=attack)
    scores = (subject.images.x * w).flatten(1).sum(1).double()
    expected = []
    for k in range(5):
        s = scores - 0.02 * k * float(w.abs().sum())
        expected.append(float(((-s).clamp(min=0.3) - s).clamp(max=0).mean()))
    assert convergence.loss(subject).curve["loss"] == pytest.approx(expected, abs=1e-5)


def trajectory_of(margins: list[list[list[float]]]) -> trajectory.Trajectory:
    """(T,R,B) as nested lists."""
    at = tuple(range(len(margins)))
    none = torch.zeros(len(margins[0][0]))
    return trajectory.Trajectory(at, torch.tensor(margins).double(), none, none, none, none, none)


def test_the_best_loss_is_taken_for_each_image_and_never_counts_beyond_broken():
    stands, best = trajectory.loss_curves(trajectory_of([[[-4.0, -2.0]], [[-1.0, -3.0]], [[-2.0, 5.0]]]))
    assert stands[:, 0].tolist() == [-3.0, -2.0, -1.0]
    assert best[:, 0].tolist() == [-3.0, -1.5, -0.5]


@pytest.mark.parametrize(
    ("path", "rising"),
    [([-5 + 0.5 * k for k in range(11)], True), ([-5 * 0.4**k for k in range(11)], False), ([1.0] * 11, False)],
)
def test_only_a_rise_that_goes_on_is_unfinished(path, rising):
    assert trajectory.unfinished(trajectory_of([[[v], [v]] for v in path]))[0] is rising


def test_a_late_gain_within_the_samples_noise_is_none():
    """Two samples that disagree on the gain: .5 +- 2."""
    path = [[[-5.0], [-5.0]]] * 9 + [[[-2.5], [-6.5]]] * 2
    assert not trajectory.unfinished(trajectory_of(path))[0]


def test_an_attack_that_was_broken_off_is_found(sound):
    short = PGD(5, 2, step_size=0.004, random_start=False)
    found = findings_of(planted(sound, attack=short), convergence.CHECKS)
    assert found["loss"].verdict == "WARN"
    assert "still rising" in found["loss"].value
    assert "incomplete optimization" in found["indicators"].value


class Still(PGD):
    """An optimizer that never moves."""

    def step(self, model, state, x, y, threat, rng):
        return super().step(model, state, x, y, threat, rng)._replace(x=state.x, x_adv=state.x_adv)


def test_an_optimizer_that_never_moves_is_found(sound):
    found = convergence.loss(planted(sound, attack=Still(3, 1)))
    assert found.verdict == "FAIL"
    assert "never moves" in found.value


class Wandering(PGD):
    """PGD that takes random steps."""

    def step(self, model, state, x, y, threat, rng):
        after = super().step(model, state, x, y, threat, rng)
        moved = threat.project(x + 0.01 * (rng.uniform_like(x) - 0.5), x)
        return after._replace(x=moved, x_adv=moved)


def test_a_loss_that_stays_flat_is_found():
    """A defense whose noise is much larger than the attack's effect."""

    def noisy(x, denoiser, classifier, rng, *, on_step=None):
        return x + 3 * rng.randn_like(x) * (1 + x.mean())

    w = torch.full((1, 1, 16, 16), 1.0) + 0.01 * weights()
    subject = made(Linear(w), noisy, Wandering(4, 1, random_start=False))
    found = convergence.loss(subject)
    assert (found.verdict, "flat from the start" in found.value) == ("WARN", True)


def quantized(x, *_, **__):
    """Eight gray levels; the derivative is zero wherever there is one."""
    return (8 * x).round() / 8


def test_a_shattered_gradient_is_found():
    subject = made(Linear(weights()), quantized, PGD(4, 1))
    found = findings_of(subject, (*convergence.CHECKS, gradients.derivative))
    assert found["derivative"].verdict == "FAIL"
    assert found["derivative"].value.startswith("zero gradient on 4 images")
    assert [found[name].verdict for name in ("loss", "flags", "indicators")] == ["FAIL", "WARN", "FAIL"]
    assert "zero DLR gradient on 4 images" in found["flags"].value
    assert "unavailable gradients" in found["indicators"].value


def test_a_gradient_that_turns_at_every_step_is_found():
    """Ripples of a wavelength far below what the attack moves by."""

    def rippled(x, *_, **__):
        return x + 1e-3 * torch.sin(2e4 * x)

    found = {
        ripples: convergence.indicators(made(Linear(weights()), purify))
        for ripples, purify in (("yes", rippled), ("no", lambda x, *_, **__: x))
    }
    assert "noisy gradients" in found["yes"].value
    assert "noisy gradients" not in found["no"].value


def test_gradients_taken_inside_forward_are_found():
    def guided(x, *_, **__):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(leaf.square().sum(), leaf)
        return x + 0.1 * slope

    assert "inside forward" in convergence.flags(made(Linear(weights()), guided)).value
    assert convergence.flags(made(Linear(weights()))).verdict == "PASS"


def test_too_few_classes_for_the_loss_are_found():
    found = convergence.flags(made(Linear(weights()), attack=APGD(2, 1, "targeted")))
    assert (found.verdict, "3 classes for a loss that needs 4" in found.value) == ("FAIL", True)


class Forgetful(PGD):
    """PGD that returns its start."""

    def step(self, model, state, x, y, threat, rng):
        return super().step(model, state, x, y, threat, rng)._replace(x_adv=x)


def test_a_success_that_is_not_returned_is_found():
    w = 10 * weights() / weights().abs().sum()
    purify = lambda x, *_, **__: x - x.mean(dim=(1, 2, 3), keepdim=True) + 0.05 * w.sign()  # noqa: E731
    attacks = {"silent": Forgetful(8, 1), "sound": PGD(8, 1)}
    found = {name: convergence.indicators(made(Linear(w), purify, attack)) for name, attack in attacks.items()}
    assert "silent success" in found["silent"].value
    assert "silent success" not in found["sound"].value


def test_success_that_does_not_transfer_is_found(sound):
    """The attack breaks the bare classifier, but not the defense."""
    attack = Through(PGD(5, 1), "blind")
    found = convergence.indicators(planted(sound, claims=(("blind",),), attack=attack))
    assert "transfer failure" in found.value
    assert found.verdict == "WARN"


def test_the_trajectory_is_run_once_and_with_noise_of_its_own(monkeypatch):
    asked = []
    subject = made(Linear(weights()), attack=PGD(3, 1))
    before = Defended.loss_gradient

    def counted(self, x, y, rng, *args):
        asked.append(rng.keys)
        return before(self, x, y, rng, *args)

    monkeypatch.setattr(Defended, "loss_gradient", counted)
    convergence.loss(subject)
    assert len(asked) == 3
    found = trajectory.trajectory(subject)
    assert len(asked) == 3
    assert found.margins.shape == (4, trajectory.SAMPLES, 4)


def test_batches_are_no_larger_than_the_runs_and_change_nothing():
    whole = made(Linear(weights()), attack=PGD(3, 1), images=4)
    parts = dataclasses.replace(whole, evaluation=dataclasses.replace(whole.evaluation, lanes=3))
    torch.testing.assert_close(
        trajectory.trajectory(whole).margins, trajectory.trajectory(parts).margins, rtol=1e-5, atol=1e-5
    )
