"""FreqPure against the original code, its exchange of frequencies against polar form, and its two limits."""

import numpy as np
import pytest
import torch

from dp.diffusion.denoisers import VP, Gaussian
from dp.purifiers import diffpure, freqpure
from dp.purifiers.frequency_exchange import exchange_low
from dp.rng import Streams
from tests.helpers.parity import Flat, Recorded, Script, of

GIVEN = {"rounds": [[400, 5]], "radius": 3, "guide": 50, "eta": 1.0}


def image(n: int = 2, side: int = 8) -> torch.Tensor:
    return torch.rand(n, 2, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@of("freqpure")
def test_the_original_code_gives_the_same(path):
    """The last draw of a round is of the step to the clean image, where the original multiplies it by 0."""
    file, states = Recorded(path), []
    said, draws = file.settings, list(file["draws"])
    rounds = [[top + 1, (top + 1) // (ks[0] + 1)] for top, ks in zip(said["tops"], said["indices"], strict=True)]
    normals = []
    for ks in said["indices"]:
        normals += draws[: 2 * len(ks)]
        draws = draws[2 * len(ks) + 1 :]
    assert not draws
    script, denoiser = Script(normals), file.denoiser()
    with torch.no_grad():
        x_hat = freqpure.purify(
            file["x"], denoiser, file.classifier(), script, rounds=rounds, radius=said["radius"],
            guide=said["guide_index"], eta=1.0, on_step=lambda i, sigma, z, x0: states.append(sigma),
        )  # fmt: skip
        logits = file.classifier()(x_hat)
    assert (x_hat - file["x_hat"]).abs().max() < 1e-5 * file["x_hat"].abs().max()
    assert (2 * x_hat - 1 - file["states"][-1].clamp(-1, 1)).abs().max() < 1e-5 * file["states"].abs().max()
    assert (logits - file["logits"]).abs().max() < 1e-5 * file["logits"].abs().max()
    assert script.left == 0
    assert states == [denoiser.sigma(k / 1000) for ks in said["indices"] for k in reversed(ks)]
    assert denoiser.nfe == 2 * len(states)


@pytest.mark.parametrize("radius", [0, 1, 2.5, 4, 5])
def test_the_exchange_is_that_of_amplitudes_and_phases(radius):
    """In polar form, by numpy, with a table of frequencies that is written out."""
    own, other = image().numpy(), image().flip(3).numpy()
    frequency = np.array([0, 1, 2, 3, 4, 3, 2, 1])  # of a transform of 8 numbers, without its sign
    disc = np.sqrt(frequency[:, None] ** 2 + frequency**2) <= radius
    a, b = np.fft.fft2(own), np.fft.fft2(other)
    amplitude, phase = np.where(disc, np.abs(b), np.abs(a)), np.where(disc, np.angle(b), np.angle(a))
    wanted = np.fft.ifft2(amplitude * np.exp(1j * phase))
    assert np.abs(wanted.imag).max() < 1e-12
    found = exchange_low(*(2 * torch.from_numpy(one) - 1 for one in (own, other)), radius)
    np.testing.assert_allclose((found.numpy() + 1) / 2, np.abs(wanted.real).clip(0, 1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_without_a_guide_it_is_the_plain_chain_bit_for_bit(eta):
    given = {"radius": -1, "guide": 50, "eta": eta, "clamp": "none"}
    denoiser, rng = Gaussian(), Streams([0, 1], 0, "a")
    out = freqpure.purify(image(), denoiser, None, rng, rounds=[[400, 5], [100, 2]], **given)
    assert denoiser.nfe == 7
    first, second = [0.399, 0.319, 0.239, 0.159, 0.079], [0.099, 0.049]
    rng = Streams([0, 1], 0, "a")
    plain = diffpure.purify(image(), denoiser, None, rng, t=0.399, steps=first, eta=eta, clamp="none")
    once = freqpure.purify(image(), denoiser, None, Streams([0, 1], 0, "a"), rounds=[[400, 5]], **given)
    assert torch.equal(once, plain)
    again = diffpure.purify(plain, denoiser, None, rng, t=0.099, steps=second, eta=eta, clamp="none")
    torch.testing.assert_close(out, again, rtol=0, atol=1e-12)  # [0,1] and back is not exact


def test_an_uneven_round_passes_the_variance_preserving_state_on():
    """[25, 4] noises at index 24, and calls the denoiser at 23, 17, 11 and 5, as the rounds of Lee and Kim do."""
    seen, denoiser, x = [], Gaussian(), image()
    given = {"rounds": [[25, 4]], "radius": -1, "on_step": lambda *step: seen.append(step)}
    freqpure.purify(x, denoiser, None, Streams([0, 1], 0, "a"), **{**GIVEN, **given})
    assert [sigma for _, sigma, _, _ in seen] == [denoiser.sigma(k / 1000) for k in (23, 17, 11, 5)]
    start, top = denoiser.sigma(0.024), denoiser.sigma(0.023)
    noisy = 2 * x - 1 + start * Streams([0, 1], 0, "a").randn_like(x)
    torch.testing.assert_close(seen[0][2] / (1 + top**2) ** 0.5, noisy / (1 + start**2) ** 0.5, rtol=0, atol=1e-12)


def test_with_all_frequencies_it_is_the_guide():
    """The last guide, which is one denoising of the input at index 50; all else is replaced."""
    x, denoiser = image(), Gaussian(0.1, 0.3)
    normals = [torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(k)) for k in range(10)]
    out = freqpure.purify(x, denoiser, None, Script(normals), **{**GIVEN, "radius": 6})
    sigma = denoiser.sigma(0.05)
    guide = denoiser.denoise(2 * x - 1 + sigma * normals[9], sigma)
    torch.testing.assert_close(out, ((guide + 1) / 2).clamp(0, 1), rtol=0, atol=1e-12)


def test_the_gradient_of_the_exchange_is_exact():
    own, other = (2 * one - 1 for one in (0.8 * image() + 0.1, 0.8 * image().flip(3) + 0.1))
    leaves = [one.requires_grad_() for one in (own, other)]
    assert torch.autograd.gradcheck(lambda a, b: exchange_low(a, b, 2.0), leaves)


def test_a_clock_without_noise_at_its_start_takes_one_step_less():
    """Of the VP clock in continuous time, where the noise of a round and of the guide must not be none."""
    denoiser, levels, x = VP(Flat()), [], image()
    given = {**GIVEN, "rounds": [[3, 3]], "on_step": lambda i, sigma, z, x0: levels.append(sigma)}
    x_hat = freqpure.purify(x, denoiser, None, Streams([0, 1], 0, "a"), **given)
    assert torch.isfinite(x_hat).all()
    assert levels == [denoiser.sigma(0.002), denoiser.sigma(0.001)]
    assert denoiser.nfe == 4
    for wrong, words in (({"rounds": [[1, 1]]}, "need noise in every round"), ({"guide": 0}, "set purifier.guide=1")):
        with pytest.raises(ValueError, match=words):
            freqpure.purify(x, denoiser, None, Streams([0, 1], 0, "a"), **{**given, **wrong})


WRONG = [{"rounds": each} for each in ([], [[4, 5]], [[1001, 1]], [[30.5, 1]], [30], [[30, 1, 1]])]


@pytest.mark.parametrize("wrong", [*WRONG, {"guide": 1000}, {"eta": 2.0}])
def test_wrong_values(wrong):
    with pytest.raises(ValueError, match=r"^need "):
        freqpure.purify(image(), Gaussian(), None, Streams([0, 1], 0, "a"), **{**GIVEN, **wrong})
