"""The worst case over attacks is the strongest of its parts for each image; AutoAttack in both modes."""

import logging
import sys

import pytest
import torch

from dp.attacks.apgd import APGD
from dp.attacks.autoattack import Upstream, _Forward, autoattack
from dp.attacks.none import NoAttack
from dp.attacks.pgd_eot import PGD
from dp.attacks.square import Square
from dp.attacks.union import Union
from dp.classifiers import Classifier
from dp.defense.defended import Defended
from dp.evaluation.evaluate import null_control
from dp.objectives import margin
from dp.purifiers import none
from dp.rng import Streams
from dp.runs.compose import make
from dp.threat_models.ball import ThreatModel
from tests.attacks.test_apgd import Net, jitter, seeded
from tests.attacks.test_attacks import assert_rows_stand_alone, run_attack
from tests.helpers.compose import composed

LINF = ThreatModel("linf", 0.1)


def problem(purify=none.purify, classes=6):
    model = Defended(purify, None, Classifier(Net(64, classes)), draws_per_call=2)
    return model, torch.rand(16, 1, 8, 8, generator=seeded(3)), torch.arange(16) % 6


def alone(attacks, k, model, x, y):
    """What part k would return by itself, from the streams that it gets inside the union."""
    rng, attack = Streams(range(len(x)), 0, "attack"), attacks[k]
    state = attack.start(model, x, y, LINF, rng.draw(0).draw(k))
    offset = 1 + sum(a.steps for a in attacks[:k])
    for i in range(attack.steps):
        state = attack.step(model, state, x, y, LINF, rng.draw(offset + i).draw(0))
    return state.x_adv


def test_union_keeps_the_strongest_part_per_image():
    model, x, y = problem()
    attacks = [PGD(2, 1, step_size=0.02), Square(30, 1), APGD(3, 1, "dlr")]
    union = Union({str(k): attack for k, attack in enumerate(attacks)}, confirm=1)
    margins = torch.stack([margin(model.classifier(alone(attacks, k, model, x, y)), y) for k in range(3)])
    assert len(set(margins.argmax(0).tolist())) > 1  # no part wins everywhere
    assert union.steps == 2 + 30 + 4
    assert union.samples == 1
    torch.testing.assert_close(margin(model.classifier(run_attack(union, model, x, y, LINF)), y), margins.amax(0))


@pytest.mark.parametrize("purify", [none.purify, jitter])
def test_rows_do_not_depend_on_batch_order_or_refills(purify):
    model, x, y = problem(purify)
    union = Union({"apgd": APGD(2, 2, confirm=3), "square": Square(4, 2)}, confirm=3)
    assert_rows_stand_alone(union, model, x, y, LINF)


def test_confirmation_uses_fresh_samples_and_keeps_the_better():
    model, x, y = problem(jitter)
    union = Union({"apgd": APGD(2, 2, confirm=3), "pgd": PGD(2, 2)}, confirm=5)
    rng = Streams(range(16), 0, "attack")
    state = union.start(model, x, y, LINF, rng.draw(0))
    for i in range(union.steps):
        state = union.step(model, state, x, y, LINF, rng.draw(1 + i))
    values = [
        model.loss(z, y, rng.draw(union.steps).draw(1), 5, margin)
        for z in (state.parts[0].x_adv, state.parts[1].x_adv, state.x_adv)
    ]
    torch.testing.assert_close(values[2], torch.maximum(values[0], values[1]))


def test_rejects():
    for bad in ({"attacks": {}}, {"attacks": {"none": NoAttack()}}, {"attacks": {"x": 3}}, {"confirm": 0}):
        with pytest.raises(ValueError, match=r"^need "):
            Union(**{"attacks": {"pgd": PGD(1, 1)}, **bad})


def test_a_flow_is_no_part_of_a_union():
    """The certificate of a flow is no part of a union's point."""
    flow = make(composed("attack=stadv", "threat_model=stadv")["attack"])
    assert "flow" in flow.norms
    assert Union({"stadv": flow}).norms == ()


def test_autoattack_fixed_is_the_union():
    found = make(composed("dataset=cifar10", "attack=autoattack")["attack"])
    assert found == Union({"apgd_ce": APGD(100, 20, "ce"), "apgd_t": APGD(100, 20, "targeted", targets=9)}, 20)
    standard = make(composed("dataset=cifar10", "attack=autoattack_standard")["attack"])
    assert standard.attacks["square"] == Square(5000, 1)
    assert not found.batch_bound


@pytest.mark.parametrize(
    "bad", [{"mode": "x"}, {"suite": "plus"}, {"iterations": None}, {"seed": 1}, {"suite": "standard"}]
)
def test_autoattack_rejects(bad):
    with pytest.raises(ValueError, match=r"^need "):
        autoattack(**{"mode": "fixed", "suite": "rand", "iterations": 1, "eot": 1, **bad})


