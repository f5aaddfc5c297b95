"""The figures of docs/performance.md that are computed from FLOPs: recomputed on the meta device."""

import re
from pathlib import Path

import pandas as pd
import pytest

from dp.evaluation.schedule import schedule
from dp.runs import flops
from dp.runs.build import assembled, defense_around, network
from dp.runs.cost import counted, on_gpu
from dp.runs.gpus import COUNTS, GPUS
from dp.runs.skeleton import denoiser_on_meta, without_files
from tests.helpers.compose import composed

PAGE = (Path(__file__).parents[2] / "docs" / "performance.md").read_text()
MODES = {
    "digits": "`bench.py`",
    "full": "`bench.py --full`",
    "official": "`bench.py --official`",
    "official full": "`bench.py --official --full`",
    "refill": "`bench.py --refill`",
    "start": "`bench.py --start`",
}
GRADIENTS = {"exact": "full", "surrogate": "surrogate"}


def rows(first: str) -> list[list[str]]:
    """The cells of the lines of tables that begin so."""
    return [
        [cell.strip() for cell in line.strip("| ").split(" | ")] for line in PAGE.splitlines() if line.startswith(first)
    ]


def test_every_ratio_of_the_bench_stands_on_the_page_and_within_its_bound():
    measured = pd.read_csv(Path(__file__).parents[2] / "results" / "tables" / "bench.csv")
    assert {"full", "digits", "start", "official"} <= set(measured["mode"])
    lines = {(mode, name): (printed, bound) for mode, name, printed, bound in rows("| `bench.py")}
    expected = {
        (MODES[one.mode], one.measured): (f"{one.ratio:.3g}", "-" if pd.isna(one.bound) else f"{one.bound:g}")
        for one in measured.itertuples()
    }
    assert lines == expected
    bounded = measured.dropna(subset="bound")
    assert (bounded["ratio"] <= bounded["bound"]).all()


def test_what_recomputation_costs_in_a_short_and_in_a_long_chain():
    """All calls but three are computed twice, by the FLOPs that stand on the page."""
    assert "a third more time for 10 calls, half more for 100" in PAGE
    figures = {name: float(value) for value, name in re.findall(r"^([\d.]+) = (call|gradient|both)$", PAGE, re.M)}
    call, gradient, both = (figures[name] for name in ("call", "gradient", "both"))
    more = [(calls - 3) * call / (calls * gradient + both) for calls in (10, 100)]
    assert more == pytest.approx([1 / 3, 1 / 2], abs=0.02)


def agrees(printed: str, value: float) -> bool:
    """True if a figure is the value, rounded to as many digits as are printed."""
    digits = len(printed.replace(".", "").lstrip("0"))
    return float(f"{value:.{digits}g}") == float(printed)


@pytest.fixture(scope="module", params=GRADIENTS)
def row(request):
    config = without_files(composed("+experiment=table1/hetero", f"threat_model.grad={GRADIENTS[request.param]}"))
    defense = defense_around(network(config, "classifier", "cpu"), denoiser_on_meta(config), config, "cpu")
    evaluation = assembled(config, defense, defense, "cpu")
    size = flops.sizes(evaluation.arms["defended"].scored, evaluation.first)
    gpu = GPUS["h200"]
    return request.param, evaluation, size, {dtype: on_gpu(config, evaluation, size, gpu, dtype) for dtype in gpu.peak}


def test_the_hours_and_the_arithmetic_are_those_of_the_estimate(row):
    gradient, evaluation, size, kinds = row
    table = rows(f"| {gradient} |")
    assert [cells[1] for cells in table] == list(kinds)
    for cells in table:
        kind = kinds[cells[1]]
        assert cells[2] == f"{kind.peak / 1e12:g} x {kind.share:g}"
        for printed, count in zip(cells[3:], COUNTS, strict=True):
            assert agrees(printed, kind.estimate.on(count).seconds / 3600), (cells, count)
    kind, arithmetic = kinds["float32"], counted(evaluation, size)
    nfe, (call, through), (answer, both) = kind.nfe, arithmetic.call, arithmetic.answer
    each, mode = nfe * through + both, GRADIENTS[gradient]
    values = {
        "call": call / 1e9,
        "gradient": through / 1e9,
        "answer": answer / 1e9,
        "both": both / 1e9,
        "purifications": arithmetic.attacked / 1e6,
        "share": kind.share,
        f"{mode} each": each / 1e9,
        f"{mode} attack": arithmetic.attacked * each / 1e18,
    }
    quoted = [
        line.split(" = ")
        for block in re.findall(r"<!-- costs\n(.*?)-->", PAGE, re.DOTALL)
        for line in block.splitlines()
    ]
    checked = [name for printed, name in quoted if name in values]
    assert len(checked) == len(values)
    for printed, name in quoted:
        assert name not in values or agrees(printed, values[name]), (printed, name, values[name])
        assert re.search(
            rf"(?<![\d.]){re.escape(printed)}(?![\d.]*\d)", re.sub(r"<!--.*?-->", "", PAGE, flags=re.DOTALL)
        )
    assert f"{nfe} NFE" in PAGE
    assert f"adds {nfe - kind.kept} x" in PAGE or f"or {nfe - kind.kept} x" in PAGE


def test_the_simulation_of_the_queue_agrees_with_the_formula(row):
    gradient, evaluation, _, kinds = row
    if gradient != "exact":
        return
    estimate = kinds["float32"].estimate
    attacked = [
        seconds for unit, seconds in zip(evaluation.plan(), estimate.units, strict=True) if unit.arm == "defended"
    ]
    table = [cells for cells in rows("|") if len(cells) == 5 and cells[0].isdigit()]
    assert [int(cells[0]) for cells in table] == list(COUNTS)
    assert f"This row has {len(estimate.units)} of them, and {len(attacked)} attack the defense" in PAGE
    for count, rounds, formula, simulated, idle in table:
        found = estimate.on(int(count))
        assert int(rounds) == -(-len(attacked) // int(count))
        assert agrees(formula, int(rounds) * attacked[0] / 3600)
        assert schedule(attacked, int(count)).seconds == pytest.approx(int(rounds) * attacked[0])
        assert agrees(simulated, found.seconds / 3600)
        assert idle == f"{100 * found.idle:.0f} %"


def test_forward_passes_of_the_two_budgets():
    """images x seeds x candidates x samples x (NFE + 1), with hetero's 7 network evaluations on digits."""
    for words, overrides in (("quick budget", ()), ("full budget", ("+experiment=digits/full",))):
        config = composed("dataset=digits", "purifier=hetero", "attack=pgd_eot", *overrides)
        protocol, attack = config["protocol"], config["attack"]
        passes = protocol["images"] * len(protocol["seeds"]) * attack["iterations"] * attack["eot"] * (7 + 1)
        ((_, printed, *_),) = rows(f"| digits, {words}")
        assert printed.endswith(" thousand")
        assert agrees(printed.split()[0], passes / 1000)
