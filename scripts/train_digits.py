"""Train the embedded benchmark's two networks on the CPU and write them to dp/assets/ (seeded; minutes).

The classifier sees the 1285 training scans of `digits`, the denoiser the same ones; the 512 test images are only used
to print the standard accuracies at the end. Prints the SHA-256 of each file, which conf/classifier/digits.yaml and
conf/denoiser/digits.yaml pin.
"""

import argparse
import copy
import hashlib
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.progress import track
from safetensors.torch import save_file
from torch import Tensor, nn

from dp.datasets import digits, digits_train
from dp.denoisers import EDM
from dp.nets.small_unet import SmallUNet
from dp.nets.wrn import WideResNet
from dp.sampling import to_pm1

ASSETS = Path(__file__).parents[1] / "dp" / "assets"
SIGMA_DATA = 0.75  # root mean square of the training scans in [-1,1] is .80, their standard deviation .71


def shifted(x: Tensor, generator: torch.Generator, reach: int = 1) -> Tensor:
    """Each image moved by up to `reach` pixels along both axes, borders repeated."""
    b, _, h, w = x.shape
    padded = F.pad(x, [reach] * 4, mode="replicate")
    dy, dx = torch.randint(0, 2 * reach + 1, (2, b), generator=generator)
    rows = (dy[:, None] + torch.arange(h))[:, None, :, None].expand(b, x.shape[1], h, w + 2 * reach)
    cols = (dx[:, None] + torch.arange(w))[:, None, None, :].expand(b, x.shape[1], h, w)
    return padded.gather(2, rows).gather(3, cols)


def train_classifier(epochs: int, seed: int) -> WideResNet:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    data, net, batch = digits_train(), WideResNet(depth=10, widen=1, classes=10, channels=1), 64
    steps = epochs * (len(data.x) // batch)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=steps)
    order = torch.empty(0, dtype=torch.long)
    for _ in track(range(steps), description="classifier"):
        if len(order) < batch:
            order = torch.randperm(len(data.x), generator=generator)
        now, order = order[:batch], order[batch:]
        loss = F.cross_entropy(net(shifted(data.x[now], generator)), data.y[now])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval()


def train_denoiser(steps: int, seed: int, batch: int = 128, lr: float = 2e-3) -> SmallUNet:
    """EDM loss (Karras et al. 2022, Table 1) with its P_mean -1.2 and P_std 1.2; an average of the weights is kept."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    data, net = to_pm1(digits_train().x), SmallUNet(channels=1)
    ema = copy.deepcopy(net)
    denoiser = EDM(net, sigma_data=SIGMA_DATA)
    net.train().requires_grad_(True)
    optimizer = torch.optim.Adam(net.parameters(), lr=lr, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=steps, pct_start=0.05)
    for step in track(range(steps), description="denoiser"):
        x = data[torch.randint(len(data), (batch,), generator=generator)]
        sigma = torch.exp(-1.2 + 1.2 * torch.randn(batch, 1, 1, 1, generator=generator)).clamp(2e-3, 20.0)
        n = torch.randn(x.shape, generator=generator)
        weight = (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2
        loss = (weight * (denoiser.denoise(x + sigma * n, sigma) - x) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        decay = min(0.998, (step + 1) / (step + 10))
        with torch.no_grad():
            for slow, fast in zip(ema.parameters(), net.parameters(), strict=True):
                slow.lerp_(fast, 1 - decay)
    return ema.eval()


def save(net: nn.Module, name: str, folder: Path) -> None:
    path = folder / f"{name}.safetensors"
    half = {
        k: v.half() if v.is_floating_point() else v for k, v in net.state_dict().items()
    }  # half the size, the same accuracies
    save_file(half, path)
    print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["classifier", "denoiser", "both"], default="both")
    parser.add_argument("--epochs", type=int, default=20, help="of the classifier (default 20)")
    parser.add_argument("--steps", type=int, default=2400, help="of the denoiser (default 2400)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ASSETS, help="folder for the safetensors files (default dp/assets)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(2)  # the last bits of a sum depend on it
    if args.model in ("classifier", "both"):
        net = train_classifier(args.epochs, args.seed)
        save(net, "digits_classifier", args.out)
        test = digits()
        with torch.inference_mode():
            print(f"classifier: {(net(test.x).argmax(1) == test.y).float().mean() * 100:.1f} % of 512 test images")
    if args.model in ("denoiser", "both"):
        save(train_denoiser(args.steps, args.seed), "digits_denoiser", args.out)


if __name__ == "__main__":
    main()
