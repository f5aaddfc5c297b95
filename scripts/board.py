"""Write, check and rank result cards: the same as `dp board`; see dp/commands/board.py."""

import sys

from dp.commands.board import main

if __name__ == "__main__":
    sys.exit(main())
