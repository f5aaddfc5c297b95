"""SPSA: its slope against the true gradient, the linear optimum, and independence of the batch."""

import pytest
import torch

from dp.attacks.spsa import SPSA
from dp.classifiers import Classifier
from dp.defense.defended import Defended
from dp.objectives import margin
from dp.purifiers import none
from dp.rng import Streams
from dp.threat_models.ball import ThreatModel
from tests.attacks.test_apgd import Net, jitter, seeded
from tests.attacks.test_attacks import assert_rows_stand_alone, linear, run_attack


def test_slope_is_the_gradient():
    """Away from the box, the estimate from many pairs points along the gradient of the margin."""
    model = Defended(none.purify, None, Classifier(Net(16, 4)))
    x, y = 0.3 + 0.4 * torch.rand(4, 1, 4, 4, generator=seeded(0)), torch.arange(4)
    value, slope = SPSA(1, 1, directions=800, delta=1e-3)._slope(model, x, y, Streams(range(4), 0, "a"))
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(margin(model.classifier(leaf), y).sum(), leaf)
    assert (torch.cosine_similarity(slope.flatten(1), grad.flatten(1)) > 0.97).all()
    torch.testing.assert_close(value, margin(model.classifier(x), y), rtol=0, atol=1e-3)


def test_linf_reaches_the_corner_of_a_linear_model():
    w = torch.tensor([1.0, -1.0, 2.0, -0.5]).view(1, 1, 2, 2)
    x, threat = torch.full((3, 1, 2, 2), 0.5), ThreatModel("linf", 0.1)
    x_adv = run_attack(SPSA(40, 1, directions=16), linear(w), x, torch.zeros(3, dtype=torch.long), threat)
    torch.testing.assert_close(x_adv, x - 0.1 * w.sign(), rtol=0, atol=5e-3)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_rows_stand_alone(norm):
    model = Defended(jitter, None, Classifier(Net(64, 6)), draws_per_call=2)
    x, y = torch.rand(16, 1, 8, 8, generator=seeded(3)), torch.arange(16) % 6
    assert_rows_stand_alone(SPSA(3, 2, directions=4, confirm=3), model, x, y, ThreatModel(norm, 0.1))


@pytest.mark.parametrize(
    "bad", [{"iterations": 0}, {"directions": 0}, {"delta": 0.0}, {"step_size": -1.0}, {"confirm": 0}]
)
def test_rejects(bad):
    with pytest.raises(ValueError, match=r"^need "):
        SPSA(**{"iterations": 1, "eot": 1, **bad})
