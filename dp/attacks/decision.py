"""HopSkipJump (Chen, Jordan and Wainwright 2020, arXiv 1904.02144): an attack on decisions alone, here on the majority
of several samples.
"""

import dataclasses
import math
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from dp.attacks.base import VALUES, Attack, Start
from dp.attacks.selection import strongest
from dp.attacks.state import where
from dp.defense.interface import Defense
from dp.rng import Streams
from dp.threat_models.ball import ThreatModel
from dp.transfer import sent

MOST_HALVINGS = 24  # of a binary search: an image in float32 has no more digits
STEP_HALVINGS = 20  # of a step, after which the image stays at its point
NEAREST = 0.01  # of eps: the path comes no nearer to the image, beside which its direction would be lost to rounding


class Sub(IntEnum):
    """Sub-streams of a step's noise."""

    SELECTION = 0
    SIZE = 1  # the decisions on the step size, numbered within it
    BOUNDARY = 2  # the decisions of the binary search, numbered within it
    DIRECTION = 3  # of the first direction; those of the others follow


class Query(IntEnum):
    """Sub-streams of one direction's noise."""

    POINT = 0
    SAMPLES = 1


class State(NamedTuple):
    """Where HopSkipJump stands between two iterations."""

    x_adv: Tensor  # (B,C,H,W) what would be returned now
    now: Tensor  # (B,C,H,W) the candidate inside the ball that belongs to x
    x: Tensor  # (B,C,H,W) the point at the boundary, misclassified when it was asked; it may lie outside the ball
    found: Tensor  # (B,) bool: a misclassified starting point was found; until then x means nothing
    far: Tensor  # (B,) distance from the image at which the last binary search began
    least: Tensor  # (B,) the least distance of x so far
    queries: Tensor  # (B,) int64: samples that the defense has computed for decisions
    i: Tensor  # (B,) int64 on the CPU: iterations done


