"""HopSkipJump: distances in closed form, gradient masking, majorities, queries, and what comes back from the ball."""

import dataclasses

import pytest
import torch

from dp.attacks.decision import Decision, State, Sub, _Asking, _between
from dp.attacks.pgd_eot import PGD
from dp.classifiers import Classifier
from dp.defense.defended import Defended
from dp.evaluation.dry import dry_nfe
from dp.evaluation.work import Counting, Pricing, _counted, in_evaluations
from dp.purifiers import none
from dp.rng import Streams
from dp.subset import Subset
from dp.threat_models.ball import ThreatModel
from tests.attacks.test_apgd import jitter
from tests.attacks.test_attacks import Linear, assert_feasible, assert_rows_stand_alone, linear, run_attack

SMALL = {"iterations": 4, "eot": 3, "directions": 6, "most": 10, "confirm": 3, "theta": 0.1}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


W = torch.randn(1, 1, 8, 8, generator=seeded(0))
X = 0.5 + 0.05 * torch.randn(4, 1, 8, 8, generator=seeded(1))
Y = ((X * W).flatten(1).sum(1) < 0).long()
DUAL = {"l2": W.norm(), "linf": W.abs().sum()}  # of the threat model's norm


def states(attack, model, x, y, threat, seed=0):
    """The state after every step, the start included."""
    rng = Streams(range(len(x)), seed, "attack")
    found = [attack.start(model, x, y, threat, rng.draw(0))]
    for i in range(attack.steps):
        found.append(attack.step(model, found[-1], x, y, threat, rng.draw(1 + i)))
        assert_feasible(found[-1], x, threat)
    return found


@pytest.mark.parametrize(("norm", "factor"), [("l2", 1.05), ("linf", 1.1)])
def test_the_distance_nears_that_of_the_closed_form(norm, factor):
    """margin / |w| in the dual norm is the distance of the boundary; no misclassified image is nearer."""
    distance = (X * W).flatten(1).sum(1).abs() / DUAL[norm]
    attack = Decision(10, 1, 100, 10000, 1)
    course = states(attack, linear(W), X, Y, ThreatModel(norm, 0.02))
    assert course[-1].found.all()
    shares = torch.stack([state.least / distance for state in course[1:]])
    assert (shares > 1 - 1e-4).all()
    assert (shares[-1] < factor).all()
    assert (shares[0] > 1.5).all()  # the start is far, so the steps have come all this way


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_candidates_lie_in_the_ball_and_break_the_image_where_the_boundary_does(norm):
    """From outside the point is projected into the ball; from inside it goes on to the surface, past the boundary."""
    distance = (X * W).flatten(1).sum(1).abs() / DUAL[norm]
    for share, broken in ((1.5, True), (0.7, False)):
        threat = ThreatModel(norm, share * float(distance.min()))
        x, y = X[distance.argmin()][None], Y[distance.argmin()][None]
        last = states(Decision(10, 1, 60, 10000, 1, 0.03), linear(W), x, y, threat)[-1]
        logits = linear(W).classifier(last.x_adv)
        assert bool((logits.argmax(1) != y).all()) == broken
        torch.testing.assert_close(threat.distance(last.x_adv, x).item(), threat.eps, rtol=1e-4, atol=0)
        assert (linear(W).classifier(last.x).argmax(1) != y).all()  # the path is at the misclassified side
        assert (threat.distance(last.x, x) < threat.eps).all() == broken


