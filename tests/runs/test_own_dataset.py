"""A dataset of one's own needs only its yaml: what stands in for the rest, and which budget it has."""

import json
from pathlib import Path

import pytest

from dp.commands.run import main
from dp.runs import compose
from dp.runs.by_dataset import is_quick
from dp.runs.keys import run_key

YAML = """\
# Digits under another name: a dataset of one's own.
name: mine
loader: {_target_: dp.datasets.digits, images: "${protocol.images}"}
eps: {linf: 8/255, l2: 0.5}
lanes: 4
draws_per_call: 2
"""


@pytest.fixture
def mine(tmp_path, monkeypatch) -> Path:
    """The working folder; its folder `plug` has the dataset `mine` and nothing else."""
    (tmp_path / "plug" / "dataset").mkdir(parents=True)
    (tmp_path / "plug" / "dataset" / "mine.yaml").write_text(YAML)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DP_CACHE", str(tmp_path / "cache"))
    return tmp_path


def setup(mine: Path, *overrides: str) -> compose.Setup:
    return compose.setup("dataset=mine", *overrides, config_dirs=[mine / "plug"])


def cli(monkeypatch, capsys, *overrides: str) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["dp run", "--config-dir=plug", "dataset=mine", *overrides])
    code = main()
    out, err = capsys.readouterr()
    return code, " ".join(out.split()), err


def test_all_missing_values_are_named_at_once(mine, monkeypatch, capsys):
    code, _, err = cli(monkeypatch, capsys)
    assert (code, err.count("\n")) == (2, 1)
    assert "need values for dataset mine, which no table names: purifier.t_l=..." in err
    assert "purifier.t_s=..." in err
    given = ["purifier.t_l=0.2", "purifier.t_s=0.1"]
    assert setup(mine, *given).config["purifier"]["steps"] == 100  # not those of digits: no budget


def test_a_missing_classifier_and_denoiser_are_one_line_that_says_what_to_set(mine, monkeypatch, capsys):
    made = setup(mine, "purifier.t_l=0.2", "purifier.t_s=0.1")
    assert made.config["choices"]["classifier"] == "local"
    assert made.config["denoiser"] == {"net": None}
    (line,) = [note for note in made.notes if "classifier" in note]
    assert "has no classifier and no denoiser of its name, so it has classifier=local and denoiser=none: set " in line
    assert "classifier.net.file=FILE" in line
    code, out, err = cli(monkeypatch, capsys, "purifier=none")
    assert code == 2
    assert "has no classifier of its name" in out
    assert "local.safetensors" in err
    assert err.count("\n") == 1
    code, out, err = cli(monkeypatch, capsys, "classifier=digits", "purifier.t_l=0.2", "purifier.t_s=0.1")
    assert (code, err) == (
        2,
        "error: need a denoiser for this purifier, got none: choose denoiser=NAME or purifier=none\n",
    )
    assert "has no denoiser of its name, so it has denoiser=none: set denoiser=NAME" in out


def test_an_option_that_does_not_exist_is_an_error_as_before(mine, monkeypatch, capsys):
    for word, near in (("classifier=digitz", "digits"), ("denoiser=edm_cifar", "edm_cifar10")):
        code, _, err = cli(monkeypatch, capsys, word, "purifier.t_l=0.2", "purifier.t_s=0.1")
        assert code == 2
        assert err.startswith(f"error: unknown option {word} (did you mean {near}")
    monkeypatch.setattr("sys.argv", ["dp run", "classifier=digitz"])
    assert main() == 2
    assert "unknown option classifier=digitz (did you mean digits" in capsys.readouterr().err


def test_the_budget_is_the_quick_one_until_told_otherwise(mine):
    digits, cifar = compose.composed("purifier=none"), compose.composed("dataset=cifar10", "purifier=none")
    quick = setup(mine, "purifier=none")
    full = setup(mine, "purifier=none", "+dataset.budget=full")
    for made, like in ((quick, digits), (full, cifar)):
        for count in ("iterations", "eot"):
            assert made.config["attack"][count] == like["attack"][count]
        assert made.config["protocol"]["images"] == like["protocol"]["images"]
        assert made.config["protocol"]["votes"] == like["protocol"]["votes"]
    assert quick.config["attack"]["step_size"] is None  # 2.5 eps / iterations, as of digits
    assert full.config["attack"]["step_size"] == cifar["attack"]["step_size"] == 0.007
    assert [is_quick(made.config["dataset"]) for made in (quick, full)] == [True, False]
    assert is_quick({"name": "mine"})
    assert not is_quick({"name": "imagenet"})
    with pytest.raises(ValueError, match=r"need dataset\.budget quick or full, got dataset\.budget=big"):
        is_quick({"name": "mine", "budget": "big"})


