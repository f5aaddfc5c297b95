"""What bench.py measures with: that it runs without any file, and that what it holds side by side is equal."""

import subprocess
import sys
from pathlib import Path

import bench_tools
import torch

from dp.runs.build import build

ROOT = Path(__file__).parents[2]
SMALL = (
    "denoiser=edm_cifar10", "denoiser.net.net.model_channels=8", "denoiser.net.net.num_blocks=1",
    "classifier.net.net.depth=10", "classifier.net.net.widen=1", "purifier=diffpure", "purifier.steps=2",
    "classifier.taps=[]", "threat_model.grad=full", "dataset.lanes=2", "dataset.draws_per_call=2",
)  # fmt: skip


def test_it_says_how_it_is_used():
    said = subprocess.run(
        [sys.executable, "scripts/studies/bench.py", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert said.returncode == 0
    for mode in ("--full", "--official", "--switches", "--loading", "--device"):
        assert mode in said.stdout


def test_recompute_store_and_floor_run_on_random_networks():
    grads = {}
    for memory in ("store", "recompute"):
        torch.manual_seed(0)
        evaluation = build(bench_tools.random_config(*SMALL, f"memory={memory}", images=2))
        grads[memory] = bench_tools.gradient(evaluation)()[1]
        assert bench_tools.iteration(evaluation)().x_adv.shape == (2, 3, 32, 32)
    assert torch.equal(grads["store"], grads["recompute"])
    assert grads["store"].abs().sum() > 0
    torch.manual_seed(0)
    plain = bench_tools.gradient_with_all_kept(bench_tools.random_config(*SMALL, "memory=store", images=2))
    assert torch.equal(plain()[1], grads["store"])
    plain = bench_tools.in_format(evaluation, torch.contiguous_format)
    one, two = bench_tools.in_turn(1, lambda: None, bench_tools.floor(plain, 2, torch.contiguous_format))
    assert one < two
