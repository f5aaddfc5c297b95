"""What `cost=true` says beside what the run then takes: CPU seconds of all of its processes, start and end included.

`python scripts/studies/cost_truth.py` asks for the cost of each run of RUNS and makes the run, `TURNS` times in turn,
because the speed of a shared core changes within minutes. It writes results/tables/cost.md from
results/measured/cost.json. Nothing else should work meanwhile. It takes about twelve minutes on two cores.
"""

import re
import resource
import subprocess
import sys
import tempfile
from statistics import fmean

import outputs
from cells import RESULTS, markdown

from dp.output.console import console
from dp.runs.errors import command

TABLE, TIMES = RESULTS / "tables" / "cost.md", RESULTS / "measured" / "cost.json"
RUNS = (
    ("purifier=diffpure", "protocol.images=64"),
    ("purifier=hetero", "protocol.images=64"),
)
TURNS = 8
SECONDS = {"h": 3600, "min": 60, "s": 1}


def run(*words: str) -> tuple[str, float]:
    """What a run of `run.py` prints, and the CPU seconds of its processes. Raises ValueError if it fails."""
    begin = resource.getrusage(resource.RUSAGE_CHILDREN)
    given = [sys.executable, "run.py", *words, "workers=2", "audit=false"]
    done = subprocess.run(given, cwd=RESULTS.parent, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"need a run that ends well, got {done.stderr.strip()}: {' '.join(words)}")
    end = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done.stdout, end.ru_utime + end.ru_stime - begin.ru_utime - begin.ru_stime


def estimated(text: str) -> float:
    """The seconds in the line `all of it: 1 min 02 s, of which ...`."""
    (line,) = re.findall(r"all of it: ([^,]*),", text)
    return sum(int(number) * SECONDS[unit] for number, unit in re.findall(r"(\d+) (h|min|s)", line))


def measured(words: tuple[str, ...]) -> dict:
    """The run with these words: the `estimated` and the `taken` CPU seconds of each turn."""
    found: dict = {"run": " ".join(words), "estimated": [], "taken": []}
    for turn in range(TURNS):
        found["estimated"].append(estimated(run(*words, "cost=true")[0]))
        with tempfile.TemporaryDirectory() as folder:
            found["taken"].append(round(run(*words, f"results={folder}")[1], 1))
        console.print(f"{found['run']}, {turn + 1}/{TURNS}: {found['estimated'][-1]} {found['taken'][-1]}")
    return found


def text(runs: list[dict]) -> str:
    """The table."""
    columns = ["run", "estimated, CPU seconds", "taken", "estimated / taken", "lowest and highest turn"]
    cells = []
    for one in runs:
        each = [said / taken for said, taken in zip(one["estimated"], one["taken"], strict=True)]
        middle = [fmean(one["estimated"]), fmean(one["taken"])]
        figures = [*(f"{value:.0f}" for value in middle), f"{middle[0] / middle[1]:.2f}"]
        cells.append([f"`{one['run']}`", *figures, f"{min(each):.2f}, {max(each):.2f}"])
    head = f"`python scripts/studies/cost_truth.py`: digits, two workers, means of {TURNS} turns.\n\n"
    return "# What a run costs, estimated and taken\n\n" + head + markdown("Runs", columns, cells)


def main() -> int:
    """The command. Returns 0 when the table is written."""
    args = outputs.parser(__doc__).parse_args()
    runs = [measured(words) for words in RUNS]
    outputs.write_measured(TIMES, runs, TABLE, text(runs), args.write)
    return 0


if __name__ == "__main__":
    sys.exit(command(main))
