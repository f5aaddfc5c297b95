"""Dead pixels, radius, outputs, batch, memory, compression: measured numbers are known, and what is sound passes."""

import dataclasses

import faults
import pytest
import torch

from dp.attacks.apgd import APGD
from dp.attacks.null import Null
from dp.attacks.pgd_eot import PGD
from dp.attacks.square import Square
from dp.attacks.union import Union
from dp.audit import batch, budgets, compression, dead_pixels, memory, outputs, radius
from dp.audit.check import Subject
from dp.audit.reruns import percent
from dp.purifiers.module import PurifierModule
from dp.threat_models.ball import ThreatModel
from tests.helpers.audited import Linear, composed_subject, made, planted, saying, weights
from tests.helpers.compose import small_budget


def noisy(x, denoiser, classifier, rng, *, on_step=None):
    """A smooth purifier with noise."""
    return (x + 0.02 * rng.randn_like(x)).clamp(0, 1)


class Biased(Linear):
    """The linear classifier, right on all images by a margin that small steps do not cross."""

    def forward(self, x):
        return super().forward(x) + torch.tensor([20.0, 0.0, 0.0])


def sound(purify=noisy, attack=None, **given) -> Subject:
    return made(Biased(weights()), purify, attack, **given)


@pytest.mark.parametrize("check", [*dead_pixels.CHECKS, *radius.CHECKS, *batch.CHECKS, *memory.CHECKS])
def test_a_smooth_noisy_purifier_passes(check):
    finding = check(sound())
    assert finding.verdict == "PASS", finding


def test_the_share_of_dead_pixels_is_known():
    """A clamp at both sides of uniform pixels leaves 60 % of them without a gradient, one at the box nearly none."""

    def clamped(low, high):
        def purify(x, *given, on_step=None):
            return x.clamp(low, high)

        subject = sound(purify, threat=ThreatModel("linf", 1e-6))
        x = 0.1 + 0.8 * torch.rand(subject.images.x.shape, generator=torch.Generator().manual_seed(2))
        return dataclasses.replace(subject, images=subject.images._replace(x=x))

    wide, narrow = (dead_pixels.dead_pixels(clamped(*bounds)) for bounds in ((0.0, 1.0), (0.34, 0.66)))
    assert (wide.verdict, narrow.verdict) == ("PASS", "FAIL")
    assert "clamp (test_audit_independence.py:" in narrow.value
    share = float(narrow.value.split("gradient at ")[1].split(" %")[0]) / 100
    assert share == pytest.approx(1 - 0.32 / 0.8, abs=0.05)


def test_a_number_for_each_image_is_no_layer_that_stops_pixels():
    """Such as a step size at its bound. The images' channel is one, so that its shape is that of a small image."""

    def stepped(x, *given, on_step=None):
        size = (9 * x.mean(dim=(1, 2, 3), keepdim=True)).clamp(0.01, 0.1)
        return x + size * (0.5 - x)

    subject = sound(stepped)
    gray = dataclasses.replace(subject, images=subject.images._replace(x=0.5 + 0.1 * (subject.images.x - 0.5)))
    found = dead_pixels.dead_pixels(gray)
    assert found.verdict == "PASS", found


@pytest.mark.parametrize("keep", [0.4, 0.1])
def test_a_mask_counts_by_what_no_sample_lets_through(keep):
    """A mask that is drawn anew spares every pixel in some sample. One that is fixed spares the same few in all."""

    def drawn(x, denoiser, classifier, rng, *, on_step=None):
        return x * (rng.uniform_like(x) < keep)

    def fixed(x, denoiser, classifier, rng, *, on_step=None):
        mask = torch.rand(x.shape[1:], generator=torch.Generator().manual_seed(0)) < keep
        return x * mask + 0.01 * rng.randn_like(x)

    assert dead_pixels.dead_pixels(sound(drawn)).verdict == "PASS"
    found = dead_pixels.dead_pixels(sound(fixed))
    assert found.verdict == "FAIL"
    assert "the purification stops the gradient" in found.value


@pytest.mark.parametrize(("bound", "status"), [(0.0, "PASS"), (0.15, "PASS"), (100.0, "FAIL")])
def test_a_threshold_of_coefficients_counts_by_the_gradient_of_the_image(bound, status):
    """The largest bound pulls every coefficient to zero, so that no pixel has a gradient."""

    def purify(x, denoiser, classifier, rng, *, on_step=None):
        return 0.5 + faults.transformed(x - 0.5, rng, bound)

    assert dead_pixels.dead_pixels(sound(purify)).verdict == status


def test_a_spectrum_is_no_image():
    """The amplitudes of a Fourier transform are real, but what they are taken of is complex."""

    def purify(x, denoiser, classifier, rng, *, on_step=None):
        spectrum = torch.fft.fft2(x)
        return torch.fft.ifft2(torch.polar(spectrum.abs(), spectrum.angle())).real

    assert dead_pixels.dead_pixels(sound(purify)).verdict == "PASS"


