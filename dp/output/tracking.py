"""Tracking: copies the figures of a run to Weights & Biases. The files under results/ remain the record."""

from pathlib import Path
from typing import Literal, Protocol


class Tracker(Protocol):
    """What a run reports its figures to."""

    def log(self, figures: dict[str, float]) -> None:
        """Report figures while the run goes on."""
        ...

    def finish(self, summary: dict) -> None:
        """Report the summary, and end."""
        ...


class NoTracking:
    """Tracks nothing."""

    def __init__(self, key: str, folder: Path, config: dict):
        pass

    def log(self, figures: dict[str, float]) -> None:
        """Does nothing."""

    def finish(self, summary: dict) -> None:
        """Does nothing."""


class WandB:
    """A run of Weights & Biases whose id is the run's key, so that a resumed run continues in the same dashboard.

    `mode`: None means online if an account is set up, else offline.
    """

    def __init__(
        self,
        key: str,
        folder: Path,
        config: dict,
        *,
        project: str = "dp",
        group: str | None = None,
        mode: Literal["online", "offline"] | None = None,
    ):
        import wandb  # imported here because it takes a second

        if mode is None:
            mode = "online" if wandb.api.api_key else "offline"
        self.run = wandb.init(
            project=project,
            id=key,
            name=key,
            group=group,
            mode=mode,
            resume="allow",
            dir=str(folder.absolute()),
            config=config,
        )

    def log(self, figures: dict[str, float]) -> None:
        """Report figures while the run goes on."""
        self.run.log(figures)

    def finish(self, summary: dict) -> None:
        """Report the figures of the summary, and end the W&B run."""
        for name in ("standard", "robust", "undefended", "null", "seen", "null_seen"):
            for rule, figure in summary.get(name, {}).items():
                self.run.summary[f"{name}/{rule}"] = figure["value"]
        self.run.summary.update({k: v for k, v in summary.items() if isinstance(v, int | float | str)})
        self.run.finish()
