"""Caveats: facts about a run, computed once, as data."""

import functools
from collections.abc import Collection

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
    return list(departures(setup(*overrides)))


def scaled_of(*overrides: str, modes: Collection[str] = ()) -> list[Change]:
    return list(scaled(setup(*overrides), modes))


@functools.cache
def found(*overrides: str) -> caveats.Caveats:
    asked = setup(*SMALL, *overrides)
    return caveats_of(asked, build(asked.config))


@pytest.mark.parametrize("name", options("protocol"))
def test_a_protocol_as_it_is_defined_has_no_departure(name):
    assert departures_of("dataset=cifar10", f"protocol={name}") == []
    assert scaled_of("dataset=cifar10", f"protocol={name}") == []
    assert departures_of(f"protocol={name}") == []  # on digits, where many values are scaled


def test_the_command_line_wins_over_a_protocol_and_it_is_a_departure():
    assert departures_of("protocol=strict", "attack=square", "threat_model.grad=surrogate") == [
        Change("attack", "square", "strict"),
        Change("threat_model.grad", "surrogate", "full"),
    ]
    given = ("protocol=diffbreak_single", "protocol.judge.every=50", "protocol.votes=1", "attack.eot=2")
    assert departures_of(*given) == [
        Change("attack.eot", 2, 4),
        Change("protocol.judge.every", 50, 1),
        Change("protocol.votes", 1, 10),
    ]
    assert departures_of("protocol=strict", "attack=strict_mask") == []


@pytest.mark.parametrize(
    ("given", "changed"),
    [
        (
            ("protocol=official", "attack.iterations=1", "threat_model.eps=1/255"),
            [Change("attack.iterations", 1, 10), Change("threat_model.eps", "1/255", "32/255")],
        ),
        (("protocol=official", "dataset.eps.linf=1/255"), [Change("threat_model.eps", "1/255", "32/255")]),
        (("protocol=hill", "protocol.votes=3"), [Change("protocol.votes", 3, 15)]),
        (("protocol=strict", "protocol.judge.every=3"), [Change("protocol.judge.every", 3, 11)]),
        (("protocol=official", "dataset.loader.images=9"), [Change("dataset.loader.images", 9, 64)]),
        (("protocol=official", "protocol.images=9"), [Change("protocol.images", 9, 64)]),
    ],
)
def test_a_change_of_a_scaled_value_is_a_departure(given, changed):
    """The reference is the value that the protocol has on digits, not the one of the larger dataset."""
    assert departures_of(*given) == changed


def test_what_a_protocol_scales_does_not_depend_on_the_command():
    given = ("attack.iterations=1", "threat_model.eps=1/255", "protocol.per_dataset.default.images=100")
    assert scaled_of("protocol=official", *given) == scaled_of("protocol=official")


def test_a_change_inside_a_variant_of_the_protocols_attack_is_a_departure():
    given = ("dataset=cifar10", "protocol=strict", "attack=strict_mask")
    assert departures_of(*given, "attack.attacks.pgd_eot.iterations=1", "attack.confirm=1") == [
        Change("attack.attacks.pgd_eot.iterations", 1, 200),
        Change("attack.confirm", 1, 20),
    ]


def test_what_digits_scale_stands_beside_the_values_for_cifar10():
    given = ("+experiment=digits/scaled", "protocol=official", "purifier=hetero_official")
    scales = scaled_of(*given)
    for change in (
        Change("protocol.images", 64, 512),
        Change("attack.iterations", 10, 200),
        Change("purifier.n", 100, 500),
        Change("threat_model.eps", "32/255", "8/255"),
    ):
        assert change in scales
    assert departures_of(*given) == [
        Change("protocol.images", 128, 64),
        Change("protocol.seeds", [2024, 2025, 2026], [2024]),
    ]


def test_a_scaled_surrogate_is_named_where_it_is_attacked():
    surrogate = Change("purifier.gradients.surrogate.steps", 3, 20)
    given = ("purifier=diffpure", "purifier.steps=4")
    assert surrogate in found("protocol=official", *given).scaled
    assert surrogate in found("protocol=official", "attack=square", *given).scaled  # its queries
    assert Change("purifier.steps", 4, 100) in found("protocol=official", *given).scaled
    assert surrogate not in found("protocol=strict", *given).scaled


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
        ("pgd_eot", "full", 7),
        ("pgd_eot", "surrogate", 3),
        ("transfer", "full", 0),
        ("transfer", "surrogate", 0),
        ("bpda_eot", "full", 7),
        ("union", "full", 7),
        ("square", "surrogate", 3),
    ],
)
def test_the_attacks_nfe_is_that_of_what_it_queries(attack, grad, nfe):
    """Of hetero: its steps and once more in stage 1, 3 of 4; the bare classifier of a transfer has none."""
    given = (f"attack={attack}", f"threat_model.grad={grad}", "purifier.t_s=0.05", "purifier.steps=4")
    caveat = found(*given, "purifier.gradients.surrogate.steps=2")
    assert (caveat.nfe, caveat.attack_nfe) == (7, nfe)


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


@pytest.mark.parametrize(
    "given",
    [
        ("purifier=none",),  # an undefended model lacks nothing
        ("~purifier.gradients.surrogate", "protocol.grad=full"),
        ("~purifier.gradients.surrogate", "threat_model.grad=full"),
        ("protocol.grad=full",),
        ("purifier=hetero", "protocol=strict"),
    ],
)
def test_a_surrogate_is_missed_only_where_the_protocol_had_to_do_without_it(given):
    asked = () if "protocol=strict" in given else ("protocol.per_dataset.digits.grad=surrogate",)
    assert not found(*given, *asked).no_surrogate


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
