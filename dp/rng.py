"""One random stream per image, so that no result depends on batch, order, shard or device."""

import functools
import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dp import philox

VERSIONS = (1, 2)  # of the generator
MOST_THREADS = 8  # that draw for one GPU
AT_LEAST = 2**15  # numbers for a thread
AT_ONCE = 8  # calls that version 2 draws together: a GPU takes little longer for them than for one


class Streams:
    """Philox streams for a batch of images, one per image.

    The numbers of image i depend only on (seed, stage, ids[i], the chain of `draw` indices, the number of the call).
    Each stream has a 128-bit key from blake2b. Each call of `randn_like` or `uniform_like` uses the next counter block,
    so what one call consumes never shifts the next. Numbers are float32, whatever the tensor, and then cast.

    `version`: 1 is numpy's generator. It draws on the CPU; for a tensor on a GPU several threads fill pinned memory,
    nothing waits for the copy, and after two equal calls the next one is drawn ahead. 2 draws on the tensor's own
    device, see `dp.philox`: the same uniform numbers, and other Gaussian ones. On a GPU it draws several calls at once
    after two equal ones. What is drawn ahead changes no number. Raises ValueError for another version.
    """

    def __init__(self, ids: Sequence[int] | Tensor, seed: int, stage: str, version: int = 1):
        """`ids`: index in the full test set, one per image. `stage`: what the numbers are for (attack, select, clean,
        adv, null); other stages of the same seed get independent numbers.
        """
        if version not in VERSIONS:
            raise ValueError(f"need a generator among {', '.join(map(str, VERSIONS))}, got version={version!r}")
        keys = [_key(f"{seed}|{stage}|{int(i)}".encode()) for i in ids]
        self._begin(keys, [0] * len(keys), [False], version)

    def _begin(self, keys: list[bytes], calls: list[int], touched: list[bool], version: int) -> None:
        self.keys, self.calls, self.version = keys, calls, version
        self.touched = touched  # shared with all that is derived from these streams
        self.last: Request | None = None
        self.ahead: list[Filling] = []  # the next calls' numbers, if they will be as `last`

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
        keys = [_key(key + int(i).to_bytes(8, "little")) for key, i in zip(self.keys, ks, strict=True)]
        return _streams(keys, [0] * len(self), self.touched, self.version)

    def select(self, index: Sequence[int] | Tensor) -> "Streams":
        """The streams of these images, in this order; each continues where it is."""
        chosen = [int(i) for i in index]
        return _streams([self.keys[i] for i in chosen], [self.calls[i] for i in chosen], self.touched, self.version)

    def cat(self, other: "Streams") -> "Streams":
        """These streams, followed by the other ones of the same version; each continues where it is."""
        assert self.version == other.version, f"need one generator, got versions {self.version} and {other.version}"
        return _streams(self.keys + other.keys, self.calls + other.calls, self.touched, self.version)

    def randn_like(self, z: Tensor) -> Tensor:
        """Unit Gaussian noise of z's shape (B,...), dtype and device, by B streams, else ValueError."""
        return self._drawn(z, normal=True)

    def uniform_like(self, x: Tensor) -> Tensor:
        """Uniform numbers in [0,1) of x's shape (B,...), dtype and device, by B streams, else ValueError."""
        return self._drawn(x, normal=False)

    def _drawn(self, like: Tensor, normal: bool) -> Tensor:
        if len(like) != len(self):
            raise ValueError(f"need one stream per image, got {len(self)} streams for a batch of {len(like)}")
        self.touched[0] = True
        request = Request(tuple(like.shape), normal, like.device)
        again, self.last = request == self.last, request
        ready = self.ahead if again else []
        if not ready:
            ready = self._started(request, AT_ONCE if again and request.on_gpu and self.version == 2 else 1)
        now, self.ahead, self.calls = ready[0], ready[1:], [call + 1 for call in self.calls]
        if again and request.on_gpu and self.version == 1:
            self.ahead = self._started(request, 1)
        return now.result().to(device=like.device, dtype=like.dtype, non_blocking=request.on_gpu)

    def _started(self, request: "Request", calls: int) -> list["Filling"]:
        """The numbers of the next `calls` calls, which may still be being drawn."""
        if self.version == 1:
            return [_start(request, self.keys, [call + k for call in self.calls]) for k in range(calls)]
        draw, of_one = philox.normal if request.normal else philox.uniform, request.shape[1:]
        numbers = [call + k for k in range(calls) for call in self.calls]
        out = draw(self.keys * calls, numbers, of_one, request.device)
        if calls == 1:
            return [Filling(out, [])]
        return [Filling(part.clone(), []) for part in out.unflatten(0, (calls, -1))]  # whose caller may write into it


