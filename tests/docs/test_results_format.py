"""The example of docs/results-format.md, copied out and run on the files of a run."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs import examples
from tests.helpers.compose import TINY, composed, finished

PAGE = (Path(__file__).parents[2] / "docs" / "results-format.md").read_text()


@pytest.fixture(scope="module")
def printed(tmp_path_factory) -> tuple[dict, str]:
    """The summary of a small run, and what the page's script prints of its folder."""
    run, outside = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("outside")
    summary = finished(composed(*TINY, "audit=false", "workers=1", "threat_model.eps=64/255"), run)
    assert summary is not None
    assert examples.write(PAGE, outside) == ["read_images.py"]
    done = subprocess.run([sys.executable, "read_images.py", str(run)], cwd=outside, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((run / "summary.json").read_text()), done.stdout


@pytest.mark.parametrize("rule", ["single", "average", "vote"])
def test_the_script_finds_the_accuracies_of_the_summary(printed, rule):
    summary, text = printed
    robust, null = summary["robust"][rule]["value"], summary["null"][rule]["value"]
    line = re.search(rf"^{rule}: robust (\S+), null control (\S+), effect of the attack (\S+)$", text, re.MULTILINE)
    assert line is not None, text
    assert [float(n) for n in line.groups()] == pytest.approx([robust, null, null - robust], abs=0.051)


def test_the_example_run_tells_the_conditions_apart(printed):
    summary, _ = printed
    assert summary["robust"]["average"]["value"] < summary["null"]["average"]["value"]


def test_the_script_finds_every_attacked_image(printed):
    summary, text = printed
    protocol = summary["config"]["protocol"]
    conditions = 3  # defended, undefended, null
    assert f"{conditions * len(protocol['seeds']) * protocol['images']} attacked images of shape (1, 16, 16)" in text
