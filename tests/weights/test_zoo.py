"""Classifiers of RobustBench and timm: their architectures, our tensors-only and strict reading."""

import os
import pickle
import re

import pytest
import torch
from safetensors.torch import save_file

from dp.weights import zoo
from dp.weights.needed import needed
from tests.helpers.compose import CONF, composed
from tests.helpers.formats import torch_file


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DP_CACHE", str(tmp_path))
    return tmp_path


def put(cache, model, content, dataset="cifar10", threat="Linf"):
    path = cache / zoo.robustbench_asset(model, dataset, threat).file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else torch_file(content))
    return path


def random_state(model, dataset="cifar10", threat="Linf"):
    """The architecture's own tensors, random, with statistics that are no identity."""
    entry = zoo._entry(model, dataset, threat)
    assert entry is not None
    torch.manual_seed(0)
    net = entry["model"]().eval()
    for name, value in net.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif name.endswith("running_mean"):
            value.normal_(std=0.1)
    return net, net.state_dict()


@pytest.mark.parametrize(
    ("model", "threat", "wrap"),
    [
        ("Rade2021Helper_R18_ddpm", "Linf", lambda s: s),
        ("Sehwag2021Proxy_R18", "Linf", lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}, "epoch": 9}),
        ("Andriushchenko2020Understanding", "Linf", lambda s: {"last": s, "best": {k: v + 1 for k, v in s.items()}}),
        ("Wong2020Fast", "Linf", lambda s: {k: v for k, v in s.items() if k not in ("mu", "sigma")}),
        ("Rice2020Overfitting", "L2", lambda s: s | {"model_preact_hl1.1.weight": torch.zeros(1)}),
        ("Engstrom2019Robustness", "L2", lambda s: {"model": {f"module.model.{k}": v for k, v in s.items()}}),
    ],
)
def test_robustbench_files_of_the_layouts_it_reads(cache, model, threat, wrap):
    net, state = random_state(model, threat=threat)
    put(cache, model, wrap(state), threat=threat)
    found = zoo.robustbench(model, "cifar10", threat).eval()
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(found(x), net(x), rtol=0, atol=0)


def test_robustbench_standard_is_our_wide_resnet(cache):
    """The same file through the zoo and through classifier=wrn_28_10, whose network is our own."""
    from dp.runs.compose import make

    _, state = random_state("Standard")
    path = put(cache, "Standard", {"state_dict": state, "epoch": 200})
    (cache / "Standard.pt").symlink_to(path)
    node = composed("dataset=cifar10", "classifier.net.sha256=null")["classifier"]["net"]
    ours = make(node).eval()
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), zoo.robustbench("Standard").eval()(x))


def test_an_imagenet_model_has_its_normalizer_in_front(cache):
    net, state = random_state("Salman2020Do_R18", "imagenet")
    bare = {f"module.model.{k.removeprefix('model.')}": v for k, v in state.items() if "normalize" not in k}
    put(cache, "Salman2020Do_R18", bare, "imagenet")
    found = zoo.robustbench("Salman2020Do_R18", "imagenet").eval()
    assert torch.equal(found.normalize.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(found(x), net(x), rtol=0, atol=0)


@pytest.mark.parametrize("change", ["missing", "left over", "shape"])
def test_a_file_that_does_not_fit(cache, change):
    _, state = random_state("Rade2021Helper_R18_ddpm")
    name = next(k for k in state if k.endswith("weight"))
    if change == "missing":
        del state[name]
    elif change == "left over":
        state["extra.weight"] = torch.zeros(1)
    else:
        state[name] = torch.zeros(1)
    put(cache, "Rade2021Helper_R18_ddpm", state)
    with pytest.raises(ValueError, match=r"Rade2021Helper_R18_ddpm\.pt") as error:
        zoo.robustbench("Rade2021Helper_R18_ddpm")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content",
    [{"best": {"a": torch.zeros(1)}}, {"state_dict": [1]}, [torch.zeros(1)], {"state_dict": {1: torch.ones(1)}}],
)
@pytest.mark.parametrize("model", ["Andriushchenko2020Understanding", "Rade2021Helper_R18_ddpm"])
def test_a_file_without_named_tensors(cache, model, content):
    put(cache, model, content)
    with pytest.raises(ValueError, match=rf"need named tensors, or .*state_dict .*{model}\.pt, got") as error:
        zoo.robustbench(model)
    assert "\n" not in str(error.value)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_nothing_is_executed(cache):
    for content in (pickle.dumps(Evil(cache / "touched")), torch_file({"state_dict": Evil(cache / "touched")})):
        put(cache, "Rade2021Helper_R18_ddpm", content)
        with pytest.raises(ValueError, match="nothing was executed"):
            zoo.robustbench("Rade2021Helper_R18_ddpm")
        (cache / "hashes.json").unlink()
    assert not (cache / "touched").exists()


@pytest.mark.parametrize(
    ("model", "dataset", "threat", "said"),
    [
        ("Standart", "cifar10", "linf", "unknown RobustBench model Standart for cifar10, Linf (did you mean Standard"),
        ("Standard", "mnist", "linf", "need dataset cifar10, cifar100, imagenet"),
        ("Standard", "cifar10", "l1", "need threat Linf, L2 or corruptions"),
        ("Chen2020Adversarial", "cifar10", "Linf", "an ensemble of several files"),
        ("Standard_R50", "imagenet", "Linf", "choose classifier=resnet50"),
    ],
)
def test_models_that_are_not_there(model, dataset, threat, said):
    with pytest.raises(ValueError, match=r"need|unknown") as error:
        zoo.robustbench_asset(model, dataset, threat)
    assert said in str(error.value)


