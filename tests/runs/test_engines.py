"""Devices and worker processes: all visible GPUs by default, one process each, one queue of units."""

import pytest
from safetensors.torch import safe_open

from dp.audit.check import Finding
from dp.output import record
from dp.runs import machine, pipeline
from dp.runs.engines import local
from tests.helpers.compose import TINY, composed, finished


@pytest.mark.parametrize(
    ("device", "workers", "places"),
    [
        ("auto", "auto", ["cuda:0", "cuda:1", "cuda:2"]),
        ("cuda", "auto", ["cuda:0", "cuda:1", "cuda:2"]),
        ("auto", 2, ["cuda:0", "cuda:1"]),
        ("auto", 5, ["cuda:0", "cuda:1", "cuda:2", "cuda:0", "cuda:1"]),
        ("cuda:1", "auto", ["cuda:1"]),
        ("cuda:1", 2, ["cuda:1", "cuda:1"]),
        ("cpu", 3, ["cpu", "cpu", "cpu"]),
    ],
)
def test_device_and_workers_narrow_what_a_run_uses(device, workers, places, monkeypatch):
    monkeypatch.setattr(machine, "gpus", lambda: [f"cuda:{k}" for k in range(3)])
    config = {"device": device, "workers": workers}
    assert machine.places_of(config) == places
    assert machine.device_of(config) == places[0]
    assert machine.sharing(config) == max(map(places.count, places))
    for k, place in enumerate(places):  # a worker takes the memory of its device apart with those that share it
        own = machine.at_place(config, places, k)
        assert machine.device_of(own) == place
        assert machine.sharing(own) == places.count(place)


@pytest.mark.parametrize(("device", "there"), [("cuda:3", 3), ("cuda", 0), ("cuda:0", 0), ("tpu", 3)])
def test_a_device_that_is_not_there(device, there, monkeypatch):
    monkeypatch.setattr(machine, "gpus", lambda: [f"cuda:{k}" for k in range(there)])
    with pytest.raises(ValueError, match=f"got device={device}$"):
        machine.devices_of({"device": device})


def test_two_gpus_share_one_queue_and_the_parent_keeps_no_weights(tmp_path, monkeypatch):
    """Two devices of the name `cpu` in place of GPUs: the same code, and the rows are those of one process."""
    given, seen, audits = [*TINY, "protocol.seeds=[5]", "protocol.images=8", "workers=auto"], [], []
    plain = finished(composed(*given, "workers=1", "audit=false"), tmp_path / "one")

    def run_units(work, evaluation, places, on_event):
        seen.append((places, {p.device.type for arm in evaluation.arms.values() for p in arm.scored.parameters()}))
        original(work, evaluation, places, on_event)

    def audited(subject, to):
        audits.append({p.device.type for p in subject.evaluation.arms["defended"].scored.parameters()})
        return [Finding("check", "0", "1", "PASS", "4 images", 0.0)]

    original = local.run_units
    monkeypatch.setattr(local, "run_units", run_units)
    monkeypatch.setattr(pipeline, "audited", audited)
    monkeypatch.setattr(machine, "gpus", lambda: ["cpu", "cpu"])
    summary = finished(composed(*given, "device=auto", "audit=true"), tmp_path / "two")
    assert seen == [(["cpu", "cpu"], {"meta"})]
    assert audits == [{"cpu"}]
    assert (summary["workers"], plain["workers"]) == (2, 1)
    assert {name: summary[name] for name in ("standard", "robust", "null")} == {
        name: plain[name] for name in ("standard", "robust", "null")
    }
    one, two = ((tmp_path / name / record.IMAGES).read_bytes() for name in ("one", "two"))
    assert one == two
    rows = [path.read_text().splitlines() for path in sorted((tmp_path / "two").glob(record.ROWS))]
    assert sum(map(len, rows)) == 8 * 3  # no unit was done twice
    for path in (tmp_path / "two").glob("part-*"):
        with safe_open(path, "pt") as part:
            assert len(part.get_tensor("ids")) == 4
