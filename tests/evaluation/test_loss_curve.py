"""Loss curves: what they hold is what the attack saw, and noting it changes no bit of the attack."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dp.attacks.bpda import BPDA
from dp.attacks.pgd_eot import PGD
from dp.attacks.square import Square
from dp.classifiers import Classifier
from dp.defense.defended import Defended
from dp.evaluation import slots as slots_module
from dp.evaluation.loss_curve import NOTHING, Noted, Notes, Point, mean_point, padded
from dp.evaluation.slots import Slots
from dp.objectives import margin
from dp.purifiers import none
from dp.rng import Streams
from dp.subset import Subset
from dp.threat_models.ball import ThreatModel
from tests.attacks.test_apgd import jitter

THREAT = ThreatModel("linf", 0.1)


def model(purify=none.purify, draws_per_call: int = 1) -> Defended:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    return Defended(purify, None, Classifier(net), draws_per_call)


def attacked(attack, defended: Defended, count: int = 5, width: int = 3) -> Slots:
    x = torch.rand(count, 1, 3, 4, generator=torch.Generator().manual_seed(1))
    images = Subset(torch.arange(count), x, torch.arange(count) % 4)

    def streams(stage, ids):
        return Streams(ids, 7, stage)

    return Slots(attack, lambda ids: defended, defended, THREAT, streams, images, width)


def test_the_points_of_pgd_are_those_of_a_loop_by_hand():
    defended = model()
    run = attacked(PGD(4, 1, step_size=0.03, random_start=False, select="last"), defended)
    outcomes = run.run(lambda *_: None)
    for k, outcome in enumerate(outcomes):
        x, y = run.images.x[k : k + 1], run.images.y[k : k + 1]
        at = x.clone()
        assert len(outcome.curve) == 4
        for point in outcome.curve:
            leaf = at.clone().requires_grad_()
            logits = defended.classifier(leaf)
            loss = F.cross_entropy(logits, y)
            (gradient,) = torch.autograd.grad(loss, leaf)
            expected = Point(loss.item(), gradient.norm().item(), float((logits.argmax(1) == y).item()))
            assert point == pytest.approx(expected, rel=1e-5)
            at = (x + (at + 0.03 * gradient.sign() - x).clamp(-0.1, 0.1)).clamp(0, 1)


@pytest.mark.parametrize(
    "attack", [PGD(3, 5, momentum=0.75), Square(3, 2), BPDA(3, 2, None)], ids=lambda attack: type(attack).__name__
)
def test_noting_changes_no_bit(attack, monkeypatch):
    defended = model(jitter, draws_per_call=2)
    noted = attacked(attack, defended).run(lambda *_: None)
    monkeypatch.setattr(slots_module, "Noted", lambda model, notes: model)
    plain = attacked(attack, defended).run(lambda *_: None)
    for one, other in zip(noted, plain, strict=True):
        assert torch.equal(one.x_adv, other.x_adv)  # pyright: ignore[reportArgumentType]
        assert all(not math.isnan(point.loss) for point in one.curve)
        assert all(math.isnan(point.loss) for point in other.curve)


def test_samples_in_packs_count_alike():
    """The mean over 5 samples, two at a time, is that of the samples one by one, whatever the objective is."""
    defended, rng = model(jitter, draws_per_call=2), Streams([0, 1, 2], 3, "attack")
    x, y = torch.rand(3, 1, 3, 4), torch.tensor([0, 1, 2])
    notes = Notes(3)
    Noted(defended, notes).loss_gradient(x, y, rng, 5, margin)
    logits = defended.logits(x, rng, 5)  # (5,3,K)
    for b, point in enumerate(notes.points()):
        losses = [F.cross_entropy(sample[b : b + 1], y[b : b + 1]).item() for sample in logits]
        right = (logits[:, b].argmax(dim=1) == y[b]).float().mean().item()
        assert (point.loss, point.right) == pytest.approx((sum(losses) / 5, right), rel=1e-5)


def test_gradients_come_before_values_and_parts_of_a_batch_are_left_out():
    defended, rng = model(), Streams([0, 1], 3, "attack")
    x, y = torch.rand(2, 1, 3, 4), torch.tensor([0, 1])
    notes = Notes(2)
    noted = Noted(defended, notes)
    noted.loss(x[:1], y[:1], rng.select([0]), 1)
    assert all(map(math.isnan, notes.points()[0]))
    noted.loss(x.flip(0), y, rng, 1)
    by_values = notes.points()
    assert not math.isnan(by_values[0].loss)
    assert math.isnan(by_values[0].gradient_norm)
    noted.gradient_mode("bpda").loss_gradient(x, y, rng, 1)  # its gradient modes share the notes
    assert notes.points()[0].loss == pytest.approx(F.cross_entropy(defended.classifier(x[:1]), y[:1]).item())
    assert not math.isnan(notes.points()[0].gradient_norm)


def test_means_and_ends():
    assert mean_point([Point(1.0, 2.0, 0.0), NOTHING, Point(3.0, float("nan"), 1.0)]) == Point(2.0, 2.0, 0.5)
    curves = padded([(Point(1.0, 2.0, 0.0),), (Point(1.0, 2.0, 0.0), Point(3.0, 4.0, 1.0))])
    assert curves.shape == (2, 2, 3)
    assert curves[0, 1].isnan().all()
    assert padded([(), ()]).shape == (2, 0, 3)
