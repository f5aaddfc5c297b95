"""Tracking: mirrors a run to Weights & Biases. The files under results/ are the record, never this."""

from pathlib import Path
from typing import Literal, Protocol


class Tracker(Protocol):
    """`log` takes running figures, `finish` the summary."""

    def log(self, figures: dict[str, float]) -> None: ...
    def finish(self, summary: dict) -> None: ...


class NoTracking:
    """Tracks nothing."""

    def __init__(self, key: str, folder: Path, config: dict):
        pass

    def log(self, figures: dict[str, float]) -> None:
        pass

    def finish(self, summary: dict) -> None:
        pass


class WandB:
    """W&B run with id = the run's key, so that a resumed run goes on in the same dashboard; offline where there is no
    account.
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
        import wandb  # here: it costs a second

        if mode is None:
            mode = "online" if wandb.api.api_key else "offline"
        self.run = wandb.init(
            project=project, id=key, name=key, group=group, mode=mode, resume="allow", dir=str(folder), config=config
        )

    def log(self, figures: dict[str, float]) -> None:
        self.run.log(figures)

    def finish(self, summary: dict) -> None:
        for name in ("standard", "robust", "undefended", "null", "seen", "null_seen"):
            for rule, figure in summary.get(name, {}).items():
                self.run.summary[f"{name}/{rule}"] = figure["value"]
        self.run.summary.update({k: v for k, v in summary.items() if isinstance(v, int | float | str)})
        self.run.finish()
