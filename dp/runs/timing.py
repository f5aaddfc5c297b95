"""What the samples of a run cost on this machine, measured: the seconds of one worker."""

import itertools
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dp.attacks.base import VALUES
from dp.defense.defended import Defended
from dp.diffusion.denoisers import Denoiser
from dp.evaluation.dry import dry_run
from dp.evaluation.estimate import Estimate, estimate
from dp.evaluation.evaluate import Evaluation
from dp.evaluation.remembered import remembered
from dp.evaluation.work import BACKWARD, Costs, Price, Rates, costs, priced
from dp.output.cost_report import LONG, long_run_line
from dp.rng import Streams
from dp.runs.machine import shard_of
from dp.subset import Subset

TURNS = (3, 30)  # calls whose mean counts, at least and at most, after one that only warms up
LEAST = 1.0  # seconds that they take together, if that many do
PATIENCE = 10.0  # seconds after which a call is not measured again, and that one measured gradient may take
PART = 2.0  # seconds that one measured call of a network alone may take


class Measured(NamedTuple):
    """`work`: seconds for one image under each condition. `images`: those in one measured call. `whole`: True if whole
    samples of the defense were measured, False if single calls of its networks.
    """

    work: dict[str, Costs]
    images: int
    whole: bool


def measured(evaluation: Evaluation) -> Measured:
    """Measure one gradient and one forward pass of each defense that the run asks, the bare classifier among them, at
    the run's own width. Where a gradient takes over `PATIENCE` seconds, single calls of the networks are measured, and
    a sample counts as so many calls; what a purifier does between them is then left out.
    """
    threads = torch.get_num_threads()
    if evaluation.device == "cpu":
        torch.set_num_threads(1)  # as a worker
    try:
        return _measured(evaluation)
    finally:
        torch.set_num_threads(threads)


def here_of(config: dict, evaluation: Evaluation, workers: int) -> tuple[Measured, Estimate]:
    """What was measured on this machine, and the estimate for this process's share of the images, which so many workers
    do.
    """
    found = measured(evaluation)
    return found, estimate(evaluation.of_shard(*shard_of(config), workers), found.work)


def long_line(config: dict, evaluation: Evaluation, evaluations: float, workers: int) -> Iterator[str]:
    """A line if the run takes over ten minutes. `evaluations`: its work, see `work.total`; `workers`: those that its
    engine has.

    A call with one image takes longer than its share of a call with many. So if the run is short even at that speed,
    nothing else is measured.
    """
    scored = evaluation.arms["defended"].scored
    z = images_of(evaluation.subset, 1, evaluation.device).x
    denoiser = scored.denoiser
    forward, _ = _calls(scored.classifier if denoiser is None else lambda z: denoiser(z, 1.0), z)
    if not scored.classifier_nfe and evaluations * Clock(evaluation.device)(forward) / workers <= LONG:
        return
    _, here = here_of(config, evaluation, workers)
    if (seconds := here.on(workers).seconds) > LONG:
        yield long_run_line(here, seconds)


def network_rates(evaluation: Evaluation, images: int) -> Rates:
    """The seconds of single calls of the networks with so many images, for one image."""
    scored = evaluation.arms["defended"].scored
    x, clock = images_of(evaluation.subset, images, evaluation.device).x, Clock(evaluation.device)
    denoisers = [module for module in scored.modules() if isinstance(module, Denoiser)]
    answer = both = forward = gradient = 0.0
    if denoisers:
        forward, gradient = call_seconds(denoisers[0], evaluation, images)
    elif nfe := dry_run(scored, evaluation.first).nfe:
        rng = Streams(list(range(images)), 0, "dry", evaluation.rng)
        forward = clock(lambda: scored.purified(x, rng, 1)) / images / nfe
        gradient = (1 + BACKWARD) * forward
    if not scored.classifier_nfe:
        answer, both = (clock(call) / images for call in _calls(scored.classifier, x))
    return Rates(forward, answer, gradient - forward, both - answer, forward)


