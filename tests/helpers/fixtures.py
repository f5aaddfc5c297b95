"""Parity files of our own: networks of ours in the format of the public fixtures, numbers from textbook formulas.

The scalings are those of Karras et al. 2022, Table 1, and of the VE SDE of Song et al. 2021, written out here without
the adapters that the fixtures are to hold.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from scipy.optimize import brentq
from torch import Tensor, nn

from dp.nets.edm_unet import SongUNet
from dp.nets.ncsnpp import NCSNpp

SIGMAS = (0.3, 2.5)
COMMON = {"img_resolution": 8, "model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]}
LAYOUTS = {  # of SongUNet, as EDM's CIFAR-10 networks are made
    "positional": {"embedding_type": "positional", "channel_mult_noise": 1},
    "fourier": {
        **{"embedding_type": "fourier", "channel_mult_noise": 2, "encoder_type": "residual"},
        "resample_filter": [1, 3, 3, 1],
    },
}
Scaling = tuple[float, float, float, float]  # c_skip, c_out, c_in, c_noise


def edm(s: float, sigma_data: float = 0.5) -> Scaling:
    total = s * s + sigma_data**2
    return sigma_data**2 / total, s * sigma_data / math.sqrt(total), 1 / math.sqrt(total), math.log(s) / 4


def vp(s: float, beta_d: float = 19.9, beta_min: float = 0.1, M: int = 1000) -> Scaling:
    def level(t: float) -> float:
        return math.sqrt(math.exp(beta_d * t * t / 2 + beta_min * t) - 1)

    t = brentq(lambda t: level(t) - s, 1e-9, 1.5, xtol=1e-14)
    return 1.0, -s, 1 / math.sqrt(s * s + 1), (M - 1) * t  # type: ignore[operator]


def ve(s: float) -> Scaling:
    return 1.0, s, 1.0, math.log(s / 2)


def iddpm(s: float, C_1: float = 0.001, C_2: float = 0.008, M: int = 1000) -> Scaling:
    def abar(j: int) -> float:
        return math.sin(math.pi / 2 * j / (M * (C_2 + 1))) ** 2

    u = [0.0] * (M + 1)
    for j in range(M, 0, -1):
        u[j - 1] = math.sqrt((u[j] ** 2 + 1) / max(abar(j - 1) / abar(j), C_1) - 1)
    j = min(range(M + 1), key=lambda j: abs(u[j] - s))
    return 1.0, -s, 1 / math.sqrt(s * s + 1), float(M - 1 - j)


SCALINGS: dict[str, Callable[..., Scaling]] = {
    "EDMPrecond": edm,
    "VPPrecond": vp,
    "VEPrecond": ve,
    "iDDPMPrecond": iddpm,
}


def filled(net: nn.Module, seed: int) -> nn.Module:
    """The network with random weights that float8 holds exactly."""
    generator = torch.Generator().manual_seed(seed)
    for value in net.parameters():
        random = 0.3 * torch.randn(value.shape, generator=generator)
        value.data = random.to(torch.float8_e4m3fn).float()
    return net.eval().requires_grad_(False)


def applied(net: nn.Module, x: Tensor, scaling: Callable[..., Scaling], **constants: float) -> Tensor:
    """The preconditioned network on x (B,C,H,W) at `SIGMAS`."""
    skip, out, into, noise = torch.tensor([scaling(s, **constants) for s in SIGMAS], dtype=torch.float64).float().T
    wide = [value.view(-1, 1, 1, 1) for value in (skip, out, into)]
    return wide[0] * x + wide[1] * net(x * wide[2], noise)


def save(path: Path, net: nn.Module, tensors: dict[str, Tensor], about: dict[str, object]) -> None:
    """A fixture: weights in float8, buffers as they are, and metadata as text."""
    weights = dict(net.named_parameters())
    state = {f"state.{k}": v.to(torch.float8_e4m3fn) if k in weights else v for k, v in net.state_dict().items()}
    metadata = {k: v if isinstance(v, str) else json.dumps(v) for k, v in about.items()}
    save_file({k: v.contiguous().clone() for k, v in (state | tensors).items()}, path, metadata)


def recorded(x: Tensor, call: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """`x`, `out` and `grad_x` of a fixture."""
    leaf = x.clone().requires_grad_()
    out = call(leaf)
    (gradient,) = torch.autograd.grad(out.square().mean(), leaf)
    return {"x": x, "out": out.detach(), "grad_x": gradient}


def edm_fixture(path: Path, kind: str, layout: str, **constants: float) -> Path:
    """An EDM network under its preconditioner, in that preconditioner's own numbers."""
    torch.manual_seed(1)  # the Fourier frequencies are a buffer
    net = filled(SongUNet(in_channels=3, out_channels=3, **COMMON, **LAYOUTS[layout]), 2)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    tensors = recorded(x, lambda x: applied(net, x, SCALINGS[kind], **constants))
    own = torch.tensor([SCALINGS[kind](s, **constants) for s in SIGMAS], dtype=torch.float64)
    tensors |= {"sigma": torch.tensor(SIGMAS), "aux.c_in": own[:, 2].float(), "aux.c_noise": own[:, 3].float()}
    tensors["aux.raw"] = net(x * tensors["aux.c_in"].view(-1, 1, 1, 1), tensors["aux.c_noise"])
    for other in SCALINGS.keys() - {kind}:
        tensors[f"aux.out_as_{other}"] = applied(net, x, SCALINGS[other])
    init = {"img_channels": 3, "label_dim": 0, "use_fp16": False, "model_type": "SongUNet"}
    about = {"arch": "edm_ddpmpp" if layout == "positional" else "edm_ncsnpp", "call": {"kind": kind}}
    about |= {"init": init | COMMON | LAYOUTS[layout] | constants}
    save(path, net, tensors, about | {"param_count": sum(p.numel() for p in net.parameters())})
    return path


def score_fixture(path: Path, centered: bool) -> Path:
    """score-SDE's NCSN++ under the VE SDE: Fourier features, sigma as the label, the output divided by sigma."""
    model = {"nf": 8, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [4], "fir": True}
    model |= {"embedding_type": "fourier", "progressive_input": "residual", "sigma_min": 0.01, "sigma_max": 50.0}
    data = {"image_size": 8, "num_channels": 3, "centered": centered}
    bare = filled(NCSNpp(**data, **model, scale_by_sigma=False), 4)
    t = torch.tensor([0.3, 0.7])
    sigma = 0.01 * (50 / 0.01) ** t  # Song et al. 2021, App. C
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    tensors = recorded(x, lambda x: bare(x, sigma) / sigma.view(-1, 1, 1, 1))
    tensors |= {"sigma": sigma, "aux.t_continuous": t, "aux.marginal_std": sigma, "aux.score": tensors["out"]}
    frozen = ["all_modules.0.W"]
    trained = [name for name, _ in bare.named_parameters() if name not in frozen]
    about = {"arch": "score_sde_ncsnpp", "init": {"data": data, "model": model | {"scale_by_sigma": True}}}
    about |= {"call": {"fn": "net(x, sigma)"}, "ema_order": trained, "not_in_ema": ["sigmas", *frozen]}
    count = sum(p.numel() for name, p in bare.named_parameters() if name not in frozen)
    save(path, bare, tensors, about | {"param_count": count})
    return path
