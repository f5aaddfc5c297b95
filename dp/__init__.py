"""dp: diffusion-based adversarial purification, reproduced and judged.

`dp.evaluate`, `dp.load`, `dp.purify` and `dp.Result` are those of `dp.api`, which is imported when one is asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dp.api import Result, evaluate, load, purify

__all__ = ["Result", "evaluate", "load", "purify"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module dp has no attribute {name}")
    from dp import api

    return getattr(api, name)
