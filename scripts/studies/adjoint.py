"""Measure the error of the adjoint gradient of DiffPure's SDE and ODE against the exact gradient.

The error is measured over the end time and the step of the reversal, on the embedded digits. The gradient is that of
the cross-entropy with respect to the image, through the whole defense. There is one sample per image, and both
gradients use the same noise. The study writes results/measured/adjoint.csv, which dp figures draws.
"""

import csv
import functools
import sys
from pathlib import Path
from typing import Any

import outputs
import torch
from torch import Tensor

from dp.defense.defended import Defended
from dp.objectives import cross_entropy
from dp.purifiers import diffpure_ode, diffpure_sde
from dp.rng import Streams
from dp.runs import compose
from dp.runs.build import build
from dp.runs.errors import command
from dp.subset import Subset

OUT = Path(__file__).parents[2] / "results" / "measured" / "adjoint.csv"
METHODS = {"sde": (diffpure_sde.purify, "own"), "ode": (diffpure_ode.purify, "euler")}
ENDS = [1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2]
STEPS = [5e-3, 2e-3, 1e-3, 5e-4]


def gradient(model: Defended, subset: Subset, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Purified images and the gradient of the loss, both (B,C,H,W)."""
    leaf = subset.x.to(dtype).requires_grad_()
    x_hat = model.purify(leaf, Streams(subset.ids, 0, "adjoint"))
    (grad,) = torch.autograd.grad(cross_entropy(model.classifier(x_hat), subset.y).sum(), leaf)
    return x_hat.detach(), grad


def compare(exact: Tensor, other: Tensor) -> dict[str, float]:
    """Errors of a gradient over images: relative error |g' - g| / |g|, cosine, and share of pixels with equal sign.

    An l-infinity attack uses only the sign.
    """
    g, h = exact.flatten(1).double(), other.flatten(1).double()
    error, cosine = (h - g).norm(dim=1) / g.norm(dim=1), torch.cosine_similarity(g, h)
    return {
        "relative_error_median": error.median().item(),
        "relative_error_max": error.max().item(),
        "cosine_median": cosine.median().item(),
        "cosine_min": cosine.min().item(),
        "equal_signs": (g.sign() == h.sign()).double().mean().item(),
    }


def measure(parts: Defended, subset: Subset, method: str, dtype: torch.dtype, t: float, end: float, dt: float) -> dict:
    """One row of the table: a method and precision at a noise time t, an end time and a step."""
    purify, plain = METHODS[method]
    results = []
    for solver in (plain, "adjoint"):
        bound = functools.partial(purify, t=t, dt=dt, end=end, beta_min=0.1, beta_max=20.0, solver=solver)
        results.append(gradient(Defended(bound, parts.denoiser, parts.classifier), subset, dtype))
    (x_hat, exact), (x_hat_adjoint, other) = results
    row: dict[str, Any] = {"method": method, "dtype": str(dtype).removeprefix("torch."), "t": t, "end": end, "dt": dt}
    row |= {"images": len(subset.ids), "output_difference_max": (x_hat - x_hat_adjoint).abs().max().item()}
    return row | compare(exact, other)


def main() -> int:
    """The command. Returns 0 when the table is written."""
    parser = outputs.parser(__doc__)
    parser.add_argument(
        "--images", type=outputs.at_least_one, default=8, help="test images (default 8, ten minutes on one core)"
    )
    parser.add_argument("--t", type=float, default=0.1, help="noise time (default .1, DiffPure's on CIFAR-10)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    evaluation = build(compose.composed("purifier=diffpure", f"protocol.images={args.images}", "device=cpu"))
    parts, rows = evaluation.arms["defended"].scored, []
    for dtype in (torch.float64, torch.float32):
        parts = parts.to(dtype)
        for method in METHODS:
            for dt in STEPS:
                for end in ENDS:
                    rows.append(measure(parts, evaluation.subset, method, dtype, args.t, end, dt))
                    print({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
    path = outputs.target(OUT, args.write)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(command(main))
