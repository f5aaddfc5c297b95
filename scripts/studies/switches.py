"""The ablation: the effect of every switch and every protocol on the robust accuracy of one defense.

The study runs them all on digits and writes results/tables/switches.md. It goes on where it stopped. Every line is a
run with the overrides that it shows. The base is the released code's method (purifier=hetero_official) under
protocol=official, with its grid scaled to 20 network evaluations. The study takes about half an hour on two cores.
"""

import sys
from pathlib import Path

import numpy as np
import outputs
from cells import finished, markdown
from rich import box
from rich.console import Console
from rich.table import Table
from safetensors.numpy import load_file

from dp.output import report
from dp.output.row_table import rule_name
from dp.runs.errors import command
from dp.statistics.intervals import mcnemar

ROOT = Path(__file__).parents[2]
BASE = ("purifier=hetero_official", "protocol.images=64", "protocol.seeds=[2024]")
OFFICIAL = (*BASE, "protocol=official")
SWITCHES = {  # description: overrides on top of protocol=official
    "the released code's method and protocol": (),
    "mask from the classifier's own input (deviation 8)": ("purifier.mask_input_bug=false",),
    "first commit's tau .85": ("purifier.tau=0.85",),
    "first commit's jump 10 (deviation 21)": ("purifier.jump=10",),
    "t_s .05, the paper's best (deviation 29)": ("purifier.t_s=0.05",),
    "the middle revision: no second stage (deviation 33)": ("purifier=hetero_official_rev_b",),
    "attack grid n = 20, sees the mask (deviation 31)": ("purifier.gradients.surrogate.n=20",),
    "exact gradient (deviation 32)": ("threat_model.grad=full",),
    "exact gradient, soft mask (deviation 10)": ("threat_model.grad=mask_soft",),
    "exact gradient, straight-through mask (deviation 10)": ("threat_model.grad=mask_straight_through",),
    "random start (deviation 34)": ("attack=pgd_eot",),
    "exact gradient, random start, 4 times the samples": ("attack=pgd_eot", "threat_model.grad=full", "attack.eot=16"),
    "BPDA, identity at the surrogate's output (deviation 36)": ("attack=bpda_eot_official",),
    "AutoAttack as the package runs it (deviation 40)": ("attack=autoattack_upstream",),
    "AutoAttack with decisions on means, exact gradient": ("attack=autoattack", "threat_model.grad=full"),
}
PROTOCOLS = ["paper", "official", "lee_kim", "hill", "diffhammer", "diffbreak_single", "diffbreak_vote"]
PROTOCOLS += ["dwbox", "liu_fixed_aa", "strict", "null_control"]  # not diffpure: hetero_official has no adjoint


def finished_run(overrides: tuple[str, ...]) -> dict:
    """The summary of the run with these overrides, with the folder of its predictions under `folder`."""
    summary, folder = finished(overrides)
    return {**summary, "folder": ROOT / "results" / "measured" / folder.name}


def votes(summary: dict) -> np.ndarray:
    """(images,): True if the vote of an attacked image is right. A tie goes to the lowest class."""
    arrays = load_file(summary["folder"] / "verdicts.safetensors")
    classes, labels = arrays["defended.adv"][0], arrays["labels"]
    return np.array([np.bincount(samples).argmax() == label for samples, label in zip(classes, labels, strict=True)])


def headline(summary: dict) -> tuple[str, dict, dict, dict | None]:
    """The protocol's rule in words, and its standard, robust and null figures by this rule."""
    rule, robust, null = report.headline(summary)
    words = rule_name(rule, summary[robust][rule]["draws"]) + (", in-loop" if robust == "seen" else "")
    return words, summary["standard"][rule], summary[robust][rule], summary.get(null, {}).get(rule)


def line(name: str, summary: dict, against: str) -> list[str]:
    """The cells of one run. `against`: its comparison with the first run, in words."""
    rule, standard, robust, null = headline(summary)
    low, high = robust["wilson95"]
    attacked = f"{summary['config']['choices']['attack']}, {report.gradient_words(summary['caveats'])}"
    cells = [f"{standard['value']:.1f}", f"{robust['value']:.1f}", f"{low:.1f} - {high:.1f}"]
    return [name, attacked, rule, *cells, f"{null['value']:.1f}" if null else "-", against]


def main() -> int:
    """The command. Returns 0 when the table is written."""
    args = outputs.parser(__doc__).parse_args()
    summaries = {name: finished_run((*OFFICIAL, *overrides)) for name, overrides in SWITCHES.items()}
    base, switches = votes(next(iter(summaries.values()))), []
    for (name, overrides), summary in zip(SWITCHES.items(), summaries.values(), strict=True):
        right = votes(summary)
        wrong_now, right_now = int((base & ~right).sum()), int((~base & right).sum())
        against = f"-{wrong_now} +{right_now}, p = {mcnemar(base, right):.2g}" if overrides else ""
        switches.append([*line(name, summary, against), " ".join(overrides)])
    protocols = []
    for name in PROTOCOLS:
        extra = ("protocol.votes=20",) if name == "hill" else ()
        given = (*BASE, f"protocol={name}", *extra)
        protocols.append([*line(name, finished_run(given), "")[:-1], " ".join(given[3:])])
    head = ["", "attack, gradient", "rule", "standard", "robust", "95 %", "null control"]
    tables = (
        (
            "Switches, under protocol=official",
            [*head, "votes turned wrong and right, McNemar", "overrides"],
            switches,
        ),
        ("Protocols, all but diffpure, which needs an adjoint gradient", [*head, "overrides"], protocols),
    )
    images = next(iter(summaries.values()))["robust"]["single"]["n"]
    text = "# The effect of every switch and every protocol on hetero_official, on digits\n\n"
    text += f"`python scripts/studies/switches.py`; every line adds its overrides to `{' '.join(BASE)}`; percent "
    text += f"of {images} "
    text += "images, one seed; linf 32/255, quick attack budgets. Intervals are over images: a difference of a few "
    text += "points between two lines is noise; McNemar compares votes of the same images with the first line's; "
    text += "the p are not corrected for their number.\n\n"
    path = outputs.target(ROOT / "results" / "tables" / "switches.md", args.write)
    path.write_text(text + "\n".join(markdown(*table) for table in tables))
    for title, columns, lines in tables:
        shown = Table(*columns[:-1], title=title, box=box.SIMPLE_HEAD)
        for cells in lines:
            shown.add_row(*cells[:-1])
        Console(width=180).print(shown)
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(command(main))
