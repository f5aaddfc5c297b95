"""Train a denoiser, a classifier or the network of a purifier: the same as `dp train`; see dp/commands/train.py."""

import sys

from dp.commands.train import main

if __name__ == "__main__":
    sys.exit(main())
