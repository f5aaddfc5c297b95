"""Saved attacked images scored again: own samples exactly, fresh ones within chance, other defenses."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy import stats

from dp.commands import rescore as script
from dp.output import rescore
from dp.runs.build import build
from tests.helpers.compose import TINY, composed, finished

NOISY = [*TINY, "purifier=diffpure", "purifier.t=0.6", "purifier.steps=2", "protocol.images=6", "workers=1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A finished run of a defense whose samples disagree: six images in four slots, two seeds, three samples."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / "digits-diffpure"
    assert finished(composed(*NOISY), folder)
    return folder


@pytest.fixture(scope="module")
def evaluation():
    return build(composed(*NOISY))


def cli(capsys, *given) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `dp rescore given...`."""
    return script.main([*map(str, given)]), *capsys.readouterr()


def test_own_samples_give_the_same_rows(folder, evaluation):
    kept = rescore.saved(folder)
    assert [(k.arm, k.seed, len(k.rows)) for k in kept] == [
        (arm, seed, 6) for arm in ("defended", "null", "undefended") for seed in (5, 6)
    ]
    for k in kept:
        model = evaluation.arms[k.arm].scored
        rows = rescore.score(model, evaluation, k, rescore.STAGES[k.arm])
        assert [{**row, "ties": 0} for row in rows] == [{**row, "ties": 0} for row in k.rows]
        assert rescore.unequal(k.rows, rows) == 0


def test_own_samples_of_the_second_generator_give_the_same_rows(tmp_path):
    config = composed(*NOISY, "rng=2", "protocol.seeds=[5]")
    assert finished(config, tmp_path / "run")
    evaluation = build(config)
    for k in rescore.saved(tmp_path / "run"):
        rows = rescore.score(evaluation.arms[k.arm].scored, evaluation, k, rescore.STAGES[k.arm])
        assert rescore.unequal(k.rows, rows) == 0
    older = {key: value for key, value in composed(*NOISY).items() if key != "rng"}
    assert script.scorer("older", older).evaluation.rng == 1


def test_fresh_samples_are_other_samples_of_the_same_defense(folder, evaluation):
    """40 samples of an image against 40 others: classes differ, accuracies by no more than chance (scipy)."""
    many = dataclasses.replace(evaluation, votes=40)
    (k,) = [k for k in rescore.saved(folder) if (k.arm, k.seed) == ("defended", 5)]
    own, fresh = (rescore.score(evaluation.arms["defended"].scored, many, k, s) for s in ("adv", rescore.FRESH))
    assert [row["adv"][:3] for row in own] == [row["adv"] for row in k.rows]
    assert rescore.unequal(own, fresh) == 6
    for a, b in zip(own, fresh, strict=True):
        right = [sum(c == a["label"] for c in row["adv"]) for row in (a, b)]
        assert stats.fisher_exact([right, [40 - n for n in right]]).pvalue > 1e-3
    apart = rescore.difference(own, fresh)
    assert apart.agree
    assert apart.std > 0


def rows(right: np.ndarray) -> list[dict]:
    return [{"label": 1, "adv": [int(c) for c in image]} for image in right]


def test_the_spread_of_a_difference_is_the_simulated_one():
    rng = np.random.default_rng(0)
    q = rng.random((30, 1))
    found = [rescore.difference(*(rows(rng.random((30, 4)) < q) for _ in range(2))) for _ in range(400)]
    assert np.std([d.value for d in found]) == pytest.approx(np.sqrt(np.mean([d.std**2 for d in found])), rel=0.1)
    assert sum(d.agree for d in found) >= 394
    shifted = [rescore.difference(rows(rng.random((30, 4)) < q), rows(rng.random((30, 4)) < q / 2)) for _ in range(20)]
    assert sum(d.agree for d in shifted) <= 5


def test_a_difference_of_single_samples_is_mcnemars():
    before = np.array([[1]] * 9 + [[0]] * 3 + [[1]] * 20, dtype=bool)
    after = np.array([[0]] * 9 + [[1]] * 3 + [[1]] * 20, dtype=bool)
    apart = rescore.difference(rows(before), rows(after))
    assert apart.value == pytest.approx(100 * 6 / 32)
    assert (apart.value / apart.std) ** 2 == pytest.approx((9 - 3) ** 2 / (9 + 3))


