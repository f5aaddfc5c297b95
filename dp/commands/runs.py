"""dp runs: list the runs in results/runs/ and results/measured/, see dp/commands/status.py."""

from dp.commands import status


def main() -> int:
    """The command. Returns 0 if the list is shown, 2 after a user's error."""
    return status.main()