def rounded(x, denoiser, classifier, rng, *, on_step=None):
    """A purifier with no gradient: each pixel becomes one of eight gray levels."""
    return (x * 8).round() / 8


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_an_image_that_is_wrong_by_itself_comes_back_attacked(norm):
    """Its binary searches would end at the image. The path stops at 1 % of eps, and its line goes on to the surface."""
    threat = ThreatModel(norm, 0.02)
    course = states(Decision(12, 1, 10, 100, 1, theta=0.1), linear(W), X, 1 - Y, threat)
    for state in course[2:]:
        assert (threat.distance(state.x, X) >= 0.9 * 0.01 * threat.eps).all()
        torch.testing.assert_close(threat.distance(state.now, X).float(), torch.full((4,), 0.02), rtol=1e-3, atol=0)
    torch.testing.assert_close(threat.distance(course[-1].x_adv, X).float(), torch.full((4,), 0.02), rtol=1e-3, atol=0)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_it_works_where_the_gradient_is_zero(norm):
    """PGD gets a gradient of zero everywhere and finds nothing, at a radius of three times the boundary's distance."""
    model = Defended(rounded, None, Classifier(Linear(W)))
    y = model.logits(X, Streams(range(4), 0, "clean"), 1)[0].argmax(1)
    eps = 3 * float(((X * W).flatten(1).sum(1).abs() / DUAL[norm]).max()) + (0.06 if norm == "linf" else 0.3)
    threat = ThreatModel(norm, eps)
    blind = run_attack(PGD(20, 1, random_start=False, select="last"), model, X, y, threat)
    assert torch.equal(blind, X)
    x_adv = run_attack(Decision(6, 1, 50, 10000, 5), model, X, y, threat)
    assert (model.logits(x_adv, Streams(range(4), 0, "adv"), 1)[0].argmax(1) != y).all()


def coin(x, denoiser, classifier, rng, *, on_step=None):
    """A purifier that turns the image around in some samples: those whose number falls below the image's mean."""
    turned = rng.uniform_like(x[:, :1, :1, :1]) < x.mean(dim=(1, 2, 3), keepdim=True)
    return torch.where(turned, 1 - x, x)


def brightness(share: float) -> torch.Tensor:
    return torch.full((1, 1, 4, 4), share)


class Above(torch.nn.Module):
    """Class 1 for images brighter than .5."""

    def forward(self, x):
        bright = x.flatten(1).mean(1) - 0.5
        return torch.stack([-bright, bright], dim=1)


def test_a_decision_is_the_majority_of_its_samples():
    """Of a defense that is wrong in a share p of its samples: with 201 samples the decision is p > 1/2, always."""
    model = Defended(coin, None, Classifier(Above()), draws_per_call=50)
    for p in (0.2, 0.35, 0.65, 0.8):
        x = brightness(p).repeat(20, 1, 1, 1)
        y = (torch.arange(20) * 0) + int(p > 0.5)  # right where the image is not turned around
        for samples, expected in ((201, p > 0.5), (1, None)):
            asking = _Asking(model, y, samples)
            wrong = asking.wrong(x, torch.ones(20, dtype=torch.bool), Streams(range(20), 0, "q"))
            if expected is None:
                assert 0 < int(wrong.sum()) < 20  # one sample decides otherwise
            else:
                assert (wrong == expected).all()
            assert asking.spent.tolist() == [samples] * 20


class Never(torch.nn.Module):
    """Always class 0."""

    def forward(self, x):
        return torch.stack([x.flatten(1).sum(1) * 0 + 1, x.flatten(1).sum(1) * 0], dim=1)


class Half(Defended):
    """One of two samples is wrong."""

    def logits_of(self, queries, images, rng, samples):
        return torch.eye(2).unsqueeze(1).expand(2, len(queries), 2)


def test_an_even_number_of_samples_that_tie_is_right():
    asking = _Asking(Half(none.purify, None, Classifier(Never())), torch.zeros(3, dtype=torch.long), 2)
    among = torch.tensor([True, False, True])
    assert asking.wrong(torch.zeros(3, 1, 2, 2), among, Streams(range(3), 0, "q")).tolist() == [False] * 3
    assert asking.spent.tolist() == [2, 0, 2]


