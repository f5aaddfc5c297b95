"""Adapters around a tiny random net against the formulas of the papers, and what they promise about memory and type."""

import copy
import math
import weakref

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import nn

from dp.contracts import networks
from dp.diffusion.checkpointing import ActivationCheckpointing
from dp.diffusion.denoisers import EDM, IDDPM, VE, VP, Consistency, EpsNet, Gaussian, ScoreVE
from dp.precision import cast
from dp.runs.build import defense
from tests.helpers.compose import composed, images_of, loadable, on_its_dataset
from tests.helpers.contract import assert_held, in_one_line

ABAR = np.cumprod(1 - np.linspace(1e-4, 2e-2, 1000))
LEVEL = np.sqrt((1 - ABAR) / ABAR)
SIGMAS = [0.01, 0.724, 2.04, 40.0]


@pytest.mark.parametrize("name", loadable("denoiser"))
def test_contract(name, record_property):
    """A denoised image at every level, the same every time and for every batch; nearly the image where noise is low."""
    config = composed(*on_its_dataset("denoiser", name))
    with in_one_line(f"denoiser {name}"):
        denoiser = defense(config, "cpu").denoiser
    assert denoiser is not None
    assert_held(networks.of_denoiser(denoiser, 2 * images_of(name)[0] - 1), "denoiser", config, record_property)


class Net(nn.Module):
    """Non-linear in image and label; remembers what it was fed."""

    def __init__(self, channels=3, out=None):
        super().__init__()
        self.conv = nn.Conv2d(channels, out or channels, 3, padding=1)
        self.label = nn.Linear(1, out or channels)
        self.dropout = nn.Dropout(0.5)
        self.calls = []

    def forward(self, x, label):
        h = self.conv(x)
        self.calls.append((x.detach(), label.detach(), h.dtype))
        return self.dropout(torch.tanh(h + self.label(torch.sin(0.4 * label[:, None].to(x.dtype)))[:, :, None, None]))


def net(**kwargs):
    torch.manual_seed(0)
    return Net(**kwargs).eval()


def narrow(denoiser):
    cast(denoiser.net, torch.bfloat16)
    return denoiser


