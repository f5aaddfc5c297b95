"""The terminal that a run writes to."""

import sys

from rich.console import Console

console = Console(soft_wrap=True, markup=False, highlight=False, width=None if sys.stdout.isatty() else 120)
