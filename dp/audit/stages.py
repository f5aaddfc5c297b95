"""The stages of the audit, each with noise of its own; the names are part of every finding."""

from enum import StrEnum


class Stage(StrEnum):
    """What the noise of `Streams(ids, seed, stage)` is for, beside the stages of an evaluation."""

    ASIDE = "audit-aside"  # the step aside and the gradients at both points
    ATTACK = "audit-attack"  # the attack on the few images
    CLEAN = "audit-clean"  # accuracy of clean images
    DERIVATIVE = "audit-derivative"  # the loss that is differentiated
    DIRECTIONS = "audit-directions"  # points and directions of the differences
    EOT = "audit-eot"  # the first query of the attack, or the copies of an image in one gradient
    EOT_SAMPLES = "audit-eot-draws"  # single samples of a gradient
    FLAGS = "audit-flags"
    GRADIENT = "audit-gradient"  # gradients of which pixels are zero
    LEVELS = "audit-levels"  # noise levels of a purification
    METHODS = "audit-methods"  # gradients of several gradient modes
    NOISE = "audit-noise"  # purifications that are compared
    REACH = "audit-reach"  # whether a gradient reaches the image
    RECOMPUTE = "audit-recompute"
    RESCORE = "audit-rescore"
    STEP = "audit-step"
    TRAJECTORY = "audit-look"  # the iterates of the attack
    TRAJECTORY_AGAIN = "audit-look-again"  # what was returned
