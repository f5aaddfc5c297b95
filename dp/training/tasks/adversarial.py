"""Adversarial training (Madry et al. 2018): cross entropy at images that an attack has changed."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Generator, Tensor

from dp.attacks.base import Attack
from dp.classifiers import Classifier
from dp.defense.defended import Defended
from dp.output.console import console
from dp.purifiers import none
from dp.rng import Streams
from dp.subset import Subset
from dp.threat_models.ball import ThreatModel
from dp.training.augment import Augment
from dp.training.outputs import write_images, write_table
from dp.training.tasks.classifying import Classifying, accuracy

SHARES = (0.25, 0.5, 0.75, 1.0)  # of the threat model's eps, at which the judge attacks
STAGE = "train"  # of the attack's streams


class Adversarial(Classifying):
    """Minimizes the cross entropy at the images that `attack` finds within `threat` (Madry et al. 2018, Eq. 2.1).

    The attack sees the network in evaluation mode; the step that follows is in training mode. `ramp`: the number of
    steps over which eps grows linearly to its value. `judge_attack`: the attack of the judge.
    Raises ValueError for ramp < 1.
    """

    def __init__(
        self,
        classifier: Classifier,
        data: Subset,
        *,
        augment: Sequence[Augment] = (),
        threat: ThreatModel,
        attack: Attack,
        ramp: int,
        judge_attack: Attack,
    ):
        if ramp < 1:
            raise ValueError(f"need ramp >= 1 steps, got ramp={ramp}")
        super().__init__(classifier, data, augment=augment)
        self.threat, self.attack, self.judge_attack, self.ramp = threat, attack, judge_attack, ramp
        self.steps = 0  # done so far

    def draw(self, b: int, generator: Generator) -> tuple[Tensor, ...]:
        """Draw a batch on the CPU: x (b,C,H,W) in [0,1], y (b,), and a number (b,) that names the noise of the attack
        on each image.
        """
        x, y = super().draw(b, generator)
        return x, y, torch.randint(2**62, (b,), generator=generator)

    def loss(self, *batch: Tensor) -> Tensor:
        """The mean cross entropy at the attacked images of a batch as drawn."""
        x, y, names = batch
        device, share = next(self.net.parameters()).device, min(1.0, (self.steps + 1) / self.ramp)
        rng = Streams(names, 0, STAGE)
        self.net.eval()
        x_adv = attacked(self.classifier, self.attack, x.to(device), y.to(device), scaled(self.threat, share), rng)
        self.net.train()
        return super().loss(x_adv, y)

    def after_step(self, step: int) -> None:
        """Remember how far the ramp is."""
        self.steps = step

    def state(self) -> dict:
        """The rest of the epoch, and the place on the ramp."""
        return {**super().state(), "steps": self.steps}

    def restore(self, state: dict) -> None:
        """Continue from what `state` returned."""
        super().restore(state)
        self.steps = state["steps"]

    def judge(self, test: Subset, folder: Path, seed: int, batch: int = 128) -> dict[str, float]:
        """Accuracy on test images, clean and under the judge's attack at `SHARES` of eps. The picture has eight images
        and, below each, the attacked one.
        """
        device = next(self.net.parameters()).device
        rows, last = [(0.0, accuracy(self.classifier, test))], test.x
        for share in SHARES:
            threat, parts = scaled(self.threat, share), []
            for ids, x, y in zip(test.ids.split(batch), test.x.split(batch), test.y.split(batch), strict=True):
                rng = Streams(ids, seed, STAGE)
                found = attacked(self.classifier, self.judge_attack, x.to(device), y.to(device), threat, rng)
                parts.append(found.cpu())
            last = torch.cat(parts)
            rows.append((threat.eps, accuracy(self.classifier, test._replace(x=last))))
        write_table(folder / "judge.csv", ("eps", "accuracy"), rows)
        write_images(folder / "attacked.png", torch.cat([test.x[:8], last[:8]]))
        standard, robust = rows[0][1], rows[-1][1]
        under = self.judge_attack.says("the exact gradient")
        console.print(f"classifier: {standard:.1f} % of {len(test.x)} test images, {robust:.1f} % under {under}")
        return {"accuracy": standard, **{f"robust/eps={eps:.4g}": percent for eps, percent in rows[1:]}}


def scaled(threat: ThreatModel, share: float) -> ThreatModel:
    """The threat model with a share of its eps."""
    return dataclasses.replace(threat, eps=share * threat.eps)


def attacked(classifier: Classifier, attack: Attack, x: Tensor, y: Tensor, threat: ThreatModel, rng: Streams) -> Tensor:
    """Images (B,C,H,W) in [0,1] within the threat model that the attack finds for the bare classifier. The result of
    an image depends on its own stream alone.
    """
    model = Defended(none.purify, None, classifier)
    state = attack.start(model, x, y, threat, rng.draw(0))
    for i in range(attack.steps):
        state = attack.step(model, state, x, y, threat, rng.draw(1 + i))
    return threat.admit(state, x)[0]
