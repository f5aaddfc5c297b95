"""APGD: known optima, the published schedule recomputed plainly, every decision on the mean over samples."""

import pytest
import torch

from dp.attacks.apgd import APGD, gaps
from dp.attacks.selection import strongest
from dp.classifiers import Classifier
from dp.defense.defended import Defended
from dp.objectives import check_classes, cross_entropy, dlr, margin, targeted_dlr, with_margin
from dp.purifiers import none
from dp.rng import Streams
from dp.runs.compose import make
from dp.threat_models.ball import ThreatModel
from tests.attacks.test_attacks import Linear, assert_rows_stand_alone, linear, run_attack
from tests.helpers.compose import composed

LOSSES = ("ce", "dlr", "targeted")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def jitter(x, denoiser, classifier, rng, *, on_step=None):
    """A purifier that only adds noise."""
    return (x + 0.3 * rng.randn_like(x)).clamp(0, 1)


class Net(torch.nn.Module):
    """Flat images (B,C,H,W) through a small network of fixed random weights."""

    def __init__(self, inputs: int, classes: int, seed: int = 0):
        super().__init__()
        g = seeded(seed)
        self.a = torch.nn.Parameter(torch.randn(16, inputs, generator=g) / inputs**0.5)
        self.b = torch.nn.Parameter(torch.randn(classes, 16, generator=g))

    def forward(self, x):
        return torch.tanh(3 * (x.flatten(1) - 0.5) @ self.a.T) @ self.b.T


def test_linf_reaches_the_corner_with_the_box_active():
    w = torch.randn(1, 1, 8, 8, generator=seeded(0))
    x = torch.rand(5, 1, 8, 8, generator=seeded(1))
    x[x < 0.2], x[x > 0.8] = 0.0, 1.0
    optimum = (x - 0.1 * w.sign()).clamp(0, 1)
    x_adv = run_attack(APGD(20, 1), linear(w), x, torch.zeros(5, dtype=torch.long), ThreatModel("linf", 0.1))
    torch.testing.assert_close(x_adv, optimum, rtol=0, atol=1e-6)


