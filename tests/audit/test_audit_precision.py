"""The audit of a row whose attacked and scored networks have another precision."""

import pytest
import torch

from dp.audit import battery
from dp.audit.precision import precision
from dp.audit.same_defense import same_defense
from dp.classifiers import Classifier
from dp.defense.defended import Defended
from dp.precision import cast
from dp.purifiers import none
from tests.helpers.audited import Linear, composed_subject, findings_of, made, planted, weights

CHECKED = ("derivative", "recompute", "precision", "decisions", "memory", "same defense", "batch")


def attacked_by(w):
    """A defense in bfloat16 whose gradient goes along w."""
    model = Defended(none.purify, None, Classifier(Linear(w)))
    cast(model.classifier.net, torch.bfloat16)
    return model


def test_without_a_difference_it_does_not_apply():
    assert precision(made(Linear(weights()))).verdict == "INFO"


def test_the_cosine_is_that_of_the_gradients():
    """Rounding keeps the direction of the weights; other weights, as of a faulty cast, have another one."""
    w, u = weights(), weights().flip(3)
    u = u - (u * w).sum() / w.square().sum() * w
    other = w + 2 * u * w.norm() / u.norm()  # with a cosine of 1 / sqrt(5)
    sound, faulty = (precision(planted(made(Linear(w)), attacked=attacked_by(by))) for by in (w, other))
    assert (sound.verdict, faulty.verdict) == ("PASS", "WARN")
    assert sound.value == "cosine 1.000, the same sign at 100 % of the pixels"
    assert float(faulty.value.split()[1].strip(",")) == pytest.approx(5**-0.5, abs=2e-3)


def test_rounded_weights_are_the_same_defense_and_others_are_not():
    rounded, other = attacked_by(weights()), attacked_by(weights() + 0.1)
    found = [same_defense(planted(made(Linear(weights())), attacked=model)) for model in (rounded, other)]
    assert [f.verdict for f in found] == ["PASS", "FAIL"]


def test_a_bfloat16_attack_has_no_failure():
    """The derivative is checked on the scored networks, and nothing takes the two precisions for two defenses."""
    subject = composed_subject("purifier=diffpure", "purifier.steps=2", "protocol.images=2", "dtype=bfloat16")
    assert subject.arm.attacked.precision != subject.arm.scored.precision
    found = findings_of(subject, [check for check in battery.checks(quick=True) if check.name in CHECKED])
    assert not [f for f in found.values() if f.verdict in ("FAIL", "WARN")]
    assert found["derivative"].verdict == found["precision"].verdict == "PASS"
