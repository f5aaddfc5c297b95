"""Cards of a run, honest and forged: what the check accepts, and the one line by which it refuses."""

import ast
import copy
import importlib.util
import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dp.board import entry as entries
from dp.board.check import Scoring, first_scoring, second_scoring
from dp.commands import board
from dp.files.cache import digest
from dp.output.archived import rows_of
from dp.output.card import CARD, TEXT, card_of, read_card, written
from dp.runs.keys import run_key
from dp.statistics import metrics
from tests.helpers.compose import composed, finished

SMALL = ["protocol.images=6", "protocol.votes=4", "attack.iterations=2", "attack.eot=2", "audit=false", "workers=1"]
SMALL += ["dataset.lanes=4", "dataset.draws_per_call=2"]
NOISY = [*SMALL, "purifier=diffpure", "purifier.t=0.6", "purifier.steps=2"]


def run_of(root: Path, *words: str) -> Path:
    """The folder of a finished run of six images, three seeds and four samples."""
    config = composed(*NOISY, *words)
    folder = root / run_key(config)
    assert finished(config, folder)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    return run_of(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def honest(run, tmp_path_factory) -> Path:
    """The entry of that run."""
    return entries.submit(run, tmp_path_factory.mktemp("board"))


@pytest.fixture
def forged(honest, tmp_path) -> Path:
    """A copy of the entry, to be forged."""
    return Path(shutil.copytree(honest, tmp_path / honest.name))


def cli(capsys, *given) -> tuple[int, str, str]:
    return board.main([*map(str, given)]), *capsys.readouterr()


def restated(path: Path, change: Callable[[dict], object]) -> None:
    """Change the arrays beside a card, and state in the card what they then give, as a careful forger would."""
    arrays, card = load_file(path / entries.IMAGES), read_card(path / CARD)
    change(arrays)
    save_file(arrays, path / entries.IMAGES)
    rows = rows_of(arrays)
    protocol = card["config"]["protocol"]
    figures = metrics.summarize(rows, protocol["votes"], ties=protocol["ties"])
    told = {name: card[name] for name in ("config", "caveats", "seconds", "device")} | {"audited": card["audit"]}
    told |= {"code": card["code"]["sha256"], "commit": card["code"]["commit"], "versions": card["code"]["versions"]}
    new = card_of({**told, **figures}, rows, card["key"], card["command"], card["weights"])
    file = path / entries.IMAGES
    new["images"]["file"] = {
        "name": file.name,
        "bytes": file.stat().st_size,
        "sha256": digest(file),
        "url": None,
    }
    (path / CARD).write_bytes(written(new))


def edited(path: Path, change: Callable[[dict], object]) -> None:
    """Change a card alone."""
    card = json.loads((path / CARD).read_text())
    change(card)
    (path / CARD).write_text(json.dumps(card))


def refusal(capsys, path: Path) -> str:
    """The one line by which a card is refused."""
    code, _, err = cli(capsys, "check", path)
    assert (code, err.count("\n")) == (1, 1), err
    assert err.startswith(f"refused: {path}: need ") or "scoring, " in err
    return err


def test_a_run_writes_its_card(run):
    card, rows = read_card(run / CARD), [json.loads(line) for line in (run / "images.jsonl").read_text().splitlines()]
    own = [row for row in rows if row["arm"] == "defended"]
    right = [[c == row["label"] for c in row["adv"]] for row in own]
    assert card["figures"]["robust"]["average"]["value"] == pytest.approx(100 * sum(map(sum, right)) / 72)
    assert card["figures"]["robust"]["worst"]["value"] == pytest.approx(100 * sum(map(all, right)) / 18)
    assert card["clean_acc"] == f"{100 * sum(row['clean'][0] == row['label'] for row in own) / 18:.2f}"
    ids = sorted({row["id"] for row in own})
    assert card["images"]["ids"] == ids
    assert card["images"]["right"] == [
        sum(sum(r) for r, row in zip(right, own, strict=True) if row["id"] == i) for i in ids
    ]
    assert (card["images"]["samples"], card["seeds"]) == (12, [2024, 2025, 2026])
    assert card["key"] == run.name
    assert {each["file"] for each in card["weights"]} == {
        "digits_denoiser.safetensors",
        "digits_classifier.safetensors",
    }
    text = (run / TEXT).read_text()
    assert f"| robust accuracy | {card['figures']['robust']['single']['value']:.1f} [" in text
    assert str(card["command"]) in text


def test_a_run_of_the_second_generator_is_accepted(tmp_path, capsys):
    entry = entries.submit(run_of(tmp_path, "rng=2"), tmp_path / "board")
    code, out, err = cli(capsys, "check", entry)
    assert code == 0, out + err


def robustbench_fields() -> set[str]:
    """The fields of RobustBench's own class for model_info files, read off its source: the import takes seconds."""
    spec = importlib.util.find_spec("robustbench")
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse((Path(spec.origin).parent / "utils.py").read_text())
    (info,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "ModelInfo"]
    return {
        node.target.id for node in info.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def test_robustbench_knows_its_fields(run):
    """One decision by a single sample takes one purification and one call of the classifier."""
    card = read_card(run / CARD)
    own = {"link", "name", "authors", "additional_data", "number_forward_passes", "dataset", "venue", "architecture"}
    own |= {"eps", "clean_acc", "reported", "autoattack_acc"}
    assert own <= robustbench_fields() & card.keys()
    assert card["number_forward_passes"] == card["caveats"]["nfe"] + 1
    assert float(card["clean_acc"]) == pytest.approx(card["figures"]["standard"]["single"]["value"], abs=0.005)
    assert (card["autoattack_acc"], card["unreliable"]) == (None, None)  # the attack is PGD, and there was no audit


def test_the_command_of_a_card_gives_its_key(run):
    program, verb, *words = shlex.split(str(read_card(run / CARD)["command"]))
    assert (program, verb) == ("dp", "run")
    assert run_key(composed(*words)) == run.name


def test_an_honest_entry_is_accepted(honest, capsys):
    code, out, err = cli(capsys, "check", honest)
    assert (code, err) == (0, "")
    assert "first scoring, the run's own noise: robust 0 of 72 samples differ" in out
    assert out.splitlines()[-1].strip() == "accepted"
    assert cli(capsys, "check", honest / CARD, "--noise", "other")[0] == 0


def test_a_raised_number(forged, capsys):
    def raise_it(card: dict) -> None:
        card["figures"]["robust"]["average"]["value"] += 3

    edited(forged, raise_it)
    assert "need figures.robust.average.value" in refusal(capsys, forged)


def test_a_number_that_is_raised_in_the_file_too(forged, capsys):
    """Three points of 72 samples are two: rounding explains one."""

    def raise_it(arrays: dict) -> None:
        wrong = (arrays["defended.adv"] != arrays["labels"][None, :, None]).nonzero()
        for seed, image, sample in wrong[:2].tolist():
            arrays["defended.adv"][seed, image, sample] = arrays["labels"][image]

    restated(forged, raise_it)
    told = refusal(capsys, forged)
    assert "first scoring, robust: need the stated classes from the run's own noise, got 2 of 72 samples" in told


def test_images_of_another_run(forged, run, tmp_path, capsys):
    """Those of an attack with another number of iterations, on the same images, inside the same ball."""
    other = load_file(entries.submit(run_of(tmp_path, "attack.iterations=1"), tmp_path / "board") / entries.IMAGES)

    def exchange(arrays: dict) -> None:
        for name in ("defended.x_adv", "undefended.x_adv"):
            arrays[name] = other[name]

    restated(forged, exchange)
    assert "first scoring, robust" in refusal(capsys, forged)


def test_another_file_than_the_card_was_made_with(forged, capsys):
    arrays = load_file(forged / entries.IMAGES)
    arrays["defended.x_adv"] = arrays["null.x_adv"].clone()
    save_file(arrays, forged / entries.IMAGES)
    assert "SHA-256" in refusal(capsys, forged)
    (forged / entries.IMAGES).unlink()
    assert "got no such file, and the card has no address" in refusal(capsys, forged)


def test_a_missing_seed(forged, capsys):
    def drop(arrays: dict) -> None:
        arrays["seeds"] = arrays["seeds"][:2]
        arrays.update({name: values[:2].clone() for name, values in arrays.items() if "." in name})

    restated(forged, drop)
    assert "need the seeds 2024, 2025, 2026, got 2024, 2025" in refusal(capsys, forged)


def test_a_seed_that_is_missing_in_one_array(forged, capsys):
    restated(forged, lambda arrays: None)
    arrays = load_file(forged / entries.IMAGES)
    arrays["null.adv"] = arrays["null.adv"][:2].clone()
    save_file(arrays, forged / entries.IMAGES)
    edited(forged, lambda card: card["images"]["file"].update(sha256=digest(forged / entries.IMAGES)))
    assert "need null.adv of 3 seeds x 6 images, got 2x6" in refusal(capsys, forged)


def test_chosen_images(forged, capsys):
    """Five of the six images: not the subset of the configuration."""

    def drop(arrays: dict) -> None:
        arrays.update({name: arrays[name][:5] for name in ("ids", "labels")})
        arrays.update({name: values[:, :5].clone() for name, values in arrays.items() if "." in name})

    restated(forged, drop)
    assert "need the 6 ids of the dataset's subset" in refusal(capsys, forged)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda x: x + 0.01, "within linf 0.12549, got one at 0.13"),
        (lambda x: x - 2, "in [0,1]"),
        (lambda x: x * torch.nan, "in [0,1]"),
        (lambda x: x[..., :8].clone(), "need attacked images 6, 1, 16, 16, got 6, 1, 16, 8"),
    ],
)
def test_images_that_the_threat_model_does_not_have(forged, capsys, change, told):
    def move(arrays: dict) -> None:
        moved = change(arrays["defended.x_adv"])
        arrays["defended.x_adv"] = moved if "linf" not in told else moved.clamp(0, 1)

    restated(forged, move)
    assert told in refusal(capsys, forged)


