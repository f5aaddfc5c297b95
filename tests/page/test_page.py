"""The page: what its files hold, its commands, and its pictures."""

import base64
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dp.commands import view
from dp.commands.archive import archive
from dp.output import pictures, record
from dp.page import source
from dp.page.facts import budget_curve
from dp.runs.keys import run_key
from dp.runs.repeat import command_of, same_key, words_of_run, written
from dp.runs.shown import shown
from dp.runs.words import value_of
from tests.helpers.compose import TINY, composed, finished

MEASURED = Path("results/measured")
SMALL = (*TINY, "purifier=hetero", "protocol.images=3", "protocol.seeds=[5]", "workers=1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A finished run of hetero on three images, in a folder of its key."""
    config = composed(*SMALL)
    folder = tmp_path_factory.mktemp("runs") / run_key(config)
    assert finished(config, folder)
    return folder


def received(out: Path, name: str):
    """The data in a chunk of a page."""
    text = (out / "data" / f"{name}.js").read_text()
    start = f'dp.receive("{name}",'
    assert text.startswith(start)
    return json.loads(text.removeprefix(start).rstrip()[:-1])


def pixels(address: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))))


def test_the_page_holds_every_row_and_the_pictures(folder, tmp_path):
    out = tmp_path / "page"
    assert view.main([str(folder), "--out", str(out), "--no-open", "--bundle", "--purify", "2"]) == 0
    key, groups = folder.name, source.read(folder).groups
    data = received(out, key)
    rows = [json.loads(line) for line in (folder / record.IMAGES).read_text().splitlines()]
    table = data["rows"]
    for k, (arm, seed, i) in enumerate(zip(table["arm"], table["seed"], table["id"], strict=True)):
        row = next(r for r in rows if (r["arm"], r["seed"], r["id"]) == (arm, seed, i))
        assert (table["adv"][k], table["clean"][k]) == (row["adv"], row["clean"])
    assert len(table["id"]) == len(rows)
    kept = json.loads((folder / "iterations.json").read_text())
    assert data["curves"]["attack"] == kept
    assert len(kept["defended"]["loss"]) == 2
    assert 'id="loss"' in data["html"]
    assert [line["key"] for line in received(out, "runs")] == [key]

    group = next(g for g in groups if g.arm == "defended")
    pictured = received(out, f"{key}/defended-5-0")
    for row, x_adv in zip(group.rows, group.x_adv, strict=True):
        of_image = pictured[str(row["id"])]
        assert np.array_equal(pixels(of_image["attacked"]), (255 * x_adv[0]).round().numpy().astype(np.uint8))
        clean = pixels(received(out, f"{data['clean']}/clean-0")[str(row["id"])]["clean"]) / 255
        gray = pixels(of_image["difference"]) / 255
        assert np.allclose(gray, np.clip(0.5 + 10 * (x_adv[0].numpy() - clean), 0, 1), atol=10.5 / 255)
        assert set(np.unique(pixels(of_image["attacked_mask"]))) <= {0, 255}
    purified = [len(image.get("attacked_purified", [])) for image in pictured.values()]
    assert (sorted(purified), data["purified"], data["unequal"]) == ([0, 3, 3], 2, 0)  # the run's own noise
    with zipfile.ZipFile(out.with_name("page.zip")) as bundle:
        assert {"index.html", ".nojekyll", f"data/{key}.js"} <= set(bundle.namelist())


def test_an_archived_run_has_no_attacked_picture(folder, tmp_path):
    archive(folder, tmp_path / "measured")
    out = tmp_path / "page"
    assert view.main([str(tmp_path / "measured"), "--out", str(out), "--no-open"]) == 0
    data = received(out, folder.name)
    assert data["archived"]
    assert data["curves"]["attack"] == json.loads((folder / "iterations.json").read_text())
    assert not list((out / "data" / folder.name).glob("defended-*"))
    assert set(received(out, f"{folder.name}/clean-0")[str(data["ids"][0])]) == {"clean_mask"}


def test_samples_that_the_row_does_not_have_are_counted(folder):
    found = source.read(folder)
    material = shown(found.summary)
    assert isinstance(material, pictures.Shown)
    group = next(g for g in found.groups if g.arm == "defended")
    changed = [{**row, "adv": [(c + 1) % 10 for c in row["adv"]]} for row in group.rows]
    _, unequal = pictures.purified_pictures(material, group._replace(rows=changed), 1)  # pyright: ignore[reportArgumentType]
    assert unequal == 3


