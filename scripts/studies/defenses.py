"""Every defense that runs on a diffusion model, on digits: honest robustness beside that under its published attack.

Each defense is run under the converged budget of `strict` with its exact gradient (or the honest one that its yaml
names), and under the attack that was published for it, with PGD's full budget on digits: its authors' own, and for
DiffPure's discrete form that of Lee and Kim. 128 images, 3 seeds, 20 fresh samples. Those whose gradient may mislead
are also attacked by decisions alone, on 32 images and one seed, and compared with their own row under strict on the
same images: a decision costs 11 samples, and an image takes 1900 of them. DiffPure and the five defenses that are most
robust under strict are run under it on 512 images, too, when all runs of strict are there.
Every cell is a run that is archived in results/measured/ when it ends, so that the same command goes on where it
stopped. `--only` limits the cells of this start, `--list` shows which are missing, and `--write` writes
results/tables/defenses.md, .csv and results/figures/defenses.png from the cells that are there.
"""

import sys
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import outputs
import pandas as pd
import worklist
from cells import RESULTS, finished, markdown
from rich.console import Console
from worklist import Run, archived

from dp.output import record, report
from dp.output.archived import read_rows
from dp.runs.errors import command
from dp.statistics.intervals import paired

TABLE = RESULTS / "tables" / "defenses.csv"
TEXT, PICTURE = TABLE.with_suffix(".md"), RESULTS / "figures" / "defenses.png"
HONEST = ("+experiment=digits/strict", "audit=true")
MASKED = ("+experiment=digits/strict_mask", "audit=true")
SCALED = ("+experiment=digits/scaled", "protocol.votes=20", "audit=true")
FEW = 32  # images that are attacked by decisions alone
DECISION = (
    *SCALED,
    f"protocol.images={FEW}",
    "protocol.seeds=[2024]",
    "attack=decision",
    "attack.iterations=20",
    "attack.directions=100",
)
IMAGES, MANY, SEEDS, LEADERS = 128, 512, 3, 5
OF = 10  # samples in the worst-of column
RULES = ("single", "average", "vote")
console = Console(width=150, highlight=False)


class Method(NamedTuple):
    """A defense, and the attack of its authors.

    `cost`: of a run, relative to that of `diffpure`. `authors`: overrides of the authors' attack with PGD's full budget
    on digits; none where they published none or no attack of ours stands for it. `by_seed`: each seed is archived when
    it ends, since all three take too long. `rough`: its gradient may mislead, so it is attacked by decisions, too.
    """

    name: str
    overrides: tuple[str, ...]
    cost: float
    authors: tuple[str, ...] = ()
    masked: bool = False
    by_seed: bool = False
    rough: bool = False


BPDA = ("attack=bpda_eot", "attack.attack.iterations=20")
BARE = ("purifier=none", "classifier=digits_at")  # rows that are not about a purifier
MENET = ("purifier=menet", "classifier=digits_menet")
LM = ("attack=apgd_dlr", "attack.iterations=20", "threat_model.grad=identity")


def pgd(grad: str, attack: str = "pgd_eot") -> tuple[str, ...]:
    """PGD along a gradient variant."""
    return (f"attack={attack}", "attack.iterations=20", f"threat_model.grad={grad}")


