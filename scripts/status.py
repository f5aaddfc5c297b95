"""List runs, how far they are and who works on them: the same as `dp status`; see dp/commands/status.py."""

import sys

from dp.commands.status import main

if __name__ == "__main__":
    sys.exit(main())