def test_every_preset_of_adversarial_training_names_a_model_of_the_zoo():
    presets = [p for p in sorted((CONF / "experiment").glob("table*/*.yaml")) if "robustbench" in p.read_text()]
    assert len(presets) == 15
    for path in presets:
        config = composed(f"+experiment={path.parent.name}/{path.stem}")
        (asset,) = [a for a in needed(config["classifier"]) if a.file.startswith("robustbench/")]
        assert asset.url.startswith("https://drive.google.com/uc?id=")
        assert config["classifier"]["net"]["model"] in asset.file


def test_timm_preprocesses_once_and_as_published(cache):
    import timm
    from timm.data import create_transform, resolve_data_config

    torch.manual_seed(0)
    net = timm.create_model("resnet18.a1_in1k", pretrained=False).eval()
    path = cache / zoo.timm_asset("resnet18.a1_in1k").file
    path.parent.mkdir()
    save_file(net.state_dict(), path)
    classifier = zoo.timm("resnet18.a1_in1k", taps=["layer1", "layer4"])
    x = torch.rand(2, 3, 224, 224)
    settings = resolve_data_config({}, model=net)
    normalize = create_transform(**settings).transforms[-1]
    with torch.no_grad():
        torch.testing.assert_close(classifier(x), net(torch.stack([normalize(image) for image in x])))
        assert [tuple(f.shape) for f in classifier.features(x)] == [(2, 64, 56, 56), (2, 512, 7, 7)]
    assert classifier.size == 224


@pytest.mark.parametrize("option", ["timm", "deit_s", "vit_b"])
def test_timm_options_name_published_weights(option):
    (asset,) = needed(composed("dataset=imagenet", f"classifier={option}")["classifier"])
    model = composed("dataset=imagenet", f"classifier={option}")["classifier"]["model"]
    assert asset.file == f"timm/{model}.safetensors"
    assert asset.url == f"https://huggingface.co/timm/{model}/resolve/main/model.safetensors"


def test_timm_files_of_older_names(cache):
    """Swin's published files were written when its constants were still saved and its levels numbered otherwise."""
    import timm

    torch.manual_seed(0)
    net = timm.create_model("swin_tiny_patch4_window7_224.ms_in1k", pretrained=False).eval()
    old = {
        re.sub(r"layers\.(\d)\.downsample", lambda found: f"layers.{int(found[1]) - 1}.downsample", name).replace(
            "head.fc.", "head."
        ): value.clone()
        for name, value in net.state_dict().items()
    }
    old["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.int64)
    path = cache / zoo.timm_asset("swin_tiny_patch4_window7_224.ms_in1k").file
    path.parent.mkdir()
    save_file(old, path)
    classifier = zoo.timm("swin_tiny_patch4_window7_224.ms_in1k")
    x = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(classifier(x), net((x - classifier.mean) / classifier.std))
    save_file(old | {"head.extra": torch.zeros(1)}, path)
    (cache / "hashes.json").unlink()
    with pytest.raises(ValueError, match=r"1 that differ, e\.g\. head\.fc\.extra"):
        zoo.timm("swin_tiny_patch4_window7_224.ms_in1k")


def test_a_timm_file_that_is_not_on_the_hub():
    asset = zoo.timm_asset("legacy_senet154.in1k")
    assert asset.file == "timm/legacy_senet154.in1k.pth"
    assert asset.url.endswith("/legacy_senet154-e9eb9fe6.pth")


@pytest.mark.parametrize(
    "model",
    [
        "resnet50b",
        "resnet18.none_in1k",  # no weights of that name
        "convnextv2_atto.fcmae",  # no classes
        "vit_base_patch16_clip_224.laion2b",  # in another library's format
        "",
    ],
)
def test_a_model_that_timm_does_not_have(model):
    with pytest.raises(ValueError, match=rf"need a timm classifier with published weights, got {model}") as error:
        zoo.timm_asset(model)
    assert f"mean {model} " not in str(error.value)


@pytest.mark.parametrize(("option", "old"), [("resnet50", True), ("resnet50_official", False)])
def test_torchvisions_files_in_both_of_torchs_formats(cache, option, old):
    """V1 was published before torch 1.6 changed its format, V2 after.

    Only V1's option normalizes (deviation 45: images without normalization; deviation 46: which ImageNet weights).
    """
    from torchvision.models import ResNet50_Weights, resnet50

    from dp.runs.compose import make

    torch.manual_seed(0)
    net, config = resnet50().eval(), composed("dataset=imagenet", f"classifier={option}")["classifier"]
    (cache / config["net"]["file"]).write_bytes(torch_file(net.state_dict(), old))
    config["net"]["sha256"] = None
    classifier = make(config)
    x = torch.rand(1, 3, 224, 224)
    preset = ResNet50_Weights.IMAGENET1K_V1.transforms()
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (preset.mean, preset.std))
    with torch.no_grad():
        expected = net((x - mean) / std if option == "resnet50" else x)
        torch.testing.assert_close(classifier(x), expected)


def test_the_file_names_carry_torchvisions_own_hashes():
    from torchvision.models import ResNet50_Weights, Wide_ResNet50_2_Weights

    for option, weights in (
        ("resnet50", ResNet50_Weights.IMAGENET1K_V1),
        ("resnet50_official", ResNet50_Weights.IMAGENET1K_V2),
        ("wrn_50_2", Wide_ResNet50_2_Weights.IMAGENET1K_V1),
    ):
        node = composed("dataset=imagenet", f"classifier={option}")["classifier"]["net"]
        assert node["url"] == weights.url
        assert weights.url.endswith(node["file"])
        assert node["megabytes"] == pytest.approx(weights.meta["_file_size"] * 1.048576, rel=0.01)  # theirs are MiB
        if node.get("sha256"):
            assert node["sha256"][:8] in node["file"]
