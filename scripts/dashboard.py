"""Write the W&B workspace of all runs: the same as `dp dashboard`; see dp/commands/dashboard.py."""

import sys

from dp.commands.dashboard import main

if __name__ == "__main__":
    sys.exit(main())