@pytest.mark.parametrize(("dropout", "status"), [(0.0, "PASS"), (0.5, "FAIL")])
def test_attention_is_random_only_with_dropout(dropout, status):
    def purify(x, denoiser, classifier, rng, *, on_step=None):
        return torch.nn.functional.scaled_dot_product_attention(x, x, x, dropout_p=dropout)

    finding = memory.memory(sound(purify))
    assert finding.verdict == status
    assert ("torch's own generator" in finding.value) == (dropout > 0)


CODES = torch.rand(64, 16, generator=torch.Generator().manual_seed(5))


def nearest_code(x, *given, on_step=None):
    """Every patch becomes the nearest of 64 codes."""
    patches = torch.nn.functional.unfold(x, 4, stride=4).transpose(1, 2)
    chosen = CODES[torch.cdist(patches, CODES.expand(len(x), -1, -1)).argmin(dim=2)]
    return torch.nn.functional.fold(chosen.transpose(1, 2), x.shape[2:], 4, stride=4)


def test_discrete_outputs_are_no_stored_answers_but_a_constant_is():
    for purify in (lambda x, *given, on_step=None: (2 * (x - 0.4)).round() / 2, nearest_code):
        assert memory.memory(sound(purify)).verdict == "PASS"
    for constant in (lambda x, *given, on_step=None: 0 * x + 1, lambda x, *given, on_step=None: 0 * x + 0.3):
        finding = memory.memory(sound(constant))
        assert finding.verdict == "FAIL"
        assert "keeps earlier answers" in finding.value
        declared = memory.memory(saying(sound(constant), exceptions=("gradient",)))
        assert "keeps earlier answers" not in declared.value


def test_levels_that_flip_are_no_noise_from_the_content_but_a_hash_is():
    """A tenth of the pixels lie at a threshold of the levels, so that the smallest change flips half of them."""
    subject = sound(lambda x, *given, on_step=None: (16 * x).round() / 16, threat=ThreatModel("linf", 1e-9))
    x = ((16 * subject.images.x).floor() + 0.2) / 16
    place = torch.rand(x.shape, generator=torch.Generator().manual_seed(1))
    x = torch.where(place < 0.1, ((16 * x).floor() + 0.5) / 16, x).clamp(0, 1)
    at_thresholds = dataclasses.replace(subject, images=subject.images._replace(x=x))
    assert memory.memory(at_thresholds).verdict == "PASS"

    def hashed(x, *given, on_step=None):
        return x + 0.02 * torch.sin(1e7 * x.double().sum(dim=(1, 2, 3), keepdim=True) + 1e3 * x.double()).to(x)

    def half(x, *given, on_step=None):
        levels = (16 * x).round() / 16
        return torch.where(torch.arange(x.shape[3]) % 2 == 0, hashed(x), levels)

    for purify in (hashed, half):
        assert "the noise is made from the image's content" in memory.memory(sound(purify)).value


def test_a_purifier_that_goes_by_the_batch_size_is_found():
    """Neither another order nor another batch mate shows it."""
    finding = batch.batch(sound(lambda x, *given, on_step=None: x * (0.6 + 0.05 * (len(x) % 8))))
    assert finding.verdict == "FAIL"
    assert finding.value.startswith("the defense: another batch size changes 3 images of 3")


def test_an_attack_that_has_converged_may_rest():
    """PGD on a linear model reaches the corner of the ball in its first steps, and stays there by right."""
    for norm, eps in (("linf", 0.1), ("l2", 1.0)):
        threat = ThreatModel(norm, eps)
        finding = radius.radius(made(Linear(weights()), attack=PGD(40, 1, step_size=eps), threat=threat))
        assert finding.verdict == "PASS", finding


@pytest.mark.parametrize("attack", [APGD(12, 1), Square(30, 1), Null(4, 1), PGD(10, 1, random_start=False)])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_sound_attacks_use_their_radius(attack, norm):
    finding = radius.radius(sound(attack=attack, threat=ThreatModel(norm, 0.1 if norm == "linf" else 1.0)))
    assert finding.verdict == "PASS", finding


def test_short_steps_are_a_doubt_and_no_fault():
    finding = radius.radius(sound(attack=PGD(4, 1, step_size=0.01, random_start=False)))
    assert finding.verdict == "WARN"
    assert f"only {percent(0.4)} of eps are used: its steps together are too short" in finding.value


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_random_start_does_not_stand_for_steps(norm):
    """As many of these steps as the quick audit follows, from a start that fills the radius."""
    stuck = faults.Stuck(100, 1, select="last")
    finding = radius.radius(sound(attack=stuck, threat=ThreatModel(norm, 0.1 if norm == "linf" else 1.0)))
    assert finding.verdict == "FAIL"
    assert "its start fills the radius, not its steps" in finding.value