def test_the_mask_is_that_of_the_purifier(folder):
    """The share of white pixels is the fact that the row states of the first batch."""
    material = shown(source.read(folder).summary)
    assert isinstance(material, pictures.Shown)
    config = record.read_summary(folder)["config"]["purifier"]  # pyright: ignore[reportOptionalSubscript]
    features = material.model.classifier.features(material.images)
    maps = [f.square().sum(1, keepdim=True).sqrt() for f in features]
    large = [torch.nn.functional.interpolate(m, size=(16, 16), mode="bilinear") for m in maps]
    expected = sum((m - m.amax((2, 3), keepdim=True)).exp() > config["tau"] for m in large) > 0
    assert torch.equal(material.masks(material.images).bool(), expected)


def test_another_folder_is_not_overwritten(folder, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("mine")
    assert view.main([str(folder), "--out", str(tmp_path), "--no-open"]) == 2
    assert "name another" in capsys.readouterr().err
    assert (tmp_path / "thesis.tex").read_text() == "mine"


@pytest.mark.parametrize(("name", "words"), [("none", "no such folder"), ("", "without one")])
def test_a_folder_without_a_run_is_refused_in_one_line(tmp_path, capsys, name, words):
    assert view.main([str(tmp_path / name), "--out", str(tmp_path / "page"), "--no-open"]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_the_command_of_an_archived_run_gives_its_key():
    folders = sorted(path.parent for path in MEASURED.glob(f"*/{record.SUMMARY}"))
    assert folders
    for folder in folders[:: max(1, len(folders) // 5)]:
        config = json.loads((folder / record.SUMMARY).read_text())["config"]
        again = run_key(composed(*words_of_run(config)))
        assert (again == folder.name) == same_key(config)


def test_a_command_states_what_was_changed():
    config = composed("purifier=diffpure", "purifier.t=.3", "protocol.seeds=[1,2]", "threat_model.eps=.1")
    words = command_of(config).split()
    assert {"purifier=diffpure", "purifier.t=0.3", "threat_model.eps=0.1"} <= set(words)
    assert run_key(composed(*words_of_run(config))) == run_key(config)


def test_a_run_whose_pictures_cannot_be_made_says_why(folder):
    """Of objects of another process, or with plug-ins that have moved; another machine's device is no reason."""
    summary = record.read_summary(folder)
    config = summary["config"]
    assert not isinstance(shown({**summary, "config": {**config, "device": "cuda"}}), str)
    given = {"_target_": "dp.runs.given.purifier", "name": "mine", "sha256": "0" * 64}
    told = shown({**summary, "config": {**config, "purifier": given}})
    assert told.startswith("The page has no pictures of this run: need mine")
    plugins = {**config["plugins"], "folders": ["nowhere"]}
    assert "nowhere" in str(shown({**summary, "config": {**config, "plugins": plugins}}))


def test_the_mask_of_a_given_region_is_shown(tmp_path):
    config = composed(
        *TINY, "dataset=canvas", "purifier=hetero_box", "protocol.images=2", "protocol.seeds=[5]", "workers=1"
    )
    assert finished(config, tmp_path / "run")
    material = shown(record.read_summary(tmp_path / "run"))
    masks = material.masks(material.images)
    assert masks.shape == (2, 1, 32, 32)
    assert {*masks.unique().tolist()} == {0.0, 1.0}


def test_a_run_from_before_the_second_generator_has_a_command_with_the_first():
    """CIFAR-10 takes the second generator by default; a run without the key had the first."""
    config = composed("dataset=cifar10", "rng=1")
    older = {key: value for key, value in config.items() if key != "rng"}
    assert "rng=1" in command_of(older).split()
    assert run_key(composed(*words_of_run(older))) == run_key(config) == run_key(older)
    assert same_key(older)


@pytest.mark.parametrize("value", [None, True, 0.5, 3, "8/255", "null", "0.5", "a b", [1, "x"], {"a": [None]}])
def test_a_written_value_is_read_as_itself(value):
    assert value_of(f"key={written(value)}") == value


def test_the_budget_curve_counts_lost_images():
    rows = [{"arm": "defended", "looks": 2, "lost_at": lost, "iterations": 9} for lost in (None, 3, 3, 6)]
    assert budget_curve(rows) == {"iterations": [0, 3, 6, 9], "percent": [100, 50, 25, 25]}
    assert budget_curve([{**row, "looks": 0} for row in rows]) is None
