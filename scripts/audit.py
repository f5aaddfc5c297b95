"""Check whether a configuration's number can be trusted: the same as `dp audit`; see dp/commands/audit.py."""

import sys

from dp.commands.audit import main

if __name__ == "__main__":
    sys.exit(main())
