"""Planted faults for the audit, and the sound defenses that it must not blame.

The study planted_faults.py audits them all, and the tests keep the quick audit of each. A fault changes one part of a
sound evaluation: the purifier, the denoiser, the classifier, the attack or the null control. Nothing declares it.
"""

import copy
import dataclasses
import functools
import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dp.attacks.base import Attack
from dp.attacks.null import Null
from dp.attacks.pgd_eot import PGD
from dp.attacks.wrapper import Wrapped
from dp.audit.check import Subject
from dp.classifiers import Classifier
from dp.defense.defended import Defended
from dp.defense.known_noise import KnownNoise
from dp.evaluation.evaluate import null_control
from dp.rng import Streams
from dp.runs import compose
from dp.runs.build import build
from dp.runs.caveats import caveats_of
from dp.threat_models.ball import ThreatModel

EXACT = ((),)  # claims of an attack along the scored defense's own gradient
SMALL = ("purifier=diffpure", "purifier.steps=2")
SOUND = {  # overrides of DiffPure's and the paper's purifiers and of their variants, with few network evaluations
    "none": ("purifier=none",),
    "diffpure, eta 0": ("purifier=diffpure", "purifier.steps=3"),
    "diffpure, eta 1": ("purifier=diffpure", "purifier.steps=3", "purifier.eta=1"),
    "diffpure_ode, euler": ("purifier=diffpure_ode", "purifier.dt=0.05"),
    "diffpure_ode, heun": ("purifier=diffpure_ode", "purifier.dt=0.1", "purifier.solver=heun"),
    "diffpure_sde, own solver": ("purifier=diffpure_sde", "purifier.dt=0.05"),
    "diffpure_sde, torchsde": ("purifier=diffpure_sde", "purifier.dt=0.05", "purifier.solver=torchsde"),
    "hetero, strong noise inside (Eq. 5)": ("purifier=hetero", "purifier.steps=3"),
    "hetero, strong noise outside (Eq. 8)": ("purifier=hetero", "purifier.steps=3", "purifier.eq8_literal=true"),
    "hetero_random": ("purifier=hetero_random", "purifier.steps=3"),
    "hetero_fixed": ("purifier=hetero_fixed", "purifier.n=20"),
    "hetero_official": ("purifier=hetero_official", "purifier.n=20"),
    "hetero_official_rev_b": ("purifier=hetero_official_rev_b", "purifier.n=50"),
}
SHORTER = {"langevin": ("purifier.steps=20",)}  # of those below
# Every other purifier, for which the study makes the quick audit alone. Left out are those without images or weights
# for digits.
QUICK_ALONE = {
    path.stem: (f"purifier={path.stem}", *SHORTER.get(path.stem, ()))
    for path in sorted((compose.CONF / "purifier").glob("*.yaml"))
    if path.stem not in {"hetero_box", "impure_vit", *(words[0].partition("=")[2] for words in SOUND.values())}
}


class Fault(NamedTuple):
    """A planted fault: what makes it of a sound subject, and the check that finds it."""

    plant: Callable[[Subject], Subject]
    check: str
    status: str
    words: str  # a part of what the check says


def composed_subject(setup: compose.Setup, quick: bool, images: int | None = None) -> Subject:
    """What a run of this set-up would audit."""
    evaluation = build(setup.config)
    return Subject(evaluation, evaluation.subset.select(slice(0, images)), caveats_of(setup, evaluation), quick)


def planted(subject: Subject, claims: tuple[tuple[str, ...], ...] = (), arm: str = "defended", **changes) -> Subject:
    """The subject with other parts in one of its conditions, and no declaration of them.

    `both`: attacked and scored at once. The null control is scored by the same defense.
    """
    if "both" in changes:
        changes["attacked"] = changes["scored"] = changes.pop("both")
    arms = {**subject.evaluation.arms, arm: subject.evaluation.arms[arm]._replace(**changes)}
    if arm == "defended" and "scored" in changes and "null" in arms:
        arms["null"] = arms["null"]._replace(scored=changes["scored"])
    evaluation = dataclasses.replace(subject.evaluation, arms=arms)
    caveats = dataclasses.replace(subject.caveats, gradients=claims or subject.claims)
    return dataclasses.replace(subject, evaluation=evaluation, caveats=caveats)