METHODS = (
    Method("no defense", ("purifier=none",), 0.1),
    Method("adversarial training", ("purifier=none", "classifier=digits_at"), 0.1),
    Method("adversarial training, DiffPure", ("purifier=diffpure", "classifier=digits_at"), 1.0),
    Method("DiffPure, DDIM", ("purifier=diffpure",), 1.0, pgd("surrogate")),
    Method("ADBM", ("purifier=diffpure", "denoiser=digits_adbm"), 1.0),
    Method("DiffPure, DDPM", ("purifier=diffpure_ddpm",), 1.0, BPDA),
    Method("DiffPure, DDPM, x0 clipped", ("purifier=diffpure_guided",), 1.0, BPDA),
    Method("DiffPure, SDE", ("purifier=diffpure_sde",), 4.0, pgd("adjoint"), by_seed=True),
    Method("DiffPure, ODE", ("purifier=diffpure_ode",), 2.0, pgd("adjoint")),
    Method("DiffPure, LDSDE", ("purifier=diffpure_ldsde",), 2.0, pgd("adjoint")),
    Method("one-shot denoising", ("purifier=one_shot",), 0.3),
    Method("consistency model", ("purifier=diffpure", "purifier.steps=1", "denoiser=digits_consistency"), 0.3),
    Method("Lee and Kim", ("purifier=lee_kim",), 1.6, pgd("surrogate")),
    Method("GDMP, MSE", ("purifier=gdmp",), 2.0, BPDA),
    Method("GDMP, SSIM", ("purifier=gdmp_ssim",), 3.0, BPDA, by_seed=True, rough=True),
    Method("GDMP, SSIM, constant guide", ("purifier=gdmp_ssim", "threat_model.grad=constant_guide"), 3.0, by_seed=True),
    Method("MimicDiffusion", ("purifier=mimic",), 2.0, pgd("diffpure"), rough=True),
    Method("contrastive guidance", ("purifier=contrastive",), 8.0, pgd("constant_residual"), by_seed=True),
    Method("LoRID, our reading", ("purifier=lorid",), 2.0),
    Method("FreqPure", ("purifier=freqpure",), 2.0, pgd("surrogate")),
    Method("SSNI", ("purifier=ssni",), 2.5, pgd("surrogate"), by_seed=True),
    Method("MANI-Pure, our reading", ("purifier=mani",), 2.0, pgd("surrogate")),
    Method("ADP", ("purifier=adp",), 5.0, BPDA, by_seed=True),
    Method("ADP, BPDA", ("purifier=adp", "threat_model.grad=bpda"), 5.0, by_seed=True),
    Method("Langevin", ("purifier=langevin",), 25.0, BPDA, by_seed=True),
    Method("Langevin, BPDA", ("purifier=langevin", "threat_model.grad=bpda"), 12.0, by_seed=True),
    Method("FlowPure", ("purifier=flowpure", "denoiser=digits_flow"), 1.0, pgd("surrogate")),
    Method("LM", ("purifier=likelihood",), 2.5, LM, by_seed=True, rough=True),
    Method("ScoreOpt, x0", ("purifier=scoreopt",), 5.0, pgd("identity"), by_seed=True, rough=True),
    Method("ScoreOpt, xt", ("purifier=scoreopt_xt",), 3.0, pgd("identity"), by_seed=True, rough=True),
    Method("RDC", ("purifier=likelihood", "classifier=rdc"), 20.0, LM, by_seed=True),
    Method("hetero, strong inside (Eq. 5)", ("purifier=hetero",), 1.4, pgd("surrogate"), masked=True),
    Method(
        "hetero, strong outside (Eq. 8)",
        ("purifier=hetero", "purifier.eq8_literal=true"),
        1.4,
        pgd("surrogate"),
        masked=True,
    ),
    Method(
        "hetero_official",
        ("purifier=hetero_official",),
        4.0,
        pgd("surrogate", "pgd_eot_official"),
        masked=True,
        by_seed=True,
    ),
    Method("ME-Net", MENET, 0.3, BPDA, rough=True),
    Method("ME-Net, BPDA", (*MENET, "threat_model.grad=bpda"), 0.3),
    Method("ME-Net, projection", (*MENET, "threat_model.grad=projection"), 0.3),
    Method("IMPure, convolutional", ("purifier=impure",), 0.8, pgd("blind")),
    Method("AToP, RT2", ("purifier=atop",), 0.4),
    Method(
        "PixelDefend", ("purifier=pixeldefend", "dataset.draws_per_call=1"), 4.0, pgd("blind"), by_seed=True
    ),  # deterministic
)
BASELINE = next(method for method in METHODS if method.name == "DiffPure, DDIM")
TITLES = {
    "strict": "Under strict with the converged budget",
    "authors": "Under the attack that was published for each",
    "many": f"Under strict with the converged budget, {MANY} images",
    "decision": f"By decisions alone, {FEW} images, one seed",
}
SIDES = tuple(TITLES)
RELATIVE = {"strict": 1.0, "authors": 0.15, "many": MANY / IMAGES, "decision": 1.0}  # the cost of a run on each side


def overrides(method: Method, side: str) -> tuple[str, ...] | None:
    """The run of a method under `strict`, its published attack or `decision`; None where there is none.

    `many` is `strict` on more images.
    """
    honest = (*(MASKED if method.masked else HONEST), *method.overrides)
    if side == "strict":
        return honest
    if side == "many":
        return (*honest, f"protocol.images={MANY}")
    if side == "decision":
        return (*DECISION, *method.overrides) if method.rough else None
    return (*SCALED, *method.overrides, *method.authors) if method.authors else None


