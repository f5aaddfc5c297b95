"""The console that a run prints to."""

import sys

from rich.console import Console

console = Console(soft_wrap=True, markup=False, highlight=False, width=None if sys.stdout.isatty() else 120)
