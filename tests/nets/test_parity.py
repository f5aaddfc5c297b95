"""Our networks against numbers of the public code: outputs, input gradients and what else a fixture records.

`DP_PARITY=folder pytest tests/nets/test_parity.py` holds them to further fixtures of the same format. Files of defenses
in the same folder are for tests/purifiers/.
"""

import copy
import functools
import json

import pytest
import torch

from dp.diffusion import denoisers
from dp.diffusion.sampling import ancestral_step, vp_sigmas
from dp.nets.ncsnv2 import NCSNv2
from tests.helpers import parity
from tests.helpers.public import Fixture, Labeled, build, distance, with_gradient

FILES = parity.files(parity.NETWORK)
fixture = functools.cache(lambda path: Fixture(path))


def of(*archs):
    """The fixtures of these kinds."""
    found = [path for path in FILES if parity.about(path)["arch"] in archs]
    return pytest.mark.parametrize("path", found, ids=lambda p: p.stem)


def test_all_kinds_are_there():
    assert list(parity.FOLDER.glob("*.safetensors")), "DP_PARITY names a folder with fixtures"
    assert {parity.about(p)["arch"] for p in parity.OURS.glob("*.safetensors") if parity.kind(p) == parity.NETWORK} >= {
        *("edm_ddpmpp", "edm_ncsnpp", "edm_dhariwal", "guided_diffusion", "consistency_unet", "score_sde_ncsnpp"),
        *("ddpm_unet", "wrn_robustbench", "wrn_dropout", "svhn_wrn", "ncsnv2"),
    }


def test_no_file_is_of_an_unknown_kind():
    """All other tests leave such files out, so a file with a wrong name of a setting would be held to nothing."""
    unknown = {path.name: [*parity.about(path)] for path in parity.files(parity.UNKNOWN)}
    assert not unknown, f"need files of networks or of known defenses, got these, with their settings: {unknown}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_output_and_input_gradient(path):
    found = fixture(path)
    out, gradient = with_gradient(found)
    assert distance(out, found.tensors["out"]) <= 1e-5
    assert distance(gradient, found.tensors["grad_x"]) <= 3e-5


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_parameters(path):
    found = fixture(path)
    assert found.parameters() == int(found.about["param_count"])


@of("edm_ddpmpp", "edm_ncsnpp", "edm_dhariwal", "guided_diffusion", "consistency_unet", "score_sde_ncsnpp", "ddpm_unet")
def test_second_derivatives(path):
    """Of a guided step through every network, in float64: equal bits in both memory modes, and central differences."""
    found = fixture(path)
    net = copy.deepcopy(found.labeled()).double()
    if isinstance(net, Labeled):
        net.labels = {k: v.double() if v.is_floating_point() else v for k, v in net.labels.items()}
    z = found.tensors["x"].double()
    weight = torch.randn(z.shape, generator=torch.Generator().manual_seed(0), dtype=z.dtype)

    adapter = denoisers.IDDPM if found.arch.startswith("edm_") else denoisers.EpsNet

    def guided(z, memory):
        denoiser = adapter(net, memory=memory)
        (pull,) = torch.autograd.grad((denoiser(z, 0.7) - 0.5).square().sum(), z, create_graph=True)
        return (weight * (denoiser(z, 0.7) - pull)).sum()

    gradients = []
    for memory in ("store", "recompute"):
        leaf = z.clone().requires_grad_()
        gradients.append(torch.autograd.grad(guided(leaf, memory), leaf)[0])
    assert torch.equal(*gradients)
    v = gradients[0] / gradients[0].norm() + 0.01 * weight
    up, down = (guided((z + h * v).requires_grad_(), "store").item() for h in (1e-5, -1e-5))
    slope = (gradients[0] * v).sum().item()
    assert abs((up - down) / 2e-5 - slope) <= 1e-5 * abs(slope)


