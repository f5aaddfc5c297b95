"""What the command lines of several commands share."""

import argparse
import sys

from rich.console import Console

WIDE = 160  # columns of a table that goes to a file


def parser(description: str | None, overrides: str, epilog: str | None = None) -> argparse.ArgumentParser:
    """A parser that takes a configuration as `dp run` does: overrides, and --config-dir for plug-ins.

    `overrides`: the help for them. Call its `parse_intermixed_args`; `config_dirs` of the answer is a list.
    """
    made = argparse.ArgumentParser(
        description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("overrides", nargs="*", default=[], help=overrides)
    made.add_argument(
        "--config-dir", dest="config_dirs", action="append", default=[], metavar="DIR", help="a folder of further yamls"
    )
    return made


def wide_console(soft_wrap: bool = True) -> Console:
    """The terminal; elsewhere wide enough for a table with addresses in it."""
    width = None if sys.stdout.isatty() else WIDE
    return Console(soft_wrap=soft_wrap, markup=False, highlight=False, width=width)