def test_the_quick_audit_follows_a_hundred_steps_of_all_parts_together(monkeypatch):
    """An attack of 20 parts keeps five iterations of each, and so takes as many in this case."""
    asked = []
    monkeypatch.setattr(radius, "_followed", lambda subject, attack, images: asked.append(attack) or followed)
    followed = radius._Path(*(torch.ones(2) for _ in range(3)))._replace(rests=torch.zeros(3, 2, dtype=torch.bool))
    for parts in (1, 3, 20):
        radius.radius(sound(attack=Union({str(k): PGD(80, 7, restarts=2) for k in range(parts)})))
    assert [attack.steps for attack in asked] == [80, 99, 100]
    assert {attack.samples for attack in asked} == {1}


def test_a_threat_model_that_is_no_ball_has_no_radius_to_reach():
    given = ("purifier=none", "protocol.images=4", "attack=stadv", "threat_model=stadv", *small_budget("stadv"))
    assert radius.radius(composed_subject(*given)).threshold == "moves to its end"


def test_noise_in_a_part_of_the_ball_is_compared_with_noise_in_that_part():
    """A threat model that lets a window change has shorter noise. A quarter of it is too little all the same."""
    given = ("purifier=none", "protocol.images=4", *small_budget("pgd_eot"))
    for quick in (True, False):
        subject = faults.window(composed_subject(*given, quick=quick))
        assert "smaller radius" not in budgets.null(subject).value
        assert "smaller radius" in budgets.null(faults.small_null(subject)).value


@pytest.mark.parametrize("norm", ["linf", "l2", "stadv", "low_frequency"])
def test_noise_of_the_threat_model_has_its_size(norm):
    attack = norm if norm not in ("linf", "l2") else "pgd_eot"
    given = ("purifier=none", "protocol.images=4", f"attack={attack}", f"threat_model={norm}", *small_budget(attack))
    for quick in (True, False):
        assert "smaller radius" not in budgets.null(composed_subject(*given, quick=quick)).value


class Outputs(torch.nn.Module):
    """Logits of K classes with widths of 4 to 8, through a function."""

    def __init__(self, classes: int, change):
        super().__init__()
        self.w = torch.nn.Parameter(torch.randn(classes - 1, 256, generator=torch.Generator().manual_seed(3)))
        self.change = change

    def forward(self, x):
        score = (x - 0.5).flatten(1) @ self.w.T
        return self.change(torch.cat([score.abs().amax(1, keepdim=True) + 4, score], dim=1))


@pytest.mark.parametrize("classes", [3, 10])
@pytest.mark.parametrize(
    ("change", "status"),
    [
        (lambda z: z, "PASS"),
        (lambda z: z.log_softmax(dim=1), "PASS"),
        (lambda z: z - z.mean(dim=1, keepdim=True), "PASS"),
        (lambda z: 3 * z.softmax(dim=1) - 1, "FAIL"),
        (lambda z: 8 * z.softmax(dim=1), "FAIL"),
        (lambda z: 10 * (z / 4).clamp(-1, 1), "FAIL"),
        (lambda z: z / 100, "FAIL"),
        (lambda z: 30 * z, "FAIL"),
    ],
)
def test_outputs_of_few_and_many_classes(classes, change, status):
    finding = outputs.outputs(made(Outputs(classes, change), noisy, images=8))
    assert finding.verdict == status, finding


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_the_compression_rate_of_a_scaled_image_is_its_scale(share):
    found = compression.compression(sound(lambda x, *given, on_step=None: share * x))
    assert found.verdict == "INFO"
    assert found.curve["rate"] == pytest.approx([share, share], rel=1e-4)
    assert "does not apply" in compression.compression(made(Linear(weights()))).value


class Stores(PurifierModule):
    """A module that keeps the first images that it sees, and mixes a little of them into near ones."""

    def __init__(self):
        super().__init__()
        self.kept = []

    def forward(self, x, denoiser, classifier, rng, *, on_step=None):
        near = [old for old in self.kept if old.shape == x.shape and float((old - x.detach()).abs().max()) < 0.01]
        self.kept.append(x.detach())
        return noisy(x if not near else 0.5 * x + 0.5 * near[0], denoiser, classifier, rng)


def test_memory_of_a_nearby_image_is_found():
    """The same question has the same answer, so that only a copy that has not seen the image shows it."""
    finding = memory.memory(sound(Stores()))
    assert finding.verdict == "FAIL"
    assert "after a nearby image: the defense keeps memory between calls" in finding.value


def test_a_batch_of_one_image_is_nothing_to_compare():
    assert batch.batch(sound(images=1)).verdict == "INFO"


def test_other_conditions_do_not_hide_a_fault_of_the_attacked_defense():
    """Here only the attacked defense has memory."""
    subject = sound()
    remembering = sound(Stores()).arm.scored
    finding = memory.memory(planted(subject, attacked=remembering))
    assert finding.verdict == "FAIL"
    assert finding.value.startswith("attacked: ")
