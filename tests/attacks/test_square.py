"""Square: sizes, starts and moves against the paper's text, and what a random search must keep."""

import pytest
import torch

from dp.attacks.square import Square, _bump, _corners, _tiles
from dp.classifiers import Classifier
from dp.defense.defended import Defended
from dp.objectives import margin
from dp.purifiers import none
from dp.rng import Streams
from dp.runs.compose import make
from dp.threat_models.ball import ThreatModel
from tests.attacks.test_apgd import Net, jitter, seeded
from tests.attacks.test_attacks import assert_feasible, linear, run_attack
from tests.helpers.compose import composed


def test_linf_reaches_the_corner():
    """Against a linear model the search must end at x - eps sign(w): every pixel's sign is found in time."""
    w = torch.randn(1, 1, 4, 4, generator=seeded(0))
    x, threat = torch.full((3, 1, 4, 4), 0.5), ThreatModel("linf", 0.1)
    x_adv = run_attack(Square(600, 1, rescale=True), linear(w), x, torch.zeros(3, dtype=torch.long), threat)
    torch.testing.assert_close(x_adv, x - 0.1 * w.sign())


def test_l2_nears_the_optimum():
    """The share of the closed-form optimum eps |w| that 2000 queries reach, against the 0 of a random direction."""
    w = torch.randn(1, 1, 10, 10, generator=seeded(0))
    x, threat = torch.full((4, 1, 10, 10), 0.5), ThreatModel("l2", 0.3)
    x_adv = run_attack(Square(2000, 1), linear(w), x, torch.zeros(4, dtype=torch.long), threat)
    share = -((x_adv - x) * w).flatten(1).sum(1) / (0.3 * w.norm())
    assert (share > 0.7).all()
    torch.testing.assert_close(threat.distance(x_adv, x).float(), torch.full((4,), 0.3), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("done", "side"), [(0, 29), (10, 29), (11, 20), (51, 14), (201, 10), (501, 7), (1001, 5), (2001, 4), (4001, 3)]
)
def test_sides_of_autoattacks_schedule(done, side):
    """p = .8 of 32 x 32, halved after 10, 50, 200, 500, 1000, 2000, 4000 queries; sqrt(.8 / 2**n) * 32, rounded."""
    x = torch.zeros(1, 3, 32, 32)
    assert Square(5000, 1)._sides(torch.tensor([done]), x, "linf") == [side]
    assert Square(5000, 1)._sides(torch.tensor([done]), x, "l2") == [max(3, side + (side + 1) % 2)]
    assert Square(100, 1, rescale=True)._sides(torch.tensor([done // 100]), x, "linf") == [
        Square(10000, 1)._sides(torch.tensor([done // 100 * 100]), x, "linf")[0]
    ]


@pytest.mark.parametrize("side", [1, 2, 3, 5, 8, 13])
def test_bumps(side):
    """A hill and a valley of equal length, unit length together, the tallest pixel in the middle of its half."""
    bump = _bump(side, False)
    assert bump.norm().item() == pytest.approx(1, abs=1e-5)
    assert torch.equal(_bump(side, True), bump.T)
    upper, lower = bump[: side // 2], bump[side // 2 :]
    assert (upper >= 0).all()
    assert (lower <= 0).all()
    if side > 1:
        assert upper.norm().item() == pytest.approx(lower.norm().item(), abs=1e-5)
        assert divmod(upper.argmax().item(), side) == (side // 2 // 2, side // 2)


@pytest.mark.parametrize(
    ("reach_edges", "side", "rows", "columns"),
    [(True, 3, 3, 4), (True, 5, 1, 2), (False, 3, 2, 3), (False, 4, 1, 2), (False, 5, 1, 1)],
)
def test_corners_cover_every_place(reach_edges, side, rows, columns):
    """In 5 x 6 pixels h - s + 1 rows and w - s + 1 columns; in the released code h - s and w - s, at least one."""
    found = _corners(torch.zeros(1000, 1, 5, 6), [side] * 1000, reach_edges, Streams(range(1000), 0, "a"))
    assert set(found) == {(r, c) for r in range(rows) for c in range(columns)}


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_only_reaching_the_edges_moves_the_last_row_and_column(norm):
    """Without, they keep the start's noise (in l2 its shape: a move scales all of it). The loss rises with
    every pixel, so that the start is wrong at about half of them.
    """
    x, y, threat = torch.full((8, 1, 10, 10), 0.5), torch.zeros(8, dtype=torch.long), ThreatModel(norm, 0.1)
    model = linear(-torch.ones(1, 1, 10, 10))
    rim = torch.ones(10, 10, dtype=torch.bool)
    rim[:-1, :-1] = False

    def moved(reach_edges):
        attack, rng = Square(60, 1, rescale=True, reach_edges=reach_edges), Streams(range(8), 0, "attack")
        start = state = attack.start(model, x, y, threat, rng.draw(0))
        for i in range(attack.steps):
            state = attack.step(model, state, x, y, threat, rng.draw(1 + i))
        before, after = ((s.x_adv - x)[:, 0] for s in (start, state))
        assert not torch.allclose(before[:, ~rim], after[:, ~rim], atol=1e-3)
        before, after = (d[:, rim] / d[:, rim].norm(dim=1, keepdim=True) for d in (before, after))
        return (before - after).norm(dim=1)

    assert (moved(False) < 1e-4).all()
    assert (moved(True) > 0.1).all()


def test_l2_start_is_tiled():
    delta = _tiles(torch.zeros(4, 2, 11, 11), Streams(range(4), 0, "a"))
    norms = delta[:, :, :10, :10].unfold(2, 2, 2).unfold(3, 2, 2).square().sum(dim=(-2, -1))
    torch.testing.assert_close(norms, torch.ones_like(norms))
    assert not torch.equal(delta[0], delta[1])


@pytest.mark.parametrize("purify", [none.purify, jitter])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_margin_never_falls_and_rows_stand_alone(norm, purify):
    """With noise the margin never falls on the samples of the step, which no earlier choice has used."""
    model = Defended(purify, None, Classifier(Net(64, 6)), draws_per_call=2)
    x, y = torch.rand(16, 1, 8, 8, generator=seeded(3)), torch.arange(16) % 6
    attack, threat = Square(60, 2), ThreatModel(norm, 0.1)

    def attacked(order):
        rng = Streams(order.tolist(), 0, "attack")
        state = attack.start(model, x[order], y[order], threat, rng.draw(0))
        for i in range(attack.steps):
            before = model.loss(state.x_adv, y[order], rng.draw(1 + i).draw(0), 2, margin)
            state = attack.step(model, state, x[order], y[order], threat, rng.draw(1 + i))
            assert_feasible(state, x[order], threat)
            assert (state.margin >= before).all()
            assert bool((state.noisy == (purify is jitter)).all())
        if purify is none.purify:
            torch.testing.assert_close(state.margin, margin(model.classifier(state.x_adv), y[order]))
        return state.x_adv

    plain = attacked(torch.arange(16))
    order = torch.randperm(16, generator=seeded(4))
    assert torch.equal(attacked(order), plain[order])
    assert torch.equal(attacked(torch.cat([torch.arange(4), torch.full((12,), 9)]))[:4], plain[:4])


def test_noise_does_not_shut_the_search():
    """With one noisy sample in a query, the search's own value of its point is near the mean over fresh samples, and
    far above that of its start. (A search that kept the value of its luckiest sample had 11 where 3 was true, and ended
    at half this margin.)
    """
    model = Defended(jitter, None, Classifier(Net(64, 6)), draws_per_call=20)
    x, y, threat = torch.rand(24, 1, 8, 8, generator=seeded(3)), torch.arange(24) % 6, ThreatModel("linf", 0.1)
    attack, rng = Square(150, 1, rescale=True), Streams(range(24), 0, "attack")
    state = start = attack.start(model, x, y, threat, rng.draw(0))
    for i in range(attack.steps):
        state = attack.step(model, state, x, y, threat, rng.draw(1 + i))
    found, began = (model.loss(s.x_adv, y, rng.draw(10**6), 200, margin).mean() for s in (state, start))
    assert abs(state.margin.mean() - found) < 1.5
    assert found > began + 1.5


@pytest.mark.parametrize("bad", [{"iterations": 0}, {"eot": 0}, {"p_init": 0.0}, {"p_init": 1.5}])
def test_rejects(bad):
    with pytest.raises(ValueError, match=r"^need "):
        Square(**{"iterations": 1, "eot": 1, **bad})


def test_the_yaml_holds_the_papers_values():
    assert make(composed("dataset=cifar10", "attack=square")["attack"]) == Square(5000, 20, 0.8, False, True)