def leaders() -> list[Method]:
    """The purifiers that are most robust under `strict` before the usual classifier, the best first; none before all of
    its runs are there.
    """
    found = []
    for method in METHODS:
        given = overrides(method, "strict")
        if given is None or not archived(given):
            return []
        found.append((finished(given)[0]["robust"]["average"]["value"], method))
    ranked = [method for _, method in sorted(found, key=lambda one: -one[0])]
    ranked = [method for method in ranked if method is not BASELINE and not {*BARE} & {*method.overrides}]
    return ranked[:LEADERS]


def methods_of(side: str) -> tuple[Method, ...]:
    """The methods that run on a side."""
    if side != "many":
        return METHODS
    found = leaders()
    return (BASELINE, *found) if found else ()


def todo() -> list[Run]:
    """The runs that are not archived, the cheapest first. A cost is relative to that of `diffpure` under `strict`."""
    cells = []
    for side in SIDES:
        for method in methods_of(side):
            given, more = overrides(method, side), side == "many"
            if given is not None and not archived(given):
                cost = method.cost * RELATIVE[side]
                cells.append(Run(" ".join(given), given, cost, more or (method.by_seed and side != "decision")))
    return sorted(cells, key=lambda run: run.cost)


def line(method: Method, side: str, baseline: pd.Series | None) -> dict | None:
    """A run of a method as data, in percent; None where it is missing.

    `baseline`: the average score of each image that the run is compared with.
    """
    given = overrides(method, side)
    if given is None or not archived(given):
        return None
    summary, folder = finished(given)
    protocol = summary["config"]["protocol"]
    seconds = summary["seconds"] / (protocol["images"] * len(protocol["seeds"]))
    found: dict = {"method": method.name, "side": side, "seconds": seconds, "worker": summary["seconds"]}
    found |= {f"standard_{rule}": summary["standard"][rule]["value"] for rule in RULES}
    found |= {rule: summary["robust"][rule]["value"] for rule in RULES}
    found |= {"worst": summary["curves"]["robust"]["worst"]["value"][OF - 1]}
    found |= dict(zip(("low", "high"), summary["robust"]["average"]["wilson95"], strict=True))
    found |= {"null": summary["null"]["average"]["value"], "nfe": summary["caveats"]["nfe"]}
    found |= {"gradient": report.gradient_words(summary["caveats"]), "audit": report.audit_word(summary["audited"])}
    if baseline is not None:
        scores = averages(read_rows(folder))
        taken = paired(baseline.loc[scores.index].to_numpy(), scores.to_numpy())
        found |= dict(zip(("gain", "gain_low", "gain_high"), (100 * float(v) for v in taken), strict=True))
    return found | {"command": "python run.py " + " ".join(given)}


def averages(rows: list[dict]) -> pd.Series:
    """The share of right fresh samples of each attacked image, averaged over seeds, by image."""
    scores: dict[int, list[float]] = {}
    for row in (r for r in rows if r["arm"] == "defended"):
        scores.setdefault(row["id"], []).append(float(np.mean(np.array(row["adv"]) == row["label"])))
    return pd.Series({image: float(np.mean(values)) for image, values in scores.items()})


def compared(method: Method, side: str) -> pd.Series | None:
    """What a run is compared with, by image: the baseline on the same side, and by decisions the method's own run under
    strict, on the first seed. None where that run is missing.
    """
    own = side == "decision"
    given = overrides(method, "strict") if own else overrides(BASELINE, side)
    if given is None or not archived(given):
        return None
    summary, folder = finished(given)
    rows, first = read_rows(folder), summary["config"]["protocol"]["seeds"][0]
    return averages([row for row in rows if row["seed"] == first] if own else rows)


def lines() -> list[dict]:
    """All lines that can be made: sides of methods whose runs are archived, the most robust first."""
    found = [line(method, side, compared(method, side)) for side in SIDES for method in methods_of(side)]
    return sorted((one for one in found if one is not None), key=lambda one: -one["average"])


