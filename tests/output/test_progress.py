"""Progress lines: time to go, the running robust accuracy, a bar only on a terminal."""

import io

from rich.console import Console

from dp.evaluation.rows import Event
from dp.output.progress import Display
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
    units = evaluation.plan()
    out, log = io.StringIO(), Log()
    clock = iter(range(0, 10_000, 60))
    monkeypatch.setattr("dp.output.progress.time.monotonic", lambda: next(clock))
    row = {"arm": "defended", "label": 1, "adv": [1, 0, 0], "adv_vote": 0}
    wrong = {**row, "adv": [0, 0, 0]}
    console = Console(file=out, force_terminal=terminal, width=150)
    with Display(console, evaluation, units, done, log) as display:
        display(Event(units[0], 1, 2))
        display(Event(units[0], 2, 2, [row, row, row, wrong]))
    return out.getvalue(), log.said


def test_plain_lines(config, monkeypatch):
    text, said = shown(config, monkeypatch, terminal=False)
    first, *rest = text.splitlines()
    assert "to go: seed 5 (1/2), defended, 4 images from id 1081, iteration 1/2" in first
    assert "robust" not in first
    assert "robust so far 75.0 % of 4" in rest[-1]
    assert said == [{"robust/single": 75.0, "robust/vote": 0.0, "images": 4}]


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
    earlier = [{"arm": "defended", "label": 1, "adv": [1], "adv_vote": 1}, {"arm": "null", "label": 1, "adv": [0]}] * 4
    text, _ = shown(config, monkeypatch, terminal=False, done=earlier)
    assert "robust so far 87.5 % of 8" in text
