"""The console command `dp`. It forwards to one command of dp/commands/."""

import importlib
import sys

from dp.spelling import near_matches

COMMANDS = {
    "run": "attack and score a defense, and print the table row",
    "audit": "check on a few images whether a configuration's number can be trusted",
    "certify": "certify within which radius no attack can change the prediction",
    "sanitize": "poison a training set, sanitize it with a diffusion model, and measure what that changes",
    "purify": "purify your own images, and save a strip of each: before, mask, after",
    "runs": "list all runs: how far they are, the time to go, who works on them, whether they are audited",
    "status": "the same for the runs that are named",
    "sweep": "print the table and draw the figure of a sweep whose shell is gone",
    "rescore": "score the attacked images of a finished run again, also by other defenses",
    "fetch": "download the weights and data that a configuration needs into the cache",
    "train": "train a denoiser, a classifier or the network of a purifier",
    "archive": "copy finished runs to results/measured/",
    "board": "write, check and rank result cards with their attacked images",
    "tables": "write the paper's tables with our runs beside them",
    "figures": "draw results/figures/ from results/measured/",
    "dashboard": "write the workspace of all runs at W&B, and its specification",
    "view": "write results/page/, finished runs as a page for the browser",
    "canvas": "draw images of the embedded benchmark canvas",
    "reference": "write the lists in docs/ that come from the code",
}
USAGE = "usage: dp COMMAND ...      dp COMMAND --help says more\n\n" + "\n".join(
    f"  {name:9}  {words}" for name, words in COMMANDS.items()
)


def main() -> int:
    """Run the command that the command line names. Returns its exit code."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(USAGE)
        return 0
    if name not in COMMANDS:
        print(f"error: unknown command {name}{near_matches(name, COMMANDS)}: dp --help lists them", file=sys.stderr)
        return 2
    sys.argv = [f"dp {name}", *rest]
    return importlib.import_module(f"dp.commands.{name}").main()
