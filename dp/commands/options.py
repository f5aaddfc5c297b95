"""The options that several commands share."""

import argparse
import sys

from rich.console import Console

WIDE = 160  # columns of a table that is written to a file


def parser(description: str | None, overrides: str, epilog: str | None = None) -> argparse.ArgumentParser:
    """A parser that takes a configuration as `dp run` does: overrides, and --config-dir for plug-ins.

    `overrides`: the help text of the overrides. Call `parse_intermixed_args` of the parser. In its result,
    `config_dirs` is a list.
    """
    result = argparse.ArgumentParser(
        description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("overrides", nargs="*", default=[], help=overrides)
    result.add_argument(
        "--config-dir", dest="config_dirs", action="append", default=[], metavar="DIR", help="a further folder of yamls"
    )
    return result


def wide_console(soft_wrap: bool = True) -> Console:
    """A console on standard output. If that is no terminal, it is wide enough for a table with addresses."""
    width = None if sys.stdout.isatty() else WIDE
    return Console(soft_wrap=soft_wrap, markup=False, highlight=False, width=width)
