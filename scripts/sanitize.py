"""Sanitize a training set that may be poisoned: the same as `dp sanitize`; see dp/commands/sanitize.py."""

import sys

from dp.commands.sanitize import main

if __name__ == "__main__":
    sys.exit(main())
