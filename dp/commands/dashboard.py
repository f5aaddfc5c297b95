"""dp dashboard: the W&B workspace of all runs, with panels for the paper's Tables 1-8 and Fig. 7.

Without --entity it writes the workspace's specification to a file alone, and asks no network. With --entity it also
saves the workspace to the project at W&B, for which an account is needed (`wandb login`).
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dp.output.console import console
from dp.output.record import write_atomic
from dp.runs.errors import DONE, command

FILE = Path("results/dashboard.json")
TABLES = {
    1: "CIFAR-10, linf 8/255, WRN-28-10",
    2: "CIFAR-10, linf 8/255, WRN-70-16",
    3: "CIFAR-10, l2 0.5, WRN-28-10",
    4: "CIFAR-10, l2 0.5, WRN-70-16",
    5: "CIFAR-10, linf 8/255, BPDA+EOT",
    6: "ImageNet, linf, ResNet-50",
    7: "the blocks of the mask, CIFAR-10",
    8: "SVHN, linf 8/255, WRN-28-10",
}
MEASURED, PUBLISHED = ("standard", "robust", "null"), ("published/standard", "published/robust")
ARMS = ("defended", "undefended", "null")


def workspace(entity: str, project: str) -> Any:
    """The workspace as an object of wandb-workspaces. Raises ValueError if that is not installed."""
    try:
        import wandb_workspaces.workspaces as ws
    except ModuleNotFoundError:
        raise ValueError("need wandb-workspaces, got none: pip install 'dp-purification[dashboard]'") from None
    sections = [*_tables(), _sweeps(), _attack(), _rows()]
    for section in sections:
        section.is_open = True
    # Runs of a sweep have its preset as their group.
    settings = ws.RunsetSettings(groupby=[ws.Metric("Group")])
    return ws.Workspace(name="dp", entity=entity, project=project, sections=sections, runset_settings=settings)


def _tables() -> list[Any]:
    """A section for each table. A run that stands for no cell of a table lacks its figures, so no filter is needed."""
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    sections = []
    for number, what in TABLES.items():
        bars: list[Any] = [
            wr.BarPlot(title=f"{name.replace('/', ', ')}, percent", metrics=[f"table{number}/{name}"])
            for name in (*MEASURED, *PUBLISHED)
        ]
        sections.append(ws.Section(name=f"Table {number}: {what}", panels=bars))
    return sections


def _sweeps() -> Any:
    """Fig. 7: accuracy over tau, and over t_l and t_s."""
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces.reports.v2.interface import ParallelCoordinatesPlotColumn

    panels: list[Any] = [
        wr.ScatterPlot(
            title=f"{side} accuracy over {name}", x=wr.Config(f"purifier.{name}"), y=wr.SummaryMetric(f"{side}/single")
        )
        for name in ("tau", "t_l", "t_s")
        for side in ("standard", "robust")
    ]
    columns = [*[wr.Config(f"purifier.{n}") for n in ("t_l", "t_s")], wr.SummaryMetric("robust/single")]
    panels.append(
        wr.ParallelCoordinatesPlot(
            title="robust accuracy over t_l and t_s",
            columns=[ParallelCoordinatesPlotColumn(metric=metric) for metric in columns],
        )
    )
    return ws.Section(name="Fig. 7: tau, t_l and t_s", panels=panels)


def _attack() -> Any:
    """The attack over its iterations, under every condition."""
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    titles = {
        "loss": "cross entropy, nats",
        "gradient_norm": "l2 norm of the gradient",
        "right": "right samples, percent",
    }
    panels: list[Any] = [
        wr.LinePlot(title=f"{arm}: {title}", x="curve/iteration", y=[f"curve/{arm}/{name}"])
        for arm in ARMS
        for name, title in titles.items()
    ]
    return ws.Section(name="The attack over its iterations", panels=panels)


def _rows() -> Any:
    """The rows, the images and the audit."""
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    rules = ("single", "vote", "average", "worst")
    bars = [wr.BarPlot(title=f"robust, {rule}", metrics=[f"robust/{rule}"]) for rule in rules]
    tables = [wr.WeavePanelSummaryTable(table_name=name) for name in ("images", "audit")]
    return ws.Section(name="Rows, images and audits", panels=[*bars, *tables])


def specification(made: Any) -> dict[str, Any]:
    """The workspace as W&B stores it, without the ids that are drawn anew each time."""
    return _plain(json.loads(made._to_model().model_dump_json(by_alias=True, exclude_none=True)))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if k not in ("__id__", "id", "ref")}
    return [_plain(v) for v in value] if isinstance(value, list) else value


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns 0, or 2 after a user's error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entity", help="the user or team at W&B to whose project the workspace is saved")
    parser.add_argument("--project", default="dp", help="the project that the runs are in (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=FILE, help="file for the specification (default: %(default)s)")
    args = parser.parse_args(argv)

    def write() -> int:
        made = workspace(args.entity or "", args.project)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(args.out, (json.dumps(specification(made), indent=1, sort_keys=True) + "\n").encode())
        console.print(f"specification: {args.out}")
        if args.entity:
            console.print(f"workspace: {save(made)}")
        else:
            console.print("to save the workspace at W&B: dp dashboard --entity NAME")
        return DONE

    return command(write)


def save(made: Any) -> str:
    """Save the workspace at W&B. Returns its address. Raises ValueError if W&B does not take it."""
    from requests import RequestException
    from wandb.errors import Error

    try:
        return made.save().url
    except (Error, RequestException, ValueError) as error:
        raise ValueError(f"need an account and a network to save the workspace, got: {error}") from None
