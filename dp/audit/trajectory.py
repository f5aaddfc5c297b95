"""The course of an attack: its iterates on the few images, and what they do to the scored defence on draws that the
attack has not seen.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from dp.audit.check import Subject, streams
from dp.audit.probes import Recorder
from dp.defense.known_noise import KnownNoise
from dp.objectives import margin
from dp.subset import Subset

DRAWS = 10  # of the scored defence at every iterate looked at
LOOKS = 40  # iterates looked at, at most
BEYOND = 2.0  # standard errors
RISING = 0.1  # share of the whole rise that the last fifth of the iterations may still bring


class Track(NamedTuple):
    """An attack on the few images, looked at T times with R draws of the scored defence that it has not seen."""

    at: tuple[int, ...]  # (T) iterations done
    margins: Tensor  # (T,R,B)
    returned: Tensor  # (R,B) margins of what it returned, on other draws ...
    best: Tensor  # (R,B) ... and on those of the iterate that was worst for the defence on the first ones
    x_adv: Tensor  # (B,C,H,W) what it returned
    moved: Tensor  # (B,) largest change of a pixel from the first iterate on
    zero: Tensor  # (B,) share of the gradients that were exactly zero; NaN where it asked for none


def track(subject: Subject) -> Track:
    """The attack's course, run once for all checks."""
    if "track" not in subject.memo:
        size, images = subject.evaluation.lanes, subject.images
        runs = [_run(subject, images.select(slice(k, k + size))) for k in range(0, len(images.ids), size)]
        subject.memo["track"] = Track(
            runs[0].at,
            torch.cat([run.margins for run in runs], dim=2),
            torch.cat([run.returned for run in runs], dim=1),
            torch.cat([run.best for run in runs], dim=1),
            torch.cat([run.x_adv for run in runs]),
            torch.cat([run.moved for run in runs]),
            torch.cat([run.zero for run in runs]),
        )
    return subject.memo["track"]


def _run(subject: Subject, images: Subset) -> Track:
    """The attack on one batch, every iteration with streams of its own."""
    evaluation, attack, x = subject.evaluation, subject.arm.attack, images.x
    known = KnownNoise(subject.arm.attacked, streams(subject, images, "look"), DRAWS)
    model = Recorder(known if evaluation.known_draws else subject.arm.attacked)
    rng, given = streams(subject, images, "attack"), (x, images.y, evaluation.threat)
    state: Any = attack.start(model, *given, rng.draw(0))
    looks = {round(k * attack.steps / LOOKS) for k in range(LOOKS + 1)}
    points, zeros = {}, []
    for done in range(attack.steps + 1):
        if done in looks:
            points[done] = evaluation.threat.admit(attack.current(state), x)[0]
        if done < attack.steps:
            model.log.clear()
            state = attack.step(model, state, *given, rng.draw(1 + done))
            zeros += [model.log[-1].gradient.flatten(1).abs().amax(dim=1) == 0] if model.log else []
    path, x_adv = torch.stack(list(points.values())), evaluation.threat.admit(state, x)[0]  # (T,B,...)
    margins = torch.stack([_margins(subject, images, point, "look") for point in path])  # (T,R,B)
    best = path[_rank(margins).argmax(dim=0).to(x.device), torch.arange(len(x), device=x.device)]
    returned, best = (_margins(subject, images, point, again(subject)) for point in (x_adv, best))
    moved = (path - path[0]).abs().flatten(2).amax(dim=(0, 2)).cpu()
    zero = torch.stack(zeros).double().mean(dim=0).cpu() if zeros else torch.full((len(x),), torch.nan)
    return Track(tuple(points), margins, returned, best, x_adv, moved, zero)


def again(subject: Subject) -> str:
    """The stage of the draws that judge what was returned: others than chose, but where the attack knows its judges."""
    return "look" if subject.evaluation.known_draws else "look-again"


def _margins(subject: Subject, images: Subset, x: Tensor, stage: str) -> Tensor:
    """(R,B) float64 on the CPU."""
    with torch.no_grad():
        logits = subject.arm.scored.logits(x, streams(subject, images, stage), DRAWS)
    return torch.stack([margin(one, images.y) for one in logits]).double().cpu()


def _rank(margins: Tensor) -> Tensor:
    """(T,B): by draws wrong, then by mean margin."""
    mean = margins.mean(dim=1)
    return (margins > 0).double().sum(dim=1) + torch.sigmoid(mean)


def climb(found: Track) -> tuple[Tensor, Tensor]:
    """(T,R) the loss, the mean over images of the margin below zero, which no draw that is wrong can raise further:
    where the attack stands, and, image by image, at its best so far.
    """
    short = found.margins.clamp(max=0)  # (T,R,B)
    mean, best = short.mean(dim=1), []
    top = torch.zeros(mean.shape[1], dtype=torch.long)
    for t in range(len(mean)):
        top = torch.where(mean[t] > mean.gather(0, top[None])[0], t, top)
        best.append(short.gather(0, top.view(1, 1, -1).expand(1, *short.shape[1:]))[0].mean(dim=1))
    return short.mean(dim=2), torch.stack(best)


def beyond(gains: Tensor) -> bool:
    """Whether the mean of gains (R,), one for each draw, is above zero by more than the draws' noise."""
    return float(gains.mean()) > BEYOND * float(gains.std()) / len(gains) ** 0.5


def unfinished(found: Track) -> tuple[bool, float]:
    """Whether the last fifth of the iterations still raised the best loss, beyond noise and by more than `RISING` of
    the rise from the first point; and by how much.
    """
    stands, best = climb(found)
    late = max(k for k, done in enumerate(found.at) if done <= 0.8 * found.at[-1])
    gain, rise = best[-1] - best[late], best[-1] - stands[0]
    return beyond(gain) and float(gain.mean()) > RISING * float(rise.mean()), float(gain.mean())
