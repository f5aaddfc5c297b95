"""Purify your own images: see `dp purify --help`."""

import sys

from dp.commands.purify import main

if __name__ == "__main__":
    sys.exit(main())
