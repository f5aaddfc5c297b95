"""One's own images through a purifier: the numbers of the defense itself, masks, pictures, and errors of one line."""

import numpy as np
import pytest
import torch
from PIL import Image

import dp
from dp.commands import purify
from dp.rng import Streams
from dp.runs import compose
from dp.runs.build import defense
from dp.runs.purified import photos


def test_the_samples_are_those_of_the_scored_defense_and_do_not_depend_on_batch_mates():
    x = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    made = dp.purify(x, "hetero", samples=2, seed=5)
    scored = defense(compose.composed("purifier=hetero"), "cpu")
    with torch.no_grad():
        expected = scored.purify(x, Streams(range(3), 5, "purify").draw(1))
    assert torch.equal(made.samples[1], expected)
    assert made.nfe == 7
    assert not torch.equal(made.samples[0], made.samples[1])
    assert set(made.mask.unique().tolist()) == {0.0, 1.0}
    assert made.mask.shape == (3, 1, 16, 16)
    alone = dp.purify(x.numpy()[:1], "hetero", samples=2, seed=5)
    assert torch.allclose(alone.samples[:, 0], made.samples[:, 0], atol=1e-5)


def test_a_purifier_without_a_mask_has_none():
    assert dp.purify(np.zeros((1, 1, 16, 16), np.float32), "diffpure").mask is None


def test_a_photograph_becomes_its_central_square(tmp_path):
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = (255, 0, 0)  # the central square is red
    Image.fromarray(wide).save(tmp_path / "wide.png")
    image = photos([tmp_path / "wide.png"], (3, 10, 10))
    assert torch.equal(image, torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, 10, 10))
    assert photos([tmp_path / "wide.png"], (1, 4, 4)).shape == (1, 1, 4, 4)


def test_the_command_saves_a_strip_and_every_sample(tmp_path, capsys):
    Image.fromarray(np.full((40, 30), 200, np.uint8)).save(tmp_path / "photo.png")
    words = [str(tmp_path / "photo.png"), "purifier=hetero", "--samples", "2", "--out", str(tmp_path / "out")]
    assert purify.main(words) == 0
    names = ["photo-purified-1.png", "photo-purified-2.png", "photo-strip.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert Image.open(tmp_path / "out" / "photo-purified-1.png").size == (16, 16)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "need an image file, got none"),
        (["nothing.png"], "need a picture, got nothing.png"),
        (["photo.txt"], "need a picture, got photo.txt"),
        (["photo.png", "--samples", "0"], "need samples >= 1"),
        (["photo.png", "other/photo.png"], "need image files of different names, got two photo"),
        (["photo.png", "purifier=hetro"], "hetero"),
        (["photo.png", "denoiser=canvas"], "need networks for images of 1x16x16"),
    ],
)
def test_a_mistake_is_one_line(words, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save("photo.png")
    (tmp_path / "photo.txt").write_text("no picture")
    assert purify.main(words) == 2
    said = capsys.readouterr().err
    assert told in said
    assert said.count("\n") == 1
    assert not (tmp_path / "results").exists()