def images(lanes=2, dtype=torch.float32, requires_grad=False):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(lanes, 3, 5, 5, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(requires_grad)


@pytest.mark.parametrize("sigma_data", [0.5, 0.75])
@pytest.mark.parametrize("sigma", SIGMAS)
def test_edm_is_karras_eq_7(sigma, sigma_data):
    inner = net().double()
    z = images(dtype=torch.float64)
    found = EDM(inner, sigma_data=sigma_data)(z, sigma)
    c_skip = sigma_data**2 / (sigma**2 + sigma_data**2)
    c_out = sigma * sigma_data / math.sqrt(sigma**2 + sigma_data**2)
    c_in = 1 / math.sqrt(sigma**2 + sigma_data**2)
    c_noise = math.log(sigma) / 4
    expected = c_skip * z + c_out * inner(c_in * z, torch.full((2,), c_noise, dtype=torch.float64))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_edm_takes_the_papers_sigma_data_by_default():
    z = images()
    assert torch.equal(EDM(net())(z, 0.3), EDM(net(), sigma_data=0.5)(z, 0.3))


@pytest.mark.parametrize("adapter", [EDM, EpsNet])
def test_one_sigma_per_image(adapter):
    """A float, its repetition as (B,1,1,1), and each image alone at its own level."""
    z, denoiser = images(lanes=4), adapter(net())
    for sigma in SIGMAS:
        torch.testing.assert_close(denoiser(z, torch.full((4, 1, 1, 1), sigma)), denoiser(z, sigma))
    found = denoiser(z, torch.tensor(SIGMAS).view(4, 1, 1, 1))
    for lane, sigma in enumerate(SIGMAS):
        torch.testing.assert_close(found[[lane]], denoiser(z[[lane]], sigma))


@pytest.mark.parametrize("k", [0, 1, 200, 555, 999])
def test_eps_net_in_variance_preserving_form(k):
    inner = net().double()
    x_k = images(dtype=torch.float64)
    eps = inner(x_k, torch.full((2,), k))
    expected = (x_k - math.sqrt(1 - ABAR[k]) * eps) / math.sqrt(ABAR[k])
    found = EpsNet(inner)(x_k / math.sqrt(ABAR[k]), float(LEVEL[k]))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


ON_GRID = [(LEVEL[0] / 9, 0), (LEVEL[0], 0), (LEVEL[200], 200), (LEVEL[999], 999), (LEVEL[999] * 9, 999)]
BETWEEN = [(LEVEL[k] ** (1 - w) * LEVEL[k + 1] ** w, k + round(w)) for k in (0, 40, 700) for w in (0.4, 0.6)]


@pytest.mark.parametrize(("sigma", "index"), [*ON_GRID, *BETWEEN])
def test_eps_net_is_called_at_the_nearest_index(sigma, index):
    inner = net()
    EpsNet(inner)(images(), float(sigma))
    label = inner.calls[-1][1]
    assert label.dtype == torch.int64
    assert set(label.tolist()) == {index}


def test_eps_net_drops_a_learned_variance():
    inner = net(out=6)
    z = images()
    x_k = z * math.sqrt(ABAR[300])
    eps = inner(x_k, torch.tensor([300]))[:, :3]
    found = EpsNet(inner)(z, float(LEVEL[300]))
    assert found.shape == z.shape
    torch.testing.assert_close(
        found, (x_k - math.sqrt(1 - ABAR[300]) * eps) / math.sqrt(ABAR[300]), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ("t", "index"),
    [(0, 0), (0.0004, 0), (0.0006, 1), (0.2, 200), (0.2004, 200), (0.2006, 201), (0.999, 999), (1.0, 999)],
)
def test_clock_of_an_eps_net_is_the_entry_its_net_was_trained_at(t, index):
    denoiser = EpsNet(net())
    assert denoiser.sigma(t) == pytest.approx(LEVEL[index], rel=1e-10)
    denoiser(images(), denoiser.sigma(t))
    assert set(denoiser.net.calls[-1][1].tolist()) == {index}


@pytest.mark.parametrize("adapter", [EDM, EpsNet])
@pytest.mark.parametrize("t", [-0.001, 1.001, float("nan")])
def test_time_outside(adapter, t):
    with pytest.raises(ValueError, match="need a time t"):
        adapter(net()).sigma(t)


def test_continuous_clock_at_a_published_value():
    assert EDM(net()).sigma(0.2) == pytest.approx(0.724, abs=5e-4)
    assert EDM(net()).sigma(0.2004) == pytest.approx(LEVEL[200] ** 0.6 * LEVEL[201] ** 0.4, rel=1e-9)


@pytest.mark.parametrize("sigma", [0.05, 0.5, 4.0])
@pytest.mark.parametrize("z", [-1.3, 0.2, 2.5])
def test_gaussian_is_bayes_rule(z, sigma):
    """The posterior mean by numerical integration of prior times likelihood."""
    prior, likelihood = stats.norm(-0.3, 0.4), lambda x0: stats.norm.pdf(z, loc=x0, scale=sigma)
    mode = (-0.3 * sigma**2 + z * 0.4**2) / (sigma**2 + 0.4**2)
    span = 12 / math.sqrt(1 / 0.4**2 + 1 / sigma**2)

    def moment(power):
        f = lambda x0: x0**power * prior.pdf(x0) * likelihood(x0)  # noqa: E731
        return integrate.quad(f, mode - span, mode + span, epsabs=0, epsrel=1e-11)[0]

    found = Gaussian(-0.3, 0.4)(torch.full((1, 1, 1, 1), z, dtype=torch.float64), sigma)
    assert found.item() == pytest.approx(moment(1) / moment(0), rel=1e-7)


@pytest.mark.parametrize("build", [EDM, EpsNet, Gaussian])
def test_the_net_is_frozen_and_in_eval_mode(build):
    """Dropout would show as two different answers."""
    denoiser = build() if build is Gaussian else build(net().train())
    z = images()
    assert torch.equal(denoiser(z, 0.5), denoiser(z, 0.5))
    assert not any(p.requires_grad for p in denoiser.parameters())


@pytest.mark.parametrize("adapter", [EDM, EpsNet])
def test_gradient_against_finite_differences(adapter):
    z = images(lanes=1, dtype=torch.float64, requires_grad=True)
    denoiser = adapter(net().double(), memory="recompute")
    assert torch.autograd.gradcheck(lambda z: denoiser(z, 0.7), (z,), eps=1e-6, atol=1e-7)


@pytest.mark.parametrize("adapter", [EDM, EpsNet])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recompute_equals_store_bit_for_bit(adapter, dtype):
    results = []
    for memory in ("store", "recompute"):
        inner, z = net(), images(requires_grad=True)
        denoiser = adapter(inner, memory=memory)
        cast(denoiser.net, dtype)
        out = denoiser(denoiser(denoiser(denoiser(z, 9.0), 2.0), 0.7), 0.5)
        inner_calls = len(inner.calls)
        (g,) = torch.autograd.grad(out.square().sum(), z)
        results.append((out.detach(), g))
        assert inner_calls == 4
        assert len(inner.calls) == (4 if memory == "store" else 5)  # the three newest calls are kept
        assert denoiser.nfe == 4
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert results[0][1].abs().sum() > 0


class Deep(nn.Module):
    def forward(self, x, _label):
        for _ in range(50):
            x = torch.tanh(x)
        return x


def kept_by(denoiser, calls, keep=2):
    """Numbers that autograd keeps for the backward pass of a chain of calls."""
    sizes, denoiser.recompute.keep = [], keep

    def pack(saved):
        saved = saved.detach()  # itself, it would hold the graph that holds it
        sizes.append((weakref.ref(saved), saved.numel()))
        return saved

    z = images(requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        for _ in range(calls):
            z = denoiser(z, 0.7)
    assert z.requires_grad  # and with it the graph
    return sum(size for alive, size in sizes if alive() is not None)


@pytest.mark.parametrize("keep", [1, 3])
def test_recompute_keeps_the_activations_of_the_newest_calls(keep):
    assert kept_by(EDM(Deep()), 8) >= 8 * 50 * images().numel()
    few, many = (kept_by(EDM(Deep(), memory="recompute"), calls, keep) for calls in (keep, 8))
    assert 50 * images().numel() <= few / keep < 55 * images().numel()
    assert many - few <= (8 - keep) * 4 * images().numel()


def test_recompute_twice_from_one_graph_and_after_another_chain():
    """Kept activations are used once, and belong to the newest calls of whichever chain."""
    inner, z = net(), images(requires_grad=True)
    denoiser = EDM(inner, memory="recompute")
    denoiser.recompute.keep = 2
    loss = denoiser(denoiser(denoiser(z, 9.0), 2.0), 0.7).square().sum()
    (first,) = torch.autograd.grad(loss, z, retain_graph=True)
    denoiser(z, 1.0)
    (again,) = torch.autograd.grad(loss, z)
    assert torch.equal(first, again)
    assert len(inner.calls) == 3 + 1 + 1 + 3
    with pytest.raises(ValueError, match="keep"):
        ActivationCheckpointing(keep=0)


def test_a_recomputing_denoiser_is_copied():
    denoiser, z = EDM(net(), memory="recompute"), images(requires_grad=True)
    out = denoiser(z, 0.7)
    twin = copy.deepcopy(denoiser)
    assert torch.equal(torch.autograd.grad(twin(z, 0.7).sum(), z)[0], torch.autograd.grad(out.sum(), z)[0])


@pytest.mark.parametrize("memory", ["store", "recompute"])
def test_without_a_gradient_the_net_runs_once(memory):
    inner = net()
    denoiser = EDM(inner, memory=memory)
    with torch.no_grad():
        denoiser(images(requires_grad=True), 0.7)
    assert not denoiser(images(), 0.7).requires_grad
    assert (len(inner.calls), denoiser.nfe) == (2, 2)


def test_nfe_counts_a_call_once_whatever_its_batch():
    denoiser = Gaussian()
    assert denoiser.nfe == 0
    for lanes in (1, 7):
        denoiser(images(lanes), 0.7)
    assert denoiser.nfe == 2


@pytest.mark.parametrize("adapter", [EDM, EpsNet])
def test_bfloat16_is_for_the_net_alone(adapter):
    """The state enters and leaves as float32; only the net's own products are rounded to 8 bits."""
    inner, z = net(), images(requires_grad=True)
    exact, low = adapter(net())(z, 0.7), narrow(adapter(inner))(z, 0.7)
    assert inner.calls[-1][2] == torch.bfloat16
    assert low.dtype == torch.float32
    assert torch.autograd.grad(low.sum(), z)[0].dtype == torch.float32
    gap = (low - exact).abs().max().item()
    assert 0 < gap < 0.7 * 3 * 2**-8 * 2
    far = narrow(adapter(net()))(1000 * z, 1e-6) - 1000 * z  # the skip path is not rounded
    assert far.abs().max() < 0.02


@pytest.mark.parametrize("adapter", [EDM, EpsNet])
def test_a_double_model_stays_double(adapter):
    z = images(dtype=torch.float64)
    found = narrow(adapter(net())).double()(z, 0.7)
    assert found.dtype == torch.float64
    assert torch.equal(found, adapter(narrow(adapter(net())).net.float().double())(z, 0.7))  # rounded weights alone


class Recording(nn.Module):
    """Keeps what it is called with; its output is a fixed tensor."""

    def __init__(self, out):
        super().__init__()
        self.out = out

    def forward(self, x, label):
        self.seen = x, label
        return self.out


@pytest.mark.parametrize("t", [0.001, 0.1, 0.2, 0.5, 1.0])
def test_the_vp_adapter_gives_its_network_999_t_at_the_sigma_of_t(t):
    """Song et al. 2021, Eq. 32: abar(t) by numerical integration of beta, the state scaled back by sqrt(abar)."""
    beta = np.linspace(0.1, 0.1 + 19.9 * t, 10_001)  # linear in time, so the trapezoid is exact
    abar = math.exp(-np.trapezoid(beta, dx=t / 10_000))
    torch.manual_seed(0)
    z, eps = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    adapter = VP(Recording(eps))
    sigma = adapter.sigma(t)
    assert sigma == pytest.approx(math.sqrt((1 - abar) / abar), rel=1e-9)
    x0 = adapter(z, sigma)
    x, label = adapter.net.seen
    assert label.tolist() == pytest.approx([999 * t], rel=1e-9)
    torch.testing.assert_close(x, z * math.sqrt(abar))
    torch.testing.assert_close(x0, (x - math.sqrt(1 - abar) * eps) / math.sqrt(abar))  # x0 of a noise predictor


def test_the_vp_clock_and_the_discrete_one_nearly_agree():
    """Index 199 has sigma .71928, continuous time .2 has .72036."""
    assert VP(nn.Identity()).sigma(0.2) == pytest.approx(0.72036, abs=1e-5)
    with pytest.raises(ValueError, match="need a time t"):
        VP(nn.Identity()).sigma(1.5)


def test_the_ve_adapter():
    torch.manual_seed(0)
    z, out = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    adapter = VE(Recording(out))
    torch.testing.assert_close(adapter(z, 3.0), z + 3 * out)
    torch.testing.assert_close(adapter.net.seen[1], torch.tensor([math.log(1.5)]))


def test_the_ve_score_adapter_is_tweedies_formula():
    """For x0 ~ N(0, s^2) the score of z is -z / (s^2 + sigma^2), and the posterior mean s^2 / (s^2 + sigma^2) z."""
    z = torch.linspace(-2, 2, 8).view(2, 1, 2, 2)
    adapter = ScoreVE(Recording(-z / (0.25 + 4)))
    torch.testing.assert_close(adapter(z, 2.0), z * 0.25 / 4.25)
    assert adapter.net.seen[1].tolist() == [2.0]


def test_a_consistency_model_keeps_the_image_at_its_smallest_noise():
    z = torch.randn(2, 3, 4, 4)
    adapter = Consistency(Recording(torch.randn(2, 3, 4, 4)))
    torch.testing.assert_close(adapter(z, 0.002), z)
    assert adapter.net.seen[1].tolist() == pytest.approx([250 * math.log(0.002)])
    other = Consistency(Recording(torch.ones(2, 3, 4, 4)), clock=0.25)
    other(z, 0.7)
    assert other.net.seen[1].tolist() == pytest.approx([0.25 * math.log(0.7)])
    plain = Consistency(Recording(torch.ones(2, 3, 4, 4)), boundary=False)
    torch.testing.assert_close(plain(z, 0.7), EDM(Recording(torch.ones(2, 3, 4, 4)))(z, 0.7))


def test_the_iddpm_adapter_gives_its_network_the_index_on_the_cosine_schedule():
    """Nichol and Dhariwal 2021, Eq. 17: abar(t) = f(t) / f(0), f(t) = cos^2((t + .008) / 1.008 pi / 2), 1000 steps."""

    def f(t):
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    torch.manual_seed(0)
    z, eps = torch.randn(2, 3, 4, 4), torch.randn(2, 6, 4, 4)
    adapter = IDDPM(Recording(eps))
    for k in (1, 10, 500, 990):
        sigma = math.sqrt(f(0) / f(k / 1000) - 1)
        x0 = adapter(z, 1.0001 * sigma)  # the nearest level
        assert adapter.net.seen[1].tolist() == [k - 1]
        torch.testing.assert_close(adapter.net.seen[0], z / math.sqrt(1 + (1.0001 * sigma) ** 2))
        torch.testing.assert_close(x0, z - 1.0001 * sigma * eps[:, :3])
