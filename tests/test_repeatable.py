"""What makes a GPU repeat its bytes: the settings and their end, and the way of what cannot repeat into the summary."""

import os
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch.backends import cuda, cudnn
from torch.utils import deterministic

from dp.evaluation.rows import Group, Unit
from dp.output import record
from dp.repeatable import noted, set_repeatable, settings_kept
from dp.runs.build import build
from tests.helpers.compose import composed

VARIABLE = "CUBLAS_WORKSPACE_CONFIG"
UNPOOL = "max_unpooling2d_forward_out"  # has no deterministic algorithm, on a CPU either


def settings() -> tuple:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        deterministic.fill_uninitialized_memory,
        cudnn.deterministic,
        cudnn.benchmark,
        cudnn.allow_tf32,
        cuda.flash_sdp_enabled(),
        cuda.mem_efficient_sdp_enabled(),
        cuda.cudnn_sdp_enabled(),
        cuda.math_sdp_enabled(),
        os.environ.get(VARIABLE),
    )


def unpool() -> None:
    F.max_unpool2d(torch.ones(1, 1, 2, 2), torch.arange(4).view(1, 1, 2, 2), 2)


def test_on_a_gpu_the_settings_are_made_and_afterwards_are_those_of_before(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    before = settings()
    with settings_kept():
        set_repeatable("cuda:1")
        assert settings() == (True, True, False, True, False, False, False, False, False, True, ":4096:8")
    assert settings() == before
    with pytest.raises(ZeroDivisionError), settings_kept():
        set_repeatable(f"cuda:{1 // 0}")
    assert settings() == before


def test_a_setting_of_the_users_stays_and_a_cpu_needs_none(monkeypatch):
    monkeypatch.setenv(VARIABLE, ":16:8")
    before = settings()
    set_repeatable("cpu")
    assert settings() == before
    with settings_kept():
        set_repeatable("cuda:0")
        assert os.environ[VARIABLE] == ":16:8"
    assert settings() == before


def test_what_cannot_repeat_is_noted_and_other_warnings_are_shown():
    found: set[str] = set()
    with settings_kept(), warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        with noted(found):
            unpool()  # nothing is asked to repeat
        assert not found
        torch.use_deterministic_algorithms(True, warn_only=True)
        with noted(found):
            unpool()
            warnings.warn("another matter", stacklevel=1)
    assert found == {UNPOOL}
    assert [str(each.message) for each in shown] == ["another matter"]


def test_a_unit_tells_what_of_it_cannot_repeat():
    evaluation = build(
        composed("protocol.images=4", "protocol.votes=1", "dataset.lanes=4", "purifier=none", "attack=none")
    )
    unit = next(unit for unit in evaluation.plan() if unit.arm == "null")
    assert evaluation.run(unit).unrepeatable == ()
    evaluation.arms["null"].scored.classifier.register_forward_hook(lambda *_: unpool())
    with settings_kept():
        torch.use_deterministic_algorithms(True, warn_only=True)
        assert evaluation.run(unit).unrepeatable == (UNPOOL,)


def test_the_folder_of_a_run_keeps_it(tmp_path):
    logits = torch.zeros(1, 1, 3)
    groups = [
        Group(Unit("null", k, (0,)), [], logits, None, logits + 1, 1.5, None, names)
        for k, names in enumerate(((), ("b", "a")))
    ]
    writer = record.Writer(tmp_path, "a")
    for group in groups:
        writer.write(group)
    writer.close()
    assert record.unrepeatable(tmp_path) == ["a", "b"]
    assert record.seconds(tmp_path) == 3.0