def call_seconds(denoiser: Denoiser, evaluation: Evaluation, images: int) -> tuple[float, float]:
    """The seconds of one call of a denoiser with so many images, for one image: its forward pass, and its gradient."""
    z, clock = images_of(evaluation.subset, images, evaluation.device).x, Clock(evaluation.device)
    if denoiser.size is not None:
        z = F.interpolate(z, (denoiser.size, denoiser.size))
    forward, gradient = (clock(call) / images for call in _calls(lambda z: denoiser(z, 1.0), z))
    return forward, gradient


class Clock:
    """Measures a call: CPU seconds of this process, which other processes do not change; on a GPU wall time.

    `compiled`: the first call compiles networks, and is not measured.
    """

    def __init__(self, device: str, compiled: bool = False):
        self.device, self.compiled = device, compiled

    def now(self) -> float:
        """The time, when all work of the device is done."""
        if self.device == "cpu":
            return time.process_time()
        torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def __call__(self, call: Callable[[], object]) -> float:
        """The mean seconds of some calls after the first, or the seconds of the first if it is long."""
        if self.compiled:
            call()
        begin = self.now()
        call()
        first = now = self.now()
        turns = 0
        while turns < TURNS[1] and now - begin <= PATIENCE and (turns < TURNS[0] or now - first < LEAST):
            call()
            turns, now = turns + 1, self.now()
        return (now - first) / turns if turns else first - begin


class Samples:
    """Prices in seconds, see `work.Price`: each defense that is asked is measured."""

    def __init__(self, evaluation: Evaluation):
        self.evaluation = evaluation
        self.clock = Clock(evaluation.device, evaluation.arms["defended"].scored.classifier.compiled is not None)

    def __call__(self, model: Defended) -> Price:
        """The price of one sample of one image, in calls as wide as the run's."""
        evaluation = self.evaluation
        attack, one = evaluation.arms["defended"].attack, evaluation.first
        ids, x, y = images_of(evaluation.subset, evaluation.lanes, evaluation.device)
        nfe, draws, own = dry_run(model, one)
        forward, backward = self._each(model, x, ids, model.draws_per_call, None), 0.0
        if attack.gradient != VALUES:
            samples = min(model.draws_per_call, max(1, attack.samples))
            backward = max(0.0, self._each(model, x, ids, samples, y) - forward)
        share = (nfe - own) / max(1, nfe)
        most = float("inf") if draws else model.draws_per_call
        return Price(forward * share, backward * share, forward, backward, most)

    def _each(self, model: Defended, x: Tensor, ids: Tensor, samples: int, y: Tensor | None) -> float:
        """Seconds for one sample of one image: of its logits, or with labels y of its gradient."""
        turns = itertools.count()  # each turn draws noise of its own, as in the run

        def call() -> None:
            rng = Streams(ids, next(turns), "dry", self.evaluation.rng)
            if y is not None:
                model.loss_gradient(x, y, rng, samples)
                return
            with torch.no_grad():
                model.logits(x, rng, samples)

        return self.clock(call) / len(x) / samples


def _measured(evaluation: Evaluation) -> Measured:
    attacked = evaluation.arms["defended"].attacked
    nfe, width = dry_run(attacked, evaluation.first).nfe, evaluation.lanes * attacked.draws_per_call
    one = network_rates(evaluation, 1)
    gradient = nfe * (one.denoiser + one.denoiser_backward) + one.classifier + one.classifier_backward
    if width * gradient <= PATIENCE:
        return Measured(priced(evaluation, remembered(Samples(evaluation))), width, True)
    images = int(max(1, min(width, PART / max(one.denoiser + one.denoiser_backward, 1e-9))))
    rates = one if images == 1 else network_rates(evaluation, images)
    return Measured(costs(evaluation, rates), images, False)


def _calls(network: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Callable[[], object], Callable[[], object]]:
    """The forward pass of a network, and the forward and the backward pass to its input."""

    def forward() -> None:
        with torch.no_grad():
            network(x)

    def gradient() -> None:
        leaf = x.detach().clone().requires_grad_()
        torch.autograd.grad(network(leaf).sum(), leaf)

    return forward, gradient


def images_of(subset: Subset, images: int, device: str) -> Subset:
    """So many images on a device; where there are fewer, they are repeated."""
    some = subset.select(torch.arange(images) % len(subset.ids))
    return Subset(some.ids, some.x.to(device), some.y.to(device))
