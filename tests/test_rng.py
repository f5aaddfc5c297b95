"""Streams: an image's noise depends on its own key alone, and has the distribution that it should have."""

import hashlib
import json
import os
import subprocess
import sys
from itertools import product

import numpy as np
import pytest
import torch
from scipy import stats

from dp.rng import Request, Streams, cat_draws

IDS = [9394, 898, 2398, 5906]


def like(images, *shape, dtype=torch.float32):
    return torch.empty(images, *(shape or (1, 4, 4)), dtype=dtype)


def both(rng, images=None, *shape):
    """One Gaussian call, then one uniform call."""
    images = len(rng) if images is None else images
    return rng.randn_like(like(images, *shape)), rng.uniform_like(like(images, *shape))


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("order", [[3, 1, 0, 2], [1], [2, 0], [0, 0, 1]])
def test_batch_mates_and_order_do_not_matter(order):
    whole = both(Streams(IDS, 7, "adv"))
    part = both(Streams([IDS[i] for i in order], 7, "adv"))
    assert same(part, [a[order] for a in whole])


def test_ids_may_be_a_tensor():
    assert same(both(Streams(IDS, 7, "adv")), both(Streams(torch.tensor(IDS), 7, "adv")))


def test_length():
    assert len(Streams(IDS, 7, "adv")) == 4
    assert len(cat_draws(Streams(IDS, 7, "adv"), range(3))) == 12


def test_selected_streams_go_on_where_they_stand():
    rng, reference = Streams(IDS, 7, "adv"), Streams(IDS, 7, "adv")
    both(rng)
    both(reference)
    expected = both(reference)
    for index in ([2, 0], torch.tensor([2, 0])):
        assert same(both(rng.select(index)), [a[[2, 0]] for a in expected])


def test_select_and_cat_share_no_state():
    rng, reference = Streams(IDS, 7, "adv"), Streams(IDS, 7, "adv")
    for copy in (rng.select([0, 1, 2, 3]), rng.select([0]).cat(rng), rng.draw(0)):
        both(copy)
    assert same(both(rng), both(reference))
    copy = rng.select([1])
    both(rng)
    assert same(both(copy), [a[[1]] for a in both(reference)])


def test_cat_keeps_the_calls_of_each_stream():
    """Streams that have made calls beside fresh ones: as when an image enters a running batch."""
    old, fresh = Streams(IDS[:2], 7, "adv"), Streams(IDS[2:], 7, "adv")
    both(old)
    both(old)
    joined = both(old.cat(fresh))
    reference = Streams(IDS, 7, "adv")
    first = both(reference)
    both(reference)
    third = both(reference)
    assert same(joined, [torch.cat([b[:2], a[2:]]) for a, b in zip(first, third, strict=True)])


