"""DiffHammer: which samples it follows, exact grafting, and a defense whose samples have opposite gradients."""

import pytest
import torch
import torch.nn.functional as F

from dp.attacks.apgd import APGD
from dp.attacks.diffhammer import DiffHammer, shared_weakness
from dp.classifiers import Classifier
from dp.defense.defended import Defended
from dp.objectives import cross_entropy, margin
from dp.purifiers import none
from dp.rng import Streams
from dp.runs.compose import make
from dp.threat_models.ball import ThreatModel
from tests.attacks.test_apgd import Net, jitter, seeded
from tests.attacks.test_attacks import assert_rows_stand_alone, linear, run_attack
from tests.helpers.compose import composed

THREATS = [ThreatModel("linf", 0.1), ThreatModel("l2", 0.1)]


def clustered(*clusters):
    """Clusters (count, loss, gradient) as losses (N,1) and gradients (N,1,1,1,2)."""
    rows = [(loss, grad) for count, loss, grad in clusters for _ in range(count)]
    return torch.tensor([[loss] for loss, _ in rows]), torch.tensor([g for _, g in rows]).view(-1, 1, 1, 1, 2)


@pytest.mark.parametrize("threat", THREATS, ids=["linf", "l2"])
@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((6, -0.5, [10.0, 0.0]), (4, -0.5, [-10.0, 0.0])),  # more of them
        ((2, -0.5, [10.0, 0.0]), (3, -3.0, [-10.0, 0.0])),  # fewer, but within reach
        ((2, -0.9, [20.0, 0.0]), (3, -0.9, [-5.0, 0.0])),  # fewer, but steeper
    ],
)
def test_of_two_clusters_that_conflict_the_one_to_be_broken_is_picked(a, b, threat):
    """The change of length .1 along a cluster's gradient raises its losses by .1 |g|."""
    losses, grads = clustered(a, b)
    weights, which = shared_weakness(losses, grads, threat, 5.0, 5)
    assert which.item() < a[0]
    assert weights[: a[0]].sum().item() > 0.95
    along = 0.1 * grads.flatten(1)[:, 0]  # how far d raises each loss
    q = torch.sigmoid(5 * (losses[:, 0] + along))
    torch.testing.assert_close(weights[:, 0], q / q.sum(), rtol=1e-4, atol=1e-6)


def test_without_conflict_all_samples_count_alike():
    weights, _ = shared_weakness(*clustered((7, -0.3, [1.0, 2.0])), THREATS[0], 5.0, 5)
    torch.testing.assert_close(weights, torch.full((7, 1), 1 / 7))


def test_far_from_the_goal_the_weights_stay_finite():
    """sigma(-500) is zero in float32, and a zero gradient would end the attack."""
    weights, _ = shared_weakness(*clustered((1, -100.0, [1.0, 0.0]), (1, -101.0, [-1.0, 0.0])), THREATS[0], 5.0, 5)
    assert weights.sum().item() == pytest.approx(1)
    assert weights[0].item() > 0.99


def total(losses, grads, d, sharpness=5.0):
    return torch.sigmoid(sharpness * (losses[:, 0] + grads.flatten(1) @ d)).sum()


def test_the_step_is_fed_back():
    """Over random cases in two pixels: rounds after the first raise the sum somewhere and never lower it, and together
    come close to the best direction on a circle of 720. One sample's own direction is where they begin.
    """
    threat, gained, shares = THREATS[1], 0, []
    for seed in range(40):
        losses = torch.randn(10, 1, generator=seeded(seed)) - 1
        grads = 20 * torch.randn(10, 1, 1, 1, 2, generator=seeded(100 + seed))
        angles = torch.linspace(0, 2 * torch.pi, 721)[:-1]
        best = max(total(losses, grads, 0.1 * torch.stack([a.cos(), a.sin()])) for a in angles)
        sums = []
        for rounds in (1, 5):
            weights, which = shared_weakness(losses, grads, threat, 5.0, rounds)
            own = total(losses, grads, 0.1 * F.normalize(grads[which.item()].flatten(), dim=0))
            # weights are q / sum q; a sample's q follows from its ratio to another's, which d decides: solve for d
            d = solved(losses, grads, weights)
            sums.append(total(losses, grads, d))
            assert sums[-1] >= own - 1e-3
        gained += bool(sums[1] > sums[0] + 1e-3)
        assert sums[1] >= sums[0] - 1e-3
        shares.append((sums[1] / best).item())
    assert gained > 0
    assert min(shares) > 0.8
    assert sum(shares) / len(shares) > 0.97