@of("edm_ddpmpp", "edm_ncsnpp", "edm_dhariwal")
def test_the_edm_network_alone_and_under_the_other_preconditioners(path):
    found = fixture(path)
    t, sigma = found.tensors, found.tensors["sigma"].flatten()
    if "aux.raw" not in t:
        pytest.skip("the fixture records the output alone")
    c_in, noise = found.scaling()
    assert distance(c_in, t["aux.c_in"].flatten()) <= 1e-6
    assert distance(noise, t["aux.c_noise"].flatten()) <= 1e-6
    net = found.labeled()
    with torch.no_grad():
        raw = net(t["x"] * t["aux.c_in"].view(-1, 1, 1, 1), t["aux.c_noise"].flatten())
        assert distance(raw, t["aux.raw"]) <= 1e-5
        for name in (key for key in t if key.startswith("aux.out_as_")):
            out = found.preconditioned(name.removeprefix("aux.out_as_"))(t["x"], sigma.view(-1, 1, 1, 1))
            assert distance(out, t[name]) <= 1e-5


def guided_step(out, x, k, sigmas):
    """One ancestral step without noise, and the learned variance (Nichol and Dhariwal 2021, Eq. 15), from `sigmas` (T,)
    ascending and indices k (B,): mean, log-variance and x0 of x_(k-1) given x_k.
    """
    a = 1 / (1 + sigmas**2)  # alpha-bar
    before = torch.cat([a.new_ones(1), a[:-1]])
    beta, below = 1 - a / before, torch.cat([sigmas.new_zeros(1), sigmas[:-1]])
    posterior = beta * (1 - before) / (1 - a)
    posterior[0] = posterior[1]
    eps, v = out.double().chunk(2, dim=1)
    c = [value[k].view(-1, 1, 1, 1) for value in (a, before, sigmas, below, beta, posterior)]
    z = x.double() / c[0].sqrt()
    x0 = z - c[2] * eps
    means = [  # our step is written for the state z = x0 + sigma n; the public one for sqrt(alpha-bar) z
        ancestral_step(z[i : i + 1], x0[i : i + 1], c[2][i].item(), c[3][i].item(), torch.zeros_like(z[i : i + 1]), 1.0)
        for i in range(len(z))
    ]
    f = (v + 1) / 2
    return torch.cat(means) * c[1].sqrt(), f * c[4].log() + (1 - f) * c[5].log(), x0


@of("guided_diffusion")
def test_guided_diffusion_step(path):
    found = fixture(path)
    if not json.loads(found.about["diffusion"])["learn_sigma"]:
        pytest.skip("the fixture's variance is fixed")
    t, x = found.tensors, found.tensors["x"]
    assert distance(1 / (1 + vp_sigmas()[t["t"]] ** 2), t["aux.alphas_cumprod"]) <= 1e-12
    with torch.no_grad():
        parts = guided_step(found.call(x), x, t["t"], vp_sigmas())
        for value, name in zip(parts, ("mean", "log_variance", "pred_xstart"), strict=True):
            assert distance(value, t[f"aux.p_{name}"]) <= 1e-5
        eps = denoisers.EpsNet(found.labeled())  # the adapter's x0 is that of the public code
        sigma = vp_sigmas()[t["t"]].view(-1, 1, 1, 1)
        x0 = eps(x * (1 + sigma**2).sqrt().float(), sigma)
        assert distance(x0, t["aux.p_pred_xstart"]) <= 1e-5


@of("guided_diffusion")
def test_guided_diffusion_step_respaced_to_50(path):
    """Respacing keeps 50 of the 1000 levels; the network gets the original index."""
    found = fixture(path)
    if not json.loads(found.about["diffusion"])["learn_sigma"]:
        pytest.skip("the fixture's variance is fixed")
    t, x = found.tensors, found.tensors["x"]
    kept = torch.tensor([round(i * 999 / 49) for i in range(50)])
    assert torch.equal(kept[t["aux.respaced50_index"]], t["aux.respaced50_t"])
    with torch.no_grad():
        found.tensors = t | {"t": t["aux.respaced50_t"]}
        parts = guided_step(found.call(x), x, t["aux.respaced50_index"], vp_sigmas()[kept])
        found.tensors = t
    for value, name in zip(parts, ("mean", "log_variance", "pred_xstart"), strict=True):
        assert distance(value, t[f"aux.respaced50_p_{name}"]) <= 1e-5


