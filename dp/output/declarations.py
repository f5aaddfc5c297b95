"""The lines of a row about what its configuration declares: exceptions, regions, other numbers of the networks."""

from dp.attacks.base import FULL, VALUES
from dp.attacks.through import mode_words
from dp.contracts.declared import exceptions, honest_gradient

WORDS = {  # by group and the property that does not hold
    ("purifier", "gradient"): "has no gradient of its own",
    ("purifier", "derivative"): "has a derivative that is not the slope everywhere",
    ("attack", "moves"): "may return an image clean",
}


def declared_lines(config: dict, caveats: dict) -> list[str]:
    """A line for each declared exception with its reason, and how a purifier without a gradient is attacked. Others
    where the classifier is not the one that was trained on the purifier's images, and where the run lacks a gradient
    mode of an honest evaluation.

    `caveats`: `Caveats.as_data()`.
    """
    lines = [*_classifier_lines(config), *_honest_lines(config, caveats)]
    for group in ("purifier", "attack"):
        for name, reason in exceptions(config.get(group, {})).items():
            line = f"declared: the {group} {config['choices'][group]} {WORDS[group, name]} ({reason})"
            lines.append(line + (_how_attacked(config, caveats) if name == "gradient" else ""))
    return lines


def _how_attacked(config: dict, caveats: dict) -> str:
    """How this run attacks a purifier that has no gradient of its own; empty if its attacks take no gradient."""
    honest, taken = str(honest_gradient(config["purifier"])), [tuple(modes) for modes in caveats["gradients"]]
    if any(honest in modes for modes in taken):
        return f": it is attacked by {honest}, {mode_words(honest)}"
    if () in taken:
        return f", but an attack differentiates it, which shows nothing: set threat_model.grad={honest}"
    return ""


def _honest_lines(config: dict, caveats: dict) -> list[str]:
    """A line if the run takes gradients, and lacks a mode that the purifier's yaml names under `honest`."""
    purifier, taken = config["choices"]["purifier"], {tuple(modes) for modes in caveats["gradients"]}
    wanted = config["purifier"].get("honest") or []
    lacking = [mode for mode in wanted if (() if mode == FULL else (mode,)) not in taken]
    if taken <= {(VALUES,)} or not lacking:
        return []
    runs = " and ".join(f"threat_model.grad={mode}" for mode in lacking)
    return [f"the purifier {purifier} needs attacks along {', '.join(wanted)}: judge it also with {runs}"]


def _classifier_lines(config: dict) -> list[str]:
    """A line if the purifier's yaml has the key `trained_with` and it does not name the run's classifier."""
    (purifier, classifier), node = (
        (config["choices"][group] for group in ("purifier", "classifier")),
        config["purifier"],
    )
    if "trained_with" not in node or node["trained_with"] == classifier:
        return []
    own = f"set classifier={node['trained_with']}" if node["trained_with"] else "dp names none that was"
    return [f"the classifier {classifier} was not trained on the images of the purifier {purifier}: {own}"]


def network_lines(config: dict) -> list[str]:
    """A line for each precision, generator and compiler that gives other numbers than float32, rng=1 and none."""
    lines = []
    attacked, scored = config["dtype"], config.get("scored_dtype", config["dtype"])  # older runs had one for both
    if (attacked, scored) != ("float32", "float32"):
        lines.append(f"the networks' precision: attacked in {attacked}, scored in {scored}")
    if config.get("rng", 1) != 1:
        lines.append(f"rng={config['rng']}: other noise than that of rng=1")
    if config.get("compile"):
        lines.append("the denoiser and the classifier are compiled (torch.compile): their last digits are its own")
    return lines


def region_lines(config: dict) -> list[str]:
    """A line for a defense, and one for a perturbation, that is told a region of each image."""
    lines = []
    if config["purifier"].get("region"):
        lines.append("the purifier is told where the object of each test image lies: an oracle, a control, no defense")
    if config["threat_model"].get("region"):
        name = config["choices"]["threat_model"]
        lines.append(f"threat_model={name}: pixels change in a region alone; not the ball, not for an l_p column")
    return lines
