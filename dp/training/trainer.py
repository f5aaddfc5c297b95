"""Seeded training on one process or several that resumes to the bit. What is trained is a `Task`."""

import copy
import hashlib
import io
import math
import pickle
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load, save
from torch import Generator, Tensor, nn

from dp.files.cache import forget
from dp.output.record import write_atomic
from dp.training.distributed import average_gradients, share_norms, world
from dp.training.task import Task


def warm(step: int, batch: int, *, decay: float) -> float:
    """Decay of the averaged weights after `step` steps: (step + 1) / (step + 10), at most `decay`."""
    return min(decay, (step + 1) / (step + 10))


def halflife(step: int, batch: int, *, images: float, rampup: float) -> float:
    """Decay of the averaged weights with a half-life in images, as in the code of Karras et al. 2022.

    The half-life is `images`, or `rampup` times the images trained on so far where that is less.
    """
    return 0.5 ** (batch / max(min(images, step * batch * rampup), 1e-8))


class Training:
    """Trains `task` for `steps` steps of one global `batch` each. Its whole state can be saved and restored.

    `optimizer`: parameters -> optimizer. `schedule`: optimizer -> learning rate scheduler, stepped after every step.
    `ema`: (step, batch) -> decay of the averaged weights, which are the result; None keeps the last weights.
    `accumulate`: the number of parts in which a batch goes through the network (BatchNorm sees the parts).
    `clip`: largest norm of the gradient, or None. `autocast`: the narrower dtype of products in the loss, or None.
    `log_every`, `save_every`: in steps; they do not change the result.
    `code`: the hash of the code and of all else that a saved state must come from.
    Raises ValueError for numbers below 1, a batch that cannot be divided, a schedule that needs more steps, and values
    that the optimizer or the schedule cannot use.
    """

    def __init__(
        self,
        task: Task,
        *,
        seed: int,
        steps: int,
        batch: int,
        optimizer: Callable[..., torch.optim.Optimizer],
        schedule: Callable[..., Any],
        ema: Callable[[int, int], float] | None = None,
        accumulate: int = 1,
        clip: float | None = None,
        log_every: int = 50,
        save_every: int = 1000,
        autocast: torch.dtype | None = None,
        code: str = "",
    ):
        _, size = world()
        if min(steps, batch, accumulate, log_every, save_every) < 1 or batch % (accumulate * size):
            raise ValueError(
                "need steps, log_every, save_every >= 1 and a batch that is a multiple of accumulate x processes, got "
                f"steps={steps}, log_every={log_every}, save_every={save_every}, batch={batch}, "
                f"accumulate={accumulate}, processes={size}"
            )
        self.task, self.seed, self.steps, self.batch = task, seed, steps, batch
        self.accumulate, self.clip, self.ema = accumulate, clip, ema
        self.log_every, self.save_every, self.autocast, self.code = log_every, save_every, autocast, code
        self.net = task.net.train().requires_grad_(True)  # adapters turn both off
        self.average = None if ema is None else copy.deepcopy(self.net).requires_grad_(False)
        if size > 1:
            share_norms(self.net)
        try:
            self.optimizer = optimizer(self.net.parameters())
            self.schedule = schedule(self.optimizer)
        except ZeroDivisionError:  # OneCycleLR, where pct_start x steps is 1
            raise ValueError(
                f"need more steps for this schedule, got steps={steps}: change steps or pct_start"
            ) from None
        except TypeError as error:
            raise ValueError(
                f"need values that the optimizer and the schedule can use, got {error}: correct training.optimizer or "
                "training.schedule"
            ) from None
        self.generator = Generator().manual_seed(seed)
        self.step, self.saved, self.seconds = 0, 0, 0.0  # `saved`: the step of the state on disk
        self.sum, self.history = (
            torch.zeros((), dtype=torch.float64),
            [],
        )  # of losses since the last note; (step, mean loss)

    @property
    def result(self) -> nn.Module:
        """The trained network: the averaged one, if there is one."""
        return self.net if self.average is None else self.average

    def gradients(self) -> Tensor:
        """Draw the next batch, put the mean gradient into the parameters, and return the mean loss of this process."""
        rank, size = world()
        key = hashlib.blake2b(f"{self.seed}|{self.step}|{rank}".encode(), digest_size=7).digest()
        torch.manual_seed(int.from_bytes(key, "little"))  # dropout: no state to save, other noise in each process
        local = [part[rank::size] for part in self.task.draw(self.batch, self.generator)]
        self.optimizer.zero_grad()
        total, device = torch.zeros(()), next(self.net.parameters()).device.type
        for parts in zip(*(part.chunk(self.accumulate) for part in local), strict=True):
            with torch.autocast(device, self.autocast, enabled=self.autocast is not None):
                loss = self.task.loss(*parts) / self.accumulate
            loss.backward()
            total = total.to(loss.device) + loss.detach()
        average_gradients(self.net)
        return total

    def advance(self) -> None:
        """Take one step of the weights and of their average."""
        loss = self.gradients()
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.net.parameters(), self.clip)
        self.optimizer.step()
        self.schedule.step()
        if self.ema is not None and self.average is not None:
            decay = self.ema(self.step, self.batch)
            with torch.no_grad():
                for slow, fast in zip(self.average.parameters(), self.net.parameters(), strict=True):
                    slow.lerp_(fast, 1 - decay)
                for slow, fast in zip(self.average.buffers(), self.net.buffers(), strict=True):
                    slow.copy_(fast)
        self.sum = self.sum.to(loss.device) + loss
        self.step += 1
        self.task.after_step(self.step)

    def note(self) -> None:
        """Append the mean loss since the last note, over all processes, to the history.

        Raises ValueError where it is not finite.
        """
        mean = self.sum / (self.step - (self.history[-1][0] if self.history else 0))
        if world()[1] > 1:
            dist.all_reduce(mean)
            mean /= world()[1]
        self.history.append((self.step, mean.item()))
        self.sum = torch.zeros((), dtype=torch.float64)
        if not math.isfinite(mean):
            raise ValueError(f"need a finite loss, got {mean.item()} near step {self.step}: lower the learning rate")

    def run(self, path: Path, on_step: Callable[["Training"], None], on_save: Callable[["Training"], None]) -> None:
        """Train to the last step. `on_step` is called after each step; the first process saves the state to `path`."""
        while self.step < self.steps:
            began = time.monotonic()
            self.advance()
            last = self.step == self.steps
            if last or self.step % self.log_every == 0:
                self.note()
            self.seconds += time.monotonic() - began
            on_step(self)
            if (last or self.step % self.save_every == 0) and world()[0] == 0:
                self.save(path)
                on_save(self)

    def save(self, path: Path) -> None:
        """Write everything that the rest of the training depends on to one file, atomically."""
        state = {
            "code": self.code,
            "net": self.net.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "generator": self.generator.get_state(),
            "task": self.task.state(),
            "step": self.step,
            "sum": self.sum.cpu(),
            "history": self.history,
            "seconds": self.seconds,
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomic(path, buffer.getvalue())
        self.saved = self.step

    def restore(self, path: Path) -> None:
        """Continue from what `save` wrote. Only tensors and plain values are read; nothing in the file is executed.

        Raises ValueError for any other file, and for a state that other code made.
        """
        if not zipfile.is_zipfile(path):
            raise ValueError(f"need {path} as this training wrote it, got another file: delete it")
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            before = state["code"]
        except (RuntimeError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
            raise _another(path, error) from None
        if before != self.code:
            raise ValueError(
                f"need one code, plug-ins and weights for all steps of a training, got {path} made by others "
                f"({before[:8]}, now {self.code[:8]}): go back to those, or add overwrite=true to begin anew"
            )
        try:
            self.net.load_state_dict(state["net"])
            if self.average is not None:
                self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            self.generator.set_state(state["generator"])
            self.task.restore(state["task"])
            self.step, self.sum, self.seconds = state["step"], state["sum"], state["seconds"]
            self.saved = self.step
            self.history = [tuple(point) for point in state["history"]]
        except (RuntimeError, KeyError, TypeError, ValueError) as error:
            raise _another(path, error) from None


def _another(path: Path, error: Exception) -> ValueError:
    reason = str(error).split("\n")[0]
    return ValueError(f"need {path} as this training wrote it, got another ({reason}): delete it")


def keep(net: nn.Module, path: Path, half: bool) -> str:
    """Write the tensors to one safetensors file, atomically, and return its SHA-256.

    `half`: in float16. Afterwards `net` holds what the file holds.
    """
    tensors = {k: v.half() if half and v.is_floating_point() else v for k, v in net.state_dict().items()}
    data = save({k: v.cpu().contiguous() for k, v in tensors.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, data)
    forget(path)
    net.load_state_dict(load(data))
    return hashlib.sha256(data).hexdigest()
