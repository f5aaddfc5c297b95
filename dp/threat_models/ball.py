"""ThreatModel: what the attacker may do to an image, and which gradient it may use. Here: balls, linf and l2."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dp.rng import Streams

BALLS = ("linf", "l2")
OPTIONS = {"linf": "linf", "l2": "l2", "flow": "stadv", "perceptual": "low_frequency"}  # norm -> option of threat_model
SLACK = 1e-6  # rounding of float32 around a bound


def parse_eps(eps: float | str) -> float:
    """A budget in [0,1] units: a number, or text such as `8/255`."""
    try:
        over, slash, under = str(eps).partition("/")
        value = float(over) / float(under) if slash else float(over)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"need eps as a number or a fraction such as 8/255, got eps={eps!r}") from None
    if not 0 < value < float("inf") or under.strip().startswith("-"):
        raise ValueError(f"need eps > 0, got eps={eps}")
    return value


@dataclass(frozen=True)
class ThreatModel:
    """A ball of radius `eps` (in [0,1] units; text such as `8/255` is accepted) in `norm` linf or l2, cut by the box
    [0,1].

    `grad`: the gradient mode in which the defense is attacked (see `Defense.gradient_mode`): `full` is the scored
    defense's own gradient, `bpda` has the identity in place of the purification's derivative, `blind` is the bare
    classifier; a purifier's yaml names further ones, such as `surrogate` (a cheaper copy) or `adjoint`.
    """

    norm: str
    eps: float
    grad: str = "full"
    norms: ClassVar[tuple[str, ...]] = BALLS

    def __post_init__(self):
        if self.norm not in self.norms:
            raise ValueError(f"need norm {' or '.join(self.norms)}, got norm={self.norm!r}")
        if not isinstance(self.grad, str) or not self.grad:
            raise ValueError(f"need grad as the name of a gradient mode, got grad={self.grad!r}")
        object.__setattr__(self, "eps", parse_eps(self.eps))

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """x_adv pulled into the ball around x and the box; what lies in both (in l2 up to rounding) stays bit for bit.
        In l2 the ball comes first: the cut by the box only shortens the perturbation.
        """
        if self.norm == "linf":
            return torch.minimum(torch.maximum(x_adv, x - self.eps), x + self.eps).clamp(0.0, 1.0)
        delta = x_adv - x
        length = _length(delta)  # (B,1,1,1)
        within = length <= self.eps * (1 + 4 * torch.finfo(delta.dtype).eps)
        return torch.where(within, x_adv, x + delta * (self.eps / length)).clamp(0.0, 1.0)

    def ascend(self, x_adv: Tensor, grad: Tensor, step: float | Tensor) -> Tensor:
        """One step uphill, not projected: step * sign(grad), or step * grad / |grad|_2 (a zero gradient moves nothing).
        `step`: one length, or one per image as (B,1,1,1).
        """
        if self.norm == "linf":
            return x_adv + step * grad.sign()
        return x_adv + step * (grad / _length(grad).clamp(min=torch.finfo(grad.dtype).tiny))

    def random_start(self, x: Tensor, rng: Streams) -> Tensor:
        """A point (B,C,H,W) uniform in the ball around x, then cut by the box."""
        if self.norm == "linf":
            return self.project(x + self.eps * (2 * rng.uniform_like(x) - 1), x)
        radius = self.eps * rng.uniform_like(x[:, :1, :1, :1]) ** (1 / x[0].numel())
        return self.project(x + radius * _direction(x, rng), x)

    def noise(self, x: Tensor, rng: Streams) -> Tensor:
        """A candidate of the random-noise baseline (null control): uniform in +-eps, or uniform on the sphere in l2;
        then cut by the box.
        """
        if self.norm == "linf":
            return self.random_start(x, rng)
        return self.project(x + self.eps * _direction(x, rng), x)

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """(B,) length of the perturbation in `norm`, in [0,1] units, float64."""
        delta = (x_adv.double() - x.double()).flatten(1)
        return delta.abs().amax(dim=1) if self.norm == "linf" else delta.norm(dim=1)

    def largest(self, x: Tensor) -> float:
        """The largest distance that two images of the shape of x (B,C,H,W) can have, in the threat model's norm."""
        return 1.0 if self.norm == "linf" else x[0].numel() ** 0.5

    def seen_by(self, classifier: nn.Module) -> "ThreatModel":
        """This threat model for a defense with that classifier; the distances of a ball do not depend on it."""
        return self

    def proven_noise(self, x: Tensor, rng: Streams) -> tuple[Tensor, Tensor]:
        """`noise`, and the certificate that it is feasible: (B,...), or (B,0) where the image itself shows it."""
        return self.noise(x, rng), x.new_zeros(len(x), 0)

    def unchanged(self, x: Tensor) -> Tensor:
        """The certificate, (B,...), that the clean images are feasible."""
        return x.new_zeros(len(x), 0)

    def admit(self, state: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        """Projects and checks an attack's state: feasible images (B,C,H,W), and their distance (B,), float64.

        Raises ValueError where the state's certificate `proof` does not show that its `x_adv` is feasible.
        """
        x_adv = self.project(state.x_adv, x)
        return x_adv, self.distance(x_adv, x)


def _length(delta: Tensor) -> Tensor:
    """(B,1,1,1) 2-norm, scaled by the largest entry first: a gradient of 1e-30 must not square to zero."""
    flat = delta.flatten(1)
    top = flat.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(delta.dtype).tiny)
    return (top[:, 0] * (flat / top).norm(dim=1)).view(-1, 1, 1, 1)


def _direction(x: Tensor, rng: Streams) -> Tensor:
    n = rng.randn_like(x)
    return n / _length(n)
