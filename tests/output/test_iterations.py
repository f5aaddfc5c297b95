"""The loss over the iterations of a run, from its parts."""

import json

import torch

from dp.evaluation.rows import Group, Unit
from dp.output import record
from dp.output.iterations import ITERATIONS, MOST, read_iterations, write_iterations
from tests.helpers.rows import whole_row

NAN = float("nan")


def group(arm: str, ids: tuple[int, ...], curves: list[list[list[float]]], iterations: list[int]) -> Group:
    adv = torch.zeros(len(ids), 2, 3)
    rows = [whole_row(arm, 0, i, iterations=n) for i, n in zip(ids, iterations, strict=True)]
    return Group(Unit(arm, 0, ids), rows, torch.full((len(ids), 1, 2, 2), 0.5), None, adv, 1.5, torch.tensor(curves))


def written(folder, groups: list[Group]) -> bytes:
    folder.mkdir()
    writer = record.Writer(folder, "a")
    for each in groups:
        writer.write(each)
    writer.close()
    write_iterations(folder, record.merge(folder))
    return (folder / ITERATIONS).read_bytes()


def test_means_are_over_images_under_attack_and_a_broken_one_counts_as_wrong(tmp_path):
    """Image 4 is broken after one iteration; the second iteration of image 2 asked for no gradient."""
    first, second = [[1.0, 0.5, 1.0], [NAN, NAN, NAN]], [[3.0, 1.5, 1.0], [5.0, NAN, 0.5]]
    together = written(tmp_path / "one", [group("defended", (4, 2), [first, second], [1, 2])])
    assert read_iterations(tmp_path / "one") == {
        "defended": {
            "iterations": [0, 1],
            "images": [2, 1],
            "loss": [2.0, 5.0],
            "gradient_norm": [1.0, None],
            "right": [100.0, 25.0],
        }
    }
    apart = [group("defended", (2,), [second], [2]), group("defended", (4,), [[first[0]]], [1])]
    assert written(tmp_path / "two", apart) == together  # however the work was divided


def test_long_curves_are_thinned_and_keep_their_ends(tmp_path):
    curve = [[float(i), 0.0, 1.0] for i in range(1000)]
    written(tmp_path / "run", [group("null", (1,), [curve], [1000])])
    held = read_iterations(tmp_path / "run")["null"]
    assert len(held["iterations"]) == MOST
    assert (held["iterations"][0], held["iterations"][-1]) == (0, 999)
    assert held["loss"] == [float(i) for i in held["iterations"]]


def test_parts_without_a_curve_and_damaged_ones_cost_curves_alone(tmp_path):
    whole = group("null", (1,), [[[1.0, 2.0, 1.0]]], [1])
    (tmp_path / "run").mkdir()
    writer = record.Writer(tmp_path / "run", "a")
    for each in (
        whole._replace(curves=None),
        whole._replace(unit=Unit("null", 0, (2,)), rows=[whole_row("null", 0, 2)]),
    ):
        writer.write(each)
    writer.close()
    (tmp_path / "run" / "part-a-1.safetensors").write_bytes(b"torn")
    assert write_iterations(tmp_path / "run", record.merge(tmp_path / "run")) == {}
    assert json.loads((tmp_path / "run" / ITERATIONS).read_text()) == {}
    assert read_iterations(tmp_path) == {}
