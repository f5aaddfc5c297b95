"""Near matches of a misspelt name, for error messages."""

import difflib
from collections.abc import Iterable


def near_matches(word: str, known: Iterable[str]) -> str:
    """The text ` (did you mean a or b?)` with up to three known words like this one, or an empty text."""
    close = difflib.get_close_matches(word, list(known), n=3, cutoff=0.5)
    return f" (did you mean {' or '.join(close)}?)" if close else ""
