"""IMPure against a run of its code, and the rule of both forms: a pixel is rebuilt from other pixels."""

from typing import Any

import pytest
import torch
from torch import nn

from dp.contracts import derivative
from dp.contracts import purifier as contract
from dp.diffusion.sampling import vp_sigmas
from dp.nets.impure_vit import ImpureViT
from dp.purifiers.impure import Impure, ImpureTransformer
from dp.rng import Streams
from dp.runs.build import build
from dp.training.noise import Drawn
from tests.helpers import parity
from tests.helpers.compose import composed

GIVEN = {"patch": 2, "chunks": 4, "level": 600, "levels": [200, 999]}


def images(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Echo(nn.Module):
    """Returns its input: the image with the own pixels noised, and the mask."""

    def __init__(self):
        super().__init__()
        self.labels: list[float] = []

    def forward(self, x, label):
        self.labels += label.tolist()
        return x


@parity.of("impure")
def test_parity(path):
    run = parity.Recorded(path)
    said: dict[str, Any] = run.settings
    depths = [
        1 + max(int(k.split(".")[1]) for k in run.tensors if k.startswith(f"{n}."))
        for n in ("blocks", "decoder_blocks")
    ]
    width, inner = run["cls_token"].shape[2], run["mask_token"].shape[2]
    hidden = len(run["blocks.0.mlp.fc1.bias"])
    net = ImpureViT(
        image=said["img"],
        patch=said["patch"],
        chunks=said["chunks"],
        width=width,
        depth=depths[0],
        heads=said["heads"],
        taps=said["taps"],
        decoder_width=inner,
        decoder_depth=depths[1],
        decoder_heads=said["decoder_heads"],
        mlp_ratio=hidden / width,
    ).double()
    others = {"x", "w", "output", "gradient"}
    net.load_state_dict({k: v for k, v in run.tensors.items() if not k.startswith("draw.") and k not in others})
    model = ImpureTransformer(net, said["mean"], said["std"], said["k_img"], said["k_feature"], clamp="none").double()
    script = parity.Script([run[f"draw.{i}"] for i in range(1, 2 + said["chunks"])], [run["draw.0"]])
    leaf = run["x"].requires_grad_()
    out = model(leaf, None, None, script)  # pyright: ignore[reportArgumentType]
    assert script.left == 0
    assert (out - run["output"]).abs().max() < 1e-5 * run["output"].abs().max()
    (gradient,) = torch.autograd.grad((run["w"] * out).sum(), leaf)
    assert (gradient - run["gradient"]).abs().max() < 1e-5 * run["gradient"].abs().max()


def test_the_published_network_has_its_published_size():
    """ViT-B/16 with five taps of 768 x 768, and a decoder of eight blocks of width 512."""
    with torch.device("meta"):
        net = ImpureViT()
    blocks = sum(p.numel() for p in net.blocks.parameters())
    assert blocks == 12 * (4 * 768 * 768 + 2 * 768 * 3072 + 4 * 768 + 768 + 3072 + 4 * 768 + 768 - 768)
    assert sum(p.numel() for p in net.proj_layers.parameters()) == 5 * (768 * 768 + 768)
    assert net.pos_embed.shape == (1, 1 + 28 * 28, 768)
    assert net.tokens == 196


def test_the_patches_are_dealt_to_equal_groups_anew_for_each_image():
    model = Impure(Echo(), **GIVEN)
    group = model._groups(images(3, 1, 8, 8), Streams([0, 1, 2], 0, "a"))
    assert group.shape == (3, 1, 8, 8)
    for k in range(4):
        assert ((group == k).sum(dim=(1, 2, 3)) == 16).all()
    patches = group.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)
    assert (patches == patches[..., :1]).all()
    assert not torch.equal(group[0], group[1])


def test_with_a_network_that_returns_its_input_the_result_is_the_noised_image():
    """Each pixel is once an own pixel, and then it is sqrt(abar) x + sqrt(1 - abar) n in [-1,1]."""
    x, n, net = images(2, 3, 8, 8), torch.randn(2, 3, 8, 8, dtype=torch.float64), Echo()
    model = Impure(net, **GIVEN, clamp="none")
    out = model(x, None, None, parity.Script([n], [images(2, 16)]))  # pyright: ignore[reportArgumentType]
    betas = torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64)
    abar = torch.cumprod(1 - betas, 0)[600]
    torch.testing.assert_close(2 * out - 1, abar.sqrt() * (2 * x - 1) + (1 - abar).sqrt() * n)
    assert model.nfe == 4
    assert net.labels == pytest.approx([torch.log((1 / abar - 1).sqrt()).item() / 4] * 4)


