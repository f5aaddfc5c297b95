"""The diffusion classifier: Bayes' rule with an exact denoiser, its noise, its gradient, and its cost in a run."""

import functools
import math

import pytest
import torch
from torch import nn

from dp.classifiers import RandomizedClassifier
from dp.contracts import derivative, networks
from dp.datasets import digits
from dp.defense.defended import Defended
from dp.defense.diffusion_classifier import DiffusionClassifier, likelihood, training_loss
from dp.diffusion.denoisers import EDM, Denoiser
from dp.evaluation.dry import dry_run
from dp.evaluation.work import costs
from dp.objectives import cross_entropy
from dp.purifiers import none
from dp.rng import Streams
from dp.runs.build import build
from tests.helpers.compose import composed

RDC = ("classifier=rdc", "purifier=none", "protocol.images=4")


class Classes(Denoiser):
    """The exact posterior mean where x0 of class c is Gaussian, N(means[c], stds[c]^2) per pixel."""

    def __init__(self):
        super().__init__(nn.Identity())
        self.classes = 3
        generator = torch.Generator().manual_seed(5)
        self.means = 0.5 * torch.randn(3, 1, 2, 2, generator=generator, dtype=torch.float64)
        self.stds = torch.tensor([0.3, 0.45, 0.7], dtype=torch.float64)
        self.asked = []

    def denoise(self, z, sigma, label=None):
        assert label is not None
        self.asked.append((sigma, int(label[0]), z.detach()))
        mean, std = self.means[label].to(z), self.stds[label].view(-1, 1, 1, 1).to(z)
        return mean + std**2 / (std**2 + sigma**2) * (z - mean)

    def log_density(self, x0):
        """ln p(x0 | c), (B,3), of x0 (B,1,2,2)."""
        square = ((x0[:, None] - self.means) ** 2).sum(dim=(2, 3, 4)) / self.stds**2
        return -square / 2 - 4 * self.stds.log() - 2 * math.log(2 * math.pi)

    def expected(self, x0, sigma):
        """E|D(x0 + sigma n, c) - x0|^2 over n, (B,3)."""
        gain = self.stds**2 / (self.stds**2 + sigma**2)
        bias = (1 - gain) ** 2 * ((x0[:, None] - self.means) ** 2).sum(dim=(2, 3, 4))
        return bias + 4 * gain**2 * sigma**2


def exact(data: Classes, levels: int = 100, **changes) -> DiffusionClassifier:
    given = {"sigma_min": 1e-3, "sigma_max": 1e3, "spacing": "log", "weight": likelihood, **changes}
    return DiffusionClassifier(data, levels=levels, **given)


