"""docs/defenses.md has a short section for each defense, with the values that compose and attacks that exist."""

import csv
import re
from typing import Any

import pytest
import yaml

from dp.commands.reference import BLOCK, DOCS
from dp.contracts.declared import honest_gradient
from dp.runs.defense_entries import ENTRIES
from dp.runs.defense_lists import SETUP, comments, lists, measured
from dp.runs.help import options
from dp.runs.targets import RESERVED
from tests.helpers.compose import composed

PAGE = (DOCS / "defenses.md").read_text()
MOST = 25  # lines of a section, with its heading and empty lines
SECTIONS = dict(re.findall(r"^## (.+)\n((?:(?!## ).*\n)*)", PAGE, re.MULTILINE))
BLOCKS = {m[2]: m[0].removeprefix(m[1]).removesuffix(m[3]) for m in BLOCK.finditer(PAGE)}
COMMON = {"full", "bpda", "blind"}  # gradient modes that every defense has
by_option = pytest.mark.parametrize("one", ENTRIES, ids=lambda one: one.option)


def parent(option: str) -> str | None:
    """The purifier that an option is a preset of, or another form of by its name."""
    defaults = (yaml.safe_load(options("purifier")[option].read_text()) or {}).get("defaults") or []
    presets = (name for name in (*defaults, option.rpartition("_")[0]) if isinstance(name, str))
    return next((name for name in presets if name in options("purifier")), None)


def test_every_purifier_has_a_section_or_stands_in_that_of_its_parent():
    described = {one.option: one.section for one in ENTRIES if one.group == "purifier"}
    for name in {*options("purifier")} - {*described, "none"}:
        of = parent(name)
        assert of in described, f"purifier={name} has no section in docs/defenses.md"
        assert f"`{name}`" in SECTIONS[described[of]], f"the section of {of} does not name its preset {name}"


@by_option
def test_the_lists_of_a_defense_stand_in_its_section(one):
    assert one.option in options(one.group)
    assert f"<!-- generated: defense {one.option} -->" in SECTIONS[one.section]


@pytest.mark.parametrize("heading", SECTIONS)
def test_a_section_is_short(heading):
    assert 1 + len(SECTIONS[heading].rstrip().splitlines()) <= MOST
    assert "generated: defense " in SECTIONS[heading]


@pytest.mark.parametrize("name", lists())
def test_generated_lists_are_up_to_date(name):
    assert lists()[name]() == BLOCKS[name], "python scripts/reference.py writes them anew"


@by_option
@pytest.mark.parametrize("dataset", ["digits", "cifar10"])
def test_the_values_on_the_page_are_those_that_compose(one, dataset):
    """They are read off the page, not made by the code that writes it."""
    told = re.findall(r"`([\w.]+)` = (.+?)(?=: |<br>|$)", BLOCKS[f"defense {one.option}"], re.MULTILINE)
    for places, words in re.findall(r"^- `\w+`, ([\w, ]+): (.+)$", BLOCKS[f"defense {one.option}"], re.MULTILINE):
        told += re.findall(r"`([\w.]+)` (.+?)(?=, `|$)", words) if dataset in places else []
    node = composed(*one.words, f"dataset={dataset}")[one.group]
    for key, text in told:
        value: Any = node
        for part in key.split("."):
            value = value[part]
        assert read(text, value) == value, key
    shown = {key.partition(".")[0] for key, _ in told}
    assert shown
    if one.group != "purifier" or parent(one.option) is None:
        assert shown == {*node} - {*RESERVED, "_target_", "_partial_", "denoiser", "net", "clamp"}


def read(text: str, like: Any) -> Any:
    """A value as the page has it; `like` says its type."""
    if isinstance(like, list) and isinstance(like[0], list):
        pairs = re.findall(r"(?:(\d+) x )?(\[\d+, \d+\])", text)
        return [yaml.safe_load(pair) for count, pair in pairs for _ in range(int(count or 1))]
    if isinstance(like, list) and isinstance(like[0], float):
        return [float(value) for value in yaml.safe_load(text)]
    return float(text) if isinstance(like, float) else yaml.safe_load(text)


