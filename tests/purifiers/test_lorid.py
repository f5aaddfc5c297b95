"""LoRID in our reading: the projection against the singular value decomposition, the rounds against closed forms."""

import math
from itertools import pairwise

import pytest
import torch

from dp.diffusion.denoisers import Gaussian
from dp.diffusion.sampling import to_pm1
from dp.purifiers import diffpure, lorid
from dp.rng import Streams
from tests.helpers import affine, papers
from tests.helpers.parity import Script

GIVEN = {"t": 0.1, "steps": 2, "loops": 5, "rank": 1.0, "eta": 1.0}


def images(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_of_one_channel_it_is_the_truncated_singular_value_decomposition():
    x = images(3, 1, 8, 6)
    u, s, v = torch.linalg.svd(x)
    wanted = u[..., :3] @ torch.diag_embed(s[..., :3]) @ v[..., :3, :]  # 4 rows and 3 columns: the rank is 3
    torch.testing.assert_close(lorid.low_rank(x, 0.5), wanted, rtol=0, atol=1e-12)


def test_of_three_channels_every_mode_has_its_rank_and_a_second_projection_changes_nothing():
    x = images(2, 3, 8, 6)
    out = lorid.low_rank(x, 0.5)
    for mode, rank in ((2, 4), (3, 3)):
        values = torch.linalg.svdvals(out.movedim(mode, 1).flatten(2))
        assert (values[:, :rank] > 1e-3).all()
        assert (values[:, rank:] < 1e-12).all()
    torch.testing.assert_close(lorid.low_rank(out, 0.5), out, rtol=0, atol=1e-12)


def test_a_projector_is_symmetric_idempotent_and_of_its_rank():
    p = lorid._projector(images(3, 8, 18), 5)
    torch.testing.assert_close(p @ p, p, rtol=0, atol=1e-12)
    torch.testing.assert_close(p, p.mT, rtol=0, atol=1e-12)
    torch.testing.assert_close(p.diagonal(dim1=1, dim2=2).sum(1), torch.full((3,), 5.0, dtype=torch.float64))


@pytest.mark.parametrize("rank", [0.3, 0.5, 0.9])
def test_the_derivative_of_the_projection_is_exact(rank):
    assert torch.autograd.gradcheck(lambda x: lorid.low_rank(x, rank), images(1, 3, 5, 4).requires_grad_())


def test_the_derivative_is_exact_at_a_narrow_cut():
    """Of 8 eigenvalues that fall from 1 to .98 in equal steps, in bases drawn at random."""
    (u, v), values = torch.linalg.qr(images(2, 8, 8))[0], torch.linspace(1, 0.98, 8, dtype=torch.float64)
    x = (u @ values.sqrt().diag() @ v.T)[None, None].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: lorid.low_rank(x, 0.5), x, eps=1e-8, atol=1e-4, rtol=1e-4)


def test_equal_eigenvalues_have_a_finite_derivative():
    """Of an image of low rank the dropped part is zero: it is kept as it is, and the gradient is finite."""
    x = (images(2, 1, 8, 2) @ images(2, 1, 2, 8)).requires_grad_()  # rank 2 of 8
    out = lorid.low_rank(x, 0.5)
    torch.testing.assert_close(out, x, rtol=0, atol=1e-12)
    (gradient,) = torch.autograd.grad(out.square().sum(), x)
    assert gradient.isfinite().all()
    flat = torch.full((1, 1, 8, 8), 0.3, requires_grad=True)
    (gradient,) = torch.autograd.grad(lorid.low_rank(flat, 0.5).sum(), flat)
    assert gradient.isfinite().all()


