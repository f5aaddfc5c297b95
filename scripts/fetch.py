"""Bring the files that a configuration needs into the cache: the same as `dp fetch`; see dp/commands/fetch.py."""

import sys

from dp.commands.fetch import main

if __name__ == "__main__":
    sys.exit(main())
