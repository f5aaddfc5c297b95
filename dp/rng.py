"""One random stream per image, so that no result depends on batch, order, shard or device."""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor


class Streams:
    """Philox streams for a batch of images, one per image.

    The numbers of image i depend only on (seed, stage, ids[i], the chain of `draw` indices, the number of the call).
    Each stream has a 128-bit key from blake2b. Each call of `randn_like` or `uniform_like` uses the next counter block,
    so what one call consumes never shifts the next. Numbers are made in float32 on the CPU, then cast and moved, so
    that runs in float64 or on a GPU use the same ones.
    """

    def __init__(self, ids: Sequence[int] | Tensor, seed: int, stage: str):
        """`ids`: index in the full test set, one per image. `stage`: what the numbers are for (attack, select, clean,
        adv, null); other stages of the same seed get independent numbers.
        """
        self.keys = [_key(f"{seed}|{stage}|{int(i)}".encode()) for i in ids]
        self.calls = [0] * len(self.keys)
        self.touched = [False]  # shared with all that is derived from these streams

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def used(self) -> bool:
        """True if a number has been drawn from these streams or from streams derived from them.

        A defense that leaves its streams unused is deterministic.
        """
        return self.touched[0]

    def draw(self, k: int | Sequence[int]) -> "Streams":
        """The k-th independent copy (for EOT, votes, iterations), which starts at its first call.

        `k`: one index for all images, or one per image.
        """
        ks = [k] * len(self) if isinstance(k, int) else k
        return _streams(
            [_key(key + int(i).to_bytes(8, "little")) for key, i in zip(self.keys, ks, strict=True)],
            [0] * len(self),
            self.touched,
        )

    def select(self, index: Sequence[int] | Tensor) -> "Streams":
        """The streams of these images, in this order; each continues where it is."""
        chosen = [int(i) for i in index]
        return _streams([self.keys[i] for i in chosen], [self.calls[i] for i in chosen], self.touched)

    def cat(self, other: "Streams") -> "Streams":
        """These streams, followed by the other ones; each continues where it is."""
        return _streams(self.keys + other.keys, self.calls + other.calls, self.touched)

    def randn_like(self, z: Tensor) -> Tensor:
        """Unit Gaussian noise of z's shape (B,...), dtype and device, by B streams, else ValueError."""
        return self._fill(z, lambda generator, out: generator.standard_normal(out=out, dtype=np.float32))

    def uniform_like(self, x: Tensor) -> Tensor:
        """Uniform numbers in [0,1) of x's shape (B,...), dtype and device, by B streams, else ValueError."""
        return self._fill(x, lambda generator, out: generator.random(out=out, dtype=np.float32))

    def _fill(self, like: Tensor, sample: Callable[[np.random.Generator, np.ndarray], object]) -> Tensor:
        if len(like) != len(self):
            raise ValueError(f"need one stream per image, got {len(self)} streams for a batch of {len(like)}")
        self.touched[0] = True
        out = np.empty(tuple(like.shape), dtype=np.float32)
        bits = np.random.Philox(0)
        generator, state = np.random.Generator(bits), bits.state
        for i, (key, call) in enumerate(zip(self.keys, self.calls, strict=True)):
            state["state"]["key"][:] = np.frombuffer(key, dtype="<u8")
            state["state"]["counter"][:] = (0, 0, 0, call)  # the low words count blocks, the high word calls
            bits.state = state  # ten times faster than a new generator
            sample(generator, out[i])
            self.calls[i] = call + 1
        return torch.from_numpy(out).to(device=like.device, dtype=like.dtype)


def cat_draws(rng: Streams, ks: Sequence[int]) -> Streams:
    """The draws `ks` of all images as one batch, for images repeated len(ks) times along dim 0."""
    return draws_of(rng, [(b, k) for k in ks for b in range(len(rng))])


def draws_of(rng: Streams, asked: Sequence[tuple[int, int]]) -> Streams:
    """The k-th draw of image b for every pair (b, k), as one batch that records its own use."""
    keys = [_key(rng.keys[b] + k.to_bytes(8, "little")) for b, k in asked]
    return _streams(keys, [0] * len(keys), [False])


def _key(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _streams(keys: list[bytes], calls: list[int], touched: list[bool]) -> Streams:
    streams = Streams.__new__(Streams)
    streams.keys, streams.calls, streams.touched = keys, calls, touched
    return streams
