"""The remedies of the study: what they do to the noise, and that none of them costs more than the plain attack."""

import noisy_gradients
import pytest
import torch
from noisy_gradients import BASES, EOT, ITERATIONS, REMEDIES, Antithetic, Mirror, Remembered

from dp.classifiers import Classifier
from dp.defense.defended import Defended
from dp.rng import Streams


class Sum(torch.nn.Module):
    """Two classes, logit difference the sum of the squared pixels."""

    def forward(self, x):
        margin = x.square().flatten(1).sum(1)
        return torch.stack([margin, -margin], dim=1)


def noisy(x, denoiser, classifier, rng, *, on_step=None):
    return x + 0.1 * rng.randn_like(x)


def test_mirrored_streams_turn_the_sign_of_normal_numbers_alone():
    z = torch.zeros(3, 1, 2, 2)

    def streams() -> Streams:
        return Streams(range(3), 0, "attack")

    assert torch.equal(Mirror(streams()).randn_like(z), -streams().randn_like(z))
    assert torch.equal(Mirror(streams()).draw(5).randn_like(z), -streams().draw(5).randn_like(z))
    assert torch.equal(Mirror(streams()).select([2, 0]).randn_like(z[:2]), -streams().select([2, 0]).randn_like(z[:2]))
    assert torch.equal(Mirror(streams()).uniform_like(z), streams().uniform_like(z))


def test_antithetic_pairs_cancel_the_noise_of_a_linear_gradient():
    """The gradient of a quadratic is linear in the noise, so a pair has that of the image without noise."""
    model = Defended(noisy, None, Classifier(Sum()))
    x, y = torch.rand(3, 1, 2, 2), torch.zeros(3, dtype=torch.long)

    def loss(logits, y):
        return logits[:, 1]

    _, grad = Antithetic(model).loss_gradient(x, y, Streams(range(3), 0, "attack"), 2, loss)
    torch.testing.assert_close(grad, -2 * x)
    _, plain = model.loss_gradient(x, y, Streams(range(3), 0, "attack"), 2, loss)
    assert not torch.allclose(plain, -2 * x, atol=1e-3)


def test_remembered_gradients_are_the_recursion():
    model = Defended(noisy, None, Classifier(Sum()))
    x, y, seen = torch.rand(2, 1, 2, 2), torch.zeros(2, dtype=torch.long), Remembered(model, 0.5, 2.0)
    streams = [Streams(range(2), 0, "attack").draw(k) for k in range(3)]
    expected = torch.zeros_like(x)
    for k, rng in enumerate(streams):
        _, grad = model.loss_gradient(x, y, rng, 1)
        unit = grad / grad.abs().mean(dim=(1, 2, 3), keepdim=True)
        expected = unit if k == 0 else 0.5 * expected + 2 * unit
        torch.testing.assert_close(seen.loss_gradient(x, y, rng, 1)[1], expected)


@pytest.mark.parametrize("name", REMEDIES)
def test_no_remedy_asks_for_more_gradients_than_the_plain_attack(name):
    """Samples of gradients at all iterations; the start that APGD evaluates too is one more."""
    remedy = REMEDIES[name]
    asked = remedy.iterations * remedy.eot
    if remedy.late:
        asked = 3 * ITERATIONS // 4 * (EOT // 2) + ITERATIONS // 4 * (5 * EOT // 2)
    assert asked == ITERATIONS * EOT
    assert all(base(remedy.iterations, remedy.eot).samples == remedy.eot for base in BASES.values())
    assert noisy_gradients.BLIND < 0.1 * ITERATIONS * EOT  # gradients of the classifier alone
