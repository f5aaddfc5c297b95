"""Write the board: README.md and board.csv, from the cards alone."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from dp.board.entry import entries
from dp.board.ranking import RULE, Ranked, boards, ranking, robust
from dp.output.card import TEXT, Card, read_card
from dp.output.card_text import name_of
from dp.output.record import write_atomic
from dp.output.row_table import count_of

PAGE, TABLE = "README.md", "board.csv"
HEAD = """# The board

Defenses by their robust accuracy under the strongest attack that was submitted, in percent with 95 % intervals over
images. It is the average over fresh samples, the expected accuracy of a single sample. A stronger attack may come, so a
number is an upper bound. Two defenses are not distinguishable if the 95 % interval of their paired difference over
common images holds 0. The rank is 1 + the number of defenses that are better and distinguishable. It compares two
defenses on the images that both have. The column `robust` has all images of an entry, so that a lower rank can show a
higher number. `worst of samples` counts an image as right if all of its samples are right.

`dp board build` writes this page from the cards. [How to submit one, and how it is checked](../../docs/board.md).
"""
COLUMNS = (
    "rank",
    "defense",
    "robust",
    "standard",
    "random noise",
    "worst of samples",
    "strongest attack",
    "protocol",
    "images x seeds x samples",
    "NFE",
    "audit",
    "not distinguishable from",
)
FIELDS = (
    *("dataset", "threat_model", "eps", "rank", "defense", "strongest"),
    *("robust", "robust_low", "robust_high", "standard"),
    *("null", "worst", "attack", "protocol", "images", "seeds", "samples", "nfe", "audit", "ties", "key"),
)


def build(board: Path) -> list[Path]:
    """Write the page and the table of all cards below `board`, and return their paths.

    Raises ValueError for a card that cannot be read, or has no images, so that nobody can check it.
    """
    cards = [read_card(path) for path in entries(board)]
    for card in cards:
        if card["images"]["file"] is None:
            raise ValueError(f"need cards with attacked images in {board}, got {card['key']} without: take it out")
    page, table = page_and_table(cards)
    write_atomic(board / PAGE, page.encode())
    write_atomic(board / TABLE, table.encode())
    return [board / PAGE, board / TABLE]


def page_and_table(cards: Sequence[Card]) -> tuple[str, str]:
    """The text of README.md and of board.csv."""
    blocks, file = [HEAD], io.StringIO()
    writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
    writer.writeheader()
    for (dataset, threat, _), own in boards(cards).items():
        ranked = ranking(own)
        blocks.append(f"## {dataset}, {threat} {own[0]['attacked']['eps']}\n")
        blocks.append(_table(COLUMNS, [_line(one) for one in ranked]))
        weaker = [(one.name, card) for one in ranked for card in one.others]
        if weaker:
            blocks.append("Weaker attacks on the same defenses:\n")
            blocks.append(_table(("defense", "robust", "attack", "protocol", "audit"), [_weaker(*w) for w in weaker]))
        for one in ranked:
            for card in (one.card, *one.others):
                writer.writerow(_fields(one, card))
    return "\n".join(blocks), file.getvalue()


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [heads, ["---"] * len(heads), *lines]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def _line(one: Ranked) -> list[str]:
    card = one.card
    figures, scored = card["figures"], card["scored"]
    counts = f"{len(card['images']['ids'])} x {len(card['seeds'])} x {scored['samples']}"
    return [
        str(one.rank),
        f"[{one.name}]({card['key']}/{TEXT})",
        f"**{_interval(card)}**",
        f"{figures['standard'][RULE]['value']:.1f}",
        f"{figures['null'][RULE]['value']:.1f}",
        f"{figures['robust']['worst']['value']:.1f}",
        attack_words(card),
        name_of(card["protocol"]),
        counts,
        str(scored["nfe"]),
        audit_words(card),
        "; ".join(one.ties) or "-",
    ]


def _weaker(name: str, card: Card) -> list[str]:
    link = f"[{name}]({card['key']}/{TEXT})"
    return [link, _interval(card), attack_words(card), name_of(card["protocol"]), audit_words(card)]


def _interval(card: Card) -> str:
    low, high = card["figures"]["robust"][RULE]["wilson95"]
    return f"{robust(card):.1f} [{low:.1f} - {high:.1f}]"


def attack_words(card: Card) -> str:
    """The attack, whether its budget is the quick one of a protocol that has a stronger one for this dataset, and
    whether it spares a mask that it could attack.
    """
    caveats, words = card["caveats"], [name_of(card["attacked"]["attack"])]
    words += ["quick budget"] if caveats.get("stronger") else []
    words += ["the mask is not attacked"] if caveats.get("masks_spared") else []
    return ", ".join(words)


def audit_words(card: Card) -> str:
    """Whether the audit passed, and which of its checks failed."""
    audit = card["audit"]
    if audit is None:
        return "not audited"
    failed = [finding["check"] for finding in audit["findings"] if finding["verdict"] == "FAIL"]
    if failed:
        return f"**FAILED: {', '.join(failed)}**"
    return f"none of {audit['checks']} failed, {count_of(audit['WARN'], 'warning')}"


def _fields(one: Ranked, card: Card) -> dict[str, object]:
    """The line of a card in board.csv."""
    figures, strongest = card["figures"], card is one.card
    low, high = figures["robust"][RULE]["wilson95"]
    return {
        "dataset": card["dataset"],
        "threat_model": card["config"]["choices"]["threat_model"],
        "eps": card["attacked"]["eps"],
        "rank": one.rank if strongest else "",
        "defense": one.name,
        "strongest": strongest,
        "robust": f"{robust(card):.2f}",
        "robust_low": f"{low:.2f}",
        "robust_high": f"{high:.2f}",
        "standard": f"{figures['standard'][RULE]['value']:.2f}",
        "null": f"{figures['null'][RULE]['value']:.2f}",
        "worst": f"{figures['robust']['worst']['value']:.2f}",
        "attack": attack_words(card),
        "protocol": name_of(card["protocol"]),
        "images": len(card["images"]["ids"]),
        "seeds": len(card["seeds"]),
        "samples": card["scored"]["samples"],
        "nfe": card["scored"]["nfe"],
        "audit": audit_words(card).strip("*"),
        "ties": "; ".join(one.ties) if strongest else "",
        "key": card["key"],
    }
