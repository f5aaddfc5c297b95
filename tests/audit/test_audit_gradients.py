"""The audit's checks of gradients: what is sound has no failure, every planted fault is found by the check meant for
it.
"""

import copy
import dataclasses
import functools
import math
import re

import pytest
import torch

from dp.attacks.pgd_eot import PGD
from dp.audit import convergence, gradients, probes, trajectory
from dp.audit.check import Subject, streams
from dp.defense.defended import Defended
from dp.threat_models.ball import ThreatModel
from tests.helpers.audited import SMALL, Leaky, Linear, composed_subject, findings_of, made, planted, saying, weights
from tests.helpers.compose import small_budget

ATTACKS = (
    "none",
    "square",
    "spsa",
    "stadv",
    "low_frequency",
    "diffhammer",
    "diffattack",
    "bpda_eot",
    "apgd_t",
    "union",
)
ATTACKS = (*ATTACKS, "autoattack_upstream")  # the others are made of these
OWN = ("stadv", "low_frequency")  # under a threat model of their own, of the same name
CHECKS = (*gradients.CHECKS, *convergence.CHECKS)


@pytest.fixture(scope="module")
def sound() -> Subject:
    return composed_subject(*SMALL)


@pytest.mark.parametrize("purifier", ["hetero", "none"])
def test_a_sound_defense_has_no_failure(purifier):
    given = ("purifier.steps=2",) if purifier == "hetero" else ()
    found = findings_of(composed_subject(f"purifier={purifier}", *given, "protocol.images=1"), gradients.QUICK)
    assert not [f for f in found.values() if f.verdict == "FAIL"]
    assert found["derivative"].verdict == found["step"].verdict == "PASS"
    assert found["recompute"].verdict == ("INFO" if purifier == "none" else "PASS")


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_can_be_audited(name, monkeypatch):
    """No error, no failure, and a reason where a check does not apply."""
    monkeypatch.setattr(trajectory, "SAMPLES", 2)
    norm = name if name in OWN else "l2"
    given = (f"attack={name}", f"threat_model={norm}", "purifier=diffpure", "purifier.steps=1", "protocol.images=1")
    subject = composed_subject(*given, *small_budget(name))
    for check in CHECKS:
        found = check(subject)
        assert found.verdict != "FAIL", found
        assert found.verdict != "INFO" or "does not apply: " in found.value or found.check == "methods"
    if name == "none":
        assert {check(subject).verdict for check in CHECKS} == {"INFO", "PASS"}


