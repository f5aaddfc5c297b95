"""Protocols: each sets its attack, its gradient mode and its rule; the attacker knows what it is said to know."""

import json

import pytest
import torch

from dp.attacks.bpda import BPDA
from dp.attacks.null import Null
from dp.attacks.pgd_eot import PGD
from dp.attacks.through import Through
from dp.commands.tables import reported
from dp.defense.known_noise import KnownNoise
from dp.output import record, report
from dp.output.row_table import row_table
from dp.rng import Streams
from dp.runs import compose
from dp.runs.build import build
from dp.runs.validate import check_setup
from dp.threat_models.ball import ThreatModel
from tests.helpers.compose import CONF, TINY, composed, finished, options, plug_ins, setup

# On CIFAR-10, as in docs/protocols.md: samples that decide, rule, ties, gradient mode, decided in-loop.
DEFINED = {
    "paper": (20, "mean_logits", "softmax", "surrogate", False),
    "official": (20, "vote", "lowest", "surrogate", False),
    "lee_kim": (10, "vote", "lowest", "surrogate", False),
    "diffpure": (1, "single", "softmax", "adjoint", False),
    "hill": (150, "mean_logits", "softmax", "full", True),
    "diffhammer": (10, "average", "softmax", "full", True),
    "diffbreak_single": (10, "worst", "softmax", "full", True),
    "diffbreak_vote": (10, "vote", "lowest", "full", True),
    "dwbox": (1, "single", "softmax", "full", False),
    "strict": (20, "average", "softmax", "full", False),
    "liu_fixed_aa": (20, "worst", "softmax", "full", False),
    "null_control": (20, "average", "softmax", "full", False),
}


@pytest.mark.parametrize("name", options("protocol"))
def test_a_protocol_sets_its_attack_and_its_gradient(name):
    config = composed("dataset=cifar10", f"protocol={name}")
    protocol = config["protocol"]
    assert protocol["attack"] in (None, config["choices"]["attack"])
    if name != "default":
        assert config["threat_model"]["grad"] == protocol["grad"]
        assert config["choices"]["attack"] == protocol["attack"]


@pytest.mark.parametrize("name", ["default", *plug_ins("protocol")])
def test_contract(name, tmp_path):
    """A run ends with a figure for each of the protocol's rules, and in-loop figures where it evaluates in-loop."""
    config = composed(*TINY, f"protocol={name}")
    summary = finished(config, tmp_path)
    assert summary is not None
    for condition in ("standard", "robust", "null"):
        figures = [summary[condition][rule] for rule in config["protocol"]["report"]]
        assert all(0 <= figure["value"] <= 100 and figure["n"] == 4 for figure in figures)
    assert ("seen" in summary) == bool(config["protocol"]["judge"])


@pytest.mark.parametrize("name", DEFINED)
def test_a_protocol_is_what_its_paper_says(name):
    protocol = composed("dataset=cifar10", f"protocol={name}")["protocol"]
    found = (protocol["votes"], protocol["report"][0], protocol["ties"], protocol["grad"])
    assert (*found, bool(protocol["judge"]) and protocol["judge"]["in_loop"]) == DEFINED[name]
    assert protocol["images"] == 512


def test_every_protocol_of_ours_is_held_to_its_paper():
    ours = {path.stem for path in (CONF / "protocol").glob("*.yaml")}
    assert ours == {*DEFINED, "default"}
    assert composed("dataset=cifar10")["protocol"]["images"] == 512


def small(*overrides: str) -> dict:
    return composed("protocol.images=2", "protocol.seeds=[5]", "dataset.lanes=2", "purifier.steps=2", *overrides)


