"""The public networks' own constructor arguments and calls, in terms of ours: what the parity fixtures are held to."""

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from dp.classifiers import Classifier
from dp.diffusion import denoisers
from dp.diffusion.sampling import cosine_sigmas
from dp.nets.adm_unet import UNetModel
from dp.nets.ddpm_unet import DDPMUNet
from dp.nets.dm_wrn import DMWideResNet
from dp.nets.edm_unet import DhariwalUNet, SongUNet
from dp.nets.ncsnpp import NCSNpp
from dp.nets.ncsnv2 import NCSNv2
from dp.nets.wrn import WideResNet
from dp.weights.checkpoints import fit, read
from tests.helpers.formats import from_functional

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
NOT_OURS = {  # settings of training, of precision and of other code, which change no number in eval mode
    *("use_fp16", "use_checkpoint", "dims", "image_size", "label_dropout", "model_type", "img_channels"),
    *("epsilon_t", "sigma_min", "sigma_max"),
}
OURS = {  # of preconditioners
    **{"sigma_data": "sigma_data", "beta_d": "beta_d", "beta_min": "beta_min", "M": "levels"},
    **{"C_1": "c_1", "C_2": "c_2"},
}


def edm_net(init: dict, out: int | None = None) -> nn.Module:
    """The network inside an EDM preconditioner made with `init`."""
    kind = DhariwalUNet if init.get("model_type") == "DhariwalUNet" else SongUNet
    kept = {k: v for k, v in init.items() if k not in NOT_OURS and k not in OURS}
    channels = init["img_channels"]
    return kind(**{"in_channels": channels, "out_channels": out or channels} | kept)


def adm_net(init: dict, consistency: bool) -> nn.Module:
    return UNetModel(**{k: v for k, v in init.items() if k not in NOT_OURS}, consistency=consistency)


def ncsnpp_net(init: dict) -> nn.Module:
    model, data = init["model"], init["data"]
    passed = NCSNpp.__init__.__annotations__
    settings = {k: v for k, v in model.items() if k in passed}
    return NCSNpp(
        image_size=data["image_size"], num_channels=data["num_channels"], centered=data["centered"], **settings
    )


def ddpm_net(init: dict) -> nn.Module:
    passed = DDPMUNet.__init__.__annotations__
    return DDPMUNet(image_size=init["data"]["image_size"], **{k: v for k, v in init["model"].items() if k in passed})


def wrn_net(init: dict) -> nn.Module:
    return WideResNet(
        depth=init["depth"],
        widen=init.get("widen_factor", init.get("width")),
        classes=init["num_classes"],
        dropout=init.get("dropRate", 0.0),
    )


def dm_net(init: dict) -> nn.Module:
    activation = "silu" if "swish" in str(init["activation_fn"]).lower() else "relu"
    return DMWideResNet(init["depth"], init["width"], init["num_classes"], activation=activation)


def ncsnv2_net(init: dict) -> nn.Module:
    return NCSNv2(init["channels"], init["ngf"], init["sigma_begin"], init["sigma_end"], init["num_classes"])


def build(arch: str, init: dict, out: int | None = None) -> nn.Module:
    """Our network for a fixture's `arch` and `init`; `out`: channels of an EDM network, where not the image's."""
    if arch.startswith("edm_"):
        return edm_net(init, out)
    return {
        "guided_diffusion": lambda: adm_net(init, consistency=False),
        "consistency_unet": lambda: adm_net(init, consistency=True),
        "score_sde_ncsnpp": lambda: ncsnpp_net(init),
        "ddpm_unet": lambda: ddpm_net(init),
        "svhn_wrn": lambda: wrn_net(init),
        "wrn_robustbench": lambda: wrn_net(init),
        "wrn_dropout": lambda: wrn_net(init),
        "wrn_dm": lambda: dm_net(init),
        "ncsnv2": lambda: ncsnv2_net(init),
    }[arch]()


class Labeled(nn.Module):
    """A network whose labels are fixed, so that an adapter can call it with the noise alone."""

    def __init__(self, net: nn.Module, **labels: Tensor):
        super().__init__()
        self.net, self.labels = net, labels

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        return self.net(x, noise, **self.labels)


