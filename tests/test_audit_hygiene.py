"""Randomness, decisions, sameness and what came back: sound runs pass, each planted fault is found by its check."""

import copy
import dataclasses
import functools
from typing import Any, NamedTuple

import pytest
import torch
from conftest import composed, small_budget

import run
from dp.attacks.pgd_eot import PGD
from dp.audit import Subject, hygiene, results, sameness
from dp.classifiers import Classifier
from dp.defense import Defended, KnownDraws
from dp.evaluate import Arm
from dp.rng import Streams

IMAGES = 4
BUDGET = (f"protocol.images={IMAGES}", "protocol.votes=3", "purifier=diffpure", "purifier.steps=2")
CHECKS = (*results.CHECKS, *hygiene.CHECKS, *sameness.CHECKS)


def subject(*overrides: str, **changes: Any) -> Subject:
    """What run.py would hand to the audit, `changes` made to its defended arm."""
    config = composed(*BUDGET, *overrides)
    evaluation = run.build(config)
    declared, claims = run.differences_of(config, evaluation), run.gradient_of(config, evaluation)
    arms = {**evaluation.arms, "defended": evaluation.arms["defended"]._replace(**changes)}
    return Subject(dataclasses.replace(evaluation, arms=arms), evaluation.subset, claims, declared)


def planted(sound: Subject, **changes: Any) -> Subject:
    """The same run with other parts in its defended arm, of which nothing is declared."""
    arms = {**sound.evaluation.arms, "defended": sound.arm._replace(**changes)}
    return dataclasses.replace(sound, evaluation=dataclasses.replace(sound.evaluation, arms=arms))


@pytest.fixture(scope="module")
def sound() -> Subject:
    return subject(*small_budget("pgd_eot"))


def test_sound_run_passes(sound):
    findings = [check(sound) for check in CHECKS]
    assert {f.check: f.verdict for f in findings if f.verdict not in ("PASS", "WARN")} == {}
    assert all(f.seconds > 0 for f in findings)


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
def test_no_kind_of_run_is_called_broken(attack, more):
    """Also where a check has nothing to say: no attack, no gradient, no ball, declared approximations."""
    found = subject(f"attack={attack}", *more, *small_budget(attack))
    for check in (*results.CHECKS, *hygiene.CHECKS, *sameness.CHECKS):
        finding = check(found)
        assert finding.verdict != "FAIL", finding


def test_wrong_schedule_in_the_surrogate(sound):
    scored = sound.arm.scored
    wrong = Defended(functools.partial(scored.purifier, t=0.4), scored.denoiser, scored.classifier)
    finding = sameness.same_defence(planted(sound, attacked=wrong))
    assert finding.verdict == "FAIL"
    assert "wrong schedule: the surrogate starts at sigma" in finding.value
    assert "not declared: t=0.4 instead of 0.2" in finding.value


def test_declared_surrogate_of_another_step_count_passes():
    found = subject("threat_model.grad=surrogate", *small_budget("pgd_eot"))
    assert sameness.same_defence(found).verdict == "PASS"
    silent = dataclasses.replace(found, claims="exact", declared=[])
    finding = sameness.same_defence(silent)
    assert finding.verdict == "FAIL"
    assert "steps=3 instead of 2" in finding.value


class State(NamedTuple):
    x_adv: torch.Tensor


@dataclasses.dataclass(frozen=True)
class Fixed:
    """Returns the clean image moved by `by`, whatever the threat model says."""

    by: float
    steps: int = 1
    eot: int = 1
    select: str = "last"

    def says(self, through):
        return "moves"

    def start(self, model, x, y, threat, rng):
        return State(x)

    def step(self, model, state, x, y, threat, rng):
        return State(x + self.by)


def test_clean_images_returned(sound):
    finding = results.returned(planted(sound, attack=Fixed(0.0)))
    assert finding.verdict == "FAIL"
    assert int(finding.value.split(" clean")[0]) >= 3  # those that the defence judges right


def test_state_outside_the_ball(sound):
    """The harness pulls it back, so only the attack's own state tells."""
    finding = results.returned(planted(sound, attack=Fixed(0.3)))
    assert finding.verdict == "FAIL"
    assert "0 outside the ball" in finding.value
    pulled = float(finding.value.split("pulled back by ")[1].split(",")[0])
    assert pulled == pytest.approx(0.3, abs=1e-3)  # white pixels go back to 1, or by .3 less eps


def test_nan_from_an_attack(sound):
    finding = results.returned(planted(sound, attack=Fixed(float("nan"))))
    assert finding.verdict == "FAIL"
    assert "finite" in finding.value


