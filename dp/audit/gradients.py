"""Whether the attack's gradient is the scored defense's derivative, and good enough to go along (checks 1 to 4)."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from dp.audit.check import Finding, Subject, audited, differentiated, not_applicable, plural, some, streams
from dp.audit.probes import SMALLEST, Probe, cosine, gradient_probes, main, one_step, queried
from dp.audit.stages import Stage
from dp.audit.step_direction import step
from dp.defense.wrapper import Query
from dp.diffusion.denoisers import Denoiser
from dp.objectives import margin
from dp.rng import cat_draws
from dp.subset import Subset

SWEEP = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7)  # lengths of the differences, of directions of length 1
DERIVATIVE = 1e-3  # largest relative error of an exact gradient
GOOD = 0.9  # split-half cosine of a mean gradient that is worth its steps ...
NOISE = 0.1  # ... and one below which it is all but noise


@audited("derivative")
def derivative(subject: Subject) -> Finding:
    """Check 1. The gradient that the attack is given against central differences of the scored defense's loss, the
    margin, in float64 with the same noise; the point is random noise of the threat model around the image, kept off
    the box's ends.

    A mask or a clamp has kinks, which spoil a difference that straddles one: the error of a direction is the best over
    lengths h, that of an image the median over directions, and the verdict goes by the worst image. Only a gradient
    that is claimed to be exact can fail, or one that is zero everywhere, which no difference could contradict.
    """
    images = some(subject.images, 2 if subject.quick else 4)
    exact = subject.claims_exact
    claims = [()] if exact else subject.claimed
    names = [subject.called(modes) for modes in claims]
    errors, silent = zip(*(_differences(subject, images, modes) for modes in claims), strict=True)  # (H,V,B), (B) each
    zero = int(torch.stack(silent).any(dim=0).sum())
    best = torch.stack([e.amin(dim=0) for e in errors])  # (N,V,B)
    worst = float(best.median(dim=1).values.amax())
    value = f"relative error {worst:.1e}" + (f", largest of a direction {float(best.amax()):.1e}" if exact else "")
    wrong = worst > DERIVATIVE
    verdict = "FAIL" if wrong and exact else "WARN" if wrong else "PASS"
    if not exact:
        value = f"approximation ({', '.join(names)}): {value}"
    if zero:
        value, verdict = f"zero gradient on {plural(zero, 'image')}; {value}", "FAIL"
    sweep = _sweep(subject)
    curve = {"x": sweep, **{n: e.flatten(1).median(dim=1).values.tolist() for n, e in zip(names, errors, strict=True)}}
    count = f"{len(images.ids)} images, {plural(best.shape[1], 'direction')}, {len(sweep)} lengths"
    return Finding("derivative", value, f"<= {DERIVATIVE:g}", verdict, count, 0.0, curve)


def _sweep(subject: Subject) -> tuple[float, ...]:
    return SWEEP[2:5] if subject.quick else SWEEP


def _differences(subject: Subject, images: Subset, modes: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """(H,V,B) relative errors by length, direction and image; directions are random, and the gradient's signs last.
    And (B,) whether the gradient is zero.
    """
    given, scored = copy.deepcopy((differentiated(subject, modes), subject.arm.scored))  # one copy where they are one
    given, scored, samples = given.double(), scored.double(), 1 if subject.quick else 2
    noise, rng = streams(subject, images, Stage.DIRECTIONS), streams(subject, images, Stage.DERIVATIVE)
    x = subject.evaluation.threat.noise(images.x, noise.draw(0)).double().clamp(0.01, 0.99)
    _, gradient = given.loss_gradient(x, images.y, rng, samples, margin)
    ways = [noise.draw(1 + k).randn_like(x) for k in range(3 if subject.quick else 8)] + [gradient.sign()]

    def value(at: Tensor) -> Tensor:
        with torch.no_grad():
            return scored.loss(at, images.y, rng, samples, margin)

    errors = []
    for way in ways:
        v = way / way.flatten(1).norm(dim=1).clamp(min=SMALLEST).view(-1, 1, 1, 1)
        slope = (gradient * v).flatten(1).sum(dim=1)  # (B,)
        quotients = torch.stack([(value(x + h * v) - value(x - h * v)) / (2 * h) for h in _sweep(subject)])  # (H,B)
        errors.append((quotients - slope).abs() / torch.maximum(quotients.abs(), slope.abs()).clamp(min=SMALLEST))
    return torch.stack(errors, dim=1), gradient.flatten(1).abs().amax(dim=1) == 0


@audited("recompute")
def recompute(subject: Subject) -> Finding:
    """Check 2. Losses and gradients with the networks' activations recomputed are those with all of them stored, bit
    for bit; noise drawn inside a network is drawn anew when that is recomputed.

    Where a run recomputes because it must, one that keeps as many calls as its memory holds stands in for storing.
    """
    model = subject.arm.attacked
    if model.denoiser is None or model.bpda:
        return not_applicable("recompute", "no gradient passes a network of the purification")
    images = some(subject.images, 2)
    rng, answers = streams(subject, images, Stage.RECOMPUTE), []
    at_once = subject.evaluation.lanes * model.draws_per_call // len(images.ids)
    keep = model.denoiser.recompute.keep * max(1, at_once)
    store = model.denoiser.memory == "store"
    if not store and keep <= 1:
        return not_applicable("recompute", "no call fits in memory to compare with")
    for memory, newest in ((model.denoiser.memory, keep), ("recompute", 1)):
        with _remembering(model.denoiser, memory, newest):
            answers.append(model.loss_gradient(images.x, images.y, rng, 1, margin))
    if model.nfe == 0:
        return not_applicable("recompute", "no purification")
    apart = [float((a - b).abs().max()) for a, b in zip(*answers, strict=True)]
    value = "the same bits" if not any(apart) else f"loss differs by {apart[0]:.1e}, gradient by {apart[1]:.1e}"
    verdict, how = "FAIL" if any(apart) else "PASS", "stored" if store else f"newest {keep} of {model.nfe} calls stored"
    return Finding("recompute", f"{value} ({how})", "0", verdict, f"{len(images.ids)} images, 1 sample", 0.0)


@contextmanager
def _remembering(denoiser: Denoiser, memory: str, keep: int) -> Iterator[None]:
    before = denoiser.memory, denoiser.recompute.keep
    denoiser.memory, denoiser.recompute.keep = memory, keep
    try:
        yield
    finally:
        denoiser.memory, denoiser.recompute.keep = before


@audited("methods")
def methods(subject: Subject) -> Finding:
    """Check 3. The gradients of all gradient modes that this defense has beside its own, with the same noise: mean
    cosine over images, share of pixels with the same sign, and ratio of lengths.
    """
    scored, images = subject.arm.scored, some(subject.images, 8)
    names = [] if scored.undefended else [*scored.variants, "bpda", "blind"]
    modes = {name: scored.gradient_mode(name) for name in names}
    if subject.arm.attacked is not scored:
        modes = {"attacked": subject.arm.attacked, **modes}
    if not modes:
        return not_applicable("methods", "no purification, so no other gradient")
    rng, samples = streams(subject, images, Stage.METHODS), 1 if subject.quick else 4
    own = scored.loss_gradient(images.x, images.y, rng, samples, margin)[1]
    lines, cosines = [], []
    for name, model in modes.items():
        other = model.loss_gradient(images.x, images.y, rng, samples, margin)[1]
        cosines.append(float(cosine(own, other).mean()))
        signs = float((own.sign() == other.sign()).float().mean())
        lengths = [g.flatten(1).norm(dim=1) for g in (other, own)]
        ratio = float((lengths[0] / lengths[1].clamp(min=SMALLEST)).median())
        lines.append(f"{name} {cosines[-1]:.2f}/{signs:.2f}/{ratio:.2g}")
    value = f"cosine/same signs/length: {', '.join(lines)}"
    curve = {"x": list(range(len(modes))), "cosine": cosines}
    return Finding("methods", value, "-", "INFO", f"{len(images.ids)} images, {plural(samples, 'sample')}", 0.0, curve)


@audited("EOT")
def expectation(subject: Subject) -> Finding:
    """Check 4. Cosine between the mean gradients of two disjoint sets of N samples, at the first point and of the loss
    that the attack asks about; fails where the attack's own N leaves all but noise beyond doubt.

    Beyond the N that were tried it is what signal and noise of the largest predict. Of several attacks
    the `main` one counts.
    """
    probes = gradient_probes(subject)
    if not probes or subject.evaluation.known_draws:
        why = "the attack knows the samples that score" if probes else "a package asks for its gradients in its own way"
        return not_applicable("EOT", why)
    images = some(subject.images, 4)
    probe = main(probes)
    query, _ = one_step(probe, images, subject.evaluation.threat, streams(subject, images, Stage.EOT))
    most = 8 if subject.quick else 128
    if query is None:
        return not_applicable("EOT", f"the first step of {probe.name} asks for no gradient")
    gradients = _samples(subject, probe, images, query, 2 * most)  # (2 most,B,D)
    sizes = [2**k for k in range(most.bit_length())]
    curve = [float(_split_half(gradients, n).mean()) for n in sizes]
    enough = next((n for n, c in zip(sizes, curve, strict=True) if c > GOOD), None)
    n = probe.attack.samples
    split = _split_half(gradients, min(n, most))
    doubt = 2 * float(split.std()) / len(split) ** 0.5 if len(split) > 1 else 1.0
    at, top = (_predicted(float(split.mean()) + more, max(1.0, n / most)) for more in (0.0, doubt))
    good = f"first above {GOOD:g} at {enough}" if enough else f"none of up to {most} samples above {GOOD:g}"
    value = f"{at:.2f} at {probe.name}'s {plural(n, 'sample')}{'' if n <= most else ' (predicted)'}; {good}"
    verdict = "FAIL" if top < NOISE else "WARN" if at <= GOOD else "PASS"
    count = f"{len(images.ids)} images, {2 * most} samples"
    return Finding("EOT", value, f"> {GOOD:g}", verdict, count, 0.0, {"x": sizes, "cosine": curve})


def _samples(subject: Subject, probe: Probe, images: Subset, query: Query, samples: int) -> Tensor:
    """(samples,B,D) float32: the gradient of the query by single samples, in calls no larger than the run's own."""
    pack = max(1, min(samples, probe.model.draws_per_call * subject.evaluation.lanes // len(images.ids)))
    model, rng, gradients = queried(probe, query), streams(subject, images, Stage.EOT_SAMPLES), []
    for first in range(0, samples, pack):
        ks = range(first, min(first + pack, samples))
        x, y = query.x.repeat(len(ks), 1, 1, 1), images.y.repeat(len(ks))
        _, grad = model.loss_gradient(x, y, cat_draws(rng, ks), 1, query.loss, query.auxiliary)
        gradients.append(grad.flatten(1).unflatten(0, (len(ks), len(images.ids))))
    return torch.cat(gradients)


def _split_half(gradients: Tensor, n: int) -> Tensor:
    """Cosines between means of n samples: of every image, in as many disjoint pairs of means as there are."""
    pairs = len(gradients) // (2 * n)
    means = gradients[: 2 * n * pairs].unflatten(0, (2 * pairs, n)).mean(dim=1)  # (2 pairs,B,D)
    return cosine(means[::2].flatten(0, 1), means[1::2].flatten(0, 1))


def _predicted(split: float, times: float) -> float:
    """The cosine with `times` as many samples as gave `split`: r / (1 + r) for a signal of r times the noise."""
    rate = times * split / max(1 - split, 1e-9)
    return split if times == 1 else max(0.0, rate / (1 + rate))


CHECKS = (derivative, recompute, methods, expectation, step)
QUICK = (derivative, recompute, expectation, step)
