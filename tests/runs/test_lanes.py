"""dataset.lanes=auto: the same run as with the number that it chooses, and which number that is."""

import pytest

from dp.compiled import KEEPS
from dp.defense.memory import bytes_per_call
from dp.rng import Streams
from dp.runs import lanes
from dp.runs.build import build
from dp.runs.lanes import fitting, with_lanes
from dp.runs.pipeline import folder_of, judged
from tests.helpers.compose import composed, setup

GIVEN = ["purifier=diffpure", "purifier.t=0.3", "purifier.steps=2", "attack.iterations=1", "attack.eot=1"]
GIVEN += ["protocol.images=4", "protocol.seeds=[5]", "protocol.votes=1", "dataset.draws_per_call=1", "audit=false"]
GIVEN += ["workers=1", "threat_model.grad=full"]
AUTO = "dataset.lanes=auto"


@pytest.fixture(scope="module")
def slot() -> float:
    """Bytes that one slot keeps: one image, one sample, both calls of the purification and the classifier."""
    evaluation = build(composed(*GIVEN, "memory=store"))
    first = evaluation.first
    each = bytes_per_call(evaluation.arms["defended"].attacked, first.x, Streams(first.ids, 0, "probe"))
    return 2 * each.call + each.classifier


@pytest.fixture
def with_memory(monkeypatch):
    """A machine of so many bytes, whatever is free on this one."""

    def of(size: float) -> None:
        monkeypatch.setattr(lanes, "total_bytes", lambda device: size)

    return of


def test_key_and_bytes_are_those_of_the_chosen_number(slot, with_memory, tmp_path):
    with_memory(2 * 2.1 * slot)  # half of it for activations
    made = {}
    for words in (AUTO, "dataset.lanes=2"):
        chosen = with_lanes(setup(*GIVEN, words, f"results={tmp_path / str(len(made))}"))
        assert chosen.config["dataset"]["lanes"] == 2
        folder = folder_of(chosen)
        assert judged(chosen, folder)
        made[words] = folder.name, (folder / "images.jsonl").read_bytes()
    assert made[AUTO] == made["dataset.lanes=2"]
    assert any("dataset.lanes=2" in note for note in with_lanes(setup(*GIVEN, AUTO)).notes)


def test_the_number_is_the_power_of_two_that_fits(slot, with_memory):
    images = composed(*GIVEN, "protocol.images=64", "dataset.lanes=1")
    for slots, expected in ((0.5, 1), (1.9, 1), (2.1, 2), (7.9, 4), (8.1, 8), (1000, lanes.MOST)):
        with_memory(2 * slots * slot)
        assert fitting(images) == expected
    with_memory(2 * 8.1 * slot)
    assert fitting({**images, "workers": 4}) == 2  # four processes share it
    assert fitting({**images, "compile": True}) == 8 // KEEPS
    with_memory(1e15)
    assert fitting(composed(*GIVEN, "protocol.images=3", "dataset.lanes=1")) == 4


@pytest.mark.parametrize(
    ("word", "said"),
    [("shard=1/2", "several machines"), ("engine=ray", "several machines"), ("cost=h200", "cost=h200")],
)
def test_where_another_machine_may_choose_another_number_it_is_refused(word, said):
    with pytest.raises(ValueError, match=rf"^need dataset.lanes as a number .*{said}.*got auto"):
        with_lanes(setup(*GIVEN, AUTO, word))


def test_commands_that_do_not_measure_refuse_it():
    with pytest.raises(ValueError, match=r"^need dataset.lanes as a number, such as 32, got 'auto'$"):
        folder_of(setup(*GIVEN, AUTO))
