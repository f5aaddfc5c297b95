"""Philox 4x64-10 (Salmon et al. 2011) in torch, on any device: numpy's uniform numbers, and Gaussian ones by a table.

A number depends on its key, its call and its place alone, so it has the same bits on every device, in every order and
in batches of any size. All is made of whole numbers, and of products, sums and gathers in float64, one operation at a
time: a fused multiply-add would round once in place of twice, so compilers must not fuse this.
"""

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dp.transfer import sent

ROUNDS = 10
MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)  # is added to the key after every round
WORD = 2**32 - 1
OCTAVES, CELLS = 32, 7  # of the table: powers of two of the probability, each cut into 2^7 cells
REST = 23 - CELLS  # bits of a float32 that say where in its cell a number lies
GRIDS = (2.0**-30, 2.0**-46, 2.0**-62)  # to which coefficients are rounded, so that every machine has the same


def uniform(keys: Sequence[bytes], calls: Sequence[int], shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Uniform numbers in [0,1), (B,*shape) float32: those of `numpy.random.Philox` with the 128-bit `keys` and the
    counters (0, 0, 0, call). Their grid is 2^-24.
    """
    bits = words(keys, calls, shape, device)
    return (bits >> 8).to(torch.float32) * 2.0**-24


def normal(keys: Sequence[bytes], calls: Sequence[int], shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Unit Gaussian numbers, (B,*shape) float32: of the word w the quantile of the probability (w + 1/2) / 2^32.

    With p the smaller one of this probability and its complement, 2^33 p is an odd whole number. As a float32 its
    exponent and first bits choose a cell of the table, the others are the place t in the cell, and the quantile is a
    polynomial of degree two in t. The largest number is 6.34; those near zero lie 7.5e-8 apart.
    """
    bits = words(keys, calls, shape, device)
    upper = bits >> 31  # 1: above the median
    odd = 2 * ((bits ^ -upper) & (WORD >> 1)) + 1
    single = odd.to(torch.float32).view(torch.int32).long()
    cell, t = (single >> REST) - (127 << CELLS), (single & (2**REST - 1)).to(torch.float64)
    constant, linear, square = _table(device)
    z = (square[cell] * t + linear[cell]) * t + constant[cell]
    return (z * (1 - 2 * upper)).to(torch.float32)


def words(keys: Sequence[bytes], calls: Sequence[int], shape: tuple[int, ...], device: torch.device) -> Tensor:
    """The generator's words of 32 bits, (B,*shape) int64: those that numpy's Philox draws one after another."""
    count = int(np.prod(shape))
    blocks = -(-count // 8)  # of four words of 64 bits
    factors, low_factors, high_factors, weyl = _constants(device)
    given = _moved(keys, calls, device)  # (3,B)
    key, call = given[:2].unsqueeze(2), given[2].unsqueeze(1)
    counter = torch.arange(1, blocks + 1, device=device).expand(len(keys), -1)  # numpy counts before it draws
    even = torch.stack([counter, torch.zeros_like(counter)])  # (2,B,blocks): words 0 and 2 of the counter
    odd = torch.stack([torch.zeros_like(counter), call.expand_as(counter)])  # words 1 and 3
    for _ in range(ROUNDS):
        low, high = even & WORD, (even >> 32) & WORD
        # The upper half of a product of 64-bit words, by products of their halves; int64 wraps as unsigned words do.
        first = high * low_factors + ((low * low_factors >> 32) & WORD)
        second = low * high_factors + (first & WORD)
        upper = high * high_factors + ((first >> 32) & WORD) + ((second >> 32) & WORD)
        even, odd = upper.flip(0) ^ odd ^ key, (even * factors).flip(0)
        key = key + weyl
    block = torch.stack([even[0], odd[0], even[1], odd[1]], dim=2)  # (B,blocks,4)
    halves = torch.stack([block & WORD, (block >> 32) & WORD], dim=3)  # the lower half is drawn first
    return halves.flatten(1)[:, :count].reshape(len(keys), *shape)


def _moved(keys: Sequence[bytes], calls: Sequence[int], device: torch.device) -> Tensor:
    """Keys and calls on the device, (3,B) int64."""
    given = torch.empty(3, len(keys), dtype=torch.int64)
    given.numpy()[:2] = np.frombuffer(b"".join(keys), dtype="<i8").reshape(-1, 2).T
    given.numpy()[2] = calls
    return sent(given, device)


@functools.cache
def _constants(device: torch.device) -> tuple[Tensor, ...]:
    """The multipliers, their lower and upper halves, and what is added to the key, each (2,1,1) int64."""
    lower, upper = ([(m >> shift) & WORD for m in MULTIPLIERS] for shift in (0, 32))
    return tuple(_signed(row).view(2, 1, 1).to(device) for row in (MULTIPLIERS, lower, upper, WEYL))


def _signed(row: Sequence[int]) -> Tensor:
    """Words of 64 bits as int64."""
    return torch.from_numpy(np.array(row, dtype=np.uint64).view(np.int64))


@functools.cache
def _table(device: torch.device) -> tuple[Tensor, ...]:
    """The coefficients of every cell, each (OCTAVES 2^CELLS + 1,) float64: the parabola through the quantiles at its
    ends and in its middle. The last cell is the median alone, to which the largest numbers are rounded.
    """
    octave = 2.0 ** torch.arange(OCTAVES, dtype=torch.float64).unsqueeze(1)
    share = torch.arange(2 * 2**CELLS + 1, dtype=torch.float64) / (2 * 2**CELLS)
    z = torch.special.ndtri(octave * (1 + share) * 2.0**-33)  # (OCTAVES, 2 x cells + 1): ends and middles
    left, middle, right = z[:, :-1:2], z[:, 1::2], z[:, 2::2]
    bend, width = 2 * (left - 2 * middle + right), 2.0**REST
    coefficients = left, (right - left - bend) / width, bend / width**2
    rounded = ((c / grid).round() * grid for c, grid in zip(coefficients, GRIDS, strict=True))
    return tuple(torch.cat([c.flatten(), c.new_zeros(1)]).to(device) for c in rounded)
