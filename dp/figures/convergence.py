"""Robust accuracy over the budget that the attack spent, for each defense: more iterations, samples or restarts."""

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from dp.figures import style
from dp.figures.stored import Data, lines


def draw(data: Data) -> Figure:
    """A panel for each of `defenses` (D,), a curve for each of `families` (F,).

    Of a point: `defense` and `family` (P,) int, `spent` (P,) network evaluations per image, `robust` (P,3) in percent,
    with the ends of the paired interval of the points taken.
    """
    names, families = lines(data["defenses"]), lines(data["families"])
    figure, (axes,) = style.sheet(14, 4, 1, len(names), sharey=True)
    handles = {}
    for d, (axis, name) in enumerate(zip(axes, names, strict=True)):
        for k, family in enumerate(families):
            own = (data["defense"] == d) & (data["family"] == k)
            if own.sum() > 1:
                style.errorbars(axis, data["spent"][own], data["robust"][own], k, label=f"more {family}")
        handles |= dict(zip(*axis.get_legend_handles_labels()[::-1], strict=True))
        axis.set(xscale="log", title=name, xlabel="network evaluations per image")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(True, axis="both")
    axes[0].set_ylabel("robust accuracy, average of 20 (%)")
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=4)
    style.head(figure, str(data["about"]))
    return figure
