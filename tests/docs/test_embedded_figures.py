"""What the pages say of the embedded networks: each figure is read from its page and measured again."""

import re
from pathlib import Path

import pandas as pd
import pytest
import torch

from dp.attacks.pgd_eot import PGD
from dp.canvas import held_out
from dp.commands import train
from dp.datasets import digits
from dp.diffusion.sampling import to_pm1
from dp.evaluation.evaluate import Evaluation
from dp.purifiers.hetero import strong_pixels
from dp.rng import Streams
from dp.runs.build import build
from dp.threat_models.ball import ThreatModel
from dp.training.tasks.adversarial import attacked
from dp.training.tasks.consistency import ConsistencyTask
from tests.helpers.compose import composed

DOCS = Path(__file__).parents[2] / "docs"
CANVAS = " ".join((DOCS / "canvas.md").read_text().split())


def figures(page: str, pattern: str) -> list[float]:
    """The numbers that stand in the groups of the only match of a pattern on a page."""
    (found,) = re.findall(pattern, page)
    return [float(number) for number in ([found] if isinstance(found, str) else found)]


def evaluation(*words: str) -> Evaluation:
    return build(composed("dataset=canvas", "protocol.images=128", *words))


@pytest.fixture(scope="module")
def canvas() -> Evaluation:
    return evaluation("purifier=hetero", "protocol.images=512")


def test_the_classifier_of_canvas(canvas):
    (quoted,) = figures(CANVAS, r"four taps \|[^|]*\| ([\d.]+) % correct")
    model, test = canvas.arms["defended"].scored, canvas.subset
    with torch.no_grad():
        right = (model.classifier(test.x).argmax(1) == test.y).float().mean().item()
    assert round(100 * right, 1) == quoted


def test_the_denoiser_of_canvas(canvas):
    error = r"error in \[0,1\]: ([.\d]+), ([.\d]+) and ([.\d]+) "
    *quoted, a, b, c = figures(CANVAS, error + r"at sigma ([.\d]+), ([.\d]+) and ([.\d]+) ")
    test, found = canvas.subset, []
    x0 = to_pm1(test.x)
    for sigma in (a, b, c):
        z = x0 + sigma * Streams(test.ids, 0, "a").randn_like(x0)
        with torch.no_grad():
            error = (canvas.arms["defended"].scored.denoiser(z, sigma) - x0) / 2
        found.append(round(error.square().mean().sqrt().item(), 3))
    assert found == quoted


def test_the_mask_on_canvas(canvas):
    frame, strokes = figures(CANVAS, r"It covers ([\d.]+) % of the frame and ([\d.]+) % of the strokes")
    (elsewhere,) = figures(CANVAS, r"\(`softmax_max` at .8\) it covers ([\d.]+) % of the frame")
    model, drawn = canvas.arms["defended"].scored, torch.from_numpy(held_out().strokes).unsqueeze(1)
    given = composed("dataset=canvas", "purifier=hetero")["purifier"]
    for settings, share in (
        ({key: given[key] for key in ("phi", "tau")}, frame),
        ({"phi": "softmax_max", "tau": 0.8}, elsewhere),
    ):
        parts = [strong_pixels(x, model.denoiser, model.classifier, **settings) for x in canvas.subset.x.split(128)]
        mask = torch.cat(parts)
        assert 100 * mask.mean().item() == pytest.approx(share, abs=0.5 if share == frame else 0.05)
        if share == frame:
            assert 100 * mask[drawn].mean().item() == pytest.approx(strokes, abs=0.5)


@pytest.mark.parametrize(
    ("threat", "pattern"),
    [
        ("linf", r"bare classifier at ([.\d]+) % of 128 test images"),
        ("inside_box", r"Through the true box alone it leaves ([\d.]+) %"),
        ("outside_box", r"outside the box alone ([\d.]+) %"),
        ("l2", r"In l2 eps is 1.0, which leaves ([\d.]+) %"),
    ],
)
def test_the_bare_classifier_of_canvas_under_attack(threat, pattern):
    (quoted,) = figures(CANVAS, pattern)
    made = evaluation("purifier=none", f"threat_model={threat}")
    test, classifier = made.subset, made.arms["defended"].scored.classifier
    rng = Streams(test.ids, 0, "attack")
    x_adv = attacked(classifier, PGD(40, 1, select="last"), test.x, test.y, made.threat, rng)
    with torch.no_grad():
        right = (classifier(x_adv).argmax(1) == test.y).float().mean().item()
    assert round(100 * right, 1) == quoted


def test_the_consistency_model_of_digits(tmp_path):
    """But for the middle number of each triple, of stage 1, whose weights are not in the repository."""
    page = " ".join((DOCS / "defenses.md").read_text().split())
    error = r"at sigma ([.\d]+) the squared error is ([.\d]+) for the posterior mean, [.\d]+ after stage 1 and ([.\d]+)"
    sigma, *errors = figures(page, error)
    near = figures(page, r"the accuracy ([.\d]+), [.\d]+ and ([.\d]+) %\. At sigma")
    level, *far = figures(page, r"At sigma (\d) the accuracy is ([.\d]+), [.\d]+ and ([.\d]+) %")
    teacher, model = (
        build(composed(f"denoiser={name}")).arms["defended"].scored for name in ("digits", "digits_consistency")
    )
    assert teacher.denoiser is not None
    assert model.denoiser is not None
    task = ConsistencyTask(model.denoiser, digits(), teacher=teacher.denoiser, classifier=model.classifier)
    task.judge(digits(), tmp_path, 0)
    table = pd.read_csv(tmp_path / "judge.csv").set_index("sigma").sort_index()
    quotes = (("error", sigma, errors, 4), ("accuracy", sigma, near, 1), ("accuracy", level, far, 1))
    for column, at, quoted, digits_after in quotes:
        found = table.loc[at, [f"posterior_mean_{column}", column]]
        assert [round(value, digits_after) for value in found] == quoted


def test_adversarial_training_on_digits():
    page = " ".join((DOCS / "defenses.md").read_text().split())
    standard, robust = figures(page, r"([\d.]+) % are classified correctly, and ([\d.]+) % under PGD with 20 steps")
    made = build(composed("purifier=none", "classifier=digits_at"))
    test, classifier = digits(), made.arms["defended"].scored.classifier
    rng = Streams(test.ids, 0, "judge")
    x_adv = attacked(classifier, PGD(20, 1, select="last"), test.x, test.y, ThreatModel("linf", "32/255"), rng)
    with torch.no_grad():
        clean, found = ((classifier(x).argmax(1) == test.y).float().mean().item() for x in (test.x, x_adv))
    assert round(100 * clean, 1) == standard
    assert 100 * found == pytest.approx(robust, abs=1.0)


def test_the_wide_classifier_of_digits_is_trained_by_its_recipe(tmp_path, capsys):
    """Its weights are not in the repository, so its recipe makes them."""
    conf = DOCS.parent / "conf"
    quoted = [
        figures((conf / file).read_text(), r"([\d.]+) % of (?:the )?512 test images")
        for file in ("training/digits_wide.yaml", "classifier/digits_wide.yaml")
    ]
    words = ["dataset=digits", "model=classifier", "classifier=digits_wide"]
    assert train.main([*words, f"out={tmp_path}/wide.safetensors", f"results={tmp_path}"]) == 0
    (accuracy,) = figures(capsys.readouterr().out, r"classifier: ([\d.]+) % of 512 test images")
    assert quoted == [[accuracy], [accuracy]]
