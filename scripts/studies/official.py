"""The released code's own attack loop (GaozhengPei/Purification) around our networks, for bench.py --official.

None of that code is copied here. A checkout of it must be on PYTHONPATH.
"""

import contextlib
import copy
import io
from collections.abc import Callable

import torch
from bench_tools import attacked, random_config

from dp.evaluation.evaluate import Evaluation
from dp.runs.build import build

SMALL = (  # small networks with the modules that the released code looks up, 0.75 and 0.08 million parameters
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
    """The configuration of the released method in dp, with ten denoising steps.

    `full`: the networks are score-SDE's DDPM++ and WRN-28-10; otherwise they are small.
    """
    size = ("denoiser.net.net.num_res_blocks=4",) if full else SMALL  # 62 million parameters; deep DDPM++ has 107
    packed = (f"dataset.draws_per_call={draws_per_call}", f"dataset.lanes={images}", f"memory={memory}")
    return random_config(*BOTH, *size, *packed, *overrides, images=images)


def loop(config: dict, samples: int, memory_format: torch.memory_format) -> Callable[[], object]:
    """A function of one PGD iteration of the released code, on the images and networks that dp builds from `config`."""
    return around(build(config), config, samples, memory_format)


def around(
    evaluation: Evaluation, config: dict, samples: int, memory_format: torch.memory_format
) -> Callable[[], object]:
    """A function of one PGD iteration of the released code, on copies of the networks of `evaluation`.

    The released code writes mask.png into the working folder for every sample.

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