class Scaled(torch.autograd.Function):
    """The identity, with a derivative of 1.01."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, *grads):
        return 1.01 * grads[0]


def test_the_relative_error_of_a_scaled_gradient_is_known():
    """A gradient of 1.01 times the derivative: .01 / 1.01 in every direction, at every length that rounding allows."""
    subject = made(Linear(weights()), lambda x, *_, **__: Scaled.apply(x))
    errors, _ = gradients._differences(subject, subject.images, ())
    torch.testing.assert_close(errors, torch.full_like(errors, 0.01 / 1.01), rtol=1e-3, atol=0)
    assert gradients.derivative(subject).verdict == "FAIL"
    assert gradients.derivative(saying(subject, straight_through=True)).verdict == "WARN"
    assert gradients.derivative(made(Linear(weights()))).verdict == "PASS"


def test_kinks_do_not_fail_the_check():
    """The purification is a staircase plus the identity: differences of some lengths cross a step; the derivative is
    right elsewhere.
    """

    def purify(x, *_, **__):
        return x + (200 * x).floor() / 200

    subject = dataclasses.replace(made(Linear(weights()), purify), quick=False)
    errors, _ = gradients._differences(subject, subject.images, ())
    assert errors[0].median() > 1e-2
    assert gradients.derivative(subject).verdict == "PASS"


@pytest.mark.parametrize("purify", [lambda x, *_, **__: x.detach(), lambda x, *_, **__: torch.ones_like(x)])
def test_a_defense_without_a_gradient_says_so(purify):
    subject = made(Linear(weights()), purify)
    x, y, rng = subject.images.x, subject.images.y, streams(subject, subject.images, "test")
    with pytest.raises(ValueError, match="cut off from it"):
        subject.arm.scored.vjp(x, rng, [0] * len(x), x)
    with pytest.raises(ValueError, match="cut off from it"):
        subject.arm.scored.eval().requires_grad_(False).loss_gradient(x, y, rng, 1)
    for found in findings_of(subject, gradients.CHECKS).values():
        assert (found.verdict, "no gradient" in found.value) == ("FAIL", True)


def test_a_partly_detached_purifier_is_found(sound):
    """The gradient goes around the purification, as in BPDA, and nothing declares it."""

    def partly(x, *args, **kwargs):
        return x + (sound.arm.scored.purifier(x, *args, **kwargs) - x).detach()

    model = Defended(partly, sound.arm.scored.denoiser, sound.arm.scored.classifier, 4)
    found = gradients.derivative(planted(sound, both=model))
    assert found.verdict == "FAIL"
    assert gradients.derivative(sound).verdict == "PASS"


def test_a_declared_surrogate_is_an_approximation(sound):
    declared = gradients.derivative(
        planted(sound, (("surrogate",),), attacked=sound.arm.scored.gradient_mode("surrogate"))
    )
    assert declared.verdict == "WARN"
    cosine = re.search(
        r"not the derivative of the scored defense: .*; surrogate has a cosine of ([\d.]+)", declared.value
    )
    assert cosine
    assert float(cosine[1]) > 0.8  # as many steps, at other noise levels


def test_nothing_is_compared_with_itself(sound):
    """Where memory holds one call alone, storing and recomputing are the same."""
    model = copy.deepcopy(sound.arm.scored)
    model.denoiser.memory, model.denoiser.recompute.keep, model.draws_per_call = "recompute", 1, 1
    few = dataclasses.replace(sound, evaluation=dataclasses.replace(sound.evaluation, lanes=1))
    found = gradients.recompute(planted(few, both=model))
    assert (found.verdict, "no call fits in memory" in found.value) == ("INFO", True)
    model.denoiser.recompute.keep = 2
    assert gradients.recompute(planted(few, both=model)).verdict == "PASS"


def test_noise_that_only_a_recomputation_draws_is_found(sound):
    """The forward pass is repeatable, so the loss agrees; the gradient does not."""

    def restarted(*args, **kwargs):
        net.calls = 0
        return sound.arm.scored.purifier(*args, **kwargs)

    net = Leaky(sound.arm.scored.denoiser.net)
    denoiser = type(sound.arm.scored.denoiser)(net)
    model = Defended(restarted, denoiser, sound.arm.scored.classifier, 4)
    found = gradients.recompute(planted(sound, both=model))
    assert found.verdict == "FAIL"
    assert "loss differs by 0.0e+00" in found.value


def test_other_gradients_are_compared_with_the_exact_one(sound):
    found = gradients.methods(sound)
    assert found.verdict == "INFO"
    assert [name in found.value for name in ("surrogate", "bpda", "blind")] == [True] * 3
    same = planted(sound, attacked=sound.arm.scored.gradient_mode("full"))
    assert "attacked" not in gradients.methods(same).value
    twice = Defended(lambda x, *_, **__: 2 * x, sound.arm.scored.denoiser, sound.arm.scored.classifier)
    values = gradients.methods(planted(sound, both=twice))
    assert "bpda 1.00/1.00/0.5" in values.value  # the identity in place of a factor of 2


class Bowl(torch.nn.Module):
    """Logits (-f, f) for f a little of |x - .2|^2 / 2: the gradient at x + n is that at x plus the same little of n."""

    def forward(self, x):
        f = 1e-4 * (x - 0.2).square().flatten(1).sum(1) / 2
        return torch.stack([-f, f], dim=1)


def noisy(x, denoiser, classifier, rng, *, on_step=None, sigma: float):
    return x + sigma * rng.randn_like(x)


def test_split_half_cosines_follow_signal_and_noise():
    """g + noise of variance s^2 in D pixels: N r / (1 + N r) with r = |g|^2 / (D s^2), up to sampling."""
    subject = made(Bowl(), functools.partial(noisy, sigma=0.6), PGD(5, 4, random_start=False))
    found = gradients.expectation(subject)
    rate = float((subject.images.x - 0.2).square().mean()) / 0.36
    expected = [n * rate / (1 + n * rate) for n in found.curve["x"]]
    assert found.curve["cosine"] == pytest.approx(expected, abs=0.08)
    assert found.curve["x"] == [1, 2, 4, 8]
    assert found.verdict == "WARN"


@pytest.mark.parametrize(
    ("sigma", "eot", "status"),
    [(0.0, 1, "PASS"), (0.6, 1, "WARN"), (3.0, 1, "FAIL"), (0.2, 40, "PASS"), (0.6, 400, "PASS")],
)
def test_few_samples_of_a_noisy_purifier_are_found(sigma, eot, status):
    found = gradients.expectation(made(Bowl(), functools.partial(noisy, sigma=sigma), PGD(5, eot, random_start=False)))
    assert found.verdict == status
    assert ("predicted" in found.value) == (eot > 8)


def test_an_l2_sign_step_is_found():
    """Its cosine with the gradient w is |w|_1 / (sqrt(D) |w|_2)."""
    w = weights()
    threat = ThreatModel("l2", 1.0)
    found = {
        kind: gradients.step(made(Linear(w), attack=PGD(5, 1, l2_step=kind), threat=threat))
        for kind in ("gradient", "sign")
    }
    assert found["gradient"].verdict == "PASS"
    assert found["sign"].verdict == "WARN"
    cosine = float(w.abs().sum() / (math.sqrt(w.numel()) * w.norm()))
    assert f"cosine {cosine:.2f}, a sign step" in found["sign"].value
    assert gradients.step(made(Linear(w), attack=PGD(5, 1, l2_step="sign"))).verdict == "PASS"  # linf: as it should be


def test_steps_against_the_gradient_and_no_steps_are_found():
    for length, words in ((-1.0, "cosine -1.00"), (0.0, "does not move")):
        found = gradients.step(made(Linear(weights()), attack=Stepping(length), threat=ThreatModel("l2", 1.0)))
        assert (found.verdict, words in found.value) == ("FAIL", True)


@dataclasses.dataclass(frozen=True)
class Stepping(PGD):
    """PGD whose step is multiplied by `length`."""

    length: float = 1.0

    def __init__(self, length: float):
        super().__init__(5, 1, random_start=False)
        object.__setattr__(self, "length", length)

    def step(self, model, state, x, y, threat, rng):
        after = super().step(model, state, x, y, threat, rng)
        moved = state.x + self.length * (after.x - state.x)
        return after._replace(x=moved, x_adv=moved)


def test_parts_of_a_union_have_gradient_modes_of_their_own():
    subject = composed_subject("attack=union", "purifier=diffpure", "protocol.images=2")
    found = {probe.name: probe.modes for probe in probes.gradient_probes(subject)}
    assert found == {"pgd_eot": (), "transfer": ("blind",)}
    assert set(subject.claims) == {("blind",), ()}
    assert subject.claimed_names == "blind, exact"
    assert probes.main(probes.gradient_probes(subject)).name == "pgd_eot"