def copied(kind: type[Defended], model: Defended, **changes: Any) -> Defended:
    """The same defense as another class, some parts of it changed."""
    twin = kind(model.purifier, model.denoiser, model.classifier, model.draws_per_call, model.variants)
    for name, value in changes.items():
        setattr(twin, name, value)
    return twin


# Purifiers


def purified(sound: Subject, purify: Callable[..., Tensor]) -> Subject:
    """The subject with `purify(inner, x, denoiser, classifier, rng)` in place of the purifier `inner`."""
    inner = sound.arm.scored.purifier

    def call(x: Tensor, denoiser: Any, classifier: Any, rng: Streams, *, on_step: Any = None, **of_variant) -> Tensor:
        return purify(functools.partial(inner, on_step=on_step, **of_variant), x, denoiser, classifier, rng)

    return planted(sound, both=copied(Defended, sound.arm.scored, purifier=call))


def after(sound: Subject, change: Callable[[Tensor], Tensor]) -> Subject:
    """The subject whose purified images are changed."""
    return purified(sound, lambda inner, *given: change(inner(*given)))


class FirstOnly(torch.autograd.Function):
    """The identity, whose derivative is kept for the first two images alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        keep = (torch.arange(len(grads[0])) < 2).to(grads[0]).view(-1, 1, 1, 1)
        return grads[0] * keep


class Scrambled(torch.autograd.Function):
    """The identity, whose derivative has random signs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * (torch.rand_like(grads[0]) - 0.5).sign()


class SteppedFunction(torch.autograd.Function):
    """A hard threshold with a derivative of zero at most pixels, as a function that torch does not know."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (10 * (x - 0.5) + 0.5).clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 10 * grads[0] * ((x - 0.5).abs() < 0.05)


def several_images_detached(sound: Subject) -> Subject:
    def purify(inner: Callable, x: Tensor, *given: Any) -> Tensor:
        dark = (x.flatten(1).mean(dim=1) < x.flatten(1).mean(dim=1).median()).view(-1, 1, 1, 1)
        x_hat = inner(x, *given)
        return torch.where(dark, x_hat.detach() + 0 * x_hat, x_hat)

    return purified(sound, purify)


class ReadsLabel(Defended):
    """Purifies in another way where it knows the label: it darkens images by their label."""

    label: Tensor | None = None

    def loss_gradient(self, x: Tensor, y: Tensor, *given: Any, **more: Any) -> tuple[Tensor, Tensor]:
        self.label = y
        try:
            return super().loss_gradient(x, y, *given, **more)
        finally:
            self.label = None

    def purify(self, x: Tensor, rng: Streams, *, on_step: Any = None) -> Tensor:
        if self.label is not None:
            x = x * (1 - 0.05 * self.label.repeat(len(x) // len(self.label)).view(-1, 1, 1, 1) / 9)
        return super().purify(x, rng, on_step=on_step)


def knows_gradient(sound: Subject) -> Subject:
    """Images are purified otherwise where a gradient is recorded."""
    return purified(sound, lambda inner, x, *given: inner(0.9 * x if torch.is_grad_enabled() else x, *given))


class Remembers:
    """Keeps purified images, and answers near images with them."""

    def __init__(self, near: float):
        self.near, self.known = near, list[tuple[Tensor, Tensor]]()

    def __call__(self, inner: Callable, x: Tensor, *given: Any) -> Tensor:
        x_hat, answers = inner(x, *given), []
        for one, answer in zip(x, x_hat, strict=True):
            stored = next((kept for seen, kept in self.known if self.is_near(seen, one)), None)
            if stored is None:
                self.known.append((one.detach().clone(), answer.detach().clone()))
            answers.append(answer if stored is None else stored + 0 * answer)
        return torch.stack(answers)

    def is_near(self, seen: Tensor, one: Tensor) -> bool:
        return float((seen - one.detach()).abs().max()) <= self.near


class RunningMean:
    """Subtracts a little of the mean of all images that it has seen."""

    def __init__(self):
        self.mean = 0.0

    def __call__(self, inner: Callable, x: Tensor, *given: Any) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * float(x.detach().mean())
        return inner((x - 0.1 * self.mean).clamp(0, 1), *given)


class EveryOther:
    """Purifies twice in every second call."""

    def __init__(self):
        self.calls = 0

    def __call__(self, inner: Callable, x: Tensor, *given: Any) -> Tensor:
        self.calls += 1
        return inner(x if self.calls % 2 else inner(x, *given), *given)


def content_streams(sound: Subject) -> Subject:
    """The noise is that of a key made from the image's bytes."""

    def purify(inner: Callable, x: Tensor, denoiser: Any, classifier: Any, rng: Streams) -> Tensor:
        keys = [_digest(one) for one in x]
        return inner(x, denoiser, classifier, Streams(keys, 0, "content"))

    return purified(sound, purify)


