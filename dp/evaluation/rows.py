"""Units, the pieces of work of an evaluation, and rows, the results for each image."""

from typing import NamedTuple, TypedDict

from torch import Tensor

from dp.evaluation.loss_curve import Point


class Row(TypedDict):
    """The result of one image under one condition and seed.

    `clean`, `adv`: the class of every sample of the clean and of the attacked image. `*_vote`: their plurality, with
    ties broken as configured. `*_mean_logits`, `*_mean_softmax`: the class of the mean over the samples.
    """

    arm: str  # defended | undefended | null
    seed: int
    id: int
    label: int
    clean: list[int]  # empty under `null`, whose clean images are those of `defended`
    clean_vote: int | None
    clean_mean_logits: int | None
    clean_mean_softmax: int | None
    adv: list[int]
    adv_vote: int
    adv_mean_logits: int
    adv_mean_softmax: int
    ties: int  # how many of the two votes were tied before the tie was broken
    seen: list[int]  # classes of the in-loop samples at the worst point; empty without in-loop evaluation
    looks: int  # number of in-loop evaluations
    lost_at: int | None  # iterations done when the in-loop rule first called the image broken
    iterations: int  # iterations of the attack on this image
    distance: float  # of the attacked image from the clean one, in the threat model's norm
    nfe: int  # denoiser evaluations of one scored purification


class Unit(NamedTuple):
    """A piece of work: images under one condition and seed, one for each batch slot.

    If broken images are dropped, a unit has several images for each slot.
    """

    arm: str
    seed: int
    ids: tuple[int, ...]


class Group(NamedTuple):
    """The results of a unit: rows, attacked images, the logits of every sample, the seconds it took, and loss curves.

    `x_adv`: (B,C,H,W) in [0,1]; `clean`, `adv`: (B,samples,K), with `clean` None under `null`; `curves`:
    (B,iterations,3), the `Point` of every iteration, NaN behind the end of an image's attack. `unrepeatable`: names of
    torch's operations that may give other last bits when they are computed again, see `dp.repeatable`.
    """

    unit: Unit
    rows: list[Row]
    x_adv: Tensor
    clean: Tensor | None
    adv: Tensor
    seconds: float
    curves: Tensor | None = None
    unrepeatable: tuple[str, ...] = ()


class Event(NamedTuple):
    """Progress: `step` of `steps` attack iterations of a unit are done. `rows` is set when it is scored and saved.

    `point`: the means over the images of the newest iteration, before that.
    """

    unit: Unit
    step: int
    steps: int
    rows: list[Row] | None = None
    point: Point | None = None
