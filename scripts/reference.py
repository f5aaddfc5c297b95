"""Write the lists in docs/ that come from the code and the yamls. The body is dp/commands/reference.py."""

import sys

from dp.commands.reference import main

if __name__ == "__main__":
    sys.exit(main())
