"""Write results/tables/ from results/measured/: the same as `dp tables`; see dp/commands/tables.py."""

import sys

from dp.commands.tables import main

if __name__ == "__main__":
    sys.exit(main())
