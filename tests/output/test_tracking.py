"""W&B mirrors a run offline, without an account and without a network."""

import time

from dp.output.tracking import NoTracking, WandB

SUMMARY = {
    "standard": {"single": {"value": 97.0}},
    "robust": {"single": {"value": 60.0}, "vote": {"value": 61.0}},
    "nfe": 8,
}


def test_no_tracking_leaves_no_trace(tmp_path):
    tracker = NoTracking("key", tmp_path, {})
    tracker.log({"a": 1.0})
    tracker.finish(SUMMARY)
    assert list(tmp_path.iterdir()) == []


def test_wandb_writes_offline_with_the_runs_key(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # no account
    tracker = WandB("digits-key", tmp_path, {"a": 1})
    tracker.log({"robust/single": 50.0})
    tracker.finish(SUMMARY)
    assert tracker.run.id == "digits-key"
    (log,) = tmp_path.glob("wandb/offline-run-*-digits-key/*.wandb")
    end = time.monotonic() + 60  # its own process writes
    while b"nfe" not in (written := log.read_bytes()) and time.monotonic() < end:
        time.sleep(0.5)
    assert b"robust/vote" in written
    assert b"robust/single" in written
    assert b"nfe" in written