def test_an_own_pixel_acts_through_its_noise_alone():
    """At the highest level its derivative in itself is sqrt(abar) = .006 times that of the network."""
    x = images(1, 1, 8, 8).requires_grad_()
    out = Impure(Echo(), **{**GIVEN, "level": 999}, clamp="none")(x, None, None, Streams([0], 0, "a"))  # pyright: ignore[reportArgumentType]
    (gradient,) = torch.autograd.grad(out[0, 0, 3, 4], x)
    abar = (1 - torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64)).prod()
    assert gradient[0, 0, 3, 4].item() == pytest.approx(abar.sqrt().item())
    assert (gradient != 0).sum() == 1


def test_training_rebuilds_one_group_at_levels_of_the_range():
    x, model = images(400, 1, 8, 8), Impure(Echo(), **GIVEN)
    own, sigma, n = model.practice(x, Drawn(torch.Generator().manual_seed(0)))  # pyright: ignore[reportArgumentType]
    assert (own.sum(dim=(1, 2, 3)) == 16).all()
    table = vp_sigmas()
    index = torch.searchsorted(table, sigma.flatten())
    assert index.min() >= 200
    assert index.max() <= 999
    assert index.double().mean().item() == pytest.approx(600, abs=35)
    x_hat, counts = model.attempt(x, own, sigma, n)
    assert torch.equal(counts, own)
    assert torch.equal(x_hat[~own], x[~own])
    wanted = ((2 * x - 1 + sigma * n) / (1 + sigma**2).sqrt() + 1) / 2
    torch.testing.assert_close(x_hat[own], wanted[own])


def test_the_embedded_network_keeps_what_a_digit_is():
    evaluation = build(composed("purifier=impure", "protocol.images=128"))
    model, subset = evaluation.arms["defended"].scored, evaluation.subset
    with torch.no_grad():
        logits = model(subset.x, Streams(subset.ids, 0, "a"))
    assert (logits.argmax(1) == subset.y).float().mean() > 0.9


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"chunks": 1}, "chunks >= 2"),
        ({"levels": [300, 200]}, "low <= high"),
        ({"level": 1000}, "need a level from 0 to 999"),
        ({"patch": 3}, "multiples of patch=3"),
        ({"patch": 8}, "4 equal groups"),
    ],
)
def test_bad_values(changed, words):
    with pytest.raises(ValueError, match=words):
        Impure(Echo(), **{**GIVEN, **changed})(images(1, 1, 8, 8), None, None, Streams([0], 0, "a"))  # pyright: ignore[reportArgumentType]


def test_the_transformer_keeps_the_contract(tmp_path):
    """The whole path of the yaml, from a file, with a small network of random weights: contract, derivative, memory."""
    small = {"image": 32, "patch": 8, "width": 16, "depth": 2, "heads": 2, "taps": [0]}
    small |= {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
    torch.manual_seed(0)
    torch.save({"model": ImpureViT(**small).state_dict()}, tmp_path / "impure_vit.pth")
    given = [f"+purifier.net.net.{key}={value}".replace(" ", "") for key, value in small.items()]
    given += ["purifier=impure_vit", f"purifier.net.file={tmp_path}/impure_vit.pth"]
    config = composed("dataset=canvas", "protocol.images=2", *given)
    answers = []
    for memory in ("store", "recompute"):
        evaluation = build({**config, "memory": memory})
        model, subset = evaluation.arms["defended"].attacked, evaluation.subset
        assert [network.memory for network in model.networks] == [memory]
        answers.append(model.loss_gradient(subset.x, subset.y, Streams(subset.ids, 1, "attack"), 3))
    assert all(torch.equal(stored, again) for stored, again in zip(*answers, strict=True))
    model = evaluation.arms["defended"].scored
    assert contract.failures(model, subset) == []
    x = subset.x.double().clamp(0.01, 0.99)
    assert derivative.failures(model.double(), x, subset.y, subset.ids) == []


def test_the_transformer_needs_equal_chunks():
    with pytest.raises(ValueError, match="patches that divide into equal chunks"):
        ImpureViT(image=12, patch=4, chunks=4)