def with_key(card: dict, change: Callable[[dict], object]) -> None:
    """Change the configuration of a card, and give it the key of the changed one."""
    change(card["config"])
    card["key"] = run_key(copy.deepcopy(card["config"]))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda card: card["protocol"].update(name="strict"), "need protocol default of version 1"),
        (lambda card: card["protocol"].update(version=2), "need protocol default of version 1"),
        (lambda card: card["config"]["protocol"].update(seeds=[1, 2, 3]), "need a configuration with the key"),
        (
            lambda card: with_key(card, lambda config: config["protocol"].update(seeds=[1, 2, 3])),
            "need protocol default as its yaml gives it, got protocol.seeds [1, 2, 3] instead of [2024, 2025, 2026]",
        ),
        (
            lambda card: with_key(card, lambda config: config["protocol"].update(known_draws=True)),
            "got protocol.known_draws True instead of False",
        ),
        (
            lambda card: with_key(card, lambda config: config["purifier"].update(version=1)),
            "need purifier diffpure of version 2, got 1: run it again",
        ),
        (lambda card: card["config"]["choices"].update(protocol="stricter"), "unknown option protocol=stricter"),
        (
            lambda card: with_key(card, lambda config: config["classifier"].update(_target_="os.system")),
            "got os.system",
        ),
        (lambda card: card["caveats"].update(nfe=1), "need caveats.nfe"),
        (lambda card: card.update(unreliable=False), "need unreliable None"),
        (lambda card: card.update(seeds=[2024]), "need the seeds"),
        (lambda card: card["images"]["file"].clear(), "no images.file.bytes"),
        (lambda card: card.pop("figures"), "no figures"),
        (lambda card: card.update(format=9), "need a card of format 1"),
    ],
)
def test_a_changed_card(forged, capsys, change, told):
    edited(forged, change)
    code, _, err = cli(capsys, "check", forged)
    assert (code, err.count("\n")) == (1, 1), err
    assert told in err