def text(found: list[dict], left: int) -> str:
    """The lines as two tables for people."""
    columns = ["defense", "standard", "vote", "robust, average of 20", "95 %", "single", "vote", f"worst of {OF}"]
    end = ["95 %", "null", "gradient", "NFE", "seconds per image", "audit"]
    tables = []
    for side, title in TITLES.items():
        rows = [cells_of(one) for one in found if one["side"] == side]
        other = "strict on these images" if side == "decision" else BASELINE.name
        tables.append(markdown(title, [*columns, f"minus {other}", *end], rows))
    commands = [[one["method"], one["side"], f"`{one['command']}`"] for one in found]
    tables.append(markdown("Commands", ["defense", "attack", ""], commands))
    duration = report.clock(sum(one["worker"] for one in found))
    head = (
        "# Every defense on a diffusion model, on digits\n\n`python scripts/studies/defenses.py`: 128 images, 3 seeds, "
        f"linf 32/255, percent; {duration} of worker time. Intervals are over "
        "images, and not corrected for the number of comparisons. Null: random noise of the same size. Seconds: attack "
        "and scoring of one image of one seed on one core that may have been shared.\n\n"
    )
    return head + "\n".join(tables) + (f"\n{left} runs are not measured yet.\n" if left else "")


def cells_of(one: dict) -> list[str]:
    """The cells of a line."""
    gain = ["", ""]
    if "gain" in one and one["method"] != BASELINE.name:
        gain = [f"{one['gain']:+.1f}", f"{one['gain_low']:+.1f} to {one['gain_high']:+.1f}"]
    figures = [f"{one[name]:.1f}" for name in ("standard_average", "standard_vote", "average")]
    rest = [f"{one[name]:.1f}" for name in ("single", "vote", "worst")]
    end = [f"{one['null']:.1f}", one["gradient"], str(one["nfe"]), f"{one['seconds']:.1f}", one["audit"]]
    return [one["method"], *figures, f"{one['low']:.1f} - {one['high']:.1f}", *rest, *gain, *end]


def draw(path: Path, found: list[dict]) -> None:
    """Standard against robust accuracy: honest (dot) and under the published attack (ring), joined by a line. A number
    names the defense, by its rank under strict.
    """
    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    by_side = {(one["method"], one["side"]): one for one in found}
    figure, ax = plt.subplots(figsize=(10, 7), layout="constrained")
    honest = [one for one in found if one["side"] == "strict"]
    placed: list[tuple[float, float]] = []
    for k, one in enumerate(honest):
        theirs, color = by_side.get((one["method"], "authors")), plt.get_cmap("tab20")(k % 20)
        x, y = one["standard_average"], one["average"]
        if theirs is not None:
            ax.plot((x, theirs["standard_average"]), (y, theirs["average"]), color=color, linewidth=1)
            ax.plot(theirs["standard_average"], theirs["average"], "o", mfc="white", color=color)
        ax.plot(x, y, "o", color=color, label=f"{k + 1}  {one['method']}: {y:.1f}")
        placed.append(free_place(x, y, placed))
        thin = {"arrowstyle": "-", "linewidth": 0.5}
        ax.annotate(str(k + 1), (x, y), xytext=placed[-1], fontsize=9, va="center", arrowprops=thin)
    ax.set(xlabel="standard accuracy, average of 20 (%)", ylabel="robust accuracy, average of 20 (%)")
    ax.set_title("digits, linf 32/255: under strict (dot) and under the published attack (ring)", fontsize=10)
    ax.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def free_place(x: float, y: float, taken: list[tuple[float, float]]) -> tuple[float, float]:
    """A place for a number beside a point, in percent, that no other number has: the nearest one downward."""
    place = (x + 0.08, y)
    while any(abs(place[0] - a) < 0.1 and abs(place[1] - b) < 2.5 for a, b in taken):
        place = (place[0], place[1] - 0.5)
    return place


def main() -> int:
    """The command. Returns 0 when the tables and the figure are written."""
    args = worklist.started(__doc__, todo, console)
    if args is None:
        return 0
    found = lines()
    if not found:
        raise ValueError("need at least one archived defense, got none: start the study without --only 0")
    table, words, picture = (outputs.target(path, args.write) for path in (TABLE, TEXT, PICTURE))
    pd.DataFrame(found).to_csv(table, index=False, float_format="%.4f")
    record.write_atomic(words, text(found, len(todo())).encode())
    draw(picture, found)
    console.print(f"{table}, {words}, {picture}")
    return 0


if __name__ == "__main__":
    sys.exit(command(main))
