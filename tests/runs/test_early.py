"""What can be checked without a file is checked before one is fetched, and what nothing reads is refused."""

import pytest

from dp.runs import pipeline
from dp.runs.early import check_denoiser, check_early
from dp.runs.validate import check_setup
from tests.helpers.compose import composed, home, options, setup


class Fetches(Exception):
    """In place of a download."""


@pytest.fixture(autouse=True)
def no_file(tmp_path, monkeypatch):
    """An empty cache, and a run that ends where it would fetch."""

    def fetch(config):
        raise Fetches

    monkeypatch.setenv("DP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(pipeline, "fetch_missing", fetch)


def begun(*words: str) -> None:
    made = setup("dataset=cifar10", *words)
    pipeline.prepare(made, pipeline.folder_of(made))


BAD = [
    ("protocol.votes=0", "need votes >= 1"),
    ("protocol.seeds=[1,1]", "need seeds that differ"),
    ("protocol.seeds=[a]", "need whole votes"),
    ("protocol.images=0", r"need protocol\.images >= 1"),
    ("threat_model.eps=255", r"need threat_model\.eps <= 1"),
    ("attack.step_size=1e9", "need step_size <= 1"),
    ("purifier.steps=1000000", "need 1 <= steps <= 100000"),
    ("purifier.tau=-5", "need 0 <= tau <= 1"),
    ("purifier.t_s=0.3", "need 0 < t_s <= t_l"),
    ("threat_model.grad=nonsense", "need a gradient variant nonsense"),
    ("window=0", "need window as a whole number >= 1"),
]


@pytest.mark.parametrize(("word", "said"), BAD)
def test_a_mistake_is_said_before_anything_is_fetched(word, said):
    with pytest.raises(ValueError, match=said):
        begun("purifier=hetero", word)


def test_a_sound_command_goes_on_to_its_files():
    for purifier in ("hetero", "hetero_official", "diffpure_ode", "none"):
        with pytest.raises(Fetches):
            begun(f"purifier={purifier}")
    with pytest.raises(Fetches):
        begun("purifier=hetero", "attack=strict_mask")


@pytest.mark.parametrize("attack", ["pgd_eot", "square"])  # square takes no gradient
@pytest.mark.parametrize("name", ["/", "surogate"])
def test_an_undefended_model_takes_no_unknown_gradient_mode(name, attack):
    with pytest.raises(ValueError, match=f"need grad as one of .*got grad={name}"):
        begun("purifier=none", f"attack={attack}", f"threat_model.grad={name}")


@pytest.mark.parametrize("name", ["bpda", "surrogate", "adjoint", "mask_soft"])
def test_an_undefended_model_takes_every_known_one(name):
    with pytest.raises(Fetches):
        begun("purifier=none", f"threat_model.grad={name}")


UNREAD = ["attack.gradient=bpda", "attack.gradients={a: 1}", "threat_model.gradient=none", "classifier.gradient=none"]


@pytest.mark.parametrize("word", UNREAD)
def test_a_gradient_is_read_in_the_purifier_alone(word):
    key = word.partition("=")[0]
    with pytest.raises(ValueError, match=rf"unknown key {key}: only purifier\.gradients? is read"):
        check_setup(setup(f"+{word}"))


def test_nested_attacks_have_no_gradient_either():
    for path in ("attack.attacks.pgd_eot", "attack.attacks.transfer.attack"):
        with pytest.raises(ValueError, match=f"unknown key {path}.gradient: "):
            check_setup(setup("attack=union", f"+{path}.gradient=bpda"))


def test_an_exception_may_have_the_name_of_a_gradient():
    with pytest.raises(Fetches):
        begun("purifier=diffpure", "+purifier.gradient=none", "+purifier.exceptions={gradient: it rounds}")


MEASURED = ("center", "scale")  # what a yaml leaves to be measured with the denoiser of another dataset


@pytest.mark.parametrize("dataset", ["digits", "cifar10", "imagenet", "svhn", "celebahq"])
def test_every_purifier_runs_with_the_denoiser_of_its_dataset(dataset):
    for purifier in (name for name in options("purifier") if not home(name)):
        words = [f"dataset={dataset}", f"purifier={purifier}"]
        words += [f"purifier.{key}=1.0" for key in MEASURED if key in composed(*words)["purifier"]]
        assert check_early(composed(*words)) is None


@pytest.mark.parametrize("purifier", ["gdmp", "diffpure_guided"])
def test_a_learned_variance_needs_a_denoiser_that_has_one(purifier):
    with pytest.raises(Fetches):
        begun("dataset=imagenet", f"purifier={purifier}")
    with pytest.raises(ValueError, match="need a noise predictor with learned variance, got EDM: set variance=small"):
        begun(f"purifier={purifier}", "purifier.variance=learned")


@pytest.mark.parametrize("purifier", ["adp", "menet_soft"])
def test_a_denoiser_that_the_purifier_does_not_use_is_refused(purifier):
    words = (f"purifier={purifier}", "denoiser=edm_cifar10")
    with pytest.raises(ValueError, match=f"purifier {purifier} uses no denoiser, got denoiser=edm_cifar10: leave it"):
        check_denoiser(setup(*words))


def test_a_denoiser_that_the_purifier_uses_is_not():
    for words in (("purifier=diffpure", "denoiser=edm_cifar10"), ("purifier=adp",), ("purifier=adp", "denoiser=none")):
        assert check_denoiser(setup(*words)) is None