@dataclass(frozen=True)
class Decision(Attack):
    """`iterations` of HopSkipJump (Algorithm 2). A decision is the majority of `eot` samples: an image is wrong if more
    than half of them are misclassified. Each decision has fresh samples. A defense without noise computes one.

    HopSkipJump looks for the nearest misclassified image, on a path that runs outside the ball. The path stays in the
    state. What can be returned is made of its point at the boundary: from outside it is projected into the ball, and
    from inside it is pushed on along its line from the image to the ball's surface, because at the boundary itself half
    of the samples are right. The path ends at `NEAREST`: an image that is wrong by itself would draw it in, to nothing.
    `confirm` fresh samples choose by the share of wrong ones, without their logits, among the
    candidate of the least distance, the last candidate and the last point at the boundary. (Differs: the paper returns
    the nearest point, deviation 110: candidates inside the ball.)

    The start is a misclassified image of uniform noise, blended with the image by the first binary search. An image
    without one looks for it in every iteration, and asks as many decisions for it as others ask for a direction. If
    none is found, a random point of the ball comes back, and `found` of the state is False (deviation 113: decisions
    and start).

    `directions`: decisions for the direction in iteration 1; in iteration t there are sqrt(t) times as many, at most
    `most`. `theta`: where a binary search ends, as a share of its length; None: the paper's d^-3/2 (l2) or d^-2 (linf)
    for d pixels and channels. It also sets how far from the boundary a direction is asked for, see `_delta`: a defense
    whose samples differ has a blurred boundary, and needs a larger theta.
    `queries` of the state counts the samples of all decisions per image; those of `confirm` come on top.
    """

    iterations: int
    eot: int
    directions: int
    most: int
    confirm: int
    theta: float | None = None

    def __post_init__(self):
        counts = (self.iterations, self.eot, self.confirm)
        if min(counts) < 1 or not 2 <= self.directions <= self.most:
            given = f"{', '.join(map(str, counts))}, {self.directions}, {self.most}"
            raise ValueError(f"need iterations, eot, confirm >= 1 and 2 <= directions <= most, got {given}")
        if self.theta is not None and not 0 < self.theta < 1:
            raise ValueError(f"need 0 < theta < 1, or null for the paper's, got theta={self.theta}")

    @property
    def steps(self) -> int:
        return self.iterations

    @property
    def samples(self) -> int:
        return self.eot

    @property
    def selection_samples(self) -> int:
        return self.confirm

    @property
    def gradient(self) -> str:
        return VALUES

    @property
    def criterion(self) -> str:
        return "the majority of"

    def countable(self) -> "Attack":
        return _Found(**{field.name: getattr(self, field.name) for field in dataclasses.fields(self)})

    def current(self, state: State) -> State:
        return state._replace(x_adv=state.now)

    def says(self, through: str) -> str:
        what = f"HopSkipJump, {self.steps} iterations of {self.directions} and more decisions"
        what += f", each the majority of {self.eot} samples, values alone, of {through}"
        return f"{what}; {self.confirm} fresh samples choose what comes back"

    def start(self, model: Defense, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> State:
        point, none = threat.noise(x, rng.draw(Start.POINT)), x.new_full((len(x),), torch.inf)
        count = torch.zeros(len(x), dtype=torch.long, device=x.device)
        return State(
            x_adv=point,
            now=point,
            x=point,
            found=count > 0,
            far=none,
            least=none,
            queries=count,
            i=torch.zeros(len(x), dtype=torch.long),
        )

    def step(self, model: Defense, state: State, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> State:
        asking = _Asking(model, y, self.eot)
        box = dataclasses.replace(threat, eps=threat.largest(x))  # the threat model but for the radius
        start, began, v = self._directions(asking, state, x, box, rng)
        moved = where(state.found, self._moved(asking, state, x, v, box, rng), start)
        found = state.found | began
        at = self._boundary(asking, moved, found, x, box, NEAREST * threat.eps, rng)
        far, distance = (threat.distance(point, x).to(x.dtype) for point in (moved, at))
        now = where(found, _inside(at, x, threat), state.now)
        nearer, last = found & (distance < state.least), state.i + 1 == self.iterations
        x_adv = where(nearer, now, state.x_adv)
        if bool(last.any()):
            points = [x_adv, now, where(found, threat.project(at, x), now)]
            chosen = strongest(model, points, y, rng.draw(Sub.SELECTION), self.confirm, wrong, last)
            x_adv = where(last, chosen, x_adv)
        x_now, far, least = where(found, (at, far, distance), (state.x, state.far, state.least))
        least = where(nearer, least, torch.minimum(least, state.least))
        queries = state.queries + asking.spent
        return State(x_adv, now, x_now, found, far, least, queries, state.i + 1)

    def _directions(
        self, asking: "_Asking", state: State, x: Tensor, box: ThreatModel, rng: Streams
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A starting point for images without one (B,C,H,W), whether it was found (B,), and the direction uphill for
        the others (B,C,H,W), not normalized.
        """
        counts = self._count(state.i)  # (B,) B_t of Algorithm 2
        count, all_found = sent(counts, x.device), bool(state.found.all())
        delta = self._delta(state, x, box)
        start, began = state.x, torch.zeros_like(state.found)
        phi_sum, u_sum, phi_u_sum = torch.zeros_like(delta), torch.zeros_like(x), torch.zeros_like(x)
        for k in range(int(counts.max())):
            streams = rng.draw(Sub.DIRECTION + k)
            noise = streams.draw(Query.POINT)
            # Differs (deviation 111: directions of the sphere): the released code draws them from a cube in linf.
            u = noise.randn_like(x)
            point = state.x + delta * (u / _length(u))
            if not all_found:
                point = where(state.found, point, noise.uniform_like(x))
            point = box.project(point, x)
            among = (k < count) & ~began
            phi = asking.wrong(point, among, streams.draw(Query.SAMPLES))
            hit = phi & ~state.found
            start, began = where(hit, point, start), began | hit
            u = torch.where((among & state.found).view(-1, 1, 1, 1), (point - state.x) / delta, 0)  # after the cut
            sign = torch.where(among, 2.0 * phi - 1, 0.0).to(x).view(-1, 1, 1, 1)
            phi_sum, u_sum, phi_u_sum = phi_sum + sign, u_sum + u, phi_u_sum + sign * u
        # The estimate with the mean decision as its baseline (the paper's Section III-C), but for a factor. Where all
        # decisions agree, it would be zero: there the released code uses none.
        mean = phi_sum / count.to(x).view(-1, 1, 1, 1)
        baseline = torch.where(mean.abs() == 1, 0, mean)
        return start, began, phi_u_sum - baseline * u_sum

    def _count(self, i: Tensor) -> Tensor:
        """(B,) iterations done -> decisions for the next direction, B_t = B_0 sqrt(t)."""
        return (self.directions * (i + 1).double().sqrt()).long().clamp(max=self.most)

    def _delta(self, state: State, x: Tensor, box: ThreatModel) -> Tensor:
        """(B,1,1,1) l2 distance from the boundary at which a direction is asked for: sqrt(d) theta (l2) or d theta
        (linf) times the length before the binary search, which is 1/d of it at the paper's theta.
        """
        d = x[0].numel()
        # Differs (deviation 112: where a direction is asked for): the released code begins with 0.1.
        delta = (d**0.5 if box.norm == "l2" else d) * self._theta(x, box.norm) * state.far
        return torch.where(state.found, delta, 1).clamp(min=torch.finfo(x.dtype).tiny).view(-1, 1, 1, 1)

    def _theta(self, x: Tensor, norm: str) -> float:
        return self.theta or x[0].numel() ** (-1.5 if norm == "l2" else -2.0)

    def _moved(self, asking: "_Asking", state: State, x: Tensor, v: Tensor, box: ThreatModel, rng: Streams) -> Tensor:
        """A misclassified point in direction v: the step size falls by halves from distance / sqrt(t) until there is
        one (Algorithm 2). Without one the image stays where it is.
        """
        size = box.distance(state.x, x).to(x.dtype) / sent((state.i + 1).to(x.dtype), x.device).sqrt()
        size, moved, left = size.view(-1, 1, 1, 1), state.x, state.found
        streams = rng.draw(Sub.SIZE)
        for k in range(STEP_HALVINGS):
            point = box.project(box.ascend(state.x, v, size), x)
            hit = asking.wrong(point, left, streams.draw(k))
            if not asking.asked:
                break
            moved, left, size = where(hit, point, moved), left & ~hit, size / 2
        return moved

    def _boundary(
        self, asking: "_Asking", moved: Tensor, among: Tensor, x: Tensor, box: ThreatModel, nearest: float, rng: Streams
    ) -> Tensor:
        """The binary search of Algorithm 1 between the image and a misclassified point, to its misclassified end, or to
        the point of the line at distance `nearest`.
        """
        low, high = x.new_zeros(len(x), 1, 1, 1), x.new_ones(len(x), 1, 1, 1)
        streams = rng.draw(Sub.BOUNDARY)
        for k in range(self._halvings(x, box.norm)):
            middle = (low + high) / 2
            hit = asking.wrong(_between(x, moved, middle, box), among, streams.draw(k))
            low, high = where(hit, (low, middle), (middle, high))
        least = nearest / box.distance(moved, x).to(x.dtype).clamp(min=nearest)
        return _between(x, moved, torch.maximum(high, least.view(-1, 1, 1, 1)), box)

    def _halvings(self, x: Tensor, norm: str) -> int:
        """Halvings after which a binary search has come to `theta`."""
        return min(MOST_HALVINGS, math.ceil(-math.log2(self._theta(x, norm))))


class _Found(Decision):
    """The attack from a point that counts as misclassified, so that every iteration has both of its searches."""

    def start(self, model: Defense, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> State:
        one = x.new_ones(len(x))
        return super().start(model, x, y, threat, rng)._replace(found=one > 0, far=one, least=one)


class _Asking:
    """Decisions of a defense, and what they cost."""

    def __init__(self, model: Defense, y: Tensor, samples: int):
        self.model, self.y, self.samples = model, y, samples
        self.spent = torch.zeros_like(y)  # (B,) samples that were computed
        self.asked = 0  # images of the last question

    def wrong(self, x: Tensor, among: Tensor, rng: Streams) -> Tensor:
        """(B,) True where the majority of the samples is misclassified; asked for the images of the mask `among`."""
        slots, found = [b for b, one in enumerate(among.tolist()) if one], torch.zeros_like(among)
        self.asked = len(slots)
        if slots:
            with torch.no_grad():
                logits = self.model.logits_of([(0, b) for b in slots], [x], rng, self.samples)  # (samples,Q,K)
            index = sent(torch.tensor(slots), x.device)
            found[index] = 2 * (logits.argmax(dim=2) != self.y[index]).sum(dim=0) > self.samples
            same = (logits == logits[:1]).flatten(2).all(dim=2).all(dim=0)  # no noise: the one sample is repeated
            self.spent[index] += torch.where(same, 1, self.samples)
        return found


def wrong(logits: Tensor, y: Tensor) -> Tensor:
    """1 where the decision is wrong and 0 elsewhere, (B,)."""
    return (logits.argmax(dim=1) != y).to(logits.dtype)


def _between(x: Tensor, far: Tensor, share: Tensor, box: ThreatModel) -> Tensor:
    """The point at a share (B,1,1,1) of the way from x to `far`: on the line in l2, and in linf `far` cut to a smaller
    ball around x.
    """
    if box.norm == "l2":
        return box.project(x + share * (far - x), x)
    radius = share * box.distance(far, x).to(x.dtype).view(-1, 1, 1, 1)
    return box.project(torch.minimum(torch.maximum(far, x - radius), x + radius), x)


def _inside(at: Tensor, x: Tensor, threat: ThreatModel) -> Tensor:
    """The candidate of a point at the boundary: projected, or pushed on along its line to the surface of the ball."""
    length = threat.distance(at, x).clamp(min=1e-12).view(-1, 1, 1, 1)
    return threat.project(x + (threat.eps / length).clamp(min=1).to(x.dtype) * (at - x), x)


def _length(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1).clamp(min=torch.finfo(x.dtype).tiny).view(-1, 1, 1, 1)
