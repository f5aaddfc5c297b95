"""How a script ends where people can read it: its exit code, one line for a user's error."""

import sys
from collections.abc import Callable

import run


def told(main: Callable[[], int], interrupted: str = "interrupted; the same command goes on") -> int:
    """The exit code of `main`: 2 for a user's error, said in one line, 130 for an interruption."""
    try:
        return main()
    except KeyboardInterrupt as stop:
        run.console.print(str(stop) or interrupted)
        return 130
    except run.USER_ERRORS as error:
        print(f"error: {run.sentence(error)}", file=sys.stderr)
        return 2
