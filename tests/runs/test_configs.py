"""Every option and every preset composes for every dataset, binds to the code, and holds the papers' values."""

import functools
import re
import sys
from collections.abc import Iterator
from typing import Any

import hydra
import pytest
import requests
import torch
import yaml
from omegaconf import DictConfig, OmegaConf

from dp.commands.run import main
from dp.defense.defended import Defended
from dp.diffusion.denoisers import Gaussian
from dp.output.published import published_lines, published_rows
from dp.rng import Streams
from dp.runs.compose import CONF, GROUPS, VERSION_BASE, arguments, make, resolved, with_plugins
from dp.runs.keys import run_key
from dp.runs.validate import check_setup, check_targets
from dp.runs.words import UNCHOSEN
from tests.helpers.compose import CONFIG_DIRS, composed, options, setup

DATASETS = ("digits", "canvas", "cifar10", "svhn", "imagenet", "imagenette", "celebahq")
HUNG = GROUPS[3:]  # groups whose values may depend on the dataset; the others are chosen by it
YAMLS = sorted(p.relative_to(CONF).as_posix() for p in CONF.rglob("*.yaml"))
SENTENCE = 110  # characters of a yaml's first line


@functools.cache
def unresolved(*overrides: str) -> tuple[DictConfig, dict]:
    """A configuration whose values still depend on its dataset, and the chosen options."""
    search = f"hydra.searchpath=[{','.join(f'file://{folder}' for folder in CONFIG_DIRS)}]"
    with hydra.initialize_config_dir(str(CONF), version_base=VERSION_BASE):
        cfg = hydra.compose("config", overrides=[*overrides, search], return_hydra_config=True)
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"]), cfg.hydra.runtime.choices


def on(dataset: str, *overrides: str) -> dict:
    """The plain configuration of the overrides on a dataset, with the classifier and the denoiser of digits.

    Values depend on the dataset through its own node alone. So the overrides are composed once, and the node is
    exchanged.
    """
    cfg, choices = unresolved(*overrides)
    cfg.dataset = unresolved(f"dataset={dataset}")[0].dataset
    return with_plugins(resolved(cfg, choices), CONFIG_DIRS)


@pytest.mark.parametrize("dataset", DATASETS)
def test_an_exchanged_dataset_gives_what_composition_gives(dataset):
    whole = composed(f"dataset={dataset}", "protocol=strict", "attack=strict_mask")
    exchanged = on(dataset, "protocol=strict", "attack=strict_mask")
    for group in ("dataset", *HUNG):
        assert whole[group] == exchanged[group]
    assert [whole["choices"][group] for group in ("dataset", "classifier", "denoiser")] == [dataset] * 3


@pytest.mark.parametrize(("group", "option"), [(g, o) for g in HUNG for o in options(g)])
def test_every_option_composes_and_binds_for_every_dataset(group, option):
    for dataset in DATASETS:
        config = on(dataset, f"{group}={option}")
        check_targets(config)
        assert (config["dataset"]["name"], {**dict.fromkeys(UNCHOSEN, option), **config["choices"]}[group]) == (
            dataset,
            option,
        )
        assert not list(unused(config[group], dataset, group))


def unused(node: Any, dataset: str, path: str) -> Iterator[str]:
    """Entries of `per_dataset` tables that are not the value of the key of their name, in a node and below it."""
    if not isinstance(node, dict):
        return
    table = node.get("per_dataset", {})
    for key, value in {**table.get("default", {}), **table.get(dataset, {})}.items():
        if key not in node or node[key] != value:
            yield f"{path}.{key}"
    for key, child in node.items():
        yield from unused(child, dataset, f"{path}.{key}") if key != "per_dataset" else ()


def test_an_unused_entry_of_a_table_is_found():
    node = {"per_dataset": {"mars": {"a": 1, "b": 2}, "default": {"a": 5, "c": 3}}, "a": 1, "b": 5}
    assert list(unused({"inner": node}, "mars", "attack")) == ["attack.inner.c", "attack.inner.b"]


@pytest.mark.parametrize(
    ("group", "option"), [(g, o) for g in ("dataset", "classifier", "denoiser") for o in options(g)]
)
def test_every_dataset_classifier_and_denoiser_binds(group, option):
    """A purifier's table need not name a dataset of somebody else."""
    more = () if (CONF / group / f"{option}.yaml").exists() else ("purifier=none",)
    config = composed("dataset=cifar10", f"{group}={option}", *more)
    check_targets(config)
    assert config["choices"][group] == option


@pytest.mark.parametrize("preset", options("experiment"))
def test_every_preset_composes_narrows_and_says_its_command(preset):
    made = setup(f"+experiment={preset}", "protocol.images=8")
    check_setup(made)
    config = made.config
    assert config["protocol"]["images"] == 8
    text = (CONF / "experiment" / f"{preset}.yaml").read_text()
    assert f"# python run.py +experiment={preset}" in text
    assert text.startswith("# @package _global_\n")