TUNED = [
    (["attack=spsa"], "attack.step_size", "attack.directions"),
    (["attack=bpda_eot_hill"], "attack.step_size", "attack.iterations"),
    (["attack=square"], "attack.rescale", "attack.iterations"),
    (["attack=low_frequency", "threat_model=low_frequency"], "attack.penalty", "attack.eot"),
    (["attack=low_frequency", "threat_model=low_frequency"], "attack.rate_change", "attack.iterations"),
    ([], "protocol.grad", "protocol.votes"),
]


@pytest.mark.parametrize(("options", "tuned", "count"), TUNED)
def test_only_counts_are_quick(mine, options, tuned, count):
    """What was chosen for the images of digits, or for its eps, is not passed on."""

    def value(config, key):
        for part in key.split("."):
            config = config[part]
        return config

    words = [
        "classifier=digits",
        "denoiser=digits",
        "purifier=diffpure",
        "purifier.t=0.2",
        "purifier.steps=5",
        *options,
    ]
    ours = setup(mine, *words).config
    table = {"protocol.grad": "full", "attack.rescale": False}
    table |= {"attack.penalty": 1e4, "attack.rate_change": 0.008}
    table["attack.step_size"] = 0.01 if options == ["attack=spsa"] else 0.00784314
    assert value(ours, tuned) == table[tuned]
    assert value(ours, count) == value(compose.composed("purifier=diffpure", *options), count)


def test_a_budget_is_for_datasets_of_ones_own(mine, monkeypatch, capsys):
    for dataset in ("digits", "cifar10"):
        monkeypatch.setattr("sys.argv", ["dp run", f"dataset={dataset}", "+dataset.budget=full"])
        assert main() == 2
        err = capsys.readouterr().err
        assert (
            f"need dataset.budget for a dataset of your own only, got one for {dataset}: +experiment=digits/full" in err
        )
        assert err.count("\n") == 1
    same = [run_key(setup(mine, "purifier=none", *word).config) for word in ([], ["+dataset.budget=quick"])]
    assert same[0] == same[1] != run_key(setup(mine, "purifier=none", "+dataset.budget=full").config)


def test_a_yaml_without_its_settings_names_all_of_them(mine, monkeypatch, capsys):
    (mine / "plug" / "dataset" / "mine.yaml").write_text("name: mine\nloader: {_target_: dp.datasets.digits}\n")
    code, _, err = cli(monkeypatch, capsys, "purifier=none", "classifier=digits")
    assert code == 2
    assert "need dataset.eps, dataset.lanes, dataset.draws_per_call in the yaml of dataset=mine" in err


def test_a_run_says_its_budget_and_which_values_of_a_protocol_it_scales(mine, monkeypatch, capsys):
    small = ["purifier=none", "classifier=digits", "protocol=official", "protocol.seeds=[5]", "protocol.images=4"]
    small += ["attack.iterations=1", "attack.eot=1", "workers=1", "audit=false"]
    code, out, err = cli(monkeypatch, capsys, *small)
    assert (code, err) == (0, "")
    assert "dataset mine has the quick budget: +dataset.budget=full takes the full one" in out
    (path,) = Path("results/runs").glob("*/summary.json")
    summary = json.loads(path.read_text())
    scaled = {c["key"]: (c["value"], c["reference"]) for c in summary["caveats"]["scaled"]}
    assert scaled["protocol.images"] == (64, 512) or scaled["protocol.images"] == (4, 512)
    assert "scaled to mine from the full budget: " in out


def test_a_classifier_with_fewer_classes_than_labels_is_one_line(mine, monkeypatch, capsys):
    words = ["purifier=none", "classifier=local", f"classifier.net.file={mine}/net.safetensors"]
    words += ["classifier.net.net._target_=dp.nets.wrn.WideResNet", "+classifier.net.net.depth=10"]
    words += ["+classifier.net.net.widen=1", "+classifier.net.net.channels=1", "+classifier.net.net.classes=3"]
    from safetensors.torch import save_file

    from dp.nets.wrn import WideResNet

    save_file(WideResNet(depth=10, widen=1, classes=3, channels=1).state_dict(), mine / "net.safetensors")
    code, _, err = cli(monkeypatch, capsys, *words, "protocol.images=8", "workers=1", "audit=false")
    assert (code, err.count("\n")) == (2, 1)
    assert "need a logit for every label" in err
