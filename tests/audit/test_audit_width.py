"""The audit asks networks for no more images at once than the run does."""

import pytest
import torch

from dp.audit import gradients
from dp.audit.reruns import own
from tests.helpers.audited import composed_subject
from tests.helpers.compose import small_budget

WORDS = ("protocol.images=4", "protocol.votes=3", "purifier=diffpure", "purifier.steps=2", *small_budget("pgd_eot"))


@pytest.fixture(scope="module")
def wide():
    return composed_subject(*WORDS, images=4)


@pytest.fixture(scope="module")
def narrow():
    return composed_subject(*WORDS, "dataset.lanes=2", "dataset.draws_per_call=1", images=4)


def test_a_narrow_runs_attack_is_repeated_in_narrow_calls(wide, narrow):
    widths = []
    narrow.arm.scored.denoiser.net.register_forward_pre_hook(lambda net, given: widths.append(len(given[0])))
    (attacked, log), (expected, its) = own(narrow), own(wide)
    assert {*widths} == {2}
    assert torch.allclose(attacked.x_adv, expected.x_adv, atol=1e-4)
    assert len(log.scored) == len(its.scored) == 12  # images x samples
    assert not log.scored & log.used


def test_central_differences_of_a_narrow_run_are_those_of_a_wide_one(wide, narrow):
    found = [gradients._differences(subject, subject.images, ()) for subject in (narrow, wide)]
    for one, other in zip(*found, strict=True):
        assert one.shape == other.shape
        assert torch.allclose(one.double(), other.double(), atol=1e-6)
