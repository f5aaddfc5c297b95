"""The networks that the yaml files name, at full size and without memory: parameters and names of the public files."""

import hashlib

import pytest
import torch

from dp.runs.compose import make
from tests.helpers.compose import CONF, composed

# trainable numbers, tensors in the state dict, digest of their names and shapes: all taken from the public code
PUBLIC = {
    ("denoiser", "edm_cifar10"): (55_733_891, 425, "8546ee30251b9899"),
    ("denoiser", "edm_cifar10_cond"): (55_735_299, 427, "140c43aec6cad6fb"),
    ("denoiser", "edm_cifar10_ve"): (56_397_827, 432, "246d4ef63a734686"),
    ("denoiser", "edm_imagenet_64"): (295_899_267, 553, "a678ef235436739c"),
    ("denoiser", "guided_diffusion_256"): (552_814_086, 566, "77e18ded5689d791"),
    ("denoiser", "score_sde_cifar10"): (106_632_579, 957, "d49f0f0d17095b4c"),
    ("denoiser", "score_sde_cifar10_discrete"): (106_632_579, 957, "d49f0f0d17095b4c"),
    ("denoiser", "consistency_imagenet_64"): (295_899_267, 541, "552f1014715461c1"),
    ("denoiser", "consistency_cat_256"): (526_304_771, 566, "2cff620a7caf3364"),
    ("denoiser", "svhn_ddpm"): (35_746_307, 328, "81ced0400d26098e"),
    ("denoiser", "ddpm_celebahq"): (113_673_219, 450, "f262069fda0bc523"),
    ("classifier", "wrn_28_10"): (36_479_194, 155, "15969f4fc18ee535"),
    ("classifier", "wrn_70_16"): (266_796_506, 407, "350cb1b2529e286c"),
    ("classifier", "wrn_70_16_dropout"): (266_796_506, 407, "2f4e1ab659158160"),
    ("classifier", "attribute_celebahq"): (23_038_017, 33, "52a0a68fa85a63dc"),
    ("classifier", "svhn_wrn_28_10"): (36_479_194, 155, "15969f4fc18ee535"),
}


def node(group, option):
    return composed("dataset=cifar10", f"{group}={option}")[group]["net"]["net"]


def built(group, option, **changes):
    network = make(node(group, option) | changes)
    with torch.device("meta"):
        return network()


@pytest.mark.parametrize(("group", "option"), PUBLIC)
def test_counts(group, option):
    net = built(group, option)
    assert isinstance(net, torch.nn.Module)
    lines = sorted(f"{name} {list(value.shape)}" for name, value in net.state_dict().items())
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
    assert (sum(p.numel() for p in net.parameters()), len(lines), digest) == PUBLIC[group, option]
    assert all(p.is_meta for p in net.parameters())


@pytest.mark.parametrize(
    ("option", "changes", "parameters"),
    [
        ("edm_cifar10", {"augment_dim": 0}, 55_732_739),  # the baselines under VPPrecond and VEPrecond
        ("edm_cifar10_ve", {"augment_dim": 0}, 56_395_523),
        ("edm_cifar10_ve", {"label_dim": 10}, 56_400_643),
        ("edm_cifar10", {"img_resolution": 64, "channel_mult": [1, 2, 2, 2]}, 61_805_571),  # FFHQ and AFHQ
        ("edm_cifar10_ve", {"img_resolution": 64, "channel_mult": [1, 2, 2, 2]}, 62_761_091),
        ("guided_diffusion_256", {"num_classes": 1000}, 553_838_086),
        ("score_sde_cifar10", {"num_res_blocks": 4}, 61_804_419),  # DDPM++ continuous
        ("score_sde_cifar10", {"fir": True, "progressive_input": "residual"}, 107_521_411),  # NCSN++ deep continuous
        (
            "score_sde_cifar10",
            {"num_res_blocks": 4, "fir": True, "progressive_input": "residual", "embedding_type": "fourier"},
            62_758_915,
        ),
    ],
)
def test_counts_of_the_public_relatives(option, changes, parameters):
    assert sum(p.numel() for p in built("denoiser", option, **changes).parameters()) == parameters


def test_every_network_that_a_yaml_names_is_counted():
    """A new option with a network of ours belongs into the list above."""
    named = {
        (group, path.stem)
        for group in ("denoiser", "classifier")
        for path in (CONF / group).glob("*.yaml")
        if "dp.nets" in str(composed("dataset=cifar10", f"{group}={path.stem}")[group])
    }
    by_dataset = {
        (group, path.stem) for group in ("denoiser", "classifier") for path in (CONF / "dataset").glob("*.yaml")
    }
    of_zoo = {("classifier", "cifar10_menet")}  # its network is that of classifier=cifar10
    small = {("classifier", "rdc"), *(pair for pair in named if pair[1].startswith(("digits_", "canvas_")))}  # ours
    of_denoisers = {("classifier", "rdc_cifar10")}  # its network is that of edm_cifar10_cond
    assert (
        composed("dataset=cifar10", "classifier=rdc_cifar10")["classifier"]["denoiser"]["net"]["file"]
        == (composed("dataset=cifar10", "denoiser=edm_cifar10_cond")["denoiser"]["net"]["file"])
    )
    assert named - by_dataset - small - of_denoisers - of_zoo <= set(PUBLIC)


@pytest.mark.parametrize("option", ["edm_cifar10", "edm_cifar10_ve", "score_sde_cifar10", "svhn_ddpm"])
def test_shapes_at_full_size(option):
    net = built("denoiser", option)
    out = net(torch.empty(2, 3, 32, 32, device="meta"), torch.ones(1, device="meta"))
    assert out.shape == (2, 3, 32, 32)


@pytest.mark.parametrize(("option", "channels"), [("guided_diffusion_256", 6), ("consistency_cat_256", 3)])
def test_shapes_at_256(option, channels):
    out = built("denoiser", option)(torch.empty(1, 3, 256, 256, device="meta"), torch.ones(1, device="meta"))
    assert out.shape == (1, channels, 256, 256)