def test_dwbox_gives_the_attacker_the_samples_that_score():
    """The logits that the attack gets of its last image are those of the score; other samples differ."""
    evaluation = build(small("protocol=dwbox", "attack.iterations=2", "attack.eot=3", "protocol.votes=2"))
    group = evaluation.run(evaluation.plan()[0])
    model, ids = evaluation.arms["defended"].attacked, list(group.unit.ids)
    known = KnownNoise(model, Streams(ids, 5, "adv"), 2)
    with torch.no_grad():
        seen = known.logits(group.x_adv, Streams(ids, 5, "attack"), 2).transpose(0, 1)
        blind = model.logits(group.x_adv, Streams(ids, 5, "attack"), 2).transpose(0, 1)
    torch.testing.assert_close(seen, group.adv, rtol=1e-4, atol=1e-4)
    assert (blind - group.adv).abs().max() > 1e-2
    y = evaluation.subset.y
    loss, grad = known.loss_gradient(group.x_adv, y, Streams(ids, 9, "attack"), 3)
    again, same = known.loss_gradient(group.x_adv, y, Streams(ids, 1, "attack"), 5)
    assert torch.equal(loss, again)
    assert torch.equal(grad, same)


def test_bpda_is_the_gradient_at_the_purified_image():
    """Through(bpda): the mean over samples of the classifier's gradient at x_hat; the purification is no part of it."""
    evaluation = build(small())
    model, x, y = evaluation.arms["defended"].scored, *evaluation.subset[1:]
    rng = Streams([3, 4], 0, "a")
    _, grad = model.gradient_mode("bpda").loss_gradient(x, y, rng, 3)
    expected = torch.zeros_like(x)
    for x_hat in model.purified(x, rng, 3):
        leaf = x_hat.clone().requires_grad_()
        loss = torch.nn.functional.cross_entropy(model.classifier(leaf), y, reduction="sum")
        expected += torch.autograd.grad(loss, leaf)[0] / 3
    torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-6)
    _, full = model.loss_gradient(x, y, rng, 3)
    assert torch.cosine_similarity(full.flatten(), grad.flatten(), dim=0) < 0.99
    with torch.no_grad():
        torch.testing.assert_close(
            model.gradient_mode("bpda").logits(x, rng, 3), model.logits(x, rng, 3), rtol=0, atol=0
        )


def test_hills_bpda_raises_the_loss_of_the_mean_logits():
    evaluation = build(small())
    model, x, y = evaluation.arms["defended"].scored, *evaluation.subset[1:]
    rng, threat = Streams([3, 4], 0, "a"), ThreatModel("l2", 1.0)
    attack = BPDA(iterations=1, eot=3, step_size=0.5)
    x_adv = attack.step(model, attack.start(model, x, y, threat, rng), x, y, threat, rng).x_adv
    leaves = [x_hat.clone().requires_grad_() for x_hat in model.purified(x, rng.draw(0), 3)]
    mean = torch.stack([model.classifier(leaf) for leaf in leaves]).mean(dim=0)
    loss = torch.nn.functional.cross_entropy(mean, y, reduction="sum")
    direction = torch.stack(torch.autograd.grad(loss, leaves)).sum(dim=0)
    expected = threat.project(x + 0.5 * direction / direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1), x)
    torch.testing.assert_close(x_adv, expected, rtol=1e-4, atol=1e-5)


def test_transfer_is_pgd_on_the_bare_classifier():
    evaluation = build(small())
    bare, model = evaluation.arms["undefended"].scored, evaluation.arms["defended"].scored
    x, y, threat, found = *evaluation.subset[1:], evaluation.threat, []
    for attack, seen in ((PGD(3, 1), bare), (Through(PGD(3, 1), "blind"), model)):
        rng = Streams([3, 4], 0, "a")
        state = attack.start(seen, x, y, threat, rng.draw(0))
        for i in range(attack.steps):
            state = attack.step(seen, state, x, y, threat, rng.draw(1 + i))
        found.append(state.x_adv)  # pyright: ignore[reportAttributeAccessIssue]
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


