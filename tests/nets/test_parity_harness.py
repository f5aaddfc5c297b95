"""The parity tests hold any fixture of their formats: here files of our own, under every preconditioner and the VE SDE.

A fault in such a file must be found.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.helpers import fixtures
from tests.nets import test_parity as parity

ROOT = Path(__file__).parents[2]
EDM = {
    "vp": ("VPPrecond", "positional", {}),
    "vp_other_constants": ("VPPrecond", "positional", {"beta_d": 15.0, "beta_min": 0.2, "M": 500}),
    "vp_fourier": ("VPPrecond", "fourier", {}),
    "ve": ("VEPrecond", "fourier", {}),
    "ve_positional": ("VEPrecond", "positional", {}),
    "iddpm": ("iDDPMPrecond", "positional", {}),
    "edm_other_constants": ("EDMPrecond", "fourier", {"sigma_data": 0.8}),
}
SCORE = {"score_ve": True, "score_ve_uncentered": False}
EVERY = (parity.test_output_and_input_gradient, parity.test_parameters, parity.test_second_derivatives)
EVERY += (parity.test_one_noise_label_serves_a_batch,)
OF_EDM = (parity.test_the_edm_network_alone_and_under_the_other_preconditioners,)
OF_SCORE = (
    parity.test_score_sde_in_continuous_time,
    parity.test_score_sde_average_is_named_in_the_order_of_the_file,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("parity")
    for name, (kind, layout, constants) in EDM.items():
        fixtures.edm_fixture(folder / f"{name}.safetensors", kind, layout, **constants)
    for name, centered in SCORE.items():
        fixtures.score_fixture(folder / f"{name}.safetensors", centered)
    return folder


@pytest.mark.parametrize("assert_parity", [*EVERY, *OF_EDM], ids=lambda test: test.__name__)
@pytest.mark.parametrize("name", EDM)
def test_edm_networks_under_every_preconditioner(folder, name, assert_parity):
    assert_parity(folder / f"{name}.safetensors")


@pytest.mark.parametrize("assert_parity", [*EVERY, *OF_SCORE], ids=lambda test: test.__name__)
@pytest.mark.parametrize("name", SCORE)
def test_score_networks_whose_label_is_sigma(folder, name, assert_parity):
    assert_parity(folder / f"{name}.safetensors")


def spoiled(path: Path, to: Path, change, **about: str) -> Path:
    """The fixture at `path` after a change of its tensors or metadata, as a file at `to`."""
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (a safetensors handle is no dict)
        metadata = file.metadata() | about
    change(tensors)
    save_file(tensors, to, metadata)
    return to


@pytest.mark.parametrize(
    ("name", "key", "value", "test"),
    [
        ("vp", "aux.c_in", lambda t: (0.25 + t["sigma"] ** 2).rsqrt(), OF_EDM[0]),  # EDM's in place of VP's
        ("ve", "aux.c_noise", lambda t: t["sigma"].log() / 4, OF_EDM[0]),
        ("ve", "aux.out_as_VPPrecond", lambda t: t["aux.out_as_EDMPrecond"].clone(), OF_EDM[0]),
        ("iddpm", "aux.c_noise", lambda t: t["aux.c_noise"] + 1, OF_EDM[0]),
        ("vp_other_constants", "out", lambda t: t["out"] * 1.0001, EVERY[0]),
        ("score_ve", "sigma", lambda t: t["sigma"] * 1.001, EVERY[0]),
        ("score_ve", "aux.score", lambda t: t["out"] * t["sigma"].view(-1, 1, 1, 1), OF_SCORE[0]),
        ("score_ve", "aux.marginal_std", lambda t: t["sigma"] * 1.001, OF_SCORE[0]),
    ],
)
def test_a_wrong_number_is_found(folder, tmp_path, name, key, value, test):
    path = spoiled(folder / f"{name}.safetensors", tmp_path / "a.safetensors", lambda t: t.update({key: value(t)}))
    with pytest.raises(AssertionError):
        test(path)


def test_fourier_weights_that_are_counted_as_parameters_are_found(folder, tmp_path):
    path = folder / "score_ve.safetensors"
    with safe_open(path, "pt") as file:
        count, frozen = int(file.metadata()["param_count"]), file.get_tensor("state.all_modules.0.W").numel()
    wrong = spoiled(path, tmp_path / "a.safetensors", lambda t: None, param_count=str(count + frozen))
    assert frozen > 0
    with pytest.raises(AssertionError):
        parity.test_parameters(wrong)


def test_a_folder_outside_the_repository(folder):
    """The command that docs and the test's first line name."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/nets/test_parity.py"]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"DP_PARITY": str(folder)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    files = len(EDM) + len(SCORE)
    assert f"{2 + len(EVERY) * files + len(EDM) + 2 * len(SCORE)} passed" in done.stdout


def test_files_of_unknown_kinds_are_named_and_those_of_other_methods_are_ignored(tmp_path, monkeypatch):
    monkeypatch.setattr(parity.parity, "FOLDER", tmp_path)
    one = {"x": torch.zeros(1)}
    for method in ("ADP", "EBM+Langevin", "IMPure", "consistency", "ME-Net"):
        save_file(one, tmp_path / f"{method}.safetensors", {"method": method, "sigma": "0.15"})
    save_file(one, tmp_path / "guided.safetensors", {"branch": "cifar", "guide": "mse"})
    parity.test_no_file_is_of_an_unknown_kind()
    save_file(one, tmp_path / "bare.safetensors")
    save_file(one, tmp_path / "new.safetensors", {"method": "NewMethod"})
    save_file(one, tmp_path / "odd.safetensors", {"rounds": "3"})
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    with pytest.raises(AssertionError) as caught:
        parity.test_no_file_is_of_an_unknown_kind()
    assert all(f"'{name}.safetensors'" in str(caught.value) for name in ("bare", "new", "odd", "torn"))
    assert not any(name in str(caught.value) for name in ("ADP", "guided"))
    assert [path.stem for path in parity.parity.files("gdmp")] == ["guided"]
    assert not parity.parity.files(parity.parity.NETWORK)


def test_own_weights_are_exact_in_the_file(folder):
    tensors = parity.fixture(folder / "vp.safetensors").tensors
    assert tensors["state.map_layer0.weight"].dtype == torch.float8_e4m3fn
