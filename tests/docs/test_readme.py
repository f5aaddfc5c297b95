"""The example of README.md, copied out and run outside the tree."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs import examples

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "README.md").read_text()
SMALL = ("protocol.images=4", "protocol.seeds=[2024]", "protocol.votes=3", "attack.iterations=2", "workers=1")


@pytest.mark.slow
def test_the_purifier_runs_outside_the_tree(tmp_path):
    assert examples.write(PAGE, tmp_path) == ["mine/purifier/one_step.yaml", "one_step.py"]
    (command,) = re.findall(r"`python run\.py (--config-dir mine [^`]+)`", PAGE)
    words = [str(ROOT / "run.py"), *command.split(), *SMALL, "results=found"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *words], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (summary,) = tmp_path.glob("found/*/summary.json")
    found = json.loads(summary.read_text())
    assert found["config"]["choices"]["purifier"] == "one_step"
    assert found["caveats"]["nfe"] == found["caveats"]["attack_nfe"] == 1
    assert "unaudited" in done.stdout
