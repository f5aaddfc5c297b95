"""The trajectory of an attack: its iterates, and their losses on samples that the attack has not used."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from dp.audit.check import Subject, streams
from dp.audit.probes import Recorder
from dp.audit.stages import Stage
from dp.defense.known_noise import KnownNoise
from dp.objectives import margin
from dp.subset import Subset

SAMPLES = 10  # samples of the scored defense at every evaluated iterate
POINTS = 40  # the largest number of evaluated iterates
STANDARD_ERRORS = 2.0  # a gain counts if it exceeds so many
RISING = 0.1  # the last fifth of the iterations may bring this share of the whole rise


class Trajectory(NamedTuple):
    """An attack on B images, evaluated T times with R samples of the scored defense that it has not used."""

    steps: tuple[int, ...]  # (T): iterations done
    margins: Tensor  # (T,R,B): margins of the iterates
    returned: Tensor  # (R,B): margins of the returned point, on other samples
    best: Tensor  # (R,B): margins, on these other samples, of the iterate with the worst result in `margins`
    x_adv: Tensor  # (B,C,H,W) in [0,1]: the returned point
    moved: Tensor  # (B,): largest change of a pixel since the first iterate
    zero: Tensor  # (B,): share of gradients that were exactly zero; NaN if the attack takes none


def trajectory(subject: Subject) -> Trajectory:
    """The trajectory of the run's attack. It is computed once for all checks."""
    if "trajectory" not in subject.memo:
        size, images = subject.evaluation.lanes, subject.images
        runs = [_run(subject, images.select(slice(k, k + size))) for k in range(0, len(images.ids), size)]
        subject.memo["trajectory"] = Trajectory(
            runs[0].steps,
            torch.cat([run.margins for run in runs], dim=2),
            torch.cat([run.returned for run in runs], dim=1),
            torch.cat([run.best for run in runs], dim=1),
            torch.cat([run.x_adv for run in runs]),
            torch.cat([run.moved for run in runs]),
            torch.cat([run.zero for run in runs]),
        )
    return subject.memo["trajectory"]


def _run(subject: Subject, images: Subset) -> Trajectory:
    """The trajectory on one batch. Every iteration has noise of its own."""
    evaluation, attack, x = subject.evaluation, subject.arm.attack, images.x
    known = KnownNoise(subject.arm.attacked, streams(subject, images, Stage.TRAJECTORY), SAMPLES)
    model = Recorder(known if evaluation.known_draws else subject.arm.attacked)
    rng, given = streams(subject, images, Stage.ATTACK), (x, images.y, evaluation.threat)
    state: Any = attack.start(model, *given, rng.draw(0))
    evaluated = {round(k * attack.steps / POINTS) for k in range(POINTS + 1)}
    points, zeros = {}, []
    for done in range(attack.steps + 1):
        if done in evaluated:
            points[done] = evaluation.threat.admit(attack.current(state), x)[0]
        if done < attack.steps:
            model.log.clear()
            state = attack.step(model, state, *given, rng.draw(1 + done))
            zeros += [model.log[-1].gradient.flatten(1).abs().amax(dim=1) == 0] if model.log else []
    path, x_adv = torch.stack(list(points.values())), evaluation.threat.admit(state, x)[0]  # (T,B,...)
    margins = torch.stack([_margins(subject, images, point, Stage.TRAJECTORY) for point in path])  # (T,R,B)
    best = path[_rank(margins).argmax(dim=0).to(x.device), torch.arange(len(x), device=x.device)]
    returned, best = (_margins(subject, images, point, again(subject)) for point in (x_adv, best))
    moved = (path - path[0]).abs().flatten(2).amax(dim=(0, 2)).cpu()
    zero = torch.stack(zeros).double().mean(dim=0).cpu() if zeros else torch.full((len(x),), torch.nan)
    return Trajectory(
        steps=tuple(points), margins=margins, returned=returned, best=best, x_adv=x_adv, moved=moved, zero=zero
    )


def again(subject: Subject) -> Stage:
    """The stage of the samples that evaluate the returned point.

    They differ from those that found the worst iterate, unless the attack knows the noise that scores.
    """
    return Stage.TRAJECTORY if subject.evaluation.known_draws else Stage.TRAJECTORY_AGAIN


def _margins(subject: Subject, images: Subset, x: Tensor, stage: Stage) -> Tensor:
    """The margins (R,B) of points x, float64 on the CPU."""
    with torch.no_grad():
        logits = subject.arm.scored.logits(x, streams(subject, images, stage), SAMPLES)
    return torch.stack([margin(one, images.y) for one in logits]).double().cpu()


def _rank(margins: Tensor) -> Tensor:
    """(T,B): the order of points, by the number of wrong samples and then by the mean margin."""
    mean = margins.mean(dim=1)
    return (margins > 0).double().sum(dim=1) + torch.sigmoid(mean)


def loss_curves(path: Trajectory) -> tuple[Tensor, Tensor]:
    """Two loss curves (T,R): of the current iterate, and of the best iterate so far for each image.

    The loss is the mean over images of the margin, cut at zero so that a wrong sample cannot raise it further.
    """
    losses = path.margins.clamp(max=0)  # (T,R,B)
    mean, best = losses.mean(dim=1), []
    top = torch.zeros(mean.shape[1], dtype=torch.long)
    for t in range(len(mean)):
        top = torch.where(mean[t] > mean.gather(0, top[None])[0], t, top)
        best.append(losses.gather(0, top.view(1, 1, -1).expand(1, *losses.shape[1:]))[0].mean(dim=1))
    return losses.mean(dim=2), torch.stack(best)


def beyond(gains: Tensor) -> bool:
    """True if the mean of the gains (R,), one per sample, is above zero by more than their noise."""
    return float(gains.mean()) > STANDARD_ERRORS * float(gains.std()) / len(gains) ** 0.5


def unfinished(path: Trajectory) -> tuple[bool, float]:
    """True if the last fifth of the iterations still raised the best loss, and by how much.

    The gain counts if it is beyond noise and more than `RISING` of the whole rise.
    """
    current, best = loss_curves(path)
    late = max(k for k, done in enumerate(path.steps) if done <= 0.8 * path.steps[-1])
    gain, rise = best[-1] - best[late], best[-1] - current[0]
    return beyond(gain) and float(gain.mean()) > RISING * float(rise.mean()), float(gain.mean())