@pytest.mark.parametrize("purify", [none.purify, jitter])
def test_queries_are_the_samples_of_all_decisions(purify):
    """Counted beside the attack by the defense; one sample of a decision where no noise is drawn."""
    asked = torch.zeros(4, dtype=torch.long)

    class Spy(Defended):
        def logits_of(self, queries, images, rng, samples):
            for _, b in queries:
                asked[b] += samples if purify is jitter else 1
            return super().logits_of(queries, images, rng, samples)

    model = Spy(purify, None, Classifier(Linear(W)), draws_per_call=2)
    course = states(Decision(**{**SMALL, "confirm": 1}), model, X, Y, ThreatModel("l2", 0.3))
    before_choice = course[-2].queries
    assert (before_choice > 0).all()
    assert (course[-1].queries > before_choice).all()
    chosen = asked - course[-1].queries  # at most three candidates, one sample of each
    assert ((chosen >= 0) & (chosen <= 3)).all()


def test_an_image_without_a_start_comes_back_attacked_and_says_so():
    model, y = Defended(none.purify, None, Classifier(Never())), torch.zeros(4, dtype=torch.long)
    threat = ThreatModel("l2", 0.3)
    last = states(Decision(**SMALL), model, X, y, threat)[-1]
    assert not last.found.any()
    assert torch.isinf(last.least).all()
    torch.testing.assert_close(threat.distance(last.x_adv, X).float(), torch.full((4,), 0.3), rtol=1e-4, atol=0)
    asked = sum(Decision(**SMALL)._count(torch.tensor([i])).item() for i in range(4))
    assert last.queries.tolist() == [asked] * 4


def test_the_directions_grow_with_the_root_of_the_iteration():
    """B_t = B_0 sqrt(t), rounded down, at most `most` (Algorithm 2 and the released code)."""
    attack = Decision(40, 1, 100, 450, 1)
    assert attack._count(torch.tensor([0, 1, 3, 15, 20, 39])).tolist() == [100, 141, 200, 400, 450, 450]


def found_at(x: torch.Tensor, far: float) -> State:
    """The state of one image before the first iteration, with a boundary point x."""
    one, count = torch.tensor([far]), torch.zeros(1, dtype=torch.long)
    return State(x, x, x, torch.tensor([True]), one, one, count, count)


def test_the_distance_at_which_a_direction_is_asked_for():
    """sqrt(d) theta (l2) and d theta (linf) times the length of the last search: a 1/d of it at the paper's theta."""
    x = torch.full((1, 3, 2, 2), 0.5)
    for norm, root in (("l2", 12**0.5), ("linf", 12)):
        delta = [
            Decision(1, 1, 2, 2, 1, theta)._delta(found_at(x, 0.6), x, ThreatModel(norm, 1.0)).item()
            for theta in (None, 0.1)
        ]
        assert delta == pytest.approx([0.05, root * 0.1 * 0.6], rel=1e-6)
    missing = found_at(x, torch.inf)._replace(found=torch.tensor([False]))
    assert Decision(1, 1, 2, 2, 1)._delta(missing, x, ThreatModel("l2", 1.0)).item() == 1


