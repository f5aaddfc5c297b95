"""One purification with a cheap denoiser in place of the true one: its cost, and whether its settings are right."""

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dp.compiled import plain_calls
from dp.defense.defended import Defended, unbound
from dp.diffusion.denoisers import Denoiser, Gaussian
from dp.rng import Streams
from dp.subset import Subset

PACKAGE = Path(__file__).parents[1]
MOST_NFE = 10_000  # of one purification: ten times the levels of the finest schedule
BEYOND = 0.9  # how far a purified value may leave [0,1]: an unclamped image leaves it by less, one in [-1,1] by 1


class Dry(NamedTuple):
    """What one sample of a defense does: network evaluations, whether it draws noise, and how many of the evaluations
    the classifier asks for.
    """

    nfe: int
    draws: bool
    classifier: int = 0


class Counted(Gaussian):
    """A cheap denoiser that refuses to be called too often. Its learned variance is the geometric mean of the fixed
    ones. `clock`: the noise level of a time, its own by default. `asked`: the noise level at which a variance was last
    asked for, None if none was.
    """

    def __init__(self, clock: Callable[[float], float] | None = None):
        super().__init__()
        self.clock = clock
        self.asked: float | Tensor | None = None

    def sigma(self, t: float) -> float:
        return super().sigma(t) if self.clock is None else self.clock(t)

    def with_variance(self, z: Tensor, sigma: float | Tensor) -> tuple[Tensor, Tensor]:
        self.asked = sigma
        return self(z, sigma), torch.zeros_like(z)

    def forward(self, z: Tensor, sigma: float | Tensor, label: Tensor | None = None) -> Tensor:
        if self.nfe == MOST_NFE:
            found = "got more: take fewer steps, for example by purifier.steps, purifier.n or purifier.dt"
            raise ValueError(f"need at most {MOST_NFE} network evaluations in one purification, {found}")
        return super().forward(z, sigma)


def dry_nfe(model: Defended, one: Subset) -> int:
    """The network evaluations of one sample, see `dry_run`."""
    return dry_run(model, one).nfe


def check_variance(model: Defended, one: Subset) -> None:
    """If the purifier asks for a learned variance, call the defense's own denoiser for one, once.

    Raises ValueError if it has none.
    """
    if model.denoiser is None:
        return
    cheap = Counted(model.denoiser.sigma)
    dry_run(model, one, cheap)
    if cheap.asked is not None:
        size, device = model.denoiser.size or one.x.shape[2:], _device(model.classifier)
        with torch.no_grad():
            model.denoiser.with_variance(F.interpolate(one.x.to(device), size), cheap.asked)


def check_purifier(model: Defended, one: Subset) -> None:
    """Purify an image twice with the same noise and a cheap denoiser, as `dry_run`, which must have passed before.

    Raises ValueError for a purifier that writes into its input, returns no image of its size, has values more than
    `BEYOND` outside [0,1], or answers otherwise the second time: its noise does not come from the given streams, or it
    remembers. A row of it would be wrong.
    """
    denoiser = None if model.denoiser is None else Counted(model.denoiser.sigma)
    cheap, x, answers = Defended(model.purifier, denoiser, model.classifier), one.x.to(_device(model.classifier)), []
    for _ in range(2):
        given = x.clone()
        with torch.no_grad(), plain_calls():
            answers.append(cheap.purify(given, Streams(one.ids, 0, "dry")))
        if not torch.equal(given, x):
            raise ValueError("need a purifier that leaves its input as it is, got one that writes into it: x = x + ...")
    if answers[0].shape != x.shape:
        raise ValueError(f"need purified images of the given size, {tuple(x.shape)}, got {tuple(answers[0].shape)}")
    least, most = answers[0].min().item(), answers[0].max().item()
    if not (least >= -BEYOND and most <= 1 + BEYOND):
        found = f"got values from {least:.2f} to {most:.2f}: images z in [-1,1] are (z + 1) / 2 in [0,1]"
        raise ValueError(f"need purified images in [0,1], {found}")
    if not torch.equal(*answers):
        found = "got one that differs from call to call: draw noise by rng.randn_like(x) alone, and keep nothing"
        raise ValueError(f"need a purifier that answers the same for the same noise, {found}")


def dry_run(model: Defended, one: Subset, cheap: Counted | None = None) -> Dry:
    """What one purification of an image does, found by running it once with a cheap Gaussian denoiser.

    `cheap`: the denoiser that is called, by default one with the clock of the defense's own. A defense without a
    denoiser is run without one. A randomized classifier is not run, because it says what it asks.
    Raises ValueError if its purifier needs one, for more than `MOST_NFE` network evaluations, and for what a purifier
    outside dp raises.
    """
    try:
        if model.denoiser is not None:
            return _dry_run(model, cheap or Counted(model.denoiser.sigma), one)
        try:
            return _dry_run(model, None, one)
        except (AttributeError, TypeError) as error:  # what a call or a method of None raises
            _dry_run(model, Counted(), one)  # raises again if the purifier itself is wrong
            raise ValueError(
                "need a denoiser for this purifier, got none: choose denoiser=NAME or purifier=none"
            ) from error
    except (ValueError, OSError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        function = unbound(model.purifier)
        name = f"{function.__module__}.{getattr(function, '__name__', type(function).__name__)}"
        if name.startswith("dp."):
            raise
        told = f"{type(error).__name__}: {' '.join(str(error).split())}{_place(error)}"
        raise ValueError(f"need a purifier that runs, got {name} with {told}") from error


def _place(error: BaseException) -> str:
    """` (mine.py, line 8)`: the last place of an error outside dp and installed packages; nothing if there is none."""
    places = ((Path(frame.filename), frame.lineno) for frame in traceback.extract_tb(error.__traceback__))
    own = [(p, n) for p, n in places if PACKAGE not in p.parents and "site-packages" not in p.parts]
    return f" ({own[-1][0].name}, line {own[-1][1]})" if own else ""


def _dry_run(model: Defended, denoiser: Denoiser | None, one: Subset) -> Dry:
    classifier, rng = model.classifier, Streams(one.ids, 0, "dry")
    cheap = Defended(model.purifier, denoiser, classifier)
    with torch.no_grad():
        x_hat = cheap.purify(one.x.to(_device(classifier)).clone(), rng)  # whose own image no purifier may write into
        if not isinstance(x_hat, Tensor):
            raise ValueError(f"need a purifier that returns a tensor, got one that returns a {type(x_hat).__name__}")
        if cheap.classifier_nfe == 0:
            cheap.classify(x_hat, rng)
            return Dry(cheap.nfe, rng.used)
    return Dry(cheap.nfe + cheap.classifier_nfe, True, cheap.classifier_nfe)


def _device(network: nn.Module) -> torch.device:
    """Where a network's weights are; the CPU for a network without weights."""
    return next((weight.device for weight in (*network.parameters(), *network.buffers())), torch.device("cpu"))
