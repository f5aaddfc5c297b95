"""What the pictures of a finished run are made of, built from its configuration."""

from dp.output.pictures import Shown
from dp.repeatable import set_repeatable
from dp.runs.build import defense, in_precision
from dp.runs.compose import make, with_plugins
from dp.runs.errors import USER_ERRORS, sentence
from dp.runs.keys import OLDER
from dp.runs.machine import device_of
from dp.subset import in_own_types
from dp.weights.needed import missing


def shown(summary: dict) -> Shown | str:
    """What the pictures of the run of a summary are made of, or why there are none, in a sentence: files are missing,
    or the run had objects of another process or a folder of plug-ins that has moved.
    """
    try:
        return _shown(summary)
    except USER_ERRORS as error:
        return f"The page has no pictures of this run: {sentence(error)}."


def _shown(summary: dict) -> Shown | str:
    config = OLDER | with_plugins(summary["config"], summary["config"]["plugins"]["folders"])
    absent = missing(config)
    if absent:
        return f"The page has no pictures of this run: {absent[0].file} is not on this machine (dp fetch gets it)."
    device = device_of({**config, "device": "auto"})  # the run's may be another machine's
    set_repeatable(device)
    subset = in_own_types(make(config["dataset"]["loader"], modules=config["plugins"]["modules"]))
    caveats, samples = summary["caveats"], summary["robust"]["vote"]["draws"]
    model = in_precision(defense(config, device), config["scored_dtype"])
    lanes = config["dataset"]["lanes"]
    ids = subset.ids.tolist()
    return Shown(model, subset.x, ids, config["purifier"], samples, caveats["nfe"], lanes, config["rng"], device)
