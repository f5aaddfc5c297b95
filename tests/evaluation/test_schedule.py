"""The schedule of a queue against a closed form, against a clock that ticks, and against bounds that always hold."""

import math
import random

import pytest

from dp.evaluation.schedule import schedule


@pytest.mark.parametrize(("units", "workers"), [(48, 8), (48, 64), (7, 3), (144, 1)])
def test_equal_units_take_so_many_rounds(units, workers):
    found, rounds = schedule([2.5] * units, workers), math.ceil(units / workers)
    assert found.seconds == pytest.approx(2.5 * rounds)
    assert found.idle == pytest.approx(1 - units / (workers * rounds))


def ticking(units, workers):
    """The end of the queue by a clock that ticks once a second; units are whole seconds."""
    queue, left, now = list(units), [0] * workers, 0
    while queue or any(left):
        for k in range(workers):
            if not left[k] and queue:
                left[k] = queue.pop(0)
        left, now = [max(0, seconds - 1) for seconds in left], now + 1
    return now


def test_unequal_units_end_when_a_ticking_clock_says():
    draw = random.Random(0)
    for _ in range(30):
        units, workers = [draw.randint(1, 30) for _ in range(draw.randint(1, 40))], draw.randint(1, 9)
        found = schedule(units, workers)
        assert found.seconds == ticking(units, workers)
        assert max(max(units), sum(units) / workers) <= found.seconds <= sum(units) / workers + max(units)
        assert found.idle == pytest.approx(1 - sum(units) / (workers * found.seconds))


def test_no_units_and_no_workers():
    assert schedule([], 4) == (0.0, 0.0)
    with pytest.raises(ValueError, match="workers >= 1"):
        schedule([1.0], 0)
