"""The generator of a run: all of its noise is of one version, and the row says which where it is not numpy's."""

import pytest
import torch

from dp.output.report import caveat_lines
from dp.rng import Streams
from dp.runs.build import build
from dp.runs.by_dataset import shipped
from dp.runs.caveats import caveats_of
from dp.runs.validate import check_precision
from tests.helpers.compose import TINY, composed, setup

SMALL = (*TINY, "protocol.seeds=[5]", "purifier=diffpure", "purifier.steps=2", "workers=1")


@pytest.mark.parametrize("version", [1, 2])
def test_all_noise_of_a_run_is_of_one_version(version, monkeypatch):
    """Attack, selection and scoring of all conditions, and the same rows again."""
    versions, begin = [], Streams._begin

    def noted(self, keys, calls, touched, version):
        versions.append(version)
        begin(self, keys, calls, touched, version)

    evaluation = build(composed(*SMALL, f"rng={version}"))
    monkeypatch.setattr(Streams, "_begin", noted)
    first, again = ([evaluation.run(unit) for unit in evaluation.plan()] for _ in range(2))
    assert {*versions} == {version}
    assert [group.rows for group in first] == [group.rows for group in again]
    assert all(torch.equal(a.adv, b.adv) for a, b in zip(first, again, strict=True))


def test_the_versions_have_other_noise():
    groups = []
    for version in (1, 2):
        evaluation = build(composed(*SMALL, f"rng={version}"))
        groups.append(evaluation.run(evaluation.plan()[0]))
    assert not torch.equal(groups[0].adv, groups[1].adv)
    assert torch.allclose(groups[0].adv.mean(), groups[1].adv.mean(), atol=1)


def test_small_datasets_have_the_generator_of_the_cpu_and_the_others_that_of_a_gpu():
    found = {name: composed(f"dataset={name}")["rng"] for name in sorted(shipped())}
    small = {"digits", "digits_tuning", "canvas"}
    assert found == {name: 1 if name in small else 2 for name in shipped()}
    assert composed("dataset=cifar10", "rng=1")["rng"] == 1


def test_a_row_says_so():
    made = setup(*SMALL, "rng=2")
    facts = caveats_of(made, build(made.config)).as_data()
    said = "rng=2: other noise than that of rng=1"
    assert said in caveat_lines(made.config, facts)
    without = {key: value for key, value in made.config.items() if key != "rng"}  # an older row
    assert not any(
        "rng" in line for config in ({**made.config, "rng": 1}, without) for line in caveat_lines(config, facts)
    )


@pytest.mark.parametrize("value", ["3", "true", "numpy"])
def test_another_generator_is_refused(value):
    with pytest.raises(ValueError, match="need rng one of 1, 2, got rng="):
        check_precision(composed(f"rng={value}"))
