"""PGD against optima known in closed form, the contract of every attack, and the null control."""

import pytest
import torch

from dp.attacks.apgd import APGD
from dp.attacks.base import Attack, check_members
from dp.attacks.null import Null
from dp.attacks.pgd_eot import PGD
from dp.attacks.state import where
from dp.classifiers import Classifier
from dp.contracts import attack as contract
from dp.defense.defended import Defended
from dp.evaluation.evaluate import null_control
from dp.evaluation.judge import Judge
from dp.purifiers import none
from dp.rng import Streams
from dp.runs.build import build
from dp.runs.compose import make
from dp.runs.validate import check_targets
from dp.threat_models.ball import BALLS, ThreatModel
from tests.helpers.compose import composed, options, small_budget
from tests.helpers.contract import DECLARED, assert_held, in_one_line


class Linear(torch.nn.Module):
    """Two classes, logit difference w . x."""

    def __init__(self, w: torch.Tensor):
        super().__init__()
        self.w = torch.nn.Parameter(w)

    def forward(self, x):
        margin = (x * self.w).flatten(1).sum(1)
        return torch.stack([margin, -margin], dim=1)


def linear(w: torch.Tensor) -> Defended:
    return Defended(none.purify, None, Classifier(Linear(w)))


def run_attack(attack, model, x, y, threat, seed=0):
    rng = Streams(range(len(x)), seed, "attack")
    state = attack.start(model, x, y, threat, rng.draw(0))
    for i in range(attack.steps):
        state = attack.step(model, state, x, y, threat, rng.draw(1 + i))
        assert_feasible(state, x, threat)
    return state.x_adv


def attack_in(order, attack, model, x, y, threat, behind=None):
    """The attacked images x[order], in that order, each with the noise of its own position in x. Those of the mask
    `behind` (B,) enter three steps late, as in a batch slot that is refilled.
    """
    rng, done = Streams(order.tolist(), 0, "attack"), torch.zeros(len(order), dtype=torch.long)
    behind = torch.zeros(len(order), dtype=torch.bool) if behind is None else behind
    state = attack.start(model, x[order], y[order], threat, rng.draw(0))
    for i in range(attack.steps + 3 * int(behind.any())):
        moves = (done < attack.steps) & ~(behind & torch.tensor(i < 3))
        after = attack.step(model, state, x[order], y[order], threat, rng.draw((1 + done).tolist()))
        state, done = where(moves, after, state), done + moves
        assert_feasible(state, x[order], threat)
    assert (done == attack.steps).all()
    return state.x_adv


