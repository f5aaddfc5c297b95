"""Every option and every preset composes for every dataset, binds to the code, and holds the papers' values."""

import functools
import sys

import pytest
import requests
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

import run
from dp.defense.defended import Defended
from dp.diffusion.denoisers import Gaussian
from dp.rng import Streams
from dp.runs.validate import NOT_PASSED, check_call
from tests.helpers.compose import CONF, composed

DATASETS = ("digits", "cifar10", "svhn", "imagenet", "imagenette", "celebahq")


def options(group: str) -> list[str]:
    return sorted(p.relative_to(CONF / group).with_suffix("").as_posix() for p in (CONF / group).rglob("*.yaml"))


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize(("group", "option"), [(g, o) for g in run.GROUPS[3:] for o in options(g)])
def test_every_option_composes_and_binds_for_every_dataset(group, option, dataset):
    config = composed(f"dataset={dataset}", f"{group}={option}")
    check_call({name: config[name] for name in run.GROUPS})
    assert (config["dataset"]["name"], {**config["choices"], "tracking": option}[group]) == (dataset, option)


@pytest.mark.parametrize(
    ("group", "option"), [(g, o) for g in ("dataset", "classifier", "denoiser") for o in options(g)]
)
def test_every_dataset_classifier_and_denoiser_binds(group, option):
    config = composed("dataset=cifar10", f"{group}={option}")
    check_call({name: config[name] for name in run.GROUPS})
    assert config["choices"][group] == option


@pytest.mark.parametrize("preset", options("experiment"))
def test_every_preset_composes_narrows_and_says_its_command(preset):
    config = composed(f"+experiment={preset}", "protocol.images=8")
    check_call({name: config[name] for name in run.GROUPS})
    assert config["protocol"]["images"] == 8
    text = (CONF / "experiment" / f"{preset}.yaml").read_text()
    assert f"# python run.py +experiment={preset}" in text
    assert text.startswith("# @package _global_\n")


def test_a_preset_follows_the_dataset_on_the_command_line():
    """Values that hang on the dataset are never set by a preset."""
    config = composed("+experiment=table1/hetero", "dataset=imagenet")
    assert config["attack"]["iterations"] == 20
    assert config["classifier"]["net"]["file"] == "resnet50-0676ba61.pth"
    assert config["denoiser"]["net"]["file"] == "256x256_diffusion_uncond.pt"


@pytest.mark.parametrize(
    ("preset", "overrides"),
    [
        ("table1/hetero", ["dataset=cifar10"]),
        ("table3/hetero", ["dataset=cifar10", "threat_model=l2"]),
        ("table6/hetero", ["dataset=imagenet"]),
        ("table8/hetero", ["dataset=svhn"]),
    ],
)
def test_a_preset_and_the_same_command_share_a_folder(preset, overrides):
    spelled = composed(*overrides, "purifier=hetero", "attack=pgd_eot")
    assert run.run_key(composed(f"+experiment={preset}")) == run.run_key(spelled)


def test_the_papers_command_is_the_papers_budget():
    config = composed("dataset=cifar10", "purifier=hetero", "attack=pgd_eot")
    assert (config["protocol"]["images"], len(config["protocol"]["seeds"]), config["protocol"]["votes"]) == (512, 3, 20)
    assert (config["attack"]["iterations"], config["attack"]["eot"], config["attack"]["step_size"]) == (200, 20, 0.007)
    assert config["threat_model"]["eps"] == "8/255"
    assert config["classifier"]["net"]["file"] == "Standard.pt"
    assert config["denoiser"]["net"]["file"] == "edm-cifar10-32x32-uncond-vp.pkl"
    assert composed("dataset=imagenet")["attack"]["iterations"] == 20
    assert [composed(f"dataset={d}")["purifier"]["t_l"] for d in ("cifar10", "imagenet")] == [0.2, 0.4]


class Eyes(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(1))

    def features(self, x):
        return [x]


@pytest.mark.parametrize(
    ("purifier", "dataset", "scored", "attacked"),
    [
        ("hetero_official", "cifar10", 100, 2),
        ("hetero_official", "imagenet", 200, 4),
        ("hetero_official", "digits", 20, 2),
        ("hetero_fixed", "cifar10", 100, 4),
        ("hetero_official_rev_b", "cifar10", 50, 2),  # item 33: 50-step DDIM at t = .1
        ("hetero_official_rev_b", "imagenet", 100, 4),
        ("hetero", "digits", 8, 5),
        ("diffpure", "cifar10", 100, 20),
        ("diffpure_sde", "cifar10", 100, 20),
        ("diffpure_sde", "digits", 20, 5),
        ("diffpure_ode", "cifar10", 100, 20),
        ("diffpure_ode", "digits", 10, 4),
    ],
)
def test_nfe_of_the_configured_grids(purifier, dataset, scored, attacked):
    node = composed(f"dataset={dataset}", f"purifier={purifier}")["purifier"]
    purify = instantiate({k: v for k, v in node.items() if k not in NOT_PASSED})
    x = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for bound, nfe in ((purify, scored), (functools.partial(purify, **node["surrogate"]), attacked)):
        model = Defended(bound, Gaussian(), Eyes())  # pyright: ignore[reportArgumentType]
        model.purify(x, Streams([0], 0, "a"))
        assert model.nfe == nfe


def no_network(*_, **__):
    raise requests.ConnectionError("no network")


@pytest.mark.parametrize(
    ("dataset", "file", "address"),
    [
        ("cifar10", "Standard.pt (146 MB)", "https://drive.google.com/uc?id=1t98aEuzeTL8P7Kpd5DIrCoCL21BNZUhC"),
        ("svhn", "svhn_wrn_28_10.safetensors (146 MB)", "nowhere, train it with scripts/train.py"),
        ("imagenet", "resnet50-0676ba61.pth (102.5 MB)", "https://download.pytorch.org/models/resnet50-0676ba61.pth"),
    ],
)
def test_missing_files_are_one_line_that_says_all(dataset, file, address, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("dp.files.download.requests.get", no_network)
    monkeypatch.setattr("dp.files.download.WAIT", 0)
    monkeypatch.setattr(sys, "argv", ["run.py", f"dataset={dataset}", "purifier=hetero", "attack=pgd_eot"])
    assert run.cli() == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    for part in (file, address, str(tmp_path / "cache")):
        assert part in err


@pytest.mark.parametrize(
    ("group", "key"), [(g, k) for g in ("purifier", "attack", "protocol") for k in ("by_dataset",)]
)
def test_values_by_dataset_need_no_value_for_others(group, key):
    """A dataset that a yaml does not know is an error that names it, not a silent default."""
    with pytest.raises(Exception, match="no value for dataset mars"):
        OmegaConf.to_container(
            OmegaConf.create({"dataset": {"name": "mars"}, group: f"${{{key}:{{digits: 1}}}}"}), resolve=True
        )