def test_l2_reaches_the_closed_form_optimum():
    w = torch.randn(1, 1, 8, 8, generator=seeded(0))
    x = torch.full((5, 1, 8, 8), 0.5) + 0.05 * torch.randn(5, 1, 8, 8, generator=seeded(1))
    y = torch.tensor([0, 1, 0, 1, 0])
    optimum = x + 0.3 * torch.where(y == 0, -1.0, 1.0).view(-1, 1, 1, 1) * w / w.norm()
    x_adv = run_attack(APGD(100, 1), linear(w), x, y, ThreatModel("l2", 0.3))
    torch.testing.assert_close((x_adv * w).flatten(1).sum(1), (optimum * w).flatten(1).sum(1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x_adv, optimum, rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    ("iterations", "at"),
    [
        (100, [22, 41, 57, 70, 80, 87, 93, 99]),
        (50, [11, 21, 30, 38, 45]),
        (20, [4, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20]),
        (3, [1, 2, 3]),
        (1, [1]),
    ],
)
def test_checkpoints(iterations, at):
    """n = 100: the fractions of Croce and Hein 2020, p_(j+1) = p_j + max(p_j - p_(j-1) - .03, .06), from 0 and .22."""
    found = gaps(iterations)
    assert [k for k, gap in enumerate(found) if gap] == at
    assert [gap for gap in found if gap] == [b - a for a, b in zip([0, *at], at, strict=False)]


def plain_apgd(f, x, start, eps, iterations, rho=0.75):
    """Algorithm 1 for one image in linf, straight from the paper. `f(x) -> (loss, gradient)`. Returns all iterates."""
    project = lambda z: torch.minimum(torch.maximum(z, x - eps), x + eps).clamp(0, 1)  # noqa: E731
    points, losses, eta, sizes = [start], [f(start)[0]], 2 * eps, [2 * eps]
    p, marks = [0.0, 0.22], []
    while round(p[-1] * iterations, 6) <= iterations:
        marks.append(round(p[-1] * iterations))
        p.append(p[-1] + max(p[-1] - p[-2] - 0.03, 0.06))
    best, best_then, halved, mark, now, previous = 0, None, True, 0, start, start
    for k in range(iterations):
        z = project(now + eta * f(now)[1].sign())
        following = z if k == 0 else project(now + 0.75 * (z - now) + 0.25 * (now - previous))
        points.append(following)
        losses.append(f(following)[0])
        if losses[-1] > losses[best]:
            best = k + 1
        previous, now = now, following
        if k + 1 in marks:
            ups = sum(losses[i + 1] > losses[i] for i in range(mark, k + 1))
            halved = ups <= rho * (k + 1 - mark) or (not halved and losses[best] <= best_then)
            if halved:
                eta, now = eta / 2, points[best]
            mark, best_then = k + 1, losses[best]
        sizes.append(eta)
    return points, losses, sizes


@pytest.mark.parametrize("seed", range(3))
def test_the_trajectory_is_the_published_one(seed):
    """Point by point and step size by step size, 100 iterations of which several checkpoints halve."""
    net, threat = Net(16, 4, seed), ThreatModel("linf", 0.2)
    model = Defended(none.purify, None, Classifier(net))
    x = torch.rand(1, 1, 4, 4, generator=seeded(seed))
    y = model.classifier(x).argmax(1)

    def f(at):
        leaf = at.detach().requires_grad_()
        loss = torch.nn.functional.cross_entropy(net(leaf), y)
        return loss.item(), torch.autograd.grad(loss, leaf)[0]

    rng, attack = Streams([7], 0, "attack"), APGD(100, 1)
    state = attack.start(model, x, y, threat, rng.draw(0))
    points, losses, sizes = plain_apgd(f, x, state.x, 0.2, 100)
    assert len(set(sizes)) > 3
    for k in range(101):
        torch.testing.assert_close(state.x, points[k], rtol=0, atol=1e-6)
        state = attack.step(model, state, x, y, threat, rng.draw(1 + k))
        assert state.size.item() == pytest.approx(sizes[k])
        assert state.last.item() == pytest.approx(losses[k], abs=1e-5)
        assert state.top.item() == pytest.approx(max(losses[: k + 1]), abs=1e-5)


@pytest.mark.parametrize(
    ("rises", "halved", "improved", "expected"),
    [(16, True, False, True), (17, True, False, False), (17, False, False, True), (17, False, True, False)],
)
def test_halving_conditions(rises, halved, improved, expected):
    """At the first checkpoint's gap of 22: 16 rises are 75 % or less, 17 are not; a stall counts only if not halved."""
    attack, threat, x = APGD(100, 1), ThreatModel("linf", 0.1), torch.full((1, 1, 2, 2), 0.5)
    state = attack.start(linear(x), x, torch.zeros(1, dtype=torch.long), threat, Streams([0], 0, "a"))
    state = state._replace(
        rises=torch.tensor([rises]), halved=torch.tensor([halved]), top=torch.ones(1), top_x=x + 0.05,
        top_then=torch.tensor([0.5 if improved else 1.0]), top_grad=torch.ones_like(x),
    )  # fmt: skip
    no, zero = torch.tensor([False]), torch.zeros_like(x)
    after, here, grad = attack._checked(state, zero, torch.tensor([22]), no, threat)
    assert after.size.item() == pytest.approx(0.1 if expected else 0.2)
    assert torch.equal(here, state.top_x if expected else state.x)
    assert torch.equal(grad, state.top_grad if expected else zero)
    assert after.rises.item() == 0
    assert bool(after.halved) == expected
    away, *_ = attack._checked(state, zero, torch.tensor([21]), no, threat)
    assert (away.size.item(), away.rises.item()) == (pytest.approx(0.2), rises)  # no checkpoint, nothing happens


@pytest.mark.parametrize("purify", [none.purify, jitter])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("loss", LOSSES)
def test_rows_do_not_depend_on_batch_mates_order_or_refills(loss, norm, purify):
    model = Defended(purify, None, Classifier(Net(64, 6)), draws_per_call=2)
    x, y = torch.rand(16, 1, 8, 8, generator=seeded(3)), torch.arange(16) % 6
    attack = APGD(4, 3, loss, targets=2, restarts=2, confirm=3)
    assert_rows_stand_alone(attack, model, x, y, ThreatModel(norm, 0.1), shared=4)


class Recorder:
    """A defense that records every query for logits, with the keys of its noise."""

    def __init__(self, model):
        self.model, self.queries, self.keys = model, [], []

    def __getattr__(self, name):
        return getattr(self.model, name)

    def logits_of(self, queries, images, rng, samples):
        value = self.model.logits_of(queries, images, rng, samples)
        self.queries.append((queries, [x.clone() for x in images], value))
        self.keys.append(tuple(rng.keys))
        return value

    def loss_gradient(self, x, y, rng, samples, loss=cross_entropy):
        self.keys.append(("gradient", *rng.keys))
        return self.model.loss_gradient(x, y, rng, samples, loss)


@pytest.mark.parametrize("restarts", [1, 3])
def test_selection_samples_choose_what_is_returned(restarts):
    """By the selection samples, which no gradient has used, no candidate is stronger than the returned point. The
    random start and the best points of earlier runs are candidates. The clean image is never returned.
    """
    model = Recorder(Defended(jitter, None, Classifier(Net(64, 6)), draws_per_call=2))
    x, y, threat = torch.rand(8, 1, 8, 8, generator=seeded(3)), torch.arange(8) % 6, ThreatModel("linf", 0.05)
    attack, rng = APGD(5, 2, restarts=restarts, confirm=7), Streams(range(8), 0, "attack")
    state = start = attack.start(model, x, y, threat, rng.draw(0))
    for i in range(attack.steps):
        before, model.queries = state, []
        state = attack.step(model, state, x, y, threat, rng.draw(1 + i))
        for asked, candidates, _ in model.queries:
            assert {b for _, b in asked} == set(range(8))
            assert any(torch.equal(c, before.chosen) for c in candidates)
            confirm = rng.draw(1 + i).draw(1)
            margins = torch.stack([model.model.loss(c, y, confirm, 7, margin) for c in candidates])
            torch.testing.assert_close(model.model.loss(state.x_adv, y, confirm, 7, margin), margins.amax(0))
            assert torch.equal(state.x_adv, state.chosen)
    gradients = {k for keys in model.keys if keys[0] == "gradient" for k in keys[1:]}
    confirming = {k for keys in model.keys if keys[0] != "gradient" for k in keys}
    assert confirming
    assert not gradients & confirming
    assert (threat.distance(state.x_adv, x) > 0.02).all()
    assert torch.equal(start.chosen, start.x_adv)


def test_strongest_keeps_the_first_of_equals():
    model = linear(torch.ones(1, 1, 2, 2))
    x, y = torch.rand(3, 1, 2, 2, generator=seeded(0)), torch.zeros(3, dtype=torch.long)
    rng = Streams(range(3), 0, "a")
    assert torch.equal(strongest(model, [x, x.flip(3), x + 0.1], y, rng, 1), x)
    assert torch.equal(strongest(model, [x, x - 0.1], y, rng, 1), x - 0.1)


def test_strongest_asks_once_about_the_same_and_about_nobody_else():
    model = Recorder(Defended(jitter, None, Classifier(Net(64, 6)), draws_per_call=2))
    x, y = torch.rand(3, 1, 8, 8, generator=seeded(0)), torch.zeros(3, dtype=torch.long)
    other = torch.stack([x[0], x[1] + 0.1, x[2] + 0.1])  # of image 0 there is one candidate, twice
    rng = Streams([5, 6, 7], 0, "a")
    every = strongest(model, [x, other, x], y, rng, 3)
    few = strongest(model, [other, x, other], y, rng, 3, among=torch.tensor([False, True, False]))
    assert sorted(model.queries[0][0]) == [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2)]
    assert sorted(model.queries[1][0]) == [(0, 1), (1, 1)]
    assert torch.equal(few[[0, 2]], other[[0, 2]])
    margins = torch.stack([model.model.loss(c, y, rng, 3, margin) for c in (x, other)])
    for b in range(3):
        assert torch.equal(every[b], (x, other)[int(margins[:, b].argmax())][b])
    assert torch.equal(few[1], every[1])


