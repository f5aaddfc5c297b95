"""Contrastive guidance against the original code in its batch form, and its limits in the form per image."""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from dp.classifiers import Classifier
from dp.diffusion.denoisers import Gaussian
from dp.diffusion.sampling import vp_sigma
from dp.diffusion.vp_sde import VPSDE
from dp.purifiers import contrastive, diffpure_sde
from dp.purifiers.contrast import Contrast, contrastive_loss, draw_weights, head, new_heads, pull
from dp.rng import Streams
from dp.runs.compose import make
from tests.helpers.compose import composed
from tests.helpers.parity import Recorded, TinyClassifier, of

SDE = {"t": 0.2, "dt": 0.02, "end": 1e-5, "beta_min": 0.1, "beta_max": 20.0}
TIMES = [0.2, 0.18, 0.16, 0.14, 0.12, 0.1, 0.08, 0.06, 0.04, 0.02, 1e-5]
GUIDE = {"gamma": 50.0, "first": 1, "temperature": 1.0, "tau_plus": 0.1, "beta": 1.0, "lr": 0.01}
PLAIN = Contrast(temperature=1.0, tau_plus=0.1, beta=1.0, lr=0.01)


def image(n: int = 2) -> torch.Tensor:
    return torch.rand(n, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.6 + 0.2


def classifier() -> Classifier:
    generator = torch.Generator().manual_seed(3)
    shapes = {"a.weight": (6, 1, 3, 3), "a.bias": (6,), "b.weight": (8, 6, 3, 3), "b.bias": (8,), "c.weight": (10, 8)}
    tensors = {f"clf.{key}": torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    tensors["clf.c.bias"] = torch.zeros(10)
    return Classifier(TinyClassifier(tensors).double())


@of("contrastive")
def test_the_batch_form_is_the_original_code(path):
    """A batch is one group. torchsde calls the network once more at the start, for a shape: this call is guided and
    trains too, and the next one compares the state with itself. The last state of a purification is the previous one of
    the next. Its times, and the factor of its score, are float32.
    """
    file = Recorded(path)
    said, draws = file.settings, list(file["draws"])
    denoiser, own, sde = file.denoiser(), file.classifier(), VPSDE(0.1, 20.0)
    loss = Contrast(said["temperature"], said["tau_plus"], said["beta"], said["lr"], said["estimator"])
    t, states, deltas, outs, previous = said["t"] / 1000, [], [], [], None
    rising = [torch.tensor(1 - t)]
    while len(rising) < said["t"]:
        rising.append(rising[-1] + 1e-3)
    times = [(1 - s).item() for s in (*rising, torch.tensor(1 - 1e-5))]
    for run, x in enumerate(file["x"]):
        names = [f"h{run}.layer{i}.d{j}.weight" for i in range(3) for j in (1, 2, 3)]
        heads, trained = new_heads([file[name][None] for name in names]), 0
        state = sde.start(x, t, draws.pop(0))
        for call, (time, time_next) in enumerate(pairwise([times[0], *times])):
            states.append(state)
            guide = torch.zeros_like(state)
            if call >= said["first_guided_call"] and previous is not None:
                trained += 1
                guide, _, heads = pull(state, own(previous), own, heads, loss, trained)
                guide = said["gamma"] * guide
                deltas.append(guide)
            previous = state
            if call == 0:
                continue
            abar, rough = math.exp(sde.log_abar(time)), torch.tensor(sde.log_abar(time)).exp()
            x0 = denoiser(sde.to_z(state, time), sde.sigma(time))
            eps = (state - math.sqrt(abar) * x0) / math.sqrt(1 - abar) + guide
            score, size = -eps / torch.sqrt(1 - rough).item(), time - time_next
            drift = sde.beta(time) * (state / 2 + score)
            state = state + size * drift + math.sqrt(sde.beta(time) * size) * draws.pop(0)
        outs.append((state + 1) / 2)
    assert not draws
    for name, found in (("states", states), ("deltas", deltas), ("x_hat", outs)):
        wanted = file[name]
        assert (torch.stack(found) - wanted).abs().max() < 1e-5 * wanted.abs().max(), name


@pytest.mark.parametrize("first", [1, 100])
def test_without_the_guide_it_is_diffpure_bit_for_bit_and_calls_no_classifier(first):
    outs, x = [], image()
    for purify, more in ((contrastive.purify, {**GUIDE, "gamma": 0.0, "first": first}), (diffpure_sde.purify, {})):
        rng = Streams([4, 5], 0, "a")
        outs.append(purify(x, Gaussian(0.1, 0.3), None, rng, **SDE, **more, clamp="none"))
    assert torch.equal(*outs)


def test_the_guide_pulls_from_its_first_step_on():
    """The states up to step `first` are those of the unguided chain."""
    seen = {}
    for first in (1, 4, 0):  # 0: no guide
        z, more = seen.setdefault(first, []), {"first": first} if first else {"gamma": 0.0}
        given = {**SDE, **GUIDE, **more, "on_step": lambda i, sigma, z, x0, seen=z: seen.append(z)}
        contrastive.purify(image(), Gaussian(0.1, 0.3), classifier(), Streams([4, 5], 0, "a"), **given)
    for first in (1, 4):
        same = [torch.equal(a, b) for a, b in zip(seen[first], seen[0], strict=True)]
        assert same == [i <= first for i in range(10)]


def reference(x, b, given):
    """The purification of image b alone, by torch's own layers, loss and Adam, in the papers' state."""
    own, rng = classifier(), Streams([b], 0, "a")
    abar = [math.exp(-9.95 * t**2 - 0.1 * t) for t in TIMES]
    start = 1 / (1 + vp_sigma(SDE["t"] - 0.001) ** 2)
    v = math.sqrt(start) * (2 * x[b : b + 1] - 1) + math.sqrt(1 - start) * rng.randn_like(x[:1])
    states, first, tau, temperature = [], given["first"], given["tau_plus"], given["temperature"]
    for i, (t, t_next) in enumerate(pairwise(TIMES)):
        states.append(v)
        if i == first - 1:
            layers = [w[0].clone().requires_grad_() for w in draw_weights(own(v), rng.draw(0))]
            adam = torch.optim.Adam(layers, lr=given["lr"])
        n = rng.randn_like(v)
        gain = math.sqrt(abar[i]) * 0.09 / (abar[i] * 0.09 + 1 - abar[i])  # the posterior mean of N(.1, .3^2)
        x0 = 0.1 + gain * (v - math.sqrt(abar[i]) * 0.1)
        eps = (v - math.sqrt(abar[i]) * x0) / math.sqrt(1 - abar[i])
        if i >= first:
            leaf, features = v.detach().requires_grad_(), []
            for state in (states[i - 1], leaf):
                q = own(state)
                for d1, d2, d3 in zip(layers[::3], layers[1::3], layers[2::3], strict=True):
                    q = q + F.linear(F.silu(F.linear(q, d1)) * F.linear(q, d2), d3)
                features.append(F.normalize(q, dim=1))
            positive = ((features[0] * features[1]).sum() / temperature).exp()
            terms = []
            for negative in (math.exp(1 / temperature), positive):  # itself; its partner
                weighted = negative ** (given["beta"] + 1) / negative ** given["beta"]
                least = torch.full_like(positive, 2 * math.exp(-1 / temperature))
                total = torch.maximum((weighted - 2 * tau * positive) / (1 - tau), least)
                terms.append(-(positive / (positive + total)).log())
            adam.zero_grad()
            (sum(terms) / 2).backward()
            eps = eps + given["gamma"] * leaf.grad
            adam.step()
        size, beta = t - t_next, 0.1 + 19.9 * t
        v = v + size * beta * (v / 2 - eps / math.sqrt(1 - abar[i])) + math.sqrt(beta * size) * n
        v = v.detach()
    return (v + 1) / 2


@pytest.mark.parametrize(("first", "temperature"), [(1, 1.0), (2, 0.7), (6, 0.7)])
def test_each_image_is_guided_as_torchs_own_parts_guide_it(first, temperature):
    """Sign and size of the guide, the count of Adam's steps and the state at which the network is drawn all matter.
    Adam here has 1e-20 more under its root, which moves a pixel by less than 1e-9.
    """
    given = {**GUIDE, "first": first, "temperature": temperature}
    x, rng = image(), Streams([0, 1], 0, "a")
    out = contrastive.purify(x, Gaussian(0.1, 0.3), classifier(), rng, **SDE, **given, clamp="none")
    wanted = torch.cat([reference(x, b, given) for b in (0, 1)])
    torch.testing.assert_close(out, wanted, rtol=0, atol=1e-8)


def test_a_group_of_one_image_by_hand():
    """Row 0 has itself as its negative, row 1 its own positive; the positive of both is exp(cosine)."""
    a, b = torch.randn(2, 1, 1, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    p = F.cosine_similarity(a.flatten(), b.flatten(), dim=0).exp().item()
    wanted = 0.0
    for negative in (math.e, p):
        all_negative = max((negative - 0.1 * 2 * p) / 0.9, 2 / math.e)
        wanted -= math.log(p / (p + all_negative)) / 2
    assert contrastive_loss(a, b, PLAIN).item() == pytest.approx(wanted, rel=1e-12)


def test_a_soft_group_of_one_image_by_hand():
    """The released code sums each row's negatives, and broadcasts the two sums against both positives."""
    a, b = torch.randn(2, 1, 1, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    p = F.cosine_similarity(a.flatten(), b.flatten(), dim=0).exp().item()
    wanted = -sum(math.log(p / (p + negative)) for negative in (math.e, p)) / 2
    found = contrastive_loss(a, b, PLAIN._replace(estimator="soft")).item()
    assert found == pytest.approx(wanted, rel=1e-12)


def test_many_groups_are_as_many_single_ones():
    a, b = torch.randn(2, 4, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    together = contrastive_loss(a, b, PLAIN)
    for k in range(4):
        assert torch.equal(contrastive_loss(a[k : k + 1], b[k : k + 1], PLAIN), together[k : k + 1])


def test_the_head_learns_and_the_pull_is_the_gradient_of_the_loss():
    """Central differences in the state; the loss falls while the head takes steps at one pair of states."""
    own, rng = classifier(), Streams([4, 5], 0, "a")
    before, state = image(), image().flip(3)
    heads = new_heads(draw_weights(own(state), rng))

    def loss(state: torch.Tensor) -> torch.Tensor:
        a, b = (head(own(one)[:, None], heads[:9]) for one in (before, state))
        return contrastive_loss(a, b, PLAIN)

    start = loss(state)
    gradient, logits, trained = pull(state, own(before), own, heads, PLAIN, 1)
    v = torch.randn(state.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    central = (loss(state + 1e-6 * v) - loss(state - 1e-6 * v)) / 2e-6
    torch.testing.assert_close(central, (gradient * v).sum(dim=(1, 2, 3)), rtol=1e-6, atol=1e-10)
    assert torch.equal(logits, own(state))
    for count in range(2, 6):
        heads = trained
        _, _, trained = pull(state, own(before), own, heads, PLAIN, count)
    assert (loss(state) < start).all()


def test_new_networks_are_torchs():
    """Uniform in +- 1 / sqrt(inputs), another one for each image and the same for the same key."""
    weights = draw_weights(torch.zeros(200, 4), Streams(range(200), 0, "a"))
    assert [tuple(w.shape[1:]) for w in weights] == [(8, 4), (8, 4), (4, 8)] * 3
    for w in weights:
        bound = w.shape[2] ** -0.5
        assert w.abs().max() <= bound
        assert w.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)
        assert abs(w.mean().item()) < 0.05 * bound
    assert torch.equal(draw_weights(torch.zeros(1, 4), Streams([7], 0, "a"))[0], weights[0][7:8])


@pytest.mark.parametrize("memory", ["store", "recompute"])
def test_values_are_equal_in_all_gradient_variants_and_without_autograd(memory):
    denoiser, x, slopes = Gaussian(0.1, 0.3), image(), {}
    denoiser.memory = memory
    given = {**SDE, **GUIDE, "clamp": "none"}
    with torch.no_grad():
        plain = contrastive.purify(x, denoiser, classifier(), Streams([4, 5], 0, "a"), **given)
    for derivative in ("exact", "identity"):
        leaf = x.clone().requires_grad_()
        streams = Streams([4, 5], 0, "a")
        out = contrastive.purify(leaf, denoiser, classifier(), streams, **given, derivative=derivative)
        assert torch.equal(out.detach(), plain)
        slopes[derivative] = torch.autograd.grad(out.sum(), leaf)[0]
    assert torch.equal(slopes["identity"], torch.ones_like(x))
    assert (slopes["exact"] - 1).abs().max() > 1e-3
    assert denoiser.nfe == 30


WRONG = {
    "t": 1.5,
    "gamma": -50.0,
    "tau_plus": 1.0,
    "temperature": 0.0,
    "beta": -5.0,
    "lr": -1.0,
    "estimator": "easy",
    "derivative": "bpda",
}


@pytest.mark.parametrize("wrong", [{key: value} for key, value in WRONG.items()] + [{"first": k} for k in (0, 10, 100)])
def test_wrong_values(wrong):
    with pytest.raises(ValueError, match=rf"^need .*{next(iter(wrong))}"):
        contrastive.purify(image(), Gaussian(), classifier(), Streams([0, 1], 0, "a"), **{**SDE, **GUIDE, **wrong})


def test_the_preset_against_bpda_is_guided_from_step_39_on_cifar10_and_runs_on_digits():
    for dataset, wanted in (("cifar10", (39, 5000.0, 10.0)), ("digits", (1, 50.0, 1.0))):
        node = composed("+experiment=table5/contrastive", f"dataset={dataset}")["purifier"]
        assert (node["first"], node["gamma"], node["temperature"]) == wanted
    make(node)(image(1), Gaussian(0.1, 0.3), classifier(), Streams([0], 0, "a"))