class OneGenerator(Defended):
    """Every copy of an image in one gradient gets the first copy's noise."""

    def _calls(self, rng, draws):
        for ks, streams in super()._calls(rng, draws):
            yield ks, streams.select(list(range(len(rng))) * len(ks))


def copied(kind: type[Defended], model: Defended, **changes: Any) -> Defended:
    twin = kind(model.purifier, model.denoiser, model.classifier, model.draws_per_call, model.others)
    for name, value in changes.items():
        setattr(twin, name, value)
    return twin


def test_one_generator_for_all_eot_copies(sound):
    finding = hygiene.randomness(planted(sound, attacked=copied(OneGenerator, sound.arm.scored)))
    assert finding.verdict == "FAIL"
    assert "the EOT copies of an image share their noise" in finding.value


@dataclasses.dataclass(frozen=True)
class Peeks:
    """Asks the defence with the very draws that will score."""

    attack: PGD
    ids: list[int]
    seed: int
    steps: int = 2
    eot: int = 2
    select: str = "last"

    def says(self, through):
        return "peeks"

    def start(self, model, x, y, threat, rng):
        return self.attack.start(model, x, y, threat, rng)

    def step(self, model, state, x, y, threat, rng):
        known = KnownDraws(model, Streams(self.ids, self.seed, "adv"), 3)
        return self.attack.step(known, state, x, y, threat, rng)  # pyright: ignore[reportArgumentType]


def test_attack_and_scoring_share_draws(sound):
    attack = Peeks(PGD(2, 2), sound.images.ids.tolist(), sound.seed)
    finding = hygiene._shared(planted(sound, attack=attack))
    assert finding == [f"attack and scoring share {3 * IMAGES} of {3 * IMAGES} draws"]
    assert hygiene._shared(sound) == []


class Forgetful(Defended):
    """Draws its noise from a generator of its own."""

    def purify(self, x, rng, *, on_step=None):
        return super().purify(x + 0.1 * torch.rand_like(x), rng, on_step=on_step)


class Secret(Defended):
    """Keeps one noise for good, whatever streams it is given."""

    def purify(self, x, rng, *, on_step=None):
        rng.randn_like(x)
        return super().purify(x, Streams([0] * len(x), 0, "secret"), on_step=on_step)


@pytest.mark.parametrize(
    ("kind", "words"),
    [(Forgetful, "the same key gives other bits"), (Secret, "another key gives the same noise")],
)
def test_noise_that_is_not_the_streams(sound, kind, words):
    faulty = copied(kind, sound.arm.scored)
    faults, _ = hygiene._purification(planted(sound, attacked=faulty, scored=faulty))
    assert words in faults


class Twice(Classifier):
    """Applies the classifier's mean and std once more."""

    def forward(self, x):
        return super().forward((x - 0.2) / 0.4)


def normalised(kind: type[Classifier], classifier: Classifier) -> Classifier:
    return kind(classifier.net, classifier.taps, mean=[0.2], std=[0.4])


def test_mean_and_std_applied_twice(sound):
    for kind, verdict in ((Classifier, []), (Twice, ["FAIL"])):
        model = copied(Defended, sound.arm.scored, classifier=normalised(kind, sound.arm.scored.classifier))
        faults = hygiene._normalised(sound, model)
        assert ["FAIL" for _ in faults] == verdict
    assert "(x - mean) / std" in faults[0]


def test_purifier_that_normalises(sound):
    """The classifier is given what is no image."""
    scored = sound.arm.scored

    def purify(x, denoiser, classifier, rng, *, on_step=None):
        return (scored.purifier(x, denoiser, classifier, rng, on_step=on_step) - 0.2) / 0.4

    faults = hygiene._normalised(sound, copied(Defended, scored, purifier=purify))
    assert len(faults) == 1
    assert "not [0, 1]" in faults[0]


def test_another_network_is_attacked(sound):
    other = copy.deepcopy(sound.arm.scored.denoiser)
    with torch.no_grad():
        next(other.parameters()).mul_(1.1)
    attacked = copied(Defended, sound.arm.scored)
    attacked.denoiser = other
    finding = sameness.same_defence(planted(sound, attacked=attacked))
    assert finding.verdict == "FAIL"
    assert "another denoiser" in finding.value


class Wobbly(Defended):
    """Other logits in every call."""

    def logits(self, x, rng, draws):
        return super().logits(x, rng, draws) + torch.rand(1)


def test_file_that_scores_otherwise(sound):
    wobbly = planted(sound, scored=copied(Wobbly, sound.arm.scored))
    finding = results.rescored(wobbly)
    assert finding.verdict == "FAIL"
    assert "own draws differ" in finding.value
    assert isinstance(wobbly.arm, Arm)
