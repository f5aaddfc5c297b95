"""Randomness, decisions, same defense, returned images: sound runs pass, each planted fault is found by its check."""

import copy
import functools

import pytest
import torch

from dp.audit import randomness, returned_images, same_defense
from dp.audit.check import Subject
from dp.audit.reruns import own
from dp.classifiers import Classifier
from dp.defense.defended import Defended
from dp.evaluation.caveats import differences
from dp.rng import Streams
from tests.helpers.audited import EXACT, Fixed, composed_subject, copied, planted, saying
from tests.helpers.compose import small_budget

IMAGES = 4
BUDGET = (f"protocol.images={IMAGES}", "protocol.votes=3", "purifier=diffpure", "purifier.steps=2")
CHECKS = (*returned_images.CHECKS, *randomness.CHECKS, *same_defense.CHECKS)


def subject(*overrides: str) -> Subject:
    return composed_subject(*BUDGET, *overrides, quick=False)


@pytest.fixture(scope="module")
def sound() -> Subject:
    return subject(*small_budget("pgd_eot"))


def test_sound_run_passes(sound):
    findings = [check(sound) for check in CHECKS]
    assert {f.check: f.verdict for f in findings if f.verdict not in ("PASS", "WARN")} == {}


def test_saved_images_of_the_second_generator_pass():
    finding = returned_images.rescored(
        subject(*small_budget("pgd_eot"), "rng=2", "purifier=diffpure", "purifier.t=0.6")
    )
    assert finding.verdict in ("PASS", "WARN"), finding.value


def test_a_classifier_that_draws_noise_is_asked_by_its_logits(monkeypatch):
    """RDC without a purifier: the purified image never changes. A classifier with one noise for all is found."""
    words = ("classifier=rdc", "purifier=none", *small_budget("pgd_eot"))
    sound = composed_subject("dataset=digits", "protocol.images=2", *words, quick=True, images=2)
    assert randomness._keys(sound) == randomness._eot(sound) == []
    assert own(sound)[1].scored
    classifier = sound.arm.scored.classifier
    drawn = type(classifier).forward

    def stuck(self, x, rng):
        return drawn(self, x, Streams(range(len(x)), 0, "stuck"))

    monkeypatch.setattr(type(classifier), "forward", stuck)
    assert randomness._keys(sound) == ["another key gives the same noise of the classifier"]


def test_a_defense_without_a_gradient_is_asked_by_the_gradient_that_the_attack_takes():
    found = composed_subject("dataset=digits", "purifier=pixeldefend", "protocol=hill", "attack.iterations=1", images=1)
    assert randomness._eot(found) == []


def test_a_method_that_starts_without_noise_has_no_levels_to_compare():
    found = composed_subject("protocol.images=2", "purifier=langevin", "purifier.noise=0", "purifier.steps=2", images=2)
    assert same_defense._levels(found) == []


@pytest.mark.parametrize(
    ("attack", "more"),
    [
        ("none", ()),
        ("square", ()),
        ("through_mask_soft", ("purifier=hetero", "purifier.steps=2")),
        ("bpda_eot", ("threat_model.grad=surrogate",)),
        ("transfer", ()),
        ("strict", ()),
        ("stadv", ("threat_model=stadv",)),
        ("low_frequency", ("threat_model=low_frequency",)),
        ("pgd_eot", ("protocol.known_draws=true",)),
    ],
)
def test_no_kind_of_run_fails(attack, more):
    """Also where a check has nothing to say: no attack, no gradient, no ball, declared approximations."""
    found = subject(f"attack={attack}", *more, *small_budget(attack))
    for check in (*returned_images.CHECKS, *randomness.CHECKS, *same_defense.CHECKS):
        finding = check(found)
        assert finding.verdict != "FAIL", finding


def test_declared_surrogate_of_another_step_count_passes():
    found = subject("threat_model.grad=surrogate", *small_budget("pgd_eot"))
    assert same_defense.same_defense(found).verdict == "PASS"
    silent = saying(found, gradients=EXACT, differences=())
    finding = same_defense.same_defense(silent)
    assert finding.verdict == "FAIL"
    assert "steps=3 instead of 2" in finding.value


def test_state_outside_the_ball(sound):
    """The harness projects it, so only the attack's own state shows it."""
    finding = returned_images.returned(planted(sound, attack=Fixed(0.3)))
    assert finding.verdict == "FAIL"
    assert f"{IMAGES} states outside the box, {IMAGES} outside the ball" in finding.value
    pulled = float(finding.value.split("moved by the projection by ")[1].split(";")[0])
    assert pulled == pytest.approx(0.3, abs=1e-3)  # white pixels go back to 1, or by .3 less eps


def test_nan_from_an_attack(sound):
    finding = returned_images.returned(planted(sound, attack=Fixed(float("nan"))))
    assert finding.verdict == "FAIL"
    assert "finite" in finding.value


class Forgetful(Defended):
    """Draws its noise from a generator of its own."""

    def purify(self, x, rng, *, on_step=None):
        return super().purify(x + 0.1 * torch.rand_like(x), rng, on_step=on_step)


class Secret(Defended):
    """Uses the same noise always, whatever streams it is given."""

    def purify(self, x, rng, *, on_step=None):
        rng.randn_like(x)
        return super().purify(x, Streams([0] * len(x), 0, "secret"), on_step=on_step)