@pytest.mark.parametrize("heading", SECTIONS)
def test_a_section_names_attacks_and_gradient_modes_that_exist(heading):
    text = BLOCK.sub("", SECTIONS[heading])
    modes, honest = {*COMMON}, set()
    for one in (one for one in ENTRIES if one.section == heading):
        purifier = composed(*one.words)["purifier"]
        modes |= {*(purifier.get("gradients") or {})}
        honest |= {honest_gradient(purifier) or "full", *one.beside} - {"mask_soft", "mask_straight_through"}
        for word in one.authors:
            assert f"`{word}`" in text, f"the table calls {word} the authors' attack, the section does not"
    assert {*re.findall(r"threat_model\.grad=(\w+)", text)} <= modes
    assert {*re.findall(r"`attack=(\w+)", text)} <= {*options("attack")}
    assert honest <= {*re.findall(r"(?:`|=)(\w+)`", text)}


def test_the_authors_attacks_are_those_of_the_study():
    from defenses import METHODS

    studied = {method.name: method for method in METHODS if method.name != "no defense"}
    assert {*studied} == {row for one in ENTRIES for row in one.rows}
    for one in ENTRIES:
        for row in one.rows:
            budget = ["attack=pgd_eot", "attack.iterations=20", "attack.attack.iterations=20"]
            budget += ["threat_model.grad=identity"] if one.group == "classifier" else []  # of its purifier, LM
            theirs = tuple(word for word in studied[row].authors if word not in budget)
            assert theirs == one.authors or (row != one.rows[0] and theirs == ())  # the same by another gradient
            assert f"{one.group}={one.option}" in studied[row].overrides
            assert studied[row].masked == ("mask_soft" in one.beside)


def test_what_was_measured_is_filled_in(tmp_path):
    path = tmp_path / "defenses.csv"
    one = next(one for one in ENTRIES if one.option == "mimic")
    assert measured(one, path) == [f"{SETUP}: not measured yet"]
    strict = {"method": one.rows[0], "side": "strict", "standard_average": "98.44", "average": "40.06", "low": "32.10"}
    strict |= {"high": "48.50", "worst": "14.10", "audit": "audited: 18 checks, 0 FAIL, 0 WARN"}
    theirs = strict | {"side": "authors", "average": "66.00", "low": "60.00", "high": "70.00", "worst": "50.00"}
    theirs |= {"audit": "audited: 18 checks, 1 FAIL, 2 WARN"}
    standard, honest = "standard 98.4 %", "robust under `strict` 40.1 % (32.1 to 48.5), worst of 10 samples 14.1 %"
    attacked = (
        "robust under the authors' attack 66.0 % (60.0 to 70.0), worst of 10 samples 50.0 %, audit: 1 FAIL, 2 WARN"
    )
    alone = strict | {"side": "decision", "average": "90.00", "low": "85.00", "high": "95.00", "worst": "70.00"}
    told = "robust by decisions alone, on 32 images and one seed, 90.0 % (85.0 to 95.0), worst of 10 samples 70.0 %"
    for there, words in (
        ([strict, theirs, alone], [standard, honest, attacked, told]),
        ([strict], [standard, honest, "under the authors' attack not measured yet"]),
        ([strict, theirs], [standard, honest, attacked]),
        ([theirs], [standard, "under `strict` not measured yet", attacked]),
    ):
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, [*strict])
            table.writeheader()
            table.writerows(there)
        assert measured(one, path) == [f"{SETUP}: {'; '.join(words)}"]
    hetero = next(one for one in ENTRIES if one.option == "hetero")
    assert measured(hetero, path) == [f"{SETUP}: not measured yet"]


def test_comments_are_those_of_the_keys():
    text = "# head\na: 1  # x (deviation 8: words)\nb:\n  c: 2\n  d: [1]   # deviation 70: y\ne: 3  # z\n"
    link = "[deviation {0}](deviations.md#deviation-{0})"
    assert comments(text) == {"a": f"x ({link.format(8)})", "b.d": f"{link.format(70)}: y", "e": "z"}
