"""Trackers: what W&B's and TensorBoard's own files hold, without an account and a network; and what trouble costs."""

import base64
import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from wandb.proto import wandb_internal_pb2

from dp.output.to_tensorboard import events
from dp.output.tracked import Content, Grid, figures_of, image_grid
from dp.output.tracking import Mirror, NoTracking, TensorBoard, WandB
from dp.output.wandb_file import frames
from tests.helpers.compose import composed
from tests.helpers.rows import whole_row, whole_summary

CONFIG = {"choices": {"dataset": "digits", "purifier": "hetero"}, "attack": {"iterations": 2}}
PIXELS = np.arange(64, dtype=np.uint8).reshape(8, 8) * 3


def png(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


CURVE: Any = {
    "iterations": [0, 1],
    "images": [2, 1],
    "loss": [0.5, 2.5],
    "gradient_norm": [1.0, None],
    "right": [100, 25],
}
TOLD = Content(
    {"robust/vote": 61.0, "table1/robust": 61.0, "commit": "abc"},
    {"defended": CURVE},
    {
        "images": image_grid(
            [whole_row("defended", 0, 7)], {7: {"original": png(PIXELS), "attacked": png(PIXELS + 1)}}
        ),
        "audit": Grid(["check", "verdict"], [], [["gradient", "PASS"]]),
    },
)


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """No account, and no file of W&B outside the test's folder."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def said(capsys) -> str:
    return " ".join(capsys.readouterr().out.split())


def records(folder: Path) -> dict[str, list[Any]]:
    """The records of the only W&B run in a folder, by kind, read as W&B's own messages."""
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    found: dict[str, list[Any]] = {}
    for frame in frames(path.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(frame)
        kind = str(record.WhichOneof("record_type"))
        found.setdefault(kind, []).append(getattr(record, kind))
    return found


def items(record: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record}


def test_no_tracking_leaves_no_trace(tmp_path):
    tracker = NoTracking("key", tmp_path, {})
    tracker.log({"a": 1.0})
    tracker.finish(TOLD)
    tracker.close()
    assert list(tmp_path.iterdir()) == []


def test_the_offline_record_of_wandb_holds_all(tmp_path, capsys):
    tracker = WandB("digits-key", tmp_path, CONFIG, "table1/hetero")
    tracker.log({"attack/defended/loss": 0.25, "attack/defended/gradient_norm": float("nan")})
    tracker.finish(TOLD)
    assert said(capsys) == ""
    found = records(tmp_path)
    (run,) = found["run"]
    assert (run.run_id, run.project, run.run_group) == ("digits-key", "dp", "table1/hetero")
    assert list(run.tags) == ["dataset=digits", "purifier=hetero"]
    assert items(run.config.update)["attack"] == {"iterations": 2}
    lines = [items(line.item) for line in found["history"]]
    assert any(line.get("attack/defended/loss") == 0.25 for line in lines)
    assert [line["curve/defended/loss"] for line in lines if "curve/iteration" in line] == [0.5, 2.5]
    assert [line.get("curve/defended/gradient_norm") for line in lines if "curve/iteration" in line] == [1.0, None]
    summary: dict[str, Any] = {}
    for update in found["summary"]:
        summary |= items(update.update)
    assert (summary["robust/vote"], summary["table1/robust"], summary["commit"]) == (61.0, 61.0, "abc")
    assert {"images", "audit"} <= {name.partition("/")[0] for name in summary}
    files = {e.path: Path(e.local_path) for a in found["artifact"] for e in a.manifest.contents}
    table = json.loads(files["images.table.json"].read_text())
    line = dict(zip(table["columns"], table["data"][0], strict=True))
    assert (line["id"], line["label"], line["mask"]) == (7, 1, None)
    for name, added in (("original", 0), ("attacked", 1)):
        assert np.array_equal(np.asarray(Image.open(files[line[name]["path"]])), PIXELS + added)
    assert all(path.is_relative_to(tmp_path) for path in files.values())  # the record is whole where the run is
    assert "exit" in found


def test_the_files_of_tensorboard_hold_all(tmp_path, capsys):
    tracker = TensorBoard("digits-key", tmp_path, CONFIG)
    tracker.log({"attack/defended/loss": 0.25})
    tracker.finish(TOLD)
    assert said(capsys) == ""
    (path,) = tmp_path.glob("tensorboard/events.*")
    values = [(event.step, value) for event in events(path.read_bytes()) for value in event.summary.value]
    scalars = [(value.tag, step, value.simple_value) for step, value in values if value.HasField("simple_value")]
    assert ("attack/defended/loss", 0, 0.25) in scalars
    assert ("summary/robust/vote", 0, 61.0) in scalars
    assert [(i, v) for tag, i, v in scalars if tag == "curve/defended/loss"] == [(0, 0.5), (1, 2.5)]
    pictures = {value.tag: value.image.encoded_image_string for _, value in values if value.HasField("image")}
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(pictures["images/attacked"])))[..., 0], PIXELS + 1)
    texts = {v.tag.partition("/")[0]: v.tensor.string_val[0].decode() for _, v in values if v.tensor.string_val}
    assert '"iterations": 2' in texts["config"]
    assert "| gradient | PASS |" in texts["audit"]


