"""A whole small run in two shards has the rows and the attacked images of one run, for attacks of every kind."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from dp.contracts.attack import WHOLE_BATCH
from dp.contracts.failure import Failure, difference
from dp.output.record import read_part
from tests.helpers.compose import composed, finished, plug_ins, small_budget
from tests.helpers.contract import assert_held, in_one_line

OURS = ["pgd_eot", "strict", "square", "diffhammer", "decision"]  # steps, phases, queries, choices, decisions
TINY = ["protocol.images=4", "protocol.seeds=[5]", "protocol.votes=2", "dataset.lanes=2", "dataset.draws_per_call=2"]


def attacked_images(folder: Path) -> Tensor:
    """(N,C,H,W), in the order of condition and image."""
    parts = [read_part(path) for path in folder.glob("part-*.safetensors")]
    found = {(p["arm"], int(i)): x for p in parts for i, x in zip(p["ids"], p["x_adv"], strict=True)}
    return torch.stack([found[key] for key in sorted(found)])


@pytest.mark.parametrize("name", [*OURS, *plug_ins("attack")])
def test_two_shards_give_the_rows_of_one_run(name, tmp_path, record_property):
    with in_one_line(f"attack {name}"):
        config = composed(f"attack={name}", "purifier=diffpure", "purifier.steps=2", *TINY, *small_budget(name))
        for folder, shards in (("one", ["1/1"]), ("two", ["2/2", "1/2"])):
            for shard in shards:
                summary = finished({**config, "shard": shard, "workers": 1, "audit": False}, tmp_path / folder)
            assert summary is not None
    one, two = (attacked_images(tmp_path / folder) for folder in ("one", "two"))
    found = []
    if not torch.equal(one, two):
        what = f"two shards give other attacked images than one run, {difference(two, one)}"
        found = [Failure("shards", what, WHOLE_BATCH)]
    assert_held(found, "attack", config, record_property)
    assert (tmp_path / "one" / "images.jsonl").read_bytes() == (tmp_path / "two" / "images.jsonl").read_bytes()
