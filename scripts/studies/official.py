"""The released code's own attack loop (GaozhengPei/Purification) around networks of ours, for bench.py --official.

Nothing of it is copied: a checkout of it must be on PYTHONPATH.
"""

import contextlib
import copy
import io
from collections.abc import Callable

import torch
from bench_tools import attacked, random_config

from dp.evaluation.evaluate import Evaluation
from dp.runs.build import build

SMALL = (  # networks with the modules that its code looks up, 0.75 and 0.08 million numbers
    "denoiser.net.net.nf=32", "denoiser.net.net.num_res_blocks=1", "denoiser.net.net.ch_mult=[1,2]",
    "classifier.net.net.depth=10", "classifier.net.net.widen=1",
    "classifier.taps=[block1.layer.0.relu2,block2.layer.0.relu2,block3.layer.0.relu2,relu]",
)  # fmt: skip
BOTH = (
    "denoiser=score_sde_cifar10_discrete",
    "purifier=hetero_official",
    "purifier.n=50",
    "attack=pgd_eot_official",
    "threat_model.grad=full",
)


def config(full: bool, images: int, draws_per_call: int, memory: str, *overrides: str) -> dict:
    """Its method as dp runs it, ten denoising steps, and its networks: score-SDE's DDPM++ and WRN-28-10, or small
    ones.
    """
    size = ("denoiser.net.net.num_res_blocks=4",) if full else SMALL  # 62 million numbers; deep DDPM++ has 107
    packed = (f"dataset.draws_per_call={draws_per_call}", f"dataset.lanes={images}", f"memory={memory}")
    return random_config(*BOTH, *size, *packed, *overrides, images=images)


def loop(config: dict, samples: int, memory_format: torch.memory_format) -> Callable[[], object]:
    """One iteration of its PGD over `samples` samples, on the images and networks that dp builds from `config`."""
    return around(build(config), config, samples, memory_format)


def around(
    evaluation: Evaluation, config: dict, samples: int, memory_format: torch.memory_format
) -> Callable[[], object]:
    """The same on copies of the networks of `evaluation`. It writes mask.png into the working folder, for every sample.

    Raises ValueError if the released code is not on PYTHONPATH.
    """
    try:
        from attacks.pgd_eot import PGD  # pyright: ignore[reportMissingImports]
        from purification import PurificationForward  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise ValueError(
            f"need a checkout of GaozhengPei/Purification on PYTHONPATH for --official, got none: {error}"
        ) from None

    model, subset, _ = attacked(evaluation)
    assert model.denoiser is not None
    method, threat = config["purifier"], evaluation.threat
    defense = PurificationForward(
        clf=copy.deepcopy(model.classifier.net).to(memory_format=memory_format),
        diffusion=copy.deepcopy(model.denoiser.net).to(memory_format=memory_format),
        strength_a=method["t_l"],
        strength_b=method["t_s"],
        classifier_name="WideResNet28-10",
        is_imagenet=False,
        forward_noise_steps=method["jump"],
        threshold=method["tau"],
        threshold_percent=method["top"],
        ddim_steps=method["n"],
        device=torch.device(evaluation.device),
    )
    attack = PGD(defense, attack_steps=1, eps=threat.eps, step_size=config["attack"]["step_size"], eot=samples)

    def once() -> None:
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bars
            attack(subset.x, subset.y)

    return once
