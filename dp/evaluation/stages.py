"""The stages of an evaluation. Each has noise of its own, so their names are part of every result."""

from enum import StrEnum


class Stage(StrEnum):
    """The purpose of the noise of `Streams(ids, seed, stage)`."""

    ATTACK = "attack"  # the attack's own queries and random points
    SELECT = "select"  # the in-loop evaluations
    CLEAN = "clean"  # the score of the clean images
    ADV = "adv"  # the score of the attacked images
    NULL = "null"  # the null control's random points; below, its in-loop evaluations and its score
    NULL_SELECT = "null-select"
    NULL_ADV = "null-adv"
