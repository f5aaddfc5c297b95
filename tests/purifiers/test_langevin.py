"""Langevin dynamics against the original code, the closed form of a Gaussian energy, and energies without curvature."""

import pytest
import torch
from torch import nn

from dp.classifiers import Classifier
from dp.defense.defended import Defended
from dp.nets.energy import EnergyNet
from dp.purifiers.langevin import Langevin
from dp.rng import Streams
from dp.weights.checkpoints import fit
from tests.helpers.parity import Recorded, Script, of


def image(n: int = 2) -> torch.Tensor:
    return torch.rand(n, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Bowl(nn.Module):
    """The energy rate / 2 |z - mean|^2."""

    def __init__(self, mean: float, rate: float):
        super().__init__()
        self.mean, self.rate = mean, rate

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.rate / 2 * (z - self.mean).square().sum(dim=(1, 2, 3))


class Linear(nn.Module):
    """The file's classifier, of images in [0,1]; it was made for images in [-1,1]."""

    def __init__(self, file: Recorded):
        super().__init__()
        self.weight, self.bias = file["clf.1.weight"], file["clf.1.bias"]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (2 * x - 1).flatten(1) @ self.weight.T + self.bias


def recorded(file: Recorded) -> Langevin:
    """Hill's energy with the file's weights. The chain's end is not clamped."""
    net = EnergyNet(width=file.settings["n_f"], leak=file.settings["leak"])
    state = {k.removeprefix("ebm."): v.float() for k, v in file.tensors.items() if k.startswith("ebm.")}
    net = fit(net, state, "ebm.pth").requires_grad_(False).to(file.dtype)
    return Langevin(net, steps=file.settings["steps"], noise=file.settings["eps"], clamp="none")


@of("ebm+langevin")
def test_the_original_code_gives_the_same(path):
    """Its samples lie one after another along the batch."""
    file = Recorded(path)
    purifier, script = recorded(file), Script(file["draws"])
    x = ((file["x"] + 1) / 2).repeat(file.settings["reps"], 1, 1, 1)
    z = 2 * purifier(x, None, None, script) - 1
    assert (z - file["output"]).abs().max() < 1e-5 * file["output"].abs().max()
    assert (z - file["output"]).abs().max() < 0.01 * (z - 2 * x + 1).abs().max()
    assert script.left == 0
    assert purifier.nfe == file.settings["steps"]


@of("ebm+langevin")
def test_the_gradient_of_its_attack_is_bpda_and_here_also_the_exact_one(path):
    """Its energy is piecewise linear, so the gradient of the energy is constant around almost every image, and the
    derivative of the whole chain is the identity (deviation 118).
    """
    file = Recorded(path)
    model, reps = Defended(recorded(file), None, Classifier(Linear(file))), file.settings["reps"]
    gradients = []
    for mode in ("bpda", "full"):
        leaf = file["x"].clone().requires_grad_()
        attacked, x = model.gradient_mode(mode), ((leaf + 1) / 2).repeat(reps, 1, 1, 1)
        logits = attacked.classify(attacked.purify(x, Script(file["draws"])), None)
        loss = nn.functional.cross_entropy(logits.unflatten(0, (reps, -1)).mean(0), file["y"])
        gradients.append(torch.autograd.grad(loss, leaf)[0] / reps)
    bpda, exact = gradients
    assert (bpda - file["bpda_gradient"]).abs().max() < 1e-5 * bpda.abs().max()
    torch.testing.assert_close(exact, bpda, rtol=1e-12, atol=0)


def test_a_smooth_energy_has_another_derivative():
    torch.manual_seed(0)
    slopes = {}
    for leak in (0.05, None):
        net = EnergyNet(channels=1, width=8, size=4, leak=leak).double().requires_grad_(False)
        leaf = image().requires_grad_()
        out = Langevin(net, steps=20, noise=0.01, clamp="none")(leaf, None, None, Streams([0, 1], 0, "a"))
        slopes[leak] = torch.autograd.grad((out * image().flip(3)).sum(), leaf)[0] - image().flip(3)
    assert slopes[0.05].abs().max() < 1e-12
    assert slopes[None].abs().max() > 1e-4


@pytest.mark.parametrize("memory", ["store", "recompute"])
def test_for_a_gaussian_energy_the_chain_is_an_autoregressive_process(memory):
    """z_k = mean + (1 - rate)^k (z_0 - mean) + noise sum_j (1 - rate)^(k - j) n_j."""
    rate, noise, mean, k = 0.1, 0.05, 0.2, 7
    draws = [torch.randn(2, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(j)) for j in range(k)]
    leaf = image().requires_grad_()
    purifier = Langevin(Bowl(mean, rate), steps=k, noise=noise, clamp="none")
    purifier.memory = memory
    out = purifier(leaf, None, None, Script(draws))
    expected = mean + (1 - rate) ** k * (2 * leaf.detach() - 1 - mean)
    expected = expected + noise * sum((1 - rate) ** (k - 1 - j) * n for j, n in enumerate(draws))
    torch.testing.assert_close(2 * out.detach() - 1, expected, rtol=0, atol=1e-12)
    (gradient,) = torch.autograd.grad(out.sum(), leaf)
    torch.testing.assert_close(gradient, torch.full_like(gradient, (1 - rate) ** k), rtol=0, atol=1e-12)
    assert purifier.nfe == k


def test_a_long_chain_forgets_the_image():
    """The stationary law of a Gaussian energy has the variance noise^2 / (1 - (1 - rate)^2)."""
    rate, noise = 0.05, 0.1
    x = torch.linspace(0, 1, 10_000, dtype=torch.float64).view(1, 1, 100, 100)
    z = 2 * Langevin(Bowl(0.2, rate), steps=200, noise=noise, clamp="none")(x, None, None, Streams([0], 0, "a")) - 1
    assert z.mean().item() == pytest.approx(0.2, abs=0.02)
    assert z.std().item() == pytest.approx(noise / (1 - (1 - rate) ** 2) ** 0.5, rel=0.03)


def test_on_step_sees_the_state_and_the_same_moved_by_the_gradient():
    seen = []
    purifier = Langevin(Bowl(0.0, 0.1), steps=3, noise=0.05)
    purifier(image(), None, None, Streams([0, 1], 0, "a"), on_step=lambda *step: seen.append(step))
    assert [(i, sigma) for i, sigma, _, _ in seen] == [(i, 0.05) for i in range(3)]
    for _, _, z, x0 in seen:
        torch.testing.assert_close(x0, 0.9 * z)


def test_the_network_shrinks_an_image_to_one_number():
    """16x16: convolutions of 16, 32 and 64 channels and the last one, 42 k numbers; it is the energy of digits."""
    net = EnergyNet(channels=1, width=16, size=16, leak=None)
    assert sum(p.numel() for p in net.parameters()) == 42_241
    assert net(torch.zeros(5, 1, 16, 16)).shape == (5,)
    assert sum(p.numel() for p in EnergyNet().parameters()) == 693_569  # Hill's, of 3x32x32
    for size in (0, 2, 12, 24):
        with pytest.raises(ValueError, match=r"need a size of 4, 8, 16"):
            EnergyNet(size=size)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"noise": -0.1}])
def test_wrong_values(wrong):
    with pytest.raises(ValueError, match=r"^need steps >= 1 and noise >= 0"):
        Langevin(Bowl(0.0, 0.1), **{"steps": 1, "noise": 0.1, **wrong})
