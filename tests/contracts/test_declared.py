"""What a yaml declares: properties with a reason, which are in no key and on the row; the gradient that it names."""

import pytest

from dp.contracts.declared import check_declared, exceptions, honest_gradient
from dp.output.declarations import declared_lines
from dp.runs.build import build
from dp.runs.caveats import caveats_of
from dp.runs.compose import arguments
from dp.runs.defense_entries import ENTRIES
from dp.runs.keys import run_key
from dp.runs.validate import check_targets
from tests.helpers.compose import composed, setup

BOTH = "+purifier.honest=[full,bpda]"
NONE = ("+purifier.gradient=none", "+purifier.exceptions={gradient: it rounds}")
KINK = "+purifier.exceptions={derivative: it has a kink}"
SMALL = ("protocol.images=2", "protocol.seeds=[5]", "dataset.lanes=2")


def lines(*overrides: str) -> list[str]:
    asked = setup(*SMALL, "purifier=diffpure", "purifier.steps=2", *overrides)
    return declared_lines(asked.config, caveats_of(asked, build(asked.config)).as_data())


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ("+purifier.exceptions={derivativ: a kink}",),
            "unknown exception purifier.exceptions.derivativ (did you mean derivative?): it may have gradient, deriv",
        ),
        (
            ("+attack.exceptions={determinism: it is random}",),
            "unknown exception attack.exceptions.determinism: it may have moves",
        ),
        (("+purifier.honest=[full, adjoint]",), "need purifier.honest as a list of full, bpda"),
        (("+denoiser.exceptions={range: large}",), "unknown exception denoiser.exceptions.range: it may have none"),
        (("+purifier.exceptions=[derivative]",), "need purifier.exceptions as a mapping, such as {PROPERTY: REASON}"),
        (
            ("+purifier.exceptions={derivative: null}",),
            "need the reason of purifier.exceptions.derivative as text, got",
        ),
        (("+purifier.exceptions={derivative: 3}",), "need the reason of purifier.exceptions.derivative as text, got 3"),
        (NONE[:1], "need purifier.gradient and its reason together, such as gradient: none with exceptions"),
        (NONE[1:], "got the reason alone"),
        ((*NONE[1:], "+purifier.gradient=full"), "need purifier.gradient as one of none, surrogate, mask_soft"),
        ((*NONE[1:], "+purifier.gradient=adjoint"), "got adjoint: it names what is attacked instead"),
    ],
)
def test_a_wrong_declaration_is_one_line(overrides, said):
    with pytest.raises(ValueError, match=r"^(need|unknown) ") as error:
        check_targets(composed(*overrides))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_declaration_is_no_argument_and_in_no_key():
    plain, declared = composed(), composed(KINK)
    assert arguments(declared["purifier"]) == arguments(plain["purifier"])
    assert run_key(declared) == run_key(plain)
    assert exceptions(declared["purifier"]) == {"derivative": "it has a kink"}
    assert run_key(composed(*NONE)) != run_key(plain)  # it is attacked by another gradient
    assert run_key(composed(*NONE)) == run_key(composed("protocol.grad=bpda"))
    check_declared(declared)


@pytest.mark.parametrize("dataset", ["digits", "cifar10"])
def test_the_default_protocol_takes_the_gradient_that_a_purifier_names(dataset):
    """In place of the exact gradient on digits, and of the surrogate elsewhere. The command line still wins."""
    given = (f"dataset={dataset}", *NONE)
    assert composed(*given)["threat_model"]["grad"] == "bpda"
    assert composed(*given, "purifier.gradient=mask_soft")["threat_model"]["grad"] == "mask_soft"
    assert composed(*given, "threat_model.grad=full")["threat_model"]["grad"] == "full"
    assert honest_gradient(composed(*given)["purifier"]) == "bpda"
    assert honest_gradient(composed()["purifier"]) is None


def test_the_row_says_what_is_declared_and_how_it_is_attacked():
    named = "declared: the purifier diffpure has no gradient of its own (it rounds)"
    assert lines() == []
    assert lines(KINK) == [
        "declared: the purifier diffpure has a derivative that is not the slope everywhere (it has a kink)"
    ]
    attacked = f"{named}: it is attacked by bpda, the identity in place of the derivative (BPDA)"
    assert lines(*NONE) == lines(*NONE, "protocol=strict") == [attacked]
    bare = f"{named}, but an attack differentiates it, which shows nothing: set threat_model.grad=bpda"
    assert lines(*NONE, "threat_model.grad=full") == [bare]
    assert lines(*NONE, "protocol=diffhammer") == [bare]  # its gradient is part of the protocol
    assert lines(*NONE, "attack=square") == [named]
    assert lines("+attack.exceptions={moves: it may not}") == [
        "declared: the attack pgd_eot may return an image clean (it may not)"
    ]


def test_a_purifier_that_names_its_gradient_lacks_no_surrogate():
    asked = ("~purifier.gradients.surrogate", "protocol.per_dataset.digits.grad=surrogate")
    for more, missed in (((), True), (NONE, False)):
        given = setup(*SMALL, *asked, *more)
        assert caveats_of(given, build(given.config)).no_surrogate is missed


def test_the_attacked_defense_is_the_named_gradient_of_the_scored_one():
    arm = build(composed(*SMALL, *NONE)).arms["defended"]
    assert arm.attacked.bpda
    assert not arm.scored.bpda


def test_a_run_that_lacks_a_gradient_of_an_honest_evaluation_says_so():
    (said,) = lines(BOTH)
    assert said == "the purifier diffpure needs attacks along full, bpda: judge it also with threat_model.grad=bpda"
    (said,) = lines(BOTH, "threat_model.grad=bpda")
    assert said.endswith("judge it also with threat_model.grad=full")
    assert lines(BOTH, "attack=none") == []
    assert run_key(composed(BOTH)) == run_key(composed())


@pytest.mark.parametrize("entry", [one for one in ENTRIES if one.option in ("adp", "gdmp_ssim", "langevin", "menet")])
def test_the_yaml_names_the_gradients_of_the_table_of_defenses(entry):
    assert composed(*entry.words)["purifier"]["honest"] == ["full", *entry.beside]