def points():
    """(5,1,2,2) in [0,1]."""
    return torch.rand(5, 1, 2, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def test_with_an_exact_denoiser_the_limit_is_bayes_rule():
    """The expected logits are the log-densities up to a constant of the image, and what lacks falls with the levels."""
    x0, data, lacks = 2 * points() - 1, Classes(), []
    density = data.log_density(x0)
    for levels in (200, 2000):
        model = exact(data, levels)
        total = sum(w * data.expected(x0, s) for s, w in zip(model.sigmas, model.weights, strict=True))
        lack = -total - density
        lacks.append(lack - lack[:, :1])
    assert (density[:, 0] - density[:, 1]).abs().max() > 2
    assert lacks[1].abs().max() < 0.05
    assert ((10 * lacks[1] - lacks[0]) / 9).abs().max() < 2e-3  # a sum over lower ends is off by its first order alone


def test_samples_have_the_expected_logits():
    """The mean of many samples against the closed form, in standard errors."""
    data, x, count = Classes(), points()[:2], 4000
    model = exact(data, 40, sigma_min=0.05, sigma_max=20.0)
    logits = model(x.repeat(count, 1, 1, 1), Streams(range(2 * count), 0, "a")).unflatten(0, (count, 2))
    expected = -sum(w * data.expected(2 * x - 1, s) for s, w in zip(model.sigmas, model.weights, strict=True))
    off = (logits.mean(0) - expected) / (logits.std(0) / math.sqrt(count))
    assert off.abs().max() < 4
    assert logits.std(0).min() > 0
    spread = (logits - logits[..., :1]).std(0)[:, 1:]  # one noise for all classes: differences spread less
    assert (spread < (logits.var(0)[:, 1:] + logits.var(0)[:, :1]).sqrt()).all()


def test_the_classes_share_the_noise_of_a_level_and_images_do_not():
    data = Classes()
    model, asked = exact(data, 5), data.asked
    model(points(), Streams(range(5), 0, "a"))
    assert [(s, c) for s, c, _ in asked] == [(s, c) for s in model.sigmas for c in range(3)]
    noise = [(z - (2 * points() - 1)) / s for s, _, z in asked]
    for k, n in enumerate(noise):
        torch.testing.assert_close(n, noise[k - k % 3], rtol=0, atol=1e-9)
    levels = torch.stack(noise[::3])  # (levels,B,1,2,2)
    assert len(levels.flatten().round(decimals=6).unique()) == levels.numel()


def test_the_grids():
    linear = exact(Classes(), 4, sigma_min=1.0, sigma_max=9.0, spacing="linear")
    log = exact(Classes(), 3, sigma_min=1.0, sigma_max=8.0)
    assert linear.sigmas == pytest.approx([1, 3, 5, 7])
    assert linear.weights == pytest.approx([2 / s**3 for s in (1, 3, 5, 7)])
    assert log.sigmas == pytest.approx([1, 2, 4])
    assert log.weights == pytest.approx([1.0, 2 / 8, 4 / 64])


def test_the_training_loss_is_the_expectation_of_edms_weight():
    """The integral of the weight against the mean over draws of ln sigma ~ N(-1.2, 1.2^2)."""
    given = {"p_mean": -1.2, "p_std": 1.2, "sigma_data": 0.5}
    sigma = torch.exp(-1.2 + 1.2 * torch.randn(200_000, generator=torch.Generator().manual_seed(0)).double())
    inside = sigma[(sigma > 0.05) & (sigma < 3)]
    drawn = (((inside**2 + 0.25) / (inside * 0.5) ** 2).sum() / len(sigma)).item()
    grid = exact(Classes(), 4000, sigma_min=0.05, sigma_max=3.0, weight=functools.partial(training_loss, **given))
    assert sum(grid.weights) == pytest.approx(drawn, rel=0.02)


def test_the_temperature_divides_and_decides_nothing():
    hot, cold = (exact(Classes(), 6, temperature=t)(points(), Streams(range(5), 0, "a")) for t in (4.0, 1.0))
    torch.testing.assert_close(4 * hot, cold)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"levels": 0}, "levels=0"),
        ({"sigma_min": 3.0, "sigma_max": 2.0}, "sigma_min=3.0, sigma_max=2.0"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"spacing": "cubic"}, "need spacing linear or log, got spacing='cubic'"),
    ],
)
def test_wrong_values_are_one_line(changes, says):
    with pytest.raises(ValueError, match=says):
        exact(Classes(), **changes)
    with pytest.raises(ValueError, match="need a denoiser with classes for a diffusion classifier"):
        DiffusionClassifier(EDM(nn.Identity()), sigma_min=0.1, sigma_max=1.0, levels=2, weight=likelihood)


@pytest.fixture(scope="module")
def evaluation():
    return build(composed(*RDC))


def test_contract(evaluation):
    assert networks.of_classifier(evaluation.arms["defended"].scored.classifier, *evaluation.subset[1:]) == []


def test_the_contract_finds_noise_that_is_not_from_the_streams():
    class Loose(RandomizedClassifier):
        evaluations = 1  # of the network

        def sample(self, x, rng):
            return self.net(x + torch.randn_like(x))

    found = networks.of_classifier(Loose(nn.Sequential(nn.Flatten(), nn.Linear(64, 3))), torch.rand(4, 1, 8, 8), None)
    assert [failure.name for failure in found] == ["determinism"]


