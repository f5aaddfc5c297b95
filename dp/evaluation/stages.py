"""The stages of an evaluation, each with noise of its own; the names are part of every result."""

from enum import StrEnum


class Stage(StrEnum):
    """What the noise of `Streams(ids, seed, stage)` is for."""

    ATTACK = "attack"  # the attack's own queries and random points
    SELECT = "select"  # a judge's evaluations during the attack
    CLEAN = "clean"  # the score of the clean images
    ADV = "adv"  # the score of the attacked images
    NULL = "null"  # the same three of the random-noise baseline
    NULL_SELECT = "null-select"
    NULL_ADV = "null-adv"
