"""Every purifier and every attack on tensors that claim to be on a GPU: the host hardly waits, and nothing is on the
wrong device. See tests/helpers/claimed.py.
"""

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dp import philox
from dp.attacks.base import Attack
from dp.attacks.pgd_eot import PGD
from dp.classifiers import Classifier
from dp.contracts.declared import honest_gradient
from dp.defense.defended import Defended
from dp.diffusion.denoisers import EDM
from dp.evaluation.slots import Slots
from dp.evaluation.stages import Stage
from dp.output.pictures import Shown
from dp.purifiers.module import PurifierModule
from dp.rng import Streams
from dp.runs.build import build
from dp.runs.compose import make
from dp.subset import Subset
from dp.threat_models.ball import ThreatModel
from tests.helpers.claimed import Mixed, claim, claim_module, claimed_gpu
from tests.helpers.compose import composed, home, options, small_budget
from tests.helpers.contract import DECLARED, in_one_line, skip_without_weights

MOST = 0.2  # waits of the host for each call of a network
CHECK = "check_finite"  # the function that waits once for each answer of the defense, not for each call of a network
ANSWER = "one wait for each answer of the defense, which must be finite"
SHORTER = {  # the longest chains
    "adp": ["purifier.steps=4"],
    "contrastive": ["purifier.dt=0.025", "purifier.first=2"],
    "langevin": ["purifier.steps=10"],
    "menet_soft": ["purifier.rounds=4"],
}
EXCEPTIONS = {
    ("purifier", "menet"): "its decomposition has no network, and asks whether it has converged",
    ("purifier", "menet_soft"): "each round is a decomposition without a network, and the rounds end by themselves",
    ("attack", "autoattack_upstream"): "the package's own code",
    ("attack", "autoattack_upstream_standard"): "the package's own code",
}


@contextmanager
def counted(model: Defended) -> Iterator[list[int]]:
    """Within it, the one number of the list is that of the calls of networks so far."""
    calls, networks = [0], [m.net for m in (model.denoiser, model.classifier) if m is not None]
    own = [m for m in model.networks if isinstance(m, PurifierModule)]

    def add(*_: Any) -> None:
        calls[0] += 1

    hooks, before = [network.register_forward_hook(add) for network in networks], [m.nfe for m in own]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()
        calls[0] += sum(m.nfe - nfe for m, nfe in zip(own, before, strict=True))


def assert_fast(waits: Counter[str], calls: int, group: str, name: str, record: Any) -> None:
    """Few waits for each call of a network, or a declared exception; what is declared is printed."""
    inner = {at: n for at, n in waits.items() if CHECK not in at}
    found = f"{sum(inner.values())} waits for {calls} calls of networks"
    record(DECLARED, ["defense", "every", ANSWER, [f"{sum(waits.values()) - sum(inner.values())} for {calls} calls"]])
    if (group, name) in EXCEPTIONS:
        record(DECLARED, [group, name, f"waits on a GPU: {EXCEPTIONS[group, name]}", [found]])
        return
    listed = "\n".join(f"  {n} x {at}" for at, n in sorted(inner.items(), key=lambda item: -item[1]))
    assert sum(inner.values()) < MOST * calls or not inner, (
        f"{group} {name}: {found}, need fewer than {MOST} for each\n{listed}"
    )


