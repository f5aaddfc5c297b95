"""Rows and units: what an evaluation does in one go, and what it writes of each image."""

from typing import NamedTuple, TypedDict

from torch import Tensor


class Row(TypedDict):
    """One image under one arm and seed. `clean`, `adv`: the class of every draw; `*_vote`: their plurality, ties broken
    as configured; `*_mean_logits`, `*_mean_softmax`: the class of the draws' mean.
    """

    arm: str  # defended | undefended | null
    seed: int
    id: int
    label: int
    clean: list[int]  # empty under `null`, which shares the defended arm's
    clean_vote: int | None
    clean_mean_logits: int | None
    clean_mean_softmax: int | None
    adv: list[int]
    adv_vote: int
    adv_mean_logits: int
    adv_mean_softmax: int
    ties: int  # votes above that a count alone leaves tied
    seen: list[int]  # the judge's classes at the image's worst point; empty without a judge
    looks: int  # of the judge, each at the point where the attack stood
    lost_at: int | None  # iterations done when the judge's rule first held
    iterations: int  # done when the image was finished
    distance: float  # of the attacked image, in the threat model's norm
    nfe: int  # denoiser evaluations of one scored purification


class Unit(NamedTuple):
    """Work that is done in one go: images of one arm under one seed, a lane each or, under a judge that retires them,
    several for each lane.
    """

    arm: str
    seed: int
    ids: tuple[int, ...]


class Group(NamedTuple):
    """What came of a unit: rows, attacked images (B,C,H,W), logits of every draw (B,draws,K; clean ones None under
    `null`).
    """

    unit: Unit
    rows: list[Row]
    x_adv: Tensor
    clean: Tensor | None
    adv: Tensor
    seconds: float


class Event(NamedTuple):
    """Unit `unit` has done `step` of `steps` attack iterations; `rows` once it is judged and saved."""

    unit: Unit
    step: int
    steps: int
    rows: list[Row] | None = None
