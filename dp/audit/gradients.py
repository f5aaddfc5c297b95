"""Checks of the gradient: is it the derivative of the scored defense, and is it precise enough for an attack?"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from dp.audit.check import Finding, Subject, audited, differentiated, not_applicable, plural, reaches, some, streams
from dp.audit.probes import SMALLEST, Probe, cosine, gradient_probes, main, one_step, queried
from dp.audit.stages import Stage
from dp.audit.step_direction import step
from dp.defense.defended import Defended
from dp.defense.wrapper import Query
from dp.diffusion.denoisers import Denoiser
from dp.evaluation.caveats import mode_name
from dp.objectives import margin
from dp.rng import cat_draws
from dp.subset import Subset

SWEEP = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7)  # lengths h of the differences, for directions of length 1
DERIVATIVE = 1e-3  # largest relative error of an exact gradient
ADJOINTS = (("adjoint",),)  # gradient modes that are meant to be the derivative, up to the steps of a solver
ADJOINT = 0.1  # largest relative error of an adjoint; the bound is ours
GOOD = 0.9  # a mean gradient is good if its split-half cosine is above this
NOISE = 0.1  # below this it is almost only noise


@audited("derivative", "the attack's gradient against central differences of the scored defense's loss")
def derivative(subject: Subject) -> Finding:
    """Compare the attack's gradient with central differences of the scored defense's loss, the margin.

    Both are in float64 and use the same noise. The point is a random point of the threat model, at least .01 inside the
    box. A mask or a clamp has kinks, and a difference across a kink is wrong. So the error of a direction is the
    smallest over the lengths h, the error of an image is the median over directions, and the worst image decides. All
    images of the audit are tried, because a fault may concern some of them only. Only a gradient that is meant to be
    the derivative can fail, or one that is zero at all pixels of an image. An approximation is compared with the scored
    defense's own gradient.
    """
    images, exact = subject.images, subject.claims_exact
    claims = [()] if exact else subject.claimed
    names = [subject.called(modes) for modes in claims]
    errors, silent = zip(*(_differences(subject, images, modes) for modes in claims), strict=True)  # (H,V,B), (B) each
    zero = int(torch.stack(silent).any(dim=0).sum())
    best = torch.stack([e.amin(dim=0) for e in errors])  # (N,V,B)
    each = best.median(dim=1).values.amax(dim=1).tolist()  # (N): the worst image
    value = f"relative error {max(each):.1e}" + (f", of the worst direction {float(best.amax()):.1e}" if exact else "")
    wrong = max(each) > DERIVATIVE
    bad_adjoint = any(modes in ADJOINTS and error > ADJOINT for modes, error in zip(claims, each, strict=True))
    status = "FAIL" if (wrong and exact) or bad_adjoint else "WARN" if wrong else "PASS"
    others = [modes for modes in claims if modes]
    if wrong and others:
        value = (
            f"the attack's gradient is not the derivative of the scored defense: {value}; {_beside(subject, others)}"
        )
    elif not exact:
        value = f"approximation ({', '.join(names)}): {value}"
    if zero:
        value, status = f"zero gradient on {plural(zero, 'image')}; {value}", "FAIL"
    sweep = _sweep(subject)
    curve = {"x": sweep, **{n: e.flatten(1).median(dim=1).values.tolist() for n, e in zip(names, errors, strict=True)}}
    count = f"{len(images.ids)} images, {plural(best.shape[1], 'direction')}, {len(sweep)} lengths"
    bound = f"<= {DERIVATIVE:g}" + (f", of an adjoint {ADJOINT:g}" if bad_adjoint else "")
    return Finding("derivative", value, bound, status, count, 0.0, curve)


def _beside(subject: Subject, claims: Sequence[tuple[str, ...]]) -> str:
    """The attack's gradients in these modes beside the scored defense's own one, at the same point, in words."""
    images, scored = subject.images, subject.arm.scored
    rng, samples = streams(subject, images, Stage.DERIVATIVE), 1 if subject.quick else 2
    images = images._replace(x=_point(subject, images))
    if not reaches(scored, images, rng):
        return "the scored defense has no gradient of its own"
    with _remembering(_denoisers(scored), "recompute", 1):  # it may need more memory than the attack's gradient
        own = scored.loss_gradient(images.x, images.y, rng, samples, margin)[1]
    if not bool(own.any()):
        return "the scored defense's own gradient is zero"
    texts = []
    for modes in claims:
        other = differentiated(subject, modes).loss_gradient(images.x, images.y, rng, samples, margin)[1]
        along, _, length = likeness(own, other)
        texts.append(f"{mode_name(modes)} has a cosine of {along:.3f} with it and {length:.3g} of its length")
    return "; ".join(texts)


def likeness(exact: Tensor, other: Tensor) -> tuple[float, float, float]:
    """Mean cosine over images, share of pixels with the same sign, and median ratio of the lengths, of (B,C,H,W)."""
    signs = float((exact.sign() == other.sign()).float().mean())
    lengths = [g.flatten(1).norm(dim=1) for g in (other, exact)]
    ratio = float((lengths[0] / lengths[1].clamp(min=SMALLEST)).median())
    return float(cosine(exact, other).mean()), signs, ratio


def _denoisers(model: Defended) -> list[Denoiser]:
    return [module for module in model.modules() if isinstance(module, Denoiser)]


def _sweep(subject: Subject) -> tuple[float, ...]:
    return SWEEP[2:5] if subject.quick else SWEEP


def _differences(subject: Subject, images: Subset, modes: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """The relative errors (H,V,B) by length, direction and image, and (B,) True if the gradient is zero.

    The directions are random, and the last one is the sign of the gradient.
    """
    attacked, scored = differentiated(subject, modes), subject.arm.scored
    if attacked.precision != scored.precision:  # the check `precision` has the difference
        attacked = scored.gradient_modes(modes)
    # One deepcopy of both, so that networks that they share stay shared.
    attacked, scored = copy.deepcopy((attacked, scored))
    attacked, scored, samples = attacked.double(), scored.double(), 1 if subject.quick else 2
    wide = subject.evaluation.lanes * attacked.draws_per_call // (2 * samples)  # float64 is twice as wide
    parts = [
        _quotients(subject, images.select(slice(first, first + max(1, wide))), attacked, scored, samples)
        for first in range(0, len(images.ids), max(1, wide))
    ]
    return torch.cat([errors for errors, _ in parts], dim=2), torch.cat([zero for _, zero in parts])


def _quotients(
    subject: Subject, images: Subset, attacked: Defended, scored: Defended, samples: int
) -> tuple[Tensor, Tensor]:
    """`_differences` of the images of one call, of defenses in float64."""
    noise, rng = streams(subject, images, Stage.DIRECTIONS), streams(subject, images, Stage.DERIVATIVE)
    x = _point(subject, images, torch.float64)
    _, gradient = attacked.loss_gradient(x, images.y, rng, samples, margin)
    directions = [noise.draw(1 + k).randn_like(x) for k in range(3 if subject.quick else 8)] + [gradient.sign()]

    def value(at: Tensor) -> Tensor:
        with torch.no_grad():
            return scored.loss(at, images.y, rng, samples, margin)

    errors = []
    for direction in directions:
        v = direction / direction.flatten(1).norm(dim=1).clamp(min=SMALLEST).view(-1, 1, 1, 1)
        slope = (gradient * v).flatten(1).sum(dim=1)  # (B,)
        quotients = torch.stack([(value(x + h * v) - value(x - h * v)) / (2 * h) for h in _sweep(subject)])  # (H,B)
        errors.append((quotients - slope).abs() / torch.maximum(quotients.abs(), slope.abs()).clamp(min=SMALLEST))
    return torch.stack(errors, dim=1), gradient.flatten(1).abs().amax(dim=1) == 0


def _point(subject: Subject, images: Subset, dtype: torch.dtype = torch.float32) -> Tensor:
    """(B,C,H,W): a random point of the threat model, inside the box."""
    noise = streams(subject, images, Stage.DIRECTIONS).draw(0)
    return subject.evaluation.threat.noise(images.x, noise).to(dtype).clamp(0.01, 0.99)


@audited("recompute", "losses and gradients with and without activation checkpointing")
def recompute(subject: Subject) -> Finding:
    """Compare losses and gradients with activation checkpointing and with stored activations, bit for bit.

    They differ if a network draws noise itself, because it then draws other noise when it is recomputed. If a run must
    recompute for lack of memory, the comparison stores the activations of as many calls as fit.
    """
    model = subject.arm.attacked
    denoisers = _denoisers(model)
    if model.bpda:
        denoisers = [m for m in model.classifier.modules() if isinstance(m, Denoiser)]
    if not denoisers:
        return not_applicable("recompute", "no gradient passes a denoiser")
    images = some(subject.images, 2)
    rng, results = streams(subject, images, Stage.RECOMPUTE), []
    at_once = subject.evaluation.lanes * model.draws_per_call // len(images.ids)
    keep = denoisers[0].recompute.keep * max(1, at_once)
    store = denoisers[0].memory == "store"
    if not store and keep <= 1:
        return not_applicable("recompute", "no call fits in memory to compare with")
    for memory, newest in ((denoisers[0].memory, keep), ("recompute", 1)):
        with _remembering(denoisers, memory, newest):
            results.append(model.loss_gradient(images.x, images.y, rng, 1, margin))
    if model.nfe == 0:
        return not_applicable("recompute", "the purification calls no network")
    errors = [float((a - b).abs().max()) for a, b in zip(*results, strict=True)]
    value = "equal bit for bit" if not any(errors) else f"loss differs by {errors[0]:.1e}, gradient by {errors[1]:.1e}"
    status = "FAIL" if any(errors) else "PASS"
    how = "activations stored" if store else f"newest {keep} of {model.nfe} calls stored"
    return Finding("recompute", f"{value} ({how})", "equal", status, f"{len(images.ids)} images, 1 sample", 0.0)


@contextmanager
def _remembering(denoisers: Sequence[Denoiser], memory: str, keep: int) -> Iterator[None]:
    """Within it, the denoisers have another memory mode and keep the activations of `keep` calls each."""
    before = [(denoiser.memory, denoiser.recompute.keep) for denoiser in denoisers]
    for denoiser in denoisers:
        denoiser.memory, denoiser.recompute.keep = memory, keep
    try:
        yield
    finally:
        for denoiser, (was, kept) in zip(denoisers, before, strict=True):
            denoiser.memory, denoiser.recompute.keep = was, kept


@audited("methods", "every gradient mode of the defense against the exact one")
def methods(subject: Subject) -> Finding:
    """Compare the gradients of all other gradient modes with the defense's own gradient, with the same noise.

    The value gives the mean cosine over images, the share of pixels with the same sign, and the ratio of the lengths.
    """
    scored, images = subject.arm.scored, some(subject.images, 8)
    names = [] if scored.undefended else [*scored.variants, "bpda", "blind"]
    modes = {name: scored.gradient_mode(name) for name in names}
    if subject.arm.attacked is not scored:
        modes = {"attacked": subject.arm.attacked, **modes}
    if not modes:
        return not_applicable("methods", "no purification, so no other gradient")
    rng, samples = streams(subject, images, Stage.METHODS), 1 if subject.quick else 4
    exact = scored.loss_gradient(images.x, images.y, rng, samples, margin)[1]
    if not bool(exact.any()):
        return Finding("methods", "the defense's own gradient is zero", "-", "INFO", f"{len(images.ids)} images", 0.0)
    lines, cosines = [], []
    for name, model in modes.items():
        along, signs, length = likeness(exact, model.loss_gradient(images.x, images.y, rng, samples, margin)[1])
        cosines.append(along)
        lines.append(f"{name} {along:.2f}/{signs:.2f}/{length:.2g}")
    value = f"cosine/same signs/length: {', '.join(lines)}"
    curve = {"x": list(range(len(modes))), "cosine": cosines}
    return Finding("methods", value, "-", "INFO", f"{len(images.ids)} images, {plural(samples, 'sample')}", 0.0, curve)


@audited("EOT", "whether the attack's samples are enough for a useful gradient")
def expectation(subject: Subject) -> Finding:
    """Measure the cosine between the mean gradients of two disjoint sets of N samples.

    It uses the first point and the loss of the attack; of several attacks, the `main` one. For an N above the largest
    tried, the cosine is predicted from the signal and the noise at the largest. The check fails if the gradient of the
    attack's own N is almost only noise, beyond doubt.
    """
    probes = gradient_probes(subject)
    if not probes or subject.evaluation.known_draws:
        why = "the attack knows the samples that score" if probes else "a package takes its gradients in its own way"
        return not_applicable("EOT", why)
    images = some(subject.images, 8)
    probe = main(probes)
    query, _ = one_step(probe, images, subject.evaluation.threat, streams(subject, images, Stage.EOT))
    most = 8 if subject.quick else 128
    if query is None:
        return not_applicable("EOT", f"the first step of {probe.name} takes no gradient")
    gradients = _samples(subject, probe, images, query, 2 * most)  # (2 most,B,D)
    sizes = [2**k for k in range(most.bit_length())]
    curve = [float(_split_half(gradients, n).mean()) for n in sizes]
    enough = next((n for n, c in zip(sizes, curve, strict=True) if c > GOOD), None)
    n = probe.attack.samples
    split = _split_half(gradients, min(n, most))
    doubt = 2 * float(split.std()) / len(split) ** 0.5 if len(split) > 1 else 1.0
    at_n, at_most = (_predicted(float(split.mean()) + more, max(1.0, n / most)) for more in (0.0, doubt))
    good = f"above {GOOD:g} from {enough} on" if enough else f"not above {GOOD:g} with up to {most} samples"
    value = f"{at_n:.2f} at {probe.name}'s {plural(n, 'sample')}{'' if n <= most else ' (predicted)'}; {good}"
    status = "FAIL" if at_most < NOISE else "WARN" if at_n <= GOOD else "PASS"
    count = f"{len(images.ids)} images, {2 * most} samples"
    return Finding("EOT", value, f"> {GOOD:g}", status, count, 0.0, {"x": sizes, "cosine": curve})


def _samples(subject: Subject, probe: Probe, images: Subset, query: Query, samples: int) -> Tensor:
    """(samples,B,D) float32: the gradients of single samples, for the loss and point of a query.

    The calls are no larger than those of the run.
    """
    pack = max(1, min(samples, probe.model.draws_per_call * subject.evaluation.lanes // len(images.ids)))
    model, rng, gradients = queried(probe, query), streams(subject, images, Stage.EOT_SAMPLES), []
    for first in range(0, samples, pack):
        ks = range(first, min(first + pack, samples))
        x, y = query.x.repeat(len(ks), 1, 1, 1), images.y.repeat(len(ks))
        _, grad = model.loss_gradient(x, y, cat_draws(rng, ks), 1, query.loss, query.auxiliary)
        gradients.append(grad.flatten(1).unflatten(0, (len(ks), len(images.ids))))
    return torch.cat(gradients)


def _split_half(gradients: Tensor, n: int) -> Tensor:
    """Cosines between mean gradients of n samples, for every image and every disjoint pair of means."""
    pairs = len(gradients) // (2 * n)
    means = gradients[: 2 * n * pairs].unflatten(0, (2 * pairs, n)).mean(dim=1)  # (2 pairs,B,D)
    return cosine(means[::2].flatten(0, 1), means[1::2].flatten(0, 1))


def _predicted(split: float, times: float) -> float:
    """The cosine with `times` as many samples as those that gave the cosine `split`.

    It is r / (1 + r), where r is the ratio of signal to noise.
    """
    rate = times * split / max(1 - split, 1e-9)
    return split if times == 1 else max(0.0, rate / (1 + rate))


CHECKS = (derivative, recompute, methods, expectation, step)
QUICK = (derivative, recompute, expectation, step)
