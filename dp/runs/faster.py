"""What narrower networks would save on a GPU, measured by one call of the denoiser and its gradient."""

import copy
import time

import torch

from dp.evaluation.evaluate import Evaluation
from dp.precision import DTYPES, cast, tensor_cores

OTHERS = ("tf32", "bfloat16")
WORTH = 1.1  # a smaller factor is not said


def speedups(evaluation: Evaluation) -> dict[str, float]:
    """How many times as fast one call of the attacked denoiser and its gradient are, by precision, against float32, at
    the width of the run's calls. Empty where the attack calls no denoiser.
    """
    model = evaluation.arms["defended"].attacked
    if model.denoiser is None:
        return {}
    x = evaluation.subset.x[:1].expand(evaluation.lanes * model.draws_per_call, -1, -1, -1)
    z = x.to(evaluation.device).contiguous(memory_format=torch.channels_last)
    taken = {}
    for name in ("float32", *OTHERS):
        denoiser = copy.deepcopy(model.denoiser)
        denoiser.memory = "store"
        cast(denoiser.net, DTYPES[name])
        with tensor_cores(name == "tf32"):
            for _ in range(2):  # the first call also loads what the next one has
                leaf, began = z.detach().requires_grad_(), _now(evaluation.device)
                torch.autograd.grad(denoiser(leaf, 1.0).sum(), leaf)
                taken[name] = _now(evaluation.device) - began
    return {name: taken["float32"] / taken[name] for name in OTHERS}


def faster_lines(evaluation: Evaluation, config: dict) -> list[str]:
    """A line that says how much faster the attack would be in another precision; none on a CPU, where no other one is
    faster, and none if the run has chosen one.
    """
    if not evaluation.device.startswith("cuda") or config["dtype"] != "float32":
        return []
    return told(speedups(evaluation))


def told(factors: dict[str, float]) -> list[str]:
    """The line for these factors by precision."""
    words = [f"{factor:.1f} times as fast with dtype={name}" for name, factor in factors.items() if factor >= WORTH]
    return [f"a network call of the attack would be {', '.join(words)}; scoring would not change"] if words else []


def _now(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()