def gradient(model: Defended, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return model.loss_gradient(x, y, Streams(range(len(x)), 0, "attack"), 1)


def claimed(*tensors: Tensor) -> list[Tensor]:
    return [claim(tensor.clone()) for tensor in tensors]


@pytest.mark.parametrize("name", options("purifier"))
def test_a_purifier(name, images, record_property):
    """A gradient, and what it takes; its bits are those without claims."""
    config = composed(f"purifier={name}", "protocol.images=2", *home(name), *SHORTER.get(name, ()))
    skip_without_weights(config)
    with in_one_line(f"purifier {name}"):
        evaluation = build(config)
    model, images = evaluation.arms["defended"].scored, evaluation.subset if home(name) else images
    model = model.gradient_mode(honest_gradient(config["purifier"]) or "full")
    x, y = images.x[:2], images.y[:2]
    expected = gradient(model, x, y)
    claim_module(model)
    with claimed_gpu() as notes, counted(model) as calls:
        found = gradient(model, *claimed(x, y))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert_fast(notes.waits, calls[0], "purifier", name, record_property)


def test_pictures_of_a_run(images):
    """Masks and purified images, made of images on the CPU: they come back to the CPU, with the same bits."""
    config = composed("purifier=hetero", "purifier.steps=2", "protocol.images=2")
    model = build(config).arms["defended"].scored
    shown = Shown(model, images.x[:2], images.ids[:2].tolist(), config["purifier"], 2, 4, 2)
    expected = shown.masks(shown.images), *shown.purified(shown.images, shown.ids, 5, Stage.ADV)
    claim_module(model)
    with claimed_gpu():
        shown = replace(shown, device="cuda")
        found = shown.masks(shown.images), *shown.purified(shown.images, shown.ids, 5, Stage.ADV)
        assert all(tensor.device.type == "cpu" for tensor in found[:2])
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    assert found[2] == expected[2]


class Plain(nn.Module):
    """A network of few operations: for 10 classes with a tap, or of the images' shape."""

    def __init__(self, classes: int):
        super().__init__()
        self.conv, self.classes = nn.Conv2d(1, 10 if classes else 1, 3, padding=1), classes
        self.tanh = nn.Tanh()

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        out = self.tanh(self.conv(x))
        return 30 * out.mean(dim=(2, 3)) if self.classes else out + 0 * (noise if noise is not None else 0)


@pytest.fixture(scope="module")
def hetero() -> Defended:
    """The purifier with every gradient variant that attacks ask for, around plain networks on the claimed GPU: what is
    looked at is the attack.
    """
    model = build(composed("purifier=hetero", "purifier.steps=2", "protocol.images=2")).arms["defended"].scored
    denoiser, classifier = EDM(Plain(0)), Classifier(Plain(10), taps=["tanh"])
    plain = Defended(model.purifier, denoiser, classifier, variants=model.variants)
    claim_module(plain)
    return plain


@pytest.mark.parametrize("name", options("attack"))
def test_an_attack(name, images, hetero, record_property):
    """All steps after the start."""
    norm = name if name in options("threat_model") else "linf"
    config = composed(f"attack={name}", f"threat_model={norm}", *small_budget(name))
    attack: Attack = make(config["attack"], modules=config["plugins"]["modules"])
    if attack.batch_bound:
        record_property(DECLARED, ["attack", name, f"not run on a claimed GPU: {EXCEPTIONS['attack', name]}", []])
        return
    threat = make(config["threat_model"]).seen_by(hetero.classifier)
    x, y, rng = images.x[:2], images.y[:2], Streams(images.ids[:2], 0, "attack")

    def run(x: Tensor, y: Tensor, begun: Callable[[], None] = lambda: None) -> Tensor:
        state = attack.start(hetero, x, y, threat, rng.draw(0))
        begun()
        for i in range(attack.steps):
            state = attack.step(hetero, state, x, y, threat, rng.draw(1 + i))
        return state.x_adv

    expected, given = run(x, y), claimed(x, y)
    with claimed_gpu() as notes, counted(hetero) as calls:

        def begun() -> None:
            notes.waits.clear()
            calls[0] = 0

        found = run(given[0], given[1], begun)
    assert torch.equal(found, expected)
    assert_fast(notes.waits, calls[0], "attack", name, record_property)


def test_an_iteration_of_a_batch_waits_once(images, hetero):
    """For its loss curve, beside the answers of the defense. Iterations one by one are taken from 3 and from 7."""
    (x, y), ids = claimed(images.x[:2], images.y[:2]), images.ids[:2]
    threat, inner = ThreatModel("linf", 0.1).seen_by(hetero.classifier), []
    for iterations in (3, 7):
        attack = PGD(iterations, 1, select="last")
        with claimed_gpu() as notes:
            slots = Slots(
                attack, lambda _: hetero, hetero, threat, lambda _, ids: Streams(ids, 0, "a"), Subset(ids, x, y), 2
            )
            assert len(slots.run(lambda *_: None)) == 2
        inner.append({at: n for at, n in notes.waits.items() if CHECK not in at})
    assert sum(inner[1].values()) - sum(inner[0].values()) == 4, inner


def planted(x, denoiser, classifier, rng, *, on_step=None, fault=""):
    """A chain of five steps with one fault in each."""
    z, table = 2 * x - 1, torch.linspace(0.9, 0.5, 5)
    for i in range(5):
        sigma = 0.1 * (5 - i)
        if fault == "item":
            sigma = sigma * (1 + 0 * z.abs().max().item())
        if fault == "bool" and z.isnan().any():
            break
        if fault == "table":
            sigma = sigma + 0 * torch.tensor(sigma, device=z.device)
        if fault == "copy":
            z = z * table.to(z.device)[i]
        if fault == "cpu":
            z = z + 0 * torch.ones(z.shape)
        if fault == "noise":
            z = z + 0.1 * torch.randn(z.shape)
        if fault == "mask":
            z = torch.cat([z[z.amax(dim=(1, 2, 3)) <= 2], z[z.amax(dim=(1, 2, 3)) > 2]])
        if fault == "list":
            z = z[[1, 0]]
        z = denoiser(z + sigma * rng.randn_like(z), sigma)
    return ((z + 1) / 2).clamp(0, 1)


def of_planted(hetero: Defended, images: Any, fault: str) -> tuple[Counter[str], int]:
    model = Defended(functools.partial(planted, fault=fault), hetero.denoiser, hetero.classifier)
    with claimed_gpu() as notes, counted(model) as calls:
        gradient(model, *claimed(images.x[:2], images.y[:2]))
    return notes.waits, calls[0]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("item", "item, bool or float"),
        ("bool", "item, bool or float"),
        ("table", "numbers of the host"),
        ("copy", "a blocking copy"),
        ("mask", "an index by a mask"),
        ("list", "an index that lies on the CPU"),
    ],
)
def test_a_planted_wait_is_found(fault, words, hetero, images):
    """In its line, five times or more for six calls of networks; without it there is none."""
    waits, calls = of_planted(hetero, images, fault)
    assert calls == 6
    with pytest.raises(AssertionError, match=rf"purifier planted: \d+ waits for 6 calls(.|\n)*{words}"):
        assert_fast(waits, calls, "purifier", "planted", lambda *_: None)
    assert sum(n for at, n in waits.items() if "test_on_a_gpu.py" in at and "planted" in at and words in at) >= 5
    assert_fast(*of_planted(hetero, images, ""), "purifier", "planted", lambda *_: None)


