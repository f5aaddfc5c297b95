"""The audit of attacks that papers used on their own defenses: it names what is wrong with each, and says how much more
the defense's own gradient finds.
"""

import dataclasses
import functools
import re

import pytest
import torch
from torch import nn

from dp.attacks.pgd_eot import PGD
from dp.audit import dead_pixels, gradients, rival_gradients, same_defense
from dp.audit.check import Finding, Subject, some
from dp.audit.randomness import decisions
from dp.defense.defended import Defended
from dp.diffusion.denoisers import Denoiser
from dp.purifiers import diffpure_ldsde
from dp.threat_models.ball import ThreatModel
from tests.helpers.audited import Linear, composed_subject, findings_of, made, planted, weights

derivative, other, same = gradients.derivative, rival_gradients.other_gradients, same_defense.same_defense
GIVEN = {  # of conf/purifier/diffpure_ldsde.yaml on digits: ten steps, each of which keeps .95 of the first state
    **{"t": 0.1, "dt": 0.01, "end": 1e-5, "lam": 0.01, "sigma2": 0.001, "eta": 0.0, "score_t": 0.01},
    **{"beta_min": 0.1, "beta_max": 20.0, "clamp": "none"},
}


def audited(*overrides: str) -> tuple[Subject, dict[str, Finding]]:
    """What is audited on 8 digits, and the findings of two checks on the first two of them."""
    subject = composed_subject(*overrides, "protocol.images=8", "protocol.votes=3")
    return subject, findings_of(dataclasses.replace(subject, images=some(subject.images, 2)), (derivative, same))


def left(finding: Finding, through: str) -> int:
    """Points of accuracy that an attack leaves, as the check of other gradients says."""
    found = re.search(rf"{re.escape(through)} (?:leaves )?(\d+) %", finding.value)
    assert found, finding
    return int(found[1])


@pytest.mark.parametrize("purifier", ["mimic", "diffpure_ldsde", "gdmp", "likelihood"])
def test_the_honest_gradient_has_no_failure(purifier):
    subject, found = audited(f"purifier={purifier}")
    honest = "WARN" if purifier == "mimic" else "PASS"  # a smoothed sign is no derivative, and the yaml says so
    assert found["derivative"].verdict == honest
    assert found["same defense"].verdict == "PASS"
    assert purifier == "mimic" or other(subject).verdict == "INFO"  # it takes the defense's own


def test_mimics_own_gradient_is_zero_and_the_smoothed_sign_finds_more():
    subject, found = audited("purifier=mimic", "threat_model.grad=full")
    assert found["derivative"].verdict == "FAIL"
    assert found["derivative"].value.startswith("zero gradient on 2 images")
    rivals = other(subject)
    assert rivals.verdict != "PASS"
    assert left(rivals, "(exact)") - left(rivals, "soft_sign") >= 25


def test_mimics_authors_attack_another_purifier():
    _, found = audited("purifier=mimic", "threat_model.grad=diffpure")
    assert found["same defense"].verdict == "FAIL"
    words = "another purifier is attacked: dp.purifiers.diffpure.purify instead of dp.purifiers.mimic.purify"
    assert words in found["same defense"].value
    assert found["derivative"].verdict == "WARN"
    assert "the scored defense's own gradient is zero" in found["derivative"].value


@pytest.mark.parametrize(("purifier", "check"), [("freqpure", dead_pixels.dead_pixels), ("contrastive", decisions)])
def test_a_purifier_of_complex_numbers_and_one_that_asks_the_classifier_are_audited(purifier, check):
    assert check(composed_subject(f"purifier={purifier}", "protocol.images=2", "protocol.votes=2")).verdict == "PASS"


class Identity(Denoiser):
    """A denoiser whose score is zero everywhere."""

    def denoise(self, z, sigma, label=None):
        return z


def around_zero_score(solver: str) -> Subject:
    """LDSDE with a score of zero in front of a linear classifier: its derivative is 1."""
    subject = made(Linear(weights()))
    purify = functools.partial(diffpure_ldsde.purify, **GIVEN)
    variants = {"adjoint": {"solver": "adjoint"}}
    scored = Defended(purify, Identity(nn.Identity()), subject.arm.scored.classifier, 4, variants)
    modes = () if solver == "own" else (solver,)
    return planted(subject, (modes,), scored=scored, attacked=scored.gradient_modes(modes))


def test_the_adjoint_of_ldsde_is_599_thousandths_of_the_derivative():
    """.95 to the power of 10 is .599, so that the relative error is .401."""
    found = derivative(around_zero_score("adjoint"))
    assert found.verdict == "FAIL"
    assert "not the derivative of the scored defense: relative error 4.0e-01" in found.value
    assert "adjoint has a cosine of 1.000 with it and 0.599 of its length" in found.value
    assert derivative(around_zero_score("own")).verdict == "PASS"


def test_the_adjoint_of_ldsde_fails_on_digits():
    _, found = audited("purifier=diffpure_ldsde", "threat_model.grad=adjoint")
    assert found["derivative"].verdict == "FAIL"
    assert found["same defense"].verdict == "PASS"


@pytest.mark.parametrize(("factor", "status"), [(1.0, "PASS"), (1.05, "WARN"), (1.2, "FAIL")])
def test_an_adjoint_may_have_a_small_error(factor, status):
    """A relative error of up to .1 may come from the steps of the solver."""

    def purify(x, *_, factor=1.0, **__):
        return x.detach() + factor * (x - x.detach())

    subject = made(Linear(weights()))
    scored = Defended(purify, None, subject.arm.scored.classifier, 4, {"adjoint": {"factor": factor}})
    found = derivative(planted(subject, (("adjoint",),), scored=scored, attacked=scored.gradient_mode("adjoint")))
    assert found.verdict == status


@pytest.mark.parametrize(
    ("purifier", "given", "mode", "cosine"),
    [
        ("gdmp", "attack=bpda_eot", "bpda", (0.3, 0.8)),
        ("likelihood", "threat_model.grad=identity", "identity", (-0.6, 0.0)),
    ],
)
def test_an_identity_is_named_and_the_exact_gradient_finds_more(purifier, given, mode, cosine):
    subject, found = audited(f"purifier={purifier}", given)
    said = re.search(rf"not the derivative .*; {mode} has a cosine of (-?[\d.]+) with it", found["derivative"].value)
    assert said, found["derivative"]
    assert cosine[0] < float(said[1]) < cosine[1]
    rivals = other(subject)
    assert (found["derivative"].verdict, rivals.verdict) == ("WARN", "WARN")
    assert left(rivals, "exact") < left(rivals, f"({mode})")


def test_the_whole_audit_finds_that_a_rough_own_gradient_misleads():
    """The purification adds a fast wave, so that signs of the exact derivative are those of the wave, and the identity
    breaks what the run's attack does not. The quick audit does not try it.
    """

    def purify(x, *_, **__):
        return x + 0.001 * torch.sin(20000 * x)

    threat = ThreatModel("linf", 0.1)
    quick = made(Linear(weights()), purify, PGD(5, 1, select="last"), threat, images=8)
    assert other(quick).verdict == "INFO"
    found = other(dataclasses.replace(quick, quick=False))
    assert found.verdict == "FAIL"
    assert left(found, "bpda") == 0 < left(found, "(exact)")
    undefended = made(Linear(weights()), attack=PGD(5, 1, select="last"), threat=threat, images=8)
    assert other(dataclasses.replace(undefended, quick=False)).verdict == "INFO"