class Fixture:
    """A parity file with our network in it, its weights read by the public path."""

    def __init__(self, path: Path):
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            self.about = dict(file.metadata())
        self.name, self.arch, self.init = path.stem, self.about["arch"], json.loads(self.about["init"])
        self.tensors: dict[str, Tensor] = read(path)
        state = {k.removeprefix("state."): v for k, v in self.tensors.items() if k.startswith("state.")}
        state.pop("u", None)  # iDDPMPrecond's sigmas, which our adapter computes
        self.state = from_functional(state) if self.arch == "svhn_wrn" else state
        self.net = (
            fit(build(self.arch, self.init, self.out_channels()), self.state, path.name).eval().requires_grad_(False)
        )

    def out_channels(self) -> int | None:
        last = [v for k, v in self.state.items() if k.endswith(("_aux_conv.bias", "out_conv.bias"))]
        return len(last[0]) if last else None

    def parameters(self) -> int:
        """Numbers that training changes. The frozen frequencies of score-SDE's Fourier features are none."""
        net = build(self.arch, self.init, self.out_channels())
        return sum(p.numel() for p in net.parameters() if p.requires_grad)

    def noise(self) -> Tensor | None:
        """The noise labels (B,) of a network that is called without a preconditioner: `t`, under the VE SDE `sigma`."""
        label = self.tensors.get("t", self.tensors.get("sigma"))
        return None if label is None else label.flatten()

    def kind(self) -> str:
        """The preconditioner of an EDM network."""
        return json.loads(self.about["call"])["kind"]

    def labeled(self) -> nn.Module:
        names = {k: self.tensors[k] for k in ("y", "class_labels", "augment_labels") if k in self.tensors}
        return Labeled(self.net, **names) if names else self.net

    def call(self, x: Tensor) -> Tensor:
        """What the public code's call returns, through our adapters where the call is preconditioned."""
        if self.arch.startswith("edm_"):
            return self.preconditioned(self.kind())(x, self.tensors["sigma"].view(-1, 1, 1, 1))
        if self.arch == "consistency_unet":
            adapter = denoisers.Consistency(self.labeled(), boundary=self.boundary())
            return adapter(x, self.tensors["sigma"].view(-1, 1, 1, 1))
        label = self.noise()
        if label is not None:
            return self.labeled()(x, label)
        inside = self.arch in ("wrn_dropout", "wrn_dm")
        mean, std = (self.init.get("mean", MEAN), self.init.get("std", STD)) if inside else (None, None)
        return Classifier(self.net, mean=mean, std=std)(x)

    def boundary(self) -> bool:
        return bool(json.loads(self.about["denoiser"])["boundary_condition"])

    def preconditioned(self, kind: str) -> denoisers.Denoiser:
        adapters = {
            "EDMPrecond": denoisers.EDM,
            "VPPrecond": denoisers.VP,
            "VEPrecond": denoisers.VE,
            "iDDPMPrecond": denoisers.IDDPM,
        }
        own = {OURS[k]: v for k, v in self.init.items() if k in OURS and kind == self.kind()}
        return adapters[kind](self.labeled(), **own)

    def scaling(self) -> tuple[Tensor, Tensor]:
        """c_in and c_noise (B,) of the fixture's preconditioner (Karras et al. 2022, Table 1), in float64."""
        sigma, init = self.tensors["sigma"].double().flatten(), self.init
        plain = (1 + sigma**2).rsqrt()
        if self.kind() == "EDMPrecond":
            return (init.get("sigma_data", 0.5) ** 2 + sigma**2).rsqrt(), sigma.log() / 4
        if self.kind() == "VEPrecond":
            return torch.ones_like(sigma), (sigma / 2).log()
        if self.kind() == "VPPrecond":
            slope, start = init.get("beta_d", 19.9), init.get("beta_min", 0.1)
            t = ((start**2 + 2 * slope * (1 + sigma**2).log()).sqrt() - start) / slope
            return plain, (init.get("M", 1000) - 1) * t
        levels = init.get("M", 1000)
        table = cosine_sigmas(levels, init.get("C_1", 0.001), init.get("C_2", 0.008), sigma.device)
        return plain, (table[None] - sigma[:, None]).abs().argmin(dim=1).double() - 1


def distance(found: Tensor, expected: Tensor) -> float:
    """max |a - b| / max |b|, as the fixtures' README defines it."""
    return ((found.double() - expected.double()).abs().max() / expected.double().abs().max()).item()


def with_gradient(fixture: Fixture) -> tuple[Tensor, Tensor]:
    """The output and the gradient of its mean square with respect to the input."""
    x = fixture.tensors["x"].clone().requires_grad_(True)
    out = fixture.call(x)
    (gradient,) = torch.autograd.grad(out.square().mean(), x)
    return out.detach(), gradient
