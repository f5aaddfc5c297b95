"""The figures of docs/certification.md: recomputed from the archived certificates."""

from pathlib import Path

import pandas as pd
import pytest

from dp.certification import rows

ROOT = Path(__file__).parents[2]
PAGE = " ".join((ROOT / "docs" / "certification.md").read_text().split())


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    table = pd.read_csv(ROOT / "results" / "tables" / "certified.csv")
    return table[table["n"] == 1000].set_index(["base", "sigma"])


def certified(run: str) -> dict[int, float]:
    """The radius of each image, 0 where its label is not certified."""
    lines = rows.read(ROOT / "results" / "measured" / "certified" / run / rows.ALL)
    return {line.id: line.radius * line.correct for line in lines}


def test_what_the_denoiser_adds(table):
    bare, one = (table.loc[(base, 0.5), "accuracy at 0.5"] for base in ("bare classifier", "one-shot"))
    assert f"{bare:.1f} % of the images are certified with the bare classifier and {one:.1f} % with one call" in PAGE
    assert f"At the same point it certifies {table.loc[('consistency model', 0.5), 'accuracy at 0.5']:.1f} %." in PAGE


def test_the_consistency_model_against_its_teacher(table):
    radii = [name for name in table.columns if name.startswith("accuracy at")]
    points = table.loc["consistency model", radii] - table.loc["one-shot", radii]
    assert points.to_numpy().min() < 0 < points.to_numpy().max()
    assert f"differ by at most {points.abs().to_numpy().max():.1f} points" in PAGE


def test_densepure_on_its_images(table):
    vote, one = (table.loc[(base, 0.5)] for base in ("DensePure", "one-shot"))
    each = [line["evaluations"] / line["images"] for line in (vote, one)]
    assert each[0] == 6 * each[1]
    chains, calls = certified(vote["run"]), certified(one["run"])
    assert len(chains) == 64
    shares = [
        100 * sum(radii[image] >= radius for image in chains) / len(chains)
        for radius in (0.5, 1.0)
        for radii in (chains, calls)
    ]
    said = "At radius 0.5 it certifies {:.1f} % and one call {:.1f} % of the same images; "
    said += "at radius 1 it certifies {:.1f} % against {:.1f} %"
    assert said.format(*shares) in PAGE
