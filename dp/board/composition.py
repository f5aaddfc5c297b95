"""Whether the configuration of a card is one that today's options give, and one that the board takes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dp.evaluation.caveats import changes
from dp.output.card import Card
from dp.runs import compose
from dp.runs.compose import Setup
from dp.runs.keys import run_key
from dp.runs.repeat import words_of_run

VERSIONED = ("protocol", "purifier", "attack", "classifier", "denoiser", "threat_model")
# What a run may change in its protocol: how many images, how many samples for each, and what a yaml remarks.
OPEN = ("protocol.images", "protocol.votes", "protocol.facts")


def todays(card: Card, config_dirs: Sequence[str | Path]) -> Setup:
    """The configuration of a card, composed anew from today's yamls. Nothing in the card is run.

    `config_dirs`: folders of plug-ins that the person who checks trusts. Raises ValueError, in one line, for a protocol
    that is not known or is changed, for another version of a method, and for a key that is not that of the
    configuration.
    """
    config: dict[str, Any] = dict(card["config"])
    folders = tuple(str(Path(folder).absolute()) for folder in config_dirs)
    choices = config["choices"]
    plain = compose.composed(*(f"{g}={option}" for g, option in choices.items() if option), config_dirs=folders)
    named = {"name": choices["protocol"], "version": plain["protocol"].get("version", 1)}
    if card["protocol"] != named:
        raise ValueError(f"need protocol {_words(named)}, that of the configuration, got {_words(card['protocol'])}")
    for group in VERSIONED:
        now, then = (_version(node, group) for node in (plain, config))
        if now != then:
            raise ValueError(f"need {group} {choices[group]} of version {now}, got {then}: run it again")
    ignored = {"key_ignores": plain["key_ignores"]}
    again = compose.composed(*words_of_run(config | ignored, folders), config_dirs=folders)
    keys = run_key(config | ignored), run_key(again)
    if set(keys) != {card["key"]}:
        got = next(key for key in keys if key != card["key"])
        raise ValueError(f"need a configuration with the key {card['key']}, got one with {got}: it was changed")
    _check_protocol(again, plain)
    return Setup(again, compose.defaults_of(again), {})


def _check_protocol(config: dict, plain: dict) -> None:
    """Raises ValueError for a run that departs from its protocol in what the board compares."""
    protocol = config["choices"]["protocol"]
    own, named = (compose.arguments(node["protocol"]) for node in (config, plain))
    for change in changes(own, named, "protocol"):
        if change.key not in OPEN:
            departs = f"{change.key} {change.value} instead of {change.reference}"
            raise ValueError(f"need protocol {protocol} as its yaml gives it, got {departs}")
    if config["protocol"]["known_draws"]:
        raise ValueError(f"need a protocol that scores with noise unknown to the attacker, got {protocol}")


def _version(config: dict, group: str) -> int:
    return (config.get(group) or {}).get("version", 1)


def _words(named: Mapping[str, Any]) -> str:
    return f"{named['name']} of version {named['version']}"