@pytest.mark.parametrize("fault", ["cpu", "noise"])
def test_a_planted_tensor_of_the_cpu_is_found(fault, hetero, images):
    with pytest.raises(Mixed, match=r"planted: .* has tensors of a GPU and of the CPU, \(2, 1, 16, 16\)"):
        of_planted(hetero, images, fault)


def test_values_that_leave_the_gpu_by_numpy_are_refused(images):
    (x,) = claimed(images.x[:2])
    with claimed_gpu(), pytest.raises(TypeError, match="no numpy array"):
        x.numpy()


@pytest.mark.parametrize("version", [1, 2])
def test_noise_that_is_drawn_ahead_is_the_same_noise(version, monkeypatch):
    """Equal calls, which are drawn ahead on a GPU by several threads, among others that are not; without a wait."""
    monkeypatch.setattr("dp.rng.AT_LEAST", 64)
    monkeypatch.setattr("dp.rng._threads", lambda: 3)

    def drawn(like: Tensor, other: Tensor) -> list[Tensor]:
        rng, out = Streams([5, 6, 7], 3, "adv", version), []
        for call in "nnnnuunnnnnnnnnnnnmnn":
            if call == "m":  # what is ahead is not handed on
                out.append(rng.select([2, 0]).randn_like(other[:2]))
            out.append((rng.uniform_like if call == "u" else rng.randn_like)(other if len(out) == 3 else like))
        return out

    like, other = torch.empty(3, 1, 16, 16), torch.empty(3, 2, 3, 3)
    expected, given = drawn(like, other), claimed(like, other)
    with claimed_gpu() as notes:
        for made_once in (philox._constants, philox._table):
            made_once(given[0].device)
        notes.waits.clear()
        found = drawn(*given)
        assert all(one.is_cuda for one in found)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert not notes.waits
