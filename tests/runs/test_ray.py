"""The engine `ray`: its rows are those of `engine=local`, whichever process dies."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray

from dp.output.record import read_rows
from dp.output.snapshots import Snapshots
from dp.runs.build import build
from dp.runs.engines.interface import Work
from dp.runs.engines.on_ray import Ray
from dp.runs.keys import run_key
from dp.runs.sources import sources_hash
from tests.helpers.compose import TINY, composed, finished

ROOT = Path(__file__).parents[2]
GIVEN = [*TINY, "protocol.seeds=[5]", "protocol.images=8", "attack.iterations=12", "save_every=0.2", "audit=false"]


@pytest.fixture(scope="module")
def cluster():
    """The address of a cluster of this machine with room for two workers."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture(scope="module")
def killed(cluster, tmp_path_factory) -> Path:
    """The folder of a run whose driver was killed in the middle of an attack."""
    folder = tmp_path_factory.mktemp("killed")
    words = [*GIVEN, "workers=1", "engine=ray", f"engine.address={cluster}", f"results={folder}"]
    driver = subprocess.Popen([sys.executable, str(ROOT / "run.py"), *words], stdout=subprocess.DEVNULL)
    while driver.poll() is None and not list(folder.glob("*/state-*")):
        time.sleep(0.05)
    driver.kill()
    assert driver.wait() == -signal.SIGKILL
    (run,) = folder.iterdir()
    return run


def workers_of_ray() -> list[int]:
    """The processes of actors of this cluster, which has started in this process."""
    parents, found = {}, []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words, pid = (path / "cmdline").read_bytes(), int(path.name)
            parents[pid] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
        if words.startswith(b"ray::Worker"):
            found.append(pid)
    return [pid for pid in found if parents.get(parents[pid]) == os.getpid()]


def test_a_killed_driver_and_a_killed_worker_change_no_row(cluster, killed, monkeypatch, tmp_path):
    """The disk has no file locks, either. The second driver goes on from the first one's state."""

    def no_locks(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    config = composed(*GIVEN, "engine=ray", f"engine.address={cluster}")
    begun, _ = Snapshots(killed, run_key(config), sources_hash(config)).begun(read_rows(killed))
    assert begun
    monkeypatch.setattr(fcntl, "flock", no_locks)
    evaluation, victims, events = build(config), [], []
    units = evaluation.plan(read_rows(killed), begun)

    def on_event(event):
        events.append(event)
        if not victims and event.rows is None and event.unit not in begun:
            victims.append(workers_of_ray()[0])
            os.kill(victims[0], signal.SIGKILL)

    engine = Ray(cluster)
    assert engine.workers(config) == 2
    engine.run(Work(build, config, units, killed, "1of1"), evaluation, on_event)
    assert victims
    assert next(event.step for event in events if event.unit == begun[0]) > 1
    assert sorted(e.unit for e in events if e.rows is not None) == sorted(units)
    assert finished(config, killed)["workers"] == 2
    assert finished(composed(*GIVEN, "workers=1"), tmp_path)
    assert (killed / "images.jsonl").read_bytes() == (tmp_path / "images.jsonl").read_bytes()
    assert not list(killed.glob("*state-*"))


def failing(config):
    raise FileNotFoundError("missing weights: need x")


def test_what_a_worker_raises_arrives_in_one_line(cluster, tmp_path):
    config = composed(*GIVEN, "workers=1")
    evaluation = build(config)
    work = Work(failing, config, evaluation.plan()[:1], tmp_path, "1of1")
    with pytest.raises(OSError, match=r"^missing weights: need x$"):
        Ray(cluster).run(work, evaluation, lambda event: None)
    with pytest.raises(ValueError, match="need device auto, cpu or cuda with engine=ray, got device=cuda:1"):
        Ray(cluster).workers({**config, "device": "cuda:1"})
