"""The results of the main study, scripts/studies/claim.py, as markdown, CSV and a figure."""

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd
from cells import markdown

from dp.output import report

ROOT = Path(__file__).parents[2]
TEXT, DATA = (ROOT / "results" / "tables" / f"claim.{kind}" for kind in ("md", "csv"))
PICTURE = ROOT / "results" / "figures" / "claim.png"
Gain = tuple[float, float, float]  # points, low, high
COLORS = ("#777777", "#c1440e", "#0b6e99", "#6a51a3", "#e6a000")


def draw(path: Path, cells: list[dict], contrasts: list[dict]) -> None:
    """Draw the figure. Above: robust accuracy with its interval, null control (hollow), standard accuracy (tick).

    Below: paired differences.
    """
    protocols = list(dict.fromkeys(r["protocol"] for r in cells))
    figure, axes = plt.subplots(2, len(protocols), figsize=(13, 6), sharex="row", sharey="row", layout="constrained")
    names = list(dict.fromkeys(r["defense"] for r in cells))
    for (above, below), protocol in zip(axes.T, protocols, strict=True):
        rows = [r for r in cells if r["protocol"] == protocol]
        for y, (row, color) in enumerate(zip(rows, COLORS, strict=True)):
            above.plot([row["robust_low"], row["robust_high"]], [y, y], color=color, linewidth=2)
            above.plot(row["robust"], y, "o", color=color, markersize=6)
            above.plot(row["null"], y, "o", mfc="none", color=color, markersize=6)
            above.plot(row["standard"], y, "|", color=color, markersize=12)
            above.annotate(f"{row['robust']:.0f}", (row['robust'], y), xytext=(0, 6), textcoords="offset points", ha="center", fontsize=8)  # fmt: skip  # noqa: E501
        above.set(title=f"{protocol}\n{rows[0]['rule']}", xlim=(0, 102))
        above.title.set_fontsize(9)
        above.set_ylim(-0.6, len(rows) - 0.5)
        below.axvline(0, color="#777777", linewidth=1)
        for y, row in enumerate(r for r in contrasts if r["protocol"] == protocol):
            below.plot([row["low"], row["high"]], [y, y], color="#333333", linewidth=2)
            below.plot(row["difference"], y, "o", color="#333333", markersize=5)
            difference, low, high = row["average"]
            below.plot([low, high], [y + 0.3, y + 0.3], color="#8c8c8c", linewidth=1)
            below.plot(difference, y + 0.3, "s", mfc="white", color="#8c8c8c", markersize=4)
        below.set_xlabel("difference, points")
        above.set_xlabel("accuracy, %")
        for axis in (above, below):
            axis.spines[["top", "right"]].set_visible(False)
            axis.grid(axis="x", color="#e6e6e6", linewidth=0.6)
    axes[0, 0].set_yticks(range(len(names)), names, fontsize=9)
    axes[0, 0].invert_yaxis()
    pairs = [r for r in contrasts if r["protocol"] == protocols[0]]
    labels = [f"{r['first']} - {r['second']}".replace("hetero, ", "") for r in pairs]
    axes[1, 0].set_yticks(range(len(labels)), labels, fontsize=8)
    axes[1, 0].invert_yaxis()
    figure.suptitle(
        "Five defenses at equal standard accuracy: robust accuracy (dot, 95 % interval), random noise of the same size "
        "(hollow), clean (tick);\nbelow, paired differences over the same images, 95 %: by the protocol's rule (dot), "
        "and of the average of fresh samples of the attacked images (square)",
        fontsize=10,
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)


def gain_cells(gain: Gain) -> list[str]:
    """The points of a gain and their interval, as text."""
    difference, low, high = gain
    return [f"{difference:+.1f}", f"{low:+.1f} to {high:+.1f}"]


HEAD = ["", "standard", "robust", "95 %", "seed std", "", "average of fresh samples", "null", "undefended", "gradient"]
HEAD += ["NFE scored/attacked", "audit"]


def write(
    text_path: Path,
    data_path: Path,
    cells: list[dict],
    contrasts: list[dict],
    compared: list[tuple[str, Gain]],
    times: dict,
    images: int,
    seeds: int,
) -> None:
    """Write markdown and CSV. `compared`: further paired differences of averages of fresh samples, by name."""
    pd.DataFrame(cells).drop(columns="warnings").to_csv(data_path, index=False, float_format="%.2f")
    duration = report.clock(sum(r["seconds"] for r in cells))
    text = (
        "# Five defenses at equal standard accuracy, five protocols\n\n`python scripts/studies/claim.py`: "
        f"{duration} of worker time. Digits, linf 32/255, {images} images, {seeds} seeds; percent; intervals over "
        "images, 95 %; seed std is over seeds on the same images and no interval. Null: random noise of the same size, "
        "with as many candidates. Standard accuracy was matched on other, clean images:\n\n"
    )
    lines = [[name, " ".join(one["overrides"]), f"{one['standard']:.2f}"] for name, one in times.items()]
    tables = [("Calibration", ["", "overrides", "standard, single sample, %"], lines)]
    for protocol in dict.fromkeys(r["protocol"] for r in cells):
        rows = [r for r in cells if r["protocol"] == protocol]
        head = [*HEAD[:5], rows[0]["second_rule"], *HEAD[6:]]
        tables.append((f"{protocol}: {rows[0]['rule']}", head, [cell_line(r) for r in rows]))
    head = ["protocol", "defense", "minus", "points", "paired 95 %", "McNemar p, first seed"]
    head += ["average of fresh samples, points", "paired 95 %"]
    title = "Differences on the same images (not corrected for their number)"
    tables.append((title, head, [contrast_line(r) for r in contrasts]))
    lines = [[name, *gain_cells(gain)] for name, gain in compared]
    tables.append(("The average of fresh samples, on the same images", ["", "points", "paired 95 %"], lines))
    lines = [[r["protocol"], r["defense"], warning] for r in cells for warning in r["warnings"]]
    tables.append(("Findings of the audits", ["protocol", "defense", ""], lines))
    lines = [[r["protocol"], r["defense"], f"`{r['command']}`"] for r in cells]
    tables.append(("Commands", ["protocol", "defense", ""], lines))
    text_path.write_text(text + "\n".join(markdown(*table) for table in tables))


def cell_line(r: dict) -> list[str]:
    """The cells of one run, in the columns of `HEAD`."""
    return [
        r["defense"],
        f"{r['standard']:.1f}",
        f"{r['robust']:.1f}",
        f"{r['robust_low']:.1f} - {r['robust_high']:.1f}",
        "-" if r["robust_seed_std"] is None else f"{r['robust_seed_std']:.1f}",
        f"{r['second']:.1f}",
        f"{r['average']:.1f}",
        f"{r['null']:.1f}",
        f"{r['undefended']:.1f}",
        r["gradient"],
        f"{r['nfe']}/{r['attack_nfe']}",
        r["audit"],
    ]


def contrast_line(r: dict) -> list[str]:
    """The cells of the difference between two defenses under one protocol."""
    p = "-" if r["p"] is None else f"{r['p']:.2g}"
    points = gain_cells((r["difference"], r["low"], r["high"]))
    return [r["protocol"], r["first"], r["second"], *points, p, *gain_cells(r["average"])]
