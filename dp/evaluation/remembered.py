"""Prices that are found once for each defense."""

from collections.abc import Hashable

from dp.defense.defended import Defended, unbound
from dp.evaluation.caveats import bound
from dp.evaluation.work import Price, Prices


def remembered(pricing: Prices) -> Prices:
    """The same prices. A defense with the same purifier, hyperparameters and derivative is not asked again; all of them
    must have the same networks.
    """
    known: dict[Hashable, Price] = {}

    def price(model: Defended) -> Price:
        settings = tuple(sorted((name, repr(value)) for name, value in bound(model.purifier).items()))
        key = (unbound(model.purifier), settings, model.bpda)
        if key not in known:
            known[key] = pricing(model)
        return known[key]

    return price
