"""What a tracker is told of a run: its preset, and pictures that are those of the run's files."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from dp.output import record, rescore
from dp.runs import pipeline
from dp.runs.keys import run_key
from dp.runs.mirrored import content
from dp.runs.pipeline import Job
from dp.runs.shown import shown
from tests.helpers.compose import TINY, composed, finished, setup

FEW = (*TINY, "purifier=hetero", "protocol.images=3", "protocol.seeds=[5]", "workers=1", "audit=false")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder and the summary of a finished run."""
    folder = tmp_path_factory.mktemp("runs") / run_key(composed(*FEW))
    return folder, finished(composed(*FEW), folder)


def pixels(png: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))))


def test_the_table_has_the_pictures_of_the_runs_files(run):
    folder, summary = run
    told = content(folder, summary, "digits/table1", 2)
    assert told.curves == json.loads((folder / "iterations.json").read_text())
    assert told.figures["robust/vote"] == summary["robust"]["vote"]["value"]
    assert told.figures["table1/robust"] == summary["robust"]["single"]["value"]
    group = next(group for group in rescore.saved(folder) if group.arm == "defended")
    lines = [dict(zip(told.tables["images"].columns, row, strict=True)) for row in told.tables["images"].rows]
    assert [line["id"] for line in lines] == [row["id"] for row in group.rows[:2]]
    material = shown(summary)
    for line, x in zip(lines, group.x_adv, strict=False):
        clean = material.images[material.ids.index(line["id"])]  # pyright: ignore[reportAttributeAccessIssue]
        assert np.array_equal(pixels(line["attacked"]), (255 * x[0]).round().numpy().astype(np.uint8))
        assert np.array_equal(pixels(line["original"]), (255 * clean[0]).round().numpy().astype(np.uint8))
        assert set(np.unique(pixels(line["mask"]))) <= {0, 255}
        assert pixels(line["purified"]).shape == (16, 16)


def test_trouble_with_the_pictures_costs_the_pictures(run, monkeypatch, capsys):
    """As when the GPU has no room for the networks once more."""
    folder, summary = run

    def full(_summary):
        raise RuntimeError("CUDA out of memory")

    class Told:
        images, got = 2, None

        def finish(self, content):
            self.got = content

    monkeypatch.setattr("dp.runs.mirrored.shown", full)
    made, tracker = setup(*FEW), Told()
    job = Job(made, folder, "code", None, None, None, tracker)  # pyright: ignore[reportArgumentType]
    pipeline.mirror(job, summary)
    assert "gets no pictures: CUDA out of memory" in " ".join(capsys.readouterr().out.split())
    assert tracker.got is not None
    assert "images" not in tracker.got.tables
    assert tracker.got.figures["nfe"] == record.read_summary(folder)["caveats"]["nfe"]  # pyright: ignore[reportOptionalSubscript]


def test_the_preset_is_that_of_the_command():
    made = setup("+experiment=table1/hetero", "protocol.images=8")
    assert Job(made, None, "", None, None, None).preset == "table1/hetero"  # pyright: ignore[reportArgumentType]
    assert Job(setup(), None, "", None, None, None).preset is None  # pyright: ignore[reportArgumentType]
