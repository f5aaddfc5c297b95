"""Networks against published parameter counts and numbers of the public code; the embedded weights."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open

from dp.datasets import digits, digits_train
from dp.diffusion.denoisers import EDM
from dp.files.cache import Asset, locate
from dp.nets.attribute import AttributeNet
from dp.nets.blocks import attend
from dp.nets.small_unet import SmallUNet
from dp.nets.wrn import WideResNet
from dp.weights.checkpoints import load


def parameters(net):
    return sum(p.numel() for p in net.parameters())


def test_wrn_28_10_has_the_published_number_of_parameters():
    with torch.device("meta"):
        assert parameters(WideResNet(depth=28, widen=10)) == 36_479_194


@pytest.mark.parametrize(
    ("depth", "widen", "millions"),
    [
        (40, 1, 0.6),
        (40, 2, 2.2),
        (40, 4, 8.9),
        (40, 8, 35.7),
        (28, 10, 36.5),
        (28, 12, 52.5),
        (22, 8, 17.2),
        (16, 8, 11.0),
    ],
)
def test_parameter_counts_of_the_wide_resnet_paper(depth, widen, millions):
    """Zagoruyko and Komodakis 2016, Table 4."""
    with torch.device("meta"):
        assert round(parameters(WideResNet(depth=depth, widen=widen)) / 1e6, 1) == millions


@pytest.mark.parametrize("depth", [4, 8, 11, 27, 29, 0, -2])
def test_bad_depth(depth):
    with pytest.raises(ValueError, match="need depth = 6 n"):
        WideResNet(depth=depth)


@pytest.mark.parametrize(("channels", "classes", "side"), [(3, 10, 32), (1, 10, 16), (3, 7, 64)])
def test_wide_resnet_shapes(channels, classes, side):
    net = WideResNet(depth=16, widen=1, classes=classes, channels=channels).eval()
    assert net(torch.rand(2, channels, side, side)).shape == (2, classes)


def small_unet(**kwargs):
    """With every weight random: the untrained net is zero by design."""
    torch.manual_seed(0)
    net = SmallUNet(**kwargs)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return net


@pytest.mark.parametrize("shape", [(2, 1, 16, 16), (3, 3, 8, 8), (1, 1, 32, 16)])
def test_small_unet_keeps_the_shape(shape):
    net = small_unet(channels=shape[1])
    out = net(torch.randn(shape), torch.zeros(shape[0]))
    assert out.shape == shape
    assert out.std() > 0


def test_small_unet_starts_at_zero():
    assert not SmallUNet()(torch.randn(2, 1, 16, 16), torch.zeros(2)).any()


def test_small_unet_repeats_one_noise_label():
    net, x = small_unet(), torch.randn(3, 1, 16, 16)
    one, each = net(x, torch.tensor([0.4])), net(x, torch.full((3,), 0.4))
    torch.testing.assert_close(one, each)
    mixed = net(x, torch.tensor([0.4, -1.0, 0.4]))
    torch.testing.assert_close(mixed[[0, 2]], each[[0, 2]])
    assert (mixed[1] - each[1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("file", "build", "thousands"),
    [
        ("digits_classifier.safetensors", lambda: WideResNet(depth=10, widen=1, channels=1), 78),
        ("digits_denoiser.safetensors", lambda: SmallUNet(channels=1), 184),
        ("digits_conditional.safetensors", lambda: SmallUNet(channels=1, classes=10), 184),
        ("digits_at.safetensors", lambda: WideResNet(depth=10, widen=1, channels=1), 78),
        ("digits_consistency.safetensors", lambda: SmallUNet(channels=1), 184),
    ],
)
def test_embedded_weights(file, build, thousands):
    net = load(build(), file)
    names = dict(net.named_parameters())
    with safe_open(locate(Asset(file)), "pt") as stored:
        count = sum(math.prod(stored.get_slice(name).get_shape()) for name in names)
    assert count == parameters(net)
    assert round(count / 1000) == thousands
    assert all(value.isfinite().all() for value in net.state_dict().values())


def test_the_embedded_classifier_reads_the_test_digits():
    net, data = load(WideResNet(depth=10, widen=1, channels=1), "digits_classifier.safetensors").eval(), digits()
    with torch.inference_mode():
        accuracy = (net(data.x).argmax(1) == data.y).double().mean().item()
    assert accuracy >= 0.995


@pytest.mark.parametrize("sigma", [0.1, 0.342, 0.724, 2.04])
def test_the_embedded_denoiser_beats_every_linear_one(sigma):
    """The best affine denoiser is the posterior mean of a Gaussian with the training scans' mean and covariance."""
    train, x = (2 * subset.x[:, 0].flatten(1).double().numpy() - 1 for subset in (digits_train(), digits()))
    z = x + sigma * np.random.default_rng(0).standard_normal(x.shape)
    covariance = np.cov(train.T)
    gain = np.linalg.solve(covariance + sigma**2 * np.eye(256), covariance)
    affine = train.mean(0) + (z - train.mean(0)) @ gain
    denoiser = EDM(load(SmallUNet(channels=1), "digits_denoiser.safetensors"), sigma_data=0.75)
    with torch.inference_mode():
        found = denoiser(torch.from_numpy(z).float().view(-1, 1, 16, 16), sigma).flatten(1).double().numpy()
    assert ((found - x) ** 2).mean() < 0.9 * ((affine - x) ** 2).mean()