def solved(losses, grads, weights):
    """The d on the circle of radius .1 whose q are proportional to the weights, from a fine grid."""
    angles = torch.linspace(0, 2 * torch.pi, 20001)
    d = 0.1 * torch.stack([angles.cos(), angles.sin()])  # (2,20001)
    log_q = F.logsigmoid(5 * (losses + grads.flatten(1) @ d)).log_softmax(dim=0)  # (10,20001)
    off = (log_q.exp() - weights).abs().sum(dim=0)
    assert off.min() < 2e-3
    return d[:, off.argmin()]


def bent(x, denoiser, classifier, rng, *, on_step=None):
    """Deterministic and far from the identity."""
    return (0.5 + 0.4 * torch.sin(5 * x.flip(3) + x)).clamp(0, 1)


@pytest.mark.parametrize(("loss", "plain"), [("ce", cross_entropy), ("cw", margin)])
def test_grafting_is_the_exact_gradient_of_a_deterministic_purifier(loss, plain):
    model = Defended(bent, None, Classifier(Net(64, 6)), draws_per_call=2)
    x, y, rng = torch.rand(5, 1, 8, 8, generator=seeded(3)), torch.arange(5), Streams(range(5), 0, "a")
    attack = DiffHammer(3, 4, [loss])
    state = attack.start(model, x, y, THREATS[0], rng.draw(0))
    _, expected = model.loss_gradient(state.run.x, y, rng.draw(1).draw(0), 4, plain)
    after = attack.step(model, state, x, y, THREATS[0], rng.draw(1))
    torch.testing.assert_close(after.mixed, expected)


def test_grafting_is_exact_where_samples_share_the_derivative():
    """Noise that is added: the weighted mean of the samples' own gradients, by hand; and the second step mixes the
    first one in.
    """

    def added(x, denoiser, classifier, rng, *, on_step=None):
        return 0.8 * x.flip(2) + 0.3 * rng.randn_like(x)

    net = Classifier(Net(64, 6))
    model, threat = Defended(added, None, net, draws_per_call=3), THREATS[1]
    x, y, rng = torch.rand(5, 1, 8, 8, generator=seeded(3)), torch.arange(5), Streams(range(5), 0, "a")
    attack = DiffHammer(3, 6, ["cw"])
    state = attack.start(model, x, y, threat, rng.draw(0))
    for step in range(2):
        before, losses, behind, full = state, [], [], []
        for k in range(6):
            leaf = state.run.x.clone().requires_grad_()
            x_hat = model.purify(leaf, rng.draw(1 + step).draw(0).draw(k))
            loss = margin(net(x_hat), y)
            inner, outer = torch.autograd.grad(loss.sum(), [x_hat, leaf])
            losses.append(loss.detach())
            behind.append(inner)
            full.append(outer)
        weights, _ = shared_weakness(torch.stack(losses), torch.stack(behind), threat, 5.0, 5)
        exact = (weights.view(6, 5, 1, 1, 1) * torch.stack(full)).sum(dim=0)
        share = (1 + step) ** -0.5
        state = attack.step(model, state, x, y, threat, rng.draw(1 + step))
        torch.testing.assert_close(state.mixed, share * exact + (1 - share) * before.mixed)
    assert not torch.allclose(weights, torch.full_like(weights, 1 / 6), atol=0.01)


