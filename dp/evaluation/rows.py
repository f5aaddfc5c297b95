"""Rows and units: what an evaluation does in one go, and what it writes of each image."""

from typing import NamedTuple, TypedDict

from torch import Tensor


class Row(TypedDict):
    """One image under one condition and seed. `clean`, `adv`: the class of every sample; `*_vote`: their plurality,
    with ties broken as configured; `*_mean_logits`, `*_mean_softmax`: the class of the samples' mean.
    """

    arm: str  # defended | undefended | null
    seed: int
    id: int
    label: int
    clean: list[int]  # empty under `null`, which shares those of `defended`
    clean_vote: int | None
    clean_mean_logits: int | None
    clean_mean_softmax: int | None
    adv: list[int]
    adv_vote: int
    adv_mean_logits: int
    adv_mean_softmax: int
    ties: int  # votes above that a count alone leaves tied
    seen: list[int]  # classes by the judge's samples at the image's worst point; empty without a judge
    looks: int  # in-loop evaluations, each of the attack's current point
    lost_at: int | None  # iterations done when the judge's rule first held: first broken at
    iterations: int  # done when the image was finished
    distance: float  # of the attacked image, in the threat model's norm
    nfe: int  # denoiser evaluations of one scored purification


class Unit(NamedTuple):
    """Work that is done in one go: images of one condition under one seed, one for each batch slot, or several where a
    judge drops broken images.
    """

    arm: str
    seed: int
    ids: tuple[int, ...]


class Group(NamedTuple):
    """The results of a unit: rows, attacked images x_adv (B,C,H,W) and the logits of every sample, `clean` (None under
    `null`) and `adv` (B,samples,K).
    """

    unit: Unit
    rows: list[Row]
    x_adv: Tensor
    clean: Tensor | None
    adv: Tensor
    seconds: float


class Event(NamedTuple):
    """Unit `unit` has done `step` of `steps` attack iterations; `rows` once it is scored and saved."""

    unit: Unit
    step: int
    steps: int
    rows: list[Row] | None = None
