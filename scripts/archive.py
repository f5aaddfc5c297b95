"""Copy finished runs to results/measured/: the same as `dp archive`; see dp/commands/archive.py."""

import sys

from dp.commands.archive import main

if __name__ == "__main__":
    sys.exit(main())
