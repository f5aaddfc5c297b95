"""`python -m dp` is the console command `dp`."""

import sys

from dp.cli import main

if __name__ == "__main__":
    sys.exit(main())
