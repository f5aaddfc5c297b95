"""Caveats: facts about a run, computed once, as data."""

import functools

import pytest

import dp.runs.pipeline as pipeline
from dp.attacks.bpda import BPDA
from dp.attacks.pgd_eot import PGD
from dp.evaluation import caveats
from dp.evaluation.caveats import Change, Difference, ShortSteps, gradients, short_steps
from dp.runs.build import build
from dp.runs.caveats import caveats_of, departures, scaled
from dp.threat_models.ball import ThreatModel
from tests.helpers.compose import TINY, composed, options, setup

SMALL = ("protocol.images=2", "protocol.seeds=[5]", "dataset.lanes=2")


def departures_of(*overrides: str) -> list[Change]:
    asked = setup(*overrides)
    return list(departures(asked, {change.key for change in scaled(asked.config)}))


@functools.cache
def found(*overrides: str) -> caveats.Caveats:
    asked = setup(*SMALL, *overrides)
    return caveats_of(asked, build(asked.config))


@pytest.mark.parametrize("name", options("protocol"))
def test_a_protocol_as_it_is_defined_has_no_departure(name):
    assert departures_of("dataset=cifar10", f"protocol={name}") == []
    assert list(scaled(composed("dataset=cifar10", f"protocol={name}"))) == []


def test_the_command_line_wins_over_a_protocol_and_it_is_a_departure():
    assert departures_of("protocol=strict", "attack=square", "threat_model.grad=surrogate") == [
        Change("attack", "square", "strict"),
        Change("threat_model.grad", "surrogate", "full"),
    ]
    given = ("protocol=diffbreak_single", "protocol.judge.every=50", "protocol.votes=1", "attack.eot=2")
    assert departures_of(*given) == [Change("protocol.judge.every", 50, 1), Change("protocol.votes", 1, 10)]
    assert Change("attack.eot", 2, 20) in list(scaled(composed(*given)))  # digits have a smaller one anyway
    assert departures_of("protocol=strict", "attack=strict_mask") == []


def test_what_digits_scale_stands_beside_the_values_for_cifar10():
    given = ("+experiment=digits/scaled", "protocol=official", "purifier=hetero_official")
    changes = set(map(repr, scaled(composed(*given))))
    for change in (
        Change("protocol.images", 128, 512),
        Change("attack.iterations", 10, 200),
        Change("purifier.n", 100, 500),
        Change("threat_model.eps", "32/255", "8/255"),
    ):
        assert repr(change) in changes
    assert departures_of(*given) == [Change("protocol.seeds", [2024, 2025, 2026], [2024])]


@pytest.mark.parametrize(
    ("attack", "grad", "modes"),
    [
        ("pgd_eot", "full", {()}),
        ("pgd_eot", "surrogate", {("surrogate",)}),
        ("bpda_eot", "full", {("bpda",)}),
        ("bpda_eot_official", "surrogate", {("surrogate", "bpda")}),
        ("bpda_eot_hill", "full", {("bpda",)}),
        ("transfer", "surrogate", {("surrogate", "blind")}),
        ("square", "surrogate", {("values",)}),
        ("strict", "full", {()}),
        ("strict_mask", "full", {(), ("mask_soft",), ("mask_straight_through",)}),
    ],
)
def test_the_gradient_modes_of_an_attack(attack, grad, modes):
    caveat = found(f"attack={attack}", f"threat_model.grad={grad}")
    assert set(caveat.gradients) == modes


@pytest.mark.parametrize(
    ("attack", "grad", "nfe"),
    [
        ("pgd_eot", "full", 8),
        ("pgd_eot", "surrogate", 2),
        ("transfer", "full", 0),
        ("transfer", "surrogate", 0),
        ("bpda_eot", "full", 8),
        ("union", "full", 8),
        ("square", "surrogate", 2),
    ],
)
def test_the_attacks_nfe_is_that_of_what_it_queries(attack, grad, nfe):
    """Of hetero: its steps and once more in stage 1, here all 4 of 4; the bare classifier of a transfer has none."""
    given = (f"attack={attack}", f"threat_model.grad={grad}", "purifier.t_s=0.05", "purifier.steps=4")
    caveat = found(*given, "purifier.gradients.surrogate.steps=1")
    assert (caveat.nfe, caveat.attack_nfe) == (8, nfe)