def content_brightness(sound: Subject) -> Subject:
    """The noise is that of a key made from the image's brightness, which small changes leave as it is."""

    def purify(inner: Callable, x: Tensor, denoiser: Any, classifier: Any, rng: Streams) -> Tensor:
        keys = [int(10 * one.detach().mean()) for one in x]
        return inner(x, denoiser, classifier, Streams(keys, 0, "brightness"))

    return purified(sound, purify)


def content_gray_levels(sound: Subject) -> Subject:
    """As above, but the key is made from 8-bit gray levels, and the given noise is used, too."""

    def purify(inner: Callable, x: Tensor, denoiser: Any, classifier: Any, rng: Streams) -> Tensor:
        keys = [_digest((255 * one).round()) for one in x]
        noise = Streams(keys, 0, "content").randn_like(x)
        return inner((x + 0.1 * noise).clamp(0, 1), denoiser, classifier, rng)

    return purified(sound, purify)


def _digest(image: Tensor) -> int:
    data = image.detach().cpu().double().contiguous().numpy().tobytes()
    return int.from_bytes(hashlib.blake2b(data, digest_size=6).digest(), "little")


def torch_noise_of_content(sound: Subject) -> Subject:
    """Noise of torch's generator, whose seed is made from the batch."""

    def purify(inner: Callable, x: Tensor, *given: Any) -> Tensor:
        generator = torch.Generator().manual_seed(int(1000 * float(x.detach().mean())))
        return inner((x + 0.05 * torch.randn(x.shape, generator=generator).to(x)).clamp(0, 1), *given)

    return purified(sound, purify)


def leaky(sound: Subject) -> Subject:
    """A network draws noise, also when it is recomputed."""

    class Leaky(nn.Module):
        def __init__(self, net: nn.Module):
            super().__init__()
            self.net, self.calls = net, 0

        def forward(self, x: Tensor, label: Tensor) -> Tensor:
            self.calls += 1
            noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(self.calls))
            return self.net(x, label) * (1 + 0.01 * noise.to(x))

    denoiser = sound.arm.scored.denoiser
    assert denoiser is not None
    twin: Any = type(denoiser)
    return planted(sound, both=copied(Defended, sound.arm.scored, denoiser=twin(Leaky(denoiser.net))))


def wrong_schedule(sound: Subject) -> Subject:
    purify = functools.partial(sound.arm.scored.purifier, t=0.4)
    return planted(sound, (("surrogate",),), attacked=copied(Defended, sound.arm.scored, purifier=purify))


class OneGenerator(Defended):
    """All samples of an image in one gradient have the noise of the first."""

    def _calls(self, rng: Streams, samples: int):
        for ks, streams in super()._calls(rng, samples):
            yield ks, streams.select(list(range(len(rng))) * len(ks))