class Hills(torch.nn.Module):
    """Margin .1 - |x - 1/2|^2 against label 0: wrong near the gray image only."""

    def forward(self, x):
        return F.pad((0.1 - ((x - 0.5) ** 2).flatten(1).sum(1)).view(-1, 1), (1, 0))


def aside(x, denoiser, classifier, rng, *, on_step=None):
    """Shifts all pixels by +a or by -a, |a|^2 = .5, with even chances."""
    up = rng.uniform_like(x[:, :1, :1, :1]) < 0.5
    return x + torch.where(up, 1.0, -1.0) * (0.5 / 64) ** 0.5


@pytest.mark.parametrize("losses", [["cw"], ["cw", "ce"]])
def test_where_mean_gradients_cancel_the_selective_attack_succeeds(losses):
    """Theorem 1 of the paper: the mean of two concave losses is largest half-way, where no sample is wrong. The attack
    that follows one of the two makes half of the samples wrong, and so every worst of ten.
    """
    model, threat = Defended(aside, None, Classifier(Hills()), draws_per_call=5), ThreatModel("linf", 0.1)
    x, y = torch.full((6, 1, 8, 8), 0.5), torch.zeros(6, dtype=torch.long)

    def wrong(attack):
        x_adv = run_attack(attack, model, x, y, threat)
        return (margin(model.logits(x_adv, Streams(range(6), 9, "fresh"), 40).flatten(0, 1), y.repeat(40)) > 0).view(
            40, 6
        )

    assert not wrong(APGD(20, 80, "ce", confirm=200)).any()  # of few samples the mean gradient would not be zero
    found = wrong(DiffHammer(20, 10, losses, sharpness=20.0))  # margins are small here
    assert found[:20].any(dim=0).all()
    assert 0.35 < found.float().mean() < 0.65


def test_a_linear_model_is_driven_into_the_corner():
    """The margins do not saturate, and the attack goes on until the corner."""
    w = 0.05 * torch.randn(1, 1, 8, 8, generator=seeded(0))
    x = torch.rand(5, 1, 8, 8, generator=seeded(1))
    attack = DiffHammer(20, 2, ["cw", "ce"], confirm=2)
    x_adv = run_attack(attack, linear(w), x, torch.zeros(5, dtype=torch.long), THREATS[0])
    torch.testing.assert_close(x_adv, (x - 0.1 * w.sign()).clamp(0, 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("purify", [none.purify, jitter])
def test_rows_do_not_depend_on_batch_mates_order_or_their_steps(purify, norm):
    """Those that enter late are in other runs than the rest, and on other losses."""
    model = Defended(purify, None, Classifier(Net(64, 6)), draws_per_call=2)
    x, y = torch.rand(16, 1, 8, 8, generator=seeded(3)), torch.arange(16) % 6
    assert_rows_stand_alone(DiffHammer(2, 4, confirm=3), model, x, y, ThreatModel(norm, 0.1))


@pytest.mark.parametrize(
    "bad",
    [{"losses": []}, {"losses": ["x"]}, {"eot": 0}, {"em_steps": 0}, {"sharpness": 0.0}, {"decay": -1.0}, {"rho": 2.0}],
)
def test_rejects(bad):
    with pytest.raises(ValueError, match=r"^need "):
        DiffHammer(**{"iterations": 1, "eot": 1, **bad})


def test_too_few_classes_are_an_error():
    with pytest.raises(ValueError, match="classes"):
        run_attack(
            DiffHammer(1, 1), linear(torch.ones(1, 1, 2, 2)), torch.rand(1, 1, 2, 2), torch.zeros(1).long(), THREATS[0]
        )


def test_the_yaml_holds_the_papers_values():
    attack = make(composed("dataset=cifar10", "attack=diffhammer")["attack"])
    assert attack == DiffHammer(50, 10, ["cw", "ce", "dlr"], sharpness=5.0, em_steps=5, decay=0.5, confirm=20, rho=0.75)
    assert attack.steps == 3 * 51
    assert attack.phase_ends[-1] == attack.steps
