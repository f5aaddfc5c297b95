"""The stages of the audit. Each has noise of its own, so their names are part of every finding."""

from enum import StrEnum


class Stage(StrEnum):
    """The purpose of the noise of `Streams(ids, seed, stage)`, beside the stages of an evaluation."""

    ASIDE = "audit-aside"  # a nearby point, and the gradients at both points
    ATTACK = "audit-attack"  # the attack on the few images
    CLEAN = "audit-clean"  # accuracy of clean images
    COMPRESSION = "audit-compression"  # purifications of clean and of perturbed images
    DERIVATIVE = "audit-derivative"  # the loss that the check differentiates
    DIRECTIONS = "audit-directions"  # points and directions of central differences
    EOT = "audit-eot"  # the first query of the attack; the copies of an image in one gradient
    EOT_SAMPLES = "audit-eot-draws"  # single samples of a gradient
    FLAGS = "audit-flags"  # logits for the warnings of AutoAttack
    GRADIENT = "audit-gradient"  # gradients whose zero pixels are counted
    LEVELS = "audit-levels"  # noise levels of a purification
    MEMORY = "audit-memory"  # answers in different situations
    METHODS = "audit-methods"  # gradients of several gradient modes
    NOISE = "audit-noise"  # purifications that are compared bit for bit
    NOISE_SIZE = "audit-noise-size"  # noise of the threat model, to compare the null control's with
    PRECISION = "audit-precision"  # gradients in two precisions
    RADIUS = "audit-radius"  # the attack whose iterates are followed
    REACH = "audit-reach"  # whether a gradient reaches the image
    RECOMPUTE = "audit-recompute"  # gradients with and without activation checkpointing
    RESCORE = "audit-rescore"  # fresh samples of saved images
    STEP = "audit-step"  # the first step of the attack
    TRAJECTORY = "audit-look"  # the iterates of the attack
    TRAJECTORY_AGAIN = "audit-look-again"  # the returned points
