"""Accuracy over the attacker's budget eps."""

from matplotlib.figure import Figure

from dp.figures import style
from dp.figures.stored import Data, lines


def draw(data: Data) -> Figure:
    """A curve for each defense; dotted: random noise of the same size; and the undefended classifier.

    `names` (D,); of the k-th defense `eps_k` (E,) in [0,1] units and `robust_k`, `null_k`, `undefended_k` (E,3).
    """
    figure, ((axis,),) = style.sheet(7.5, 4.6)
    for k, name in enumerate(lines(data["names"])):
        eps, look = 255 * data[f"eps_{k}"], style.series(k + 1)
        style.errorbars(axis, eps, data[f"robust_{k}"], k + 1, label=name)
        axis.plot(eps, data[f"null_{k}"][:, 0], ":", color=look["color"], linewidth=1, label=f"{name}, random noise")
    bare = data["undefended_0"][:, 0]
    axis.plot(255 * data["eps_0"], bare, "-", marker="x", color="black", linewidth=1, label="undefended")
    axis.set(xlabel="eps, of 255", ylabel="accuracy, average of 20 samples (%)", ylim=(-2, 102))
    axis.grid(True)
    axis.legend(fontsize=8)
    style.head(figure, str(data["about"]))
    return figure
