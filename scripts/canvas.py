"""Draw images of the benchmark `canvas`: the same as `dp canvas`; see dp/commands/canvas.py."""

import sys

from dp.commands.canvas import main

if __name__ == "__main__":
    sys.exit(main())
