"""Score the attacked images of a finished run again: the same as `dp rescore`; see dp/commands/rescore.py."""

import sys

from dp.commands.rescore import main

if __name__ == "__main__":
    sys.exit(main())
