"""Write finished runs as a page for the browser: the same as `dp view`; see dp/commands/view.py."""

import sys

from dp.commands.view import main

if __name__ == "__main__":
    sys.exit(main())
