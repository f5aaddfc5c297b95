"""The remedies of the study: what they do to the noise, and that none of them costs more than the plain attack."""

import noisy_gradients
import pytest
import torch
from noisy_gradients import BASES, EOT, ITERATIONS, REMEDIES, Antithetic, Mirror, Remembered, attacked

from dp.attacks.pgd_eot import PGD
from dp.classifiers import Classifier
from dp.defense.defended import Defended
from dp.rng import Streams
from dp.subset import Subset
from dp.threat_models.ball import ThreatModel


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
    for rng in streams:
        _, grad = model.loss_gradient(x, y, rng, 1)
        unit = grad / grad.abs().mean(dim=(1, 2, 3), keepdim=True)
        expected = 0.5 * expected + 2 * unit
        torch.testing.assert_close(seen.loss_gradient(x, y, rng, 1)[1], expected)


@pytest.mark.parametrize("momentum", [noisy_gradients.MEMORY, noisy_gradients.DECAY])
def test_remembered_gradients_are_the_momentum_of_pgd(momentum):
    """The variant that was measured has the bits of the option of PGD, as a sign step has no size."""
    model, threat = Defended(noisy, None, Classifier(Sum())), ThreatModel("linf", 0.2)
    x, y, weight = 0.3 + 0.4 * torch.rand(4, 1, 3, 3), torch.zeros(4, dtype=torch.long), 1 - momentum or 1.0
    made = []
    for attack, asked in ((PGD(5, 2, momentum=momentum), model), (PGD(5, 2), Remembered(model, momentum, weight))):
        rng = Streams(range(4), 0, "attack")
        state = attack.start(asked, x, y, threat, rng.draw(0))
        for i in range(5):
            state = attack.step(asked, state, x, y, threat, rng.draw(1 + i))
        made.append(state.x_adv)
    torch.testing.assert_close(made[0], made[1])


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("name", REMEDIES)
def test_every_remedy_asks_for_as_many_gradients_as_the_plain_attack(name, base):
    """Counted in the purifier, which the transfer attack never calls. APGD evaluates its start too, with as many
    samples as any point, so that its counts differ by that.
    """
    asked = [0]

    def counted(x, denoiser, classifier, rng, *, on_step=None):
        asked[0] += len(x) if x.requires_grad else 0
        return noisy(x, denoiser, classifier, rng)

    model, y = Defended(counted, None, Classifier(Sum())), torch.zeros(2, dtype=torch.long)
    images = Subset(torch.arange(2), torch.rand(2, 1, 2, 2), y)
    attacked(base, REMEDIES[name], model, images, ThreatModel("linf", 0.1), Streams(range(2), 0, "attack"))
    per_image = asked[0] / 2
    assert per_image == ITERATIONS * EOT if base == "PGD" else 0 <= per_image - ITERATIONS * EOT <= 32
