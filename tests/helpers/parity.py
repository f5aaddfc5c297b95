"""Parity files: numbers that public code gave for tiny networks, with every random draw recorded.

The files lie in tests/parity/, or in the folder that DP_PARITY names. A folder may hold files of networks, of
defenses, or both; a test takes the files of its kind, which is found from a file's metadata and not from its name.
"""

import ast
import functools
import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from dp.classifiers import Classifier
from dp.diffusion.denoisers import VP, Denoiser, EpsNet
from dp.diffusion.sampling import vp_sigmas

OURS = Path(__file__).parents[1] / "parity"
FOLDER = Path(os.environ.get("DP_PARITY", OURS))
NETWORK, UNKNOWN = "network", "unknown"
KINDS = {  # defenses by the settings in their files; the first that fits
    "lee_kim": {"noise_index", "rounds"},
    "gdmp": {"branch", "guide"},
    "mimic": {"rho"},
    "contrastive": {"estimator", "gamma"},
    "ldsde": {"lam", "sigma2"},
    "freqpure": {"tops", "radius"},
    "scoreopt": {"lr", "low", "high", "t"},
    "likelihood": {"lr", "low", "high"},
    "diffpure": {"variance", "t"},
    "consistency": {"num_scales", "loss_norm"},
}
OTHERS = {"adp", "ebm+langevin", "impure", "me-net"}  # methods of files for which there is no test


@functools.cache
def about(path: Path) -> dict[str, str]:
    """A file's metadata; empty for a file without any, and for one that cannot be read."""
    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except SafetensorError:
        return {}


def kind(path: Path) -> str:
    """`network`, the defense that the file is of, or `unknown`, which tests/nets/test_parity.py reports."""
    settings = about(path)
    if "arch" in settings:
        return NETWORK
    if "method" in settings:
        method = settings["method"].lower()
        return method if method in {*KINDS, *OTHERS} else UNKNOWN
    for name, keys in KINDS.items():
        if keys <= settings.keys():
            return name
    return UNKNOWN


def files(wanted: str) -> list[Path]:
    """The files of one kind in the folder."""
    return [path for path in sorted(FOLDER.glob("*.safetensors")) if kind(path) == wanted]


def of(wanted: str):
    """Parametrizes a test over the files of a defense, as `path`. It is skipped where the folder has none."""
    return pytest.mark.parametrize("path", files(wanted), ids=lambda path: path.stem)


class Script:
    """A random stream whose numbers are given: the i-th call of `randn_like` returns the i-th of `normals`, and the
    i-th of `uniform_like` the i-th of `uniforms`, (B,) or (B,...), each once.
    """

    def __init__(self, normals: Tensor | list[Tensor], uniforms: Tensor | list[Tensor] = ()):  # pyright: ignore[reportArgumentType]
        self.normals, self.uniforms = list(normals), list(uniforms)
        self.used = False

    def randn_like(self, z: Tensor) -> Tensor:
        self.used = True
        n = self.normals.pop(0)
        assert n.shape == z.shape, f"asked for {tuple(z.shape)}, the next recorded draw is {tuple(n.shape)}"
        return n.to(z)

    def uniform_like(self, x: Tensor) -> Tensor:
        self.used = True
        u = self.uniforms.pop(0)
        return u.reshape(-1, *[1] * (x.dim() - 1)).to(x).expand(x.shape)

    @property
    def left(self) -> int:
        """How many numbers were not asked for."""
        return len(self.normals) + len(self.uniforms)


class TinyEps(nn.Module):
    """The files' noise predictor of x_t (B,C,H,W) and a label (B,) or (1,) on the scale of 0 to 1000.

    `bounded`: with the exact noise of a Gaussian beside it, so that a chain from pure noise stays bounded.
    """

    def __init__(self, tensors: dict[str, Tensor], bounded: bool = False):
        super().__init__()
        weights = {key.removeprefix("net."): value for key, value in tensors.items() if key.startswith("net.")}
        width, channels = weights["a.weight"].shape[:2]
        self.a = nn.Conv2d(channels, width, 3, padding=1)
        self.b = nn.Conv2d(width, len(weights["b.bias"]), 3, padding=1)
        self.t = nn.Linear(1, width)
        self.load_state_dict(weights)
        self.bounded = bounded

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        time = self.t(label.to(x).view(-1, 1) / 1000)[:, :, None, None]
        out = self.b(nn.functional.silu(self.a(x) + time))
        if not self.bounded:
            return out
        abar = (1 / (1 + vp_sigmas() ** 2))[label.long().cpu()].to(x).view(-1, 1, 1, 1)
        return x * (1 - abar).sqrt() / (abar / 4 + 1 - abar) + abar.sqrt() * out


class Flat(nn.Module):
    """A network that predicts no noise."""

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return 0 * x


class TinyDenoiser(Denoiser):
    """The files' denoiser in sigma coordinates: D(z, sigma) = z / (1 + sigma^2) + 0.2 net(z, 300 sigma)."""

    def denoise(self, z: Tensor, sigma: float | Tensor) -> Tensor:
        s = torch.as_tensor(sigma, dtype=z.dtype, device=z.device).reshape(-1, 1, 1, 1)
        return z / (1 + s**2) + 0.2 * self.bare(z, 300 * s.flatten())


class TinyClassifier(nn.Module):
    """The files' classifier: two convolutions of stride 2, a mean over pixels, a linear layer."""

    def __init__(self, tensors: dict[str, Tensor]):
        super().__init__()
        weights = {key.removeprefix("clf."): value for key, value in tensors.items() if key.startswith("clf.")}
        (first, channels), second = weights["a.weight"].shape[:2], len(weights["b.bias"])
        self.a = nn.Conv2d(channels, first, 3, stride=2, padding=1)
        self.b = nn.Conv2d(first, second, 3, stride=2, padding=1)
        self.c = nn.Linear(second, len(weights["c.bias"]))
        self.load_state_dict(weights)

    def forward(self, x: Tensor) -> Tensor:
        hidden = nn.functional.silu(self.b(nn.functional.silu(self.a(x))))
        return self.c(hidden.mean(dim=(2, 3)))


class Recorded:
    """A file of a defense: its settings, its tensors, and its networks.

    `settings`: the metadata, with numbers and lists as such. `tensors`: x, draws, states, x_hat, ... in float64, unless
    another `dtype` is given. The networks have the same precision.
    """

    def __init__(self, path: Path, dtype: torch.dtype = torch.float64):
        self.kind, self.dtype = kind(path), dtype
        self.settings = {key: literal(value) for key, value in about(path).items()}
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (a safetensors handle is no dict)
        self.tensors = {k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def eps(self) -> TinyEps:
        """The noise predictor."""
        return TinyEps(self.tensors, bounded=self.kind in ("mimic", "freqpure")).to(self.dtype)

    def denoiser(self) -> Denoiser:
        """The network behind the adapter that it needs: indices 0 to 999, continuous time, or sigma itself."""
        if self.kind in ("likelihood", "scoreopt"):
            return TinyDenoiser(self.eps())
        return (VP if self.kind in ("ldsde", "contrastive") else EpsNet)(self.eps())

    def classifier(self) -> Classifier:
        """The classifier, for images in [0,1] as they are."""
        return Classifier(TinyClassifier(self.tensors).to(self.dtype))


def literal(value: str) -> object:
    """A number or a list that is written as text; other text as it is."""
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value
