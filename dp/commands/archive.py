"""dp archive: copy finished runs from results/runs/ to results/measured/, where tables and figures read them.

Of a run it copies the summary, the loss over the iterations, and the predictions as arrays.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save

from dp.evaluation.rows import Row
from dp.output import record
from dp.output.archived import arrays_of
from dp.output.console import console
from dp.output.iterations import ITERATIONS
from dp.output.run_files import VERDICTS, incomplete
from dp.output.shapes import read_lines
from dp.runs.errors import DONE, command

MEASURED = Path("results/measured")


def archive(folder: Path, measured: Path = MEASURED) -> Path:
    """Copy the finished run in `folder` to its own folder below `measured`, and return that.

    Raises ValueError if the run is not finished or damaged. An earlier copy then stays as it is.
    """
    if record.read_summary(folder) is None:
        raise ValueError(
            f"need a finished run with {record.SUMMARY}, got {folder}: its command goes on where it stopped"
        )
    predictions, copy = save(arrays_of(finished_rows(folder))), measured / folder.name
    for name in (VERDICTS, record.SUMMARY):
        if (copy / name).is_dir():
            raise ValueError(f"need to write the file {copy / name}, got a directory: move it away")
    copy.mkdir(parents=True, exist_ok=True)
    record.write_atomic(copy / VERDICTS, predictions)
    if (folder / ITERATIONS).is_file():
        record.write_atomic(copy / ITERATIONS, (folder / ITERATIONS).read_bytes())
    record.write_atomic(copy / record.SUMMARY, (folder / record.SUMMARY).read_bytes())
    return copy


def finished_rows(folder: Path) -> list[dict]:
    """The rows of a finished run. Raises ValueError if any is missing or damaged."""
    path, todo = folder / record.IMAGES, f"delete {folder / record.SUMMARY} and start the run again"
    if not path.exists():
        raise ValueError(f"need {path} with the rows of a finished run, got no such file: {todo}")
    _, rows, damaged = read_lines(path, Row, todo)
    problem = f"{damaged} damaged lines" if damaged else incomplete(rows, record.read_summary(folder) or {})
    if problem:
        raise ValueError(f"need {path} with every row of a finished run, got {problem}: {todo}")
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns 0 if all runs are copied, 2 after a user's error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs, results/runs/<key>")
    args = parser.parse_args(argv)

    def copy_all() -> int:
        for run in args.runs:
            console.print(archive(run))
        return DONE

    return command(copy_all)
