"""What frozen networks keep for the backward pass: less than trainable ones, with the same bits in all derivatives."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dp.nets.adm_unet import UNetModel
from dp.nets.attribute import AttributeNet
from dp.nets.backward import Conv1d, Conv2d, activated, affine
from dp.nets.ddpm_unet import DDPMUNet
from dp.nets.dm_wrn import DMWideResNet
from dp.nets.edm_unet import DhariwalUNet, SongUNet
from dp.nets.energy import EnergyNet
from dp.nets.ncsnpp import NCSNpp
from dp.nets.ncsnv2 import NCSNv2
from dp.nets.small_unet import SmallUNet
from dp.nets.wrn import WideResNet

SONG = {"img_resolution": 16, "model_channels": 16, "num_blocks": 1, "channel_mult": (1, 2), "attn_resolutions": (8,)}
SDE = {"image_size": 16, "nf": 16, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": (8,)}
FILTERED = {"encoder_type": "residual", "decoder_type": "skip", "resample_filter": (1, 3, 3, 1)}
ADM = {"model_channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_resolutions": (2,)}
MODULATED = {"out_channels": 6, "use_scale_shift_norm": True, "resblock_updown": True}
NETS = {  # how to make it, how many labels it takes, and the share of the bytes that it may keep
    "DDPM++": (lambda: SongUNet(**SONG), 1, 0.5),
    "NCSN++": (lambda: SongUNet(**SONG, **FILTERED), 1, 0.5),
    "ADM of EDM": (lambda: DhariwalUNet(16, model_channels=32, channel_mult=(1, 2), num_blocks=1), 1, 0.5),
    "score-SDE": (lambda: NCSNpp(**SDE, nonlinearity="relu", fir=True, progressive="output_skip"), 1, 0.6),
    "score-SDE, DDPM's blocks": (lambda: NCSNpp(**SDE, resblock_type="ddpm", nonlinearity="elu"), 1, 0.6),
    "ADM": (lambda: UNetModel(**ADM, out_channels=3), 1, 0.6),
    "ADM, modulated": (lambda: UNetModel(**ADM, **MODULATED), 1, 0.6),
    "DDPM": (lambda: DDPMUNet(16, ch=32, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(8,)), 1, 0.6),
    "digits": (lambda: SmallUNet(3), 1, 0.5),
    "WRN": (lambda: WideResNet(10, 2), 0, 0.6),
    "DeepMind's WRN": (lambda: DMWideResNet(10, 2), 0, 0.5),
    "NCSNv2": (lambda: NCSNv2(width=8), 0, 0.8),
    "attribute": (lambda: AttributeNet(16, fmap_base=256), 0, 0.9),
    "energy": (lambda: EnergyNet(size=16, leak=None), 0, 0.6),
}  # fmt: skip
CONTIGUOUS = [("ADM, modulated", torch.contiguous_format), ("WRN", torch.contiguous_format)]


def built(name: str, frozen: bool, layout: torch.memory_format) -> tuple[nn.Module, tuple[Tensor, ...], Tensor]:
    """A network with all weights random, its labels, and images."""
    make, labels, _ = NETS[name]
    torch.manual_seed(0)
    net = make().eval().requires_grad_(not frozen)
    for p in net.parameters():
        p.data.normal_(0.5 if p.dim() == 1 else 0.0, 0.1)
    x = torch.rand(2, 3, 16, 16).contiguous(memory_format=layout).requires_grad_()
    return net.to(memory_format=layout), (torch.tensor([0.3]),) * labels, x


def derivatives(net, labels, x) -> list[Tensor]:
    """The output, its first derivative, and a second derivative together with one that goes past it."""
    out = net(x, *labels)
    (first,) = torch.autograd.grad(out.square().sum(), x)
    out = net(x, *labels)
    (g,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad((g.cos() * x).sum() + out.sin().sum(), x)
    return [out.detach(), first, second]


@pytest.mark.parametrize(("name", "layout"), [*((n, torch.channels_last) for n in NETS), *CONTIGUOUS])
def test_derivatives_have_the_bits_of_plain_autograd(name, layout):
    """A network whose weights need a gradient keeps all that autograd keeps by default."""
    frozen, plain = (derivatives(*built(name, f, layout)) for f in (True, False))
    assert all(torch.equal(a, b) for a, b in zip(frozen, plain, strict=True))
    assert frozen[1].any()
    assert frozen[2].isfinite().all()


def alive(net, labels, x) -> int:
    """The bytes that a forward pass allocates and does not free while its output is held, as torch's profiler says."""
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profiled:
        out = net(x, *labels)
    assert out.requires_grad
    return sum(event.self_cpu_memory_usage for event in profiled.key_averages())


@pytest.mark.parametrize("name", NETS)
def test_less_is_kept(name):
    frozen, plain = (alive(*built(name, f, torch.channels_last)) for f in (True, False))
    assert 0 < frozen <= NETS[name][2] * plain


def test_a_trained_layer_learns_as_a_plain_one():
    torch.manual_seed(0)
    x, norm = torch.randn(2, 8, 5, 5), nn.GroupNorm(2, 8)
    conv, plain = Conv2d(8, 8, 3, padding=2, dilation=2, groups=2), nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=2)
    plain.load_state_dict(conv.state_dict())
    weights = [*norm.parameters(), *conv.parameters()]
    ours = torch.autograd.grad(conv(activated(norm, F.silu, x)).square().sum(), weights)
    theirs = torch.autograd.grad(plain(F.silu(norm(x))).square().sum(), [*norm.parameters(), *plain.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_convolution_of_sequences():
    torch.manual_seed(0)
    conv = Conv1d(4, 6, 3, stride=2, padding=1).requires_grad_(False)
    x = torch.randn(2, 4, 9, requires_grad=True)
    (ours,) = torch.autograd.grad(conv(x).square().sum(), x)
    (theirs,) = torch.autograd.grad(nn.Conv1d.forward(conv, x).square().sum(), x)
    assert torch.equal(ours, theirs)


def test_the_gradient_of_frozen_weights_inside_autocast():
    """Autocast keeps narrow copies of the weights, which must not be taken for the input."""
    torch.manual_seed(0)
    conv, norm = Conv2d(8, 8, 3, padding=1).requires_grad_(False), nn.GroupNorm(2, 8).eval().requires_grad_(False)
    x = torch.randn(2, 8, 5, 5, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = conv(activated(norm, F.silu, x)), nn.Conv2d.forward(conv, F.silu(norm(x)))
    (a,), (b,) = (torch.autograd.grad(out.float().square().sum(), x) for out in (ours, theirs))
    assert torch.equal(a, b)


def test_a_backward_pass_can_be_made_twice():
    torch.manual_seed(0)
    norm = nn.GroupNorm(2, 8).eval().requires_grad_(False)
    x, f = torch.randn(2, 8, 5, 5, requires_grad=True), torch.rand(8, 1, 3, 3)
    out = affine(F.conv2d, activated(norm, F.silu, x), f, groups=8).square().sum()
    (first,) = torch.autograd.grad(out, x, retain_graph=True)
    (again,) = torch.autograd.grad(out, x)
    assert torch.equal(first, again)