@pytest.mark.parametrize(
    ("attack", "purifier", "spared"),
    [("strict", "hetero", ("strict_mask",)), ("strict_mask", "hetero", ()), ("strict", "diffpure", ())],
)
def test_a_strict_union_without_the_mask_attacks_is_a_caveat(attack, purifier, spared):
    assert found("protocol=strict", f"attack={attack}", f"purifier={purifier}").masks_spared == spared


def test_differences_between_attacked_and_scored():
    caveat = found("threat_model.grad=surrogate", "purifier.steps=5", "purifier.gradients.surrogate.steps=3")
    assert caveat.differences == (Difference("steps", 3, 5),)
    assert found().differences == ()
    assert found("purifier.clamp=straight_through").straight_through


def test_short_steps_hold_the_way_against_the_ball():
    """10 steps of .002 cover .02; from a random start they may need the ball's width, from the image its radius."""
    threat = ThreatModel("linf", 0.1)
    assert short_steps(PGD(10, 1, step_size=0.002), threat) == (ShortSteps("PGD", 0.02, 0.2),)
    assert short_steps(PGD(10, 1, step_size=0.01, random_start=False), threat) == ()
    assert short_steps(PGD(10, 1), threat) == ()
    (short,) = short_steps(BPDA(5, 1, step_size=0.002), threat)
    assert (short.reach, short.needed) == (pytest.approx(0.01), 0.1)


def test_gradients_of_one_attack_alone():
    assert gradients(PGD(1, 1), "full") == ((),)
    assert gradients(BPDA(1, 1, None), "bpda") == (("bpda",),)


def test_a_purifier_without_a_surrogate_is_attacked_exactly_under_the_default_protocol():
    """Elsewhere than on digits the default protocol asks for a surrogate."""
    with_one, without = composed("dataset=cifar10"), composed("dataset=cifar10", "purifier=none")
    assert (with_one["threat_model"]["grad"], without["threat_model"]["grad"]) == ("surrogate", "full")
    caveat = found("~purifier.gradients.surrogate", "protocol.per_dataset.digits.grad=surrogate")
    assert (caveat.no_surrogate, caveat.gradients) == (True, ((),))
    assert not found().no_surrogate


def test_a_run_composes_builds_and_makes_its_caveats_once(tmp_path, monkeypatch):
    """The announcement, the audit and the summary get one object: nothing computes a fact again."""
    monkeypatch.chdir(tmp_path)
    counts: dict[str, int] = {}

    def counting(module, name):
        function = getattr(module, name)

        def wrapped(*args, **kwargs):
            counts[name] = counts.get(name, 0) + 1
            return function(*args, **kwargs)

        monkeypatch.setattr(module, name, wrapped)

    made = []
    original = caveats.Caveats.__init__
    monkeypatch.setattr(
        caveats.Caveats, "__init__", lambda self, **facts: (made.append(self), original(self, **facts))[1]
    )
    for module, name in (
        (pipeline, "build"),
        (pipeline, "caveats_of"),
        (pipeline.report, "announcement"),
        (pipeline, "subject_of"),
        (pipeline.record, "write_summary"),
    ):
        counting(module, name)
    seen = []
    subject = pipeline.Subject
    monkeypatch.setattr(pipeline, "Subject", lambda *args: (seen.append(args[2]), subject(*args))[1])
    asked = setup(*TINY, "workers=1", "audit=true", "purifier=diffpure", "purifier.steps=2")
    summary = pipeline.judged(asked, tmp_path / "run")
    assert summary is not None
    assert len(made) == 1
    assert seen == made  # the audit's
    assert summary["caveats"] == made[0].as_data()  # the summary's
    assert counts == {"build": 1, "caveats_of": 1, "announcement": 1, "subject_of": 1, "write_summary": 1}