def test_eight_bits_are_whole_steps_of_255(folder):
    k = rescore.saved(folder)[0]
    steps = 255 * rescore.eight_bits(k).x_adv
    assert torch.allclose(steps, steps.round(), atol=1e-4)
    assert 0 < float((rescore.eight_bits(k).x_adv - k.x_adv).abs().max()) <= 0.5 / 255 + 1e-7


def test_command_agrees_with_the_run(folder, capsys):
    code, out, _ = cli(capsys, folder, "--own")
    assert code == 0
    assert out.count("agrees") == 3
    code, out, _ = cli(capsys, folder, "--bits", "8")
    assert code == 0
    assert out.count("agrees") == 3
    assert out.count("to 8 bits") == 3


def test_command_finds_images_that_are_not_the_runs(folder, capsys, tmp_path):
    """The images of the null control and of the undefended classifier are replaced by gray ones."""
    spoiled = tmp_path / "spoiled"
    shutil.copytree(folder, spoiled)
    for path in spoiled.glob("part-*"):
        part, (arm, seed) = load_file(path), (rescore.record.read_part(path)[key] for key in ("arm", "seed"))
        if arm != "defended":
            save_file({**part, "x_adv": torch.full_like(part["x_adv"], 0.5)}, path, {"arm": arm, "seed": str(seed)})
    code, out, _ = cli(capsys, spoiled, "--own")
    assert code == 1
    lines = {line.split()[0]: line for line in out.splitlines() if line.strip().startswith(("def", "null", "undef"))}
    assert "agrees" in lines["defended"]
    assert "DIFFERS" in lines["null"]


def test_a_run_of_before_some_keys_is_scored_as_it_was():
    older = composed(*NOISY, "dtype=bfloat16")
    for key in ("scored_dtype", "compile"):
        del older[key]
    scored = script.scorer("diffpure", older).evaluation.arms["defended"].scored
    assert scored.precision == (torch.bfloat16, False)
    assert scored.classifier.compiled is None


def test_another_defense_is_a_column(folder, evaluation, capsys):
    """No purification: the classifier's own word on the saved images, in closed form."""
    defended = [k for k in rescore.saved(folder) if k.arm == "defended"]
    labels = torch.tensor([row["label"] for k in defended for row in k.rows])
    with torch.no_grad():
        classes = evaluation.arms["undefended"].scored.classifier(torch.cat([k.x_adv for k in defended])).argmax(dim=1)
    share = 100 * float((classes == labels).float().mean())
    code, out, _ = cli(capsys, folder, "purifier=none")
    assert code == 0
    assert "purifier=none" in out
    (line,) = [line for line in out.splitlines() if "diffpure, pgd_eot (" in line and "[" in line]
    assert f"{share:.1f} [" in line.split("]", 1)[1]
    code, out, _ = cli(capsys, folder, "--against", folder, "purifier.t=0.1")
    assert code == 0
    assert out.count("purifier.t=0.1") == 1


def test_what_cannot_be_scored_again_is_said_in_one_line(folder, capsys, tmp_path):
    unfinished, bare = tmp_path / "unfinished", tmp_path / "bare"
    shutil.copytree(folder, unfinished)
    (unfinished / "summary.json").unlink()
    bare.mkdir()
    (bare / "summary.json").write_text((folder / "summary.json").read_text())
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    summary = json.loads((folder / "summary.json").read_text())
    summary["config"]["dataset"]["name"] = "cifar10"
    (other / "summary.json").write_text(json.dumps(summary))
    (other / "start.json").unlink()
    twice = tmp_path / "twice"
    shutil.copytree(folder, twice)
    (twice / "summary.json").write_text(json.dumps(summary))
    for given, said in (
        ([unfinished], "need a finished run with summary.json"),
        ([bare], "need every row of a finished run in"),
        ([twice], "need one configuration in"),
        ([tmp_path / "nowhere"], "need the folder of a run"),
        ([folder, "purifier.tt=0.2"], "unknown key purifier.tt (did you mean t?)"),
        ([folder, "purifier=difpure"], "unknown option purifier=difpure"),
        (["purifier=none"], "need the folder of a finished run"),
        ([folder, "attack=none"], "need overrides of classifier, denoiser, purifier and their keys, got attack"),
        ([folder, "--own", "purifier=none"], "need --own and --bits without other defenses"),
        ([folder, "--against", other], "need runs on one dataset, got cifar10, digits"),
    ):
        code, _, err = cli(capsys, *given)
        assert (code, err.count("\n")) == (2, 1), err
        assert err.startswith("error: ")
        assert said in err