def test_the_gradient_equals_central_differences_and_needs_no_mode():
    model = build(composed(*RDC)).arms["defended"].scored.double()
    subset = digits(2)
    noise = torch.rand(2, 1, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = (subset.x.double() + 0.05 * noise).clamp(0.01, 0.99)
    assert derivative.failures(model, x, subset.y, subset.ids) == []


def gradient(model, subset, samples):
    return model.loss_gradient(subset.x, subset.y, Streams(subset.ids, 0, "a"), samples)


def test_recompute_equals_store_bit_for_bit(evaluation):
    model, results = evaluation.arms["defended"].scored, []
    before = model.classifier.denoiser.memory
    for memory in ("store", "recompute"):
        model.classifier.denoiser.memory = memory
        results.append(gradient(model, evaluation.subset, 1))
    model.classifier.denoiser.memory = before
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert results[0][1].abs().amax((1, 2, 3)).min() > 0


def test_an_image_stands_alone(evaluation):
    model, subset = evaluation.arms["defended"].scored, evaluation.subset
    strange = subset._replace(x=torch.cat([subset.x[:2], subset.x[2:].flip(3) * 0.5]))
    for answer in (gradient, lambda m, s, k: (m.logits(s.x, Streams(s.ids, 0, "a"), k).transpose(0, 1),) * 2):
        for mine, beside in zip(answer(model, subset, 2), answer(model, strange, 2), strict=True):
            assert torch.equal(mine[:2], beside[:2])


def test_it_is_asked_like_every_randomized_defense(evaluation):
    """The k-th sample has the noise of draw k, looped or in one call; the mean of the losses is that of the samples."""
    model, subset = evaluation.arms["defended"].scored, evaluation.subset
    rng = Streams(subset.ids, 0, "a")
    logits = model.logits(subset.x, rng, 3)
    assert logits.shape == (3, 4, 10)
    assert not torch.equal(logits[0], logits[1])
    for k in range(3):
        torch.testing.assert_close(logits[k], model(subset.x, rng.draw(k)), rtol=1e-4, atol=1e-4)
    losses, _ = gradient(model, subset, 3)
    expected = torch.stack([cross_entropy(one, subset.y) for one in logits]).mean(0)
    torch.testing.assert_close(losses, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("purifier", "steps"), [("none", 0), ("diffpure", 5)])
def test_network_evaluations_are_classes_times_levels(purifier, steps):
    config = composed("classifier=rdc", f"purifier={purifier}", "denoiser=digits", "protocol.images=4", "memory=store")
    evaluation = build(config)
    model, subset = evaluation.arms["defended"].scored, evaluation.subset.select(slice(0, 2))
    classifier = model.classifier
    assert isinstance(classifier, DiffusionClassifier)
    before = classifier.denoiser.nfe
    model(subset.x, Streams(subset.ids, 0, "a"))
    assert classifier.denoiser.nfe - before == classifier.evaluations == 40
    assert model.nfe == 40 + steps
    assert dry_run(model, subset.select(slice(0, 1))) == (40 + steps, True, 40)
    evaluated = 10 * 4 * (40 + steps)  # of each of ten iterations, four samples, forward; backward is a little more
    assert evaluated * 2 < costs(evaluation)["defended"].attack(10) < evaluated * 2.5
    assert costs(evaluation)["defended"].score == 2 * evaluation.votes * (40 + steps)
    stored = costs(evaluation)["defended"].attack(10)
    classifier.denoiser.memory, classifier.denoiser.recompute.keep = "recompute", 3
    assert costs(evaluation)["defended"].attack(10) - stored == pytest.approx(10 * 4 * 37)  # all but the newest three


def test_a_purifier_with_an_attention_mask_is_refused():
    with pytest.raises(ValueError, match=r"need a classifier with taps for an attention map, got DiffusionClassifier"):
        build(composed("classifier=rdc", "purifier=hetero", "protocol.images=4"))
    with pytest.raises(ValueError, match="need a classifier without noise"):
        build(composed(*RDC)).arms["defended"].scored.classifier(digits(1).x)


def test_the_identity_in_place_of_the_purification_keeps_the_classifiers_derivative(evaluation):
    model, subset = evaluation.arms["defended"].scored, evaluation.subset
    clipped = Defended(lambda x, *_, **__: x.clamp(0.1, 0.9), None, model.classifier)
    bare = Defended(none.purify, None, model.classifier)
    there = clipped.gradient_mode("bpda").loss_gradient(subset.x, subset.y, Streams(subset.ids, 0, "a"), 1)
    at = bare.loss_gradient(subset.x.clamp(0.1, 0.9), subset.y, Streams(subset.ids, 0, "a"), 1)
    torch.testing.assert_close(there[1], at[1])


def test_standard_accuracy_of_one_sample(evaluation):
    """One sample of nearly every clean image is right."""
    subset = digits(64)
    with torch.no_grad():
        logits = evaluation.arms["defended"].scored(subset.x, Streams(subset.ids, 2024, "clean"))
    assert (logits.argmax(1) == subset.y).sum() >= 61
