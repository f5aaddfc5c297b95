"""A run killed at random moments and started again ends with an uninterrupted run's rows, byte for byte.

Here twice for the protocol with the most parts; DP_KILLS=all takes every attack of ours, ten times. And what is lost of
the attack under way is little: `scripts/studies/kills.py` is the same at a size where a unit takes minutes.
"""

import os
import random
import signal
import time
from pathlib import Path

import pytest
from kills import killed

from tests.helpers.compose import composed, finished, options, small_budget
from tests.helpers.processes import forked, wait

OURS = [  # not the package, whose rows hang on the batch, and not `none`
    name for name in options("attack") if not name.startswith(("autoattack_upstream", "none"))
]
ATTACKS, KILLS = (OURS, 10) if os.environ.get("DP_KILLS") == "all" else (["strict"], 2)
ROWS = 5 * 3  # images x arms


def small(attack: str) -> dict:
    threat = {"stadv": "stadv", "low_frequency": "low_frequency"}.get(attack, "linf")
    given = [
        f"attack={attack}",
        f"threat_model={threat}",
        "protocol.images=5",
        "protocol.seeds=[5]",
        "protocol.votes=2",
    ]
    given += ["dataset.lanes=2", "dataset.draws_per_call=2", "purifier.steps=2", "workers=1", "save_every=0.1"]
    if attack.startswith("strict"):
        given += ["protocol=strict", "protocol.judge.draws=2", f"protocol.attack={attack}", f"attack={attack}"]
    return composed(*given, *small_budget(attack))


def start(config: dict, folder: Path) -> int:
    """A process that does what is missing of the run."""
    return forked(lambda: 0 if finished(config, folder) else 1, Path(os.devnull))


@pytest.mark.parametrize("attack", ATTACKS)
def test_kills(attack, tmp_path):
    config = small(attack)
    began = time.monotonic()
    assert wait(start(config, tmp_path / "whole")) == 0
    took, rng, kept, ends = time.monotonic() - began, random.Random(attack), [0], []
    for _ in range(KILLS):
        child = start(config, tmp_path / "killed")
        time.sleep(rng.uniform(0, took) * (1 - kept[-1] / ROWS))  # of what is left, so that there is some to kill
        os.kill(child, signal.SIGKILL)
        ends.append(wait(child))
        kept.append(sum(len(p.read_bytes().splitlines()) for p in (tmp_path / "killed").glob("rows-*.jsonl")))
    assert -signal.SIGKILL in ends
    assert wait(start(config, tmp_path / "killed")) == 0
    whole, killed = ((tmp_path / name / "images.jsonl").read_bytes() for name in ("whole", "killed"))
    assert len(whole.splitlines()) == ROWS
    assert killed == whole
    killed_in = ends.count(-signal.SIGKILL)
    print(attack, f"{took:.1f} s a run; {killed_in} of {KILLS} killed at work; rows kept after each: {kept[1:]}")


BUDGETS = {  # at least 30 iterations in one unit
    "pgd_eot": ["attack.iterations=20", "attack.restarts=2", "attack.eot=2"],
    "diffhammer": ["attack.iterations=12", "attack.eot=2", "attack.confirm=2"],
    "square": ["attack.iterations=40", "attack.eot=2"],
}


@pytest.mark.parametrize("attack", BUDGETS)
def test_a_kill_loses_little_of_the_attack(attack, tmp_path):
    """The state is saved after every iteration here. Without it the second kill alone, at .76 of the run, would make
    the ratio 1.76, since nothing else of a unit is kept.
    """
    given = [f"attack={attack}", "protocol.images=4", "protocol.seeds=[5]", "protocol.votes=1", "dataset.lanes=4"]
    given += ["dataset.draws_per_call=2", "purifier.steps=2", "workers=1", "audit=false", "save_every=0.000001"]
    cost = killed(composed(*given, *BUDGETS[attack]), 2, tmp_path, seed=0)
    assert cost.equal
    assert 1 <= cost.ratio < 1.25
    print(attack, cost)
