"""Progress lines: time to go, the running robust accuracy, a bar only on a terminal."""

import io
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from dp.evaluation.rows import Event, Unit
from dp.evaluation.work import Costs, costs, in_evaluations
from dp.output.progress import Bar, Display
from dp.runs.build import build


class Log:
    """A tracker that remembers."""

    def __init__(self):
        self.said = []

    def log(self, figures):
        self.said.append(figures)

    def finish(self, summary):
        pass


def shown(config, monkeypatch, terminal: bool, done=()):
    """What is printed while one defended unit comes in, three quarters of its images right."""
    evaluation = build(config)
    units, work = evaluation.plan(), costs(evaluation, in_evaluations(0.5))
    out, log = io.StringIO(), Log()
    clock = iter(range(0, 10_000, 60))
    monkeypatch.setattr("dp.output.progress.time.monotonic", lambda: next(clock))
    row = {"arm": "defended", "label": 1, "adv": [1, 0, 0], "adv_vote": 0}
    wrong = {**row, "adv": [0, 0, 0]}
    console = Console(file=out, force_terminal=terminal, width=150)
    with Display(console, evaluation, units, done, log, work) as display:
        display(Event(units[0], 1, 2))
        display(Event(units[0], 2, 2, [row, row, row, wrong]))
    return out.getvalue(), log.said


def test_plain_lines(config, monkeypatch):
    text, said = shown(config, monkeypatch, terminal=False)
    first, *rest = text.splitlines()
    assert "to go: seed 5 (1/2), defended, 4 images from id 1081, iteration 1/2" in first
    assert "robust" not in first
    assert "robust so far 75.0 % of 4" in rest[-1]
    assert said == [{"so_far/single": 75.0, "so_far/vote": 0.0, "so_far/images": 4}]


def test_hours_are_announced(config, monkeypatch):
    """One unit of many takes hours on this clock: the estimate is said before the first plain line."""
    many = {**config, "protocol": {**config["protocol"], "seeds": [5, *range(300, 600)]}}
    text, _ = shown(many, monkeypatch, terminal=False)
    assert text.startswith("estimate: ")
    assert " h " in text.splitlines()[0]


def test_bar_on_a_terminal(config, monkeypatch):
    text, _ = shown(config, monkeypatch, terminal=True)
    assert "%" in text
    assert "\x1b[" in text


def test_rows_of_an_earlier_start_count(config, monkeypatch):
    right = {"arm": "defended", "label": 1, "adv": [1], "adv_vote": 1, "seed": 5, "id": 1081}
    earlier = [right, {"arm": "null", "label": 1, "adv": [0], "seed": 5, "id": 1081}] * 4
    text, _ = shown(config, monkeypatch, terminal=False, done=earlier)
    assert "robust so far 87.5 % of 8" in text


WORK = {"defended": Costs(10, tuple(range(0, 110, 10)), 100.0)}  # 10 for each of 10 steps, 100 for the score


def display(clock, monkeypatch, units, rows=(), begun=(), processes=1):
    """A display whose clock is `clock`, and what it prints."""
    monkeypatch.setattr("dp.output.progress.time.monotonic", lambda: clock.now)
    evaluation = SimpleNamespace(lanes=2, seeds=[5], subset=SimpleNamespace(ids=torch.arange(8)))
    out = io.StringIO()
    console = Console(file=out, width=150)
    return Display(console, evaluation, units, rows, Log(), WORK, begun, processes), out  # pyright: ignore[reportArgumentType]


def test_the_percent_goes_on_after_a_restart_and_the_speed_is_that_of_this_start(monkeypatch):
    """Four of eight images are done, and two stand at step 4 of 10."""
    clock, units = SimpleNamespace(now=0.0), [Unit("defended", 5, (4, 5)), Unit("defended", 5, (6, 7))]
    row = {"arm": "defended", "label": 1, "adv": [1], "adv_vote": 1, "seed": 5}
    show, out = display(clock, monkeypatch, units, [{**row, "id": i} for i in range(4)], begun=units[:1])
    clock.now = 20.0
    show(Event(units[0], 5, 10))
    clock.now = 60.0
    show(Event(units[0], 7, 10))
    first, second = out.getvalue().splitlines()
    assert first.startswith(" 56 %, ")  # 4 x 200 + 2 x 50 of 8 x 200, and 4 x 200 + 2 x 40 were done before
    assert second.startswith(" 59 %, ")
    assert "11 min 00 s to go" in second  # 2 x 130 + 2 x 200 at 60 in 60 s


def test_the_time_that_processes_need_to_start_does_not_count(monkeypatch):
    """One has started after 20 seconds and the other after 40; from then on a step takes 10 seconds."""
    clock, units = SimpleNamespace(now=0.0), [Unit("defended", 5, (k, k + 1)) for k in (0, 2, 4, 6)]
    show, out = display(clock, monkeypatch, units, processes=2)
    for now, unit, step in ((30.0, 0, 1), (40.0, 0, 2), (50.0, 0, 3), (50.0, 1, 1), (60.0, 0, 4), (60.0, 1, 2)):
        clock.now = now
        show(Event(units[unit], step, 10))
    assert all("time to go not known yet" in line for line in out.getvalue().splitlines())
    done = 2 * 40 + 2 * 20
    assert show.bar.seconds_left(done, done, 60.0) == pytest.approx((8 * 200 - done) / 4)  # 4 images 10 further in 10 s


@pytest.mark.parametrize("total", [0.0, 10.0])
def test_nothing_to_do_is_no_nan(total, monkeypatch):
    clock, out = SimpleNamespace(now=0.0), io.StringIO()
    monkeypatch.setattr("dp.output.progress.time.monotonic", lambda: clock.now)
    bar = Bar(Console(file=out, width=150), total)
    for now in (11.0, 22.0, 33.0):
        clock.now = now
        bar(0.0, "line")
    assert "nan" not in out.getvalue()
    assert "inf" not in out.getvalue()
    assert out.getvalue().count("time to go not known yet: line") == 3
