"""The generator on the device: numpy's words, the normal law, and the same bits in every order and number."""

import hashlib
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import special, stats

from dp import philox
from dp.rng import Streams
from dp.runs.keys import run_key
from tests.helpers.compose import composed

CPU = torch.device("cpu")
KEYS = [hashlib.blake2b(bytes([k]), digest_size=16).digest() for k in range(5)]
HIGH = bytes([255] * 16)  # every product of its rounds has all its carries
CALLS = [0, 1, 7, 2**31, 2**40]


@pytest.mark.parametrize("shape", [(1,), (7,), (8,), (9,), (1, 16, 16), (3, 5, 5)])
def test_words_are_those_of_numpys_generator(shape):
    """By a generator of numpy's made anew, whose `random_raw` gives words of 64 bits."""
    found = philox.words([*KEYS, HIGH], [*CALLS, 2**62], shape, CPU)
    count = int(np.prod(shape))
    for row, key, call in zip(found, [*KEYS, HIGH], [*CALLS, 2**62], strict=True):
        bits = np.random.Philox(key=int.from_bytes(key, "little"), counter=call << 192)
        raw = bits.random_raw(-(-count // 2))
        expected = np.stack([raw & np.uint64(2**32 - 1), raw >> np.uint64(32)], axis=1).ravel()[:count]
        assert np.array_equal(row.numpy().ravel(), expected.astype(np.int64))


def test_uniform_numbers_are_numpys_bit_for_bit():
    found = philox.uniform(KEYS, CALLS, (3, 33, 31), CPU)
    assert found.dtype == torch.float32
    for row, key, call in zip(found, KEYS, CALLS, strict=True):
        bits = np.random.Philox(key=int.from_bytes(key, "little"), counter=call << 192)
        assert np.array_equal(row.numpy(), np.random.Generator(bits).random((3, 33, 31), dtype=np.float32))


def test_streams_of_both_versions_have_the_same_uniform_numbers():
    """Also derived ones, and in other dtypes."""
    like = torch.empty(4, 2, 5, 5, dtype=torch.float64)
    for derive in (lambda rng: rng.draw(3), lambda rng: rng.select([2, 0, 0, 1]), lambda rng: rng.draw([4, 0, 1, 1])):
        first, second = (derive(Streams([9, 4, 7, 1], 3, "adv", version)) for version in (1, 2))
        for _ in range(3):
            assert torch.equal(first.uniform_like(like), second.uniform_like(like))
    assert not torch.equal(first.randn_like(like), second.randn_like(like))


def of_words(words: np.ndarray, monkeypatch) -> tuple[np.ndarray, np.ndarray]:
    """The Gaussian numbers of words, and the quantiles of (word + 1/2) / 2^32."""
    monkeypatch.setattr(philox, "words", lambda *_: torch.from_numpy(words))
    z = philox.normal([], [], (), CPU)
    return z.double().numpy(), special.ndtri((words.astype(np.float64) + 0.5) / 2**32)


def test_gaussian_numbers_are_quantiles(monkeypatch):
    """By less than 5e-7: in both tails, around the median, everywhere, and at the ends and middles of the cells."""
    random = np.random.default_rng(0)
    near = np.arange(100_000)
    ends = ((2.0 ** np.arange(32))[:, None] * (1 + np.arange(256) / 256)).ravel().astype(np.int64) // 2
    words = np.concatenate(
        [near, 2**32 - 1 - near, 2**31 - 50_000 + near, random.integers(0, 2**32, 500_000), ends, 2**32 - 1 - ends]
    )
    words = np.unique(np.concatenate([words, (2.0 ** random.uniform(0, 32, 300_000)).astype(np.int64)]))
    z, exact = of_words(words, monkeypatch)
    assert np.abs(z - exact).max() < 5e-7
    assert (np.diff(z) >= 0).all()
    mirrored, _ = of_words(2**32 - 1 - words, monkeypatch)
    assert np.array_equal(mirrored, -z)
    assert z[0] == pytest.approx(-6.338, abs=1e-3)  # the largest that the docstring names


def test_every_machine_has_the_same_table():
    """Its bytes when it was made. Before coefficients are rounded to a grid, none lies near the middle of two."""
    table = philox._table(CPU)
    assert [len(c) for c in table] == [32 * 128 + 1] * 3
    digest = hashlib.sha256(b"".join(c.numpy().tobytes() for c in table)).hexdigest()
    assert digest == "727dba85f4d6a11895c8392a343e30a58ecc6cf0e44c09b4f0484032768f4997"


def test_order_number_and_pieces_do_not_matter():
    """Bit for bit: rows in another order, alone, with more numbers after them, and without vector instructions."""
    whole = philox.normal(KEYS, CALLS, (3, 20, 20), CPU)
    order = [3, 0, 0, 4]
    turned = philox.normal([KEYS[k] for k in order], [CALLS[k] for k in order], (3, 20, 20), CPU)
    assert torch.equal(turned, whole[order])
    for k in range(5):
        assert torch.equal(philox.normal(KEYS[k : k + 1], CALLS[k : k + 1], (3, 20, 20), CPU)[0], whole[k])
        short = philox.normal(KEYS[k : k + 1], CALLS[k : k + 1], (13,), CPU)[0]
        assert torch.equal(short, whole[k].flatten()[:13])
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert torch.equal(philox.normal(KEYS, CALLS, (3, 20, 20), CPU), whole)
    finally:
        torch.set_num_threads(threads)


SEEDS, NUMBERS = 16, 12_288  # a sample of four images of 3 x 32 x 32


@pytest.fixture(scope="module")
def sample() -> np.ndarray:
    """(16 seeds, 12288), of streams of version 2."""
    like = torch.empty(4, 3, 32, 32)
    rows = [Streams([3, 14, 159, 2653], seed, "adv", 2).draw(1).randn_like(like).flatten() for seed in range(SEEDS)]
    return torch.stack(rows).double().numpy()


def test_moments(sample):
    """Mean, variance, skewness, kurtosis and the sixth moment, within five standard errors of a normal law's."""
    z, n = sample.ravel(), sample.size
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10395 - 225)):
        assert (z**power).mean() == pytest.approx(moment, abs=5 * (variance / n) ** 0.5)


