"""Attacks: one file per method, a frozen dataclass with `start` and `step` over a per-image state."""
