"""Run four small commands in this tree and in a worktree of an earlier commit, and compare their rows byte for byte.

Renamed fields count as equal. Delete this file when the redesign is done.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
BEFORE = "64d60b3"
RENAMED: dict[str, str] = {}  # old field of a row -> new field
SMALL = ["protocol.images=6", "protocol.seeds=[5]", "protocol.votes=3", "dataset.lanes=4", "dataset.draws_per_call=2"]
COMMANDS = [
    ["purifier=hetero", "attack=pgd_eot", "attack.iterations=3", "attack.eot=2"],
    ["purifier=diffpure", "protocol=strict"],
    ["purifier=hetero", "protocol=diffhammer"],
    ["purifier=hetero", "attack=autoattack_upstream", "attack.iterations=3", "attack.eot=2"],
]


def rows(tree: Path, command: list[str]) -> list[str]:
    """The lines of images.jsonl after a command in a source tree."""
    with tempfile.TemporaryDirectory() as out:
        given = [sys.executable, "run.py", *SMALL, *command, f"results={out}", "workers=2"]
        subprocess.run(given, cwd=tree, check=True, stdout=subprocess.DEVNULL)
        (file,) = Path(out).glob("*/images.jsonl")
        return file.read_text().splitlines()


def main() -> int:
    """The command. Returns how many commands have different rows."""
    before = Path(tempfile.gettempdir()) / f"dp-{BEFORE}"
    if not before.exists():
        subprocess.run(["git", "worktree", "add", "--detach", str(before), BEFORE], cwd=ROOT, check=True)
    failed = 0
    for command in COMMANDS:
        cache = before / f"rows-{'-'.join(command)}.json".replace("/", "_")
        if not cache.exists():
            cache.write_text(json.dumps(rows(before, command)))
        then = [{RENAMED.get(k, k): v for k, v in json.loads(line).items()} for line in json.loads(cache.read_text())]
        same = [json.dumps(row, separators=(",", ":")) for row in then] == rows(ROOT, command)
        failed += not same
        print(f"{'same' if same else 'DIFFERENT'}: {' '.join(command)}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