@pytest.mark.parametrize("threat", ["linf", "stadv"])
def test_noise_as_the_attack_is_the_null_control(threat):
    """With the streams of the null control the attack ends at its points; with its own streams, elsewhere."""
    evaluation = build(
        small("protocol=null_control", f"threat_model={threat}", "attack.steps=3", "attack.eot=2", "protocol.votes=2")
    )
    found = {unit.arm: evaluation.run(unit) for unit in evaluation.plan()}
    attack, model, ids = evaluation.arms["defended"].attack, evaluation.arms["defended"].scored, evaluation.subset.ids
    assert evaluation.arms["null"].attack == Null(3, 2, "best", ends=(3,))
    x, y, rng = *evaluation.subset[1:], Streams(ids, 5, "null")
    state = attack.start(model, x, y, evaluation.threat, rng.draw(0))
    for i in range(attack.steps):
        state = attack.step(model, state, x, y, evaluation.threat, rng.draw(1 + i))
    torch.testing.assert_close(state.x_adv, found["null"].x_adv, rtol=0, atol=1e-6)  # pyright: ignore
    assert not torch.equal(found["defended"].x_adv, found["null"].x_adv)


def test_the_null_control_rejects():
    for bad in ({"steps": 0}, {"eot": 0}, {"select": "first"}):
        with pytest.raises(ValueError, match=r"^need "):
            Null(**{"steps": 1, "eot": 1, "select": "best", **bad})


@pytest.mark.parametrize("protocol", ["diffbreak_vote", "hill", "strict"])
def test_the_table_row_tells_how_it_was_decided(protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    budget = ["attack.iterations=2", "attack.eot=2"]
    if protocol == "strict":
        parts = ("apgd_ce", "apgd_t", "pgd_eot")
        budget = [f"attack.attacks.{a}.{k}=1" for a in parts for k in ("iterations", "eot")]
    config = small(f"protocol={protocol}", "protocol.votes=3", "protocol.judge.draws=3", "workers=1", *budget)
    summary = finished(config, tmp_path / "run")
    assert summary is not None
    rows = [json.loads(line) for line in (tmp_path / "run" / "images.jsonl").read_text().splitlines()]
    for name, arm in (("seen", "defended"), ("null_seen", "null")):
        mine = [row for row in rows if row["arm"] == arm]
        worst = sum(all(c == row["label"] for c in row["seen"]) for row in mine) / len(mine)
        assert summary[name]["worst"]["value"] == pytest.approx(100 * worst)
        never = sum(row["lost_at"] is None for row in mine) / len(mine)
        if protocol != "strict":
            assert summary[name][config["protocol"]["report"][0]]["value"] == pytest.approx(100 * never)
            assert report.headline(summary)[1:] == ("seen", "null_seen")
    from rich.console import Console

    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(row_table(summary))
    text = console.export_text()
    assert f"protocol {protocol}" in text
    assert ("decided in-loop" if protocol != "strict" else "by the in-loop samples") in text


@pytest.mark.parametrize("protocol", ["default", "strict"])
def test_a_purifier_without_a_gradient_is_attacked_by_the_one_that_it_names(tmp_path, protocol):
    folder = tmp_path / "mine" / "purifier"
    folder.mkdir(parents=True)
    declared = "gradient: none\nexceptions: {gradient: it rounds}\n"
    (folder / "flat.yaml").write_text(f"_target_: dp.purifiers.none.purify\n_partial_: true\n{declared}")
    config = compose.setup(f"protocol={protocol}", "purifier=flat", config_dirs=[tmp_path / "mine"]).config
    assert config["threat_model"]["grad"] == "bpda"


def test_a_report_may_begin_with_a_rule_that_in_loop_samples_lack(tmp_path):
    """Where fresh samples decide. Where in-loop ones do, it begins with a rule that they have."""
    small = [word for word in TINY if not word.startswith("attack.")]
    config = composed(*small, "purifier=none", "protocol=strict", "protocol.report=[single,vote]", "workers=1")
    assert finished(config, tmp_path / "run")
    summary = record.read_summary(tmp_path / "run")
    assert summary is not None
    assert {*reported(summary)} == {("robust", "single"), ("robust", "vote")}
    with pytest.raises(ValueError, match=r"need protocol\.report to begin with average or worst or mean_logits"):
        check_setup(setup("protocol=hill", "protocol.report=[single]"))
    with pytest.raises(ValueError, match="need votes <= 1000, got 1100"):
        check_setup(setup("protocol.votes=1100"))
