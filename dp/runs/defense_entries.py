"""The defenses of docs/defenses.md: where each comes from, how its authors attacked it, and its rows."""

from typing import NamedTuple

DATASETS = ("digits", "cifar10", "imagenet")  # whose values are shown


class Entry(NamedTuple):
    """A defense of docs/defenses.md.

    `option`: of the group. `section`: the heading that describes it. `paper`: its source. `rows`: the names of its rows
    in `MEASURED`. `authors`: overrides of its authors' attack; `remark`: words for the reader beside them, or in their
    place. `beside`: gradient modes that an honest evaluation has besides the first one.
    """

    option: str
    section: str
    paper: str
    rows: tuple[str, ...] = ()
    authors: tuple[str, ...] = ()
    remark: str = ""
    beside: tuple[str, ...] = ()
    group: str = "purifier"
    datasets: tuple[str, ...] = DATASETS

    @property
    def words(self) -> tuple[str, ...]:
        """The words of a command that choose it."""
        own = f"{self.group}={self.option}"
        before = {"denoiser": ("purifier=diffpure", "purifier.steps=1"), "classifier": ("purifier=none",)}
        return (*before.get(self.group, ()), own)


NIE, ZHANG, PEI = "Nie et al. 2022", "Zhang et al. 2023", "Pei et al. 2025"
BPDA, DLR, SURROGATE = ("attack=bpda_eot",), ("attack=apgd_dlr",), ("threat_model.grad=surrogate",)
ADJOINT, IDENTITY = ("threat_model.grad=adjoint",), ("threat_model.grad=identity",)
BLIND = ("threat_model.grad=blind",)
DIFFPURE, RESIDUAL = ("threat_model.grad=diffpure",), ("threat_model.grad=constant_residual",)
SSIM = ("GDMP, SSIM", "GDMP, SSIM, constant guide")  # the rows of one defense by two gradients
ENERGY, BOTH = ("Langevin", "Langevin, BPDA"), ("bpda",)  # the rows of one defense by two gradients
MASKS = ("mask_soft", "mask_straight_through")
STEPS, SCORE = "DiffPure with DDPM steps", "Score-based optimization, form"
ENTRIES = (
    Entry("diffpure", "DiffPure", NIE, ("DiffPure, DDIM", "ADBM"), SURROGATE, "Lee and Kim's attack on it"),
    Entry("diffpure_ddpm", STEPS, NIE, ("DiffPure, DDPM",), BPDA),
    Entry("diffpure_guided", STEPS, NIE, ("DiffPure, DDPM, x0 clipped",), BPDA),
    Entry("diffpure_sde", "DiffPure, reverse SDE", NIE, ("DiffPure, SDE",), ADJOINT),
    Entry("diffpure_ode", "DiffPure, probability-flow ODE", NIE, ("DiffPure, ODE",), ADJOINT),
    Entry("diffpure_ldsde", "DiffPure, LDSDE", NIE, ("DiffPure, LDSDE",), ADJOINT),
    Entry("one_shot", "One-shot denoising", "Carlini et al. 2023", ("one-shot denoising",), (), "none: certified"),
    Entry("lee_kim", "Gradual noise scheduling", "Lee and Kim 2023", ("Lee and Kim",), SURROGATE),
    Entry("gdmp", "GDMP", "Wang et al. 2022", ("GDMP, MSE",), BPDA),
    Entry("gdmp_ssim", "GDMP with SSIM", "Wang et al. 2022", SSIM, BPDA, beside=("constant_guide",)),
    Entry("mimic", "MimicDiffusion", "Song et al. 2024", ("MimicDiffusion",), DIFFPURE, "a transfer"),
    Entry("contrastive", "Contrastive guidance", "Bai et al. 2024", ("contrastive guidance",), RESIDUAL),
    Entry("lorid", "LoRID", "Zollicoffer et al. 2025", ("LoRID, our reading",), (), "not public"),
    Entry("freqpure", "FreqPure", PEI, ("FreqPure",), SURROGATE),
    Entry("ssni", "SSNI", "Sun et al. 2025", ("SSNI",), SURROGATE),
    Entry(
        "mani",
        "MANI-Pure",
        "Huang et al. 2025",
        ("MANI-Pure, our reading",),
        SURROGATE,
        "freqpure's; theirs is not public",
    ),
    Entry("adp", "ADP", "Yoon et al. 2021", ("ADP", "ADP, BPDA"), BPDA, beside=BOTH, datasets=DATASETS[:2]),
    Entry("langevin", "Langevin dynamics", "Hill et al. 2021", ENERGY, BPDA, beside=BOTH, datasets=DATASETS[:2]),
    Entry("flowpure", "FlowPure", "Collaert et al. 2025", ("FlowPure",), SURROGATE, "in DiffHammer"),
    Entry("likelihood", "Likelihood maximization", "Chen et al. 2024", ("LM",), (*DLR, *IDENTITY)),
    Entry("scoreopt", f"{SCORE} x0", ZHANG, ("ScoreOpt, x0",), IDENTITY),
    Entry("scoreopt_xt", f"{SCORE} xt", ZHANG, ("ScoreOpt, xt",), IDENTITY, "and `one_shot`"),
    Entry(
        "hetero",
        "Heterogeneous noise, the paper",
        "arXiv 2503.01407",
        ("hetero, strong inside (Eq. 5)", "hetero, strong outside (Eq. 8)"),
        SURROGATE,
        beside=MASKS,
    ),
    Entry(
        "hetero_official",
        "Heterogeneous noise, the released code",
        "arXiv 2503.01407",
        ("hetero_official",),
        ("attack=pgd_eot_official", *SURROGATE),
        beside=MASKS,
    ),
    Entry(
        "rdc",
        "Diffusion classifier",
        "Chen et al. 2023",
        ("RDC",),
        DLR,
        "with LM's gradient mode",
        group="classifier",
        datasets=DATASETS[:2],
    ),
    Entry(
        "digits_consistency",
        "Consistency Purification",
        "Li et al. 2024",
        ("consistency model",),
        (),
        "none: certified",
        group="denoiser",
        datasets=DATASETS[:1],
    ),
    Entry(
        "digits_at",
        "Adversarial training",
        "Madry et al. 2018",
        ("adversarial training", "adversarial training, DiffPure"),
        (),
        "PGD on the exact gradient",
        group="classifier",
        datasets=DATASETS[:1],
    ),
    Entry(
        "menet",
        "ME-Net",
        "Yang et al. 2019",
        ("ME-Net", "ME-Net, BPDA", "ME-Net, projection"),
        BPDA,
        beside=("bpda", "projection"),
    ),
    Entry("impure", "IMPure", "Liu et al. 2023", ("IMPure, convolutional",), BLIND, "gray-box"),
    Entry("atop", "AToP", "Lin et al. 2024", ("AToP, RT2",), (), "AutoAttack on the exact gradient, as in `strict`"),
    Entry("pixeldefend", "PixelDefend", "Song et al. 2018", ("PixelDefend",), BLIND, "of the bare classifier"),
)