@of("score_sde_ncsnpp")
def test_score_sde_in_continuous_time(path):
    found = fixture(path)
    t, x = found.tensors, found.tensors["x"]
    if found.init["model"]["embedding_type"] != "positional":
        sigma = found.noise().view(-1, 1, 1, 1)
        if "aux.marginal_std" in t:
            assert distance(sigma.flatten(), t["aux.marginal_std"].flatten()) <= 1e-5
        if "aux.score" not in t:
            pytest.skip("the fixture records the output alone")
        wide = copy.deepcopy(found.net).double()  # x0 - x is a small difference of large numbers
        with torch.no_grad():
            x0 = denoisers.ScoreVE(wide)(x.double(), sigma.double())
            assert distance((x0 - x) / sigma.double() ** 2, t["aux.score"]) <= 1e-4
        return
    model = found.init["model"]
    adapter = denoisers.VP(found.net, beta_d=model["beta_max"] - model["beta_min"], beta_min=model["beta_min"])
    sigma = torch.tensor([adapter.sigma(s.item()) for s in t["aux.t_continuous"]], dtype=torch.float64)
    mean, std = (1 + sigma**2).rsqrt(), sigma * (1 + sigma**2).rsqrt()
    assert distance(mean, t["aux.marginal_mean_coeff"].flatten()) <= 1e-5
    assert distance(std, t["aux.marginal_std"].flatten()) <= 1e-5
    with torch.no_grad():
        score = -found.net(x, 999 * t["aux.t_continuous"]) / std.float().view(-1, 1, 1, 1)
        assert distance(score, t["aux.score"]) <= 1e-5
        wide = sigma.view(-1, 1, 1, 1)
        x0 = adapter(x / mean.float().view(-1, 1, 1, 1), wide)
        score = (x0 * mean.float().view(-1, 1, 1, 1) - x) / std.float().view(-1, 1, 1, 1) ** 2
    assert distance(score, t["aux.score"]) <= 1e-4  # x0 subtracts what the score then adds


@of("score_sde_ncsnpp")
def test_score_sde_average_is_named_in_the_order_of_the_file(path):
    found = fixture(path)
    trainable = [k for k, p in type(found.net)(**settings(found)).named_parameters() if p.requires_grad]
    assert json.loads(found.about["ema_order"]) == trainable
    assert set(json.loads(found.about["not_in_ema"])) == set(found.state) - set(trainable)


def settings(found):
    data, model = found.init["data"], found.init["model"]
    kept = {k: v for k, v in model.items() if k in type(found.net).__init__.__annotations__}
    return {k: data[k] for k in ("image_size", "num_channels", "centered")} | kept


@of("consistency_unet")
def test_consistency_network_alone_and_with_plain_scalings(path):
    found = fixture(path)
    t, sigma = found.tensors, found.tensors["sigma"].view(-1, 1, 1, 1)
    with torch.no_grad():
        raw = found.labeled()(t["x"] * (sigma**2 + 0.25).rsqrt(), 250 * sigma.flatten().log())
        assert distance(250 * sigma.flatten().log(), t["aux.t"].flatten()) <= 1e-5
        assert distance(raw, t["aux.raw"]) <= 1e-5
        plain = denoisers.Consistency(found.labeled(), boundary=False)(t["x"], sigma)
        assert distance(plain, t["aux.out_edm_scalings"]) <= 1e-5


@of("ncsnv2")
def test_the_noise_levels_of_ncsnv2_are_those_of_its_file(path):
    found = fixture(path)
    net = build(found.arch, found.init)
    torch.testing.assert_close(net.get_buffer("sigmas"), found.state["sigmas"], rtol=1e-6, atol=0)
    with torch.device("meta"):
        assert sum(p.numel() for p in NCSNv2().parameters()) == 29_694_083  # the original's for CIFAR-10


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_one_noise_label_serves_a_batch(path):
    """A single label (1,) gives what the same label repeated gives: how every adapter calls a network for a float."""
    found = fixture(path)
    x, net = found.tensors["x"][:1].repeat(2, 1, 1, 1), found.net
    if found.arch in ("svhn_wrn", "wrn_robustbench", "wrn_dropout", "wrn_dm", "ncsnv2"):
        pytest.skip("a classifier and NCSNv2 have no noise label")
    label = torch.tensor([1.5 if found.arch.startswith("edm") else 37.0])
    with torch.no_grad():
        assert distance(net(x, label), net(x, label.repeat(2))) <= 1e-5
