"""The audit's acceptance test: twelve planted faults, each found by the check that is named for it when the whole audit
runs, and a sound run that fails no check.
"""

import dataclasses
import functools
from typing import Any

import pytest

from dp.attacks.null import Null
from dp.attacks.pgd_eot import PGD
from dp.attacks.wrapper import Wrapped
from dp.audit import battery, randomness, rival_attacks, trajectory
from dp.audit.check import Subject
from dp.classifiers import Classifier
from dp.defense.defended import Defended
from dp.defense.known_noise import KnownNoise
from dp.rng import Streams
from dp.threat_models.ball import ThreatModel
from tests.helpers.audited import EXACT, SMALL, Fixed, Leaky, composed_subject, copied, planted
from tests.helpers.compose import small_budget

IMAGES = 4


@pytest.fixture(scope="module")
def sound() -> Subject:
    return composed_subject(*SMALL, f"protocol.images={IMAGES}", "protocol.votes=3", *small_budget("pgd_eot"))


class Softmax(Classifier):
    def forward(self, x):
        return super().forward(x).softmax(dim=1)


class Twice(Classifier):
    """Applies mean and std once more."""

    def forward(self, x):
        return super().forward((x - 0.2) / 0.4)


class OneGenerator(Defended):
    """All samples of an image in one gradient have the noise of the first."""

    def _calls(self, rng, samples):
        for ks, streams in super()._calls(rng, samples):
            yield ks, streams.select(list(range(len(rng))) * len(ks))


@dataclasses.dataclass(frozen=True)
class Peeks(Wrapped):
    """Queries the defense with the noise that will score."""

    ids: list[int]
    seed: int

    def step(self, model, state, x, y, threat, rng):
        known = KnownNoise(model, Streams(self.ids, self.seed, "adv"), 3)
        return self.attack.step(known, state, x, y, threat, rng)  # pyright: ignore[reportArgumentType]


def detached(sound: Subject) -> Subject:
    model = sound.arm.scored
    return planted(sound, both=copied(Defended, model, purifier=lambda *a, **k: model.purifier(*a, **k).detach()))


def leaky(sound: Subject) -> Subject:
    denoiser = type(sound.arm.scored.denoiser)(Leaky(sound.arm.scored.denoiser.net))  # pyright: ignore
    return planted(sound, both=copied(Defended, sound.arm.scored, denoiser=denoiser))


def wrong_schedule(sound: Subject) -> Subject:
    purify = functools.partial(sound.arm.scored.purifier, t=0.4)
    return planted(sound, (("surrogate",),), attacked=copied(Defended, sound.arm.scored, purifier=purify))


def surrogate_as_full(sound: Subject) -> Subject:
    return planted(sound, EXACT, attacked=sound.arm.scored.gradient_mode("surrogate"))


def classified(sound: Subject, kind: type[Classifier], **given: Any) -> Subject:
    classifier = sound.arm.scored.classifier
    twin = kind(classifier.net, classifier.taps, **given)
    return planted(sound, both=copied(Defended, sound.arm.scored, classifier=twin))


def one_sample(sound: Subject) -> Subject:
    return planted(sound, attack=dataclasses.replace(sound.arm.attack, eot=1))  # pyright: ignore[reportArgumentType]


def sign_step(sound: Subject) -> Subject:
    evaluation = dataclasses.replace(sound.evaluation, threat=ThreatModel("l2", 1.0))
    return planted(dataclasses.replace(sound, evaluation=evaluation), attack=PGD(2, 2, l2_step="sign"))


def peeking(sound: Subject) -> Subject:
    return planted(sound, attack=Peeks(PGD(2, 2), sound.images.ids.tolist(), sound.seed))


FAULTS = {
    "a detached purifier": (detached, "derivative", "FAIL", "no gradient"),
    "noise drawn inside a recomputed region": (leaky, "recompute", "FAIL", "gradient by"),
    "a wrong schedule in the surrogate": (wrong_schedule, "same defense", "FAIL", "the surrogate starts at sigma"),
    "the surrogate's gradient reported as full": (surrogate_as_full, "derivative", "FAIL", "relative error"),
    "softmax in place of logits": (lambda s: classified(s, Softmax), "flags", "FAIL", "probabilities"),
    "clean images returned": (lambda s: planted(s, attack=Fixed(0.0)), "returned images", "FAIL", "4 images clean"),
    "one generator for all EOT copies": (
        lambda s: planted(s, attacked=copied(OneGenerator, s.arm.scored)),
        "randomness",
        "FAIL",
        "the EOT copies of an image share their noise",
    ),
    "EOT of 1 on a noisy purifier": (one_sample, "flags", "WARN", "random output and EOT 1"),
    "an l2 sign step": (sign_step, "step", "WARN", "a sign step"),
    "attack and scoring share samples": (
        peeking,
        "randomness",
        "FAIL",
        f"attack and scoring share {3 * IMAGES} of {3 * IMAGES} samples",
    ),
    "mean and std applied twice": (
        lambda s: classified(s, Twice, mean=[0.2], std=[0.4]),
        "decisions",
        "FAIL",
        "differs from (x - mean) / std",
    ),
    "a null control with fewer samples": (
        lambda s: planted(s, arm="null", attack=Null(2, 1, "last")),
        "null control",
        "FAIL",
        "samples 1 instead of 2",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_by_the_check_named_for_it(fault, sound):
    plant, check, status, words = FAULTS[fault]
    found = {f.check: f for f in battery.audit(plant(sound))}
    assert len(found) == len(battery.checks(quick=True))  # every check ran, also after one that stopped
    assert found[check].verdict == status, found[check]
    assert words in found[check].value


def test_of_a_sound_run_no_check_fails(monkeypatch):
    """With 8 images, so that McNemar's p can be small enough for a failure: its least value is .008."""
    for module, values in (
        (rival_attacks, {"QUERIES": 10, "STEPS": 4, "DIRECTIONS": 4, "BLIND": 5}),
        (trajectory, {"SAMPLES": 3}),
    ):
        for name, value in values.items():
            monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(rival_attacks, "_targets", lambda subject: 3)
    given = (*SMALL, "protocol.images=8", "protocol.votes=3", *small_budget("pgd_eot"))
    found = {f.check: f for f in battery.audit(composed_subject(*given, quick=False))}
    assert len(found) == len(battery.checks(quick=False))
    assert [f for f in found.values() if f.verdict == "FAIL"] == []
    assert {found[name].verdict for name in ("flags", "step", "derivative", "randomness", "same defense")} == {"PASS"}


def test_mean_and_std_applied_once_are_no_fault(sound):
    assert randomness.decisions(classified(sound, Classifier, mean=[0.2], std=[0.4])).verdict != "FAIL"
