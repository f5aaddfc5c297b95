"""Is any single attack stronger than the worst case over attacks that protocol=strict reports?

Runs every attack against one defense on digits under strict, on the same images and scored by the same samples, or goes
on where it stopped. Writes results/tables/strongest-<purifier>.md: paired differences to the worst case over attacks,
and of every black-box attack to the strongest white-box one.

    python scripts/studies/strongest.py purifier=hetero protocol.images=64
"""

import sys
from pathlib import Path

import numpy as np
import outputs
from cells import finished, markdown, scores
from rich import box
from rich.console import Console
from rich.table import Table

from dp.runs import compose
from dp.runs.errors import command
from dp.statistics.intervals import mcnemar, paired

ROOT = Path(__file__).parents[2]
BASE = ("+experiment=digits/scaled", "protocol=strict", "protocol.seeds=[2024]")
WHITE: dict[str, tuple[str, ...]] = {
    "apgd_ce": (),
    "apgd_dlr": (),
    "apgd_t": (),
    "autoattack": (),
    "pgd_eot": (),
    "surrogate": ("attack=pgd_eot", "threat_model.grad=surrogate"),
    "diffattack": (),
    "diffhammer": (),
    "bpda_eot": (),
    "bpda_eot_hill": (),
}
MASKED = {"through_mask_soft": (), "through_mask_straight_through": ()}
BLACK = {  # an in-loop evaluation after every query would cost more than the attack
    "square": ("attack.iterations=1000", "protocol.judge.every=100"),
    "transfer": (),
    "spsa": (),
}
console = Console(width=130, highlight=False)


def against(one: np.ndarray, other: np.ndarray) -> str:
    """One minus other in points, with its paired 95 % interval; STRONGER if all of it is below zero."""
    difference, low, high = (100 * v for v in paired(other, one))
    return f"{difference:+.1f} [{low:+.1f}, {high:+.1f}]" + (" STRONGER" if high < 0 else "")


def main() -> int:
    parser = outputs.parser(__doc__)
    parser.add_argument("overrides", nargs="*", help="as for dp run, for the defense and the number of images")
    args = parser.parse_args()
    given = tuple(args.overrides)
    variants = compose.composed(*BASE, *given)["purifier"].get("gradients") or {}
    masked = bool(variants.get("mask_soft"))
    union = "strict_mask" if masked else "strict"
    attacks = {union: (), **WHITE, **(MASKED if masked else {}), **BLACK}
    found = {}
    for name, extra in attacks.items():
        named = () if any(override.startswith("attack=") for override in extra) else (f"attack={name}",)
        summary, folder = finished((*BASE, *given, *named, *extra))
        found[name] = (summary, scores(summary, folder).iloc[:, 0].to_numpy())
    white = min((name for name in attacks if name not in (union, *BLACK)), key=lambda name: found[name][1].mean())
    lines = []
    for name, (summary, right) in found.items():
        average, worst = summary["robust"]["average"], summary["robust"]["worst"]
        low, high = average["wilson95"]
        first = [float(mine > 0.5) for mine in right], [float(mine > 0.5) for mine in found[union][1]]
        p = f"{mcnemar(np.array(first[1]), np.array(first[0])):.2g}"
        row = [f"{name} {' '.join(attacks[name])}".strip(), f"{summary['undefended']['average']['value']:.1f}"]
        row += [f"{average['value']:.1f}", f"{low:.1f} - {high:.1f}", f"{worst['value']:.1f}"]
        row += ["" if name == union else against(right, found[union][1]), "" if name == union else p]
        lines.append([*row, against(right, found[white][1]) if name in BLACK else ""])
    average = found[union][0]["robust"]["average"]
    samples, images = average["draws"], average["n"]
    columns = ["attack", "undefended", f"average of {samples}", "95 %", f"worst of {samples}"]
    columns += [f"minus {union}, paired 95 %"]
    columns += ["McNemar p, right in most samples", f"minus {white}, paired 95 %"]
    path = ROOT / "results" / "tables" / f"strongest-{found[union][0]['config']['choices']['purifier']}.md"
    path = outputs.target(path, args.write)
    words = f"python scripts/studies/strongest.py {' '.join(given)}"
    text = f"# Every attack against the worst case over attacks, on {' '.join(given)}\n\n"
    text += f"`{words}`: {images} images of digits, one seed, linf 32/255, quick budgets, "
    text += "protocol=strict for each attack; percent right. The same images and the same "
    text += "scoring samples throughout; intervals over images, not corrected for their number.\n\n"
    path.write_text(text + markdown("Attacks", columns, lines))
    shown = Table(*columns, box=box.SIMPLE_HEAD)
    for line in lines:
        shown.add_row(*line)
    console.print(shown)
    console.print(path)
    return 0


if __name__ == "__main__":
    sys.exit(command(main))