def test_the_figures_are_those_of_the_row():
    figures = figures_of(whole_summary(), "digits/table6")
    assert (figures["robust/vote"], figures["robust/vote/low"], figures["robust/vote/high"]) == (61.0, 59.0, 63.0)
    assert (figures["table6/standard"], figures["table6/robust"], figures["table6/null"]) == (99.0, 60.0, 98.0)
    assert (figures["nfe"], figures["seconds"]) == (8, 75.0)
    assert figures_of(whole_summary(in_loop=True), "table2/x")["table2/robust"] == 50.0
    assert not any(name.startswith("table") for name in figures_of(whole_summary(), "fig7/tau"))


@pytest.mark.parametrize(("purifier", "published"), [("hetero", {"table2/published/standard"}), ("lorid", set())])
def test_rows_that_nothing_tells_apart_are_no_published_figure(purifier, published):
    """Table 2 has two rows of LoRID, and two figures of each kind."""
    summary = whole_summary() | {"config": composed(f"+experiment=table2/{purifier}", "attack=pgd_eot")}
    assert {name for name in figures_of(summary, None) if name == "table2/published/standard"} == published


def until(true) -> None:
    end = time.monotonic() + 200
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)


def lost_once(tracker: Mirror, capsys) -> str:
    """End a tracker, and return the one warning that it has given."""
    tracker.log({"a": 1.0})
    tracker.finish(TOLD)
    tracker.log({"a": 1.0})
    tracker.close()
    text = said(capsys)
    assert text.count("warning:") == 1, text
    assert "the run's own files are complete" in text
    return text


def test_a_killed_process_costs_one_warning(tmp_path, capsys):
    tracker = TensorBoard("key", tmp_path, CONFIG)
    tracker.process.kill()
    tracker.process.wait()
    assert "TensorBoard has ended (exit code -9)" in lost_once(tracker, capsys)


def test_a_process_that_hangs_is_waited_for_so_long(tmp_path, capsys):
    """It takes nothing, and more is sent than a pipe holds."""
    tracker = TensorBoard("key", tmp_path, CONFIG, patience=1.0)
    os.kill(tracker.process.pid, signal.SIGSTOP)
    start = time.monotonic()
    for _ in range(5000):
        tracker.log({"attack/defended/loss": 0.25})
    assert "within 1 s" in lost_once(tracker, capsys)
    assert time.monotonic() - start < 30
    assert tracker.process.returncode is not None


def test_a_writer_that_hangs_in_its_beginning_ends_with_the_run():
    """The run is stopped before the writer is there: no process is left behind."""
    script = "import time; from dp.output import mirror\nmirror.mirror(lambda **_: time.sleep(600), 0.5, print)"
    held = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, text=True)
    assert held.stdin is not None
    held.stdin.write('{"begin": {}}\n')
    held.stdin.close()
    assert held.wait(60) == 1


def test_disabled_weights_and_biases_is_no_trouble(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    tracker = WandB("key", tmp_path, CONFIG)
    tracker.log({"attack/defended/loss": 0.25})
    tracker.finish(TOLD)
    tracker.close()
    assert "warning" not in said(capsys)


def test_a_server_that_does_not_answer_costs_one_warning(tmp_path, monkeypatch, capsys):
    """With an account, and no network: the run is recorded offline."""
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert "recorded offline, and `wandb sync` sends it" in lost_once(WandB("key", tmp_path, CONFIG), capsys)
    assert {"run", "history", "artifact", "exit"} <= set(records(tmp_path))


def test_wandbs_own_process_killed_costs_one_warning(tmp_path, capsys):
    tracker = WandB("key", tmp_path, CONFIG)
    until(lambda: _core(tracker.process.pid))
    time.sleep(1)
    for pid in _core(tracker.process.pid):
        os.kill(pid, signal.SIGKILL)
    assert "Weights & Biases" in lost_once(tracker, capsys)


def _core(parent: int) -> list[int]:
    """W&B's own processes below a process."""
    listed = subprocess.run(["ps", "-o", "pid=,comm=", "--ppid", str(parent)], capture_output=True, text=True).stdout
    return [int(line.split()[0]) for line in listed.splitlines() if "wandb" in line]


def test_a_full_disk_costs_one_warning(tmp_path, monkeypatch, capsys):
    """W&B's folder is on a disk of its own, which its first pictures fill."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        monkeypatch.setenv("WANDB_DIR", str(disk))
        (disk / "other").write_bytes(bytes(40 * 1024))
        assert "Weights & Biases" in lost_once(WandB("key", tmp_path, CONFIG), capsys)
    finally:
        with contextlib.suppress(OSError):
            subprocess.run(["umount", "-l", str(disk)], check=False)
