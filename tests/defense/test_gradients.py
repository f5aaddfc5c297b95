"""Gradients through the whole defense against central differences in float64 with frozen noise."""

import functools

import pytest
import torch

from dp.contracts import derivative
from dp.contracts.declared import honest_gradient
from dp.contracts.failure import Failure, difference
from dp.defense.defended import Defended
from dp.evaluation.evaluate import Evaluation
from dp.objectives import cross_entropy
from dp.output.report import gradient_words
from dp.purifiers import diffpure
from dp.purifiers.module import PurifierModule
from dp.rng import Streams
from dp.runs.build import build
from dp.runs.caveats import caveats_of
from tests.helpers.compose import composed, home, options, plug_ins, setup
from tests.helpers.contract import assert_held, in_one_line, skip_without_weights

PURIFIERS = [name for name in options("purifier") if name != "none"]
OURS = {name for name in PURIFIERS if name not in plug_ins("purifier")}


def wide(evaluation: Evaluation) -> tuple[Defended, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The scored defense in float64, with two images that are moved a little, so that no pixel is at the bounds by
    chance.
    """
    model, subset = evaluation.arms["defended"].scored.double(), evaluation.subset
    noise = torch.rand(2, *subset.x.shape[1:], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = (subset.x[:2].double() + 0.05 * noise).clamp(0.01, 0.99)
    return model, x, subset.y[:2], subset.ids[:2]


def error_of(model, x, y, ids, gradient) -> float:
    return derivative.worst_slopes(model, x, y, ids, gradient).error


@pytest.mark.parametrize("purifier", PURIFIERS)
def test_full_gradient_equals_central_differences(purifier, record_property):
    config = composed(f"purifier={purifier}", *home(purifier), "protocol.images=2")
    skip_without_weights(config)
    with in_one_line(f"purifier {purifier}"):
        evaluation = build(config)
    found = derivative.failures(*wide(evaluation))
    if honest_gradient(config["purifier"]) is not None:  # there is no derivative that could be wrong
        found = []
    assert_held(found, "purifier", config, record_property)


def test_straight_through_clamp_is_not_the_derivative():
    """The same check finds the approximation: its values are those of the plain clamp, its derivative is not."""
    gradients = {}
    for clamp in ("plain", "straight_through"):
        model, x, y, ids = wide(build(composed(f"purifier.clamp={clamp}", "protocol.images=2")))
        leaf = x.clone().requires_grad_()
        (gradients[clamp],) = torch.autograd.grad(derivative.loss_at(model, leaf, y, ids), leaf)
    assert error_of(model, x, y, ids, gradients["plain"]) < 1e-5
    assert error_of(model, x, y, ids, gradients["straight_through"]) > 1e-3
    for overrides, name in (
        (["purifier.clamp=straight_through"], "approximate (straight-through clamp)"),
        (["threat_model.grad=surrogate"], "surrogate"),
        (["threat_model.grad=adjoint", "purifier=diffpure_ode"], "adjoint"),
        ([], "exact"),
    ):
        asked = setup("protocol.images=2", *overrides)
        assert gradient_words(caveats_of(asked, build(asked.config)).as_data()) == name


@pytest.mark.parametrize("purifier", PURIFIERS)
def test_recompute_equals_store_bit_for_bit(purifier, record_property):
    answers, config = {}, composed(f"purifier={purifier}", *home(purifier), "protocol.images=3")
    skip_without_weights(config)
    for memory in ("store", "recompute"):
        with in_one_line(f"purifier {purifier}"):
            evaluation = build({**config, "memory": memory})
        model, subset = evaluation.arms["defended"].attacked, evaluation.subset  # through the gradient that it has
        denoisers = [model.denoiser] if model.denoiser is not None else []  # a purifier may have none
        modules = [own for own in model.networks if isinstance(own, PurifierModule)]
        assert {network.memory for network in (*denoisers, *modules)} <= {memory}
        assert denoisers or modules or "_target_" not in config["denoiser"] or purifier not in OURS
        with in_one_line(f"purifier {purifier}"):
            loss, gradient = model.loss_gradient(subset.x, subset.y, Streams(subset.ids, 1, "attack"), 3)
        answers[memory] = loss, gradient, torch.tensor([float(model.nfe)])
    advice = "the likely cause is noise that is not from rng, or noise or dropout inside a network, which is drawn anew"
    found = [
        Failure("recompute", f"the {what} of memory=recompute is another, {difference(again, stored)}", advice)
        for what, stored, again in zip(("loss", "gradient", "NFE"), *answers.values(), strict=True)
        if not torch.equal(stored, again)
    ]
    assert_held(found, "purifier", config, record_property)


def test_eot_gradient_is_the_mean_over_single_samples(config):
    """Batched samples against a loop over `draw(k)`: the same noise, rounding apart."""
    evaluation = build(config)
    model, subset = evaluation.arms["defended"].scored, evaluation.subset
    rng = Streams(subset.ids, 1, "attack")
    loss, gradient = model.loss_gradient(subset.x, subset.y, rng, 5)
    losses, gradients = [], []
    for k in range(5):
        leaf = subset.x.clone().requires_grad_()
        one = cross_entropy(model(leaf, rng.draw(k)), subset.y)
        losses.append(one.detach())
        gradients.append(torch.autograd.grad(one.sum(), leaf)[0])
    torch.testing.assert_close(loss, torch.stack(losses).mean(0), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(gradient, torch.stack(gradients).mean(0), rtol=1e-3, atol=1e-6)
    assert torch.equal(model.logits(subset.x, rng, 5).argmax(2)[3], model(subset.x, rng.draw(3)).argmax(1))


def test_attack_memory_probe_sees_the_stored_activations(config):
    """A longer chain stores more; recomputing stores less."""
    from dp.defense.memory import activation_bytes

    evaluation = build(config)
    scored, x = evaluation.arms["defended"].scored, evaluation.subset.x
    assert scored.denoiser is not None

    def stored(steps: int, memory: str) -> int:
        assert scored.denoiser is not None
        scored.denoiser.memory, scored.denoiser.recompute.keep = memory, 2
        purify = functools.partial(diffpure.purify, t=0.2, steps=steps, eta=0.0)
        return activation_bytes(
            Defended(purify, scored.denoiser, scored.classifier), x, Streams(evaluation.subset.ids, 0, "a")
        )

    assert stored(4, "store") > 1.5 * stored(2, "store")
    assert stored(8, "recompute") < 0.5 * stored(8, "store")


@pytest.mark.parametrize("derived", ["draw", "select", "cat"])
def test_a_purifier_that_uses_derived_streams_is_not_taken_for_a_deterministic_one(derived):
    """All of its samples are evaluated, in votes and in gradients."""

    def purify(x, denoiser, classifier, rng, *, on_step=None):
        part = {"draw": lambda: rng.draw(3), "select": lambda: rng.select(range(len(x))), "cat": lambda: rng.cat(rng)}
        streams = part[derived]()
        n = streams.uniform_like(x if derived != "cat" else torch.cat([x, x]))[: len(x)]
        return x + 0.1 * n

    class Sum(torch.nn.Module):
        def forward(self, x):
            total = x.flatten(1).sum(1)
            return torch.stack([total, -total], dim=1)

    model = Defended(purify, None, Sum(), draws_per_call=2)  # pyright: ignore[reportArgumentType]
    x = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    logits = model.logits(x, Streams([0, 1], 0, "a"), 5)
    assert len({row.item() for row in logits[:, 0, 0]}) == 5


@pytest.mark.parametrize("purifier", ["diffpure_sde", "diffpure_ode", "diffpure_ldsde"])
def test_adjoint_mode_attacks_the_same_purification_with_another_gradient(purifier):
    """Equal outputs for equal streams; the central differences are the exact gradient's, not the adjoint's."""
    given = (f"purifier={purifier}", "threat_model.grad=adjoint", "protocol.images=2", "purifier.end=0.01")
    evaluation = build(composed(*given))
    model, x, y, ids = wide(evaluation)
    attacked = evaluation.arms["defended"].attacked.double()
    gradients = []
    for m in (model, attacked):
        leaf = x.clone().requires_grad_()
        gradients.append(torch.autograd.grad(derivative.loss_at(m, leaf, y, ids), leaf)[0])
    with torch.no_grad():
        torch.testing.assert_close(
            derivative.loss_at(attacked, x, y, ids), derivative.loss_at(model, x, y, ids), rtol=0, atol=1e-10
        )
    assert error_of(model, x, y, ids, gradients[0]) < 1e-5
    assert error_of(model, x, y, ids, gradients[1]) > 1e-3
    assert torch.cosine_similarity(gradients[0].flatten(), gradients[1].flatten(), dim=0) > 0.5
    assert evaluation.arms["defended"].attacked is not evaluation.arms["defended"].scored
