"""The engine `ray`: its rows are those of `engine=local`, whichever process dies."""

import fcntl
import os
import secrets
import signal
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path

import pytest

from dp.evaluation.rows import Unit
from dp.evaluation.snapshot import Snapshot, packed
from dp.output.record import merge, read_rows
from dp.output.snapshots import Snapshots
from dp.runs.build import build
from dp.runs.engines.interface import Work
from dp.runs.engines.on_ray import Ray
from dp.runs.engines.ray_driver import Driver, Member
from dp.runs.engines.ray_worker import News, Worker
from dp.runs.errors import USER_ERRORS
from dp.runs.keys import run_key
from dp.runs.sources import sources_hash
from tests.helpers.compose import TINY, composed, finished
from tests.helpers.locks import SAID, no_locks
from tests.helpers.processes import ended, forked, wait

GIVEN = [*TINY, "protocol.seeds=[5]", "protocol.images=8", "attack.iterations=12", "save_every=0.2", "audit=false"]


def hold(address: Path) -> int:
    """Be the head of a cluster of this machine with room for two workers until this process is killed."""
    import ray

    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    address.with_suffix(".new").write_text(ray.get_runtime_context().gcs_address)
    address.with_suffix(".new").rename(address)
    time.sleep(600)
    return 1


@pytest.fixture(scope="module")
def head(tmp_path_factory) -> Iterator[tuple[int, str]]:
    """The process that holds the cluster, and the cluster's address. It is a copy of this one, as the first driver is:
    so both need no seconds for imports. The cluster has a token of its own, which Ray must know before its import.
    """
    own = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    before = {name: os.environ.get(name) for name in own}
    os.environ |= own
    import ray

    address = tmp_path_factory.mktemp("head") / "address"
    process = forked(lambda: hold(address), address.with_suffix(".out"))
    while not address.exists():
        assert not ended(process), address.with_suffix(".out").read_text()
        time.sleep(0.05)
    yield process, address.read_text()
    ray.shutdown()
    os.kill(process, signal.SIGTERM)
    wait(process)
    for name, value in before.items():
        os.environ.pop(name)
        os.environ |= {} if value is None else {name: value}


@pytest.fixture(scope="module")
def killed(head, tmp_path_factory) -> Path:
    """The folder of a run whose driver was killed in the middle of an attack."""
    folder = tmp_path_factory.mktemp("killed") / "run"
    config = composed(*GIVEN, "workers=1", "engine=ray", f"engine.address={head[1]}")
    driver = forked(lambda: 0 if finished(config, folder) else 1, folder.with_suffix(".out"))
    while not list(folder.glob("state-*")):
        assert not ended(driver), folder.with_suffix(".out").read_text()
        time.sleep(0.05)
    os.kill(driver, signal.SIGKILL)
    assert wait(driver) == -signal.SIGKILL
    return folder


def workers_of_ray(head: int) -> list[int]:
    """The processes of workers of a cluster. `head`: the process that holds it."""
    parents, found = {}, []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words, pid = (path / "cmdline").read_bytes(), int(path.name)
            parents[pid] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
        if words.startswith(b"ray::Worker"):
            found.append(pid)
    return [pid for pid in found if parents.get(parents[pid]) == head]


def test_a_killed_driver_and_a_killed_worker_change_no_row(head, killed, monkeypatch, tmp_path, capsys):
    """The disk has no file locks, either. The second driver goes on from the first one's state."""
    config = composed(*GIVEN, "engine=ray", f"engine.address={head[1]}")
    begun, _ = Snapshots(killed, run_key(config), sources_hash(config)).begun(read_rows(killed))
    assert begun
    monkeypatch.setattr(fcntl, "flock", no_locks)
    evaluation, victims, events = build(config), [], []
    units = evaluation.plan(read_rows(killed), begun)

    def on_event(event):
        events.append(event)
        if not victims and event.rows is None and event.unit not in begun:
            victims.append(workers_of_ray(head[0])[0])
            os.kill(victims[0], signal.SIGKILL)

    engine = Ray(head[1])
    assert engine.workers(config) == 2
    engine.run(Work(build, config, units, killed, "1of1"), evaluation, on_event)
    assert capsys.readouterr().out.count(SAID) == 1
    assert victims
    assert next(event.step for event in events if event.unit == begun[0]) > 1
    assert sorted(e.unit for e in events if e.rows is not None) == sorted(units)
    assert finished(config, killed)["workers"] == 2
    assert finished(composed(*GIVEN, "workers=1"), tmp_path)
    assert (killed / "images.jsonl").read_bytes() == (tmp_path / "images.jsonl").read_bytes()
    assert not list(killed.glob("*state-*"))