def test_the_full_rank_is_no_projection():
    """Bit for bit rounds of DiffPure, which begin where the last one ended, not clamped."""
    x, denoiser = images(2, 1, 8, 8).mul(0.1).add(0.5), Gaussian(0.1, 0.3)
    assert torch.equal(lorid.low_rank(x, 1.0), x)
    rng, ours = Streams([3, 4], 0, "a"), Streams([3, 4], 0, "a")
    once = {**GIVEN, "loops": 1}
    found = lorid.purify(x, denoiser, None, ours, **once, clamp="none")  # pyright: ignore[reportArgumentType]
    wanted = diffpure.purify(x, denoiser, None, rng, t=0.1, steps=2, eta=1.0, clamp="none")  # pyright: ignore[reportArgumentType]
    assert torch.equal(found, wanted)
    for _ in range(4):
        wanted = diffpure.purify(wanted, denoiser, None, rng, t=0.1, steps=2, eta=1.0, clamp="none")  # pyright: ignore[reportArgumentType]
    whole = lorid.purify(x, denoiser, None, Streams([3, 4], 0, "a"), **GIVEN, clamp="none")  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(whole, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_mean_and_variance_with_a_gaussian_denoiser(eta):
    """A recursion in the papers' coordinates, of DDPM by Ho et al. 2020, Eq. 7, of DDIM by Song et al. 2021, Eq. 12."""
    mean, var, draws = 2 * papers.X - 1, 0.0, 0
    for _ in range(3):
        a = papers.abar(100)
        mean, var, draws = math.sqrt(a) * mean, a * var + 1 - a, draws + 1
        for k, j in pairwise((100, 50, -1)):
            a, a_next = papers.abar(k), papers.abar(j)

            def step(state: float, k=k, j=j, a=a, a_next=a_next) -> float:
                if eta == 1:
                    return papers.posterior(state, k, j)[0]
                x0 = papers.denoised(state, k)
                return math.sqrt(a_next) * x0 + math.sqrt(1 - a_next) * (state - math.sqrt(a) * x0) / math.sqrt(1 - a)

            gain = step(1.0) - step(0.0)
            mean = step(mean)
            var = gain**2 * var + (papers.posterior(0.0, k, j)[1] if eta == 1 else 0.0)
            draws += int(eta == 1 and j >= 0)
    found = affine.moments(
        lorid.purify, draws, papers.X, Gaussian(papers.MEAN, papers.STD), **{**GIVEN, "loops": 3, "eta": eta}
    )
    assert found == pytest.approx((mean, var), abs=1e-12)


def test_the_mean_of_a_projected_image():
    """Without noise every pixel of the projected image is shrunk toward the mean of the data, once in every round."""
    x = images(2, 1, 8, 8).mul(0.1).add(0.5)
    silence, given = Script(list(torch.zeros(4, *x.shape))), {**GIVEN, "loops": 2, "rank": 0.5}
    found = lorid.purify(x, Gaussian(0.1, 0.3), None, silence, **given, clamp="none")  # pyright: ignore[reportArgumentType]
    above = lorid.low_rank(to_pm1(x), 0.5) - 0.1
    for k, j in pairwise((100, 50, -1)):
        a, a_next = papers.abar(k), papers.abar(j)
        gain = (papers.posterior(math.sqrt(a), k, j)[0] - papers.posterior(0.0, k, j)[0]) / math.sqrt(a_next)
        above = gain**2 * above  # both rounds have the same gains
    torch.testing.assert_close(to_pm1(found), 0.1 + above, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"loops": 0}, "need loops >= 1"),
        ({"eta": 2.0}, "0 <= eta <= 1"),
        ({"rank": 0.0}, "need 0 < rank <= 1"),
        ({"rank": 1.5}, "need 0 < rank <= 1"),
        ({"t": 0.0}, "need 0 < t <= 1"),
    ],
)
def test_bad_values(changed, words):
    with pytest.raises(ValueError, match=words):
        lorid.purify(images(1, 1, 4, 4), Gaussian(), None, Streams([0], 0, "a"), **{**GIVEN, **changed})  # pyright: ignore[reportArgumentType]