class Directions:
    """Streams with three directions: draw(Sub.DIRECTION + k).draw(...) has the k-th."""

    noises = ((3.0, 4.0, 0.0, 0.0), (-3.0, 0.0, 4.0, 0.0), (0.0, 0.0, 3.0, -4.0))

    def __init__(self, k: int = -1):
        self.k = k

    def draw(self, k: int) -> "Directions":
        return Directions(k - Sub.DIRECTION) if self.k < 0 else self

    def randn_like(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tensor(self.noises[self.k]).view(x.shape)


class Answers:
    """Decisions that are given; the points that they are asked for are kept."""

    def __init__(self, *answers: bool):
        self.answers, self.points = list(answers), []

    def wrong(self, x, among, rng):
        self.points.append([round(value, 6) for value in x.flatten().tolist()])
        return torch.tensor([self.answers.pop(0)])


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ((True, False, True), [0.8, 1.6 / 3, -2 / 3, 0]),  # signs 1, -1, 1; their mean 1/3 is the baseline
        ((True, True, True), [-0.6, 0.8, 1.4, 0]),  # all agree: no baseline, the sum
        ((False, False, False), [0.6, -0.8, -1.4, 0]),
    ],
)
def test_one_direction_by_hand(answers, expected):
    """Points at distance .1 = sqrt(4) x .05 x 1 of (1, .5, .5, 0), cut by the box. The directions count as they are
    after the cut: (0, .8, 0, 0), (-.6, 0, .8, 0) and (0, 0, .6, 0).
    """
    x = torch.tensor([1.0, 0.5, 0.5, 0.0]).view(1, 1, 2, 2)
    asking, attack = Answers(*answers), Decision(1, 1, 3, 3, 1, theta=0.05)
    given = (found_at(x, 1.0), torch.full_like(x, 0.5), ThreatModel("l2", 2.0), Directions())
    _, began, v = attack._directions(asking, *given)  # type: ignore[arg-type]
    assert asking.points == [[1, 0.58, 0.5, 0], [0.94, 0.5, 0.58, 0], [1, 0.5, 0.56, 0]]
    torch.testing.assert_close(v.flatten(), torch.tensor(expected), atol=1e-5, rtol=0)
    assert not began.any()


def test_binary_searches_end_at_the_papers_thresholds():
    """d^-3/2 and d^-2 of the length; with `theta` at that share; never more digits than float32 has."""
    x = torch.zeros(1, 3, 32, 32)
    attack = Decision(1, 1, 2, 2, 1)
    assert (attack._halvings(x, "l2"), attack._halvings(x, "linf")) == (18, 24)  # log2 3072^1.5 = 17.4, 3072^2 = 23.2
    assert dataclasses.replace(attack, theta=0.01)._halvings(x, "linf") == 7
    assert attack._halvings(torch.zeros(1, 3, 224, 224), "linf") == 24
    wide = ThreatModel("linf", 1.0)
    far, near = torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    far[0, 0, 0, 0] = 0.25
    assert torch.equal(_between(near, far, torch.full((1, 1, 1, 1), 0.5), wide), far.clamp(max=0.5))
    line = _between(near, far, torch.full((1, 1, 1, 1), 0.5), ThreatModel("l2", 2.0))
    assert torch.equal(line, far / 2)


def test_the_work_is_counted_and_the_count_ends():
    """A stand-in that is never wrong has no start, and pays for looking for one: nearly what others pay for steps."""
    one = Subset(torch.tensor([0]), X[:1], Y[:1])
    model = Defended(jitter, None, Classifier(Linear(W)), draws_per_call=2)
    attack, threat = Decision(8, 3, 30, 10000, 2, theta=0.1), ThreatModel("l2", 0.3)
    counting = Counting(model, Pricing(one, in_evaluations(1.0)), one.y, 2, None)
    work = _counted(attack, counting, one, threat, attack.steps)
    assert len(work) == attack.steps + 1
    spent = states(attack, model, X, Y, threat)[-1].queries.float().mean()
    assert dry_nfe(model, one) == 0
    assert 0.8 < work[-1] / float(spent) < 1.2


def test_rows_do_not_depend_on_batch_mates_order_or_their_steps():
    model = Defended(jitter, None, Classifier(Linear(W)), draws_per_call=2)
    for norm in ("l2", "linf"):
        assert_rows_stand_alone(Decision(**SMALL), model, X, Y, ThreatModel(norm, 0.3), shared=2)


@pytest.mark.parametrize(
    "bad", [{"iterations": 0}, {"eot": 0}, {"directions": 1}, {"most": 5}, {"confirm": 0}, {"theta": 1.0}, {"theta": 0}]
)
def test_values_out_of_range_are_one_line(bad):
    with pytest.raises(ValueError, match=r"^need "):
        Decision(**{**SMALL, **bad})