@pytest.mark.parametrize("name", YAMLS)
def test_every_yaml_begins_with_a_short_sentence_unless_it_is_an_alias(name):
    lines = (CONF / name).read_text().splitlines()
    if set(yaml.safe_load("\n".join(lines))) == {"defaults"} and len(lines) == 1:
        return
    first = next(line for line in lines if not re.match(r"# (@package|python run\.py)", line))
    assert re.fullmatch(r"# [A-Z].*[.;:)]", first)
    assert len(first.removeprefix("# ")) <= SENTENCE


def test_comments_cite_nothing_outside_the_repository():
    notes = re.compile(r"\b(items? \d|methods\b|evaluation\.md|design\.md)")
    cited = [
        f"{name}: {line}" for name in YAMLS for line in (CONF / name).read_text().splitlines() if notes.search(line)
    ]
    assert not cited
    assert notes.search("# no random start (methods.md item 34)")


def test_gradient_variants_and_tables_are_no_arguments():
    node = composed("dataset=cifar10", "purifier=hetero")["purifier"]
    assert node["gradients"]["surrogate"] == {
        "per_dataset": {"digits": {"steps": 3}, "canvas": {"steps": 3}, "default": {"steps": 10}},
        "steps": 10,
    }
    assert not {"per_dataset", "gradients", "published"} & set(arguments(node))
    assert arguments(node)["t_s"] == 0.05
    control = composed("dataset=cifar10", "purifier=hetero_random")["purifier"]["gradients"]
    assert [control["mask_soft"], control["mask_straight_through"]] == [None, None]


def test_a_nested_attack_has_its_own_table():
    """Iterations of the attacks inside strict_mask and bpda_eot, each where its parent's table says otherwise."""
    parts = {d: on(d, "attack=strict_mask")["attack"]["attacks"] for d in ("digits", "cifar10", "imagenet")}
    found = {d: [parts[d][k]["iterations"] for k in ("apgd_ce", "apgd_t", "pgd_eot")] for d in parts}
    assert found == {"digits": [10, 5, 5], "cifar10": [100, 100, 200], "imagenet": [100, 100, 20]}
    assert {d: parts[d]["mask_soft"]["attack"]["iterations"] for d in parts} == {
        "digits": 3,
        "cifar10": 200,
        "imagenet": 20,
    }
    inner = {d: on(d, "attack=bpda_eot")["attack"]["attack"] for d in parts}
    assert {d: (node["iterations"], node["eot"]) for d, node in inner.items()} == {
        "digits": (10, 4),
        "cifar10": (100, 20),
        "imagenet": (100, 20),
    }


def test_digits_stands_in_for_cifar10_at_its_own_radii():
    scaled_from = on("digits")["dataset"]["scaled_from"]
    assert scaled_from["eps"] == on(scaled_from["dataset"])["dataset"]["eps"]
    assert scaled_from["dataset"] == "cifar10"


def test_attacks_that_add_to_a_protocols_own():
    variants = {name: on("digits", f"protocol={name}")["protocol"]["attack_variants"] for name in options("protocol")}
    assert {name for name, attacks in variants.items() if attacks} == {"strict"}
    assert variants["strict"] == ["strict_mask"]
    assert set(variants["strict"]) <= set(options("attack"))


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
    assert run_key(composed(f"+experiment={preset}")) == run_key(spelled)


def test_the_papers_command_is_the_papers_budget():
    config = composed("dataset=cifar10", "purifier=hetero", "attack=pgd_eot")
    assert (config["protocol"]["images"], len(config["protocol"]["seeds"]), config["protocol"]["votes"]) == (512, 3, 20)
    assert (config["attack"]["iterations"], config["attack"]["eot"], config["attack"]["step_size"]) == (200, 20, 0.007)
    assert config["threat_model"]["eps"] == "8/255"
    assert config["classifier"]["net"]["file"] == "Standard.pt"
    assert config["denoiser"]["net"]["file"] == "edm-cifar10-32x32-uncond-vp.pkl"
    assert composed("dataset=imagenet")["attack"]["iterations"] == 20
    assert [composed(f"dataset={d}")["purifier"]["t_l"] for d in ("cifar10", "imagenet")] == [0.2, 0.4]


NAMES = "lee_kim|diffpure|gdmp|mimic|lorid|contrastive|adp|langevin|atop|pixeldefend|menet"
OTHERS = [p for p in options("experiment") if re.match(rf"table\d/({NAMES})", p)]


