"""Draw results/figures/ from results/measured/: the same as `dp figures`; see dp/commands/figures.py."""

import sys

from dp.commands.figures import main

if __name__ == "__main__":
    sys.exit(main())