def test_cast_numbers_are_the_same_numbers():
    single, double = both(Streams(IDS, 7, "adv")), Streams(IDS, 7, "adv")
    for call, expected in zip((double.randn_like, double.uniform_like), single, strict=True):
        found = call(like(4, dtype=torch.float64))
        assert found.dtype == torch.float64
        assert torch.equal(found, expected.double())
    assert Streams(IDS, 7, "adv").randn_like(like(4, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_seed_stage_id_draw_and_call_all_matter():
    """Every pair of streams that differ in one thing has no number in common."""
    seen = []
    for seed, stage, one in product((0, 1, 12), ("attack", "adv"), (0, 2, 20)):
        rng = Streams([one], seed, stage)
        streams = [rng, rng.draw(0), rng.draw(1), rng.draw(0).draw(0), rng.draw(0).draw(1), rng.draw(1).draw(0)]
        seen += [stream.randn_like(like(1)).flatten() for stream in streams for _ in range(2)]
    table = torch.stack(seen)
    gap = (table[:, None] - table[None]).abs().amax(dim=2)
    gap.fill_diagonal_(1)
    assert len(table) == 18 * 6 * 2
    assert gap.min() > 0.1


def test_text_of_seed_stage_and_id_cannot_be_confused():
    a, b = Streams([3], 1, "adv"), Streams([13], 1, "adv")
    c = Streams([3], 11, "adv")
    rows = [s.randn_like(like(1)) for s in (a, b, c)]
    assert not any(torch.equal(rows[i], rows[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_draws_looped_and_batched_are_equal():
    """Draw-major, to go with x repeated along the batch."""
    ks = [4, 0, 7]
    looped = [both(Streams(IDS, 7, "attack").draw(k)) for k in ks]
    batched = both(cat_draws(Streams(IDS, 7, "attack"), ks))
    assert same(batched, [torch.cat(parts) for parts in zip(*looped, strict=True)])


def test_a_draw_for_each_image():
    ks = [3, 0, 3, 1]
    found = both(Streams(IDS, 7, "attack").draw(ks))
    for row, (one, k) in enumerate(zip(IDS, ks, strict=True)):
        assert same([a[[row]] for a in found], both(Streams([one], 7, "attack").draw(k)))
    assert same(both(Streams(IDS, 7, "attack").draw([5] * 4)), both(Streams(IDS, 7, "attack").draw(5)))


def test_a_list_of_draws_needs_one_for_each_image():
    with pytest.raises(ValueError, match="zip"):
        Streams(IDS, 7, "attack").draw([0, 1])


def test_a_draw_is_fresh_whatever_its_parent_has_used():
    rng, reference = Streams(IDS, 7, "attack"), Streams(IDS, 7, "attack")
    both(rng)
    assert same(both(rng.draw(2)), both(reference.draw(2)))


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 32, 32), (5,), (2, 3)])
def test_what_a_call_consumes_does_not_shift_the_next(shape):
    """Nor does its kind: the second call after any first one is the same."""
    reference = Streams(IDS, 7, "adv")
    reference.randn_like(like(4))
    expected = reference.randn_like(like(4))
    for name in ("randn_like", "uniform_like"):
        rng = Streams(IDS, 7, "adv")
        getattr(rng, name)(like(4, *shape))
        assert torch.equal(rng.randn_like(like(4)), expected)


def test_numbers_are_numpys_philox():
    """128-bit key by blake2b, one value of the counter's high word per call; a generator made anew for each."""
    key = hashlib.blake2b(b"7|adv|898", digest_size=16).digest()
    key_of_draw = hashlib.blake2b(key + (3).to_bytes(8, "little"), digest_size=16).digest()
    for stream, k in ((Streams([5, 898], 7, "adv"), key), (Streams([5, 898], 7, "adv").draw(3), key_of_draw)):
        for call in range(3):
            bits = np.random.Philox(key=int.from_bytes(k, "little"), counter=call << 192)
            expected = np.random.Generator(bits).standard_normal((3, 5, 5), dtype=np.float32)
            assert np.array_equal(stream.randn_like(like(2, 3, 5, 5))[1].numpy(), expected)


@pytest.fixture(scope="module")
def sample():
    """(images, draws, calls, numbers) of both kinds."""
    rng = Streams(range(12), 2024, "adv")
    normal, uniform = [], []
    for k in range(5):
        draw = rng.draw(k)
        normal.append(torch.stack([draw.randn_like(like(12, 1, 20, 20)) for _ in range(3)], dim=1))
        uniform.append(torch.stack([draw.uniform_like(like(12, 1, 20, 20)) for _ in range(3)], dim=1))
    return {
        "normal": torch.stack(normal, dim=1).flatten(3).double(),
        "uniform": torch.stack(uniform, dim=1).flatten(3).double(),
    }


@pytest.mark.parametrize(("name", "law"), [("normal", stats.norm), ("uniform", stats.uniform)])
def test_distribution(sample, name, law):
    values = sample[name].flatten().numpy()
    assert values.size == 72_000
    assert stats.kstest(values, law.cdf).pvalue > 1e-3
    each = [stats.kstest(row.numpy(), law.cdf).pvalue for row in sample[name].flatten(0, 2)]
    assert stats.kstest(each, stats.uniform.cdf).pvalue > 1e-3  # single streams: p-values are uniform
    assert stats.kstest(sample[name][:, :, :, 0].flatten().numpy(), law.cdf).pvalue > 1e-3  # first numbers alone


@pytest.mark.parametrize("name", ["normal", "uniform"])
def test_no_correlation_between_images_draws_and_calls(sample, name):
    """The 180 streams' 16110 correlations, and those of neighboring numbers, are N(0, 1/400) like those of noise."""
    rows = sample[name].flatten(0, 2)
    correlations = torch.corrcoef(rows)[tuple(torch.triu_indices(180, 180, offset=1))]
    assert correlations.abs().max() < 5.5 / 20
    assert correlations.std().item() == pytest.approx(1 / 20, rel=0.05)
    assert abs(correlations.mean()) < 5 / 20 / 16110**0.5
    lagged = [np.corrcoef(row[:-1], row[1:])[0, 1] for row in rows.numpy()]
    assert abs(np.mean(lagged)) < 5 / 20 / 180**0.5


def test_uniform_numbers_are_below_one(sample):
    assert sample["uniform"].min() >= 0
    assert sample["uniform"].max() < 1


def test_other_processes_see_the_same_numbers():
    code = (
        "import json, torch; from dp.rng import Streams; rng = Streams([9394, 898], 7, 'adv').draw(3);"
        "print(json.dumps(rng.randn_like(torch.empty(2, 1, 2, 2)).tolist()))"
    )
    env = os.environ | {"PYTHONHASHSEED": "12345" if os.environ.get("PYTHONHASHSEED") != "12345" else "54321"}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    assert json.loads(out) == Streams([9394, 898], 7, "adv").draw(3).randn_like(like(2, 1, 2, 2)).tolist()


@pytest.mark.parametrize("images", [3, 5])
def test_one_stream_per_image(images):
    rng = Streams(IDS, 7, "adv")
    for call in (rng.randn_like, rng.uniform_like):
        with pytest.raises(ValueError, match=f"got 4 streams for a batch of {images}"):
            call(like(images))
    assert not rng.used


def test_used():
    """True where noise was taken from a stream or from one derived of it: so a defense is known to be deterministic."""
    for derive in (lambda r: r, lambda r: r.draw(1), lambda r: r.select([0]).draw(2), lambda r: r.cat(r)):
        rng = Streams(IDS, 7, "adv")
        part = derive(rng)
        assert not rng.used
        assert not part.used
        part.randn_like(like(len(part)))
        assert rng.used
        assert part.used
    assert not cat_draws(rng, [0, 1]).used  # the streams of one call stand for themselves


@pytest.mark.parametrize("version", [1, 2])
def test_a_purifier_may_write_into_its_noise(version):
    """Also with a tensor that needs a gradient. What it has written is not in the next call's noise."""
    rng, again = Streams(IDS, 0, "adv", version), Streams(IDS, 0, "adv", version)
    scale, given = torch.ones(1, requires_grad=True), like(4)
    first, second = rng.randn_like(given).mul_(scale), rng.randn_like(given)
    first.sum().backward()
    assert same((first.detach(), second), (again.randn_like(given), again.randn_like(given)))
    assert scale.grad is not None


def test_noise_that_is_drawn_ahead_may_be_written_into(monkeypatch):
    """As on a GPU. A call's numbers share no memory with the next one's, which a backward pass needs as they were."""
    monkeypatch.setattr(Request, "on_gpu", True)
    rng, x, total = Streams(IDS, 3, "adv", 2), torch.ones(4, 1, 4, 4, requires_grad=True), torch.zeros(())
    kept = []
    for _ in range(12):
        kept.append(rng.randn_like(x.detach()))
        total = total + (x * kept[-1]).sum()
        rng.randn_like(x.detach()).mul_(2)
    total.backward()
    assert torch.allclose(x.grad, torch.stack(kept).sum(dim=0), atol=1e-5)