def test_losses_are_the_papers():
    logits, y = torch.tensor([[3.0, 1.0, 0.5, -1.0, -2.0], [3.0, 1.0, 0.5, -1.0, -2.0]]), torch.tensor([0, 1])
    assert margin(logits, y).tolist() == [-2.0, 2.0]
    assert dlr(logits, y).tolist() == pytest.approx([-2 / 2.5, 2 / 2.5])
    t = torch.tensor([3, 0])
    assert targeted_dlr(logits, y, t).tolist() == pytest.approx([-4 / 3.25, 2 / 3.25])
    both = with_margin("targeted", t)(logits.repeat(3, 1), y.repeat(3))
    assert torch.equal(both[:2], both[4:])
    assert both[:2, 1].tolist() == [-2.0, 2.0]


def test_targets_are_the_likeliest_wrong_classes():
    model = Defended(none.purify, None, Classifier(Net(64, 6)))
    x, y = torch.rand(4, 1, 8, 8, generator=seeded(3)), torch.arange(4)
    state = APGD(2, 1, "targeted", targets=5).start(model, x, y, ThreatModel("linf", 0.1), Streams(range(4), 0, "a"))
    for row, logits, label in zip(state.targets, model.classifier(x), y, strict=True):
        assert row.tolist() == [k for k in logits.argsort(descending=True).tolist() if k != label]