def assert_rows_stand_alone(attack, model, x, y, threat, shared=0):
    """Equal bits in order, shuffled, and with a third of the images late; the first `shared` also beside others."""
    plain = run_attack(attack, model, x, y, threat)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(4))
    assert torch.equal(attack_in(order, attack, model, x, y, threat), plain[order])
    late = torch.arange(len(x)) % 3 == 0
    assert torch.equal(attack_in(order, attack, model, x, y, threat, behind=late), plain[order])
    if shared:
        others = torch.cat([torch.arange(shared), torch.full((len(x) - shared,), len(x) // 2 + 1)])
        assert torch.equal(attack_in(others, attack, model, x, y, threat)[:shared], plain[:shared])


def assert_feasible(state, x, threat):
    x_adv, distance = threat.admit(state, x)
    torch.testing.assert_close(x_adv, state.x_adv, rtol=0, atol=1e-6)
    assert state.x_adv.min() >= 0
    assert state.x_adv.max() <= 1
    assert distance.max() <= threat.eps + 1e-6


def test_a_restart_without_a_random_start_begins_at_the_image():
    w, x = torch.ones(1, 1, 4, 4), torch.full((2, 1, 4, 4), 0.5)
    threat, rng, far = ThreatModel("linf", 0.5), Streams(range(2), 0, "attack"), []
    attack = PGD(3, 1, 0.01, restarts=2, random_start=False)
    state = attack.start(linear(w), x, torch.zeros(2, dtype=torch.long), threat, rng.draw(0))
    for i in range(attack.steps):
        state = attack.step(linear(w), state, x, torch.zeros(2, dtype=torch.long), threat, rng.draw(1 + i))
        far.append(round(threat.distance(state.x, x)[0].item(), 4))
    assert far == [0.01, 0.02, 0.03] * 2


@pytest.mark.parametrize("select", ["last", "best"])
@pytest.mark.parametrize("restarts", [1, 3])
def test_pgd_linf_reaches_the_corner_with_the_box_active(select, restarts):
    """Label 0: the optimum is clip(x - eps sign(w), 0, 1), pixel by pixel."""
    w = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    x[x < 0.2], x[x > 0.8] = 0.0, 1.0
    optimum = (x - 0.1 * w.sign()).clamp(0, 1)
    assert ((optimum == 0) | (optimum == 1)).float().mean() > 0.2  # the box is active
    attack = PGD(iterations=20, eot=1, select=select, restarts=restarts)
    x_adv = run_attack(attack, linear(w), x, torch.zeros(5, dtype=torch.long), ThreatModel("linf", 0.1))
    torch.testing.assert_close(x_adv, optimum, rtol=0, atol=1e-6)


def test_pgd_l2_reaches_the_closed_form_optimum():
    """x - eps w / |w| where the ball lies inside the box."""
    w = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    x = torch.full((5, 1, 8, 8), 0.5) + 0.05 * torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    y = torch.tensor([0, 1, 0, 1, 0])
    side = torch.where(y == 0, -1.0, 1.0).view(-1, 1, 1, 1)
    optimum = x + 0.3 * side * w / w.norm()
    x_adv = run_attack(PGD(iterations=60, eot=1, step_size=0.3), linear(w), x, y, ThreatModel("l2", "3/10"))
    margin = lambda z: (z * w).flatten(1).sum(1)  # noqa: E731
    torch.testing.assert_close(margin(x_adv), margin(optimum), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x_adv, optimum, rtol=0, atol=1e-4)


def test_pgd_l2_sign_step_is_the_weaker_direction():
    """Deviation 34: a sign step inside the l2 ball goes along sign(w), whose margin per length is below w's own."""
    w = torch.zeros(1, 1, 8, 8)
    w[..., 0, 0] = 1.0
    w += 0.05
    x, y, threat = torch.full((1, 1, 8, 8), 0.5), torch.zeros(1, dtype=torch.long), ThreatModel("l2", 0.3)
    margins = {}
    for step in ("gradient", "sign"):
        x_adv = run_attack(PGD(1, 1, step_size=1.0, random_start=False, l2_step=step), linear(w), x, y, threat)
        margins[step] = ((x_adv - x) * w).sum().item()
    assert margins["gradient"] == pytest.approx(-0.3 * w.norm().item(), rel=1e-5)
    assert margins["sign"] == pytest.approx(-0.3 * w.sum().item() / 8, rel=1e-5)  # along (1, ..., 1) / 8
    assert margins["gradient"] < 1.5 * margins["sign"]


def norms_of(name: str) -> list[str]:
    """The threat models of an attack's contract: one of its own, if there is one of its name, or else the balls."""
    return [name] if name in options("threat_model") else ["linf", "l2"]


@pytest.mark.parametrize(("name", "norm"), [(name, norm) for name in options("attack") for norm in norms_of(name)])
def test_contract(name, norm, images, record_property):
    """Feasible, away from the clean image, deterministic, independent of the batch; see dp/contracts/attack.py."""
    config = composed(
        f"attack={name}", f"threat_model={norm}", "purifier.steps=2", "protocol.images=2", *small_budget(name)
    )
    with in_one_line(f"attack {name}"):
        check_targets(config)
        attack: Attack = make(config["attack"], modules=config["plugins"]["modules"])
        check_members(attack, name)
        if norm in BALLS and norm not in attack.norms:
            pytest.skip(f"attack {name} does not run under {norm}")
        evaluation = build(config)
    model, threat = evaluation.arms["defended"].scored, evaluation.threat
    assert_held(contract.failures(attack, model, images, threat, classes=10), "attack", config, record_property)
    if attack.batch_bound:
        record_property(
            DECLARED, ["attack", name, "batch: batch_bound: rows depend on the other images in a batch", []]
        )


class Peaked(torch.nn.Module):
    """Loss of label 0 grows with the mean of x up to .5 and falls again."""

    def forward(self, x):
        height = -(x.flatten(1).mean(1) - 0.5).abs()
        return torch.stack([-height, height], dim=1)


def test_best_iterate_beats_the_last_one():
    """A step far beyond the peak: `last` overshoots and swings, `best` returns the highest iterate."""
    model = Defended(none.purify, None, Classifier(Peaked()))
    x, y, threat = torch.full((1, 1, 2, 2), 0.3), torch.zeros(1, dtype=torch.long), ThreatModel("linf", 0.5)
    given = {"iterations": 4, "eot": 1, "step_size": 0.18, "random_start": False}
    last = run_attack(PGD(**given, select="last"), model, x, y, threat).mean().item()
    best = run_attack(PGD(**given, select="best"), model, x, y, threat).mean().item()
    assert last == pytest.approx(0.66, abs=1e-6)  # .48, .66, .48, .66
    assert best == pytest.approx(0.48, abs=1e-6)


def test_pgd_with_momentum_follows_the_published_recursion():
    """g <- mu g + gradient / |gradient|_1, x <- x + step sign(g) (Dong et al. 2018, Eq. 6 and 7), by hand in float64,
    on a loss whose gradient turns.
    """

    class Bowl(torch.nn.Module):
        def forward(self, x):
            margin = ((x - 0.45) ** 2 * torch.linspace(1, 2, 4).to(x).view(1, 1, 2, 2)).flatten(1).sum(1)
            return torch.stack([margin, -margin], dim=1)

    x = torch.tensor([0.3, 0.5, 0.6, 0.44]).view(1, 1, 2, 2)
    model, y, threat = (
        Defended(none.purify, None, Classifier(Bowl())),
        torch.zeros(1, dtype=torch.long),
        ThreatModel("linf", 0.3),
    )
    attack = PGD(6, 1, step_size=0.06, random_start=False, momentum=0.75, select="last")
    plain = PGD(6, 1, step_size=0.06, random_start=False, select="last")
    at, g = x.double(), torch.zeros_like(x, dtype=torch.float64)
    for _ in range(6):
        leaf = at.clone().requires_grad_()
        (grad,) = torch.autograd.grad(torch.nn.functional.cross_entropy(Bowl()(leaf), y), leaf)
        g = 0.75 * g + grad / grad.abs().sum()
        at = (x + (at + 0.06 * g.sign() - x).clamp(-0.3, 0.3)).clamp(0, 1)
    beside = torch.cat([x, x.flip(3)])
    found, others = (run_attack(attack, model, z, torch.zeros(len(z), dtype=torch.long), threat) for z in (x, beside))
    assert torch.equal(others[:1], found)  # batch mates do not matter
    torch.testing.assert_close(found.double(), at, atol=1e-6, rtol=0)
    assert not torch.allclose(run_attack(plain, model, x, y, threat), found, atol=1e-3)


@pytest.mark.parametrize(
    "bad",
    [
        {"iterations": 0},
        {"eot": 0},
        {"restarts": 0},
        {"step_size": -1.0},
        {"momentum": 2.0},
        {"select": "first"},
        {"l2_step": "x"},
    ],
)
def test_pgd_rejects(bad):
    with pytest.raises(ValueError, match=r"^need "):
        PGD(**{"iterations": 1, "eot": 1, **bad})


def test_null_control_has_the_attacks_candidates_samples_and_selection():
    assert null_control(PGD(iterations=7, eot=3, restarts=2, select="best")) == Null(14, 3, "best", ends=(14,))
    last = PGD(iterations=7, eot=3, restarts=2, select="last")  # it keeps the better one of two last iterates
    assert null_control(last) == Null(2, 3, "best", ends=(2,))
    assert null_control(PGD(iterations=7, eot=3, select="last")) == Null(7, 3, "last", ends=(7,))
    attack = APGD(iterations=4, eot=3, restarts=2, confirm=20)
    chosen, left = Null(10, 3, "best", 20, (5, 10)), Null(10, 3, "last", ends=(5, 10))
    assert null_control(attack) == chosen
    assert null_control(attack, Judge(5, 60, "all", screen=20)) == chosen
    assert null_control(attack, Judge(5, 60, "all")) == left  # the judge has more samples, so the worst point counts
    assert null_control(attack, Judge(5, 10, "all", in_loop=True)) == left


def test_null_chooses_by_selection_samples_among_the_runs():
    """One sample of this defense says nothing, as its noise is ten times the candidates' spread. 400 samples tell them
    apart. Runs of one candidate each, made here again from the same streams: the strongest of all comes back.
    """
    w = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    x, y = torch.full((12, 1, 8, 8), 0.5), torch.zeros(12, dtype=torch.long)
    threat, rng = ThreatModel("linf", 0.1), Streams(range(12), 0, "attack")
    starts = [threat.noise(x, rng.draw(0))]  # the first choice is also among the first point
    candidates = torch.stack(starts + [threat.noise(x, rng.draw(1 + i)) for i in range(3)])
    margins = (candidates * w).flatten(2).sum(2)  # (4,12)
    spread = float(margins.std())

    def noisy(x, denoiser, classifier, rng, *, on_step=None):
        return x + 10 * spread / w.sum() * rng.randn_like(x[:, :, :1, :1])

    model = Defended(noisy, None, Classifier(Linear(w)))
    kept = run_attack(Null(3, 1, confirm=400, ends=(1, 2, 3)), model, x, y, threat)
    lost = ((kept * w).flatten(1).sum(1) - margins.amin(0)) / spread
    assert float(lost.max()) < 2 * 10 / 400**0.5  # the choice shares its samples, so it errs by less than this
    without = run_attack(Null(3, 1, ends=(1, 2, 3)), model, x, y, threat)
    assert float(((without * w).flatten(1).sum(1) - margins.amin(0)).mean() / spread) > 2 * float(lost.mean())


def test_null_keeps_the_candidate_with_the_highest_loss():
    """Against a linear model: the returned noise has the smallest margin of all candidates, made here again from the
    same streams.
    """
    w = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    x, y = torch.full((3, 1, 8, 8), 0.5), torch.zeros(3, dtype=torch.long)
    threat, rng = ThreatModel("linf", 0.1), Streams(range(3), 0, "attack")
    candidates = torch.stack([threat.noise(x, rng.draw(1 + i)) for i in range(6)])
    margins = (candidates * w).flatten(2).sum(2)  # (6,3)
    kept = run_attack(Null(steps=6, eot=1, select="best"), linear(w), x, y, threat)
    torch.testing.assert_close((kept * w).flatten(1).sum(1), margins.amin(0))
    last = run_attack(Null(steps=6, eot=1, select="last"), linear(w), x, y, threat)
    assert torch.equal(last, candidates[-1])


def test_nan_stops_the_attack():
    """A NaN never wins a comparison, so it must be an error, not a robust image."""
    model = Defended(none.purify, None, Classifier(Linear(torch.full((1, 1, 8, 8), torch.nan))))
    with pytest.raises(ValueError, match="NaN"):
        run_attack(PGD(2, 1), model, torch.rand(2, 1, 8, 8), torch.zeros(2, dtype=torch.long), ThreatModel("linf", 0.1))
