"""What a training needs of a task: batches, a loss, a state, and a judge at the end."""

from pathlib import Path

from torch import Generator, Tensor, nn

from dp.subset import Subset


class Task:
    """A network to train, how a global batch of it is drawn on the CPU, its loss, and how it is judged.

    A task is made as `Task(adapter, data, *, ..., **others)`: the adapter (denoiser, classifier or purifier) whose
    network `net` is trained, the training images as a `Subset`, and the frozen networks of `training.others` by name.
    """

    net: nn.Module

    def draw(self, b: int, generator: Generator) -> tuple[Tensor, ...]:
        """Draw a global batch on the CPU: tensors (b,...). All randomness of a batch comes from `generator`."""
        raise NotImplementedError  # abstract

    def loss(self, *batch: Tensor) -> Tensor:
        """The mean loss (a scalar) of a batch as drawn, or of a part of it, on the network's device."""
        raise NotImplementedError  # abstract

    def after_step(self, step: int) -> None:
        """Called when `step` steps of the weights and of their average are done, for example to move a target network.
        Does nothing by default.
        """

    def state(self) -> dict:
        """What the task remembers between steps, as tensors and plain values. By default nothing."""
        return {}

    def restore(self, state: dict) -> None:
        """Continue from what `state` returned."""
        assert not state, f"need no state for {type(self).__name__}, got {list(state)}"

    def judge(self, test: Subset, folder: Path, seed: int) -> dict[str, float]:
        """Figures on test images (x in [0,1]). They are written to the training's summary.

        At this time `net` holds the result of the training and is in evaluation mode. The judge writes a table
        judge.csv and, where it has one, a picture into `folder`, and prints one line.
        """
        raise NotImplementedError  # abstract
