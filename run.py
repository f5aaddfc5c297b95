"""Attack and score a defense, and print the table row: python run.py [GROUP=OPTION ...] [KEY=VALUE ...]. The same as
`dp run`; what it does is in dp/commands/run.py.
"""

import sys

from dp.commands.run import main

if __name__ == "__main__":
    sys.exit(main())
