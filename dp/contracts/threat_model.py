"""The contract of a threat model: its random points are feasible, and so are the clean images."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from dp.contracts.failure import Failure, Raised, called, difference
from dp.rng import Streams
from dp.threat_models.ball import BALLS, ThreatModel

SLACK = 1e-6
FIXED = "draw noise from rng only (rng.uniform_like, rng.randn_like)"


class Proven(NamedTuple):
    """An attack's state, with the certificate that its images are feasible."""

    x_adv: Tensor  # (B,C,H,W)
    proof: Tensor  # (B,...)


def failures(model: ThreatModel, x: Tensor, ids: Tensor) -> list[Failure]:
    """The properties that a threat model lacks on images x (B,C,H,W) in [0,1] with these ids, at least two."""
    try:
        noise, proof = called("proven_noise", model.proven_noise, x, Streams(ids, 3, "null"))
        start = called("random_start", model.random_start, x, Streams(ids, 3, "null"))
        for name, point in (("random_start", start), ("noise", noise)):
            found = list(_of_point(name, point, x))
            if found:
                return found
        found = [*_of_streams(model, start, x, ids), *_of_admission(model, noise, proof, x)]
        return found + (list(_of_projection(model, x)) if model.norm in BALLS else [])
    except Raised as error:
        return [error.failure]


def _of_point(name: str, point: Tensor, x: Tensor) -> Iterator[Failure]:
    if (point.shape, point.dtype) != (x.shape, x.dtype):
        what = f"{name} returned {tuple(point.shape)} {point.dtype} for {tuple(x.shape)} {x.dtype}"
        yield Failure("shape", what, "return an image for each image")
    elif not (point.min() >= 0 and point.max() <= 1):
        what = f"{name} reaches from {point.min().item():.3g} to {point.max().item():.3g}, need [0, 1]"
        yield Failure("range", what, "end with project, which cuts by the box")
    elif not (point != x).flatten(1).any(1).all():
        unmoved = int((point == x).flatten(1).all(1).sum())
        yield Failure("moves", f"{name} leaves {unmoved} of {len(x)} images unchanged", "draw a point of the whole set")


def _of_streams(model: ThreatModel, start: Tensor, x: Tensor, ids: Tensor) -> Iterator[Failure]:
    again, back = model.random_start(x, Streams(ids, 3, "null")), torch.arange(len(x) - 1, -1, -1)
    if not torch.equal(again, start):
        what = f"the same streams gave another random_start, {difference(again, start)}"
        yield Failure("determinism", what, FIXED)
        return
    turned = model.random_start(x[back], Streams(ids[back], 3, "null"))[back]
    if not torch.allclose(turned, start, rtol=0, atol=SLACK):
        yield Failure("order", f"random_start changes with the place in the batch, {difference(turned, start)}", FIXED)


def _of_admission(model: ThreatModel, noise: Tensor, proof: Tensor, x: Tensor) -> Iterator[Failure]:
    advice = "noise, project, distance and admit must agree about what is feasible"
    admitted, distance = called("admit", model.admit, Proven(noise, proof), x)
    if (distance.shape, distance.dtype) != ((len(x),), torch.float64):
        what = f"admit returned distances {tuple(distance.shape)} {distance.dtype}"
        yield Failure("distance", what, "return one distance for each image, in float64")
        return
    if not torch.allclose(admitted, noise, rtol=0, atol=SLACK):
        yield Failure("feasible", f"admit moves noise of its own, {difference(admitted, noise)}", advice)
    low, high = distance.min().item(), distance.max().item()
    if low <= 0 or high > model.eps + SLACK:
        what = (
            f"the distances of noise reach from {low:.4g} to {high:.4g}, need more than 0 and at most {model.eps:.4g}"
        )
        yield Failure("feasible", what, advice)
    clean, none = called("admit", model.admit, Proven(x, model.unchanged(x)), x)
    if not torch.equal(clean, x) or none.abs().max() > 0:
        what = f"admit does not take the clean images as they are, at a distance of {none.abs().max().item():.3g}"
        yield Failure("clean", what, advice)


def _of_projection(model: ThreatModel, x: Tensor) -> Iterator[Failure]:
    """Any point is moved into the ball and the box, and a feasible one stays."""
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    if not torch.equal(called("project", model.project, x, x), x):
        yield Failure("projection", "project moves a clean image", "a feasible point must stay, bit for bit")
        return
    for far in (0.01, 0.3, 5.0):
        for point in (x + far * noise, model.ascend(x, noise, far)):
            inside = model.project(point, x)
            distance = model.distance(inside, x).max().item()
            if distance > model.eps + SLACK or inside.min() < 0 or inside.max() > 1:
                reach = f"{inside.min().item():.3g} to {inside.max().item():.3g}"
                what = f"a projected point is {distance:.4g} away (need {model.eps:.4g}), with values {reach}"
                yield Failure("projection", what, "move it into the ball and then into the box [0, 1]")
                return
            if not torch.equal(model.project(inside, x), inside):
                what = f"a second projection moves a point again, {difference(model.project(inside, x), inside)}"
                yield Failure("projection", what, "a feasible point must stay, bit for bit")
                return