def test_a_loss_of_columns_is_averaged_whole_and_differentiated_in_the_first():
    model = Defended(jitter, None, Classifier(Net(64, 6)), draws_per_call=2)
    x, y, rng = torch.rand(4, 1, 8, 8, generator=seeded(3)), torch.arange(4), Streams(range(4), 0, "a")
    values, grad = model.loss_gradient(x, y, rng, 5, with_margin("ce"))
    plain, plain_grad = model.loss_gradient(x, y, rng, 5)
    assert torch.equal(values[:, 0], plain)
    assert torch.equal(grad, plain_grad)
    torch.testing.assert_close(values[:, 1], model.loss(x, y, rng, 5, margin))


@pytest.mark.parametrize(
    "bad", [{"iterations": 0}, {"eot": 0}, {"targets": 0}, {"restarts": 0}, {"confirm": 0}, {"loss": "x"}, {"rho": 2.0}]
)
def test_rejects(bad):
    with pytest.raises(ValueError, match=r"^need "):
        APGD(**{"iterations": 1, "eot": 1, **bad})


@pytest.mark.parametrize("loss", ["dlr", "targeted"])
def test_too_few_classes_are_an_error(loss):
    model = Defended(none.purify, None, Classifier(Linear(torch.ones(1, 1, 2, 2))))
    x, y = torch.rand(1, 1, 2, 2), torch.zeros(1, dtype=torch.long)
    with pytest.raises(
        ValueError, match=r"^need \d classes .* got \d: set attack.loss=ce, .*apgd_t.loss=ce, or use attack=apgd_ce$"
    ):
        APGD(1, 1, loss, targets=1).start(model, x, y, ThreatModel("linf", 0.1), Streams([0], 0, "a"))


def test_fewer_targets_are_the_way_out_where_the_loss_is_defined():
    with pytest.raises(ValueError, match=r"^need 10 classes .* with 9 targets, got 5: set attack.targets=4,"):
        check_classes("targeted", 5, 9)
    check_classes("targeted", 5, 4)


def test_the_yaml_holds_the_papers_values():
    attack = make(composed("dataset=cifar10", "attack=apgd_t")["attack"])
    assert attack == APGD(100, 20, "targeted", targets=9, restarts=1, confirm=20, rho=0.75)
    assert attack.steps == 9 * 101
    assert composed("attack=apgd_dlr")["attack"]["loss"] == "dlr"