def package(forward, x, y, version, threat):
    """The package called directly, its APGD of 10 iterations made by its own constructors."""
    from pyautoattack import AutoAttack

    logging.getLogger("auto-attack").addHandler(logging.NullHandler())
    norm, eps = {"linf": "Linf", "l2": "L2"}[threat.norm], threat.eps
    made = AutoAttack(forward, norm=norm, eps=eps, version=version, seed=3)
    for name in ("apgd", "apgd_targeted"):
        part = getattr(made, name)
        given = {"norm": norm, "eps": eps, "seed": 3, "device": "cpu", "logger": part.logger}
        given |= {"n_restarts": part.n_restarts, "eot_iter": part.eot_iter, "n_iter": 10}
        setattr(made, name, type(part)(forward, **given))
    made.fab.n_iter, made.square.n_queries = 10, 20
    return made.run_standard_evaluation(x, y, batch_size=len(x))[0]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("version", ["rand", "standard"])
def test_upstream_is_the_package(version, norm):
    """On a model without noise, called with the same batch and seed: bit for bit, also after the projection."""
    model, x, _ = problem(classes=10)
    y, threat = model.classifier(x).argmax(1), ThreatModel(norm, {"linf": 0.03, "l2": 0.1}[norm])
    x_adv = run_attack(Upstream(version, 10, queries=20, seed=3), model, x, y, threat)
    direct = package(model.classifier, x, y, version, threat)
    assert 4 < (direct != x).flatten(1).any(dim=1).sum() < 16  # the others come back clean
    assert torch.equal(x_adv, direct)
    assert torch.equal(threat.project(x_adv, x), direct)


class Asked(Defended):
    """Counts the images in its answers: those whose gradient can be taken, and the others."""

    gradients = values = 0

    def logits(self, x, rng, samples):
        self.gradients += len(x) * samples * x.requires_grad
        self.values += len(x) * samples * (not x.requires_grad)
        return super().logits(x, rng, samples)


@pytest.mark.parametrize("sure", [True, False], ids=["unbroken", "broken"])
@pytest.mark.parametrize("version", ["rand", "standard"])
def test_upstream_asks_for_as_much_as_is_counted_and_less_of_broken_images(version, sure):
    attack, threat = Upstream(version, 7, 3, queries=20), ThreatModel("linf", 1e-6 if sure else 0.03)
    model, x = Asked(none.purify, None, Classifier(Net(64, 10)), draws_per_call=2), problem()[1]
    y, counted = model.classifier(x).argmax(1), attack.countable()
    run_attack(attack, model, x, y, threat)
    if sure:
        assert model.gradients == len(x) * counted.gradients
        assert model.values == len(x) * counted.values - (len(x) - 1)  # the number of classes is asked of one image
    else:
        assert counted.gradients / 5 < model.gradients / len(x) < counted.gradients
        assert counted.values / 5 < model.values / len(x) < counted.values


def test_upstream_leaves_generators_and_tracers_alone():
    model, x, y = problem(jitter)
    before, trace, calls = torch.get_rng_state(), sys.gettrace(), []
    sys.settrace(lambda *_: calls.append(1))
    mine = sys.gettrace()
    try:
        one = run_attack(Upstream("rand", 3, 2), model, x, y, LINF)
        assert sys.gettrace() is mine
    finally:
        sys.settrace(trace)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, run_attack(Upstream("rand", 3, 2), model, x, y, LINF))
    assert not torch.equal(one, run_attack(Upstream("rand", 3, 2), model, x, y, LINF, seed=1))  # a seed per run seed


def test_upstream_draws_anew_at_every_call_and_row():
    model, x, _ = problem(jitter)
    forward = _Forward(model, Streams(range(16), 0, "attack"))
    same = x[:1].repeat(8, 1, 1, 1)
    assert len(torch.cat([forward(same), forward(same[:4])]).unique(dim=0)) == 12


def test_upstream_is_marked():
    attack = make(composed("attack=autoattack_upstream")["attack"])
    assert attack.batch_bound
    assert Union({"a": attack}).batch_bound
    assert not APGD(1, 1).batch_bound
    full = make(composed("dataset=cifar10", "attack=autoattack_upstream")["attack"])
    assert full == Upstream("rand")
    assert (full.samples, full.steps) == (20, 1)
    assert null_control(full).steps == 200  # as many candidates as the two runs of APGD have iterates


def test_upstream_rejects():
    model, x, y = problem()
    with pytest.raises(ValueError, match="need 10 classes for suite=standard, got 6"):
        run_attack(Upstream("standard"), model, x, y, LINF)
    two = Defended(none.purify, None, Classifier(Net(64, 2)))
    with pytest.raises(ValueError, match="need 3 classes for the package's loss, got 2: use attack=apgd_ce"):
        run_attack(Upstream("rand"), two, x, y.clamp(max=1), LINF)
    for bad in ({"version": "plus"}, {"eot": 0}, {"queries": 0}):
        with pytest.raises(ValueError, match=r"^need "):
            Upstream(**{"version": "rand", **bad})


def test_a_union_of_one_claims_no_comparison():
    """It returns its attack's point, by the attack's own selection samples."""
    for attack in (PGD(2, 1), PGD(2, 1, select="last"), APGD(2, 1, confirm=7)):
        alone = Union({"only": attack}, confirm=20)
        assert alone.selection_samples == attack.selection_samples
        assert null_control(alone) == null_control(attack)
        assert "20" not in alone.says("it")
    assert Union({"a": PGD(2, 1), "b": APGD(2, 1, confirm=7)}, confirm=20).selection_samples == 20
