"""What is checked of a run before its files are fetched: all that needs neither its images nor its networks."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from dp.attacks.base import FULL
from dp.defense.defended import Defended
from dp.evaluation.caveats import VALUES, gradients
from dp.evaluation.dry import Counted
from dp.rng import Streams
from dp.runs.build import attacker, check_lengths
from dp.runs.compose import CONF, Setup, make, nodes
from dp.runs.help import options
from dp.spelling import near_matches


class StandIn(nn.Module):
    """A classifier without weights. Its logits are pixels, and its activations at each of `taps` are the image."""

    def __init__(self, taps: int):
        super().__init__()
        self.taps = taps

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :10]

    def features(self, x: Tensor) -> Sequence[Tensor]:
        return [x] * self.taps


def check_denoiser(setup: Setup) -> None:
    """Raises ValueError for a command that names a denoiser, if its purifier's yaml chooses the denoiser none."""
    named, denoiser = (setup.config["choices"][group] for group in ("purifier", "denoiser"))
    if (
        "denoiser" in setup.words
        and denoiser != "none"
        and named != "none"
        and spares_denoiser(named, setup.config["plugins"]["folders"])
    ):
        raise ValueError(f"purifier {named} uses no denoiser, got denoiser={denoiser}: leave it out")


def spares_denoiser(purifier: str, folders: Sequence[str]) -> bool:
    """True if the yaml of a purifier, or the one from which it takes its values, chooses the denoiser none."""
    known = options("purifier", folders)
    entries = (yaml.safe_load(known[purifier].read_text()) or {}).get("defaults") or []
    own = any(isinstance(one, dict) and one.get("override /denoiser@_global_.denoiser") == "none" for one in entries)
    return own or any(spares_denoiser(one, folders) for one in entries if isinstance(one, str) and one in known)


def check_early(config: dict) -> None:
    """Raises ValueError for an attack, a threat model or a purifier that the run would refuse later.

    In l2 the largest distance of two images depends on their size, so it is not checked here. Neither is a purifier
    outside dp called, nor one that is told regions, because it may need the run's own images.
    """
    attack, threat, _ = attacker(config)
    x = torch.linspace(0, 1, 3 * 16 * 16).view(1, 3, 16, 16)
    if threat.norm == "linf":
        check_lengths(config["attack"], threat, x)
    node = config["purifier"]
    if not node.get("_partial_"):  # a module, which may load weights
        return
    variants = {name: variant for name, variant in (node.get("gradients") or {}).items() if variant}
    purify = make(node, modules=config["plugins"]["modules"])
    classifier: Any = StandIn(len(config["classifier"].get("taps") or [None]))
    cheap = Counted()
    scored = Defended(purify, cheap, classifier, variants=variants)
    for modes in ((threat.grad,), *gradients(attack, threat.grad)):
        if scored.undefended:
            check_names(modes, config["plugins"]["folders"])
        elif modes != (VALUES,):
            scored.gradient_modes(modes)
    if str(node["_target_"]).startswith("dp.") and not node.get("region"):
        with torch.no_grad():
            scored.purify(x, Streams([0], 0, "dry"))
        if cheap.asked is not None:
            check_variance(config["denoiser"])


class TwiceTheChannels(nn.Module):
    """In place of a network with learned variance."""

    def forward(self, x: Tensor, *labels: Tensor | None) -> Tensor:
        return torch.cat([x, x], dim=1)


def check_variance(node: dict) -> None:
    """Raises ValueError if a denoiser of this kind has no learned variance, whatever its network. One outside dp is not
    asked.
    """
    if str(node.get("_target_")).startswith("dp."):
        adapter = make({key: value for key, value in node.items() if key != "net"}, net=TwiceTheChannels())
        adapter.with_variance(torch.zeros(1, 3, 16, 16), 1.0)


def check_names(modes: Sequence[str], folders: Sequence[str]) -> None:
    """Raises ValueError for a gradient mode that no purifier has. Without a purifier all of them are the classifier's.

    `folders`: of plug-ins.
    """
    known = {FULL, "bpda", "blind", VALUES, *_variants(folders)}
    for name in modes:
        if name not in known:
            near = near_matches(name, sorted(known))
            raise ValueError(f"need grad as one of {', '.join(sorted(known - {VALUES}))}, got grad={name}{near}")


def _variants(folders: Sequence[str]) -> Iterator[str]:
    """The names of the gradient variants of all purifiers."""
    for folder in (CONF, *folders):
        for path in sorted((Path(folder) / "purifier").rglob("*.yaml")):
            for node in nodes(yaml.safe_load(path.read_text())):
                variants = node.get("gradients")
                yield from map(str, variants if isinstance(variants, dict) else ())
