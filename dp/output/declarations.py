"""The lines of a row about what the yamls of its purifier and its attack declare."""

from dp.attacks.base import FULL
from dp.attacks.through import mode_words
from dp.contracts.declared import exceptions, honest_gradient

WORDS = {  # by the property that does not hold
    ("purifier", "derivative"): "has a derivative that is not the slope everywhere",
    ("attack", "moves"): "may return an image clean",
}


def declared_lines(config: dict, caveats: dict) -> list[str]:
    """A line for each declared exception with its reason, and how a purifier without a gradient is attacked.

    `caveats`: `Caveats.as_data()`.
    """
    lines = []
    for group in ("purifier", "attack"):
        for name, reason in exceptions(config[group]).items():
            what = WORDS.get((group, name)) or _gradient_words(config, caveats)
            lines.append(f"declared: the {group} {config['choices'][group]} {what} ({reason})")
    return lines


def _gradient_words(config: dict, caveats: dict) -> str:
    """How a purifier that has no gradient of its own is attacked."""
    honest, taken = honest_gradient(config["purifier"]), [tuple(modes) for modes in caveats["gradients"]]
    what = "has no gradient of its own"
    if any(honest in modes for modes in taken):
        return f"{what}: it is attacked by {honest}, {mode_words(str(honest))}"
    if () in taken:
        return f"{what}, but an attack takes it: threat_model.grad={honest} is honest, and grad={FULL} shows nothing"
    return f"{what}, and no attack takes one"