@pytest.mark.parametrize(
    ("kind", "words"),
    [(Forgetful, "the same key gives other bits"), (Secret, "another key gives the same noise")],
)
def test_noise_that_is_not_the_streams(sound, kind, words):
    faulty = copied(kind, sound.arm.scored)
    finding = randomness.randomness(planted(sound, both=faulty))
    assert finding.verdict == "FAIL"
    assert words in finding.value


def test_purifier_that_normalizes(sound):
    """The classifier gets values outside [0, 1]."""
    scored = sound.arm.scored

    def purify(x, denoiser, classifier, rng, *, on_step=None):
        return (scored.purifier(x, denoiser, classifier, rng, on_step=on_step) - 0.2) / 0.4

    finding = randomness.decisions(planted(sound, both=copied(Defended, scored, purifier=purify)))
    assert finding.verdict == "FAIL"
    assert "not [0, 1]" in finding.value


@pytest.mark.parametrize(
    ("times", "words"),
    [
        ((0.2, 0.19), "the surrogate ends at sigma"),  # the right start, but an end that is too high
        ((0.4, 0.2, 0.1), "the surrogate starts at sigma"),
        ((0.2, 0.15, 0.1, 0.05), ""),
        ((0.2,), ""),
    ],
)
def test_noise_levels_of_a_declared_surrogate(sound, times, words):
    purify = functools.partial(sound.arm.scored.purifier, t=times[0], steps=times)
    found = planted(sound, (("surrogate",),), attacked=copied(Defended, sound.arm.scored, purifier=purify))
    declared = differences(found.arm.attacked, found.arm.scored)
    finding = same_defense.same_defense(saying(found, differences=declared))
    assert finding.verdict == ("FAIL" if words else "PASS")
    assert words in finding.value


@pytest.mark.parametrize(
    ("rounds", "words"),
    [
        ("[[30,1],[50,1],[125,5]]", ""),  # Lee and Kim's own, which has fewer rounds and steps
        ("[[30,1],[125,1]]", ""),
        ("[[30,1],[50,1],[80,5]]", "the surrogate ends at sigma"),  # never as deep
        ("[[30,1],[50,1],[200,5]]", "the surrogate reaches sigma"),
        ("[[50,1],[125,5]]", "the surrogate starts at sigma"),
    ],
)
def test_noise_levels_of_a_surrogate_of_fewer_rounds(rounds, words):
    given = ("purifier=lee_kim", "purifier.rounds=[[30,30],[50,50],[125,125],[125,125]]", "threat_model.grad=surrogate")
    surrogate = f"purifier.gradients.surrogate.rounds={rounds}"
    found = composed_subject("protocol.images=1", "protocol.votes=1", *given, surrogate, *small_budget("pgd_eot"))
    finding = same_defense.same_defense(found)
    assert finding.verdict == ("FAIL" if words else "PASS"), finding
    assert words in finding.value


def test_a_surrogate_that_keeps_both_noise_times_passes():
    """hetero's own on digits has two of three steps above t_s, the scored purifier two of five."""
    given = ("protocol.images=1", "protocol.votes=1", "threat_model.grad=surrogate", *small_budget("pgd_eot"))
    assert same_defense.same_defense(composed_subject(*given)).verdict == "PASS"
    other = composed_subject(*given, "+purifier.gradients.surrogate.t_l=0.3")
    assert "wrong schedule" in same_defense.same_defense(other).value


@pytest.mark.parametrize("grad", ["blind", "bpda"])
def test_another_gradient_mode_that_is_not_declared(sound, grad):
    attacked = sound.arm.scored.gradient_mode(grad)
    finding = same_defense.same_defense(planted(sound, attacked=attacked))
    assert finding.verdict == "FAIL"
    assert f"not declared: the gradient is {grad}'s" in finding.value
    assert same_defense.same_defense(planted(sound, ((grad,),), attacked=attacked)).verdict == "PASS"


class Inverted(Classifier):
    """Takes every class for the next one."""

    def forward(self, x):
        return super().forward(x).roll(1, dims=1)


def test_clean_images_that_the_attacked_defense_decides_otherwise(sound):
    """A failure where nothing declares it, a warning where an approximation is declared."""
    inverted = Inverted(sound.arm.scored.classifier.net, sound.arm.scored.classifier.taps)
    attacked = copied(Defended, sound.arm.scored, classifier=inverted)
    for claims, status in ((EXACT, "FAIL"), ((("blind",),), "WARN")):
        finding = randomness.decisions(planted(sound, claims, attacked=attacked))
        assert finding.verdict == status
        assert "differ on clean images" in finding.value


def test_another_network_is_attacked(sound):
    other = copy.deepcopy(sound.arm.scored.denoiser)
    with torch.no_grad():
        next(other.parameters()).mul_(1.1)
    attacked = copied(Defended, sound.arm.scored)
    attacked.denoiser = other
    finding = same_defense.same_defense(planted(sound, attacked=attacked))
    assert finding.verdict == "FAIL"
    assert "another denoiser" in finding.value


class Wobbly(Defended):
    """Its logits differ in every call, whatever the noise."""

    def logits(self, x, rng, samples):
        return super().logits(x, rng, samples) + torch.rand(1)


def test_file_that_scores_otherwise(sound):
    wobbly = planted(sound, scored=copied(Wobbly, sound.arm.scored))
    finding = returned_images.rescored(wobbly)
    assert finding.verdict == "FAIL"
    assert "own samples differ" in finding.value