class SameNoise(Defended):
    """Uses the same noise always, whatever streams it is given."""

    def purify(self, x: Tensor, rng: Streams, *, on_step: Any = None) -> Tensor:
        rng.randn_like(x)
        return super().purify(x, Streams([0] * len(x), 0, "secret"), on_step=on_step)


# Classifiers


class Changed(Classifier):
    """A classifier whose logits go through a function."""

    change: Callable[[Tensor], Tensor]

    def forward(self, x: Tensor) -> Tensor:
        return self.change(super().forward(x))


def outputs(sound: Subject, change: Callable[[Tensor], Tensor]) -> Subject:
    """The subject whose logits go through a function."""
    classifier = sound.arm.scored.classifier
    twin = Changed(classifier.net, classifier.taps)
    twin.change = change
    return planted(sound, both=copied(Defended, sound.arm.scored, classifier=twin))


class Twice(Classifier):
    """Applies mean and std once more."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x - 0.2) / 0.4)


def twice(sound: Subject) -> Subject:
    classifier = sound.arm.scored.classifier
    twin = Twice(classifier.net, classifier.taps, mean=[0.2], std=[0.4])
    return planted(sound, both=copied(Defended, sound.arm.scored, classifier=twin))


def in_front(sound: Subject, change: Callable[[Tensor], Tensor]) -> Subject:
    """The subject whose classifier's network gets a changed image."""

    class Front(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return change(x)

    classifier = copy.deepcopy(sound.arm.scored.classifier)
    classifier.net, classifier.taps = nn.Sequential(Front(), classifier.net), ()
    return planted(sound, both=copied(Defended, sound.arm.scored, classifier=classifier))


# Attacks and null controls


@dataclasses.dataclass(frozen=True)
class Peeks(Wrapped):
    """Queries the defense with the noise that will score."""

    ids: list[int]
    seed: int

    def step(self, model: Any, state: Any, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> Any:
        known = KnownNoise(model, Streams(self.ids, self.seed, "adv"), 3)
        return self.attack.step(known, state, x, y, threat, rng)


@dataclasses.dataclass(frozen=True)
class Lazy(Wrapped):
    """Steps only in the iterations `moves(k, steps)`; the state counts them."""

    moves: Callable[[int, int], bool]

    def step(self, model: Any, state: Any, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> Any:
        after = self.attack.step(model, state, x, y, threat, rng)
        go = torch.tensor([self.moves(int(k), self.attack.steps) for k in state.i]).view(-1, 1, 1, 1)
        return after._replace(x=torch.where(go, after.x, state.x), x_adv=torch.where(go, after.x_adv, state.x_adv))


@dataclasses.dataclass(frozen=True)
class Stuck(PGD):
    """Starts at random, and then makes steps of a five-hundredth of the radius."""

    def step(self, model: Any, state: Any, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> Any:
        _, grad = model.loss_gradient(state.x, y, rng.draw(0), self.eot)
        at = threat.project(threat.ascend(state.x, grad, 0.002 * threat.eps), x)
        return state._replace(x=at, x_adv=at, i=state.i + 1)


@dataclasses.dataclass(frozen=True)
class Turning(Wrapped):
    """Goes back and forth between two points from its fourth iteration on."""

    def step(self, model: Any, state: Any, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> Any:
        after = self.attack.step(model, state, x, y, threat, rng)
        if int(state.i.max()) < 4:
            return after
        sign = 1.0 if int(state.i.max()) % 2 else -1.0
        at = threat.project(state.x + sign * 0.01 * torch.where(x < 0.5, 1.0, -1.0), x)
        return after._replace(x=at, x_adv=at)


class Smaller(NamedTuple):
    """A wrapper's smaller threat model."""

    share: float

    def of(self, threat: ThreatModel) -> ThreatModel:
        return dataclasses.replace(threat, eps=self.share * threat.eps)


@dataclasses.dataclass(frozen=True)
class PartOfTheRadius(Wrapped):
    """Works in a ball of a part of the radius."""

    share: float

    def start(self, model: Any, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> Any:
        return self.attack.start(model, x, y, Smaller(self.share).of(threat), rng)

    def step(self, model: Any, state: Any, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> Any:
        return self.attack.step(model, state, x, y, Smaller(self.share).of(threat), rng)


@dataclasses.dataclass(frozen=True)
class SmallNull(Null):
    """Random noise in a part of the radius; `pixel`: one pixel reaches the whole of it."""

    share: float = 0.25
    pixel: bool = False

    def start(self, model: Any, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> Any:
        return self._spiked(super().start(model, x, y, Smaller(self.share).of(threat), rng), x, threat)

    def step(self, model: Any, state: Any, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> Any:
        return self._spiked(super().step(model, state, x, y, Smaller(self.share).of(threat), rng), x, threat)

    def _spiked(self, state: Any, x: Tensor, threat: ThreatModel) -> Any:
        if not self.pixel:
            return state
        x_adv = state.x_adv.clone()
        x_adv[:, :, 0, 0] = torch.where(x[:, :, 0, 0] < 0.5, x[:, :, 0, 0] + threat.eps, x[:, :, 0, 0] - threat.eps)
        return state._replace(x_adv=x_adv)


def small_null(sound: Subject, **given: Any) -> Subject:
    attack = null_control(sound.arm.attack, sound.evaluation.judge)
    return planted(
        sound,
        arm="null",
        attack=SmallNull(attack.steps, attack.eot, attack.select, attack.confirm, attack.ends, **given),
    )


@dataclasses.dataclass(frozen=True)
class BatchMomentum(PGD):
    """PGD with momentum whose gradients are divided by their mean size over the batch."""

    def step(self, model: Any, state: Any, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> Any:
        _, grad = model.loss_gradient(state.x, y, rng.draw(0), self.eot)
        velocity = (state.x - x) / threat.eps + grad / grad.abs().mean().clamp(min=1e-12)
        at = threat.project(threat.ascend(state.x, velocity, 2.5 * threat.eps / self.iterations), x)
        return state._replace(x=at, x_adv=at, i=state.i + 1)


@dataclasses.dataclass(frozen=True)
class Returns(Wrapped):
    """Returns the clean images."""

    def step(self, model: Any, state: Any, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> Any:
        return self.attack.step(model, state, x, y, threat, rng)._replace(x_adv=x)


@dataclasses.dataclass(frozen=True)
class Downhill(PGD):
    """Lowers the loss."""

    def step(self, model: Any, state: Any, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> Any:
        _, grad = model.loss_gradient(state.x, y, rng.draw(0), self.eot)
        at = threat.project(threat.ascend(state.x, -grad, 2.5 * threat.eps / self.iterations), x)
        return state._replace(x=at, x_adv=at, i=state.i + 1)


def sign_step(sound: Subject) -> Subject:
    evaluation = dataclasses.replace(sound.evaluation, threat=ThreatModel("l2", 1.0))
    return attacked_by(PGD(2, 2, l2_step="sign"))(dataclasses.replace(sound, evaluation=evaluation))


def peeking(sound: Subject) -> Subject:
    return attacked_by(Peeks(PGD(2, 2), sound.images.ids.tolist(), sound.seed))(sound)


def attacked_by(attack: Attack) -> Callable[[Subject], Subject]:
    """The fault of another attack. The null control is the one that belongs to it."""
    return lambda sound: planted(planted(sound, arm="null", attack=null_control(attack)), attack=attack)


def early(k: int, steps: int) -> bool:
    return k < 0.4 * steps


# Sound parts that are not in the tree


class Attends(nn.Module):
    """Adds to the logits of a network those of one attention layer on patches, as in a ViT."""

    def __init__(self, net: nn.Module, channels: int, classes: int):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net, self.patches = net, nn.Conv2d(channels, 24, 4, 4)
            self.attention = nn.MultiheadAttention(24, 3, batch_first=True)
            self.head = nn.Linear(24, classes)
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return self.net(x) + 0.1 * self.head(tokens.mean(dim=1))


def attention(sound: Subject) -> Subject:
    classifier, images = copy.deepcopy(sound.arm.scored.classifier), sound.images
    classifier.net, classifier.taps = Attends(classifier.net, images.x.shape[1], 10), ()
    return planted(sound, both=copied(Defended, sound.arm.scored, classifier=classifier))


def alone(sound: Subject, purify: Callable[[Tensor, Streams], Tensor], modes: tuple[str, ...] = ()) -> Subject:
    """The subject whose whole purifier is `purify(x, rng)`. `modes`: the gradient modes that it declares as honest."""

    def call(x: Tensor, denoiser: Any, classifier: Any, rng: Streams, *, on_step: Any = None) -> Tensor:
        return purify(x, rng)

    twin = copied(Defended, sound.arm.scored, purifier=call, denoiser=None, variants={})
    made = planted(sound, (modes,), scored=twin, attacked=twin.gradient_modes(modes))
    exceptions = ("gradient", "derivative") if modes else ()
    return dataclasses.replace(made, caveats=dataclasses.replace(made.caveats, exceptions=exceptions))


def random_mask(x: Tensor, rng: Streams, keep: float = 0.4) -> Tensor:
    """Pixels that are erased at random, and filled with the mean of their neighbors."""
    mask = (rng.uniform_like(x[:, :1]) < keep).to(x)
    kept, of = (F.avg_pool2d(v, 3, 1, 1, count_include_pad=True) for v in (x * mask, mask))
    return (kept / (of + 0.01)).clamp(0, 1)


def cosine_transform(side: int) -> Tensor:
    """The orthonormal DCT, (side,side)."""
    k = torch.arange(side, dtype=torch.float64)
    basis = torch.cos(torch.pi / side * (k[None] + 0.5) * k[:, None]) * (2 / side) ** 0.5
    return torch.cat([basis[:1] / 2**0.5, basis[1:]])


def transformed(x: Tensor, rng: Streams, bound: float = 0.0) -> Tensor:
    """DCT coefficients that are pulled to zero by `bound`, and back."""
    basis = cosine_transform(x.shape[-1]).to(x)
    coefficients = basis @ x @ basis.T
    if bound:
        coefficients = F.softshrink(coefficients, bound)
    return (basis.T @ coefficients @ basis).clamp(0, 1)


def one_bit(x: Tensor, rng: Streams) -> Tensor:
    """Two gray levels."""
    return x.round()


@dataclasses.dataclass(frozen=True)
class Window(ThreatModel):
    """Within +-eps, but only in a square window in the middle. `side`: of the window, in pixels."""

    side: int = 8

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        inside = torch.zeros_like(x[:1, :1])
        top, left = (x.shape[2] - self.side) // 2, (x.shape[3] - self.side) // 2
        inside[..., top : top + self.side, left : left + self.side] = 1
        return torch.where(inside > 0, super().project(x_adv, x), x)


def window(sound: Subject) -> Subject:
    threat = sound.evaluation.threat
    evaluation = dataclasses.replace(sound.evaluation, threat=Window(threat.norm, threat.eps, threat.grad))
    return dataclasses.replace(sound, evaluation=evaluation)


PARTS: dict[str, Callable[[Subject], Subject]] = {  # sound, too: each in place of a part of `SMALL`
    "a classifier with attention": attention,
    "a random mask": lambda s: alone(s, random_mask),
    "a DCT and back": lambda s: alone(s, transformed),
    "a soft threshold of DCT coefficients": lambda s: alone(s, functools.partial(transformed, bound=0.15)),
    "two gray levels": lambda s: alone(s, one_bit, ("bpda",)),
    "a window as the threat model": window,
}


def of_kind(kind: type[Defended], attacked: bool = False) -> Callable[[Subject], Subject]:
    """The fault of a defense of this class; `attacked`: only the attacked one has it."""

    def plant(sound: Subject) -> Subject:
        model = copied(kind, sound.arm.scored)
        return planted(sound, attacked=model) if attacked else planted(sound, both=model)

    return plant


def contrast(x: Tensor) -> Tensor:
    return (30 * (x - 0.5) + 0.5).clamp(0, 1)


FAULTS = {
    "a detached purifier": Fault(lambda s: after(s, Tensor.detach), "derivative", "FAIL", "no gradient"),
    "a gradient of two images only": Fault(lambda s: after(s, FirstOnly.apply), "derivative", "FAIL", "zero gradient"),
    "a gradient that the darker images lack": Fault(several_images_detached, "derivative", "FAIL", "zero gradient"),
    "a gradient with random signs": Fault(lambda s: after(s, Scrambled.apply), "derivative", "FAIL", "relative error"),
    "noise drawn inside a recomputed region": Fault(leaky, "recompute", "FAIL", "gradient by"),
    "a wrong schedule in the surrogate": Fault(wrong_schedule, "same defense", "FAIL", "the surrogate starts at sigma"),
    "the surrogate's gradient reported as full": Fault(
        lambda s: planted(s, EXACT, attacked=s.arm.scored.gradient_mode("surrogate")),
        "derivative",
        "FAIL",
        "relative error",
    ),
    "a contrast stretch that saturates": Fault(lambda s: after(s, contrast), "dead pixels", "FAIL", "clamp (faults.py"),
    "a steep sigmoid": Fault(
        lambda s: after(s, lambda x: torch.sigmoid(200 * (x - 0.5))), "dead pixels", "FAIL", "sigmoid (faults.py"
    ),
    "gray levels that are rounded": Fault(
        lambda s: after(s, lambda x: (8 * x).round() / 8), "dead pixels", "FAIL", "round (faults.py"
    ),
    "a threshold that is a function of its own": Fault(
        lambda s: after(s, SteppedFunction.apply), "dead pixels", "FAIL", "stops the gradient"
    ),
    "a saturating clamp in front of the network": Fault(
        lambda s: in_front(s, lambda x: x.clamp(0.48, 0.52) * 25 - 12), "dead pixels", "FAIL", "clamp (faults.py"
    ),
    "softmax in place of logits": Fault(
        lambda s: outputs(s, lambda z: z.softmax(dim=1)), "flags", "FAIL", "probabilities"
    ),
    "2p - 1 in place of logits": Fault(
        lambda s: outputs(s, lambda z: 2 * z.softmax(dim=1) - 1), "outputs", "FAIL", "bounded outputs"
    ),
    "8p in place of logits": Fault(lambda s: outputs(s, lambda z: 8 * z.softmax(dim=1)), "outputs", "FAIL", "pile up"),
    "tanh of logits": Fault(lambda s: outputs(s, torch.tanh), "outputs", "FAIL", "bounded outputs"),
    "logits cut at 4": Fault(lambda s: outputs(s, lambda z: z.clamp(-4, 4)), "outputs", "FAIL", "outputs are cut"),
    "a temperature of 1000": Fault(lambda s: outputs(s, lambda z: z / 1000), "outputs", "FAIL", "temperature too high"),
    "a temperature of 1/20": Fault(lambda s: outputs(s, lambda z: 20 * z), "outputs", "FAIL", "saturated"),
    "mean and std applied twice": Fault(twice, "decisions", "FAIL", "differs from (x - mean) / std"),
    "EOT of 1 on a noisy purifier": Fault(attacked_by(PGD(5, 1)), "flags", "WARN", "random output and EOT 1"),
    "an l2 sign step": Fault(sign_step, "step", "WARN", "a sign step"),
    "an attack that lowers the loss": Fault(attacked_by(Downhill(5, 2, select="last")), "step", "FAIL", "0.00 of"),
    "clean images returned": Fault(attacked_by(Returns(PGD(5, 2))), "returned images", "FAIL", "images clean"),
    "an attack that stops early": Fault(attacked_by(Lazy(PGD(10, 2), early)), "radius", "FAIL", "stop moving early"),
    "an attack that moves in every third step": Fault(
        attacked_by(Lazy(PGD(12, 2), lambda k, steps: k % 3 == 0)), "radius", "FAIL", "iterates repeat"
    ),
    "an attack that goes back and forth": Fault(
        attacked_by(Turning(PGD(12, 2))), "radius", "FAIL", "stop moving early"
    ),
    "an attack that stays at its random start": Fault(
        attacked_by(Stuck(10, 2, select="last")), "radius", "FAIL", "away from the first one: its start"
    ),
    "an attack in half of the radius": Fault(
        attacked_by(PartOfTheRadius(PGD(10, 2), 0.5)), "radius", "FAIL", "of eps are used"
    ),
    "an attack that normalizes over the batch": Fault(
        attacked_by(BatchMomentum(5, 2, select="last")), "batch", "FAIL", "the attack: another batch mate"
    ),
    "attack and scoring share samples": Fault(peeking, "randomness", "FAIL", "attack and scoring share"),
    "a null control with fewer samples": Fault(
        lambda s: planted(s, arm="null", attack=Null(2, 1, "last")), "null control", "FAIL", "samples 1 instead of 2"
    ),
    "a null control in a quarter of the radius": Fault(small_null, "null control", "FAIL", "smaller radius"),
    "a null control with one pixel at the radius": Fault(
        lambda s: small_null(s, pixel=True), "null control", "FAIL", "of its l2 length"
    ),
    "one generator for all EOT copies": Fault(
        of_kind(OneGenerator, attacked=True), "randomness", "FAIL", "the EOT copies of an image share their noise"
    ),
    "the same noise for every key": Fault(of_kind(SameNoise), "randomness", "FAIL", "another key gives the same noise"),
    "noise from torch's generator": Fault(
        lambda s: purified(s, lambda inner, x, *g: inner(x + 0.05 * torch.randn_like(x), *g)),
        "memory",
        "FAIL",
        "torch's own generator",
    ),
    "noise from torch's generator, seeded by the image": Fault(
        torch_noise_of_content, "memory", "FAIL", "torch's own generator"
    ),
    "noise from a key of the image's bytes": Fault(content_streams, "memory", "FAIL", "from the image's content"),
    "noise from a key of the image's brightness": Fault(
        content_brightness, "memory", "FAIL", "come from other streams"
    ),
    "noise from a key of the image's gray levels": Fault(
        content_gray_levels, "memory", "FAIL", "from the image's content"
    ),
    "a purifier that subtracts the batch's mean": Fault(
        lambda s: purified(s, lambda inner, x, *g: inner((x - 0.1 * x.mean()).clamp(0, 1), *g)),
        "batch",
        "FAIL",
        "the defense: another batch mate",
    ),
    "logits that are normalized over the batch": Fault(
        lambda s: outputs(s, lambda z: (z - z.mean(dim=0)) / (z.std(dim=0, correction=0) + 1)),
        "batch",
        "FAIL",
        "the defense: another",
    ),
    "a purifier that goes by the place in the batch": Fault(
        lambda s: purified(s, lambda inner, x, *g: inner(x * torch.linspace(0.8, 1, len(x)).view(-1, 1, 1, 1), *g)),
        "batch",
        "FAIL",
        "the defense: another order",
    ),
    "a purifier that goes by the batch size": Fault(
        lambda s: purified(s, lambda inner, x, *g: inner(x * (0.6 + 0.05 * (len(x) % 8)), *g)),
        "batch",
        "FAIL",
        "the defense: another batch size",
    ),
    "a purifier that reads the label": Fault(of_kind(ReadsLabel), "memory", "FAIL", "reads the label"),
    "a purifier that knows of the gradient": Fault(knows_gradient, "memory", "FAIL", "call for a gradient"),
    "a purifier that remembers images": Fault(
        lambda s: purified(s, Remembers(0.02)), "memory", "FAIL", "keeps earlier answers"
    ),
    "a purifier with a running mean": Fault(
        lambda s: purified(s, RunningMean()), "memory", "FAIL", "keeps memory between calls"
    ),
    "a purifier that counts its calls": Fault(
        lambda s: purified(s, EveryOther()), "memory", "FAIL", "keeps memory between calls"
    ),
}
