"""dp purify: purify your own images, and save a strip of each: before, mask, after.

  dp purify photo.png dataset=imagenet purifier=diffpure             the purifier's settings for the dataset
  dp purify a.png b.jpg dataset=cifar10 purifier=hetero --samples 3  three samples, each with noise of its own

The words with `=` are the configuration, as of dp run (dataset, classifier, denoiser, purifier, device, dtype). Of each
photograph the central square is taken and resized to the images of the dataset. The pictures go into the folder --out:
NAME-purified.png for each sample, and NAME-strip.png. Exit codes: 0 done, 2 a mistake in the command.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from dp.commands.options import parser
from dp.output.console import console
from dp.output.strips import Strip, draw
from dp.runs import compose
from dp.runs.errors import DONE, command
from dp.runs.purified import Purified, photos, purified


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns 0 if all pictures are saved, 2 after a user's error."""
    arguments = parser(__doc__, "image files, and the configuration (default: digits, hetero)")
    arguments.add_argument("--out", type=Path, default=Path("results/purified"), help="a folder (default %(default)s)")
    arguments.add_argument("--samples", type=int, default=1, metavar="N", help="samples of each image (default 1)")
    arguments.add_argument("--seed", type=int, default=0, help="of the noise (default 0)")
    args = arguments.parse_intermixed_args(argv)
    files = [Path(word) for word in args.overrides if "=" not in word]
    words = [word for word in args.overrides if "=" in word]

    def run() -> int:
        if not files:
            raise ValueError("need an image file, got none: dp purify photo.png dataset=NAME purifier=NAME")
        twice = [stem for stem, n in Counter(file.stem for file in files).items() if n > 1]
        if twice:
            raise ValueError(
                f"need image files of different names, got two {twice[0]}: purify them in two commands, with --out"
            )
        config = compose.composed(*words, config_dirs=args.config_dirs)
        if "shape" not in config["dataset"]:
            raise ValueError(f"need `shape` in the yaml of dataset={config['dataset']['name']}, got a dataset without")
        made = purified(config, photos(files, config["dataset"]["shape"]), args.samples, args.seed)
        args.out.mkdir(parents=True, exist_ok=True)
        for index, file in enumerate(files):
            for path in save(made, index, args.out / file.stem, config):
                console.print(path)
        return DONE

    return command(run)


def save(made: Purified, index: int, stem: Path, config: dict) -> list[Path]:
    """Save the samples and the strip of one image. Returns the paths. `stem`: the folder and the files' first part."""
    from torchvision.utils import save_image  # imported here because it takes seconds

    paths, several = [], len(made.samples) > 1
    for k, sample in enumerate(made.samples[:, index]):
        paths.append(stem.with_name(f"{stem.name}-purified{f'-{k + 1}' if several else ''}.png"))
        save_image(sample, paths[-1])
    images, words = [made.x[index]], ["before"]
    if made.mask is not None:
        mask: Tensor = made.mask[index]
        images.append(mask.expand_as(made.x[index]))
        words.append(f"strong noise: {100 * float(mask.mean()):.0f} % of the pixels")
    images += list(made.samples[:, index])
    words += [f"after, sample {k + 1}" if several else "after" for k in range(len(made.samples))]
    choices = config["choices"]
    title = f"{choices['purifier']} on {choices['dataset']}, {made.nfe} network evaluations a sample"
    paths.append(stem.with_name(f"{stem.name}-strip.png"))
    draw(paths[-1], [Strip(stem.name, images, words)], title)
    return paths
