"""Is any single attack stronger than the worst case over attacks that protocol=strict reports?

The study runs every attack against one defense on digits under strict, with the same images and the same scoring
samples. It goes on where it stopped. It writes results/tables/strongest-<purifier>.md, with the paired difference of
every attack to the worst case over attacks, and of every black-box attack to the strongest white-box one.

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
    """One minus other in points, with its paired 95 % interval. STRONGER means that the interval is below zero."""
    difference, low, high = (100 * v for v in paired(other, one))
    return f"{difference:+.1f} [{low:+.1f}, {high:+.1f}]" + (" STRONGER" if high < 0 else "")


def main() -> int:
    """The command. Returns 0 when the table is written."""
    parser = outputs.parser(__doc__)
    parser.add_argument("overrides", nargs="*", help="as for dp run, for the defense and the number of images")
    args = parser.parse_args()
    given = tuple(args.overrides)
    variants = compose.composed(*BASE, *given)["purifier"].get("gradients") or {}
    masked = bool(variants.get("mask_soft"))
    union = "strict_mask" if masked else "strict"
    attacks = {union: (), **WHITE, **(MASKED if masked else {}), **BLACK}
    results = {}
    for name, extra in attacks.items():
        named = () if any(override.startswith("attack=") for override in extra) else (f"attack={name}",)
        summary, folder = finished((*BASE, *given, *named, *extra))
        results[name] = (summary, scores(summary, folder).iloc[:, 0].to_numpy())
    white = min((name for name in attacks if name not in (union, *BLACK)), key=lambda name: results[name][1].mean())
    lines = []
    for name, (summary, right) in results.items():
        average, worst = summary["robust"]["average"], summary["robust"]["worst"]
        low, high = average["wilson95"]
        p = f"{mcnemar(*((values > 0.5).astype(float) for values in (results[union][1], right))):.2g}"
        row = [f"{name} {' '.join(attacks[name])}".strip(), f"{summary['undefended']['average']['value']:.1f}"]
        row += [f"{average['value']:.1f}", f"{low:.1f} - {high:.1f}", f"{worst['value']:.1f}"]
        row += ["" if name == union else against(right, results[union][1]), "" if name == union else p]
        lines.append([*row, against(right, results[white][1]) if name in BLACK else ""])
    average = results[union][0]["robust"]["average"]
    samples, images = average["draws"], average["n"]
    columns = ["attack", "undefended", f"average of {samples}", "95 %", f"worst of {samples}"]
    columns += [f"minus {union}, paired 95 %"]
    columns += ["McNemar p, right in most samples", f"minus {white}, paired 95 %"]
    path = ROOT / "results" / "tables" / f"strongest-{results[union][0]['config']['choices']['purifier']}.md"
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
