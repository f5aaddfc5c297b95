"""The sentences of a result card: card.md, from the facts of the card alone."""

from dp.output.card import Card, Named
from dp.output.report import audit_lines, audit_word, caveat_lines, clock, gradient_words
from dp.output.row_table import ROWS, cells, count_of, rule_name


def name_of(named: Named) -> str:
    """An option in words: `hetero (version 2)`."""
    return named["name"] + (f" (version {named['version']})" if named["version"] > 1 else "")


def card_text(card: Card) -> str:
    """card.md."""
    scored, attacked, protocol = card["scored"], card["attacked"], name_of(card["protocol"])
    samples = count_of(scored["samples"], "sample")
    networks = [
        f"{group} {option}" for group in ("classifier", "denoiser") if (option := scored[group]) not in (None, "none")
    ]
    blocks = [
        [f"# {name_of(scored['purifier'])} under {name_of(attacked['attack'])}"],
        [
            f"Scored: {name_of(scored['purifier'])} with {' and '.join(networks)}, {samples} of each image, "
            f"{scored['nfe']} NFE each. Attacked: {attacked['norm']} {attacked['eps']}, gradient: "
            f"{gradient_words(dict(card['caveats']))}, {attacked['nfe']} NFE. Protocol: {protocol}. Images: "
            f"{len(card['images']['ids'])} of {card['dataset']}; seeds: {', '.join(map(str, card['seeds']))}."
        ],
        _table(card),
        [f"- {line}" for line in _remarks(card)],
        ["```", card["command"] or "a Python program made this run; no command repeats it", "```"],
        [f"- {line}" for line in _origin(card)],
    ]
    return "\n\n".join("\n".join(lines) for lines in blocks) + "\n"


def _table(card: Card) -> list[str]:
    """The accuracies by decision rule with their intervals."""
    rules = list(card["figures"]["robust"])
    heads = ["accuracy, percent [95 %]", *(rule_name(rule, card["scored"]["samples"]) for rule in rules)]
    lines = [heads, ["---", *["---:"] * len(rules)]]
    labels = (*ROWS, ("seen", "robust, by the in-loop samples"), ("null_seen", "null control, by the in-loop samples"))
    for name, label in labels:
        held = card["figures"].get(name)
        if held is not None:
            values = [cells(dict(held[rule]) if rule in held else None) for rule in rules]
            lines.append([label, *(f"{value} [{ends}]" if ends else value for value, ends, _ in values)])
    return ["| " + " | ".join(line) + " |" for line in lines]


def _remarks(card: Card) -> list[str]:
    """How the protocol decides, whether the audit passed, and every caveat."""
    rule, how = rule_name(card["rule"], card["scored"]["samples"]), "in-loop" if card["in_loop"] else "fresh samples"
    audit = card["audit"]
    return [
        f"the protocol's decision: {rule}, {how}",
        audit_word(dict(audit) if audit else None),
        *audit_lines(dict(audit) if audit else None),
        *caveat_lines(dict(card["config"]), dict(card["caveats"])),
    ]


def _origin(card: Card) -> list[str]:
    """What the rows were made with."""
    code, images = card["code"], card["images"]["file"]
    changed = ", with changes that are not in it" if code["dirty"] else ""
    lines = [
        f"key {card['key']}; commit {code['commit'] or 'not recorded'}{changed}, code {(code['sha256'] or '?')[:12]}",
        f"{clock(card['seconds'])} of worker time on {card['device'] or 'a device that is not recorded'}",
        *(f"{each['file']}: SHA-256 {each['sha256'] or 'not known'}" for each in card["weights"]),
    ]
    if images is not None:
        where = f", at {images['url']}" if images["url"] else ""
        lines.append(f"{images['name']}: {images['bytes']} bytes, SHA-256 {images['sha256']}{where}")
    return lines