def scoring(stated: list[list[int]], again: list[list[int]], decided: int = 0) -> Scoring:
    return Scoring("robust", stated, again, decided, [1] * len(stated))


def test_one_in_a_thousand_may_be_rounded_otherwise():
    stated = [[1] * 20 + [2] * 5 for _ in range(100)]
    again = copy.deepcopy(stated)
    for k in range(3):
        again[k][0] = 2
    assert first_scoring(scoring(stated, again)) == "robust 3 of 2500 samples differ"
    again[3][0] = 2
    with pytest.raises(ValueError, match=r"got 4 of 2500 samples with another \(rounding explains 3\)"):
        first_scoring(scoring(stated, again))
    with pytest.raises(ValueError, match="got 2 of 100 decisions"):
        first_scoring(scoring(stated, stated, decided=2))


def test_without_noise_an_image_is_one_decision():
    stated, again = [[1] * 20] * 90, [[1] * 20] * 89 + [[2] * 20]
    assert first_scoring(scoring(stated, again)) == "robust 1 of 90 images differ"
    assert second_scoring(scoring(stated, again)).endswith("(p = 1)")
    with pytest.raises(ValueError, match="got 2 of 90 images"):
        first_scoring(scoring(stated, [[2] * 20] * 2 + [[1] * 20] * 88))