def test_a_stopped_driver_saves_the_states_of_its_workers(head, tmp_path, monkeypatch, capsys):
    """No state is due by time. The disk has no file locks, which the driver says."""
    monkeypatch.setattr(fcntl, "flock", no_locks)
    config = composed(*GIVEN, "workers=1", "attack.iterations=200", "save_every=1000")
    evaluation, seen = build(config), []
    work = Work(build, config, evaluation.plan()[:1], tmp_path, "1of1")

    def stop(event):
        seen.append(event.step)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Ray(head[1]).run(work, evaluation, stop)
    assert capsys.readouterr().out.count(SAID) == 1
    (unit,), _ = Snapshots(tmp_path, run_key(config), sources_hash(config)).begun(())
    assert unit == work.units[0]
    saved = Snapshots(tmp_path, run_key(config), sources_hash(config)).read(unit)
    assert saved.fields["outcomes"][0][1] >= seen[0] - 1  # an event comes just before the state of its iteration


@pytest.fixture
def machines(head):
    """Another cluster of two machines, a head without a free core and one with a single core; that machine.

    The first cluster's processes are copies of this one, which must be made before this one is a driver.
    """
    import ray
    from ray.cluster_utils import Cluster

    ray.shutdown()  # of the other cluster
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield cluster, cluster.add_node(num_cpus=1)
    ray.shutdown()
    cluster.shutdown()


def test_a_machine_joins_and_another_leaves(machines, tmp_path, monkeypatch):
    """The second joins at the first news, and the first leaves as soon as both are at work: its unit is lost."""
    cluster, first = machines
    words, local = [*TINY, "protocol.images=8", "attack.iterations=30", "audit=false", "save_every=0.2"], tmp_path / "l"
    config = composed(*words, "engine=ray", f"engine.address={cluster.address}")
    evaluation, busy, left, lost = build(config), set(), [], []
    folder, units = tmp_path / "run", evaluation.plan()
    folder.mkdir()
    lose = Driver._lost
    monkeypatch.setattr(
        Driver, "_lost", lambda self, member, error: (lost.append(member.unit), lose(self, member, error))
    )

    def on_event(event):
        if len(cluster.list_all_nodes()) == 2 and not left:
            cluster.add_node(num_cpus=1)
        busy.add(event.unit)
        if event.rows is not None:
            busy.discard(event.unit)
        if len(busy) == 2 and not left:
            left.append(cluster.remove_node(first))

    engine = Ray(cluster.address)
    assert engine.workers(config) == 1
    engine.run(Work(build, config, units, folder, "1of1"), evaluation, on_event)
    assert len(left) == len(lost) == 1
    assert lost[0] in units
    merge(folder)
    assert finished(composed(*words, "workers=1"), local)
    assert (folder / "images.jsonl").read_bytes() == (local / "images.jsonl").read_bytes()


def failing(config):
    raise FileNotFoundError("missing weights: need x")


def broken(config):
    raise KeyError("a bug")


def test_a_worker_answers_with_its_error(tmp_path):
    error, bug = (Worker().start(build, {}, os.getcwd()) for build in (failing, broken))
    assert (type(error), str(error)) == (OSError, "missing weights: need x")
    assert isinstance(bug, RuntimeError)
    assert "KeyError: 'a bug'" in str(bug)


def test_a_worker_that_dies_again_and_again_ends_the_run(tmp_path, monkeypatch):
    """Without a cluster: three losses of the same unit without any progress between, but not with it."""
    monkeypatch.setattr(Driver, "__init__", lambda self: None)
    driver, unit = Driver(), Unit("null", 5, (1,))
    driver.deaths, driver.waiting, driver.crew = Counter(), deque(), []
    driver.snapshots, driver.on_event = Snapshots(tmp_path, "key", "code"), lambda event: None
    state = News(unit, None, packed(Snapshot.first(1)))

    def lose():
        member = Member(None, None, unit)
        driver.crew.append(member)
        driver._lost(member, RuntimeError("it died"))

    for _ in range(3):
        lose()
        lose()
        driver._heard(Member(None, None, unit), state)
    assert list(driver.waiting) == [unit] * 6
    lose()
    lose()
    with pytest.raises(OSError, match=r"3 workers died one after another on the same work.*it died"):
        lose()


def test_a_worker_of_other_code_is_refused_in_one_line(tmp_path, monkeypatch):
    """Without a cluster: a real worker's answer, and a driver whose code has been changed since."""
    config = composed(*TINY)
    monkeypatch.setattr(Driver, "__init__", lambda self: None)
    started = Worker().start(build, config, os.getcwd())
    driver, member = Driver(), Member(None, None)
    driver.deaths, driver.waiting, driver.crew, driver.code = Counter(), deque(), [], "f" * 64
    driver.crew.append(member)
    said = rf"^need one code, plug-ins and weights on all machines, got others on {socket.gethostname()} "
    with pytest.raises(USER_ERRORS, match=said + rf"\({sources_hash(config)[:8]}, here ffffffff\): install.*$") as e:
        driver._answered(member, started)
    assert "\n" not in str(e.value)


def test_a_device_of_one_machine_is_refused(head):
    config = composed(*GIVEN)
    with pytest.raises(ValueError, match="need device auto, cpu or cuda with engine=ray, got device=cuda:1"):
        Ray(head[1]).workers({**config, "device": "cuda:1"})


def test_no_cluster_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match="need Ray for engine=ray, got none: pip install"):
        Ray("auto").workers(composed(*GIVEN))
