"""A run killed twenty times: the same rows, and how many network evaluations the kills cost.

`python scripts/studies/kills.py` runs each of three attacks once undisturbed. Then it runs it again, kills the process
(SIGKILL) at twenty random moments, and starts it again after each. It writes results/tables/kills.md: the network
evaluations of both, one for each image that a denoiser or classifier is given while a unit is attacked or scored. They
are counted outside the run, so that lost work counts too. The exit code is 1 if rows differ, or if the kills cost more
than `--limit` allows. It takes about ten minutes on one idle core.
"""

import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import outputs
import torch
from cells import RESULTS, markdown
from torch import nn

from dp.classifiers import Classifier
from dp.diffusion.denoisers import Denoiser
from dp.evaluation.evaluate import Evaluation
from dp.output.record import IMAGES
from dp.runs import compose
from dp.runs.pipeline import judged

TABLE = RESULTS / "tables" / "kills.md"
BATCH = ["protocol.images=32", "protocol.seeds=[5]", "dataset.lanes=32", "dataset.draws_per_call=2", "workers=1"]
ATTACKS = {  # three attacks whose states differ: restarts; runs, choices and refilled slots; filters and Adam's moments
    "pgd_eot": ["attack=pgd_eot", "attack.iterations=100", "attack.eot=4", "attack.restarts=4"],
    "strict": [
        *["protocol=strict", "protocol.images=64", "window=2", "protocol.votes=5", "protocol.judge.draws=5"],
        *["attack.attacks.apgd_ce.iterations=60", "attack.attacks.pgd_eot.iterations=60"],
    ],
    "low_frequency": ["attack=low_frequency", "threat_model=low_frequency", "attack.iterations=200", "attack.eot=4"],
}


class Killed(NamedTuple):
    """What the kills of one run cost."""

    kills: int  # starts that ended by the kill
    plain: int  # network evaluations of the undisturbed run
    total: int  # of all starts of the killed one together
    equal: bool  # the rows are the same bytes

    @property
    def ratio(self) -> float:
        """Network evaluations of the killed run over those of the undisturbed one."""
        return self.total / self.plain


def start(config: dict, folder: Path, counter: Path) -> int:
    """A process that does what is missing of the run, and counts its network evaluations in a file. Returns its id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with (folder.parent / "output.txt").open("a") as output:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
            torch.set_num_threads(1)  # the threads of the process before the fork are gone
            count_evaluations(counter)
            setup = compose.Setup(config, compose.defaults_of(config), {})
            code = 0 if judged(setup, folder) else 1
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)
    return child


def count_evaluations(counter: Path) -> None:
    """From now on every image that a network is given while a unit is attacked or scored counts one in a file."""
    number, inside = np.memmap(counter, dtype=np.int64, mode="r+", shape=(1,)), [0]

    def hook(module: nn.Module, args: tuple) -> None:
        if inside[0] and isinstance(module, Denoiser | Classifier):
            number[0] += len(args[0])

    def counted(method: Callable) -> Callable:
        def call(*args, **kwargs):
            inside[0] += 1
            try:
                return method(*args, **kwargs)
            finally:
                inside[0] -= 1

        return call

    Evaluation.run, Evaluation.restored = counted(Evaluation.run), counted(Evaluation.restored)
    nn.modules.module.register_module_forward_pre_hook(hook)


def new_counter(path: Path) -> Path:
    """A file that holds the number 0."""
    np.zeros(1, dtype=np.int64).tofile(path)
    return path


def counted(path: Path) -> int:
    """The number in a counter's file."""
    return int(np.fromfile(path, dtype=np.int64)[0])


def wait(child: int) -> int:
    """The exit code of a process, negative if a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_at(child: int, moment: int, counter: Path) -> int:
    """Kill a process as soon as so many network evaluations are counted. Returns its exit code."""
    while counted(counter) < moment:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            break
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    return wait(child)


def killed(config: dict, kills: int, folder: Path, seed: int) -> Killed:
    """Do a run undisturbed, and again with so many kills at random moments. `folder`: for the files of both.

    The moments are uniform over the network evaluations of the undisturbed run. A killed run has done no more of its
    work than it has counted, so that every kill hits it at work. Raises ValueError if a start fails by itself.
    """
    plain, disturbed = new_counter(folder / "plain.count"), new_counter(folder / "killed.count")
    code = wait(start(config, folder / "plain", plain))
    whole = counted(plain)
    moments = sorted(random.Random(seed).sample(range(1, whole), kills))
    ends = [kill_at(start(config, folder / "killed", disturbed), moment, disturbed) for moment in moments]
    last = wait(start(config, folder / "killed", disturbed))
    if code or last or set(ends) != {-signal.SIGKILL}:
        output = (folder / "output.txt").read_text()[-2000:]
        raise ValueError(f"need starts that end by the kill or well, got {code}, {ends}, {last}: {output}")
    rows = [(folder / name / IMAGES).read_bytes() for name in ("plain", "killed")]
    return Killed(len(ends), whole, counted(disturbed), rows[0] == rows[1])


def main(argv: Sequence[str] | None = None) -> int:
    """Do the study and write its table. Returns 1 if rows differ or the kills cost too much, else 0."""
    parser = outputs.parser(__doc__)
    parser.add_argument("--kills", type=outputs.at_least_one, default=20)
    parser.add_argument("--save-every", type=float, default=2.0, help="seconds between two saved states")
    parser.add_argument("--limit", type=float, default=1.3, help="largest ratio of network evaluations")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    given, failed, lines = parser.parse_args(argv), 0, []
    for name, words in ATTACKS.items():
        config = compose.composed(*BATCH, *words, f"save_every={given.save_every}", "audit=false")
        with tempfile.TemporaryDirectory() as folder:
            cost = killed(config, given.kills, Path(folder), given.seed)
        failed += not cost.equal or cost.ratio > given.limit
        lines.append([name, *map(str, cost[:3]), f"{cost.ratio:.3f}", "equal" if cost.equal else "DIFFERENT"])
        print(*lines[-1], sep=", ", flush=True)
    columns = ["attack", "kills", "evaluations, undisturbed", "with kills", "ratio", "rows"]
    head = f"`python scripts/studies/kills.py`: each run is killed (SIGKILL) {given.kills} times at random moments, "
    head += f"and its state is saved every {given.save_every:g} seconds. Network evaluations are of one image.\n\n"
    table = outputs.target(TABLE, given.write)
    table.write_text("# A run that is killed again and again\n\n" + head + markdown("The runs", columns, lines))
    print(table)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
