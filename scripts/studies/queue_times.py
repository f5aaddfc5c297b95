"""The simulated queue beside runs: the wall time of a run on one and on two workers, and what the queue predicts.

`python scripts/studies/queue_times.py` runs the embedded benchmark on one worker and on two, notes when each unit ends,
and simulates the queue with the units' own times. It writes results/tables/queue.md from results/measured/queue.json.
The cores must be idle. It takes about three minutes.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import outputs
from cells import RESULTS, markdown

from dp.evaluation.schedule import schedule
from dp.runs.errors import command

TABLE, TIMES = RESULTS / "tables" / "queue.md", RESULTS / "measured" / "queue.json"
WORDS = ("purifier=diffpure", "protocol.images=32", "dataset.lanes=8", "audit=false")  # 36 units of two lengths
WORKERS = (1, 2)


def measured(workers: int) -> dict:
    """A run on so many workers: the `seconds` of its units in the order of their ends, and the `wall` seconds from the
    start of the first unit to the end of the last.
    """
    seconds, ends, read = list[float](), list[float](), dict[Path, int]()  # `read`: lines of each worker's file
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "run.py", *WORDS, f"workers={workers}", f"results={folder}"]
        run = subprocess.Popen(words, cwd=RESULTS.parent, stdout=subprocess.DEVNULL)
        while run.poll() is None:
            time.sleep(0.01)
            for path in Path(folder).glob("*/timing-*.jsonl"):
                lines = path.read_text().splitlines()[read.get(path, 0) :]
                read[path] = read.get(path, 0) + len(lines)
                seconds += [json.loads(line)["seconds"] for line in lines]
                ends += [time.monotonic()] * len(lines)
    if run.returncode:
        raise ValueError(f"need a run that ends well, got exit code {run.returncode}: {' '.join(words)}")
    begun = min(end - spent for end, spent in zip(ends, seconds, strict=True))
    return {"workers": workers, "seconds": seconds, "wall": ends[-1] - begun}


def text(runs: list[dict]) -> str:
    """The table of these runs, which are those of `WORKERS`."""
    cells, alone = [], runs[0]["seconds"]
    for run in runs:
        own = schedule(run["seconds"], run["workers"])
        before = schedule(alone, run["workers"]).seconds
        figures = [f"{value:.1f}" for value in (sum(run["seconds"]), run["wall"], own.seconds)]
        share = f"{own.seconds / run['wall']:.3f}"
        cells.append([str(run["workers"]), str(len(run["seconds"])), *figures, share, f"{before:.1f}"])
    columns = ["workers", "units", "seconds of all units", "wall seconds of the run", "simulated", "simulated / wall"]
    return (
        "# The queue of units, simulated and run\n\n`python scripts/studies/queue_times.py`: digits, "
        f"{' '.join(WORDS)}, on two cores. The last column takes the times of the units from the run on one worker.\n\n"
        + markdown("Runs", [*columns, "simulated, units of one worker"], cells)
    )


def main() -> int:
    """The command. Returns 0 when the table is written."""
    args = outputs.parser(__doc__).parse_args()
    runs = [measured(workers) for workers in WORKERS]
    outputs.write_measured(TIMES, runs, TABLE, text(runs), args.write)
    return 0


if __name__ == "__main__":
    sys.exit(command(main))
