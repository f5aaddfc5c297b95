"""python run.py dataset=cifar10 purifier=hetero attack=pgd_eot: from files in the public formats to the table row."""

import json
import sys
from pathlib import Path

import pytest
import requests
import torch

from dp.commands.run import main
from dp.datasets import fixed_ids
from dp.nets.edm_unet import SongUNet
from dp.nets.ncsnpp import NCSNpp
from dp.nets.wrn import WideResNet
from tests.helpers.compose import composed
from tests.helpers.formats import cifar10, edm_pickle, score_sde, torch_file

COMMAND = ["dataset=cifar10", "purifier=hetero", "attack=pgd_eot"]
UNET = {"model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1}  # the public layout, narrower
SMALL = [
    *("denoiser.net.sha256=null", "classifier.net.sha256=null", "dataset.loader.md5=null"),  # not the published files
    *(f"denoiser.net.net.{k}={json.dumps(v).replace(' ', '')}" for k, v in UNET.items()),
    *("classifier.net.net.depth=10", "classifier.net.net.widen=1"),
    "classifier.taps=[block1.layer.0.relu2,block2.layer.0.relu2,block3.layer.0.relu2,relu]",
    *("protocol.images=3", "protocol.seeds=[1,2]", "protocol.votes=2", "attack.iterations=2", "attack.eot=2"),
    *(
        "purifier.steps=3",
        "purifier.jump=2",
        "purifier.gradients.surrogate.steps=2",
        "dataset.lanes=2",
        "dataset.draws_per_call=1",
    ),
    "workers=1",
]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Random weights as RobustBench and EDM write them, and ten thousand random images as CIFAR-10's authors do."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DP_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "cache"
    cifar10(folder, 10_000)
    torch.manual_seed(0)
    node = composed("dataset=cifar10")["denoiser"]["net"]["net"]
    settings = {k: v for k, v in node.items() if not k.startswith("_")} | UNET
    net = SongUNet(**settings)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    (folder / "edm-cifar10-32x32-uncond-vp.pkl").write_bytes(edm_pickle(net, settings))
    state = {f"module.{k}": v for k, v in WideResNet(10, 1).state_dict().items()}
    (folder / "Standard.pt").write_bytes(torch_file({"epoch": 200, "state_dict": state, "best_prec1": 94.8}))
    return folder


def no_network(*_, **__):
    raise requests.ConnectionError("[Errno -2] Name or service not known")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    monkeypatch.setattr("dp.files.download.requests.get", no_network)
    monkeypatch.setattr("dp.files.download.WAIT", 0)


def cli(monkeypatch, capsys, *overrides):
    monkeypatch.setattr(sys, "argv", ["run.py", *overrides])
    code = main()
    return code, *capsys.readouterr()


def test_from_public_files_to_the_row(cache, monkeypatch, capsys):
    code, out, err = cli(monkeypatch, capsys, *COMMAND, *SMALL)
    assert (code, err) == (0, "")
    assert "cifar10 / hetero (version 2) / pgd_eot, linf 8/255" in out
    assert "published (arXiv 2503.01407, Table 1, Ours): standard 93.16±0.21, robust 59.38±1.25" in out
    for words in ("beside arXiv 2503.01407, Table 1, Ours", "mean logits of 2 *", "single sample", "vote of 2"):
        assert words in out
    assert "the honest one is strict" in " ".join(out.split())
    folder = Path(out.strip().splitlines()[-1].removeprefix("results: "))
    rows = [json.loads(line) for line in (folder / "images.jsonl").read_text().splitlines()]
    ids = sorted(fixed_ids(10_000, 3).tolist())
    assert ids == [898, 2398, 9394]
    for arm in ("defended", "undefended", "null"):
        assert sorted(r["id"] for r in rows if r["arm"] == arm and r["seed"] == 1) == ids
    assert all(r["distance"] <= 8 / 255 + 1e-6 for r in rows)
    assert {r["nfe"] for r in rows if r["arm"] == "defended"} == {3 + 2}  # two of three steps are before t_s
    noted = json.loads((cache / "hashes.json").read_text())  # no hash was pinned: the first use counts
    assert set(noted) == {"Standard.pt", "edm-cifar10-32x32-uncond-vp.pkl"}


def test_a_file_that_changes_after_its_first_use(cache, monkeypatch, capsys):
    assert cli(monkeypatch, capsys, *COMMAND, *SMALL)[0] == 0
    state = {k: v + 1 for k, v in WideResNet(10, 1).state_dict().items()}
    (cache / "Standard.pt").write_bytes(torch_file({"state_dict": state}))
    code, _, err = cli(monkeypatch, capsys, *COMMAND, *SMALL, "protocol.votes=1")
    assert code == 2
    assert "as noted in hashes.json on first use" in err
    assert err.count("\n") == 1


def test_the_published_hashes_are_required(cache, monkeypatch, capsys):
    kept = [o for o in SMALL if "sha256" not in o and "md5" not in o]
    code, _, err = cli(monkeypatch, capsys, *COMMAND, *kept)
    assert code == 2
    assert "need" in err
    assert "6ed1c75dad63" in err  # RobustBench's Standard
    assert err.count("\n") == 1


def test_the_official_checkpoint(cache, monkeypatch, capsys):
    """The released code's row: score-SDE's averages, integer labels, its own loop."""
    settings = {"image_size": 32, "nf": 16, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [16]}
    torch.manual_seed(0)
    net = NCSNpp(**settings)
    folder = cache / "cifar10_ddpmpp_deep_continuous"
    folder.mkdir()
    average = {k: v.detach() for k, v in net.named_parameters()}
    (folder / "checkpoint_8.pth").write_bytes(torch_file(score_sde(net, average)))
    small = [o for o in SMALL if not o.startswith(("denoiser", "purifier"))]
    small += ["denoiser.net.net.nf=16", "denoiser.net.net.ch_mult=[1,2]", "denoiser.net.net.num_res_blocks=1"]
    small += ["purifier.n=10", "purifier.gradients.surrogate.n=5"]
    code, out, err = cli(monkeypatch, capsys, "+experiment=table1/hetero_official", *small)
    assert (code, err) == (0, "")
    assert "cifar10 / hetero_official / pgd_eot_official" in out


def test_without_files_and_network_one_line_names_each(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DP_CACHE", str(tmp_path / "empty"))
    code, _, err = cli(monkeypatch, capsys, *COMMAND)
    assert code == 2
    assert err.count("\n") == 1
    assert "Traceback" not in err
    for part in (
        *("Standard.pt (146 MB)", "https://drive.google.com/uc?id=1t98aEuzeTL8P7Kpd5DIrCoCL21BNZUhC"),
        *("edm-cifar10-32x32-uncond-vp.pkl (223 MB)", "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/edm-cifar10"),
        *("cifar-10-batches-py (170.5 MB)", "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"),
        str(tmp_path / "empty"),
    ):
        assert part in err, part
    assert not [p for p in (tmp_path / "empty").rglob("*") if p.is_file() and not p.name.startswith(".")]
