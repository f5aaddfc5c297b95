"""The ranking of defenses, on cards made by hand, and the committed board."""

import csv
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dp.board import entry as entries
from dp.board.page import PAGE, TABLE, page_and_table
from dp.board.ranking import boards, ranking
from dp.commands import board
from dp.output.card import CARD, TEXT, read_card
from dp.output.card_text import card_text
from dp.statistics import intervals

ROOT = Path(__file__).parents[2]
BOARD = ROOT / "results" / "board"
COMMITTED = sorted(BOARD.glob(f"*/{CARD}"))


def made(
    purifier: str, right: list[int], attack: str = "strict", eps: str = "32/255", threat: str = "linf", **more
) -> Any:
    """A card of images 0, 1, ... with so many right samples of 10 each."""
    value = 10 * float(np.mean(right))
    low, high = (100 * end for end in intervals.interval(np.array(right) / 10))
    figure = {"value": value, "seed_std": None, "wilson95": [low, high], "n": len(right), "draws": 10}
    named = {"name": purifier, "version": 1}
    return {
        "key": f"{purifier}-{attack}-{len(right)}-{value:.0f}",
        "dataset": "digits",
        "attacked": {"attack": {"name": attack, "version": 1}, "norm": "linf", "eps": eps},
        "scored": {"purifier": named, "classifier": "digits", "denoiser": "digits", "samples": 10, "nfe": 5},
        "protocol": {"name": "strict", "version": 1},
        "figures": {name: {"average": figure, "worst": figure} for name in ("robust", "standard", "null")},
        "seeds": [0],
        "images": {"ids": list(range(len(right))), "right": right, "samples": 10, "file": None},
        "audit": None,
        "caveats": {},
        "command": f"dp run purifier={purifier}",
        "config": {
            "choices": {"dataset": "digits", "threat_model": threat},
            "classifier": {},
            "denoiser": {},
            "purifier": {"_target_": f"dp.purifiers.{purifier}.purify"},
        },
        **more,
    }


def test_of_a_defense_the_strongest_attack_counts():
    weak, strong = made("a", [8] * 30, "pgd_eot"), made("a", [5] * 30, "strict")
    (one,) = ranking([weak, strong])
    assert (one.card, one.others) == (strong, [weak])


def test_attacks_on_different_images_are_compared_on_those_in_common():
    """Over all of its images the second attack leaves less, because it has harder ones; on the common ones, more."""
    strong, weak = made("a", [6] * 20), made("a", [7] * 20 + [0] * 20)
    (one,) = ranking([weak, strong])
    assert one.card is strong


def test_ranks_and_ties_by_paired_differences():
    """b is above a by one sample of every image, so surely, though their intervals overlap. c is not apart from a."""
    rng = np.random.default_rng(0)
    base = rng.integers(1, 9, 20)
    swap = rng.permutation(np.repeat([-1, 1], 10))
    cards = [made("a", base.tolist()), made("b", (base + 1).tolist()), made("c", (base + swap).tolist())]
    low, high = cards[0]["figures"]["robust"]["average"]["wilson95"]
    assert low < cards[1]["figures"]["robust"]["average"]["value"] < high
    found = {one.name: (one.rank, one.ties) for one in ranking(cards)}
    assert found == {"b": (1, []), "a": (2, ["c"]), "c": (2, ["a"])}


def test_only_what_can_be_compared_is_one_board():
    cards = [made("a", [5] * 9), made("a", [5] * 9, eps="16/255"), made("a", [5] * 9, dataset="canvas")]
    cards.append(made("a", [5] * 9, threat="inside_box"))  # linf, but confined to a region
    assert [len(own) for own in boards([*cards, made("b", [5] * 9)]).values()] == [1, 1, 1, 2]


def test_a_failed_audit_is_marked():
    finding = {"check": "dead pixels", "verdict": "FAIL", "value": 1, "threshold": 0}
    audit = {"checks": 17, "FAIL": 1, "WARN": 0, "findings": [finding]}
    page, table = page_and_table([made("a", [5] * 9, audit=audit), made("b", [4] * 9)])
    (line,) = [line for line in page.splitlines() if "[a](" in line]
    assert "**FAILED: dead pixels**" in line
    (first, second) = csv.DictReader(io.StringIO(table))
    assert (first["audit"], second["audit"]) == ("FAILED: dead pixels", "not audited")


def test_a_quick_budget_is_said():
    stronger = {"stronger": [{"experiment": "digits/strict", "least": 0.7, "most": 2.3}]}
    page, table = page_and_table([made("a", [5] * 9, caveats=stronger), made("b", [4] * 9)])
    first, second = (next(line for line in page.splitlines() if f"[{name}](" in line) for name in "ab")
    assert "strict, quick budget" in first
    assert "quick" not in second
    assert [line["attack"] for line in csv.DictReader(io.StringIO(table))] == ["strict, quick budget", "strict"]


def test_the_board_is_that_of_its_cards(tmp_path, capsys):
    """README.md and board.csv, made from the committed cards, have the committed bytes."""
    for path in COMMITTED:
        copy = tmp_path / path.parent.name
        copy.mkdir()
        (copy / CARD).write_bytes(path.read_bytes())
    assert board.main(["build", "--board", str(tmp_path)]) == 0
    for name in (PAGE, TABLE):
        assert (tmp_path / name).read_bytes() == (BOARD / name).read_bytes(), f"dp board build writes another {name}"


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.parent.name)
def test_a_committed_entry_is_whole(path):
    card = read_card(path)
    assert card["key"] == path.parent.name
    assert (path.parent / TEXT).read_text() == card_text(card)
    file = card["images"]["file"]
    assert file is not None
    images = path.parent / entries.IMAGES
    assert (images.exists() and file["bytes"] == images.stat().st_size) or file["url"]
    assert all(each.stat().st_size <= entries.LARGEST for each in path.parent.iterdir())


@pytest.mark.parametrize(
    "path", [path for path in COMMITTED if "-none-" in path.parent.name], ids=lambda p: p.parent.name
)
def test_a_committed_entry_is_accepted(path, capsys):
    """Those without a purifier, which take seconds; dp board check results/board/* checks all."""
    assert board.main(["check", str(path)]) == 0, capsys.readouterr().err


def test_the_page_names_every_purifier_that_is_missing():
    """docs/board.md lists the purifiers of the embedded benchmark without an entry, and no other."""
    page = (ROOT / "docs" / "board.md").read_text()
    listed = set(re.findall(r"`(\w+)`", page.partition("<!-- missing -->")[2].partition("<!-- end -->")[0]))
    there = {read_card(path)["scored"]["purifier"]["name"] for path in COMMITTED}
    options = {path.stem for path in (ROOT / "conf" / "purifier").glob("*.yaml")}
    assert listed == options - there
