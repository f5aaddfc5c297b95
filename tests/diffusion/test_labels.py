"""Class labels reach the network through every adapter, in both memory modes; without them nothing changes."""

import pytest
import torch
from torch import nn

from dp.diffusion.denoisers import EDM, IDDPM, VE, VP, Consistency, EpsNet, Gaussian, ScoreVE
from dp.nets.adm_unet import UNetModel
from dp.nets.blocks import ClassConditional
from dp.nets.edm_unet import DhariwalUNet, SongUNet
from dp.nets.small_unet import SmallUNet

ADAPTERS = [EDM, EpsNet, VP, VE, IDDPM, ScoreVE, Consistency]
CLASSES = 3


class Classed(ClassConditional):
    """tanh(conv(x) + b_c), b_c a vector of the class, 0 without one. `calls` counts them."""

    def __init__(self, fixed: int | None = None):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.table = nn.Embedding(CLASSES, 2)
        self.classes, self.fixed, self.calls = CLASSES, fixed, 0

    def forward(self, x, noise, label=None):
        self.calls += 1
        h = self.conv(x)
        return torch.tanh(h if label is None else h + self.table(label)[:, :, None, None])


class Of(nn.Module):
    """The network of one class, which takes no label."""

    def __init__(self, net, c):
        super().__init__()
        self.net, self.c = net, c

    def forward(self, x, noise):
        return self.net(x, noise, None if self.c is None else torch.full((len(x),), self.c))


def states(requires_grad=False):
    z = torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(1))
    return z.requires_grad_(requires_grad)


LABEL = torch.tensor([2, 0, 1, 2])


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_every_adapter_hands_each_image_its_class(adapter):
    net, z, sigma = Classed(), states(), torch.tensor([0.1, 0.7, 2.0, 9.0]).view(-1, 1, 1, 1)
    found = adapter(net)(z, sigma, LABEL)
    for c in range(CLASSES):
        of_class = adapter(Of(net, c))(z, sigma)
        torch.testing.assert_close(found[c == LABEL], of_class[c == LABEL])
        assert not torch.allclose(found[c != LABEL], of_class[c != LABEL], rtol=0, atol=1e-3)
    assert torch.equal(adapter(net)(z, sigma), adapter(Of(net, None))(z, sigma))


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_recompute_equals_store_with_labels(adapter):
    """First and second derivatives, bit for bit, where each call has other labels."""
    results = []
    for memory in ("store", "recompute"):
        net, z = Classed(), states(requires_grad=True)
        denoiser = adapter(net, memory=memory)
        denoiser.recompute.keep = 2
        out = denoiser(denoiser(denoiser(z, 2.0, LABEL), 0.9, LABEL.flip(0)), 0.4)
        (first,) = torch.autograd.grad(out.square().sum(), z, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), z)
        results.append((out.detach(), first.detach(), second))
        assert denoiser.nfe == 3
        assert (net.calls > 3) == (memory == "recompute")
    for stored, again in zip(*results, strict=True):
        assert torch.equal(stored, again)
        assert stored.abs().sum() > 0


def test_the_gradient_of_a_labelled_call_is_the_derivative():
    net = Classed().double()
    z = states().double()[:2].requires_grad_()
    for memory in ("store", "recompute"):
        denoiser = EDM(net, memory=memory)
        assert torch.autograd.gradcheck(lambda z, d=denoiser: d(z, 0.7, LABEL[:2]), (z,), eps=1e-6, atol=1e-7)


SONG = {"img_resolution": 8, "model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]}


@pytest.mark.parametrize(
    "build",
    [
        lambda k: SongUNet(label_dim=k, **SONG),
        lambda k: DhariwalUNet(label_dim=k, **{**SONG, "model_channels": 64}),
        lambda k: SmallUNet(channels=3, classes=k),
        lambda k: UNetModel(32, 3, 1, attention_resolutions=(), channel_mult=(1, 2), num_classes=k or None),
    ],
    ids=["song", "dhariwal", "small", "adm"],
)
def test_the_networks_say_how_many_classes_they_have(build):
    """The class term is added to an embedding, so a class changes an image, and each image by its own class alone."""
    torch.manual_seed(0)
    net = build(CLASSES)
    for value in net.parameters():
        nn.init.normal_(value, std=0.2)
    denoiser, z = EDM(net), torch.randn(4, 3, 8, 8)
    assert denoiser.classes == CLASSES
    assert EDM(build(0)).classes == 0
    found, plain = denoiser(z, 0.7, LABEL), denoiser(z, 0.7)
    assert ((found - plain).abs().amax((1, 2, 3)) > 1e-4).all()
    for c in range(CLASSES):
        alike = denoiser(z, 0.7, torch.full((4,), c))
        torch.testing.assert_close(found[c == LABEL], alike[c == LABEL])
        assert ((found - alike).abs().amax((1, 2, 3)) > 1e-4).equal(c != LABEL)


@pytest.mark.parametrize("build", [SongUNet, DhariwalUNet])
def test_whole_numbers_are_the_one_hot_labels_of_the_public_networks(build):
    torch.manual_seed(0)
    net = build(label_dim=CLASSES, **{**SONG, "model_channels": 64}).eval()
    for value in net.parameters():
        nn.init.normal_(value, std=0.2)
    x, noise = torch.randn(4, 3, 8, 8), torch.full((4,), 0.3)
    assert torch.equal(net(x, noise, LABEL), net(x, noise, nn.functional.one_hot(LABEL, CLASSES).float()))
    assert torch.equal(net(x, noise, torch.full((4,), -1)), net(x, noise))


@pytest.mark.parametrize(
    ("label", "says"),
    [
        (LABEL.float(), "need labels \\(4,\\) int64, got \\(4,\\) torch.float32"),
        (LABEL[:2], "need labels \\(4,\\) int64, got \\(2,\\)"),
        (LABEL + 1, "need labels from 0 to 2, got labels from 1 to 3"),
        (LABEL - 1, "need labels from 0 to 2, got labels from -1 to 1"),
    ],
)
def test_wrong_labels_are_one_line(label, says):
    with pytest.raises(ValueError, match=says):
        EDM(Classed())(states(), 0.7, label)


def test_a_denoiser_without_classes_takes_no_label():
    for denoiser in (Gaussian(), EDM(nn.Identity())):
        with pytest.raises(ValueError, match="need a denoiser with classes, got one without"):
            denoiser(states(), 0.7, LABEL)
        assert denoiser.nfe == 0