def test_samples_that_only_the_runs_own_noise_gives():
    """An attacker, or a defense, that knows the noise of the run's samples passes the first scoring alone."""
    stated, fresh = [[1] * 15 + [2] * 5] * 30, [[1] * 10 + [2] * 10] * 30
    assert first_scoring(scoring(stated, stated))
    with pytest.raises(ValueError, match=r"second scoring, robust: need 75\.00 % .* got 50\.00 %"):
        second_scoring(scoring(stated, fresh))


def test_a_file_at_an_address(forged, capsys, monkeypatch, tmp_path):
    """Where only the address of the images is there, they are fetched, and must have the hash of the card.

    What the card says of plug-ins is not used.
    """
    away = tmp_path / "away.safetensors"
    (forged / entries.IMAGES).rename(away)
    edited(forged, lambda card: card["images"]["file"].update(url="https://example.org/images.safetensors"))
    edited(forged, lambda card: card["config"]["plugins"].update(modules=["a_module_that_is_not_there"]))
    asked = []
    monkeypatch.setattr(entries, "fetch", lambda asset, on_bytes: asked.append(asset) or away)
    assert cli(capsys, "check", forged)[0] == 0
    assert [(a.url, a.sha256) for a in asked] == [("https://example.org/images.safetensors", digest(away))]


def test_an_archived_run_has_a_card_without_images(run, tmp_path, capsys):
    from dp.commands.archive import archive

    copied = archive(run, tmp_path / "measured")
    code, out, _ = cli(capsys, "card", copied, "--board", tmp_path / "board")
    assert code == 0
    assert "without images, so it cannot be checked" in out
    made, own = (read_card(folder / CARD) for folder in (tmp_path / "board" / run.name, run))
    assert made == own
    assert "an archived run keeps none" in refusal(capsys, tmp_path / "board" / run.name)
    code, _, err = cli(capsys, "build", "--board", tmp_path / "board")
    assert (code, err.count("\n")) == (2, 1)
    assert "need cards with attacked images" in err


def test_an_audit_writes_the_card_again(run, tmp_path):
    from dp.audit import battery
    from dp.runs.cards import write_card

    copied = Path(shutil.copytree(run, tmp_path / run.name))
    entry = {"checks": 2, "FAIL": 1, "WARN": 0, "findings": []}
    assert battery.attach(copied, entry)
    card = write_card(copied)
    assert card is not None
    assert card["unreliable"] is True
    assert read_card(copied / CARD) == card
