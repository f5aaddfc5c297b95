"""For bench.py: the CPU seconds from the start of `python run.py` to its first iteration."""

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

WORDS = ("protocol.images=32", "workers=1", "audit=false")  # of the embedded benchmark
STEPPED = 7  # the exit code of a run that has come to its first step
YAML = "_target_: first.Stop\niterations: 10\neot: 4\nselect: last\n"
CODE = f"""import os
from dp.attacks.pgd_eot import PGD

class Stop(PGD):
    def step(self, *_, **__):
        os._exit({STEPPED})
"""


def medians(turns: int, *checkouts: Path) -> list[float]:
    """The median of `first_iteration` for each checkout, run in turn. One turn more, the first, only warms up."""
    spent = [[first_iteration(checkout) for checkout in checkouts] for _ in range(turns + 1)]
    return [statistics.median(times) for times in zip(*spent[1:], strict=True)]


def first_iteration(checkout: Path) -> float:
    """The CPU seconds of a run in a checkout, in a process of its own that ends with the first step of its attack.

    The attack is a plug-in: PGD that ends the process. Raises ValueError if the run ends in another way.
    """
    with tempfile.TemporaryDirectory() as folder:
        option = Path(folder, "mine", "attack", "first.yaml")
        option.parent.mkdir(parents=True)
        option.write_text(YAML)
        Path(folder, "first.py").write_text(CODE)
        words = [sys.executable, str(checkout / "run.py"), "--config-dir", "mine", "attack=first", *WORDS]
        env = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
        with open(Path(folder, "said"), "w+") as said:
            run = subprocess.Popen(words, cwd=folder, env=env, stdout=said, stderr=subprocess.STDOUT)
            _, status, used = os.wait4(run.pid, 0)
            if os.waitstatus_to_exitcode(status) != STEPPED:
                said.seek(0)
                raise ValueError(f"need a run of {checkout} that takes a step, got: {said.read()[-300:]}")
    return used.ru_utime + used.ru_stime
