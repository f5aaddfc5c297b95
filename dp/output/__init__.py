"""The files that a run writes, and the text that it prints."""