def test_kolmogorov_smirnov(sample):
    """All numbers, and each seed's, whose p-values are uniform."""
    assert stats.kstest(sample.ravel(), stats.norm.cdf).pvalue > 1e-3
    each = [stats.kstest(row, stats.norm.cdf).pvalue for row in sample]
    assert stats.kstest(each, stats.uniform.cdf).pvalue > 1e-3


def test_sixteen_seeds_are_independent(sample):
    """The 120 correlations of seeds, those of their squares, and of neighbors within a seed, are N(0, 1 / numbers)."""
    standard = NUMBERS**-0.5
    for rows in (sample, sample**2):
        correlations = np.corrcoef(rows)[np.triu_indices(SEEDS, 1)]
        assert np.abs(correlations).max() < 4.5 * standard
        assert stats.kstest(correlations / standard, stats.norm.cdf).pvalue > 1e-3
    lagged = [np.corrcoef(row[:-lag], row[lag:])[0, 1] for row in sample for lag in (1, 2, 32, 1024)]
    assert stats.kstest(np.array(lagged) / standard, stats.norm.cdf).pvalue > 1e-3


def test_calls_draws_and_stages_are_independent_too():
    rng, like = Streams([5], 0, "adv", 2), torch.empty(1, NUMBERS)
    rows = [rng.randn_like(like) for _ in range(4)] + [rng.draw(k).randn_like(like) for k in range(4)]
    rows += [Streams([5], 0, stage, 2).randn_like(like) for stage in ("attack", "clean")]
    correlations = np.corrcoef(torch.cat(rows).double().numpy())[np.triu_indices(len(rows), 1)]
    assert np.abs(correlations).max() < 4.5 * NUMBERS**-0.5


def test_another_version_is_refused():
    with pytest.raises(ValueError, match="need a generator among 1, 2, got version=3"):
        Streams([1], 0, "adv", 3)


def test_the_generator_is_in_the_key_where_it_is_not_numpys():
    keys = [run_key(composed(*more)) for more in ((), ("rng=1",), ("rng=2",))]
    assert keys[0] == keys[1] != keys[2]
    old = {key: value for key, value in composed().items() if key != "rng"}
    assert run_key(old) == keys[0]  # of a run before there was a choice


def test_the_grid_of_the_table_is_fine_enough():
    """Coefficients are rounded to a grid far below the error that is allowed, at every place in a cell."""
    width = 2**philox.REST
    assert sum(grid * width**power / 2 for power, grid in enumerate(philox.GRIDS)) < 5e-9
    assert all(a / b == 2**16 for a, b in pairwise(philox.GRIDS))