def test_the_attribute_net_scales_and_pools_as_published():
    """Karras et al. 2019: weights times sqrt(2 / fan-in), bias after it, the 2x2 mean before the last activation."""
    torch.manual_seed(0)
    net = AttributeNet(resolution=8).double().eval()
    w = {k: v for k, v in net.state_dict().items() if k != "lod_in"}
    for value in w.values():
        torch.nn.init.normal_(value)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)

    def layer(h, name, function, gain=2**0.5, **settings):
        weight = w.get(f"{name}.conv.weight", w.get(f"{name}.linear.weight"))
        return function(h, weight * gain / math.sqrt(weight[0].numel()), w[f"{name}.wscale.b"], **settings)

    act = torch.nn.LeakyReLU(0.2)
    h = act(layer(x, "fromrgb_lod0.conv", F.conv2d))
    h = act(layer(h, "8x8.conv0", F.conv2d, padding=1))
    h = act(layer(h, "8x8.conv1", F.conv2d, padding=1).unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5)))
    h = act(layer(h, "4x4.conv", F.conv2d, padding=1)).reshape(2, -1)
    out = layer(act(layer(h, "4x4.dense0", F.linear)), "4x4.dense1", F.linear, gain=1.0)
    torch.testing.assert_close(net(x), torch.cat([out, -out], dim=1))


def test_bad_resolution():
    for resolution in (4, 12):
        with pytest.raises(ValueError, match="power of two"):
            AttributeNet(resolution)


@pytest.mark.parametrize("pixels", [4, 64])
def test_attention_has_torchs_own_bits_and_a_second_derivative(pixels):
    """Values and gradients of torch's fast kernel, which has no second derivative; those of the formula here."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 2, 3, pixels, generator=generator, requires_grad=True) for _ in range(3))
    results = []
    for attention in (attend, lambda *a: F.scaled_dot_product_attention(*(b.mT for b in a)).mT):
        out = attention(q, k, v)
        results.append((out, *torch.autograd.grad(out.square().sum(), (q, k, v))))
    assert all(map(torch.equal, *results))
    loss = attend(q, k, v).square().sum()
    twice = [torch.autograd.grad(loss, (q, k, v), retain_graph=True) for _ in range(2)]
    assert all(map(torch.equal, *twice))
    small = [a[..., :3].detach().double().requires_grad_() for a in (q, k, v)]
    assert torch.autograd.gradcheck(attend, small)
    assert torch.autograd.gradgradcheck(attend, small)
    with torch.autocast("cpu", torch.bfloat16):
        out = attend(q, k, v)
    (first,) = torch.autograd.grad(out.float().sum(), q, create_graph=True)
    assert torch.isfinite(torch.autograd.grad(first.sum(), k)[0]).all()