@pytest.mark.parametrize("preset", OTHERS)
def test_a_preset_of_another_defense_finds_the_figures_that_it_prints(preset):
    text = (CONF / "experiment" / f"{preset}.yaml").read_text()
    rows = [row for row in published_rows(composed(f"+experiment={preset}")) if row["table"] == preset[5]]
    printed = [line.split("): ")[1].split(";")[0] for line in published_lines(rows)]
    assert any(f"Printed: {figures}" in text for figures in printed)


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
        ("hetero_official_rev_b", "cifar10", 50, 2),  # deviation 33: 50-step DDIM at t = .1
        ("hetero_official_rev_b", "imagenet", 100, 4),
        ("hetero", "digits", 7, 5),
        ("hetero", "canvas", 6, 5),
        ("hetero_official", "canvas", 10, 2),
        ("diffpure", "canvas", 4, 2),
        ("diffpure", "cifar10", 100, 20),
        ("diffpure_ddpm", "celebahq", 500, 20),
        ("lee_kim", "digits", 8, 5),
        ("lee_kim", "cifar10", 470, 7),
        ("lee_kim", "imagenet", 620, 7),
        ("lee_kim", "svhn", 380, 7),
        ("diffpure_sde", "cifar10", 100, 20),
        ("diffpure_sde", "digits", 20, 5),
        ("diffpure_ode", "cifar10", 100, 20),
        ("diffpure_ode", "digits", 10, 4),
    ],
)
def test_nfe_of_the_configured_grids(purifier, dataset, scored, attacked):
    node = on(dataset, f"purifier={purifier}")["purifier"]
    purify = make(node)
    x = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for bound, nfe in (
        (purify, scored),
        (functools.partial(purify, **arguments(node["gradients"]["surrogate"])), attacked),
    ):
        model = Defended(bound, Gaussian(), Eyes())  # pyright: ignore[reportArgumentType]
        model.purify(x, Streams([0], 0, "a"))
        assert model.nfe == nfe


def no_network(*_, **__):
    raise requests.ConnectionError("no network")


@pytest.mark.parametrize(
    ("dataset", "file", "address"),
    [
        ("cifar10", "Standard.pt (146 MB)", "https://drive.google.com/uc?id=1t98aEuzeTL8P7Kpd5DIrCoCL21BNZUhC"),
        (
            "svhn",
            "svhn_wrn_28_10.safetensors (146 MB)",
            "nowhere, train it with dp train dataset=svhn model=classifier",
        ),
        ("imagenet", "resnet50-0676ba61.pth (102.5 MB)", "https://download.pytorch.org/models/resnet50-0676ba61.pth"),
    ],
)
def test_missing_files_are_one_line_that_says_all(dataset, file, address, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("dp.files.download.requests.get", no_network)
    monkeypatch.setattr("dp.files.download.WAIT", 0)
    monkeypatch.setattr(sys, "argv", ["run.py", f"dataset={dataset}", "purifier=hetero", "attack=pgd_eot"])
    assert main() == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    for part in (file, address, str(tmp_path / "cache")):
        assert part in err


@pytest.mark.parametrize(("group", "budget"), [("purifier", "quick"), ("attack", "full"), ("protocol", "full")])
def test_values_by_dataset_need_no_value_for_others(group, budget):
    """A dataset that a table does not know is an error that names it, not a silent default. Only a budget is the quick
    one, that of digits, until it is told to be full, and only its counts are passed on.
    """
    node = {"per_dataset": {"digits": {"steps": 1}, "venus": {"other": 2}}, "steps": "${per_dataset:steps}"}
    mars = {"name": "mars", "budget": budget}
    with pytest.raises(Exception, match="no value of steps for dataset mars, only for digits"):
        OmegaConf.to_container(OmegaConf.create({"dataset": mars, group: node}), resolve=True)
    if budget == "full":
        quick: Any = OmegaConf.to_container(OmegaConf.create({"dataset": {"name": "mars"}, group: node}), resolve=True)
        assert quick[group]["steps"] == 1
        tuned = {"per_dataset": {"digits": {"rate": 1}}, "rate": "${per_dataset:rate}"}
        with pytest.raises(Exception, match="no value of rate for dataset mars, only for digits"):
            OmegaConf.to_container(OmegaConf.create({"dataset": {"name": "mars"}, group: tuned}), resolve=True)


def test_the_nearest_table_with_the_key_has_the_value():
    inner = {"per_dataset": {"default": {"a": 1}}, "a": "${per_dataset:a}", "b": "${per_dataset:b}"}
    outer = {"per_dataset": {"mars": {"a": 2, "b": 3}}, "a": "${per_dataset:a}", "inner": [inner]}
    plain: Any = OmegaConf.to_container(OmegaConf.create({"dataset": {"name": "mars"}, "x": outer}), resolve=True)
    assert (plain["x"]["a"], plain["x"]["inner"][0]["a"], plain["x"]["inner"][0]["b"]) == (2, 1, 3)


@pytest.mark.parametrize("name", ["adp", "atop", "impure", "langevin", "pixeldefend"])
def test_weights_of_a_purifiers_own_are_those_of_the_dataset(name):
    """No file of another dataset is taken in silence: without a hash its name is the only sign of what it is for."""
    for dataset in ("digits", "canvas", "svhn"):
        net = composed(f"dataset={dataset}", f"purifier={name}")["purifier"]["net"]
        assert net["file"] == f"{dataset}_{name}.safetensors"
        assert (net["sha256"] is None) == (dataset != "digits")
