"""The two passes of a sanitizing over its images, chunk by chunk. Every chunk is a file, written when it is done.

The first pass keeps only labels. The second one makes the states of the images with a transition in a flagged class
again, with the same noise and in calls of the same width, and keeps them on the disk. In memory there is never more
than one chunk.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from dp.classifiers import Classifier
from dp.diffusion.denoisers import Denoiser
from dp.output import record
from dp.output.console import console
from dp.output.progress import Bar
from dp.rng import Streams
from dp.runs.sanitize_networks import chunks, labels_of, note
from dp.sanitizing.chain import to_bytes, to_floats
from dp.sanitizing.distance import distances
from dp.sanitizing.elixir import DataElixir, States
from dp.subset import Subset

STAGE = "sanitize"  # of the random streams


@dataclass
class Passes:
    """The passes over a set. `folder`: of the files; `classifier`: the one that was trained on the set as given."""

    sanitizer: DataElixir
    data: Subset
    denoiser: Denoiser
    classifier: Classifier
    folder: Path
    device: str

    def states(self, places: Tensor, bar: Bar | None = None, done: int = 0, total: int = 0) -> list[Tensor]:
        """The states of the images at `places` (n,): S of (n,C,H,W) uint8, on the device."""
        x = self.data.x[places].to(self.device, memory_format=torch.channels_last)
        rng = Streams(self.data.ids[places], self.sanitizer.seed, STAGE)
        calls, per_chunk = 0, self.sanitizer.rounds.nfe(self.denoiser.sigma)

        def on_call() -> None:
            nonlocal calls
            calls += 1
            if bar is not None:
                bar(done + calls / per_chunk, f"chunk {done + 1}/{total}")

        return self.sanitizer.rounds.states(x, self.denoiser, rng, on_call)

    def evaluations(self, again: int) -> int:
        """The denoiser's network evaluations, with those of the padding: of the first pass, of the second one over
        `again` images, and of the chunk that is made for the picture.
        """
        width = self.sanitizer.batch
        count = -(-len(self.data.x) // width) + -(-again // width) + 1
        return count * width * self.sanitizer.rounds.nfe(self.denoiser.sigma)

    @torch.no_grad()
    def labels(self) -> Tensor:
        """The first pass: labels (N,1+S) of the images and their states."""
        width, total = self.sanitizer.batch, -(-len(self.data.x) // self.sanitizer.batch)
        parts = []
        with Bar(console, total) as bar:
            earlier = sum(read(self.folder / f"labels-{k:05d}.safetensors") is not None for k in range(total))
            for k, places in chunks(len(self.data.x), width):
                path = self.folder / f"labels-{k:05d}.safetensors"
                part = read(path)
                if part is None:
                    began = time.perf_counter()
                    rows = [self.data.x[places], *(to_floats(s) for s in self.states(places, bar, k, total))]
                    columns = [labels_of(self.classifier, x, width, self.device) for x in rows]
                    part = {"labels": torch.stack(columns, 1).to(torch.int32)}
                    record.write_atomic(path, save(part))
                    note(self.folder, time.perf_counter() - began)
                parts.append(part["labels"].long())
                bar(k + 1, f"labels of the states: chunk {k + 1}/{total}", min(earlier, k + 1))
        return torch.cat(parts)[: len(self.data.x)]

    def kept(self, index: Tensor) -> Iterator[States]:
        """The second pass: the states of the images at `index` (M,), one chunk after the other."""
        width = self.sanitizer.batch
        total = -(-len(index) // width)
        for k, places in chunks(len(index), width):
            path = self.folder / f"states-{k:05d}.safetensors"
            part = read(path)
            if part is None:
                began = time.perf_counter()
                part = self.chunk(index, places)
                record.write_atomic(path, save(part))
                note(self.folder, time.perf_counter() - began)
                console.print(f"states of images with a transition in a flagged class: chunk {k + 1}/{total}")
            yield States(part["index"], part["states"], part["distance"])

    @torch.no_grad()
    def chunk(self, index: Tensor, places: Tensor) -> dict[str, Tensor]:
        """The file of a chunk of the second pass, as tensors. Padding is left out."""
        n = int((places[1:] != places[:-1]).sum()) + 1
        own = self.data.x[index[places]]
        rows = [to_bytes(own), *(s.cpu() for s in self.states(index[places]))]
        features = [self.features(to_floats(row)) for row in rows]
        far = [
            distances(to_floats(rows[0]), to_floats(row), features[0], f) for row, f in zip(rows, features, strict=True)
        ]
        states, distance = torch.stack(rows, 1)[:n], torch.stack(far, 1)[:n]
        distance[:, 0] = 0.0
        return {"index": index[places[:n]], "states": states.contiguous(), "distance": distance.contiguous()}

    def features(self, x: Tensor) -> Tensor:
        """The mean over pixels (n,D) of the classifier's deepest features of x (n,C,H,W) in [0,1]."""
        deepest = self.classifier.features(x.to(self.device, memory_format=torch.channels_last))[-1]
        return deepest.flatten(2).mean(2).cpu()


def read(path: Path) -> dict[str, Tensor] | None:
    """The tensors of a chunk, or None if it is not there. Raises ValueError for a damaged file."""
    if not path.exists():
        return None
    try:
        return load(path.read_bytes())
    except (SafetensorError, OSError) as error:
        raise ValueError(f"need {path} as it was written, got {type(error).__name__}: delete it") from None