class Request(NamedTuple):
    """What a call asks for."""

    shape: tuple[int, ...]
    normal: bool  # else uniform
    device: torch.device

    @property
    def on_gpu(self) -> bool:
        """True if the host need not wait for copies, of memory that the GPU reads itself."""
        return self.device.type == "cuda"


class Filling(NamedTuple):
    """Numbers that threads are drawing."""

    out: Tensor
    parts: list["Future[None]"]

    def result(self) -> Tensor:
        """The numbers, when all are there."""
        for part in self.parts:
            part.result()
        return self.out


def _start(request: Request, keys: list[bytes], calls: list[int]) -> Filling:
    """Begin to draw: for a GPU in threads, elsewhere at once. torch frees pinned memory only after its copy."""
    out = torch.empty(request.shape, dtype=torch.float32, pin_memory=request.on_gpu)
    rows, streams = out.numpy(), list(zip(keys, calls, strict=True))
    if not request.on_gpu:
        _fill(rows, streams, request.normal)
        return Filling(out, [])
    size = -(-len(streams) // max(1, min(_threads(), out.numel() // AT_LEAST)))
    parts = [(rows[k : k + size], streams[k : k + size]) for k in range(0, len(streams), max(1, size))]
    return Filling(out, [_pool().submit(_fill, *part, request.normal) for part in parts])


def _fill(rows: np.ndarray, streams: Sequence[tuple[bytes, int]], normal: bool) -> None:
    """Numbers of every stream, by its key and the number of its call. numpy lets other threads run meanwhile."""
    bits = np.random.Philox(0)
    generator, state = np.random.Generator(bits), bits.state
    for row, (key, call) in zip(rows, streams, strict=True):
        state["state"]["key"][:] = np.frombuffer(key, dtype="<u8")
        state["state"]["counter"][:] = (0, 0, 0, call)  # the low words count blocks, the high word calls
        bits.state = state  # ten times faster than a new generator
        (generator.standard_normal if normal else generator.random)(out=row, dtype=np.float32)


def _threads() -> int:
    """Processor cores for each GPU, but not too many."""
    return max(1, min(MOST_THREADS, (os.cpu_count() or 1) // max(1, torch.cuda.device_count())))


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_threads(), "noise")


def cat_draws(rng: Streams, ks: Sequence[int]) -> Streams:
    """The draws `ks` of all images as one batch, for images repeated len(ks) times along dim 0."""
    return draws_of(rng, [(b, k) for k in ks for b in range(len(rng))])


def draws_of(rng: Streams, asked: Sequence[tuple[int, int]]) -> Streams:
    """The k-th draw of image b for every pair (b, k), as one batch that records its own use."""
    keys = [_key(rng.keys[b] + k.to_bytes(8, "little")) for b, k in asked]
    return _streams(keys, [0] * len(keys), [False], rng.version)


def _key(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _streams(keys: list[bytes], calls: list[int], touched: list[bool], version: int) -> Streams:
    streams = Streams.__new__(Streams)
    streams._begin(keys, calls, touched, version)
    return streams
